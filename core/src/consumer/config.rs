//! The configuration of a consumer.

use core::fmt;

use super::LOOKUPDS_MAX;
use crate::name::{ChannelName, TopicName};
use crate::time::Span;
use crate::wire::nsqd::{IdentifyNumber, IdentifyRequest, MessageHead};

/// The minimum number of ring bytes for each message in flight: its head and a body of 6 bytes.
pub const SLOT_MIN: usize = MessageHead::LEN + 6;

/// The settings of a [`Consumer`](super::Consumer), which borrows them: a constant costs no RAM.
///
/// ```
/// use nanonsq_core::consumer::Config;
/// use nanonsq_core::name::{ChannelName, TopicName};
/// use nanonsq_core::time::Span;
///
/// const TOPIC: TopicName = match TopicName::new("readings") {
///     Ok(topic) => topic,
///     Err(_) => panic!("invalid topic name"),
/// };
/// const CHANNEL: ChannelName = match ChannelName::new("archive") {
///     Ok(channel) => channel,
///     Err(_) => panic!("invalid channel name"),
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
    /// The topic to consume; nsqd creates it if necessary.
    pub topic: TopicName,
    /// The channel of the topic; nsqd creates it if necessary.
    pub channel: ChannelName,
    /// The `client_id` of IDENTIFY, which nsqadmin shows. Default `nanonsq`.
    pub client_id: &'a str,
    /// The `hostname` of IDENTIFY. Default `nanonsq`.
    pub hostname: &'a str,
    /// The `user_agent` of IDENTIFY and of HTTP requests. Default `nanonsq/VERSION`.
    pub user_agent: &'a str,
    /// The secret for AUTH, sent only to an nsqd that requires it. Default none.
    pub auth_secret: Option<&'a [u8]>,
    /// The interval of nsqd's heartbeats, 1 s to 60 s. After two intervals of silence the
    /// connection counts as dead. Default 30 s.
    pub heartbeat: Span,
    /// The time after which nsqd requeues an unanswered message, from 1 s to nsqd's
    /// `--max-msg-timeout` (15 min). Default none: nsqd's own `--msg-timeout` (60 s).
    pub msg_timeout: Option<Span>,
    /// The time for which nsqd may buffer a message to send it together with later ones: 25 ms to
    /// 30 s, or zero to send each message at once, in several packets. nsqd buffers no message
    /// while as many are in flight as RDY allows. Default none: nsqd's own
    /// `--output-buffer-timeout` (250 ms), which every nsqd accepts.
    pub output_buffer_timeout: Option<Span>,
    /// The percentage of the channel's messages to receive, 1 to 99; nsqd discards the others that
    /// it would deliver to this consumer. Default 0: all messages.
    pub sample_rate: u8,
    /// The maximum number of messages in flight on all connections together, also limited by the
    /// slots of the storage. More messages than nsqds keep each nsqd busy. Default: all slots.
    pub max_in_flight: u16,
    /// The timeout of a dial, and of each response of the handshake. Default 5 s. While other nsqds
    /// wait for a connection, at most 1 s, which doubles each time all nsqds have been tried
    /// without a change.
    pub connect_timeout: Span,
    /// The longest wait after the first failure to connect; doubles with each further failure.
    /// Default 100 ms.
    pub reconnect_base: Span,
    /// The longest wait before an nsqd that cannot be reached is dialed again. Default 10 s. If
    /// nsqd accepted the connection, but the connection neither lasted for 10 s nor delivered a
    /// message, the wait is up to 1 s, then 2 s, up to 16 s, or this if it is longer.
    pub reconnect_cap: Span,
    /// The time over which the first dial after a loss is spread. Set it to seconds for a fleet of
    /// thousands. Default none.
    pub reconnect_spread: Span,
    /// The time for which an nsqd is left out after a permanent refusal
    /// ([`ConnectionEvent::LeftOut`](super::ConnectionEvent::LeftOut)): it requires TLS, the secret
    /// is wrong, or the topic or channel is invalid. Its connection goes to another nsqd if one
    /// waits. Default 5 min.
    pub left_out_for: Span,
    /// The time in which the application may answer messages in flight before a connection closes;
    /// the remaining messages are requeued. Default 5 s.
    pub drain_timeout: Span,
    /// The timeout of the close that follows. Default 1 s.
    pub close_timeout: Span,
    /// The longest time from the answer of an nsqlookupd to its next query, which may be up to a
    /// quarter earlier. A new nsqd is found within this time. Default 60 s, as in go-nsq. While an
    /// nsqd fails and others wait for a connection, the next query follows after 0.5 s; that time
    /// doubles each time all nsqds have been tried without a change, up to a quarter of the
    /// interval.
    pub lookup_interval: Span,
    /// The timeout of an nsqlookupd's answer. Default 10 s.
    pub lookup_timeout: Span,
    /// The time after which an nsqd that no nsqlookupd lists any more is left. Default 2 min: after
    /// a restart of an nsqlookupd, nsqds register again within half a minute.
    pub grace: Span,
    /// With more nsqds than connections: the shortest time for which a working nsqd keeps its
    /// connection. An nsqd that failed recently replaces a working one only once in five such
    /// times. Default 1 min.
    pub rotate: Span,
    /// With more connections than messages in flight: the interval, give or take an eighth, at
    /// which RDY is redistributed. Default 5 s, as in go-nsq.
    pub redistribute: Span,
    /// The maximum number of deliveries of a message, 0 for no limit. Default 5, as in go-nsq.
    pub max_attempts: u16,
    /// The treatment of a message that was delivered more often. Default [`Exhausted::Finish`].
    pub exhausted: Exhausted,
    /// The treatment of a message that is longer than the whole ring. Default
    /// [`TooLarge::Requeue`].
    pub too_large: TooLarge,
    /// The delay of a requeue without a given delay is this times the number of attempts. Default
    /// 90 s, as in go-nsq.
    pub requeue_base: Span,
    /// The longest delay of a requeue without a given delay. Default 15 min, as in go-nsq.
    pub requeue_cap: Span,
    /// The longest time for which the first failure sets RDY to 0; zero disables backoff.
    /// Default 1 s.
    pub backoff_base: Span,
    /// The longest time for which any failure sets RDY to 0. Default 2 min.
    pub backoff_cap: Span,
    /// True to touch messages in flight automatically, each time half of their timeout has passed,
    /// as long as nsqd allows (`--max-msg-timeout`). Default false: nsqd then delivers a message
    /// again that the application has lost.
    pub auto_touch: bool,
    /// The seed of the jitter, which should differ between devices. Default 0.
    pub seed: u32,
}

