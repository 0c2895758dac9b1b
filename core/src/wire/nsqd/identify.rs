//! IDENTIFY: the request, as clients write it and as a server reads it, and the answer's writer.

use serde::Deserialize;

use super::{Limits, Refusal, Setting};
use crate::wire::json::{Fields, Object};
use crate::wire::{Write, len_of};

/// IDENTIFY's body (`nsqd/client_v2.go`, `identifyDataV2`). What is `None` is not sent.
///
/// Build one in a constant: `IdentifyRequest { client_id: Some("a"), ..IdentifyRequest::new() }`.
///
/// With serde, absent keys and `null` read as `None`, unknown keys and those in another case are
/// ignored, and strings stay as they were escaped; [`IdentifyScanner`] reads it in pieces, as nsqd
/// does, and unescapes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[serde(default)]
pub struct IdentifyRequest<'a> {
    /// What the client calls itself; nsqd shows it, and shows nothing if it is not given.
    #[serde(borrow)]
    pub client_id: Option<&'a str>,
    /// The client's host; nsqd shows it.
    #[serde(borrow)]
    pub hostname: Option<&'a str>,
    /// The client's library and version, as in `go-nsq/1.1.0`.
    #[serde(borrow)]
    pub user_agent: Option<&'a str>,
    /// Asks for an answer in JSON rather than `OK`.
    pub feature_negotiation: Option<bool>,
    /// Milliseconds between heartbeats: 1,000 to 60,000, or -1 for none; nsqd's default is 30,000.
    pub heartbeat_interval: Option<i32>,
    /// Bytes that nsqd buffers: 64 to 65,536, or -1 for none; default 16,384.
    pub output_buffer_size: Option<i32>,
    /// Milliseconds that nsqd buffers: 25 to 30,000, or -1 for none; default 250.
    pub output_buffer_timeout: Option<i32>,
    /// Milliseconds until a message in flight is delivered again: 1,000 to 900,000; default 60,000.
    pub msg_timeout: Option<i32>,
    /// Percent of the messages to deliver, 0 to 99; 0, the default, is all.
    pub sample_rate: Option<i32>,
    /// Asks for TLS after the answer.
    pub tls_v1: Option<bool>,
    /// Asks for snappy; not together with `deflate`.
    pub snappy: Option<bool>,
    /// Asks for deflate; not together with `snappy`.
    pub deflate: Option<bool>,
    /// Deflate's level, 1 to 9; default 6, which is also the most that nsqd does.
    pub deflate_level: Option<i32>,
    /// Where the client is (newer than 1.3.0).
    #[serde(borrow)]
    pub topology_region: Option<&'a str>,
    /// Where in the region the client is (newer than 1.3.0).
    #[serde(borrow)]
    pub topology_zone: Option<&'a str>,
}

impl<'a> IdentifyRequest<'a> {
    /// Nothing asked for: `{}`.
    pub const fn new() -> Self {
        Self {
            client_id: None,
            hostname: None,
            user_agent: None,
            feature_negotiation: None,
            heartbeat_interval: None,
            output_buffer_size: None,
            output_buffer_timeout: None,
            msg_timeout: None,
            sample_rate: None,
            tls_v1: None,
            snappy: None,
            deflate: None,
            deflate_level: None,
            topology_region: None,
            topology_zone: None,
        }
    }

