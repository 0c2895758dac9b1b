//! Receives requests: head, whole bodies, pieces and lines.

use core::mem;

use super::answer::{Refusal, Status};
use super::chunk::{Chunks, Next};
use super::{BUFFER, Body, CONTINUE, Connection, DISCARD_MAX, SLOW, Service, State};
use crate::time::Instant;
use crate::wire::{copy, take};

/// The result of passing a line to the service.
enum Line {
    Taken,
    Held,
    Rejected,
}

impl Body {
    /// Returns the longest body, and the code of the refusal of a longer one.
    const fn most(self) -> (u32, &'static str) {
        match self {
            Self::Ignore => (DISCARD_MAX, "BODY_TOO_BIG"),
            Self::Pieces(most, code) => (most, code),
            Self::Lines(most, _) => (most, "BODY_TOO_BIG"),
            Self::Whole(code) => (BUFFER as u32, code),
        }
    }
}

impl<T> Connection<T> {
    pub(super) fn on_head_byte<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        byte: u8,
        service: &mut S,
    ) {
        if self.state == State::Idle {
            // Empty lines before a request are ignored.
            if matches!(byte, b'\r' | b'\n') {
                return;
            }
            self.step = now.after(service.config().head);
            self.evictable = now.after(SLOW);
            self.set_state(State::Head);
        }
        match self.head.take(byte, &mut self.buf, S::PARAMS) {
            Ok(false) => {}
            Ok(true) => self.on_head(now, service),
            Err(refusal) => self.reject_and_close(now, refusal.status, refusal.code, service),
        }
    }

    /// Handles the complete head.
    fn on_head<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        self.exchange = self.head.exchange();
        let body_len = self.head.body_len();
        self.chunks = if body_len.is_some() { Chunks::NONE } else { Chunks::START };
        self.left = body_len.unwrap_or(0);
        self.step = now.after(service.config().body);
        let wanted = match service.wants(&self.head.request(&self.buf, S::PARAMS)) {
            Ok(wanted) => wanted,
            Err(refusal) => return self.reject_later(now, refusal, service),
        };
        let (most, code) = wanted.most();
        self.room = most;
        if self.left > most {
            let refusal = Refusal::new(Status::ContentTooLarge, code);
            return self.reject_later(now, refusal, service);
        }
        if wanted != Body::Ignore && !self.begin(now, service) {
            return;
        }
        self.filled = 0;
        if self.left == 0 && self.chunks.is_none() {
            return self.on_whole(now, wanted, service);
        }
        if mem::take(&mut self.exchange.expects) {
            self.continuing = CONTINUE.len() as u8;
        }
        self.set_state(State::Body(wanted));
    }

    /// Begins the request, unless the service refuses it.
    fn begin<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) -> bool {
        match service.begin(now, &self.head.request(&self.buf, S::PARAMS)) {
            Ok(task) => {
                self.task = Some(task);
                true
            }
            Err(refusal) => {
                self.reject_later(now, refusal, service);
                false
            }
        }
    }

    /// Handles the complete request.
    fn on_whole<S: Service<Task = T>>(&mut self, now: Instant, wanted: Body, service: &mut S) {
        match wanted {
            // The kept part of the head is still in the buffer.
            Body::Ignore if self.refusal.is_none() && !self.begin(now, service) => {}
            Body::Whole(_) => self.whole(now, service),
            Body::Ignore | Body::Pieces(..) | Body::Lines(..) => self.answer(now, service),
        }
    }

    /// Consumes bytes of the body and its framing. Returns how many were consumed.
    pub(super) fn on_body<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        wanted: Body,
        input: &[u8],
        service: &mut S,
    ) -> usize {
        if self.left == 0 {
            let Some(&byte) = input.first() else { return 0 };
            return usize::from(self.on_framing(now, wanted, byte, service));
        }
        let mut rest = input;
        let data = take(&mut rest, self.left);
        let taken = match wanted {
            Body::Ignore => data.len(),
            Body::Whole(_) => {
                let room = self.buf.get_mut(self.filled.into()..).unwrap_or_default();
                let taken = copy(room, data);
                self.filled = self.filled.saturating_add(taken as u16);
                taken
            }
            Body::Lines(..) => self.on_lines(now, wanted, data, service),
            Body::Pieces(..) => {
                let Some(task) = &mut self.task else { return input.len() };
                match service.body(now, task, data) {
                    Ok(0) => {
                        self.hold(now, wanted, service);
                        return 0;
                    }
                    Ok(taken) => {
                        self.unhold(now, wanted);
                        taken.min(data.len())
                    }
                    Err(refusal) => {
                        self.reject_later(now, refusal, service);
                        return 0;
                    }
                }
            }
        };
        self.left = self.left.saturating_sub(taken as u32);
        if self.left == 0 && self.chunks.is_none() && self.state == State::Body(wanted) {
            self.on_whole(now, wanted, service);
        }
        taken
    }

    /// Handles a byte between the chunks of a body; returns whether the byte was consumed.
    fn on_framing<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        wanted: Body,
        byte: u8,
        service: &mut S,
    ) -> bool {
        // The last line may have no line feed. While the service does not accept it, the last byte
        // of the body is not consumed, so that the driver offers it again.
        if self.chunks.is_last(byte)
            && matches!(wanted, Body::Lines(..))
            && self.filled > 0
            && !matches!(self.on_line(now, wanted, service), Line::Taken)
        {
            return false;
        }
        match self.chunks.take(byte) {
            Ok(Next::More) => {}
            Ok(Next::Data(size)) if size > self.room => {
                let (_, code) = wanted.most();
                self.reject_and_close(now, Status::ContentTooLarge, code, service);
            }
            Ok(Next::Data(size)) => {
                self.room = self.room.saturating_sub(size);
                self.left = size;
            }
            Ok(Next::End) => self.on_whole(now, wanted, service),
            Err(_) => self.reject_and_close(now, Status::BadRequest, "BAD_CHUNK", service),
        }
        true
    }

    /// Holds the client, because the service accepts nothing of the body.
    fn hold<S: Service<Task = T>>(&mut self, now: Instant, wanted: Body, service: &S) {
        if self.state != State::Held(wanted) {
            self.evictable = self.step;
            self.step = self.step.min(now.after(service.patience()));
            self.set_state(State::Held(wanted));
        }
    }

    /// Ends holding the client, because the service accepts bytes again.
    fn unhold(&mut self, now: Instant, wanted: Body) {
        if self.state == State::Held(wanted) {
            self.step = self.evictable;
            self.evictable = now.after(SLOW);
            self.set_state(State::Body(wanted));
        }
    }

    /// Collects lines and passes them on; returns how many bytes were consumed. If a line is not
    /// accepted, its last byte is not consumed, so that the driver offers it again.
    fn on_lines<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        wanted: Body,
        data: &[u8],
        service: &mut S,
    ) -> usize {
        for (taken, &byte) in data.iter().enumerate() {
            let is_last = self.chunks.is_none() && taken.saturating_add(1) == self.left as usize;
            let before = self.filled;
            if byte != b'\n' {
                let Some(slot) = self.buf.get_mut(usize::from(before)) else {
                    let code = if let Body::Lines(_, code) = wanted { code } else { "" };
                    let refusal = Refusal::new(Status::ContentTooLarge, code);
                    self.reject_later(now, refusal, service);
                    return 0;
                };
                *slot = byte;
                self.filled = before.saturating_add(1);
            }
            if (byte != b'\n' && !is_last) || self.filled == 0 {
                continue;
            }
            match self.on_line(now, wanted, service) {
                Line::Taken => {}
                Line::Held => {
                    self.filled = before;
                    return taken;
                }
                Line::Rejected => return 0,
            }
        }
        data.len()
    }

    /// Passes a line on.
    fn on_line<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        wanted: Body,
        service: &mut S,
    ) -> Line {
        let line = self.buf.get(..self.filled.into()).unwrap_or_default();
        let Some(task) = &mut self.task else { return Line::Taken };
        match service.body(now, task, line) {
            Ok(0) => {
                self.hold(now, wanted, service);
                Line::Held
            }
            Ok(_) => {
                self.filled = 0;
                self.unhold(now, wanted);
                Line::Taken
            }
            Err(refusal) => {
                self.reject_later(now, refusal, service);
                Line::Rejected
            }
        }
    }

    /// Handles a body that was collected as a whole.
    fn whole<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        let body = self.buf.get(..self.filled.into()).unwrap_or_default();
        if let Some(task) = &mut self.task
            && !body.is_empty()
            && let Err(refusal) = service.body(now, task, body)
        {
            return self.reject(now, refusal, service);
        }
        self.answer(now, service);
    }
}