/// The treatment of a message that was delivered more than [`Config::max_attempts`] times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Exhausted {
    /// Finish the message, count it and report it ([`Event::GivenUp`](super::Event::GivenUp)).
    #[default]
    Finish,
    /// Deliver the message marked as [`Delivery::exhausted`](super::Delivery::exhausted): the
    /// application decides, and may store the message elsewhere first.
    Deliver,
}

/// The treatment of a message that is longer than the whole ring. Each such message is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TooLarge {
    /// Requeue the message for a consumer with more room, with a delay that grows with the
    /// attempts. Once these are exhausted, [`Exhausted::Finish`] applies.
    #[default]
    Requeue,
    /// Finish the message: no consumer gets it.
    Finish,
}

impl Config<'_> {
    /// Returns the default settings.
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

    /// Returns the delay in milliseconds for a message that fails in attempt `attempts`.
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

    /// Returns whether IDENTIFY has fields that most consumers do not send.
    pub(crate) const fn has_options(&self) -> bool {
        self.msg_timeout.is_some() || self.output_buffer_timeout.is_some() || self.sample_rate > 0
    }

    /// Returns these fields.
    pub(super) fn identify_numbers(&self) -> [IdentifyNumber; 4] {
        let millis = |span: Option<Span>| span.unwrap_or(Span::ZERO).as_millis();
        [
            IdentifyNumber::msg_timeout(millis(self.msg_timeout)),
            IdentifyNumber::sample_rate(self.sample_rate.into()),
            IdentifyNumber::output_buffer_timeout(millis(self.output_buffer_timeout)),
            // With a buffer but no timeout, nsqd would hold a message until the next heartbeat
            // (nsqd/protocol_v2.go, messagePump).
            IdentifyNumber::unbuffered(self.output_buffer_timeout == Some(Span::ZERO)),
        ]
    }

    /// Checks the settings that nsqd would refuse later, and the storage.
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

/// The error in a consumer's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// The heartbeat interval must be 1,000 to 60,000 ms.
    Heartbeat {
        /// The configured interval in milliseconds.
        ms: u32,
    },
    /// The message timeout must be 1,000 ms or more.
    MsgTimeout {
        /// The configured timeout in milliseconds.
        ms: u32,
    },
    /// The output buffer timeout must be 25 to 30,000 ms, or zero.
    OutputBufferTimeout {
        /// The configured timeout in milliseconds.
        ms: u32,
    },
    /// The sample rate must be 0 to 99.
    SampleRate {
        /// The configured percentage.
        percent: u8,
    },
    /// The storage must have 1 to 255 connections.
    Connections {
        /// The number of connections.
        count: usize,
    },
    /// At most 255 nsqd addresses may be given.
    Addresses {
        /// The number of addresses.
        count: usize,
    },
    /// There are more nsqlookupds than the storage has room for, or than [`LOOKUPDS_MAX`].
    Lookupds {
        /// The number of nsqlookupds.
        count: usize,
    },
    /// The storage must have 1 to 65,534 slots for messages.
    Messages {
        /// The number of slots.
        count: usize,
    },
    /// The ring must have at least [`SLOT_MIN`] bytes for each message.
    RingTooSmall {
        /// The length of the ring in bytes.
        len: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Heartbeat { ms } => {
                write!(f, "heartbeat interval {ms} ms; nsqd accepts 1000 to 60000 ms")
            }
            Self::MsgTimeout { ms } => {
                write!(f, "message timeout {ms} ms; nsqd accepts 1000 ms or more")
            }
            Self::OutputBufferTimeout { ms } => {
                write!(f, "output buffer timeout {ms} ms; nsqd accepts 25 to 30000 ms, or 0")
            }
            Self::SampleRate { percent } => {
                write!(f, "sample rate {percent} percent; nsqd accepts 0 to 99")
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
                write!(f, "the ring has {len} bytes; it needs at least {SLOT_MIN} for each message")
            }
        }
    }
}

impl core::error::Error for ConfigError {}
