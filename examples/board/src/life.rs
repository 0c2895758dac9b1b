//! Whether the device still gets anywhere: what decides if its watchdog is fed.
//!
//! A task that hangs keeps no executor from running the others, so that a feeder by itself would
//! feed for ever. What is watched is progress: numbers that move as long as all is well, *or* as
//! long as something outside of the device is wrong, which no reset would mend.

use core::fmt;

/// The chip's driver goes round its loop twice a second or more often.
const DRIVER_LIMIT_S: u32 = 20;
/// A publisher hears a heartbeat in each of its intervals and misses no more than two, or fails to
/// connect several times a minute: beyond three of them.
const PUBLISH_LIMIT_S: u32 = 30;
/// Beyond the interval of readings: a sensor may take its time.
const READINGS_LIMIT_S: u32 = 60;

/// Numbers that grow. `None`: nothing is expected now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signs {
    /// Rounds of the network driver's loop.
    pub driver: Option<u32>,
    /// Connections, failures, heartbeats and acknowledgements together, and the interval of
    /// heartbeats in seconds.
    pub publish: Option<(u32, u32)>,
    /// Readings and failures of the sensor together, and the interval in seconds; while the
    /// outbox is empty and nsqd is connected, as nothing else holds up a reading.
    pub readings: Option<(u32, u32)>,
}

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// The network's driver.
    Driver,
    /// The connection to nsqd.
    Publish,
    /// The sensor, or what reads it.
    Readings,
}

/// Remembers since when each number has stood still.
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
    /// Nothing is known yet.
    pub const fn new() -> Self {
        const NONE: Since = Since { last: None, since_s: 0 };
        Self { driver: NONE, publish: NONE, readings: NONE }
    }

    /// Says what hangs, if anything does. Called about once a second, with the time since start.
    pub fn check(&mut self, now_s: u32, signs: &Signs) -> Option<Stalled> {
        let heartbeats = signs.publish.map_or(0, |(_, heartbeat_s)| heartbeat_s.saturating_mul(3));
        let publish_limit = PUBLISH_LIMIT_S.saturating_add(heartbeats);
        let interval = signs.readings.map_or(0, |(_, interval_s)| interval_s);
        let readings_limit = READINGS_LIMIT_S.saturating_add(interval);
        let (publish, readings) =
            (signs.publish.map(|(count, _)| count), signs.readings.map(|(count, _)| count));
        // All of them, whatever the first says: each is remembered.
        let stalled = [
            (self.driver.stands_still(now_s, signs.driver, DRIVER_LIMIT_S), Stalled::Driver),
            (self.publish.stands_still(now_s, publish, publish_limit), Stalled::Publish),
            (self.readings.stands_still(now_s, readings, readings_limit), Stalled::Readings),
        ];
        stalled.into_iter().find_map(|(is_stalled, what)| is_stalled.then_some(what))
    }
}

impl Since {
    fn stands_still(&mut self, now_s: u32, number: Option<u32>, limit_s: u32) -> bool {
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
