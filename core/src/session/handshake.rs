//! The handshake of a client with nsqd: IDENTIFY, AUTH if nsqd requires it, and a consumer's SUB.
//! Publisher and consumer share it, so that a program with both has one copy.

use core::convert::Infallible;
use core::ops::{Deref, DerefMut};

use heapless::VecView;

use super::dialed::{Dialed, LinkState};
use super::{Fault, staging};
use crate::time::{Instant, Span};
use crate::wire::ChunkWriter;
use crate::wire::nsqd::{
    self, ErrorCode, FrameDecoder, FramePart, FrameType, GrantedScanner, Meaning,
};

/// The longest frame that is read, messages excepted, in bytes: a response to IDENTIFY or AUTH.
pub(crate) const REPLY_MAX: u32 = 16 * 1024;

/// The text with which nsqd refuses a command that was cut off.
const CUT_OFF: &[u8] = b"failed to read";

/// The text with which nsqd with `--tls-required` refuses every command but IDENTIFY.
const TLS_REQUIRED: &[u8] = b"TLS required";

/// Returns whether nsqd refused the command only because the command was cut off.
pub(crate) fn is_cut_off(text: &[u8]) -> bool {
    contains(text, CUT_OFF)
}

/// Returns whether nsqd stored nothing of the batch that it refused. Only the nsqd of this project
/// sends these texts, and it stores a batch whole or not at all.
pub(crate) fn is_nothing_stored(text: &[u8]) -> bool {
    contains(text, b"no room") || contains(text, b"never fit")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    // Not with `windows`, which panics at a length of 0.
    (0..text.len()).any(|at| text.get(at..).is_some_and(|rest| rest.starts_with(part)))
}

/// The commands of the handshake.
pub(crate) trait Commands {
    /// Writes the command that is sent in `state`.
    fn emit(&self, w: &mut ChunkWriter<'_>, state: LinkState) -> Result<(), Infallible>;
}

/// The effect of one part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// No effect yet, or the next state of the handshake began.
    Nothing,
    /// A heartbeat, to be answered: see [`Dialed::nops`].
    Heartbeat,
    /// The handshake is over.
    Ready,
    /// A response, whose data is in `text`.
    Response,
    /// A refusal, whose data is in `text`.
    Refusal,
    /// A frame that is unexpected here, or cannot be decoded.
    Fault(Fault),
}

/// A connection to one nsqd: a dialed connection with the state of the handshake.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Handshake {
    pub(crate) dialed: Dialed,
    pub(crate) frames: FrameDecoder,
    /// Scans the response to IDENTIFY.
    pub(crate) granted: GrantedScanner,
}

impl Deref for Handshake {
    type Target = Dialed;

    fn deref(&self) -> &Dialed {
        &self.dialed
    }
}

impl DerefMut for Handshake {
    fn deref_mut(&mut self) -> &mut Dialed {
        &mut self.dialed
    }
}

impl Handshake {
    /// An unused connection of a consumer. All bytes are zero, so that flash holds no image of it.
    pub(crate) const ZERO: Self =
        Self { dialed: Dialed::ZERO, frames: FrameDecoder::new(0), granted: GrantedScanner::ZERO };

    /// The connection of a publisher, which dials at once.
    pub(crate) const PUBLISHER: Self = Self { dialed: Dialed::PUBLISHER, ..Self::ZERO };

    /// Notes that the transport is up: forgets what belonged to the last connection and begins the
    /// handshake, whose first response has to come within `timeout`. Returns false, and changes
    /// nothing, if no connection is wanted.
    pub(crate) fn open(&mut self, timeout: Span, now: Instant) -> bool {
        let wanted = self.come_up(now);
        if wanted {
            self.frames = FrameDecoder::new(if self.publishes() { REPLY_MAX } else { u32::MAX });
            self.step(LinkState::Identifying, now.after(timeout));
        }
        wanted
    }

    /// Notes that bytes arrived: nsqd may now be silent for two heartbeat intervals, which is also
    /// its own rule for clients.
    pub(crate) fn on_receive(&mut self, now: Instant, heartbeat: Span) {
        if self.state() == LinkState::Ready {
            // At most twice 60 s, as the settings are checked.
            self.deadline = now.after(Span::from_millis(heartbeat.as_millis().wrapping_mul(2)));
        }
    }

    /// Stages the next piece of the current command in `buffer`.
    // Out of line, so that its stack frame is not part of every poll.
    #[cold]
    pub(crate) fn stage_command(&mut self, buffer: &mut [u8], commands: &dyn Commands) {
        let state = self.state();
        self.staging.stage_text(buffer, |w| commands.emit(w, state));
    }

    /// Handles a part of a frame that is not a message, and appends its data to `text`. If the next
    /// state of the handshake begins, it is given up at `until`.
    pub(crate) fn on_part(
        &mut self,
        part: &FramePart<'_>,
        text: &mut VecView<u8, u8>,
        has_secret: bool,
        until: Instant,
    ) -> Received {
        let state = self.state();
        if part.first {
            text.clear();
            if state == LinkState::Identifying {
                self.granted = GrantedScanner::new();
            }
        }
        staging::append(text, part.data);
        if state == LinkState::Identifying {
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
        if !state.is_handshake() {
            return Received::Response;
        }
        if !self.staging.text_is_written() {
            return Received::Fault(Fault::UnexpectedReply);
        }
        if state == LinkState::Identifying {
            match self.granted.finish() {
                Ok(granted) if !granted.auth_required => {}
                Ok(_) if has_secret => {
                    self.step(LinkState::Authenticating, until);
                    return Received::Nothing;
                }
                Ok(_) => return Received::Fault(Fault::AuthRequired),
                Err(error) => return Received::Fault(error.into()),
            }
        }
        if state == LinkState::Subscribing {
            if text.as_slice() != nsqd::OK {
                return Received::Fault(Fault::UnexpectedReply);
            }
        } else if !self.publishes() {
            self.step(LinkState::Subscribing, until);
            return Received::Nothing;
        }
        self.step(LinkState::Ready, until);
        Received::Ready
    }

    /// Returns the fault for an error after which nsqd closes, by the error's text: a
    /// [permanent](Fault::is_permanent) fault, or [`Fault::Refused`].
    #[cold]
    pub(crate) fn refusal(&self, text: &[u8]) -> Fault {
        let (code, description) = ErrorCode::parse(text);
        if code.meaning() == Meaning::Auth {
            return Fault::AuthRefused;
        }
        match (code, self.state()) {
            (ErrorCode::Invalid, _) if contains(description, TLS_REQUIRED) => Fault::TlsRequired,
            (ErrorCode::Unauthorized, LinkState::Authenticating | LinkState::Subscribing) => {
                Fault::AuthRefused
            }
            (ErrorCode::BadBody | ErrorCode::Invalid, LinkState::Identifying)
                if !is_cut_off(description) =>
            {
                Fault::IdentifyRefused
            }
            _ => Fault::Refused(code),
        }
    }
}