    /// Writes the JSON.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        text(&mut object, CLIENT_ID, self.client_id)?;
        text(&mut object, HOSTNAME, self.hostname)?;
        text(&mut object, USER_AGENT, self.user_agent)?;
        bool(&mut object, FEATURE_NEGOTIATION, self.feature_negotiation)?;
        number(&mut object, HEARTBEAT_INTERVAL, self.heartbeat_interval)?;
        number(&mut object, OUTPUT_BUFFER_SIZE, self.output_buffer_size)?;
        number(&mut object, OUTPUT_BUFFER_TIMEOUT, self.output_buffer_timeout)?;
        number(&mut object, MSG_TIMEOUT, self.msg_timeout)?;
        number(&mut object, SAMPLE_RATE, self.sample_rate)?;
        bool(&mut object, TLS_V1, self.tls_v1)?;
        bool(&mut object, SNAPPY, self.snappy)?;
        bool(&mut object, DEFLATE, self.deflate)?;
        number(&mut object, DEFLATE_LEVEL, self.deflate_level)?;
        text(&mut object, TOPOLOGY_REGION, self.topology_region)?;
        text(&mut object, TOPOLOGY_ZONE, self.topology_zone)?;
        object.end()
    }

    /// How many bytes that is.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }

    /// All of it that is not text.
    pub const fn settings(&self) -> Settings {
        const fn number(value: Option<i32>) -> i32 {
            match value {
                Some(value) => value,
                None => 0,
            }
        }
        const fn flag(value: Option<bool>) -> bool {
            matches!(value, Some(true))
        }
        Settings {
            heartbeat_interval: number(self.heartbeat_interval),
            output_buffer_size: number(self.output_buffer_size),
            output_buffer_timeout: number(self.output_buffer_timeout),
            msg_timeout: number(self.msg_timeout),
            sample_rate: number(self.sample_rate),
            deflate_level: number(self.deflate_level),
            feature_negotiation: flag(self.feature_negotiation),
            tls_v1: flag(self.tls_v1),
            snappy: flag(self.snappy),
            deflate: flag(self.deflate),
        }
    }

    /// Whether nsqd with these limits takes the request, and if not, with what it refuses.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal<'static>> {
        self.settings().check(limits)
    }
}

/// What a client asked for, as a server reads it: 0 and `false` are the same as nothing. RAM: 28
/// bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Settings {
    /// See [`IdentifyRequest::heartbeat_interval`]; likewise the other fields.
    pub heartbeat_interval: i32,
    /// In bytes, or -1.
    pub output_buffer_size: i32,
    /// In milliseconds, or -1.
    pub output_buffer_timeout: i32,
    /// In milliseconds.
    pub msg_timeout: i32,
    /// In percent.
    pub sample_rate: i32,
    /// Not checked: nsqd takes any and clamps it.
    pub deflate_level: i32,
    /// Answer with an [`IdentifyResponse`] rather than `OK`.
    pub feature_negotiation: bool,
    /// TLS is asked for.
    pub tls_v1: bool,
    /// Snappy is asked for.
    pub snappy: bool,
    /// Deflate is asked for.
    pub deflate: bool,
}

impl Settings {
    /// Nothing asked for.
    pub const fn new() -> Self {
        IdentifyRequest::new().settings()
    }

    /// Whether nsqd with these limits takes them, and if not, with what it refuses.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal<'static>> {
        // In nsqd's order.
        let ranges = [
            (
                Setting::HeartbeatInterval,
                self.heartbeat_interval,
                1000,
                limits.max_heartbeat_interval_ms,
            ),
            (
                Setting::OutputBufferTimeout,
                self.output_buffer_timeout,
                limits.min_output_buffer_timeout_ms,
                limits.max_output_buffer_timeout_ms,
            ),
            (Setting::OutputBufferSize, self.output_buffer_size, 64, limits.max_output_buffer_size),
            (Setting::SampleRate, self.sample_rate, 1, 99),
            (Setting::MsgTimeout, self.msg_timeout, 1000, limits.max_msg_timeout_ms),
        ];
        for (setting, value, low, high) in ranges {
            let can_be_off = !matches!(setting, Setting::SampleRate | Setting::MsgTimeout);
            // 0 is nsqd's default.
            let fits = value == 0
                || (value == -1 && can_be_off)
                || u32::try_from(value).is_ok_and(|value| low <= value && value <= high);
            if !fits {
                return Err(Refusal::BadSetting { setting, value });
            }
        }
        let both = (limits.deflate && self.deflate) && (limits.snappy && self.snappy);
        if both && self.feature_negotiation {
            return Err(Refusal::BothCompressions);
        }
        Ok(())
    }
}

/// A request as a server keeps it: its strings in `N` bytes each, longer ones cut.
///
/// RAM: 5 (`N` + 1) + 28 bytes, rounded up to 4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identification<const N: usize> {
    /// See [`IdentifyRequest::client_id`]; likewise the other fields. Empty if absent.
    pub client_id: heapless::String<N, u8>,
    /// Empty if absent.
    pub hostname: heapless::String<N, u8>,
    /// Empty if absent. Starts with `tokio_nsq/` for the one client that does not survive an
    /// error frame.
    pub user_agent: heapless::String<N, u8>,
    /// Empty if absent.
    pub topology_region: heapless::String<N, u8>,
    /// Empty if absent.
    pub topology_zone: heapless::String<N, u8>,
    /// All that is not text.
    pub settings: Settings,
}

