//! The messages, as JSON.

use nanonsq_core::publisher::Counters;
use serde::Serialize;

/// Room for a reading as JSON.
pub const READING_MAX: usize = 256;
/// Room for a report as JSON; all counters at their largest fit.
pub const REPORT_MAX: usize = 512;
/// Room for a reply as JSON: one with the counters, or one with a long text.
pub const REPLY_MAX: usize = 832;

/// Bytes of the device's name that go into a message.
const DEVICE_MAX: usize = 32;

/// A reading, with what it takes to find gaps and repetitions.
///
/// `{"device":"greenhouse","number":7,"uptime_ms":7031,"values":{"temperature_mc":21500}}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reading<'a, V> {
    /// Which device.
    pub device: &'a str,
    /// Counts the device's readings since its start, from 0.
    pub number: u32,
    /// When it was taken, since the device's start.
    pub uptime_ms: u32,
    /// What was read.
    pub values: V,
}

/// What the device has been through.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// Which device.
    pub device: &'a str,
    /// Since its start.
    pub uptime_s: u32,
    /// Readings taken.
    pub readings: u32,
    /// Times that the sensor failed.
    pub sensor_faults: u32,
    /// From one reading to the next, as it is now.
    pub period_ms: u32,
    /// Commands answered, the refused ones too.
    pub commands: u32,
    /// What became of the messages, this report not yet among them.
    pub counters: Counters,
}

/// [`Report`], flat.
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
    /// Which device.
    pub device: &'a str,
    /// Which command: the `#id` it began with, else nsqd's id of the message.
    pub id: &'a str,
    /// Whether it was done. If not, nothing was changed.
    pub ok: bool,
    /// What was done, or what was wrong and what is understood.
    pub text: &'a str,
    /// What was asked for with `stats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stats: Option<Report<'a>>,
}

/// The message as JSON; `None` if there is no room for it.
pub(crate) fn json<'b>(message: &impl Serialize, buf: &'b mut [u8]) -> Option<&'b [u8]> {
    let len = serde_json_core::to_slice(message, buf).ok()?;
    buf.get(..len)
}

/// As much of a name as goes into a message.
pub(crate) fn short(device: &str) -> &str {
    let end = (0..=DEVICE_MAX).rev().find(|&end| device.is_char_boundary(end.min(device.len())));
    let end = end.unwrap_or_default().min(device.len());
    device.get(..end).unwrap_or_default()
}
