//! What happened to each message, and what must not happen.
//!
//! - A connection never has more messages in flight than its RDY.
//! - nsqd delivers while fewer than RDY are in flight. So when it has delivered `d` messages on a
//!   connection, it has processed the first `d - RDY` answers that it got there.
//! - What it has processed as finished never comes again, to nobody.
//! - Attempts only grow.
//! - In the end each message was finished after it was delivered for the last time.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use nanonsq_tests::oracle::Message;

/// All messages, by the number that their body begins with.
#[derive(Debug)]
pub(crate) struct Ledger {
    messages: Mutex<Messages>,
}

#[derive(Debug)]
struct Messages {
    entries: Vec<Entry>,
    finished: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    status: Status,
    attempts: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    /// Nobody has had it yet.
    Waiting,
    /// Somebody had it, and has not finished it.
    Delivered,
    /// FIN was sent, and may be lost.
    Finished,
    /// FIN was processed.
    Processed,
}

/// What one connection has got and answered.
#[derive(Debug)]
pub(crate) struct Connection {
    rdy: usize,
    in_flight: HashSet<usize>,
    delivered: usize,
    processed: usize,
    /// Those that were not known to be processed yet: the message, and whether it was finished.
    answers: VecDeque<(usize, bool)>,
}

impl Connection {
    /// That asks for `rdy` messages, and never for another number.
    pub(crate) fn new(rdy: usize) -> Self {
        Connection {
            rdy,
            in_flight: HashSet::new(),
            delivered: 0,
            processed: 0,
            answers: VecDeque::new(),
        }
    }
}

/// A delivery that is to be answered.
#[derive(Debug)]
pub(crate) struct Delivered {
    number: usize,
    id: [u8; 16],
}

impl Delivered {
    /// The answer: again, or finished.
    pub(crate) fn answer(&self, again: bool) -> Vec<u8> {
        match again {
            true => [b"REQ ", &self.id[..], b" 0\n"].concat(),
            false => [b"FIN ", &self.id[..], b"\n"].concat(),
        }
    }
}

impl Ledger {
    /// Of messages that are numbered from 0.
    pub(crate) fn new(messages: usize) -> Self {
        let entries = vec![Entry { status: Status::Waiting, attempts: 0 }; messages];
        Ledger { messages: Mutex::new(Messages { entries, finished: 0 }) }
    }

    /// Enters a delivery.
    pub(crate) fn delivered(&self, connection: &mut Connection, message: &Message) -> Delivered {
        let number = number(&message.body);
        let mut messages = self.lock();
        let is_new = connection.in_flight.insert(number);
        assert!(is_new, "message {number} came twice, and was answered once at most");
        let (in_flight, rdy) = (connection.in_flight.len(), connection.rdy);
        assert!(in_flight <= rdy, "{in_flight} in flight with RDY {rdy}");
        connection.delivered += 1;
        messages.process(connection, connection.delivered.saturating_sub(rdy));

        let entry = messages.entries[number];
        assert_ne!(entry.status, Status::Processed, "message {number} came after its FIN");
        let attempts = message.attempts;
        assert!(attempts > entry.attempts, "message {number}: {attempts} after {}", entry.attempts);
        messages.set(number, Status::Delivered);
        messages.entries[number].attempts = attempts;
        Delivered { number, id: message.id }
    }

    /// Enters an answer that is about to leave.
    pub(crate) fn answered(&self, connection: &mut Connection, to: &Delivered, again: bool) {
        connection.in_flight.remove(&to.number);
        connection.answers.push_back((to.number, !again));
        if !again {
            self.lock().set(to.number, Status::Finished);
        }
    }

    /// The server has read all that this connection sent.
    pub(crate) fn all_processed(&self, connection: &mut Connection) {
        self.lock().process(connection, usize::MAX);
    }

    /// How many messages were finished after their last delivery.
    pub(crate) fn finished(&self) -> usize {
        self.lock().finished
    }

    /// Nothing more comes: nothing was lost.
    pub(crate) fn check_end(&self) {
        let messages = self.lock();
        let mut entries = messages.entries.iter().enumerate();
        let lost = entries.find(|(_, is)| !is.status.is_finished());
        assert!(lost.is_none(), "lost: {lost:?}");
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().expect("another consumer has found what is wrong")
    }
}

