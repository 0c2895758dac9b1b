//! Why a connection ends.

use core::fmt;

use crate::wire::DecodeError;
use crate::wire::http::BadAnswer;
use crate::wire::nsqd::ErrorCode;

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Closed {
    /// The dial failed.
    Dial(DialError),
    /// The peer closed the connection.
    Peer,
    /// The transport broke.
    Transport(TransportError),
    /// The session closed the connection because of a fault.
    Fault(Fault),
    /// The connection was no longer wanted.
    Local,
}

impl Closed {
    /// A value of zero bytes, for storage before its use; it is no reason.
    pub(crate) const ZERO: Self =
        Self::Fault(Fault::Decode(DecodeError::BadLength { len: 0, max: 0 }));
}

/// Why a dial failed. The same for every transport: an adapter maps its own errors to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DialError {
    /// Nothing listens on that port.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No route to the host, or the network is down.
    Unreachable,
    /// The name could not be resolved.
    NameNotFound,
    /// The platform has no socket, port or memory left for the connection.
    NoSocket,
    /// The platform reported another error.
    Other,
}

/// Why a transport broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TransportError {
    /// The peer, or something on the way to it, reset the connection.
    Reset,
    /// The transport timed out.
    TimedOut,
    /// The transport cannot do the [`Link::Upgrade`](super::Link::Upgrade).
    Unsupported,
    /// The platform reported another error.
    Other,
}

/// An act or failure of the peer that ends the connection. The session stays consistent: the next
/// [`Session::open`](super::Session::open) starts afresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Fault {
    /// The bytes of the peer cannot be decoded.
    Decode(DecodeError),
    /// A well-formed answer arrived where none, or another, was due.
    UnexpectedReply,
    /// The peer refused with an error; the session keeps its text as `detail`.
    Refused(ErrorCode),
    /// The answer of an nsqlookupd over HTTP cannot be used.
    BadAnswer(BadAnswer),
    /// nsqd requires AUTH and no secret is configured. [Permanent](Self::is_permanent).
    AuthRequired,
    /// nsqd requires TLS, which this client does not speak. [Permanent](Self::is_permanent).
    TlsRequired,
    /// nsqd refused AUTH, or a command after it, with `E_AUTH_FAILED`, `E_UNAUTHORIZED`,
    /// `E_AUTH_FIRST` or `E_AUTH_DISABLED`; the session keeps the text as `detail`.
    /// [Permanent](Self::is_permanent).
    AuthRefused,
    /// nsqd refused IDENTIFY; the session keeps the text as `detail`.
    /// [Permanent](Self::is_permanent).
    IdentifyRefused,
    /// The peer did not answer in time.
    TimedOut(Awaited),
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Decode(error)
    }
}

impl Fault {
    /// Returns whether dialing the same server again cannot help: the handshake fails until the
    /// settings of the server or of this side change.
    pub const fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::AuthRequired | Self::TlsRequired | Self::AuthRefused | Self::IdentifyRefused
        )
    }
}

/// What a session was waiting for when a timeout passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Awaited {
    /// The response to IDENTIFY or AUTH.
    Handshake,
    /// The answer to a command.
    Reply,
    /// Any bytes at all: two heartbeat intervals passed in silence, so the connection is half open.
    Heartbeat,
    /// The transport to take the last bytes.
    Drain,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial(error) => error.fmt(f),
            Self::Peer => f.write_str("closed by the server"),
            Self::Transport(error) => error.fmt(f),
            Self::Fault(fault) => fault.fmt(f),
            Self::Local => f.write_str("closed"),
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused: nothing listens on that port",
            Self::TimedOut => "connecting timed out",
            Self::Unreachable => "host or network unreachable",
            Self::NameNotFound => "the host name could not be resolved",
            Self::NoSocket => "no socket left for the connection",
            Self::Other => "connecting failed",
        })
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "connection reset",
            Self::TimedOut => "connection timed out",
            Self::Unsupported => "the transport does not support the requested upgrade",
            Self::Other => "connection broken",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Decode(error) => error.fmt(f),
            Self::BadAnswer(why) => why.fmt(f),
            Self::UnexpectedReply => f.write_str("an answer that does not fit the command"),
            Self::Refused(code) => write!(f, "refused with {code}"),
            Self::AuthRequired => {
                f.write_str("the server requires AUTH and no secret is given: give the secret")
            }
            Self::TlsRequired => f.write_str(
                "the server requires TLS, which this client does not speak: use one without \
                 --tls-required, or a tunnel that speaks TLS",
            ),
            Self::AuthRefused => f.write_str(
                "the server refused the secret, or what it may do: check it and what the \
                 authorization server permits",
            ),
            Self::IdentifyRefused => f.write_str(
                "the server refused IDENTIFY: check that it is an nsqd, and the heartbeat interval",
            ),
            Self::TimedOut(Awaited::Handshake) => f.write_str("no answer to IDENTIFY in time"),
            Self::TimedOut(Awaited::Reply) => f.write_str("no answer to a command in time"),
            Self::TimedOut(Awaited::Heartbeat) => {
                f.write_str("nothing received for two heartbeat intervals")
            }
            Self::TimedOut(Awaited::Drain) => f.write_str("closing took too long"),
        }
    }
}

impl core::error::Error for Closed {}
impl core::error::Error for DialError {}
impl core::error::Error for TransportError {}
impl core::error::Error for Fault {}
