//! A sensor node: publishes the values of a [`Sensor`] as JSON to one topic and reports with its
//! counters to another, runs commands and replies to a third, and registers these topics with
//! nsqlookupds.
//!
//! This crate is only the application, for any platform and without a heap. A board provides a
//! sensor, a [`Sleep`] and a [`Dialer`](nanonsq_core::drive::Dialer), makes a publisher and a
//! registration of `nanonsq_core::drive`, and runs three tasks: the two runners, and [`Node::run`].
//! For commands it also makes a consumer and runs its runner and [`Node::obey`]. See
//! `examples/qemu` for a whole firmware.
//!
//! # Commands
//!
//! Each device has its own command topic. A message on it is one line of text, at most
//! [`COMMAND_MAX`] bytes:
//!
//! | command | effect |
//! |---|---|
//! | `set interval 5s` | sets the time between readings: `ms`, `s`, `m` or `h`, 10 ms to 24 h |
//! | `blink` | shows which device this is: [`Board::blink`] |
//! | `stats` | replies with the counters, as in a report |
//! | `reboot` | replies, waits until all messages are final (at most 10 s), and reboots: [`Board::reboot`] |
//!
//! A first word `#id` is repeated in the [`Reply`], to match replies with commands; without it the
//! reply has nsqd's id of the message. An invalid command changes nothing, and the reply has the
//! reason. Only a message that is larger than the whole ring of the consumer is finished without a
//! reply.
//!
//! Commands run at least once: a command is finished once its reply is in the outbox. Run again,
//! `set` and `stats` are harmless and `blink` blinks again. If the device has just started, a
//! redelivered `reboot` gets only a reply.
//!
//! # Failures
//!
//! | failure | reaction |
//! |---|---|
//! | the sensor fails | counts and logs the fault, reads again after the interval |
//! | nsqd, the network or the link is lost | keeps readings in the outbox, up to its size |
//! | the outbox is full | waits for room, or drops the oldest reading: see the publisher's [`Full`] |
//! | nsqd rejects a reading for good | counts and logs it, continues with the next |
//! | the outbox has no room for a report | skips the report: the next one includes its counters |
//! | the outbox has no room for a reply | waits; the consumer touches the command meanwhile ([`commands`]) |
//! | nsqd is lost before the answer to a command | runs the command again when it is redelivered |
//!
//! [`Full`]: nanonsq_core::publisher::Full

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod command;
mod message;
mod network;
mod note;
mod obey;
mod reported;
mod sensor;
#[cfg(test)]
mod tests;

use core::cell::Cell;
use core::fmt;
use core::future::poll_fn;
use core::task::Poll;

use embassy_futures::select::{Either3, select, select3};
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;
use nanonsq_core::drive::Sleep;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Counters, Event};
use nanonsq_core::session::Closed;
use nanonsq_core::time::{Instant, Span};

use crate::note::note;
use crate::reported::Reported;
pub use command::COMMAND_MAX;
pub use message::{READING_MAX, REPLY_MAX, REPORT_MAX, Reading, Reply, Report};
pub use network::{Network, RegisterError, register, watch_clients, watch_lookups};
pub use note::Logged;
pub use obey::{Board, Commands, Request, commands};
pub use sensor::{Climate, Sensor, SensorFault, Simulated};

/// Name, topics and intervals of the node. Borrowed, so that a constant one costs no RAM.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The device's name, in every message. Messages contain at most its first 32 bytes.
    pub device: &'a str,
    /// Topic of readings.
    pub readings: TopicName,
    /// Topic of reports.
    pub reports: TopicName,
    /// Topic of replies to commands. Several devices may share it.
    pub replies: TopicName,
    /// Time from one reading to the next, until a command sets it. Zero: as fast as the outbox
    /// accepts readings.
    pub period: Span,
    /// Time from one report to the next.
    pub report_period: Span,
    /// Number of readings after which the node stops, once all are final. `None` is never.
    pub count: Option<u32>,
    /// Time after which the node stops, once all readings are final. `None` is never.
    pub duration: Option<Span>,
}

