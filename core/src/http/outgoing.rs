//! Sends answers, a piece at a time.

use core::mem;

use super::answer::{self, Content, Framing, Head, Piece, Refusal, Status};
use super::route::Methods;
use super::{
    Body, Connection, DISCARD_MAX, End, Exchange, FRONT, PIECE_MIN, Rest, SLOW, Service, State,
    TAIL,
};
use crate::time::Instant;
use crate::wire::copy;

/// The head of an answer, without its framing.
#[derive(Debug, Clone, Copy)]
struct Kind {
    status: Status,
    allow: Methods,
    content: Content,
}

impl<T> Connection<T> {
    /// Answers the complete request.
    pub(super) fn answer<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        if let Some(refusal) = self.refusal.take() {
            return self.stage_refusal(now, refusal, service);
        }
        let Some(task) = &mut self.task else { return };
        let content = match service.answer(now, task) {
            Ok(content) => content,
            Err(refusal) => return self.reject(now, refusal, service),
        };
        let behind = self.buf.get_mut(FRONT..).unwrap_or_default();
        let mut piece = Piece::new(behind.get_mut(..PIECE_MIN).unwrap_or_default());
        let is_all = content == Content::Nothing || service.write(now, task, &mut piece);
        let len = piece.len();
        self.stage(
            now,
            service,
            Kind { status: Status::Ok, allow: Methods::NONE, content },
            len,
            is_all,
        );
    }

    /// Refuses a request, which may have begun.
    pub(super) fn reject<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        refusal: Refusal,
        service: &mut S,
    ) {
        service.end(now, self.task.as_mut(), End::Refused(refusal.status));
        self.task = None;
        self.stage_refusal(now, refusal, service);
    }

    pub(super) fn stage_refusal<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        refusal: Refusal,
        service: &S,
    ) {
        let Refusal { status, allow, .. } = refusal;
        let behind = self.buf.get_mut(FRONT..).unwrap_or_default();
        let mut piece = Piece::new(behind);
        // The answer to OPTIONS is a refusal as well, but has no code.
        let content = if status == Status::Ok { Content::Nothing } else { Content::Json };
        if content == Content::Json {
            refusal.emit(&mut piece);
        }
        let len = piece.len();
        self.stage(now, service, Kind { status, allow, content }, len, true);
    }

    /// Refuses a request once the rest of its body was discarded. If the rest is too long, or the
    /// client waits for `100 Continue`, refuses at once and closes the connection afterwards.
    pub(super) fn reject_later<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        refusal: Refusal,
        service: &mut S,
    ) {
        let waits = mem::take(&mut self.exchange.expects);
        let has_rest = self.left > 0 || !self.chunks.is_none();
        if has_rest && self.left <= DISCARD_MAX && !waits {
            service.end(now, self.task.as_mut(), End::Refused(refusal.status));
            self.task = None;
            self.refusal = Some(refusal);
            self.room = DISCARD_MAX.saturating_sub(self.left);
            return self.set_state(State::Body(Body::Ignore));
        }
        if has_rest {
            self.discard_rest();
        }
        self.reject(now, refusal, service);
    }

    /// Refuses a request without reading the rest, and closes the connection afterwards. A request
    /// that was refused before gets that refusal.
    pub(super) fn reject_and_close<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        status: Status,
        code: &'static str,
        service: &mut S,
    ) {
        self.discard_rest();
        match self.refusal.take() {
            Some(refusal) => self.stage_refusal(now, refusal, service),
            None => self.reject(now, Refusal::new(status, code), service),
        }
    }

    fn discard_rest(&mut self) {
        self.exchange.closes = true;
        self.left = u32::MAX;
    }

    /// Stages the head and the first piece of the answer, which lies behind the front and has `len`
    /// bytes.
    fn stage<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        service: &S,
        kind: Kind,
        len: usize,
        is_all: bool,
    ) {
        let Exchange { is_old, is_head, .. } = self.exchange;
        let (framing, rest) = match (is_all, is_old) {
            (true, _) => (Framing::Length(len), Rest::Nothing),
            (false, true) => (Framing::ToTheEnd, Rest::Bytes),
            (false, false) => (Framing::Chunked, Rest::Chunks),
        };
        self.exchange.closes |= rest == Rest::Bytes;
        let Kind { status, allow, content } = kind;
        let head = Head { status, content, allow, is_old, closes: self.exchange.closes, framing };
        let mut front = Piece::new(self.buf.get_mut(..FRONT).unwrap_or_default());
        head.put(&mut front);
        if rest == Rest::Chunks {
            answer::put_chunk_len(&mut front, len);
        }
        self.front = 0..front.len() as u16;
        let end = if rest == Rest::Chunks { self.put_behind(len, b"\r\n") } else { len };
        self.body = 0..if is_head { 0 } else { end as u16 };
        self.step = now.after(service.config().write);
        self.evictable = now.after(SLOW);
        self.set_state(State::Answer(rest));
    }

    /// Stages the next piece of the answer, if the answer has one.
    pub(super) fn stage_more<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        let State::Answer(rest @ (Rest::Chunks | Rest::Bytes)) = self.state else { return };
        let Some(task) = &mut self.task else { return };
        let behind = self.buf.get_mut(FRONT..).unwrap_or_default();
        let mut piece = Piece::new(behind.get_mut(..PIECE_MIN).unwrap_or_default());
        let is_all = service.write(now, task, &mut piece);
        let len = piece.len();
        if len == 0 && !is_all {
            // An element is longer than a piece: a fault of the service.
            return self.abort(now, service);
        }
        let mut end = len;
        if rest == Rest::Chunks {
            let mut front = Piece::new(self.buf.get_mut(..FRONT).unwrap_or_default());
            if len > 0 {
                answer::put_chunk_len(&mut front, len);
            }
            self.front = 0..front.len() as u16;
            let from = if len > 0 { 0 } else { 2 };
            let to = if is_all { TAIL.len() } else { 2 };
            end = self.put_behind(len, TAIL.get(from..to).unwrap_or_default());
        }
        self.body = 0..end as u16;
        self.step = now.after(service.config().write);
        if is_all {
            self.set_state(State::Answer(Rest::Nothing));
        }
    }

    /// Writes `bytes` behind a piece of `len` bytes; returns where they end.
    fn put_behind(&mut self, len: usize, bytes: &[u8]) -> usize {
        let room = self.buf.get_mut(FRONT.saturating_add(len)..).unwrap_or_default();
        len.saturating_add(copy(room, bytes))
    }
}
