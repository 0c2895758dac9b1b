//! How an nsqd behaves: set once, borrowed for its life.

use core::fmt;

use super::arena::{BLOCK_MIN, Layout};
use crate::time::Span;
use crate::wire::nsqd::Limits;

/// The most channels that one topic can have.
pub const LANES_MAX: usize = 32;

/// The settings of a [`Nsqd`](super::Nsqd). Borrowed, so that a constant one costs no RAM.
///
/// ```
/// use nanonsq_core::nsqd::{Config, Full};
///
/// const CONFIG: Config<'_> = Config { full: Full::DropOldest, ..Config::new() };
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// What IDENTIFY's answer, and HTTP, call the server's version. Default `1.3.0`: that of the
    /// nsqd whose behaviour this is. nsqadmin shows nsqds with a lower one as out of date.
    pub version: &'a str,
    /// nsqd's limits. What is larger than the storage is made smaller: `max_rdy_count` to the
    /// entries of a channel, `max_msg_size` to what clients can announce of the store, for the
    /// application to the store. `snappy` and `deflate` do not matter: neither is to be had.
    /// Default [`Limits::NSQD`].
    pub limits: Limits,
    /// How often clients hear of the nsqd if they do not ask for another interval, 1 s to
    /// `limits.max_heartbeat_interval_ms`. Default 30 s, as nsqd.
    pub heartbeat: Span,
    /// How long a message may be in flight if its client does not ask for another time, 1 s to
    /// `limits.max_msg_timeout_ms`. Default 60 s, as nsqd.
    pub msg_timeout: Span,
    /// How long a client that publishes waits for room before it is refused: meanwhile nothing
    /// more is read from it, and heartbeats go on. Default 5 s. go-nsq gives up a write that is
    /// stuck for 1 s, which happens only if the message does not fit into the sockets' buffers.
    pub publish_wait: Span,
    /// How long a client that publishes may take for each KiB of a body, and for what is left at
    /// its end; not counted while the nsqd has no room. Beyond it the client is told what nsqd says
    /// (`E_BAD_MESSAGE PUB failed to read message body`) and closed, and its room is free. Default
    /// 5 s: a link of 205 bytes a second passes, a byte a second does not.
    pub body_timeout: Span,
    /// How much of the store is kept free for the application, in percent: no client can take it.
    /// With [`Full::DropOldest`] what the application has in the store counts, and is not dropped
    /// for a client. 0 to 90, default 12, about an eighth.
    pub reserve_percent: u8,
    /// How much of the store clients that have announced messages, and not sent all of them, can
    /// hold together, in percent: the others wait. What a client has sent as a whole, in one piece,
    /// does not. The longest message and the longest batch that a client can publish must fit into
    /// it. 1 to 100 less the reserve, default 30.
    pub announced_percent: u8,
    /// How much of the store clients' messages can take together in topics that nobody consumes: of
    /// which no message was finished by all its channels in the last minute. One topic can take 7/8
    /// of that. Beyond it who publishes there waits, and is refused, and other topics go on. Not
    /// with [`Full::DropOldest`], where the oldest make room. 1 to 100, which sets
    /// no bound, default 50.
    pub unconsumed_percent: u8,
    /// From which age on messages that wait in a topic without a channel are dropped, the oldest
    /// first, when others need their room, or their share. Not in topics that the application has
    /// made or published to, nor with [`Full::DropOldest`]; zero drops none. Default 5 min. Counted
    /// in [`Counters::expired`](super::Counters::expired), told as
    /// [`Event::Expired`](super::Event).
    pub unconsumed_age: Span,
    /// How long closing may take. Default 1 s.
    pub close_timeout: Span,
    /// How long a new topic holds its messages back, at most, while nsqlookupds are asked which
    /// channels it has elsewhere, if [somebody does](super::Nsqd::ask_lookupds); zero asks nobody.
    /// Default 5 s; nsqd gives each 2 s to connect and 5 s to answer, all at once.
    pub channels_wait: Span,
    /// What to do with a message that does not fit. Default [`Full::Refuse`].
    pub full: Full,
    /// How many channels each topic can have, 1 to [`LANES_MAX`]. Each costs 11 bytes of every
    /// message: see [`message_cost`](super::message_cost). Default 2.
    pub channels_per_topic: u8,
    /// The first half of all message ids: a number that was not used since the device was made,
    /// random, or counted up at each start. Default 0: set it.
    pub boot: u32,
    /// Makes sampling differ from that of others. Default 0.
    pub seed: u32,
}

/// The handling of a message that does not fit into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Full {
    /// Refuse it; the application keeps it. A client waits for [`Config::publish_wait`] first.
    /// Nothing is dropped, so a client that subscribes to a channel of the application's topic and
    /// consumes nothing can keep the application from publishing.
    #[default]
    Refuse,
    /// As [`Refuse`](Self::Refuse), but for the application's messages those are dropped, oldest
    /// first and counted, that some client has finished, or sent back for later, and other channels
    /// still need. For a device whose own readings must go on whatever clients do. What nobody has
    /// answered is never dropped. While no more than the application's reserve is free, little of
    /// its messages is given to consumers at once: those that do not answer leave it room.
    DropAnswered,
    /// Drop as many of the oldest as it needs, and count them. What is in flight, or being
    /// written, is not dropped: if all is, the message is refused all the same.
    DropOldest,
}

