//! How a consumer behaves: set once, borrowed for its life.

use core::fmt;

use super::LOOKUPDS_MAX;
use crate::name::{ChannelName, TopicName};
use crate::time::Span;
use crate::wire::nsqd::{IdentifyNumber, IdentifyRequest, MessageHead};

/// The fewest ring bytes for each message in flight: its head and a short body.
pub const SLOT_MIN: usize = MessageHead::LEN + 6;

/// The settings of a [`Consumer`](super::Consumer). Borrowed, so that a constant one costs no RAM.
///
/// ```
/// use nanonsq_core::consumer::Config;
/// use nanonsq_core::name::{ChannelName, TopicName};
/// use nanonsq_core::time::Span;
///
/// const TOPIC: TopicName = match TopicName::new("readings") {
///     Ok(topic) => topic,
///     Err(_) => panic!("a topic's name"),
/// };
/// const CHANNEL: ChannelName = match ChannelName::new("archive") {
///     Ok(channel) => channel,
///     Err(_) => panic!("a channel's name"),
/// };
/// const CONFIG: Config<'_> = Config {
///     max_in_flight: 4,
///     auto_touch: true,
///     requeue_base: Span::from_secs(5),
///     ..Config::new(TOPIC, CHANNEL)
/// };
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The topic to consume; nsqd makes it if need be.
    pub topic: TopicName,
    /// The channel of it; nsqd makes it if need be.
    pub channel: ChannelName,
    /// IDENTIFY's `client_id`, as nsqadmin shows it. Default `nanonsq`.
    pub client_id: &'a str,
    /// IDENTIFY's `hostname`. Default `nanonsq`.
    pub hostname: &'a str,
    /// IDENTIFY's `user_agent`, also that of HTTP requests. Default `nanonsq/VERSION`.
    pub user_agent: &'a str,
    /// The secret for AUTH, sent only to an nsqd that requires it. Default none.
    pub auth_secret: Option<&'a [u8]>,
    /// How often nsqd sends a heartbeat, 1 s to 60 s. Two intervals of silence mean that the
    /// connection is dead. Default 30 s.
    pub heartbeat: Span,
    /// How long nsqd waits for the answer to a message before it queues it again, from 1 s to its
    /// `--max-msg-timeout` (15 min). Default none: nsqd's own `--msg-timeout` (60 s).
    pub msg_timeout: Option<Span>,
    /// How long nsqd may hold a message back to send it together with later ones, 25 ms to 30 s, or
    /// zero for not at all: each message then leaves at once, in several packets. It holds none
    /// back while as many are in flight as it was asked for. Default none: nsqd's own
    /// `--output-buffer-timeout` (250 ms), which no nsqd refuses.
    pub output_buffer_timeout: Option<Span>,
    /// How many percent of the channel's messages to get, 1 to 99; nsqd then drops the others for
    /// this consumer. Default 0, all.
    pub sample_rate: u8,
    /// How many messages may be in flight, over all nsqds together; no more than the storage has
    /// slots for. More than there are nsqds keeps each of them busy. Default as many as the
    /// storage has slots for.
    pub max_in_flight: u16,
    /// How long connecting may take, and each answer of the handshake. Default 5 s. While other
    /// nsqds wait for a connection, no longer than 1 s, which doubles each time all have been tried
    /// without a change.
    pub connect_timeout: Span,
    /// Reconnecting: after the first failure wait up to this, then up to double. Default 100 ms.
    pub reconnect_base: Span,
    /// Reconnecting: never wait longer for an nsqd that is not to be reached. Default 10 s. If one
    /// accepted the connection, and it neither lasted for 10 s nor delivered a message, the wait is
    /// up to 1 s, then 2 s, up to 16 s, or this if it is longer.
    pub reconnect_cap: Span,
    /// Reconnecting: spreads the first attempt after a loss over this time. Set it to seconds for
    /// a fleet of thousands. Default none.
    pub reconnect_spread: Span,
    /// How long an nsqd is left out that refused in a way that no repetition cures
    /// ([`ConnectionEvent::LeftOut`](super::ConnectionEvent::LeftOut)): it requires TLS, the secret is wrong, or it
    /// takes neither topic nor channel. Its connection goes to another nsqd if one waits. Default 5 min.
    pub left_out_for: Span,
    /// How long the application may take to answer what is in flight when a connection is to be
    /// closed; the rest is requeued then. Default 5 s.
    pub drain_timeout: Span,
    /// How long closing may take after that. Default 1 s.
    pub close_timeout: Span,
    /// How long after an answer each nsqlookupd is asked again at the latest, or up to a quarter
    /// earlier: a new nsqd that it lists is found by then. Default 60 s, as go-nsq. While an nsqd
    /// fails and others wait for a connection, already 0.5 s after it; that doubles each time all have been
    /// tried without a change, up to a quarter of the interval.
    pub lookup_interval: Span,
    /// How long an nsqlookupd may take to answer. Default 10 s.
    pub lookup_timeout: Span,
    /// After how long an nsqd that no nsqlookupd lists any more is left. Default 2 min: nsqd is
    /// listed anew within half a minute of an nsqlookupd's restart.
    pub grace: Span,
    /// With more nsqds than connections: how long each has one at least, if it works. One that
    /// failed lately takes nobody's turn but for once in five times. Default 1 min.
    pub rotate: Span,
    /// With more connections than messages in flight: how often it is looked whose turn it is, give
    /// or take an eighth. Default 5 s, as go-nsq.
    pub redistribute: Span,
    /// How often a message is delivered at most, 0 for any number. Default 5, as go-nsq.
    pub max_attempts: u16,
    /// What to do with a message that was delivered more often. Default [`Exhausted::Finish`].
    pub exhausted: Exhausted,
    /// What to do with a message that is longer than the whole ring. Default
    /// [`TooLarge::Requeue`].
    pub too_large: TooLarge,
    /// Requeueing without a given delay: this times the number of attempts. Default 90 s, as
    /// go-nsq.
    pub requeue_base: Span,
    /// Requeueing without a given delay: never longer. Default 15 min, as go-nsq.
    pub requeue_cap: Span,
    /// Backoff: the first failure stops everything for up to this; zero is no backoff. Default 1 s.
    pub backoff_base: Span,
    /// Backoff: never longer. Default 2 min.
    pub backoff_cap: Span,
    /// Whether to touch what is in flight by itself, each time half of its timeout is over, as
    /// long as nsqd lets it (`--max-msg-timeout`). Default no: a message that the application has
    /// lost then comes again.
    pub auto_touch: bool,
    /// Makes the jitter of this device differ from that of others. Default 0: set it.
    pub seed: u32,
}