impl<const N: usize> Identification<N> {
    /// As of a client that sent nothing.
    pub const fn new() -> Self {
        Self {
            client_id: heapless::String::new(),
            hostname: heapless::String::new(),
            user_agent: heapless::String::new(),
            topology_region: heapless::String::new(),
            topology_zone: heapless::String::new(),
            settings: Settings::new(),
        }
    }
}

const KEYS: [&str; 15] = [
    CLIENT_ID,
    HOSTNAME,
    USER_AGENT,
    TOPOLOGY_REGION,
    TOPOLOGY_ZONE,
    FEATURE_NEGOTIATION,
    TLS_V1,
    SNAPPY,
    DEFLATE,
    HEARTBEAT_INTERVAL,
    OUTPUT_BUFFER_SIZE,
    OUTPUT_BUFFER_TIMEOUT,
    MSG_TIMEOUT,
    SAMPLE_RATE,
    DEFLATE_LEVEL,
];

/// Reads an IDENTIFY body in pieces, as a server. No piece of it is kept but the result.
///
/// `S` bounds a string while it is scanned, at least 21 for the keys; `N` what is kept of it.
///
/// RAM: `S` + 24 bytes and the [`Identification`].
#[derive(Debug, Clone)]
pub struct IdentifyScanner<const S: usize, const N: usize> {
    fields: Fields<S>,
    identification: Identification<N>,
}

impl<const S: usize, const N: usize> IdentifyScanner<S, N> {
    /// Before the first byte.
    pub const fn new() -> Self {
        const { assert!(S >= OUTPUT_BUFFER_TIMEOUT.len()) }
        Self { fields: Fields::new(), identification: Identification::new() }
    }

    /// Takes the next piece of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal<'static>> {
        let mut bytes = bytes;
        while let Some(key) = self.fields.take(&KEYS, &mut bytes).map_err(|_| Refusal::BadJson)? {
            if self.keep(key).is_none() {
                self.fields.refuse();
                return Err(Refusal::BadJson);
            }
        }
        Ok(())
    }

    /// The body is complete: checks it against the limits as nsqd does.
    pub fn finish(&mut self, limits: &Limits) -> Result<&Identification<N>, Refusal<'static>> {
        self.fields.finish().map_err(|_| Refusal::BadJson)?;
        self.identification.settings.check(limits)?;
        Ok(&self.identification)
    }

    /// What was read so far.
    pub const fn identification(&self) -> &Identification<N> {
        &self.identification
    }

    /// `None` if the value has the wrong type.
    fn keep(&mut self, key: u8) -> Option<()> {
        let Self { fields, identification } = self;
        let settings = &mut identification.settings;
        let (text, flag, number) = (fields.string(), fields.flag(), fields.exact());
        match key {
            0 => text?.store(&mut identification.client_id),
            1 => text?.store(&mut identification.hostname),
            2 => text?.store(&mut identification.user_agent),
            3 => text?.store(&mut identification.topology_region),
            4 => text?.store(&mut identification.topology_zone),
            5 => settings.feature_negotiation = flag?,
            6 => settings.tls_v1 = flag?,
            7 => settings.snappy = flag?,
            8 => settings.deflate = flag?,
            9 => settings.heartbeat_interval = number?,
            10 => settings.output_buffer_size = number?,
            11 => settings.output_buffer_timeout = number?,
            12 => settings.msg_timeout = number?,
            13 => settings.sample_rate = number?,
            _ => settings.deflate_level = number?,
        }
        Some(())
    }
}

impl<const S: usize, const N: usize> Default for IdentifyScanner<S, N> {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer to an IDENTIFY that asked for `feature_negotiation`.
///
/// tokio-nsq needs the first 13 fields, each in its range, or gives the server up for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[serde(default)]
pub struct IdentifyResponse<'a> {
    /// The largest RDY; 1 to 65,535.
    pub max_rdy_count: u32,
    /// The server's version, as in `1.3.0`.
    pub version: &'a str,
    /// In milliseconds.
    pub max_msg_timeout: u32,
    /// This connection's, in milliseconds.
    pub msg_timeout: u32,
    /// TLS follows.
    pub tls_v1: bool,
    /// Deflate follows.
    pub deflate: bool,
    /// Deflate's level.
    pub deflate_level: u32,
    /// The server's highest.
    pub max_deflate_level: u32,
    /// Snappy follows.
    pub snappy: bool,
    /// In percent; 0 is all messages.
    pub sample_rate: u32,
    /// AUTH is needed before anything else.
    pub auth_required: bool,
    /// In bytes.
    pub output_buffer_size: u32,
    /// In milliseconds.
    pub output_buffer_timeout: u32,
    /// The server's (newer than 1.3.0).
    pub topology_region: &'a str,
    /// The server's (newer than 1.3.0).
    pub topology_zone: &'a str,
}