impl Config<'_> {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            version: "1.3.0",
            limits: Limits::NSQD,
            heartbeat: Span::from_secs(30),
            msg_timeout: Span::from_secs(60),
            publish_wait: Span::from_secs(5),
            body_timeout: Span::from_secs(5),
            reserve_percent: 12,
            announced_percent: 30,
            unconsumed_percent: 50,
            unconsumed_age: Span::from_secs(300),
            close_timeout: Span::from_secs(1),
            channels_wait: Span::from_secs(5),
            full: Full::Refuse,
            channels_per_topic: 2,
            boot: 0,
            seed: 0,
        }
    }

    pub(super) fn check(
        &self,
        topics: usize,
        channels: usize,
        clients: usize,
        in_flight: usize,
        store: usize,
    ) -> Result<Layout, ConfigError> {
        let ms = self.heartbeat.as_millis();
        if ms < 1000 || ms > self.limits.max_heartbeat_interval_ms {
            return Err(ConfigError::Heartbeat { ms });
        }
        let ms = self.msg_timeout.as_millis();
        if ms < 1000 || ms > self.limits.max_msg_timeout_ms {
            return Err(ConfigError::MsgTimeout { ms });
        }
        let most = usize::from(u8::MAX);
        for count in [topics, channels, clients] {
            if count == 0 || count >= most {
                return Err(ConfigError::Tables { count });
            }
        }
        if in_flight == 0 || in_flight > usize::from(u16::MAX) {
            return Err(ConfigError::InFlight { count: in_flight });
        }
        if self.body_timeout == Span::ZERO {
            return Err(ConfigError::BodyTimeout);
        }
        let (reserve, announced) = (self.reserve_percent, self.announced_percent);
        if reserve > 90 || announced == 0 || announced > 100u8.saturating_sub(reserve) {
            return Err(ConfigError::Shares { reserve, announced });
        }
        if self.unconsumed_percent == 0 || self.unconsumed_percent > 100 {
            return Err(ConfigError::Unconsumed { percent: self.unconsumed_percent });
        }
        let lanes = self.channels_per_topic;
        if lanes == 0 || usize::from(lanes) > LANES_MAX {
            return Err(ConfigError::ChannelsPerTopic { count: lanes });
        }
        Layout::new(store, lanes).ok_or(ConfigError::StoreTooSmall { len: store })
    }
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// An error in an nsqd's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// The heartbeat interval must be 1,000 ms to `limits.max_heartbeat_interval_ms`.
    Heartbeat {
        /// The configured interval in milliseconds.
        ms: u32,
    },
    /// The message timeout must be 1,000 ms to `limits.max_msg_timeout_ms`.
    MsgTimeout {
        /// The configured timeout in milliseconds.
        ms: u32,
    },
    /// There must be 1 to 254 topics, channels and clients.
    Tables {
        /// The number of entries.
        count: usize,
    },
    /// There must be 1 to 65,535 entries for messages in flight a channel.
    InFlight {
        /// The number.
        count: usize,
    },
    /// A body must have some time to come.
    BodyTimeout,
    /// Clients must be able to announce at least 1 percent of the store, and at most what the
    /// reserve leaves, which can have 90 percent.
    Shares {
        /// [`Config::reserve_percent`].
        reserve: u8,
        /// [`Config::announced_percent`].
        announced: u8,
    },
    /// Topics that nobody consumes must be able to hold 1 to 100 percent of the store.
    Unconsumed {
        /// [`Config::unconsumed_percent`].
        percent: u8,
    },
    /// A topic must be able to have 1 to [`LANES_MAX`] channels.
    ChannelsPerTopic {
        /// The configured number.
        count: u8,
    },
    /// The store must take one message of one byte, and hence 66 bytes at least,
    /// more with many channels.
    StoreTooSmall {
        /// The length in bytes.
        len: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { ms } => {
                write!(f, "heartbeat interval {ms} ms; give 1000 ms to the limits' maximum")
            }
            Self::MsgTimeout { ms } => {
                write!(f, "message timeout {ms} ms; give 1000 ms to the limits' maximum")
            }
            Self::Tables { count } => {
                write!(f, "storage for {count} topics, channels or clients; give it 1 to 254")
            }
            Self::InFlight { count } => {
                write!(f, "storage for {count} messages in flight a channel; give it 1 to 65535")
            }
            Self::BodyTimeout => f.write_str("no time for a body; give 1 ms at least"),
            Self::Shares { reserve, announced } => {
                write!(
                    f,
                    "{reserve} % of the store reserved, {announced} % for what is announced; "
                )?;
                f.write_str("give 0 to 90 and 1 to what that leaves of 100")
            }
            Self::Unconsumed { percent } => {
                write!(f, "{percent} % of the store for what nobody consumes; give 1 to 100")
            }
            Self::ChannelsPerTopic { count } => {
                write!(f, "{count} channels per topic; give 1 to {LANES_MAX}")
            }
            Self::StoreTooSmall { len } => {
                write!(f, "the store has {len} bytes; it needs {} at least", BLOCK_MIN + 2)
            }
        }
    }
}

impl core::error::Error for ConfigError {}