/// What to do with a message that was delivered more than [`Config::max_attempts`] times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Exhausted {
    /// FIN it, count it and say so ([`Event::GivenUp`](super::Event::GivenUp)).
    #[default]
    Finish,
    /// Hand it out marked as [`Delivery::exhausted`](super::Delivery::exhausted): the application
    /// decides, and may put it elsewhere first.
    Deliver,
}

/// What to do with a message that is longer than the whole ring. It is counted in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TooLarge {
    /// REQ it, for a consumer with more room, with a delay that grows with its attempts; once
    /// these are exhausted, [`Exhausted::Finish`] applies to it as well.
    #[default]
    Requeue,
    /// FIN it: nobody gets it.
    Finish,
}

impl Config<'_> {
    /// The defaults.
    pub const fn new(topic: TopicName, channel: ChannelName) -> Self {
        Self {
            topic,
            channel,
            client_id: "nanonsq",
            hostname: "nanonsq",
            user_agent: concat!("nanonsq/", env!("CARGO_PKG_VERSION")),
            auth_secret: None,
            heartbeat: Span::from_secs(30),
            msg_timeout: None,
            output_buffer_timeout: None,
            sample_rate: 0,
            max_in_flight: u16::MAX,
            connect_timeout: Span::from_secs(5),
            reconnect_base: Span::from_millis(100),
            reconnect_cap: Span::from_secs(10),
            reconnect_spread: Span::ZERO,
            left_out_for: Span::from_secs(300),
            drain_timeout: Span::from_secs(5),
            close_timeout: Span::from_secs(1),
            lookup_interval: Span::from_secs(60),
            lookup_timeout: Span::from_secs(10),
            grace: Span::from_secs(120),
            rotate: Span::from_secs(60),
            redistribute: Span::from_secs(5),
            max_attempts: 5,
            exhausted: Exhausted::Finish,
            too_large: TooLarge::Requeue,
            requeue_base: Span::from_secs(90),
            requeue_cap: Span::from_secs(900),
            backoff_base: Span::from_secs(1),
            backoff_cap: Span::from_secs(120),
            auto_touch: false,
            seed: 0,
        }
    }

    /// The delay of a message that fails for the `attempts`th time.
    pub(super) fn requeue_delay(&self, attempts: u16) -> u32 {
        let grown = self.requeue_base.as_millis().saturating_mul(attempts.into());
        grown.min(self.requeue_cap.as_millis())
    }

    pub(super) fn is_exhausted(&self, attempts: u16) -> bool {
        self.max_attempts > 0 && attempts > self.max_attempts
    }

    pub(super) fn identify_request(&self) -> IdentifyRequest<'_> {
        IdentifyRequest {
            client_id: self.client_id,
            hostname: self.hostname,
            user_agent: self.user_agent,
            heartbeat_interval: self.heartbeat.as_millis(),
        }
    }

    /// Whether IDENTIFY has fields that most consumers do not send.
    pub(crate) const fn has_options(&self) -> bool {
        self.msg_timeout.is_some() || self.output_buffer_timeout.is_some() || self.sample_rate > 0
    }

    /// These fields.
    pub(super) fn identify_numbers(&self) -> [IdentifyNumber; 4] {
        let millis = |span: Option<Span>| span.unwrap_or(Span::ZERO).as_millis();
        [
            IdentifyNumber::msg_timeout(millis(self.msg_timeout)),
            IdentifyNumber::sample_rate(self.sample_rate.into()),
            IdentifyNumber::output_buffer_timeout(millis(self.output_buffer_timeout)),
            // Without a timeout, but with a buffer, nsqd would keep a message until the next
            // heartbeat (nsqd/protocol_v2.go, messagePump).
            IdentifyNumber::unbuffered(self.output_buffer_timeout == Some(Span::ZERO)),
        ]
    }

    /// Checks what nsqd would refuse later, and the storage.
    pub(crate) const fn check(
        &self,
        connections: usize,
        nsqds: usize,
        slots: usize,
        ring: usize,
    ) -> Result<(), ConfigError> {
        let ms = self.heartbeat.as_millis();
        if ms < 1000 || ms > 60_000 {
            return Err(ConfigError::Heartbeat { ms });
        }
        if let Some(timeout) = self.msg_timeout
            && timeout.as_millis() < 1000
        {
            return Err(ConfigError::MsgTimeout { ms: timeout.as_millis() });
        }
        if let Some(timeout) = self.output_buffer_timeout {
            let ms = timeout.as_millis();
            if ms > 0 && (ms < 25 || ms > 30_000) {
                return Err(ConfigError::OutputBufferTimeout { ms });
            }
        }
        if self.sample_rate > 99 {
            return Err(ConfigError::SampleRate { percent: self.sample_rate });
        }
        if connections == 0 || connections > u8::MAX as usize {
            return Err(ConfigError::Connections { count: connections });
        }
        if nsqds > u8::MAX as usize {
            return Err(ConfigError::Addresses { count: nsqds });
        }
        if slots == 0 || slots >= u16::MAX as usize {
            return Err(ConfigError::Messages { count: slots });
        }
        if ring < slots.saturating_mul(SLOT_MIN) {
            return Err(ConfigError::RingTooSmall { len: ring });
        }
        Ok(())
    }
}

