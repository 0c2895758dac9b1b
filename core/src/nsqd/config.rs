//! The settings of an nsqd.

use core::fmt;

use super::Index;
use super::arena::{BLOCK_MIN, DELAY_MAX_MS, Layout};
use crate::time::Span;
use crate::wire::nsqd::Limits;

/// The fewest bytes of a store: one block.
const STORE_MIN: usize = {
    let mut len = BLOCK_MIN;
    while Layout::new(len, 1).is_none() {
        len += 1;
    }
    len
};

/// The most channels of a topic.
pub const LANES_MAX: usize = 32;

/// The settings of a [`Nsqd`](super::Nsqd), which borrows them: a constant takes no RAM.
///
/// ```
/// use nanonsq_core::nsqd::{Config, Full};
///
/// const CONFIG: Config<'_> = Config { full: Full::DropOldest, ..Config::new() };
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The version in the response to IDENTIFY and in HTTP. Default `1.3.0`, the nsqd whose
    /// behaviour this implements. nsqadmin marks an nsqd as out of date if another has a higher
    /// version.
    pub version: &'a str,
    /// nsqd's limits. They are lowered to what the storage allows: `max_rdy_count` to the entries
    /// of a channel, `max_msg_size` to what clients can announce of the store, for the application
    /// to the store. `max_req_timeout_ms` is at most 4,294,901,760 (49.7 days). `snappy` and
    /// `deflate` are ignored: neither is supported. Default [`Limits::NSQD`].
    pub limits: Limits,
    /// The interval of heartbeats to clients that do not ask for another, 1 s to
    /// `limits.max_heartbeat_interval_ms`. Default 30 s, as nsqd.
    pub heartbeat: Span,
    /// The longest time in flight for clients that do not ask for another, 1 s to
    /// `limits.max_msg_timeout_ms`. Default 60 s, as nsqd.
    pub msg_timeout: Span,
    /// How long a client's message waits for room before it is refused. Meanwhile no command is
    /// read from the client, and heartbeats go on. Default 5 s. go-nsq gives up a write that blocks
    /// for 1 s, which happens only if the message does not fit into the sockets' buffers.
    pub publish_wait: Span,
    /// The longest time in which each KiB of a published body, and its end, must arrive; not
    /// counted while the nsqd has no room. Beyond it the client gets nsqd's error (`E_BAD_MESSAGE
    /// PUB failed to read message body`) and is closed, and its room is free. Default 5 s: a link
    /// with 205 bytes a second is fast enough.
    pub body_timeout: Span,
    /// The percentage of the store that only the application can take. With [`Full::DropOldest`]
    /// the application's messages in the store count towards it, and up to it are not dropped for a
    /// client. 0 to 90, default 12.
    pub reserve_percent: u8,
    /// The percentage of the store that clients together can hold for messages that are announced
    /// and have not completely arrived. Beyond it others wait, unless their message arrives in one
    /// piece. Limits the longest message and the longest batch that a client can publish. 1 to 100
    /// less the reserve, default 30.
    pub announced_percent: u8,
    /// The percentage of the store that clients' messages can take together in unconsumed topics:
    /// those of which no message was finished in all channels in the last minute. One topic can
    /// take 7/8 of that. Beyond it messages to these topics wait and are refused; other topics are
    /// not affected. Ignored with [`Full::DropOldest`]. 1 to 100, where 100 means no bound; default
    /// 50.
    pub unconsumed_percent: u8,
    /// The age from which messages that wait in a topic without a channel are dropped, the oldest
    /// first, when others need their room or their share. Not for topics that the application has
    /// created or published to, nor with [`Full::DropOldest`]; zero drops none. Default 5 min.
    /// Counted in [`Counters::expired`](super::Counters::expired), reported as
    /// [`Event::Expired`](super::Event).
    pub unconsumed_age: Span,
    /// The longest time for closing a connection. Default 1 s.
    pub close_timeout: Span,
    /// The longest time for which a new topic holds its messages back while nsqlookupds are asked
    /// which channels it has elsewhere, if [enabled](super::Nsqd::ask_lookupds); zero asks none.
    /// Default 5 s. nsqd asks all at once, with 2 s to connect and 5 s to answer.
    pub channels_wait: Span,
    /// The handling of a message that does not fit. Default [`Full::Refuse`].
    pub full: Full,
    /// The most topics, if the storage has room for more. At least 1; default 65,535.
    pub max_topics: u16,
    /// The most channels of all topics together, if the storage has room for more. At least 1;
    /// default 65,535.
    pub max_channels: u16,
    /// The most clients, if the storage has room for more. At least 1; default 65,535.
    pub max_clients: u16,
    /// The most channels of each topic, 1 to [`LANES_MAX`]. Each takes 11 bytes of every message, 15
    /// with the feature `large`; see [`message_cost`](super::message_cost). Default 2.
    pub channels_per_topic: u8,
    /// The first half of all message ids. Set a number that differs at each start of the device:
    /// random, or counted up. Default 0.
    pub boot: u32,
    /// The seed of sampling: set different ones on different devices. Default 0.
    pub seed: u32,
}

