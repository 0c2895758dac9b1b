//! What publisher and consumer have in common: a client's talk with one nsqd, from the dial to the
//! close. One copy of it is all that a program needs that is both.
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

use crate::macros::trace_state;
use crate::session::{Awaited, Closed, DialError, Fault, Link, keep};
use crate::time::{Instant, LASTED, Span, expire};
use crate::wire::ChunkWriter;
use crate::wire::nsqd::{
    self, ErrorCode, FrameDecoder, FramePart, FrameType, GrantedScanner, Meaning,
};

/// Longest answer to IDENTIFY or AUTH that is read; everything else but messages is far shorter.
pub(crate) const REPLY_MAX: u32 = 16 * 1024;

/// What nsqd says of a command whose end never came.
const CUT_OFF: &[u8] = b"failed to read";

/// What nsqd with `--tls-required` says of every command but IDENTIFY.
const TLS_REQUIRED: &[u8] = b"TLS required";

/// Whether nsqd never got the end of the command that it refused: nothing is wrong with that.
pub(crate) fn is_cut_off(text: &[u8]) -> bool {
    contains(text, CUT_OFF)
}

/// Whether it is what a node of ours says when it refuses a batch: it takes it whole or not at all.
pub(crate) fn says_that_nothing_is_stored(text: &[u8]) -> bool {
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
    /// It is for nobody, and stays so.
    Idle,
    /// No connection; the next dial is due at a time.
    Waiting,
    Dialing,
    Identifying,
    Authenticating,
    Subscribing,
    Ready,
    /// A consumer's, that is left: CLS is sent, what is in flight may be answered.
    Draining,
    /// Likewise: the rest is being requeued.
    Leaving,
    /// The driver is to close the connection.
    Closing,
}

impl LinkState {
    /// Whether what nsqd says is of interest.
    pub(crate) fn is_up(self) -> bool {
        (self as u8).wrapping_sub(Self::Identifying as u8)
            < Self::Closing as u8 - Self::Identifying as u8
    }

    /// Whether nsqd takes FIN, REQ and TOUCH.
    pub(crate) fn is_subscribed(self) -> bool {
        (self as u8).wrapping_sub(Self::Ready as u8) < Self::Closing as u8 - Self::Ready as u8
    }

    /// Whether it is not up, and not to come up without being asked for again.
    pub(crate) fn is_down(self) -> bool {
        self as u8 <= Self::Waiting as u8
    }

    /// Whether it is on its way up.
    pub(crate) fn is_coming_up(self) -> bool {
        (self as u8).wrapping_sub(Self::Dialing as u8) < 4
    }

    /// Whether there is a command to be made and an answer to come.
    pub(crate) fn is_handshake(self) -> bool {
        (self as u8).wrapping_sub(Self::Identifying as u8) < 3
    }
}

/// An `Option<Closed>` of which `None` is zero.
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

/// Makes the commands of the handshake.
pub(crate) trait Greeting {
    /// The one that a stage sends.
    fn greet(&self, w: &mut ChunkWriter<'_>, stage: LinkState) -> Result<(), Infallible>;
}

/// What a piece of a frame came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Nothing yet, or the next step of the handshake.
    Nothing,
    /// It is to be answered: [`Handshake::nops`].
    Heartbeat,
    /// The handshake is over.
    Ready,
    /// A response, with its text.
    Response,
    /// A refusal, with its text.
    Refusal,
    /// What nobody asked for, or can read.
    Fault(Fault),
}

/// One connection.
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Handshake {
    /// Waiting: dial. Dialing to Subscribing: give up. Ready: nothing heard. Closing: give up. What
    /// it means in other stages is theirs.
    pub(crate) step: Instant,
    stage: LinkState,
    /// What is put where it is written from, and how much of it is written.
    pub(crate) staged: u8,
    pub(crate) written: u8,
    /// Heartbeats to answer.
    pub(crate) nops: u8,
    /// It is a publisher's: it does not subscribe.
    publishes: bool,
    /// All of the handshake's current command was staged.
    asked: bool,
    /// How much of it was.
    handshake_at: u16,
    pub(crate) frames: FrameDecoder,
    /// What the answer to IDENTIFY grants.
    pub(crate) granted: GrantedScanner,
    /// Why it is closing, or was closed last.
    pub(crate) why: CloseReason,
    /// When it came up; never if it has not.
    opened: Instant,
}

impl Handshake {
    /// For a consumer, before anything: all of it is zero, so that no image of it is in flash.
    pub(crate) const ZERO: Self = Self {
        stage: LinkState::Idle,
        staged: 0,
        written: 0,
        nops: 0,
        publishes: false,
        asked: false,
        handshake_at: 0,
        frames: FrameDecoder::new(0),
        granted: GrantedScanner::ZERO,
        step: Instant::ZERO,
        why: CloseReason::None,
        opened: Instant::ZERO,
    };

