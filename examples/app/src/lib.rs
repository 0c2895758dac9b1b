//! A sensor node: reads a [`Sensor`], publishes what it reads as JSON to one topic and its own
//! counters to another, does what comes as a command and replies to a third, and has these topics
//! registered with nsqlookupds.
//!
//! This is the application alone, for any platform and without a heap. A board brings a sensor, a
//! [`Sleep`] and a [`Dialer`](nanonsq_core::drive::Dialer), makes a publisher and a lookup of
//! `nanonsq_core::drive`, and runs three tasks: the two runners, and [`Node::run`]. For commands it
//! also makes a consumer and runs its runner and [`Node::obey`]. See `examples/qemu` for a whole
//! firmware.
//!
//! # Commands
//!
//! A device has a command topic of its own. A message on it is one line of text, at most
//! [`COMMAND_MAX`] bytes:
//!
//! | command | what it does |
//! |---|---|
//! | `set interval 5s` | from one reading to the next, from now on: `ms`, `s`, `m` or `h`, 10 ms to 24 h |
//! | `blink` | shows which device this is: [`Board::blink`] |
//! | `stats` | replies with the counters, as in a report |
//! | `reboot` | replies, brings out what is pending, and starts anew: [`Board::reboot`] |
//!
//! A first word `#id` is repeated in the [`Reply`], for whoever sends several commands or has
//! several devices reply to one topic; without it that is nsqd's id of the message. What is not
//! understood changes nothing; the reply says what was wrong. Only a message for which there is no
//! room in the consumer's whole ring is finished unread and unanswered.
//!
//! Commands are done at least once: one is finished when the outbox has its reply. Done again,
//! `set` and `stats` are harmless, `blink` blinks again, and a `reboot` that comes again to a device
//! that has just started is only replied to.
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
//! | the outbox has no room for a reply | waits; the command is touched meanwhile ([`commands`]) |
//! | nsqd goes away with a command unanswered | gets it again and answers it |
//!
//! [`Full`]: nanonsq_core::publisher::Full

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod command;
mod message;
mod network;
mod note;
mod obey;
mod said;
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
use crate::said::Said;
pub use command::COMMAND_MAX;
pub use message::{READING_MAX, REPLY_MAX, REPORT_MAX, Reading, Reply, Report};
pub use network::{Network, RegisterError, register, watch_clients, watch_lookups};
pub use note::Logged;
pub use obey::{Board, Commands, Request, commands};
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
    /// Where replies to commands go. Several devices may share it.
    pub replies: TopicName,
    /// From one reading to the next, until a command sets it. Zero: as fast as the outbox takes
    /// them.
    pub period: Span,
    /// From one report to the next.
    pub report_period: Span,
    /// Stop after so many readings, once all of them are final. `None` is never.
    pub count: Option<u32>,
    /// Stop after so long, likewise. `None` is never.
    pub duration: Option<Span>,
}

/// The node. Make one, and run it.
pub struct Node<'a, N, S> {
    settings: &'a Settings<'a>,
    network: N,
    sleep: S,
    period: Cell<Span>,
    /// The period was changed.
    retimed: Signal<NoopRawMutex, ()>,
    /// About to reboot: nothing more is published.
    leaving: Cell<bool>,
    commands: Cell<u32>,
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
            period: Cell::new(settings.period),
            retimed: Signal::new(),
            leaving: Cell::new(false),
            commands: Cell::new(0),
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
            let retimed = select(self.wait_until(next.min(end)), self.retimed.wait()).await;
            let now = self.sleep.now();
            if now >= end {
                return;
            }
            let period = self.period.get();
            if retimed.is_second() {
                // No later than the old interval has it, so that no number of commands keeps the
                // next reading from coming.
                next = next.min(now.after(period));
                continue;
            }
            self.stay().await;
            next = next.after(period);
            if next < now {
                // Readings that were missed are not made up for.
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
            self.stay().await;
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

    /// Ready unless the device is about to reboot.
    async fn stay(&self) {
        poll_fn(|_| if self.leaving.get() { Poll::Pending } else { Poll::Ready(()) }).await;
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

/// Of so many nsqds the log says only what is new.
const NSQDS_SAID: usize = 4;

/// From one attempt to the next at something that just failed, at least.
const REST: Span = Span::from_millis(100);

/// Milliseconds since the start; stays at 49 days.
fn millis(at: Instant) -> u32 {
    at.since(Instant::ZERO).as_millis()
}
