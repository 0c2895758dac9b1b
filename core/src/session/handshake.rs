//! A client's connection to one nsqd, from the dial over the handshake to the close. Publisher and
//! consumer share it, so that a program with both has one copy.
//!
//! ```text
//!            dial            open             answered            AUTH answered        SUB answered
//! Waiting ---------> Dialing ----> Identifying -------> Authenticating ------> Subscribing ------> Ready
//!    ^                  |               |                                                            |
//!    |                  | refused       | fault, timeout      what was not asked for is left out     |
//!    +------------------+<--- Closing <-+------------------------------------------------------------+
//! ```

use core::convert::Infallible;

use heapless::VecView;

use super::staging::{self, Staging};
use super::{Awaited, Closed, DialError, Fault, Link};
use crate::macros::trace_state;
use crate::time::{Instant, LASTED, Span, expire};
use crate::wire::ChunkWriter;
use crate::wire::nsqd::{
    self, ErrorCode, FrameDecoder, FramePart, FrameType, GrantedScanner, Meaning,
};

/// The longest frame that is read, messages excepted, in bytes: an answer to IDENTIFY or AUTH.
pub(crate) const REPLY_MAX: u32 = 16 * 1024;

/// The text with which nsqd refuses a command whose end never came.
const CUT_OFF: &[u8] = b"failed to read";

/// The text with which nsqd with `--tls-required` refuses every command but IDENTIFY.
const TLS_REQUIRED: &[u8] = b"TLS required";

/// Whether nsqd refused the command only because its end never came.
pub(crate) fn is_cut_off(text: &[u8]) -> bool {
    contains(text, CUT_OFF)
}

/// Whether nsqd stored nothing of the batch that it refused: this project's nsqd, whose text this
/// is, takes a batch whole or not at all.
pub(crate) fn is_nothing_stored(text: &[u8]) -> bool {
    contains(text, b"no room") || contains(text, b"never fit")
}

fn contains(text: &[u8], words: &[u8]) -> bool {
    // Not by `windows`, which panics at a length of 0.
    (0..text.len()).any(|at| text.get(at..).is_some_and(|rest| rest.starts_with(words)))
}

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub(crate) enum LinkState {
    /// No connection, and none wanted.
    Idle,
    /// No connection; the next dial is due at a time.
    Waiting,
    Dialing,
    Identifying,
    Authenticating,
    Subscribing,
    Ready,
    /// A consumer leaves: CLS is sent, messages in flight may still be answered.
    Draining,
    /// A consumer leaves: the messages still in flight are requeued.
    Leaving,
    /// The driver is to close the connection.
    Closing,
}

impl LinkState {
    /// Whether bytes of nsqd are read.
    pub(crate) fn is_up(self) -> bool {
        (self as u8).wrapping_sub(Self::Identifying as u8)
            < Self::Closing as u8 - Self::Identifying as u8
    }

    /// Whether nsqd takes FIN, REQ and TOUCH.
    pub(crate) fn is_subscribed(self) -> bool {
        (self as u8).wrapping_sub(Self::Ready as u8) < Self::Closing as u8 - Self::Ready as u8
    }

    /// Whether there is no connection and no dial.
    pub(crate) fn is_down(self) -> bool {
        self as u8 <= Self::Waiting as u8
    }

    /// Whether the connection is being dialed or the handshake is not over.
    pub(crate) fn is_coming_up(self) -> bool {
        (self as u8).wrapping_sub(Self::Dialing as u8) < 4
    }

    /// Whether the connection is in the handshake: a command is sent, then its answer awaited.
    pub(crate) fn is_handshake(self) -> bool {
        (self as u8).wrapping_sub(Self::Identifying as u8) < 3
    }
}

/// An `Option<Closed>` whose `None` is zero in memory.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum CloseReason {
    None,
    Closed(Closed),
}

impl CloseReason {
    pub(crate) fn get(self) -> Option<Closed> {
        match self {
            Self::None => None,
            Self::Closed(why) => Some(why),
        }
    }
}

/// Writes the commands of the handshake.
pub(crate) trait Commands {
    /// Writes the command of a state.
    fn emit(&self, w: &mut ChunkWriter<'_>, state: LinkState) -> Result<(), Infallible>;
}

/// The effect of a part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// None yet, or the next step of the handshake began.
    Nothing,
    /// A heartbeat, to be answered: see [`Handshake::nops`].
    Heartbeat,
    /// The handshake is over.
    Ready,
    /// A response; `text` has it.
    Response,
    /// A refusal; `text` has it.
    Refusal,
    /// A frame that does not belong here, or makes no sense.
    Fault(Fault),
}

/// A connection to one nsqd.
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Handshake {
    /// The end of the state. Waiting: dial. Dialing to Subscribing: give up. Ready: give up, since
    /// nsqd was silent for so long. Closing: abort. Draining and Leaving: the consumer's.
    pub(crate) deadline: Instant,
    state: LinkState,
    /// Heartbeats to answer.
    pub(crate) nops: u8,
    /// The text is the handshake's current command.
    pub(crate) staging: Staging,
    /// It is a publisher's: it does not subscribe.
    publishes: bool,
    pub(crate) frames: FrameDecoder,
    /// The fields of the answer to IDENTIFY.
    pub(crate) granted: GrantedScanner,
    /// Why it is closing, or was closed last.
    pub(crate) why: CloseReason,
    /// When the connection came up; never while it has not.
    opened: Instant,
}