impl IdentifyResponse<'_> {
    /// Writes the JSON, its keys in nsqd's order.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.number(MAX_RDY_COUNT, self.max_rdy_count)?;
        object.string("version", self.version)?;
        object.number(MAX_MSG_TIMEOUT, self.max_msg_timeout)?;
        object.number(MSG_TIMEOUT, self.msg_timeout)?;
        object.bool(TLS_V1, self.tls_v1)?;
        object.bool(DEFLATE, self.deflate)?;
        object.number(DEFLATE_LEVEL, self.deflate_level)?;
        object.number("max_deflate_level", self.max_deflate_level)?;
        object.bool(SNAPPY, self.snappy)?;
        object.number(SAMPLE_RATE, self.sample_rate)?;
        object.bool(AUTH_REQUIRED, self.auth_required)?;
        object.number(OUTPUT_BUFFER_SIZE, self.output_buffer_size)?;
        object.number(OUTPUT_BUFFER_TIMEOUT, self.output_buffer_timeout)?;
        object.string(TOPOLOGY_REGION, self.topology_region)?;
        object.string(TOPOLOGY_ZONE, self.topology_zone)?;
        object.end()
    }

    /// How many bytes that is; nsqd's is 304.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

impl Default for IdentifyResponse<'_> {
    /// nsqd 1.3.0 with default options, to a client that asked for nothing.
    fn default() -> Self {
        Self {
            max_rdy_count: 2500,
            version: "1.3.0",
            max_msg_timeout: 900_000,
            msg_timeout: 60_000,
            tls_v1: false,
            deflate: false,
            deflate_level: 6,
            max_deflate_level: 6,
            snappy: false,
            sample_rate: 0,
            auth_required: false,
            output_buffer_size: 16_384,
            output_buffer_timeout: 250,
            topology_region: "",
            topology_zone: "",
        }
    }
}

fn text<W: Write>(
    object: &mut Object<'_, W>,
    key: &str,
    value: Option<&str>,
) -> Result<(), W::Error> {
    value.map_or(Ok(()), |value| object.string(key, value))
}

fn number<W: Write>(
    object: &mut Object<'_, W>,
    key: &str,
    value: Option<i32>,
) -> Result<(), W::Error> {
    value.map_or(Ok(()), |value| object.signed(key, value))
}

fn bool<W: Write>(
    object: &mut Object<'_, W>,
    key: &str,
    value: Option<bool>,
) -> Result<(), W::Error> {
    value.map_or(Ok(()), |value| object.bool(key, value))
}

const CLIENT_ID: &str = "client_id";
const HOSTNAME: &str = "hostname";
const USER_AGENT: &str = "user_agent";
const FEATURE_NEGOTIATION: &str = "feature_negotiation";
const HEARTBEAT_INTERVAL: &str = "heartbeat_interval";
const OUTPUT_BUFFER_SIZE: &str = "output_buffer_size";
const OUTPUT_BUFFER_TIMEOUT: &str = "output_buffer_timeout";
pub(super) const MSG_TIMEOUT: &str = "msg_timeout";
pub(super) const MAX_MSG_TIMEOUT: &str = "max_msg_timeout";
pub(super) const MAX_RDY_COUNT: &str = "max_rdy_count";
pub(super) const AUTH_REQUIRED: &str = "auth_required";
pub(super) const SAMPLE_RATE: &str = "sample_rate";
pub(super) const TLS_V1: &str = "tls_v1";
pub(super) const SNAPPY: &str = "snappy";
pub(super) const DEFLATE: &str = "deflate";
const DEFLATE_LEVEL: &str = "deflate_level";
const TOPOLOGY_REGION: &str = "topology_region";
const TOPOLOGY_ZONE: &str = "topology_zone";
