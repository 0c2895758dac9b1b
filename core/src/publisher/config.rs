//! The settings of a publisher: chosen once, borrowed for its life.

use core::convert::Infallible;
use core::fmt;

use super::outbox::{HEADER_OVERHEAD, RECORD_OVERHEAD};
use crate::name::NAME_MAX;
use crate::session::LinkState;
use crate::session::handshake::Commands;
use crate::time::Span;
use crate::wire::nsqd::{self, IdentifyRequest};
use crate::wire::{ChunkWriter, Write};

/// The smallest ring that can hold a message with the longest topic name, in bytes.
pub const RING_MIN: usize = HEADER_OVERHEAD + NAME_MAX + RECORD_OVERHEAD + 1;

/// The settings of a [`Publisher`](super::Publisher). Borrowed, so that a constant one costs no
/// RAM.
///
/// ```
/// use nanonsq_core::publisher::{Config, Full};
/// use nanonsq_core::time::Span;
///
/// const CONFIG: Config<'_> = Config {
///     client_id: "greenhouse-7",
///     heartbeat: Span::from_secs(10),
///     full: Full::DropOldest,
///     ..Config::new()
/// };
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// IDENTIFY's `client_id`, as nsqadmin shows it. Default `nanonsq`.
    pub client_id: &'a str,
    /// IDENTIFY's `hostname`. Default `nanonsq`.
    pub hostname: &'a str,
    /// IDENTIFY's `user_agent`. Default `nanonsq/VERSION`.
    pub user_agent: &'a str,
    /// The secret for AUTH, sent only to an nsqd that requires it. Default none.
    pub auth_secret: Option<&'a [u8]>,
    /// How often nsqd sends a heartbeat, 1 s to 60 s (nsqd refuses other values; its flag
    /// `--max-heartbeat-interval` is the upper end). After two intervals of silence the connection
    /// counts as dead. Default 30 s.
    pub heartbeat: Span,
    /// How long a dial may take, and each response of the handshake. Default 5 s.
    pub connect_timeout: Span,
    /// How long nsqd may take to answer a PUB, MPUB or DPUB before the connection is closed and
    /// its messages are sent again. Default 10 s.
    pub reply_timeout: Span,
    /// Reconnecting: after a round in which all addresses failed, wait up to this, then up to
    /// double. Default 100 ms.
    pub reconnect_base: Span,
    /// Reconnecting: the longest wait for an nsqd that cannot be reached. Default 2 s. If an nsqd
    /// accepted the connection, but it neither lasted for 10 s nor was a message acknowledged or
    /// rejected on it, the wait is up to 1 s, then 2 s, up to 16 s, or this if it is longer.
    pub reconnect_cap: Span,
    /// Reconnecting: spreads the first attempt after a loss over this time. Set it to seconds for
    /// a fleet of thousands. Default none.
    pub reconnect_spread: Span,
    /// How long an nsqd is left out after a permanent refusal
    /// ([`Fault::is_permanent`](crate::session::Fault::is_permanent)): for example, it requires
    /// TLS, or the secret is wrong. The other nsqds are used meanwhile. At least 1 s; default 5
    /// min.
    pub left_out_for: Span,
    /// How long closing may take. Default 1 s.
    pub close_timeout: Span,
    /// The most bytes in one MPUB; a single message may be longer. A heartbeat waits for the
    /// command before it, so sending this many bytes should take well below the heartbeat interval;
    /// nsqd's `--max-body-size` (5 MiB) is the upper end. Default 1 MiB.
    pub batch_bytes: u32,
    /// The most messages in one MPUB. Default 10,000. The publisher uses fewer after nsqd refused a
    /// batch twice, or for a message in it, until nsqd accepts more again.
    pub batch_messages: u32,
    /// What to do with a message that does not fit. Default [`Full::Refuse`].
    pub full: Full,
    /// Makes the jitter of this device differ from that of others. Default 0: set it.
    pub seed: u32,
}

/// What to do with a message that does not fit into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Full {
    /// Refuse the message; the caller keeps it and may wait for room.
    #[default]
    Refuse,
    /// Drop as many of the oldest messages as needed, count them, and report them as
    /// [`Outcome::Dropped`](super::Outcome). The oldest messages are those in flight, if any, which
    /// cannot be dropped: then the new message is refused. With nsqd connected and slow that lasts
    /// until its next response, at most [`Config::reply_timeout`].
    DropOldest,
}

impl Config<'_> {
    /// Creates the default settings.
    pub const fn new() -> Self {
        Self {
            client_id: "nanonsq",
            hostname: "nanonsq",
            user_agent: concat!("nanonsq/", env!("CARGO_PKG_VERSION")),
            auth_secret: None,
            heartbeat: Span::from_secs(30),
            connect_timeout: Span::from_secs(5),
            reply_timeout: Span::from_secs(10),
            reconnect_base: Span::from_millis(100),
            reconnect_cap: Span::from_secs(2),
            reconnect_spread: Span::ZERO,
            left_out_for: Span::from_secs(300),
            close_timeout: Span::from_secs(1),
            batch_bytes: 1 << 20,
            batch_messages: 10_000,
            full: Full::Refuse,
            seed: 0,
        }
    }

    /// Checks the settings, so that nsqd does not refuse them later.
    pub(super) const fn check(&self, nsqds: usize, ring: usize) -> Result<(), ConfigError> {
        let ms = self.heartbeat.as_millis();
        if nsqds == 0 || nsqds > u8::MAX as usize {
            return Err(ConfigError::Addresses { count: nsqds });
        }
        if ms < 1000 || ms > 60_000 {
            return Err(ConfigError::Heartbeat { ms });
        }
        if ring < RING_MIN {
            return Err(ConfigError::RingTooSmall { len: ring });
        }
        Ok(())
    }
}

impl Commands for Config<'_> {
    fn emit(&self, w: &mut ChunkWriter<'_>, state: LinkState) -> Result<(), Infallible> {
        if state != LinkState::Identifying {
            return nsqd::emit_auth(w, self.auth_secret.unwrap_or_default());
        }
        let request = IdentifyRequest {
            client_id: self.client_id,
            hostname: self.hostname,
            user_agent: self.user_agent,
            heartbeat_interval: self.heartbeat.as_millis(),
        };
        w.write_all(&nsqd::MAGIC)?;
        nsqd::emit_identify(w, &request, &[], &[])
    }
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// An invalid setting of a publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// There must be 1 to 255 nsqd addresses.
    Addresses {
        /// How many were given.
        count: usize,
    },
    /// The heartbeat interval must be 1,000 to 60,000 ms.
    Heartbeat {
        /// The interval that was given, in milliseconds.
        ms: u32,
    },
    /// The ring must have at least [`RING_MIN`] bytes.
    RingTooSmall {
        /// The length of the ring that was given, in bytes.
        len: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses { count } => {
                write!(f, "{count} nsqd addresses given; give 1 to 255")
            }
            Self::Heartbeat { ms } => {
                write!(f, "heartbeat interval {ms} ms; nsqd takes 1000 to 60000 ms")
            }
            Self::RingTooSmall { len } => {
                write!(f, "the outbox ring has {len} bytes; it needs at least {RING_MIN}")
            }
        }
    }
}

impl core::error::Error for ConfigError {}