/// The handling of a message that does not fit into the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Full {
    /// Refuse the message; a client's after [`Config::publish_wait`]. No message is dropped, so a
    /// client that subscribes to a channel of the application's topic and consumes nothing can keep
    /// the application from publishing.
    #[default]
    Refuse,
    /// Refuse clients' messages as with [`Refuse`](Self::Refuse). For the application's messages,
    /// drop the oldest messages that some client has finished or requeued with a delay, and other
    /// channels still need; count them. For a device that must publish its readings whatever
    /// clients do. A message without any such answer is never dropped. While no more than the
    /// reserve is free, only few of the application's messages are in flight, so that consumers
    /// that do not answer leave room.
    DropAnswered,
    /// Drop as many of the oldest messages as needed, and count them. Messages in flight or being
    /// written are not dropped: if there is no other, the new message is refused.
    DropOldest,
}

impl Config<'_> {
    /// Returns the default settings.
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
            max_topics: u16::MAX,
            max_channels: u16::MAX,
            max_clients: u16::MAX,
            channels_per_topic: 2,
            boot: 0,
            seed: 0,
        }
    }

    pub(super) fn check(
        &self,
        tables: [usize; 3],
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
        let ms = self.limits.max_req_timeout_ms;
        if ms > DELAY_MAX_MS {
            return Err(ConfigError::ReqTimeout { ms });
        }
        let most = usize::from(Index::MAX);
        for count in tables {
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
    /// The limits' longest deferral, `limits.max_req_timeout_ms`, must be 4,294,901,760 ms (49.7
    /// days) at most.
    ReqTimeout {
        /// The configured deferral in milliseconds.
        ms: u32,
    },
    /// There must be 1 to 254 topics, channels and clients; to 65,534 with the feature `large`.
    Tables {
        /// The number of entries.
        count: usize,
    },
    /// There must be 1 to 65,535 entries for messages in flight a channel.
    InFlight {
        /// The number of entries.
        count: usize,
    },
    /// [`Config::body_timeout`] must not be zero.
    BodyTimeout,
    /// The reserve must be 0 to 90 percent of the store, the announced share 1 percent to what the
    /// reserve leaves.
    Shares {
        /// [`Config::reserve_percent`].
        reserve: u8,
        /// [`Config::announced_percent`].
        announced: u8,
    },
    /// The share of unconsumed topics must be 1 to 100 percent of the store.
    Unconsumed {
        /// [`Config::unconsumed_percent`].
        percent: u8,
    },
    /// The channels of a topic must be 1 to [`LANES_MAX`].
    ChannelsPerTopic {
        /// The configured number.
        count: u8,
    },
    /// The store must hold one message of one byte: 66 bytes at least, 72 with the feature `large`,
    /// and more with many channels.
    StoreTooSmall {
        /// The length of the store in bytes.
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
            Self::ReqTimeout { ms } => {
                write!(f, "deferrals up to {ms} ms; give {DELAY_MAX_MS} ms (49.7 days) at most")
            }
            Self::Tables { count } => {
                let most = Index::MAX - 1;
                write!(f, "storage for {count} topics, channels or clients; give it 1 to {most}")
            }
            Self::InFlight { count } => {
                write!(f, "storage for {count} messages in flight a channel; give it 1 to 65535")
            }
            Self::BodyTimeout => f.write_str("body timeout 0 ms; give 1 ms at least"),
            Self::Shares { reserve, announced } => {
                write!(
                    f,
                    "{reserve} % of the store reserved, {announced} % for announced messages; "
                )?;
                f.write_str("give 0 to 90 and 1 to what that leaves of 100")
            }
            Self::Unconsumed { percent } => {
                write!(f, "{percent} % of the store for unconsumed topics; give 1 to 100")
            }
            Self::ChannelsPerTopic { count } => {
                write!(f, "{count} channels per topic; give 1 to {LANES_MAX}")
            }
            Self::StoreTooSmall { len } => {
                write!(f, "the store has {len} bytes; it needs {STORE_MIN} at least")
            }
        }
    }
}

impl core::error::Error for ConfigError {}
