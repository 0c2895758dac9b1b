//! Readings, reports and replies as JSON.

use nanonsq_core::publisher::Counters;
use serde::Serialize;

/// The longest reading as JSON, in bytes. Longer ones are not published.
pub const READING_MAX: usize = 256;
/// Buffer for a report as JSON, in bytes; the largest counters fit.
pub const REPORT_MAX: usize = 512;
/// Buffer for a reply as JSON, in bytes; the longest text and the largest counters fit.
pub const REPLY_MAX: usize = 832;

/// Bytes of the device's name that a message contains.
const DEVICE_MAX: usize = 32;

/// A reading, numbered so that consumers can detect gaps and repetitions.
///
/// `{"device":"greenhouse","number":7,"uptime_ms":7031,"values":{"temperature_mc":21500}}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reading<'a, V> {
    /// The device's name.
    pub device: &'a str,
    /// Number of the reading since the device's start, from 0.
    pub number: u32,
    /// Time of the reading in milliseconds since the device's start.
    pub uptime_ms: u32,
    /// The values of the sensor.
    pub values: V,
}

/// The counters of the device.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The device's name.
    pub device: &'a str,
    /// Seconds since the device's start.
    pub uptime_s: u32,
    /// Readings taken.
    pub readings: u32,
    /// Failed reads of the sensor.
    pub sensor_faults: u32,
    /// Current time from one reading to the next in milliseconds.
    pub period_ms: u32,
    /// Commands answered, including invalid ones.
    pub commands: u32,
    /// Counters of the publisher or nsqd, without this report.
    pub counters: Counters,
}

/// [`Report`] as one flat JSON object.
#[derive(Serialize)]
struct Flat<'a> {
    device: &'a str,
    uptime_s: u32,
    readings: u32,
    sensor_faults: u32,
    period_ms: u32,
    commands: u32,
    accepted: u64,
    acknowledged: u64,
    rejected: u64,
    expired: u64,
    dropped: u64,
    pending: u64,
    refused: u64,
    possible_duplicates: u64,
    connections: u32,
    failures: u32,
    heartbeats: u32,
}

impl Serialize for Report<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { device, uptime_s, readings, sensor_faults, period_ms, commands, counters } =
            *self;
        let flat = Flat {
            device,
            uptime_s,
            readings,
            sensor_faults,
            period_ms,
            commands,
            accepted: counters.accepted,
            acknowledged: counters.acknowledged,
            rejected: counters.rejected,
            expired: counters.expired,
            dropped: counters.dropped,
            pending: counters.pending,
            refused: counters.refused,
            possible_duplicates: counters.possible_duplicates,
            connections: counters.connections,
            failures: counters.failures,
            heartbeats: counters.heartbeats,
        };
        flat.serialize(serializer)
    }
}

/// The answer to a command.
///
/// `{"device":"greenhouse","id":"7","ok":true,"text":"interval is 5000 ms"}`
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Reply<'a> {
    /// The device's name.
    pub device: &'a str,
    /// The `#id` of the command, or nsqd's id of its message.
    pub id: &'a str,
    /// True if the command was valid. An invalid command changes nothing.
    pub ok: bool,
    /// The effect; for an invalid command the reason and the valid commands.
    pub text: &'a str,
    /// The counters, for `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Report<'a>>,
}

/// Serializes the message as JSON; `None` if it is longer than `buf`.
pub(crate) fn json<'b>(message: &impl Serialize, buf: &'b mut [u8]) -> Option<&'b [u8]> {
    let len = serde_json_core::to_slice(message, buf).ok()?;
    buf.get(..len)
}

/// Cuts a name to at most [`DEVICE_MAX`] bytes, between characters.
pub(crate) fn short(device: &str) -> &str {
    let end = (0..=DEVICE_MAX).rev().find(|&end| device.is_char_boundary(end.min(device.len())));
    let end = end.unwrap_or_default().min(device.len());
    device.get(..end).unwrap_or_default()
}
