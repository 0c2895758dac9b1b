//! What is particular to a publisher: its calls, and its lines for the log.

use std::collections::BTreeMap;
use std::mem;
use std::task::{Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Sleep, publisher as borrowed};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{
    Counters, Event, Outcome, PublishError as Refusal, PublishOptions, State, Ticket,
};
use nanonsq_core::session::Closed;

use super::Options;
use crate::client::{Call, Report, Role};
use crate::role::{Lines, Peer, poll_once};
use crate::setting::span;
use crate::{CriticalSectionRawMutex, TokioSleep};

pub(crate) struct Publishing;

pub(crate) struct Locals<'a> {
    pub(super) handle: borrowed::Handle<'a, CriticalSectionRawMutex>,
    pub(super) sleep: TokioSleep,
    pub(super) nsqds: &'a [Address],
    /// The nsqd in use.
    pub(super) peer: Peer,
}

#[derive(Default)]
pub(crate) struct Exchange {
    report: Report,
    topic: Option<TopicName>,
    /// Kept, with its capacity, for the next message.
    body: Vec<u8>,
    options: Options,
    pub(super) accepted: Option<Result<Ticket, Refusal>>,
    pub(super) ticket: Option<Ticket>,
    pub(super) outcome: Option<Outcome>,
    pub(super) counters: Counters,
    /// The publisher's version at this report and at the one before.
    versions: (u32, u32),
    /// The messages before this one are final.
    resolved: Option<Ticket>,
}

/// The tasks that wait.
#[derive(Default)]
pub(crate) struct Waits {
    /// For room; the others wait for their turn.
    pub(super) room: Option<Waker>,
    pub(super) flushed: Vec<Waker>,
    pub(super) outcomes: BTreeMap<Ticket, Waker>,
}

/// Offers the message; `accepted` stays empty while there is no room. Not counted as a refusal.
pub(super) const OFFER: Call<Publishing> = |locals, exchange| {
    let Some(topic) = exchange.topic else { return };
    let options = locals.options(exchange.options);
    let offer = locals.handle.publish_with(&topic, &exchange.body, options);
    if let Poll::Ready(taken) = poll_once(offer) {
        exchange.accepted = Some(taken);
    }
};

pub(super) const TRY: Call<Publishing> = |locals, exchange| {
    let Some(topic) = exchange.topic else { return };
    let options = locals.options(exchange.options);
    exchange.accepted = Some(locals.handle.try_publish_with(&topic, &exchange.body, options));
};

pub(super) const ASK: Call<Publishing> = |locals, exchange| {
    let Some(ticket) = exchange.ticket else { return };
    exchange.outcome = locals.handle.look(|publisher| publisher.outcome(ticket)).flatten();
};

pub(super) const COUNT: Call<Publishing> =
    |locals, exchange| exchange.counters = locals.handle.counters();

impl Role for Publishing {
    const NAME: &'static str = "publisher";

    type Locals<'a> = Locals<'a>;
    type Exchange = Exchange;
    type Waits = Waits;

    const REPORT: Call<Self> = |locals, exchange| {
        while let Some(event) = locals.handle.try_event() {
            if let Event::Resolved { below } = event {
                exchange.resolved = Some(below);
            }
            locals.tell(event, &mut exchange.report.lines);
        }
        let version = locals.handle.look(|publisher| {
            exchange.report.is_stopped = publisher.state() == State::Stopped;
            exchange.report.left = publisher.counters().pending;
            publisher.version()
        });
        exchange.report.why = locals.peer.why().cloned();
        exchange.versions = (version.unwrap_or_default(), exchange.versions.0);
    };

    const STOP: Call<Self> = |locals, _| {
        let _ = poll_once(locals.handle.stop(&locals.sleep));
    };

    fn wake(waits: &mut Waits, exchange: &mut Exchange, over: bool, to_wake: &mut Vec<Waker>) {
        if over {
            to_wake.extend(mem::take(&mut waits.outcomes).into_values());
        } else if let Some(below) = exchange.resolved.take() {
            let later = waits.outcomes.split_off(&below);
            to_wake.extend(mem::replace(&mut waits.outcomes, later).into_values());
        }
        if over || exchange.versions.0 != exchange.versions.1 {
            to_wake.extend(waits.room.take());
            to_wake.append(&mut waits.flushed);
        }
    }
}

impl Locals<'_> {
    fn options(&self, options: Options) -> PublishOptions {
        let expire = options.expire.map(|expire| self.sleep.now().after(span(expire)));
        PublishOptions { defer: options.defer.map(span), deadline: expire }
    }

    /// Makes the line of an event, if it is for the log.
    fn tell(&mut self, event: Event, lines: &mut Lines) {
        let nsqd = |index: usize| self.nsqds.get(index).map(Address::to_string).unwrap_or_default();
        match event {
            Event::Connected { nsqd: index } => {
                self.peer.connected(format!("connected to {}", nsqd(index)), lines);
            }
            Event::Disconnected { why: Closed::Local, .. } => self.peer.closed(),
            Event::Disconnected { nsqd: index, why } => {
                let line = format!("{} {}: {why}", self.peer.failed(), nsqd(index));
                self.peer.lost(line, lines);
            }
            Event::LeftOut { nsqd: index, why } => {
                let detail = self.handle.look(|publisher| publisher.detail().to_owned());
                let detail = detail.filter(|text| !text.is_empty());
                let detail = detail.map(|text| format!(" ({text})")).unwrap_or_default();
                self.peer.lost(format!("refused by {}: {why}{detail}", nsqd(index)), lines);
            }
            Event::Failed { count, outcome: outcome @ Outcome::Rejected(_), .. } => {
                lines.push((true, format!("{count} of the messages: {outcome}")));
            }
            // The application has asked for that.
            Event::Failed { .. } | Event::Forgotten { .. } | Event::Resolved { .. } => {}
            _ => {}
        }
    }
}

impl Exchange {
    pub(super) fn fill(&mut self, topic: TopicName, body: &[u8], options: Options) {
        self.topic = Some(topic);
        self.body.clear();
        self.body.extend_from_slice(body);
        self.options = options;
    }
}

impl AsMut<Report> for Exchange {
    fn as_mut(&mut self) -> &mut Report {
        &mut self.report
    }
}