impl Handshake {
    /// For a consumer, in no use yet. All of it is zero, so that flash holds no image of it.
    pub(crate) const ZERO: Self = Self {
        state: LinkState::Idle,
        nops: 0,
        staging: Staging::EMPTY,
        publishes: false,
        frames: FrameDecoder::new(0),
        granted: GrantedScanner::ZERO,
        deadline: Instant::ZERO,
        why: CloseReason::None,
        opened: Instant::ZERO,
    };

    /// For a publisher that dials at once.
    pub(crate) const PUBLISHER: Self =
        Self { state: LinkState::Waiting, publishes: true, ..Self::ZERO };

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    pub(crate) fn set_state(&mut self, state: LinkState) {
        let who = if self.publishes { "publisher" } else { "consumer" };
        trace_state!(who, self.shown(self.state), self.shown(state));
        self.state = state;
    }

    /// The state in the words of the application, for traces.
    #[cfg(any(feature = "defmt", feature = "log"))]
    fn shown(&self, state: LinkState) -> Shown {
        let why = if self.publishes { self.why } else { CloseReason::None };
        Shown { publishes: self.publishes, state, why }
    }

    /// Nothing is traced.
    #[cfg(not(any(feature = "defmt", feature = "log")))]
    fn shown(&self, state: LinkState) -> LinkState {
        state
    }

    pub(crate) fn link(&self) -> Link {
        match self.state {
            LinkState::Idle | LinkState::Waiting => Link::Down,
            LinkState::Closing => Link::Close,
            LinkState::Dialing
            | LinkState::Identifying
            | LinkState::Authenticating
            | LinkState::Subscribing
            | LinkState::Ready
            | LinkState::Draining
            | LinkState::Leaving => Link::Up,
        }
    }

    /// Whether the deadline of the state has passed; says so once.
    #[inline(never)]
    pub(crate) fn take_expired(&mut self, now: Instant) -> bool {
        expire(&mut self.deadline, now)
    }

    /// Whether a dial is due; says so once.
    pub(crate) fn take_dial_due(&mut self, now: Instant) -> bool {
        self.state == LinkState::Waiting && self.take_expired(now)
    }

    /// A dial begins, which is given up at `until`.
    pub(crate) fn dial(&mut self, until: Instant) {
        self.opened = Instant::NEVER;
        self.begin(LinkState::Dialing, until);
    }

    /// Whether the last dial succeeded.
    pub(crate) fn came_up(&self) -> bool {
        self.opened != Instant::NEVER
    }

    /// Whether the connection has lasted long enough to have been good: see
    /// [`Backoff`](crate::time::Backoff).
    #[inline(never)]
    pub(crate) fn lasted(&self, now: Instant) -> bool {
        self.came_up() && self.opened.after(LASTED) <= now
    }

    /// A step of the way up begins: its command, if it has one, is to be sent, and it is given up
    /// at `until`.
    fn begin(&mut self, state: LinkState, until: Instant) {
        self.staging.start_text();
        self.deadline = until;
        self.set_state(state);
    }

    /// The dial succeeded: forgets what belonged to the last connection and begins the handshake.
    pub(crate) fn open(&mut self, now: Instant, until: Instant) {
        self.opened = now;
        self.frames = FrameDecoder::new(if self.publishes { REPLY_MAX } else { u32::MAX });
        self.nops = 0;
        self.staging.clear();
        self.begin(LinkState::Identifying, until);
    }

    /// Bytes arrived: gives nsqd twice the heartbeat's interval, its own rule for its clients, until
    /// the next.
    pub(crate) fn on_receive(&mut self, now: Instant, heartbeat: Span) {
        if self.state == LinkState::Ready {
            self.deadline = now.after(Span::from_millis(heartbeat.as_millis().saturating_mul(2)));
        }
    }

    /// Stages the next piece of the current command in `buffer`.
    // Apart, so that its frame is not under every poll.
    #[cold]
    #[inline(never)]
    pub(crate) fn stage_command(&mut self, buffer: &mut [u8], commands: &dyn Commands) {
        let state = self.state;
        self.staging.stage_text(buffer, |w| commands.emit(w, state));
    }