impl Messages {
    fn set(&mut self, number: usize, status: Status) {
        let is = &mut self.entries[number].status;
        self.finished -= usize::from(is.is_finished());
        *is = status;
        self.finished += usize::from(is.is_finished());
    }

    /// The server has processed so many answers of this connection.
    fn process(&mut self, connection: &mut Connection, count: usize) {
        while connection.processed < count {
            let Some((number, finished)) = connection.answers.pop_front() else { break };
            connection.processed += 1;
            if finished && self.entries[number].status == Status::Finished {
                self.set(number, Status::Processed);
            }
        }
    }
}

impl Status {
    fn is_finished(self) -> bool {
        match self {
            Status::Waiting | Status::Delivered => false,
            Status::Finished | Status::Processed => true,
        }
    }
}

fn number(body: &[u8]) -> usize {
    let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = std::str::from_utf8(&body[..digits]).ok().and_then(|digits| digits.parse().ok());
    number.unwrap_or_else(|| panic!("a body without a number: {}", String::from_utf8_lossy(body)))
}

/// It finds what it is for.
mod tests {
    use super::*;

    fn message(number: usize, attempts: u16) -> Message {
        let id = *b"0123456789abcdef";
        Message { timestamp: 0, attempts, id, body: format!("{number}...").into_bytes() }
    }

    fn deliver(ledger: &Ledger, connection: &mut Connection, number: usize, attempts: u16) {
        ledger.delivered(connection, &message(number, attempts));
    }

    fn finish(ledger: &Ledger, connection: &mut Connection, number: usize) {
        ledger.answered(connection, &Delivered { number, id: *b"0123456789abcdef" }, false);
    }

    #[test]
    fn what_may_be() {
        let (ledger, mut first) = (Ledger::new(2), Connection::new(2));
        deliver(&ledger, &mut first, 0, 1);
        deliver(&ledger, &mut first, 1, 1);
        finish(&ledger, &mut first, 0);
        assert_eq!(ledger.finished(), 1);
        // It is killed: its FIN may be lost, and the other message was never answered.
        let mut second = Connection::new(1);
        deliver(&ledger, &mut second, 0, 2);
        assert_eq!(ledger.finished(), 0);
        finish(&ledger, &mut second, 0);
        deliver(&ledger, &mut second, 1, 2);
        finish(&ledger, &mut second, 1);
        assert_eq!(ledger.finished(), 2);
        ledger.check_end();
    }

    #[test]
    #[should_panic = "2 in flight with RDY 1"]
    fn more_in_flight_than_rdy() {
        let (ledger, mut connection) = (Ledger::new(2), Connection::new(1));
        deliver(&ledger, &mut connection, 0, 1);
        deliver(&ledger, &mut connection, 1, 1);
    }

    #[test]
    #[should_panic = "message 0 came after its FIN"]
    fn again_after_its_fin_was_processed() {
        let (ledger, mut connection) = (Ledger::new(2), Connection::new(1));
        deliver(&ledger, &mut connection, 0, 1);
        finish(&ledger, &mut connection, 0);
        // With RDY 1, this shows that the FIN was processed.
        deliver(&ledger, &mut connection, 1, 1);
        deliver(&ledger, &mut Connection::new(1), 0, 2);
    }

    #[test]
    #[should_panic = "message 0: 1 after 1"]
    fn attempts_that_do_not_grow() {
        let ledger = Ledger::new(1);
        deliver(&ledger, &mut Connection::new(1), 0, 1);
        deliver(&ledger, &mut Connection::new(1), 0, 1);
    }

    #[test]
    #[should_panic = "lost: Some((1, Entry { status: Delivered, attempts: 1 }))"]
    fn lost() {
        let (ledger, mut connection) = (Ledger::new(2), Connection::new(2));
        deliver(&ledger, &mut connection, 0, 1);
        deliver(&ledger, &mut connection, 1, 1);
        finish(&ledger, &mut connection, 0);
        ledger.check_end();
    }
}