    /// For a publisher that dials at once.
    pub(crate) const PUBLISHER: Self =
        Self { stage: LinkState::Waiting, publishes: true, ..Self::ZERO };

    pub(crate) fn stage(&self) -> LinkState {
        self.stage
    }

    pub(crate) fn set(&mut self, stage: LinkState) {
        let who = if self.publishes { "publisher" } else { "consumer" };
        trace_state!(who, self.shown(self.stage), self.shown(stage));
        self.stage = stage;
    }

    /// As the application knows it.
    #[cfg(any(feature = "defmt", feature = "log"))]
    fn shown(&self, stage: LinkState) -> Shown {
        let why = if self.publishes { self.why } else { CloseReason::None };
        Shown { publishes: self.publishes, stage, why }
    }

    /// Nothing is traced.
    #[cfg(not(any(feature = "defmt", feature = "log")))]
    fn shown(&self, stage: LinkState) -> LinkState {
        stage
    }

    pub(crate) fn link(&self) -> Link {
        match self.stage {
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

    pub(crate) fn is_writing(&self) -> bool {
        self.written < self.staged
    }

    /// What is staged and not written yet, where it is staged.
    pub(crate) fn pending<'d>(&self, desk: &'d [u8]) -> &'d [u8] {
        desk.get(self.written.into()..self.staged.into()).unwrap_or_default()
    }

    /// So many bytes are written. Gives how many of them were staged.
    pub(crate) fn sent(&mut self, n: usize) -> usize {
        let staged = n.min(self.staged.saturating_sub(self.written).into());
        self.written = self.written.wrapping_add(staged as u8);
        staged
    }

    /// Whether the handshake's current command is wholly written: an answer is due only then.
    fn has_asked(&self) -> bool {
        self.asked && !self.is_writing()
    }

    /// Whether it is time for the current step to end.
    #[inline(never)]
    pub(crate) fn is_late(&mut self, now: Instant) -> bool {
        expire(&mut self.step, now)
    }

