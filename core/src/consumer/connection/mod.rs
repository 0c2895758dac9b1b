//! A connection of a consumer to one nsqd.

mod session;

use heapless::Vec;

use super::in_flight::{Answer, NoRoom};
use super::status::DETAIL_MAX;
use super::{Config, ConnectionStatus, Shared};
use crate::session::LinkState;
use crate::session::handshake::Handshake;
use crate::time::{Instant, Span, TimerId, Timers};
use crate::wire::nsqd;

pub use session::ConnectionSession;

/// The size of the transmit buffer, which holds two of the longest commands after the handshake.
const TX_BUFFER: usize = 64;

/// The length of the longest command after the handshake, a REQ.
const COMMAND_MAX: usize = 32;

/// A connection to one nsqd.
// In this order because one instruction of a Cortex-M0 can access only the first 32 bytes, half
// words or words of a structure.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Connection {
    pub(super) handshake: Handshake,
    pub(super) cls: Cls,
    /// The serial of the slot when the connection last followed it.
    serial: u16,
    /// The destination of the message being received.
    filling: Filling,
    /// The number of bytes received of that message.
    have: u32,
    pub(super) timers: Timers<Timer, 2>,
    /// The start of the frame being read: a response, an error, or the head of a skipped message.
    /// An error stays until the next frame.
    pub(super) text: Vec<u8, DETAIL_MAX, u8>,
    tx_buffer: [u8; TX_BUFFER],
}

/// The destination of a message that is being received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Slot(u16),
    /// There is no room for the message.
    Skip(NoRoom),
}

/// The progress of CLS while leaving nsqd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cls {
    Unsent,
    Sent,
    /// nsqd confirmed CLS and delivers no more messages.
    Confirmed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// In Ready to Leaving: a message must be touched or given up.
    Due,
    /// In Ready to Leaving: no more messages arrive because of an older RDY.
    Settle,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        self as usize
    }
}

impl Connection {
    /// A connection before [`set_up`](Self::set_up). All bytes are zero, so that storage needs no
    /// image in flash.
    pub(super) const NEW: Self = Self {
        handshake: Handshake::ZERO,
        cls: Cls::Unsent,
        serial: 0,
        filling: Filling::Slot(0),
        have: 0,
        timers: Timers::ZERO,
        text: Vec::new(),
        tx_buffer: [0; TX_BUFFER],
    };

    pub(super) fn set_up(&mut self) {
        self.stop_timers();
    }

    fn stop_timers(&mut self) {
        self.handshake.deadline = Instant::NEVER;
        self.timers.stop_all();
    }

    pub(super) fn state(&self) -> LinkState {
        self.handshake.state()
    }

    pub(super) fn status<'s>(&'s self, shared: &'s Shared<'_>, id: u8) -> ConnectionStatus<'s> {
        ConnectionStatus {
            address: shared.nsqds.address(id),
            state: self.state(),
            rdy: shared.rdy.rdy(id),
            in_flight: shared.rdy.in_flight(id),
            last: self.handshake.why(),
            detail: if self.text.starts_with(b"E_") {
                core::str::from_utf8(&self.text).unwrap_or_default()
            } else {
                ""
            },
        }
    }

    /// Stages a command behind the staged bytes. One function for all commands after the handshake.
    pub(super) fn push(&mut self, verb: &[u8], id: &[u8], number: Option<u32>) {
        let Self { handshake, tx_buffer, .. } = self;
        handshake.staging.append(tx_buffer, |w| nsqd::emit_line(w, verb, id, number));
    }

    fn has_room(&self) -> bool {
        self.handshake.staging.room(&self.tx_buffer) >= COMMAND_MAX
    }

    fn push_answer(&mut self, id: &[u8], answer: Answer) {
        let (verb, delay): (&[u8], _) = match answer {
            Answer::Finish => (b"FIN ", None),
            Answer::Requeue(delay) => (b"REQ ", Some(delay)),
            Answer::Touch => (b"TOUCH ", None),
        };
        self.push(verb, id, delay);
    }
}

impl Connection {
    /// Returns the time after which a message must be touched or given up.
    pub(super) fn due_after(&self, config: &Config<'_>) -> Span {
        let timeout = self.handshake.granted.msg_timeout_ms();
        Span::from_millis((if config.auto_touch { timeout >> 1 } else { timeout }).max(1))
    }

    /// Returns the longest time for which TOUCH can keep a message in flight.
    fn max_msg_timeout(&self) -> Span {
        Span::from_millis(self.handshake.granted.max_msg_timeout_ms().max(1))
    }

    pub(super) fn due_by(&mut self, due: Instant) {
        if self.timers.get(Timer::Due) > due {
            self.timers.set(Timer::Due, due);
        }
    }
}