/// What is wrong with a consumer's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// The heartbeat interval must be 1,000 to 60,000 ms.
    Heartbeat {
        /// What it is.
        ms: u32,
    },
    /// The message timeout must be 1,000 ms or more.
    MsgTimeout {
        /// What it is.
        ms: u32,
    },
    /// The output buffer timeout must be 25 to 30,000 ms, or zero.
    OutputBufferTimeout {
        /// What it is.
        ms: u32,
    },
    /// The sample rate must be 0 to 99.
    SampleRate {
        /// What it is.
        percent: u8,
    },
    /// There must be 1 to 255 connections.
    Connections {
        /// How many there are.
        count: usize,
    },
    /// There must be at most 255 nsqd addresses.
    Addresses {
        /// How many there are.
        count: usize,
    },
    /// More nsqlookupds than the storage has room for, or than [`LOOKUPDS_MAX`].
    Lookupds {
        /// How many there are.
        count: usize,
    },
    /// There must be 1 to 65,534 slots for messages.
    Messages {
        /// How many there are.
        count: usize,
    },
    /// The ring must have at least [`SLOT_MIN`] bytes for each message.
    RingTooSmall {
        /// How many it has in all.
        len: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { ms } => {
                write!(f, "heartbeat interval {ms} ms; nsqd takes 1000 to 60000 ms")
            }
            Self::MsgTimeout { ms } => {
                write!(f, "message timeout {ms} ms; nsqd takes 1000 ms or more")
            }
            Self::OutputBufferTimeout { ms } => {
                write!(f, "output buffer timeout {ms} ms; nsqd takes 25 to 30000 ms, or none")
            }
            Self::SampleRate { percent } => {
                write!(f, "sample rate {percent} percent; nsqd takes 0 to 99")
            }
            Self::Connections { count } => {
                write!(f, "storage for {count} connections; give it 1 to 255")
            }
            Self::Addresses { count } => {
                write!(f, "{count} nsqd addresses given; give at most 255")
            }
            Self::Lookupds { count } => write!(
                f,
                "{count} nsqlookupds are more than the storage has room for, or than {LOOKUPDS_MAX}"
            ),
            Self::Messages { count } => {
                write!(f, "storage for {count} messages; give it 1 to 65534")
            }
            Self::RingTooSmall { len } => {
                write!(f, "the ring has {len} bytes; it needs {SLOT_MIN} for each message at least")
            }
        }
    }
}

impl core::error::Error for ConfigError {}
