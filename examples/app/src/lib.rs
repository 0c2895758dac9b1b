//! A sensor node: reads a [`Sensor`], publishes what it reads as JSON to one topic and its own
//! counters to another, and has both topics registered with nsqlookupds.
//!
//! This is the application alone, for any platform and without a heap. A board brings a sensor, a
//! [`Sleep`] and a [`Dialer`](nanonsq_core::drive::Dialer), makes a publisher and a lookup of
//! `nanonsq_core::drive`, and runs three tasks: the two runners, and [`Node::run`]. See
//! `examples/qemu` for a whole firmware.
//!
//! # What it survives
//!
//! | what happens | what it does |
//! |---|---|
//! | the sensor fails | counts and logs it, reads again at the next time |
//! | nsqd, the network or the link goes away | takes readings into the outbox, up to its size |
//! | the outbox is full | waits for room, or drops the oldest reading, as the publisher's [`Full`] says |
//! | nsqd refuses a reading for good | counts and logs it, goes on with the next |
//! | a report finds no room | leaves it out: the next one has the same counters, and more |
//!
//! [`Full`]: nanonsq_core::publish::Full

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod message;
mod network;
mod note;
mod said;
mod sensor;
#[cfg(test)]
mod tests;

use core::cell::Cell;
use core::future::poll_fn;

use embassy_futures::select::{Either3, select3};
use nanonsq_core::drive::Sleep;
use nanonsq_core::name::TopicName;
use nanonsq_core::publish::{Counters, Event};
use nanonsq_core::session::Closed;
use nanonsq_core::time::{Instant, Span};

use crate::note::note;
use crate::said::Said;
pub use message::{READING_MAX, REPORT_MAX, Reading, Report};
pub use network::{Network, RegisterError, register, watch_lookups};
pub use sensor::{Climate, Sensor, SensorFault, Simulated};

/// What the node is called and how often it does what. Borrowed, so that a constant one costs no
/// RAM.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The device's name, in every message. At most 32 bytes go into them.
    pub device: &'a str,
    /// Where readings go.
    pub readings: TopicName,
    /// Where reports go.
    pub reports: TopicName,
    /// From one reading to the next. Zero: as fast as the outbox takes them.
    pub period: Span,
    /// From one report to the next.
    pub report_period: Span,
    /// Stop after so many readings, once all of them are final. `None` is never.
    pub count: Option<u32>,
    /// Stop after so long, likewise. `None` is never.
    pub duration: Option<Span>,
}

/// The node. Make one, and run it.
#[derive(Debug)]
pub struct Node<'a, N, S> {
    settings: &'a Settings<'a>,
    network: N,
    sleep: S,
    readings: Cell<u32>,
    sensor_faults: Cell<u32>,
    /// The last report found no room.
    report_refused: Cell<bool>,
}

impl<'a, N: Network, S: Sleep> Node<'a, N, S> {
    /// A node that publishes through `network`: a publisher's handle.
    pub const fn new(settings: &'a Settings<'a>, network: N, sleep: S) -> Self {
        Self {
            settings,
            network,
            sleep,
            readings: Cell::new(0),
            sensor_faults: Cell::new(0),
            report_refused: Cell::new(false),
        }
    }

    /// Reads, publishes and reports for ever, or until as many readings as wanted are final, and
    /// a last report with them: the counters of then are returned.
    pub async fn run<R: Sensor>(&self, sensor: &mut R) -> Counters {
        match select3(self.read(sensor), self.report(), self.watch()).await {
            Either3::First(()) => {}
            Either3::Second(never) | Either3::Third(never) => match never {},
        }
        // Then there is room for it.
        self.network.settle().await;
        self.send_report();
        self.network.settle().await;
        self.network.counters()
    }

    /// How many readings were handed to the network.
    pub fn readings(&self) -> u32 {
        self.readings.get()
    }

    /// Ends after as many readings, or as long, as wanted.
    async fn read<R: Sensor>(&self, sensor: &mut R) {
        let mut next = self.sleep.now();
        let end = self.settings.duration.map_or(Instant::NEVER, |span| next.after(span));
        while self.settings.count.is_none_or(|count| self.readings.get() < count) {
            self.wait_until(next.min(end)).await;
            let now = self.sleep.now();
            if now >= end {
                return;
            }
            next = next.after(self.settings.period);
            if next < now {
                // Readings that were missed are not made up for.
                next = now.after(self.settings.period);
            }
            let values = match sensor.read().await {
                Ok(values) => values,
                Err(fault) => {
                    self.sensor_faults.set(self.sensor_faults.get().saturating_add(1));
                    note!(warn, "sensor: {}", fault.0);
                    next = next.max(now.after(REST));
                    continue;
                }
            };
            let reading = Reading {
                device: message::short(self.settings.device),
                number: self.readings.get(),
                uptime_ms: millis(now),
                values,
            };
            self.readings.set(self.readings.get().saturating_add(1));
            let mut buf = [0; READING_MAX];
            let Some(body) = message::json(&reading, &mut buf) else {
                note!(error, "the reading has more than {} bytes as JSON", READING_MAX);
                next = next.max(now.after(REST));
                continue;
            };
            if let Err(why) = self.network.publish(&self.settings.readings, body).await {
                // It would be refused again. What can be waited for, `publish` waits for.
                note!(error, "reading not published: {}", why);
                next = next.max(now.after(REST));
            }
        }
    }

    async fn report(&self) -> core::convert::Infallible {
        let period = self.settings.report_period.max(REST);
        let mut next = self.sleep.now();
        loop {
            next = next.after(period).max(self.sleep.now());
            self.wait_until(next).await;
            self.send_report();
        }
    }

    /// Logs what happens to the connection.
    async fn watch(&self) -> core::convert::Infallible {
        let mut said = Said::<NSQDS_SAID>::new();
        loop {
            match self.network.event().await {
                Event::Connected { nsqd, .. } => {
                    said.is_back(nsqd);
                    note!(info, "nsqd {}: connected", nsqd);
                }
                Event::Disconnected { nsqd, why: Closed::Local } => {
                    note!(info, "nsqd {}: {}", nsqd, Closed::Local);
                }
                Event::Disconnected { nsqd, why } if said.is_news(nsqd, why) => {
                    note!(warn, "nsqd {}: {}", nsqd, why);
                }
                Event::Failed { first, count, outcome } => {
                    let first = first.number();
                    note!(warn, "{} messages from {}: {}", count, first, outcome);
                }
                _ => {}
            }
        }
    }

    fn send_report(&self) {
        let report = Report {
            device: message::short(self.settings.device),
            uptime_s: millis(self.sleep.now()) / 1000,
            readings: self.readings.get(),
            sensor_faults: self.sensor_faults.get(),
            counters: self.network.counters(),
        };
        let mut buf = [0; REPORT_MAX];
        let Some(body) = message::json(&report, &mut buf) else { return };
        let published = self.network.try_publish(&self.settings.reports, body);
        let refused_before = self.report_refused.replace(published.is_err());
        if let Err(why) = published
            && !refused_before
        {
            note!(warn, "report not published: {}", why);
        }
    }

    async fn wait_until(&self, at: Instant) {
        let mut sleep = self.sleep.clone();
        poll_fn(|cx| sleep.poll_until(cx, at)).await;
    }
}

/// Of so many nsqds the log says only what is new.
const NSQDS_SAID: usize = 4;

/// From one attempt to the next at something that just failed, at least.
const REST: Span = Span::from_millis(100);

/// Milliseconds since the start; stays at 49 days.
fn millis(at: Instant) -> u32 {
    at.since(Instant::ZERO).as_millis()
}
