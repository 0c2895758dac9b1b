//! A session that refuses: what a caller hears for whom there is no place.
//!
//! A server has as many places as it was given, and one more, where callers are told that the
//! others are taken (the spare one of a `drive::Port`). They hear it as an answer to what
//! they asked, so that they show it, and not as a connection that broke.
//!
//! ```text
//! Down --accepted--> Listening --the first words, or 250 ms--> Answering --read to the end, or 500 ms--> Down
//! ```
//!
//! RAM: 48 bytes. What the caller says is not kept, however much it is.

use super::{Closed, Fault, Link, Session, Transmit};
use crate::macros::trace_state;
use crate::time::{Instant, Span};

/// How long a caller may take to say its first words; then it is answered all the same. Others wait
/// meanwhile.
const LISTEN: Span = Span::from_millis(250);

/// How long a caller may take to hear the answer and to hang up.
const ANSWER: Span = Span::from_millis(500);

/// How long one that said nothing may.
const SILENT: Span = Span::from_millis(50);

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Protocol {
    /// nsqlookupd's, at its TCP port.
    V1,
    /// nsqd's, at its TCP port.
    V2,
    /// HTTP, of both.
    Http,
}

impl Protocol {
    /// How many bytes a caller says before it is answered: go-nsq writes its magic by itself; an
    /// HTTP client takes what comes before its request for a mistake.
    const fn first_words(self) -> u8 {
        match self {
            Self::V1 | Self::V2 => 4,
            Self::Http => 1,
        }
    }

    /// What it is answered.
    ///
    /// nsqd and nsqlookupd have no such limit, so there are no words of theirs. `E_INVALID` is the
    /// code that their clients take for final.
    pub const fn refusal(self) -> &'static [u8] {
        match self {
            Self::V1 => b"\0\0\0\x1eE_INVALID too many connections",
            Self::V2 => b"\0\0\0\x22\0\0\0\x01E_INVALID too many connections",
            Self::Http => {
                b"HTTP/1.1 503 Service Unavailable\r\n\
                Content-Type: application/json; charset=utf-8\r\n\
                X-NSQ-Content-Type: nsq; version=1.0\r\n\
                Content-Length: 34\r\n\
                Connection: close\r\n\
                \r\n\
                {\"message\":\"TOO_MANY_CONNECTIONS\"}"
            }
        }
    }
}

/// Tells each caller in turn that there are too many connections, and hangs up.
///
/// Bounded in time: 750 ms after a caller came, its connection is over, whatever it does.
#[derive(Debug)]
pub struct Reject {
    protocol: Protocol,
    state: State,
    refused: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    Down,
    Listening { missing: u8, until: Instant },
    Answering { written: u16, until: Instant },
}

impl Reject {
    /// For a port where `protocol` is spoken.
    pub const fn new(protocol: Protocol) -> Self {
        Self { protocol, state: State::Down, refused: 0 }
    }

    /// How many callers it has answered, in whole or in part.
    pub const fn refused(&self) -> u32 {
        self.refused
    }

    fn rest(&self) -> &'static [u8] {
        match self.state {
            State::Down | State::Listening { .. } => &[],
            State::Answering { written, .. } => {
                self.protocol.refusal().get(usize::from(written)..).unwrap_or_default()
            }
        }
    }

    fn answer(&mut self, now: Instant, within: Span) {
        self.refused = self.refused.saturating_add(1);
        self.set_state(State::Answering { written: 0, until: now.after(within) });
    }

    fn set_state(&mut self, state: State) {
        trace_state!("busy", self.state, state);
        self.state = state;
    }
}

impl Session for Reject {
    fn link(&self) -> Link {
        match self.state {
            State::Down => Link::Down,
            State::Listening { .. } => Link::Up,
            State::Answering { .. } => Link::Close,
        }
    }

    fn open(&mut self, now: Instant) {
        let missing = self.protocol.first_words();
        self.set_state(State::Listening { missing, until: now.after(LISTEN) });
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        match &mut self.state {
            State::Listening { missing, .. } => {
                let heard = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
                *missing = missing.saturating_sub(heard);
                if *missing == 0 {
                    self.answer(now, ANSWER);
                }
            }
            State::Down | State::Answering { .. } => {}
        }
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: self.rest(), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        match &mut self.state {
            State::Answering { written, .. } => {
                *written = written.saturating_add(u16::try_from(n).unwrap_or(u16::MAX));
            }
            State::Down | State::Listening { .. } => {}
        }
    }

