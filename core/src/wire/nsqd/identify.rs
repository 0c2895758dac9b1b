//! The body of IDENTIFY, `identifyDataV2` in nsqd/client_v2.go: written by a client and read by a
//! server. [`identify_response`](super::identify_response) has the response.

use core::convert::Infallible;

use super::{Limits, Refusal, Setting};
use crate::wire::json::{Fields, emit_str, fields};
use crate::wire::{ChunkWriter, Write, emit_decimal, emit_len, len_of};

fields! {
    /// Every field of nsqd 1.3.0, and the newer two of the topology.
    pub(super) enum Field {
        ClientId = "client_id",
        Hostname = "hostname",
        UserAgent = "user_agent",
        TopologyRegion = "topology_region",
        TopologyZone = "topology_zone",
        FeatureNegotiation = "feature_negotiation",
        TlsV1 = "tls_v1",
        Snappy = "snappy",
        Deflate = "deflate",
        HeartbeatInterval = "heartbeat_interval",
        OutputBufferSize = "output_buffer_size",
        OutputBufferTimeout = "output_buffer_timeout",
        MsgTimeout = "msg_timeout",
        SampleRate = "sample_rate",
        DeflateLevel = "deflate_level",
    }
}

/// The length of the longest key of [`Field`].
const KEY_MAX: usize = "output_buffer_timeout".len();

/// IDENTIFY of a client. Further fields are [`IdentifyNumber`]s and [`IdentifyOption`]s.
#[derive(Debug, Clone, Copy)]
pub struct IdentifyRequest<'a> {
    /// The client's name for itself; nsqd shows it, or nothing if it is empty.
    pub client_id: &'a str,
    /// The client's host; nsqd shows it.
    pub hostname: &'a str,
    /// The client's library and version, as in `go-nsq/1.1.0`.
    pub user_agent: &'a str,
    /// Milliseconds between heartbeats, 1,000 to 60,000.
    pub heartbeat_interval: u32,
}

/// A number in IDENTIFY that only some clients send. 0, nsqd's default, is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifyNumber {
    key: &'static str,
    number: u32,
}

impl IdentifyNumber {
    /// The size of nsqd's output buffer in bytes: 64 to 65,536; default 16,384.
    pub const fn output_buffer_size(bytes: u32) -> Self {
        Self::new(Field::OutputBufferSize, bytes)
    }

    /// The flush interval of nsqd's output buffer in milliseconds: 25 to 30,000; default 250.
    pub const fn output_buffer_timeout(millis: u32) -> Self {
        Self::new(Field::OutputBufferTimeout, millis)
    }

    /// If `wanted`, nsqd does not buffer (`output_buffer_size` is -1).
    pub const fn unbuffered(wanted: bool) -> Self {
        Self { key: ",\"output_buffer_size\":-", number: wanted as u32 }
    }

    /// How long a message may be in flight before nsqd delivers it again, in milliseconds: 1,000 to
    /// 900,000; default 60,000.
    pub const fn msg_timeout(millis: u32) -> Self {
        Self::new(Field::MsgTimeout, millis)
    }

    /// The percentage of messages to deliver: 1 to 99; the default is all.
    pub const fn sample_rate(percent: u32) -> Self {
        Self::new(Field::SampleRate, percent)
    }

    /// The level of deflate, 1 to 9; default 6, which is also nsqd's highest.
    pub const fn deflate_level(level: u32) -> Self {
        Self::new(Field::DeflateLevel, level)
    }

    const fn new(field: Field, number: u32) -> Self {
        Self { key: field.json_key(), number }
    }
}

/// A flag or text in IDENTIFY that only some clients send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifyOption<'a> {
    key: &'static str,
    value: Value<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Flag(bool),
    Text(&'a str),
}

impl<'a> IdentifyOption<'a> {
    /// Requests TLS after the response.
    pub const fn tls_v1(wanted: bool) -> Self {
        Self::new(Field::TlsV1, Value::Flag(wanted))
    }

    /// Requests snappy; not together with [`deflate`](Self::deflate).
    pub const fn snappy(wanted: bool) -> Self {
        Self::new(Field::Snappy, Value::Flag(wanted))
    }

