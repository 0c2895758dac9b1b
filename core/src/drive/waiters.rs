//! The wakers of a state that handles and a runner share: those of the runner and of the tasks that
//! wait on handles. Not generic over the state, so that a program links one copy.

use core::task::Waker;

use embassy_sync::waitqueue::WakerRegistration;
use heapless::Vec;

/// The number of tasks that may wait on the handles of one runner. With more, every task still gets
/// its answer, but the waiting tasks wake each other without end and keep the processor busy. Let
/// one task wait for several others then.
pub const WAITERS_MAX: usize = 8;

/// The runner's waker, the wakers of the waiting tasks, and the queue of the waits.
pub(super) struct Waiters {
    runner: WakerRegistration,
    /// Not embassy-sync's `MultiWakerRegistration`: the compiler cannot prove that free of panics.
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

    /// Wakes all waiting tasks, so that they check their conditions again.
    pub(super) fn wake_tasks(&mut self) {
        self.queue.changes = self.queue.changes.wrapping_add(1);
        while let Some(task) = self.tasks.pop() {
            task.wake();
        }
    }

    /// Wakes the runner after a call of a handle, and all waiting tasks if `wake_tasks`.
    pub(super) fn on_handle_change(&mut self, wake_tasks: bool) {
        self.wake_runner();
        if wake_tasks {
            self.wake_tasks();
        }
    }

    /// Begins a poll of a wait. Returns true if the caller must check the wait's condition now.
    pub(super) fn enter(&mut self, ticket: &mut QueueTicket, task: &Waker) -> bool {
        match self.queue.enter(ticket) {
            Enter::Check => return true,
            Enter::Yield => task.wake_by_ref(),
            Enter::Wait => self.register_task(task),
        }
        false
    }

    /// Ends a poll in which the wait's condition was checked. `answered`: the condition held;
    /// `changed`: the check changed the state.
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
            // Wake the runner, and the next waiter if resources may remain.
            let more = self.queue.served(ticket);
            self.on_handle_change(more);
        } else {
            self.queue.not_served(ticket);
            self.register_task(task);
        }
    }

    /// Ends a wait that is dropped.
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
            // The woken tasks check in vain and register again: busy, but correct.
            while let Some(task) = self.tasks.pop() {
                task.wake();
            }
        }
        let _ = self.tasks.push(task.clone());
    }
}

/// The queue of waits for messages or for room, each part of which goes to only one wait. The first
/// wait checks first. After a wait was served, the next new wait, usually of the same task, checks
/// before the queue, so that the messages of one task stay together; if it checks in vain, it joins
/// the queue at the end.
///
/// The other waits check before the first one only if that is not polled: at each change they yield
/// once, and check only if the first did not check meanwhile. So a wait that is never polled again
/// does not block the others.
struct Queue {
    /// The number of the first wait, or `tail` if the queue is empty.
    head: u8,
    /// The number of the next wait to join.
    tail: u8,
    /// The wait that checked last was served: a new wait may check before the queue.
    goes_on: bool,
    /// The number of times the first wait checked in vain; wraps.
    checked: u8,
    /// The number of times the tasks were woken; wraps.
    changes: u8,
    /// The numbers that are still waiting: bit `n` is number `head + n`.
    waiting: u32,
}

/// A wait's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueTicket {
    /// Never joins the queue; checks in each poll.
    Unqueued,
    /// Has not joined the queue yet.
    New,
    /// In the queue.
    Waiting {
        number: u8,
        /// `Queue::changes` when this wait last yielded.
        change: u8,
        /// `Queue::checked` when this wait last yielded.
        checked: u8,
    },
}

/// The action of a wait that is polled.
enum Enter {
    /// Check the condition.
    Check,
    /// Yield: be polled again after the other tasks.
    Yield,
    /// Wait for the next change.
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
            Enter::Yield
        } else if *checked != self.checked {
            Enter::Wait
        } else {
            Enter::Check
        }
    }

    /// Adds the wait at the end of the queue. If 32 numbers are in use, the wait becomes
    /// `Unqueued`.
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

    /// Removes a wait that has its answer. Returns true if other waits should check.
    fn served(&mut self, ticket: &mut QueueTicket) -> bool {
        let was = core::mem::replace(ticket, QueueTicket::Unqueued);
        self.goes_on = was != QueueTicket::Unqueued;
        self.leave(was) || (self.goes_on && !self.is_empty())
    }

    /// Records that the wait checked in vain; a new wait joins the queue.
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

    /// Removes the wait. Returns true if another wait is now the first.
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