    fn deadline(&self) -> Instant {
        match self.state {
            State::Down => Instant::NEVER,
            State::Listening { until, .. } | State::Answering { until, .. } => until,
        }
    }

    fn tick(&mut self, now: Instant) {
        match self.state {
            State::Listening { until, .. } if until <= now => self.answer(now, SILENT),
            State::Down | State::Listening { .. } | State::Answering { .. } => {}
        }
    }

    fn closed(&mut self, _: Instant, _: Closed) {
        self.set_state(State::Down);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{nsqd, nsqlookupd};

    const PROTOCOLS: [(Protocol, &[u8]); 3] = [
        (Protocol::V1, b"  V1IDENTIFY\n"),
        (Protocol::V2, b"  V2IDENTIFY\n"),
        (Protocol::Http, b"GET /ping HTTP/1.1\r\n"),
    ];

    fn open(protocol: Protocol) -> Reject {
        let mut busy = Reject::new(protocol);
        assert_eq!((busy.link(), busy.deadline()), (Link::Down, Instant::NEVER));
        busy.open(Instant::ZERO);
        assert_eq!(busy.link(), Link::Up);
        busy
    }

    #[test]
    fn it_answers_the_first_words_however_they_and_the_answer_are_split() {
        for (protocol, said) in PROTOCOLS {
            for bite in 1..40 {
                let mut busy = open(protocol);
                let mut heard: Vec<u8> = Vec::new();
                let now = Instant::from_millis(7);
                for (at, part) in said.chunks(bite).enumerate() {
                    let words = usize::from(protocol.first_words());
                    assert_eq!(busy.link() == Link::Close, at * bite >= words, "{protocol:?}");
                    busy.receive(now, part).unwrap();
                }
                assert_eq!(busy.deadline(), now.after(ANSWER));
                loop {
                    let bytes = busy.transmit(now).head;
                    let n = bytes.len().min(bite);
                    heard.extend(&bytes[..n]);
                    if n == 0 {
                        break;
                    }
                    busy.sent(now, n);
                }
                assert_eq!(heard, protocol.refusal());
                // More of the same changes nothing.
                busy.receive(now, said).unwrap();
                assert!(busy.transmit(now).is_empty());
                busy.closed(now, Closed::Local);
                assert_eq!((busy.link(), busy.refused()), (Link::Down, 1));
            }
        }
    }

    #[test]
    fn a_silent_caller_is_answered_as_well_and_each_has_a_bound() {
        for (protocol, _) in PROTOCOLS {
            let mut busy = open(protocol);
            busy.tick(Instant::from_millis(249));
            assert_eq!(busy.link(), Link::Up);
            busy.tick(Instant::from_millis(250));
            assert_eq!(busy.link(), Link::Close);
            assert_eq!(busy.deadline(), Instant::from_millis(300));
            // Due for good: the driver aborts.
            busy.tick(Instant::from_millis(5000));
            assert_eq!(busy.deadline(), Instant::from_millis(300));
            busy.open(Instant::from_millis(6000));
            assert_eq!(busy.link(), Link::Up);
        }
    }

    #[test]
    fn the_answers_are_what_clients_understand() {
        let mut frame = Protocol::V2.refusal();
        let part = nsqd::FrameDecoder::new(1024).next(&mut frame).unwrap().unwrap();
        assert!(part.first && part.last && frame.is_empty());
        assert_eq!(part.frame_type, nsqd::FrameType::Error);
        assert_eq!(nsqd::ErrorCode::parse(part.data).0, nsqd::ErrorCode::Invalid);

        let mut reply = Protocol::V1.refusal();
        let part = nsqlookupd::ReplyDecoder::new(1024).next(&mut reply).unwrap().unwrap();
        assert!(part.first && part.last && reply.is_empty());
        assert_eq!(nsqd::ErrorCode::parse(part.data).0, nsqd::ErrorCode::Invalid);

        let text = core::str::from_utf8(Protocol::Http.refusal()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
    }

    #[test]
    fn its_size_is_as_documented() {
        assert!(size_of::<Reject>() <= 48, "{}", size_of::<Reject>());
    }
}
