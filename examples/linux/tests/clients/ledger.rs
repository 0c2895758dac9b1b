//! Records the history of each message and checks these rules:
//!
//! - A connection never has more messages in flight than its RDY.
//! - nsqd delivers while fewer than RDY are in flight. So when it has delivered `d` messages on a
//!   connection, it has processed the first `d - RDY` answers of that connection.
//! - A message whose FIN was processed is never delivered again, on any connection.
//! - Attempts only grow.
//! - In the end each message was finished after its last delivery.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use nanonsq_tests::oracle::Message;

/// All messages, by the number at the start of their body.
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
    /// Never delivered.
    Waiting,
    /// Delivered, and not finished since.
    Delivered,
    /// FIN was sent, and may be lost.
    Finished,
    /// FIN was processed.
    Processed,
}

/// The deliveries and answers of one connection.
#[derive(Debug)]
pub(crate) struct Connection {
    rdy: usize,
    in_flight: HashSet<usize>,
    delivered: usize,
    processed: usize,
    /// Answers not known to be processed: the message, and whether the answer was FIN.
    answers: VecDeque<(usize, bool)>,
}

impl Connection {
    /// Creates a connection with a constant RDY.
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

/// A delivery without an answer yet.
#[derive(Debug)]
pub(crate) struct Delivered {
    number: usize,
    id: [u8; 16],
}

impl Delivered {
    /// Returns the answer: REQ if `again`, else FIN.
    pub(crate) fn answer(&self, again: bool) -> Vec<u8> {
        match again {
            true => [b"REQ ", &self.id[..], b" 0\n"].concat(),
            false => [b"FIN ", &self.id[..], b"\n"].concat(),
        }
    }
}

impl Ledger {
    /// Creates a ledger of messages with numbers from 0.
    pub(crate) fn new(messages: usize) -> Self {
        let entries = vec![Entry { status: Status::Waiting, attempts: 0 }; messages];
        Ledger { messages: Mutex::new(Messages { entries, finished: 0 }) }
    }

    /// Records a delivery.
    pub(crate) fn delivered(&self, connection: &mut Connection, message: &Message) -> Delivered {
        let number = number(&message.body);
        let mut messages = self.lock();
        let is_new = connection.in_flight.insert(number);
        assert!(is_new, "message {number} was delivered twice, and answered at most once");
        let (in_flight, rdy) = (connection.in_flight.len(), connection.rdy);
        assert!(in_flight <= rdy, "{in_flight} in flight with RDY {rdy}");
        connection.delivered += 1;
        messages.process(connection, connection.delivered.saturating_sub(rdy));

        let entry = messages.entries[number];
        assert_ne!(entry.status, Status::Processed, "message {number} delivered after its FIN");
        let attempts = message.attempts;
        assert!(attempts > entry.attempts, "message {number}: {attempts} after {}", entry.attempts);
        messages.set(number, Status::Delivered);
        messages.entries[number].attempts = attempts;
        Delivered { number, id: message.id }
    }

    /// Records an answer that is about to be sent.
    pub(crate) fn answered(&self, connection: &mut Connection, to: &Delivered, again: bool) {
        connection.in_flight.remove(&to.number);
        connection.answers.push_back((to.number, !again));
        if !again {
            self.lock().set(to.number, Status::Finished);
        }
    }

    /// Records that the server has processed all answers of the connection.
    pub(crate) fn all_processed(&self, connection: &mut Connection) {
        self.lock().process(connection, usize::MAX);
    }

    /// Returns the number of messages that were finished after their last delivery.
    pub(crate) fn finished(&self) -> usize {
        self.lock().finished
    }

    /// Asserts at the end that every message was finished.
    pub(crate) fn check_end(&self) {
        let messages = self.lock();
        let mut entries = messages.entries.iter().enumerate();
        let lost = entries.find(|(_, is)| !is.status.is_finished());
        assert!(lost.is_none(), "lost: {lost:?}");
    }

    fn lock(&self) -> MutexGuard<'_, Messages> {
        self.messages.lock().expect("another consumer has found a fault")
    }
}

impl Messages {
    fn set(&mut self, number: usize, status: Status) {
        let is = &mut self.entries[number].status;
        self.finished -= usize::from(is.is_finished());
        *is = status;
        self.finished += usize::from(is.is_finished());
    }

    /// Records that the server has processed `count` answers of the connection.
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

/// Tests that the ledger detects each fault.
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
    fn a_correct_history() {
        let (ledger, mut first) = (Ledger::new(2), Connection::new(2));
        deliver(&ledger, &mut first, 0, 1);
        deliver(&ledger, &mut first, 1, 1);
        finish(&ledger, &mut first, 0);
        assert_eq!(ledger.finished(), 1);
        // The first connection is killed: its FIN may be lost, and message 1 has no answer.
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
    #[should_panic = "message 0 delivered after its FIN"]
    fn a_delivery_after_the_fin_was_processed() {
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
    fn a_lost_message() {
        let (ledger, mut connection) = (Ledger::new(2), Connection::new(2));
        deliver(&ledger, &mut connection, 0, 1);
        deliver(&ledger, &mut connection, 1, 1);
        finish(&ledger, &mut connection, 0);
        ledger.check_end();
    }
}
