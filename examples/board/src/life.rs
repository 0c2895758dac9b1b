//! Supervision: decides whether the watchdog is fed.
//!
//! The executor keeps running while one task hangs, so a task that only feeds the watchdog would
//! feed it for ever. Supervision watches progress instead: numbers that change while all is well,
//! *and* while only something outside the device is wrong, which no reset would repair.

use core::fmt;

/// Limit for the network driver, whose loop runs at least twice a second.
const DRIVER_LIMIT_S: u32 = 20;
/// Limit for the publisher, in addition to three heartbeat intervals: a publisher receives
/// heartbeats and gives up after two missing ones, or fails to connect several times a minute.
const PUBLISH_LIMIT_S: u32 = 30;
/// Limit for readings, in addition to their interval: a sensor may be slow.
const READINGS_LIMIT_S: u32 = 60;

/// Numbers that show progress by changing; `None` while no progress is expected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Iterations of the network driver's loop.
    pub driver: Option<u32>,
    /// Sum of connections, failures, heartbeats and acknowledgements, and the heartbeat interval in
    /// seconds.
    pub publish: Option<(u32, u32)>,
    /// Readings, and their interval in seconds. Only while nothing outside the device can delay a
    /// reading: nsqd is connected and the outbox empty.
    pub readings: Option<(u32, u32)>,
}

/// The part that hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// The network driver.
    Driver,
    /// The publisher or its connection to nsqd.
    Publish,
    /// The sensor or the task that reads it.
    Readings,
}

/// Keeps the time of the last change of each number.
#[derive(Debug, Default)]
pub struct Life {
    driver: Since,
    publish: Since,
    readings: Since,
}

#[derive(Debug, Default)]
struct Since {
    last: Option<u32>,
    since_s: u32,
}

impl Life {
    /// Creates the state before the first check.
    pub const fn new() -> Self {
        const NONE: Since = Since { last: None, since_s: 0 };
        Self { driver: NONE, publish: NONE, readings: NONE }
    }

    /// Returns the part that hangs, if any. To be called about once a second with the uptime.
    pub fn check(&mut self, now_s: u32, signs: &Signs) -> Option<Stalled> {
        let heartbeats = signs.publish.map_or(0, |(_, heartbeat_s)| heartbeat_s.saturating_mul(3));
        let publish_limit = PUBLISH_LIMIT_S.saturating_add(heartbeats);
        let interval = signs.readings.map_or(0, |(_, interval_s)| interval_s);
        let readings_limit = READINGS_LIMIT_S.saturating_add(interval);
        let (publish, readings) =
            (signs.publish.map(|(count, _)| count), signs.readings.map(|(count, _)| count));
        // Check all, since each check also records its number.
        let stalled = [
            (self.driver.is_stalled(now_s, signs.driver, DRIVER_LIMIT_S), Stalled::Driver),
            (self.publish.is_stalled(now_s, publish, publish_limit), Stalled::Publish),
            (self.readings.is_stalled(now_s, readings, readings_limit), Stalled::Readings),
        ];
        stalled.into_iter().find_map(|(is_stalled, what)| is_stalled.then_some(what))
    }
}

impl Since {
    fn is_stalled(&mut self, now_s: u32, number: Option<u32>, limit_s: u32) -> bool {
        if number.is_none() || number != self.last {
            (self.last, self.since_s) = (number, now_s);
        }
        number.is_some() && now_s.saturating_sub(self.since_s) > limit_s
    }
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Driver => "the network's driver makes no progress",
            Self::Publish => "the connection to nsqd makes no progress",
            Self::Readings => "no more readings are taken",
        })
    }
}
