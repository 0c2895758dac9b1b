//! What is particular to a consumer: its calls, and its lines for the log.

use std::task::Waker;

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{AnswerError, ConnectionEvent, Counters, Event, LookupdEvent};
use nanonsq_core::drive::consumer as borrowed;
use nanonsq_core::session::Closed;
use nanonsq_core::time::Span;

use super::message::Taken;
use crate::client::{Call, Report, Role};
use crate::role::{Lines, Peer, poll_once};
use crate::{CriticalSectionRawMutex, TokioSleep};

pub(crate) struct Consuming;

pub(super) type Borrowed<'a> = borrowed::Message<'a, CriticalSectionRawMutex, TokioSleep>;
pub(super) type Answer = for<'a> fn(Borrowed<'a>, Option<Span>) -> Result<(), AnswerError>;

pub(crate) struct Locals<'a> {
    pub(super) handle: borrowed::Handle<'a, CriticalSectionRawMutex, TokioSleep>,
    pub(super) lookupds: &'a [Address],
    /// The messages that the application has, by their slots.
    pub(super) messages: Vec<Option<Borrowed<'a>>>,
    pub(super) free: Vec<usize>,
    /// What the log says of each connection, and of each nsqlookupd.
    pub(super) known: Vec<Known>,
    pub(super) lookups: Vec<String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    address: String,
    peer: Peer,
}

#[derive(Default)]
pub(crate) struct Exchange {
    report: Report,
    pub(super) taken: Option<(usize, Taken)>,
    pub(super) slot: usize,
    pub(super) answer: Option<Answer>,
    pub(super) delay: Option<Span>,
    pub(super) answered: Option<Result<(), AnswerError>>,
    pub(super) counters: Counters,
    /// There are messages to take.
    ready: bool,
}

pub(super) const TAKE: Call<Consuming> = |locals, exchange| {
    let Some(message) = locals.handle.try_next() else { return };
    let mut taken = Taken { exhausted: message.is_exhausted(), ..Taken::default() };
    message.read(|body| taken.body = body.to_vec());
    if let Some(head) = message.head() {
        (taken.attempts, taken.timestamp) = (head.attempts, head.timestamp);
        taken.id = head.id.0;
    }
    let slot = locals.free.pop().unwrap_or_else(|| {
        locals.messages.push(None);
        locals.messages.len() - 1
    });
    locals.messages[slot] = Some(message);
    exchange.taken = Some((slot, taken));
};

impl Role for Consuming {
    const NAME: &'static str = "consumer";

    type Locals<'a> = Locals<'a>;
    type Exchange = Exchange;
    type Waits = Vec<Waker>;

    const REPORT: Call<Self> = |locals, exchange| {
        while let Some(event) = locals.handle.try_event() {
            locals.tell(event, &mut exchange.report.lines);
        }
        locals.handle.look(|consumer| {
            exchange.report.is_stopped = consumer.is_stopped();
            exchange.ready = consumer.waiting() > 0;
        });
        let taken = locals.messages.iter().flatten().count();
        exchange.report.left = u64::try_from(taken).unwrap_or(u64::MAX);
    };

    const CLOSE: Call<Self> = |locals, _| {
        let _ = poll_once(locals.handle.stop());
    };

    /// Requeues what is not answered.
    const STOP: Call<Self> = |locals, _| locals.messages.fill_with(|| None);

    fn wake(waits: &mut Vec<Waker>, exchange: &mut Exchange, over: bool, to_wake: &mut Vec<Waker>) {
        if over || exchange.ready {
            to_wake.append(waits);
        }
    }
}

impl Locals<'_> {
    /// Makes the line of an event, if it is for the log. Each cause is told once, not at each
    /// attempt.
    fn tell(&mut self, event: Event, lines: &mut Lines) {
        match event {
            Event::Connection { index, event } => {
                let look = self.handle.look(|consumer| {
                    let status = consumer.status(index)?;
                    Some((status.address.map(Address::to_string)?, status.detail.to_owned()))
                });
                let (address, detail) = look.flatten().unwrap_or_default();
                let Some(known) = self.known.get_mut(index) else { return };
                if !address.is_empty() && address != known.address {
                    *known = Known { address, ..Known::default() };
                }
                let Known { address, peer } = known;
                match event {
                    ConnectionEvent::Connected => {
                        peer.connected(format!("connected to {address}"), lines);
                    }
                    ConnectionEvent::Disconnected(Closed::Local) => {}
                    ConnectionEvent::Disconnected(why) => {
                        peer.lost(format!("{} {address}: {why}", peer.failed()), lines);
                    }
                    ConnectionEvent::LeftOut(why) => {
                        let detail =
                            if detail.is_empty() { detail } else { format!(" ({detail})") };
                        peer.lost(format!("refused by {address}: {why}{detail}"), lines);
                    }
                    _ => {}
                }
            }
            Event::Lookupd { index, event } => {
                let (Some(address), Some(said)) =
                    (self.lookupds.get(index), self.lookups.get_mut(index))
                else {
                    return;
                };
                let (is_warning, line) = match event {
                    LookupdEvent::Answered { producers } => {
                        let s = if producers == 1 { "" } else { "s" };
                        (false, format!("nsqlookupd {address} lists {producers} nsqd{s}"))
                    }
                    LookupdEvent::Failed(why) => (true, format!("nsqlookupd {address}: {why}")),
                    _ => return,
                };
                if *said != line {
                    said.clone_from(&line);
                    lines.push((is_warning, line));
                }
            }
            Event::GivenUp { attempts, .. } => {
                lines.push((true, format!("gave up a message after {attempts} deliveries")));
            }
            _ => {}
        }
    }
}

impl AsMut<Report> for Exchange {
    fn as_mut(&mut self) -> &mut Report {
        &mut self.report
    }
}
