//! What the roles of clients share.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// Lines for the log: whether it is a warning, and the text.
pub(crate) type Lines = Vec<(bool, String)>;

/// Polls a future once. A call under a client's lock does not wait: it is made again after a change.
pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// What the log says of a server: each cause of a failure once, not at each attempt.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer {
    connected: bool,
    /// Why there is no connection, as the log says it.
    why: Option<String>,
}

impl Peer {
    pub(crate) fn why(&self) -> Option<&String> {
        self.why.as_ref()
    }

    pub(crate) fn connected(&mut self, line: String, lines: &mut Lines) {
        lines.push((false, line));
        *self = Self { connected: true, why: None };
    }

    /// The connection was closed on purpose.
    pub(crate) fn closed(&mut self) {
        self.connected = false;
    }

    /// Returns the beginning of a line about a failure.
    pub(crate) fn failed(&self) -> &'static str {
        if self.connected { "lost" } else { "cannot connect to" }
    }

    pub(crate) fn lost(&mut self, line: String, lines: &mut Lines) {
        if self.connected || self.why.as_ref() != Some(&line) {
            lines.push((true, line.clone()));
        }
        *self = Self { connected: false, why: Some(line) };
    }
}

/// The end of a server, once it has begun.
#[derive(Default)]
pub(crate) struct Stop<'a>(Option<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>);

impl<'a> Stop<'a> {
    pub(crate) fn begin(&mut self, stop: impl Future<Output = ()> + Send + 'a) {
        self.0 = Some(Box::pin(stop));
    }

    /// Carries it on. Returns true once: when it is done.
    pub(crate) fn is_done(&mut self) -> bool {
        let is_done = self.0.as_mut().is_some_and(|stop| poll_once(stop.as_mut()).is_ready());
        if is_done {
            self.0 = None;
        }
        is_done
    }
}
