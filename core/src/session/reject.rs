//! A session that answers a caller for whom a server has no slot.
//!
//! A server has a fixed number of slots for clients, and a spare one that rejects callers while
//! the others are taken (the spare slot of a `drive::Port`). A rejected caller receives an error
//! as the answer to its first command, which it reports, instead of a connection that breaks.
//!
//! ```text
//! Down --accepted--> Listening --first bytes, or 250 ms--> Answering --hung up, or 500 ms--> Down
//! ```
//!
//! RAM: 48 bytes. The bytes of the caller are dropped, however many they are.

use super::{Closed, Fault, Link, Session, Transmit};
use crate::macros::trace_state;
use crate::time::{Instant, Span};

/// How long a caller may take to send its first bytes, before it is answered all the same. Other
/// callers wait meanwhile.
const LISTEN: Span = Span::from_millis(250);

/// How long a caller that sent its first bytes may take to read the answer and to hang up.
const ANSWER: Span = Span::from_millis(500);

/// How long a caller that sent nothing may take to do so.
const SILENT: Span = Span::from_millis(50);

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Protocol {
    /// The protocol of nsqlookupd, on its TCP port.
    V1,
    /// The protocol of nsqd, on its TCP port.
    V2,
    /// HTTP, on the HTTP ports of both.
    Http,
}

impl Protocol {
    /// Returns how many bytes a caller sends before it is answered: go-nsq writes its magic by
    /// itself; an HTTP client takes an answer before its request for a protocol error.
    const fn first_bytes(self) -> u8 {
        match self {
            Self::V1 | Self::V2 => 4,
            Self::Http => 1,
        }
    }

    /// Returns the answer to a rejected caller.
    ///
    /// nsqd and nsqlookupd have no limit of connections, and so no text for it. `E_INVALID` is the
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

/// Answers one caller after the other that there are too many connections, and hangs up.
///
/// Bounded in time: the connection ends at most 750 ms after it was accepted.
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
    /// Creates a session for a port of `protocol`.
    pub const fn new(protocol: Protocol) -> Self {
        Self { protocol, state: State::Down, refused: 0 }
    }

    /// Returns how many callers were answered, in whole or in part.
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
        let missing = self.protocol.first_bytes();
        self.set_state(State::Listening { missing, until: now.after(LISTEN) });
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        match &mut self.state {
            State::Listening { missing, .. } => {
                let received = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
                *missing = missing.saturating_sub(received);
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
    fn the_first_bytes_are_answered_however_they_and_the_answer_are_split() {
        for (protocol, said) in PROTOCOLS {
            for bite in 1..40 {
                let mut busy = open(protocol);
                let mut received: Vec<u8> = Vec::new();
                let now = Instant::from_millis(7);
                for (at, part) in said.chunks(bite).enumerate() {
                    let needed = usize::from(protocol.first_bytes());
                    assert_eq!(busy.link() == Link::Close, at * bite >= needed, "{protocol:?}");
                    busy.receive(now, part).unwrap();
                }
                assert_eq!(busy.deadline(), now.after(ANSWER));
                loop {
                    let bytes = busy.transmit(now).head;
                    let n = bytes.len().min(bite);
                    received.extend(&bytes[..n]);
                    if n == 0 {
                        break;
                    }
                    busy.sent(now, n);
                }
                assert_eq!(received, protocol.refusal());
                // Further bytes change nothing.
                busy.receive(now, said).unwrap();
                assert!(busy.transmit(now).is_empty());
                busy.closed(now, Closed::Local);
                assert_eq!((busy.link(), busy.refused()), (Link::Down, 1));
            }
        }
    }

    #[test]
    fn a_silent_caller_is_answered_as_well_and_each_wait_has_a_bound() {
        for (protocol, _) in PROTOCOLS {
            let mut busy = open(protocol);
            busy.tick(Instant::from_millis(249));
            assert_eq!(busy.link(), Link::Up);
            busy.tick(Instant::from_millis(250));
            assert_eq!(busy.link(), Link::Close);
            assert_eq!(busy.deadline(), Instant::from_millis(300));
            // The deadline stays due until the driver aborts.
            busy.tick(Instant::from_millis(5000));
            assert_eq!(busy.deadline(), Instant::from_millis(300));
            busy.open(Instant::from_millis(6000));
            assert_eq!(busy.link(), Link::Up);
        }
    }

    #[test]
    fn clients_can_decode_the_answers() {
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
