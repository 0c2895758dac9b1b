//! Who is woken when what handles and a runner share changes: the runner, and tasks that wait on
//! handles. The same for every state, so that there is one copy of it.

use core::task::Waker;

use embassy_sync::waitqueue::WakerRegistration;
use heapless::Vec;

/// How many tasks may wait on handles of one runner. With more, all get their answers, but while
/// they wait they wake each other without end: let one task wait for the others then.
pub const WAITERS_MAX: usize = 8;

/// The runner's waker, the waiting tasks' wakers, and the queue.
pub(super) struct Waiters {
    runner: WakerRegistration,
    /// Like embassy-sync's `MultiWakerRegistration`, which the compiler cannot see to be free of
    /// panics.
    tasks: Vec<Waker, WAITERS_MAX, u8>,
    queue: Queue,
}

impl Waiters {
    pub(super) const fn new() -> Self {
        Self { runner: WakerRegistration::new(), tasks: Vec::new(), queue: Queue::new() }
    }

    pub(super) fn register_runner(&mut self, waker: &Waker) {
        self.runner.register(waker);
    }

    pub(super) fn wake_runner(&mut self) {
        self.runner.wake();
    }

    /// Wakes the tasks that wait: a condition of theirs may hold now.
    pub(super) fn wake_tasks(&mut self) {
        self.queue.changes = self.queue.changes.wrapping_add(1);
        while let Some(task) = self.tasks.pop() {
            task.wake();
        }
    }

    /// A handle changed the state.
    pub(super) fn on_handle_change(&mut self, wake_tasks: bool) {
        self.wake_runner();
        if wake_tasks {
            self.wake_tasks();
        }
    }

    /// A wait is polled. True if its condition is to be checked now.
    pub(super) fn enter(&mut self, ticket: &mut QueueTicket, task: &Waker) -> bool {
        match self.queue.enter(ticket) {
            Enter::Check => return true,
            Enter::Return => task.wake_by_ref(),
            Enter::Wait => self.register_task(task),
        }
        false
    }

    /// A wait's condition was checked; `changed` if that changed the state.
    pub(super) fn checked(
        &mut self,
        ticket: &mut QueueTicket,
        task: &Waker,
        answered: bool,
        changed: bool,
    ) {
        if changed {
            self.on_handle_change(true);
        }
        if answered {
            // Wake the runner, and the next waiter if there may be something left for it.
            let more = self.queue.served(ticket);
            self.on_handle_change(more);
        } else {
            self.queue.not_served(ticket);
            self.register_task(task);
        }
    }

    /// A wait is over without an answer.
    pub(super) fn leave(&mut self, ticket: QueueTicket) {
        if self.queue.leave(ticket) {
            self.wake_tasks();
        }
    }

    fn register_task(&mut self, task: &Waker) {
        if self.tasks.iter().any(|known| known.will_wake(task)) {
            return;
        }
        if self.tasks.is_full() {
            // They check in vain and come back: busy, not wrong.
            while let Some(task) = self.tasks.pop() {
                task.wake();
            }
        }
        let _ = self.tasks.push(task.clone());
    }
}

/// The queue of waits for something that only one of them gets. The first in the queue checks
/// first; a wait that was just served goes on as long as there is more, so that the messages of one
/// task stay together, then waits at the end.
///
/// Others go before the first only if it is not even polled: at each change they step back once,
/// and check whether the first was polled meanwhile. So a wait that nobody polls holds nobody up.
struct Queue {
    /// The first one's number, if there is one, and the number that the next one gets.
    head: u8,
    tail: u8,
    /// The wait that was just served goes on.
    goes_on: bool,
    /// Counts how often the first one checked in vain.
    checked: u8,
    /// Counts the changes that tasks were woken for.
    changes: u8,
    /// The waits that are not over: a bit for each number from `head` on.
    waiting: u32,
}

/// A wait's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueTicket {
    /// Not in the queue, now and later.
    Unqueued,
    /// Not in the queue yet.
    New,
    /// In the queue.
    Waiting {
        number: u8,
        /// The change at which it stepped back last, and how often the first one had checked by
        /// then.
        change: u8,
        checked: u8,
    },
}

/// What a wait that is polled does.
enum Enter {
    /// It checks its condition.
    Check,
    /// It is polled again once others were.
    Return,
    /// It waits for a change.
    Wait,
}

impl Queue {
    const fn new() -> Self {
        Self { head: 0, tail: 0, goes_on: false, checked: 0, changes: 0, waiting: 0 }
    }

    fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    fn enter(&mut self, ticket: &mut QueueTicket) -> Enter {
        match *ticket {
            QueueTicket::Unqueued => return Enter::Check,
            QueueTicket::New if self.is_empty() || self.goes_on => return Enter::Check,
            QueueTicket::New => self.join(ticket, self.changes.wrapping_sub(1)),
            QueueTicket::Waiting { .. } => {}
        }
        self.goes_on = false;
        let QueueTicket::Waiting { number, change, checked } = ticket else { return Enter::Check };
        if *number == self.head {
            Enter::Check
        } else if *change != self.changes {
            (*change, *checked) = (self.changes, self.checked);
            Enter::Return
        } else if *checked != self.checked {
            Enter::Wait
        } else {
            Enter::Check
        }
    }

    /// Goes to the end of the queue. With too many there it checks whenever it is polled.
    fn join(&mut self, ticket: &mut QueueTicket, change: u8) {
        let bit = 1u32.unbounded_shl(self.tail.wrapping_sub(self.head).into());
        if bit == 0 {
            *ticket = QueueTicket::Unqueued;
            return;
        }
        *ticket = QueueTicket::Waiting { number: self.tail, change, checked: self.checked };
        self.tail = self.tail.wrapping_add(1);
        self.waiting |= bit;
    }

    /// It has its answer. True if others are to check.
    fn served(&mut self, ticket: &mut QueueTicket) -> bool {
        let was = core::mem::replace(ticket, QueueTicket::Unqueued);
        self.goes_on = was != QueueTicket::Unqueued;
        self.leave(was) || (self.goes_on && !self.is_empty())
    }

    /// It checked in vain.
    fn not_served(&mut self, ticket: &mut QueueTicket) {
        if matches!(ticket, QueueTicket::New) {
            self.join(ticket, self.changes);
        }
        if let QueueTicket::Waiting { number, .. } = *ticket {
            self.goes_on = false;
            if number == self.head {
                self.checked = self.checked.wrapping_add(1);
            }
        }
    }

    /// It is over. True if another one is the first now.
    fn leave(&mut self, ticket: QueueTicket) -> bool {
        let QueueTicket::Waiting { number, .. } = ticket else { return false };
        let was = self.head;
        self.waiting &= !1u32.unbounded_shl(number.wrapping_sub(self.head).into());
        while self.head != self.tail && self.waiting & 1 == 0 {
            self.head = self.head.wrapping_add(1);
            self.waiting >>= 1;
        }
        self.head != was && !self.is_empty()
    }
}