    /// Whether a dial is due.
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        self.stage == LinkState::Waiting && self.is_late(now)
    }

    /// Dials, until a time.
    pub(crate) fn dial(&mut self, until: Instant) {
        self.opened = Instant::NEVER;
        self.ask(LinkState::Dialing, until);
    }

    /// Whether there is a connection, or was one at the end.
    pub(crate) fn came_up(&self) -> bool {
        self.opened != Instant::NEVER
    }

    /// Whether it lasted long enough to have been good: see [`Attempts`](crate::time::Attempts).
    #[inline(never)]
    pub(crate) fn lasted(&self, now: Instant) -> bool {
        self.came_up() && self.opened.after(LASTED) <= now
    }

    /// The next step of the way up, until a time.
    fn ask(&mut self, stage: LinkState, until: Instant) {
        self.handshake_at = 0;
        self.asked = false;
        self.step = until;
        self.set(stage);
    }

    /// There is a connection: nothing of the last one counts.
    pub(crate) fn open(&mut self, now: Instant, until: Instant) {
        self.opened = now;
        self.frames = FrameDecoder::new(if self.publishes { REPLY_MAX } else { u32::MAX });
        self.nops = 0;
        self.unstage();
        self.ask(LinkState::Identifying, until);
    }

    pub(crate) fn unstage(&mut self) {
        self.staged = 0;
        self.written = 0;
    }

    /// nsqd says something: twice the heartbeat's interval is nsqd's own rule for its clients.
    pub(crate) fn hear(&mut self, now: Instant, heartbeat: Span) {
        if self.stage == LinkState::Ready {
            self.step = now.after(Span::from_millis(heartbeat.as_millis().saturating_mul(2)));
        }
    }

    /// The handshake's text is longer than the staging area: it is made again for each piece.
    // Apart, so that its frame is not under every poll.
    #[cold]
    #[inline(never)]
    pub(crate) fn greet(&mut self, desk: &mut [u8], greet: &dyn Greeting) {
        let mut window = ChunkWriter::new(desk, self.handshake_at.into());
        let Ok(()) = greet.greet(&mut window, self.stage);
        let staged = window.written();
        self.written = 0;
        self.staged = staged as u8;
        let total = window.total();
        self.handshake_at = self.handshake_at.saturating_add(staged as u16);
        self.asked = usize::from(self.handshake_at) >= total;
    }

    /// Takes a piece of a frame that is no message, and its text into `text`. The next step of the
    /// handshake may take until `until`.
    #[inline(never)]
    pub(crate) fn part(
        &mut self,
        part: &FramePart<'_>,
        text: &mut VecView<u8, u8>,
        has_secret: bool,
        until: Instant,
    ) -> Received {
        if part.first {
            text.clear();
            if self.stage == LinkState::Identifying {
                self.granted = GrantedScanner::new();
            }
        }
        keep(text, part.data);
        if self.stage == LinkState::Identifying {
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
        if !self.stage.is_handshake() {
            return Received::Response;
        }
        if !self.has_asked() {
            return Received::Fault(Fault::UnexpectedReply);
        }
        if self.stage == LinkState::Identifying {
            match self.granted.finish() {
                Ok(granted) if !granted.auth_required => {}
                Ok(_) if has_secret => {
                    self.ask(LinkState::Authenticating, until);
                    return Received::Nothing;
                }
                Ok(_) => return Received::Fault(Fault::AuthRequired),
                Err(error) => return Received::Fault(error.into()),
            }
        }
        if self.stage == LinkState::Subscribing {
            if text.as_slice() != nsqd::OK {
                return Received::Fault(Fault::UnexpectedReply);
            }
        } else if !self.publishes {
            self.ask(LinkState::Subscribing, until);
            return Received::Nothing;
        }
        self.set(LinkState::Ready);
        Received::Ready
    }

    /// What an error means that is nsqd's last word on this connection, by its text: one of the
    /// [permanent](Fault::is_permanent) faults, or else [`Fault::Refused`].
    #[cold]
    #[inline(never)]
    pub(crate) fn refusal(&self, text: &[u8]) -> Fault {
        let (code, words) = ErrorCode::parse(text);
        if code.meaning() == Meaning::Auth {
            return Fault::AuthRefused;
        }
        match (code, self.stage) {
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

    /// Why it is to be closed, if the time for the current step is up. What that means to a
    /// connection that is left is the consumer's.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Closed> {
        // It stays due until it is dialed, or aborted: by the driver.
        if self.stage.is_down() || self.stage == LinkState::Closing || !self.is_late(now) {
            return None;
        }
        Some(match self.stage {
            LinkState::Dialing => Closed::Dial(DialError::TimedOut),
            LinkState::Ready => Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)),
            _ => Closed::Fault(Fault::TimedOut(Awaited::Handshake)),
        })
    }

    /// Asks the driver to close the connection, within `patience`.
    #[inline(never)]
    pub(crate) fn close(&mut self, why: &Closed, now: Instant, patience: Span) {
        self.why = CloseReason::Closed(*why);
        self.nops = 0;
        if !matches!(why, Closed::Local) {
            self.staged = self.written;
        }
        // A peer that is silent takes no farewell either.
        let silent = matches!(why, Closed::Fault(Fault::TimedOut(_)));
        self.step = if silent { now } else { now.after(patience) };
        self.set(LinkState::Closing);
    }

    /// The connection is gone, or there will be none: says why if there was to be one.
    pub(crate) fn closed(&mut self, why: Closed) -> Option<Closed> {
        // What the session itself had against the connection is the better reason.
        let why = match (self.stage, self.why) {
            (LinkState::Idle | LinkState::Waiting, _) => return None,
            (LinkState::Closing, CloseReason::Closed(why)) => why,
            _ => why,
        };
        self.why = CloseReason::Closed(why);
        self.unstage();
        self.step = Instant::NEVER;
        Some(why)
    }
}

/// A stage in the words of the application.
#[cfg(any(feature = "defmt", feature = "log"))]
struct Shown {
    publishes: bool,
    stage: LinkState,
    why: CloseReason,
}

#[cfg(any(feature = "defmt", feature = "log"))]
impl core::fmt::Debug for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.stage, self.why) {
            (LinkState::Closing, CloseReason::Closed(why)) => {
                f.debug_tuple("Closing").field(&why).finish()
            }
            (LinkState::Idle, _) if self.publishes => f.write_str("Stopped"),
            (LinkState::Idle, _) => f.write_str("Unused"),
            (stage, _) => core::fmt::Debug::fmt(&stage, f),
        }
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Shown {
    fn format(&self, f: defmt::Formatter<'_>) {
        match (self.stage, self.why) {
            (LinkState::Closing, CloseReason::Closed(why)) => defmt::write!(f, "Closing({})", why),
            (LinkState::Idle, _) if self.publishes => defmt::write!(f, "Stopped"),
            (LinkState::Idle, _) => defmt::write!(f, "Unused"),
            (stage, _) => defmt::write!(f, "{}", stage),
        }
    }
}
