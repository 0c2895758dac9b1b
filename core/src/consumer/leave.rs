//! Leaving an nsqd: CLS, the answers to the messages in flight, then the close.
//!
//! Most consumers never leave an nsqd: they have a connection for each and run for ever. So all of
//! this is one function behind a pointer, which is set only where it may be needed, and otherwise
//! not linked.

use super::Shared;
use super::connection::{Cls, ConnectionSession, Timer};
use super::rdy::SETTLE;
use crate::session::{Closed, Fault, LinkState};
use crate::wire::nsqd;

/// An event that matters to leaving a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeaveEvent {
    /// The slot was assigned to another nsqd or to none.
    Unassigned,
    /// A message arrived.
    Arrived,
    /// There is room for a command.
    Room,
    /// An answer was staged.
    Answered,
    /// A response arrived that is not a heartbeat.
    Response,
    /// The deadline of the state has passed.
    Late,
}

/// A handler of these events.
pub(super) type Leave<'a> = fn(&mut ConnectionSession<'_, 'a>, LeaveEvent);

/// The handler of consumers that may leave nsqds.
fn leave(session: &mut ConnectionSession<'_, '_>, event: LeaveEvent) {
    match event {
        LeaveEvent::Unassigned => session.drain(),
        LeaveEvent::Arrived => {
            if session.shared.stopping {
                session.shared.in_flight.recall(session.id, false);
            }
        }
        LeaveEvent::Room => {
            if session.connection.cls == Cls::Unsent {
                session.connection.cls = Cls::Sent;
                session.connection.push(b"CLS", &[], None);
            }
        }
        LeaveEvent::Answered => session.leave_if_done(),
        LeaveEvent::Response => {
            if session.connection.cls != Cls::Sent
                || session.connection.text.as_slice() != nsqd::CLOSE_WAIT
            {
                return session.fail(Fault::UnexpectedReply);
            }
            session.connection.cls = Cls::Confirmed;
            session.leave_if_done();
        }
        LeaveEvent::Late if session.connection.handshake.state() == LinkState::Leaving => {
            session.close(Closed::Local);
        }
        LeaveEvent::Late => {
            session.shared.in_flight.recall(session.id, true);
            let leave = session.shared.after(session.shared.config.close_timeout);
            session.connection.handshake.step(LinkState::Leaving, leave);
            session.shared.changed();
        }
    }
}

impl ConnectionSession<'_, '_> {
    fn drain(&mut self) {
        let Self { connection, shared, id } = self;
        shared.rdy.retire(*id);
        shared.adjust();
        if shared.stopping {
            shared.in_flight.recall(*id, false);
        }
        let until = shared.after(shared.config.drain_timeout);
        connection.timers.set(Timer::Settle, shared.after(SETTLE));
        connection.cls = Cls::Unsent;
        connection.handshake.step(LinkState::Draining, until);
    }

    /// Closes the connection once no message is in flight and nsqd has confirmed CLS, or the drain
    /// timeout has passed.
    fn leave_if_done(&mut self) {
        let left = self.shared.rdy.in_flight(self.id) == 0;
        let done = match self.connection.handshake.state() {
            LinkState::Draining => left && self.connection.cls == Cls::Confirmed,
            LinkState::Leaving => left,
            _ => false,
        };
        if done {
            self.close(Closed::Local);
        }
    }
}

impl Shared<'_> {
    /// Enables leaving: links its handler.
    pub(super) fn may_leave(&mut self) {
        self.leave = Some(leave);
    }
}