    /// Handles a part of a frame that is no message, and appends its data to `text`. If the next
    /// step of the handshake begins, it is given up at `until`.
    #[inline(never)]
    pub(crate) fn on_part(
        &mut self,
        part: &FramePart<'_>,
        text: &mut VecView<u8, u8>,
        has_secret: bool,
        until: Instant,
    ) -> Received {
        if part.first {
            text.clear();
            if self.state == LinkState::Identifying {
                self.granted = GrantedScanner::new();
            }
        }
        staging::append(text, part.data);
        if self.state == LinkState::Identifying {
            self.granted.feed(part.data);
        }
        if !part.last {
            return Received::Nothing;
        }
        if part.frame_type == FrameType::Error {
            return Received::Refusal;
        }
        if text.as_slice() == nsqd::HEARTBEAT {
            self.nops = self.nops.saturating_add(1);
            return Received::Heartbeat;
        }
        if !self.state.is_handshake() {
            return Received::Response;
        }
        if !self.staging.text_is_written() {
            return Received::Fault(Fault::UnexpectedReply);
        }
        if self.state == LinkState::Identifying {
            match self.granted.finish() {
                Ok(granted) if !granted.auth_required => {}
                Ok(_) if has_secret => {
                    self.begin(LinkState::Authenticating, until);
                    return Received::Nothing;
                }
                Ok(_) => return Received::Fault(Fault::AuthRequired),
                Err(error) => return Received::Fault(error.into()),
            }
        }
        if self.state == LinkState::Subscribing {
            if text.as_slice() != nsqd::OK {
                return Received::Fault(Fault::UnexpectedReply);
            }
        } else if !self.publishes {
            self.begin(LinkState::Subscribing, until);
            return Received::Nothing;
        }
        self.set_state(LinkState::Ready);
        Received::Ready
    }

    /// The fault of an error after which nsqd closes, by the error's text: one of the
    /// [permanent](Fault::is_permanent) ones, or else [`Fault::Refused`].
    #[cold]
    #[inline(never)]
    pub(crate) fn refusal(&self, text: &[u8]) -> Fault {
        let (code, words) = ErrorCode::parse(text);
        if code.meaning() == Meaning::Auth {
            return Fault::AuthRefused;
        }
        match (code, self.state) {
            (ErrorCode::Invalid, _) if contains(words, TLS_REQUIRED) => Fault::TlsRequired,
            (ErrorCode::Unauthorized, LinkState::Authenticating | LinkState::Subscribing) => {
                Fault::AuthRefused
            }
            (ErrorCode::BadBody | ErrorCode::Invalid, LinkState::Identifying)
                if !is_cut_off(words) =>
            {
                Fault::IdentifyRefused
            }
            _ => Fault::Refused(code),
        }
    }

    /// The reason to close the connection, if the deadline of its state has passed. A consumer that
    /// leaves decides for itself.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Closed> {
        // Waiting and Closing stay due until the driver dials or aborts.
        if self.state.is_down() || self.state == LinkState::Closing || !self.take_expired(now) {
            return None;
        }
        Some(match self.state {
            LinkState::Dialing => Closed::Dial(DialError::TimedOut),
            LinkState::Ready => Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)),
            _ => Closed::Fault(Fault::TimedOut(Awaited::Handshake)),
        })
    }

    /// Asks the driver to close the connection within `timeout`.
    #[inline(never)]
    pub(crate) fn close(&mut self, why: &Closed, now: Instant, timeout: Span) {
        self.why = CloseReason::Closed(*why);
        self.nops = 0;
        if !matches!(why, Closed::Local) {
            self.staging.truncate();
        }
        // A peer that is silent would not take the last bytes either.
        let silent = matches!(why, Closed::Fault(Fault::TimedOut(_)));
        self.deadline = if silent { now } else { now.after(timeout) };
        self.set_state(LinkState::Closing);
    }

    /// The connection is gone, or its dial failed. Gives the reason, unless there was neither.
    pub(crate) fn closed(&mut self, why: Closed) -> Option<Closed> {
        // The reason for which the session closed it explains more than how it ended.
        let why = match (self.state, self.why) {
            (LinkState::Idle | LinkState::Waiting, _) => return None,
            (LinkState::Closing, CloseReason::Closed(why)) => why,
            _ => why,
        };
        self.why = CloseReason::Closed(why);
        self.staging.clear();
        self.deadline = Instant::NEVER;
        Some(why)
    }
}

/// A state in the words of the application.
#[cfg(any(feature = "defmt", feature = "log"))]
struct Shown {
    publishes: bool,
    state: LinkState,
    why: CloseReason,
}

#[cfg(any(feature = "defmt", feature = "log"))]
impl core::fmt::Debug for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.state, self.why) {
            (LinkState::Closing, CloseReason::Closed(why)) => {
                f.debug_tuple("Closing").field(&why).finish()
            }
            (LinkState::Idle, _) if self.publishes => f.write_str("Stopped"),
            (LinkState::Idle, _) => f.write_str("Unused"),
            (state, _) => core::fmt::Debug::fmt(&state, f),
        }
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Shown {
    fn format(&self, f: defmt::Formatter<'_>) {
        match (self.state, self.why) {
            (LinkState::Closing, CloseReason::Closed(why)) => defmt::write!(f, "Closing({})", why),
            (LinkState::Idle, _) if self.publishes => defmt::write!(f, "Stopped"),
            (LinkState::Idle, _) => defmt::write!(f, "Unused"),
            (state, _) => defmt::write!(f, "{}", state),
        }
    }
}