/// The sensor node: see [`run`](Self::run) and [`obey`](Self::obey).
pub struct Node<'a, N, S> {
    settings: &'a Settings<'a>,
    network: N,
    sleep: S,
    period: Cell<Span>,
    /// Signaled when a command changes the period.
    period_changed: Signal<NoopRawMutex, ()>,
    /// True before a reboot: no more readings and reports are published.
    rebooting: Cell<bool>,
    commands: Cell<u32>,
    readings: Cell<u32>,
    sensor_faults: Cell<u32>,
    /// True if the last report was not published.
    report_refused: Cell<bool>,
}

impl<'a, N: Network, S: Sleep> Node<'a, N, S> {
    /// Creates a node that publishes through `network`: a handle of a publisher or an nsqd.
    pub const fn new(settings: &'a Settings<'a>, network: N, sleep: S) -> Self {
        Self {
            settings,
            network,
            sleep,
            period: Cell::new(settings.period),
            period_changed: Signal::new(),
            rebooting: Cell::new(false),
            commands: Cell::new(0),
            readings: Cell::new(0),
            sensor_faults: Cell::new(0),
            report_refused: Cell::new(false),
        }
    }

    /// Reads, publishes and reports for ever, or up to the limits of the settings. Returns the
    /// counters once all readings and a last report are final.
    pub async fn run<R: Sensor>(&self, sensor: &mut R) -> Counters {
        match select3(self.read(sensor), self.report(), self.watch()).await {
            Either3::First(()) => {}
            Either3::Second(never) | Either3::Third(never) => match never {},
        }
        // Once all is final, there is room for the last report.
        self.network.settle().await;
        self.send_report();
        self.network.settle().await;
        self.network.counters()
    }

    /// Returns the number of readings since the start.
    pub fn readings(&self) -> u32 {
        self.readings.get()
    }

    /// Reads and publishes up to the limits of the settings.
    async fn read<R: Sensor>(&self, sensor: &mut R) {
        let mut next = self.sleep.now();
        let end = self.settings.duration.map_or(Instant::NEVER, |span| next.after(span));
        while self.settings.count.is_none_or(|count| self.readings.get() < count) {
            let woken = select(self.wait_until(next.min(end)), self.period_changed.wait()).await;
            let now = self.sleep.now();
            if now >= end {
                return;
            }
            let period = self.period.get();
            if woken.is_second() {
                // Never later than before, so that a stream of commands cannot delay a reading for
                // ever.
                next = next.min(now.after(period));
                continue;
            }
            self.unless_rebooting().await;
            next = next.after(period);
            if next < now {
                // Skip missed readings.
                next = now.after(period);
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
                // No retry: `publish` has already waited for room, so it would fail again.
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
            self.unless_rebooting().await;
            self.send_report();
        }
    }

    /// Logs connections, losses and failed messages.
    async fn watch(&self) -> core::convert::Infallible {
        let mut reported = Reported::<NSQDS_REPORTED>::new();
        loop {
            match self.network.event().await {
                Event::Connected { nsqd, .. } => {
                    reported.forget(nsqd);
                    note!(info, "nsqd {}: connected", nsqd);
                }
                Event::Disconnected { nsqd, why: Closed::Local } => {
                    note!(info, "nsqd {}: {}", nsqd, Closed::Local);
                }
                Event::Disconnected { nsqd, why } if reported.is_new(nsqd, why) => {
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
        let report = self.stats();
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

    fn stats(&self) -> Report<'a> {
        Report {
            device: message::short(self.settings.device),
            uptime_s: millis(self.sleep.now()) / 1000,
            readings: self.readings.get(),
            sensor_faults: self.sensor_faults.get(),
            period_ms: self.period.get().as_millis(),
            commands: self.commands.get(),
            counters: self.network.counters(),
        }
    }

    /// Waits for ever if the device is about to reboot, otherwise returns at once.
    async fn unless_rebooting(&self) {
        poll_fn(|_| if self.rebooting.get() { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    async fn wait_until(&self, at: Instant) {
        let mut sleep = self.sleep.clone();
        poll_fn(|cx| sleep.poll_until(cx, at)).await;
    }
}

impl<N, S> fmt::Debug for Node<'_, N, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("settings", self.settings).finish_non_exhaustive()
    }
}

/// Servers whose last failure is kept, so that the log does not repeat it.
const NSQDS_REPORTED: usize = 4;

/// The shortest pause after a failure.
const REST: Span = Span::from_millis(100);

/// Returns the milliseconds since the start, at most `u32::MAX` (49 days).
fn millis(at: Instant) -> u32 {
    at.since(Instant::ZERO).as_millis()
}
