//! How a connection that is up is left: CLS, the answers of what is in flight, and the end.
//!
//! Most consumers leave nobody: they are given no more nsqds than they have connections, and run for
//! ever. So all of this is one function, behind a pointer that is set by what may need it: what is
//! not used is not linked.

use super::Shared;
use super::connection::{Cls, ConnectionSession, Timer};
use super::rdy::SETTLE;
use crate::session::handshake::LinkState;
use crate::session::{Closed, Fault};
use crate::wire::nsqd;

/// Of what a connection that may be left is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// Its seat is somebody else's, or nobody's.
    Unseated,
    /// A message arrived.
    Arrived,
    /// There is room for a command.
    LinkState,
    /// An answer went out.
    Answered,
    /// nsqd says something that is neither a heartbeat nor an error.
    Response,
    /// The time for a step is up.
    Late,
}

/// What is done then.
pub(super) type Leave<'a> = fn(&mut ConnectionSession<'_, 'a>, Moment);

/// It, where connections may be left.
fn leave(session: &mut ConnectionSession<'_, '_>, moment: Moment) {
    match moment {
        Moment::Unseated => session.drain(),
        Moment::Arrived => {
            if session.shared.stopping {
                session.shared.store.recall(session.id, false);
            }
        }
        Moment::LinkState => {
            if session.connection.cls == Cls::Unsent {
                session.connection.cls = Cls::Sent;
                session.connection.push(b"CLS", &[], None);
            }
        }
        Moment::Answered => session.leave_if_done(),
        Moment::Response => {
            if session.connection.cls != Cls::Sent
                || session.connection.text.as_slice() != nsqd::CLOSE_WAIT
            {
                return session.fail(Fault::UnexpectedReply);
            }
            session.connection.cls = Cls::Confirmed;
            session.leave_if_done();
        }
        Moment::Late if session.connection.handshake.state() == LinkState::Leaving => {
            session.close(Closed::Local);
        }
        Moment::Late => {
            session.shared.store.recall(session.id, true);
            let leave = session.shared.after(session.shared.config.close_timeout);
            session.connection.handshake.deadline = leave;
            session.connection.handshake.set_state(LinkState::Leaving);
            session.shared.changed();
        }
    }
}

impl ConnectionSession<'_, '_> {
    fn drain(&mut self) {
        let Self { connection, shared, id } = self;
        shared.window.retire(*id);
        shared.adjust();
        if shared.stopping {
            shared.store.recall(*id, false);
        }
        connection.handshake.deadline = shared.after(shared.config.drain_timeout);
        connection.timers.set(Timer::Settle, shared.after(SETTLE));
        connection.cls = Cls::Unsent;
        connection.handshake.set_state(LinkState::Draining);
    }

    /// Closes once nothing is in flight any more and nsqd has confirmed that nothing comes.
    fn leave_if_done(&mut self) {
        let left = self.shared.window.in_flight(self.id) == 0;
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
    /// Connections may be left from now on.
    pub(super) fn may_leave(&mut self) {
        self.leave = Some(leave);
    }
}
