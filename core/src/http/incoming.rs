//! Requests as they arrive: head, body, lines.

use core::mem;

use super::answer::{Refusal, Status};
use super::{BUFFER, Body, CONTINUE, Connection, DISCARD_MAX, Service, State, head};
use crate::time::Instant;
use crate::wire::{copy, take};

impl<T> Connection<T> {
    pub(super) fn on_head_byte<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        byte: u8,
        service: &mut S,
    ) {
        let is_blank = self.line == 0;
        match byte {
            // Before a request there may be empty lines.
            b'\r' | b'\n' if self.state == State::Idle => return,
            b'\n' => self.line = 0,
            b'\r' => {}
            _ => self.line = self.line.saturating_add(1),
        }
        if self.state == State::Idle {
            self.step = now.after(service.config().head);
            self.set_state(State::Head);
        }
        let is_first_line = byte == b'\n' && !self.collected().contains(&b'\n');
        let Some(slot) = self.buf.get_mut(usize::from(self.filled)) else {
            return self.refuse_all(now, Status::HeadTooLarge, "HEADER_TOO_LARGE", service);
        };
        *slot = byte;
        self.filled = self.filled.saturating_add(1);
        if byte == b'\n' && is_blank {
            self.on_head(now, service);
        } else if is_first_line && let Err(refusal) = head::check_line(self.collected()) {
            // Whoever speaks something else may wait for an answer before sending more.
            self.refuse_all(now, refusal.status, refusal.code, service);
        }
    }

    fn collected(&self) -> &[u8] {
        self.buf.get(..self.filled.into()).unwrap_or_default()
    }

    /// The head is whole.
    fn on_head<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        let head = match head::parse(self.buf.get(..self.filled.into()).unwrap_or_default()) {
            Ok(head) => head,
            Err(refusal) => {
                return self.refuse_all(now, refusal.status, refusal.code, service);
            }
        };
        self.exchange = head.exchange;
        self.left = head.request.body_len();
        self.step = now.after(service.config().body);
        let wanted = match service.begin(now, &head.request) {
            Ok((task, wanted)) => {
                self.task = Some(task);
                wanted
            }
            Err(refusal) => return self.refuse_later(now, refusal, service),
        };
        self.filled = 0;
        match wanted {
            Body::Ignore if self.left > DISCARD_MAX => {
                self.refuse_all(now, Status::ContentTooLarge, "BODY_TOO_BIG", service);
            }
            Body::Whole(code) if self.left > BUFFER as u32 => {
                self.refuse_all(now, Status::ContentTooLarge, code, service);
            }
            _ if self.left > 0 => {
                if mem::take(&mut self.exchange.expects) {
                    self.continuing = CONTINUE.len() as u8;
                }
                self.set_state(State::Body(wanted));
            }
            Body::Ignore | Body::Pieces | Body::Lines(_) => self.answer(now, service),
            Body::Whole(_) => self.whole(now, service),
        }
    }

    /// Bytes of the body and behind; gives how many were taken.
    pub(super) fn on_body<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        wanted: Body,
        input: &[u8],
        service: &mut S,
    ) -> usize {
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
            Body::Lines(code) => self.on_lines(now, code, data, service),
            Body::Pieces => {
                let Some(task) = &mut self.task else { return input.len() };
                match service.body(now, task, data) {
                    Ok(0) => {
                        self.hold(now, wanted, service);
                        return 0;
                    }
                    Ok(taken) => {
                        self.unhold(wanted);
                        taken.min(data.len())
                    }
                    Err(refusal) => {
                        self.refuse_later(now, refusal, service);
                        return 0;
                    }
                }
            }
        };
        self.left = self.left.saturating_sub(taken as u32);
        if self.left == 0 && self.state == State::Body(wanted) {
            match wanted {
                Body::Ignore | Body::Pieces | Body::Lines(_) => self.answer(now, service),
                Body::Whole(_) => self.whole(now, service),
            }
        }
        taken
    }

    /// The service takes nothing of the body.
    fn hold<S: Service<Task = T>>(&mut self, now: Instant, wanted: Body, service: &S) {
        if self.state != State::Held(wanted) {
            self.held = self.step;
            self.step = self.step.min(now.after(service.patience()));
            self.set_state(State::Held(wanted));
        }
    }

    /// The service takes some of it.
    fn unhold(&mut self, wanted: Body) {
        if self.state == State::Held(wanted) {
            self.step = self.held;
            self.set_state(State::Body(wanted));
        }
    }

    /// Collects lines and hands them on; gives how many bytes were taken. The last byte of a line
    /// that is not taken is left, so that there is something to come again.
    fn on_lines<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        code: &'static str,
        data: &[u8],
        service: &mut S,
    ) -> usize {
        let wanted = Body::Lines(code);
        for (taken, &byte) in data.iter().enumerate() {
            let is_last = taken.saturating_add(1) == self.left as usize;
            let before = self.filled;
            if byte != b'\n' {
                let Some(slot) = self.buf.get_mut(usize::from(before)) else {
                    let refusal = Refusal::new(Status::ContentTooLarge, code);
                    self.refuse_later(now, refusal, service);
                    return 0;
                };
                *slot = byte;
                self.filled = before.saturating_add(1);
            }
            if (byte != b'\n' && !is_last) || self.filled == 0 {
                continue;
            }
            let line = self.buf.get(..self.filled.into()).unwrap_or_default();
            let Some(task) = &mut self.task else { return data.len() };
            match service.body(now, task, line) {
                Ok(0) => {
                    self.filled = before;
                    self.hold(now, wanted, service);
                    return taken;
                }
                Ok(_) => {
                    self.filled = 0;
                    self.unhold(wanted);
                }
                Err(refusal) => {
                    self.refuse_later(now, refusal, service);
                    return 0;
                }
            }
        }
        data.len()
    }

    /// The body was collected.
    fn whole<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        let body = self.buf.get(..self.filled.into()).unwrap_or_default();
        if let Some(task) = &mut self.task
            && !body.is_empty()
            && let Err(refusal) = service.body(now, task, body)
        {
            return self.refuse(now, refusal, service);
        }
        self.answer(now, service);
    }
}