    /// Requests deflate; not together with [`snappy`](Self::snappy).
    pub const fn deflate(wanted: bool) -> Self {
        Self::new(Field::Deflate, Value::Flag(wanted))
    }

    /// The region of the client (newer than 1.3.0).
    pub const fn topology_region(region: &'a str) -> Self {
        Self::new(Field::TopologyRegion, Value::Text(region))
    }

    /// The zone in that region (newer than 1.3.0).
    pub const fn topology_zone(zone: &'a str) -> Self {
        Self::new(Field::TopologyZone, Value::Text(zone))
    }

    const fn new(field: Field, value: Value<'a>) -> Self {
        Self { key: field.json_key(), value }
    }
}

/// Writes IDENTIFY: the command, the length of its body, and the body.
///
/// `numbers` and `options` are separate parameters, so that the compiler sees which list is empty
/// everywhere in a program and drops the code for it.
pub fn emit_identify(
    w: &mut ChunkWriter<'_>,
    request: &IdentifyRequest<'_>,
    numbers: &[IdentifyNumber],
    options: &[IdentifyOption<'_>],
) -> Result<(), Infallible> {
    w.write_all(b"IDENTIFY\n")?;
    emit_len(w, len_of(|w| emit_body(w, request, numbers, options)))?;
    emit_body(w, request, numbers, options)
}

// Not with `json::Object`, which a publisher needs for nothing else. Not inlined, so that all
// clients of a program share one copy.
fn emit_body(
    w: &mut ChunkWriter<'_>,
    request: &IdentifyRequest<'_>,
    numbers: &[IdentifyNumber],
    options: &[IdentifyOption<'_>],
) -> Result<(), Infallible> {
    w.write_all(b"{\"client_id\":")?;
    emit_str(w, request.client_id)?;
    w.write_all(b",\"hostname\":")?;
    emit_str(w, request.hostname)?;
    w.write_all(b",\"user_agent\":")?;
    emit_str(w, request.user_agent)?;
    w.write_all(b",\"feature_negotiation\":true,\"heartbeat_interval\":")?;
    emit_decimal(w, request.heartbeat_interval)?;
    for IdentifyNumber { key, number } in numbers {
        if *number > 0 {
            w.write_all(key.as_bytes())?;
            emit_decimal(w, *number)?;
        }
    }
    for IdentifyOption { key, value } in options {
        w.write_all(key.as_bytes())?;
        match value {
            Value::Flag(flag) => w.write_all(if *flag { b"true" } else { b"false" })?,
            Value::Text(text) => emit_str(w, text)?,
        }
    }
    w.write_all(b"}")
}

/// The settings that a client requests, as a server reads them: 0 and `false` are nsqd's defaults.
///
/// RAM: 28 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Settings {
    /// Milliseconds between heartbeats: 1,000 to 60,000, or -1 for none; nsqd's default is 30,000.
    pub heartbeat_interval: i32,
    /// The size of nsqd's output buffer in bytes: 64 to 65,536, or -1 for none; default 16,384.
    pub output_buffer_size: i32,
    /// The flush interval in milliseconds: 25 to 30,000, or -1 for none; default 250.
    pub output_buffer_timeout: i32,
    /// How long a message may be in flight before nsqd delivers it again, in milliseconds: 1,000 to
    /// 900,000; default 60,000.
    pub msg_timeout: i32,
    /// The percentage of messages to deliver: 1 to 99; the default is all.
    pub sample_rate: i32,
    /// The level of deflate. Not checked: nsqd clamps any level to 1 to its highest, 6.
    pub deflate_level: i32,
    /// True to be answered with an [`IdentifyResponse`](super::IdentifyResponse) rather than `OK`.
    pub feature_negotiation: bool,
    /// True if TLS is requested.
    pub tls_v1: bool,
    /// True if snappy is requested.
    pub snappy: bool,
    /// True if deflate is requested.
    pub deflate: bool,
}

impl Settings {
    /// Creates settings that request nothing.
    pub const fn new() -> Self {
        Self {
            heartbeat_interval: 0,
            output_buffer_size: 0,
            output_buffer_timeout: 0,
            msg_timeout: 0,
            sample_rate: 0,
            deflate_level: 0,
            feature_negotiation: false,
            tls_v1: false,
            snappy: false,
            deflate: false,
        }
    }

    /// Checks the settings as nsqd with these limits does, and returns its refusal if it refuses.
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

/// IDENTIFY as a server keeps it: texts are cut after `N` bytes.
///
/// RAM: 5 (`N` + 1) + 28 bytes, rounded up to 4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Identification<const N: usize> {
    /// The client's name for itself; empty if absent.
    pub client_id: heapless::String<N, u8>,
    /// The client's host; empty if absent.
    pub hostname: heapless::String<N, u8>,
    /// The client's library and version; empty if absent. Starts with `tokio_nsq/` for the only
    /// client that does not survive an error frame.
    pub user_agent: heapless::String<N, u8>,
    /// The region of the client (newer than 1.3.0); empty if absent.
    pub topology_region: heapless::String<N, u8>,
    /// The zone in that region (newer than 1.3.0); empty if absent.
    pub topology_zone: heapless::String<N, u8>,
    /// The fields that are not text.
    pub settings: Settings,
}

impl<const N: usize> Identification<N> {
    /// Creates the identification of a client that sent no fields.
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

/// Reads the body of IDENTIFY in pieces, for a server. Keeps only the result.
///
/// `S` bounds a string while it is scanned, at least 21 for the keys; `N` bounds each kept text.
///
/// RAM: `S` + 24 bytes and the [`Identification`].
#[derive(Debug, Clone)]
pub struct IdentifyScanner<const S: usize, const N: usize> {
    fields: Fields<S>,
    identification: Identification<N>,
}

impl<const S: usize, const N: usize> IdentifyScanner<S, N> {
    /// Creates a scanner for a new body.
    pub const fn new() -> Self {
        const { assert!(S >= KEY_MAX) }
        Self { fields: Fields::new(), identification: Identification::new() }
    }

    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self =
        Self { fields: Fields::ZERO, identification: Identification::new() };

    /// Reads the next piece of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal<'static>> {
        let mut bytes = bytes;
        while let Some(key) =
            self.fields.take(Field::KEYS, &mut bytes).map_err(|_| Refusal::BadJson)?
        {
            if self.keep(key).is_none() {
                self.fields.refuse();
                return Err(Refusal::BadJson);
            }
        }
        Ok(())
    }

    /// Checks the complete body against the limits as nsqd does, and returns the fields.
    pub fn finish(&mut self, limits: &Limits) -> Result<&Identification<N>, Refusal<'static>> {
        self.fields.finish().map_err(|_| Refusal::BadJson)?;
        self.identification.settings.check(limits)?;
        Ok(&self.identification)
    }

    /// Returns the fields read so far.
    pub const fn identification(&self) -> &Identification<N> {
        &self.identification
    }

    /// Stores the value of a field; `None` if the value has the wrong type.
    fn keep(&mut self, key: u8) -> Option<()> {
        let Self { fields, identification } = self;
        let settings = &mut identification.settings;
        let (text, flag, number) = (fields.string(), fields.flag(), fields.exact());
        match Field::at(key)? {
            Field::ClientId => text?.store(&mut identification.client_id),
            Field::Hostname => text?.store(&mut identification.hostname),
            Field::UserAgent => text?.store(&mut identification.user_agent),
            Field::TopologyRegion => text?.store(&mut identification.topology_region),
            Field::TopologyZone => text?.store(&mut identification.topology_zone),
            Field::FeatureNegotiation => settings.feature_negotiation = flag?,
            Field::TlsV1 => settings.tls_v1 = flag?,
            Field::Snappy => settings.snappy = flag?,
            Field::Deflate => settings.deflate = flag?,
            Field::HeartbeatInterval => settings.heartbeat_interval = number?,
            Field::OutputBufferSize => settings.output_buffer_size = number?,
            Field::OutputBufferTimeout => settings.output_buffer_timeout = number?,
            Field::MsgTimeout => settings.msg_timeout = number?,
            Field::SampleRate => settings.sample_rate = number?,
            Field::DeflateLevel => settings.deflate_level = number?,
        }
        Some(())
    }
}

impl<const S: usize, const N: usize> Default for IdentifyScanner<S, N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_longer_than_the_longest() {
        assert_eq!(Field::KEYS.iter().map(|key| key.len()).max(), Some(KEY_MAX));
    }
}
