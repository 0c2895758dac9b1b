//! The session of one nsqd's connection.

use core::net::SocketAddr;

use super::{Answer, NOBODY, Producer, ProducerSession, State};
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::{Instant, Span};
use crate::wire::nsqlookupd::{CommandDecoder, emit_refusal};

impl Session for ProducerSession<'_, '_> {
    fn link(&self) -> Link {
        match self.producers.get(self.id).map_or(State::Free, |producer| producer.state) {
            State::Free => Link::Down,
            State::Greeting | State::Identified => Link::Up,
            State::Closing => Link::Close,
        }
    }

    fn open(&mut self, now: Instant) {
        self.accepted(now, NOBODY);
    }

    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        self.closed(now, Closed::Local);
        let config = self.shared.config;
        let Some(producer) = self.producer() else { return };
        let pending_event = producer.pending_event;
        let why = producer.why;
        *producer = Producer {
            pending_event,
            why,
            remote: from,
            decoder: CommandDecoder::new(config.max_body),
            step: now.after(config.greeting_timeout),
            ..Producer::FREE
        };
        producer.set_state(State::Greeting);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if self.take(now, bytes) < bytes.len() {
            // Only a driver that offers the rest again can hold an nsqd.
            let fault = Fault::TimedOut(Awaited::Drain);
            self.leave(now, self.id, Closed::Fault(fault));
            return Err(fault);
        }
        Ok(())
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let mut input = bytes;
        while let Some(producer) = self.producers.get_mut(self.id) {
            match producer.state {
                State::Free | State::Closing => return bytes.len(),
                State::Greeting | State::Identified if !producer.answer.has_room() => break,
                State::Greeting | State::Identified => {}
            }
            match producer.decoder.next(&mut input) {
                Ok(Some(item)) => self.on_item(now, item),
                Ok(None) => break,
                Err(refusal) => {
                    let code = refusal.code();
                    producer.answer.stage(|w| emit_refusal(w, &refusal));
                    self.close_rejected(now, code);
                }
            }
        }
        let timeout = self.shared.config.reply_timeout;
        if let Some(producer) = self.producer()
            && producer.write == Instant::NEVER
            && producer.state != State::Closing
            && !producer.answer.is_none()
        {
            producer.write = now.after(timeout);
        }
        bytes.len().saturating_sub(input.len())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        let info = &self.shared.config.info;
        let producer = self.producers.get_mut(self.id);
        let head = producer.map_or(&[][..], |producer| producer.answer.next(info));
        Transmit { head, body: &[] }
    }

    fn sent(&mut self, now: Instant, n: usize) {
        let config = self.shared.config;
        let Some(producer) = self.producers.get_mut(self.id) else { return };
        producer.answer.sent(n);
        producer.write = match producer.state {
            State::Free | State::Closing => Instant::NEVER,
            State::Greeting | State::Identified if producer.answer.is_none() => Instant::NEVER,
            State::Greeting | State::Identified => now.after(config.reply_timeout),
        };
    }

    fn deadline(&self) -> Instant {
        let Some(producer) = self.producers.get(self.id) else { return Instant::NEVER };
        let step = match producer.state {
            State::Free | State::Greeting | State::Closing => producer.step,
            State::Identified => self.shared.silence_deadline(producer.step),
        };
        step.min(producer.write)
    }

    /// A connection before IDENTIFY may be evicted 2 s after it was accepted.
    fn evictable(&self) -> Instant {
        match self.producers.get(self.id) {
            Some(producer) if producer.state == State::Greeting => {
                let timeout = self.shared.config.greeting_timeout.as_micros();
                let came = producer.step.as_micros().saturating_sub(timeout);
                Instant::from_micros(came).after(Span::from_secs(2))
            }
            _ => Instant::NEVER,
        }
    }

    fn tick(&mut self, now: Instant) {
        if self.shared.wants_room {
            self.make_room(now);
        }
        let max_idle = self.shared.config.idle_timeout;
        let Some(producer) = self.producer() else { return };
        let awaited = match producer.state {
            // A closing connection stays due until the driver closes it.
            State::Free | State::Closing => return,
            State::Greeting | State::Identified if producer.write <= now => Awaited::Drain,
            State::Greeting if producer.step <= now => Awaited::Handshake,
            State::Identified if producer.step.after(max_idle) <= now => Awaited::Heartbeat,
            State::Greeting | State::Identified => return,
        };
        if awaited == Awaited::Drain {
            // Drop the answers that the nsqd does not read, so that the connection can close.
            producer.answer = Answer::NONE;
        }
        self.shared.counters.timed_out = self.shared.counters.timed_out.saturating_add(1);
        self.leave(now, self.id, Closed::Fault(Fault::TimedOut(awaited)));
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let state = self.producer().map_or(State::Free, |producer| producer.state);
        match state {
            State::Free => return,
            State::Greeting | State::Identified => self.leave(now, self.id, why),
            State::Closing => {}
        }
        if let Some(producer) = self.producer() {
            producer.step = Instant::NEVER;
            producer.answer = Answer::NONE;
            producer.set_state(State::Free);
            self.shared.wants_room = false;
        }
    }
}
