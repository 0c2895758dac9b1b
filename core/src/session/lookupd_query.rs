//! A query to an nsqlookupd over HTTP, on a connection of its own, from the dial to the close. The
//! discovery of a consumer and the channel query of an nsqd share it.
//!
//! ```text
//!            dial            open            answered, fault, timeout
//! Waiting ---------> Dialing ----> Asking ----------------------------> Closing
//!    ^                  |             | the connection broke               |
//!    +------------------+-------------+------------------------------------+
//! ```
//!
//! The owner scans the answer as it arrives, however long it is: handing it on by way of a function
//! would cost a consumer 60 bytes of flash.

use core::convert::Infallible;

use super::staging::Staging;
use super::{Awaited, Closed, DialError, Fault, Link, Transmit};
use crate::macros::trace_state;
use crate::time::{Instant, Span};
use crate::wire::ChunkWriter;
use crate::wire::http::ResponseDecoder;
use crate::wire::json::Scanner;

/// Bytes of the request that are staged at once.
const TX_BUFFER: usize = 60;

/// The state of a query to an nsqlookupd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum LookupdState {
    /// There is no such nsqlookupd, or the owner has stopped.
    Unused,
    /// The next request is due at a time, or when there is something to ask.
    Waiting,
    /// A dial is under way.
    Dialing,
    /// The request is being sent, or the answer read.
    Asking,
    /// The driver is to close the connection.
    Closing,
}

/// Queries to one nsqlookupd, one after the other. Keys and strings in an answer have `N` bytes at
/// most; longer ones are cut.
#[derive(Debug)]
pub(crate) struct LookupdQuery<const N: usize> {
    state: LookupdState,
    /// How the last one ended.
    why: Option<Closed>,
    /// A query ended since [`take_pending_event`](Self::take_pending_event) was called.
    pending_event: bool,
    /// The text is the request.
    staging: Staging,
    /// Waiting: ask, if the owner says so. Dialing, Asking: give up. Closing: abort.
    step: Instant,
    pub(crate) http: ResponseDecoder,
    pub(crate) json: Scanner<N>,
    tx_buffer: [u8; TX_BUFFER],
}

impl<const N: usize> LookupdQuery<N> {
    /// All bytes are zero, for storage: [`init`](Self::init) makes it usable.
    pub(crate) const ZERO: Self = Self {
        state: LookupdState::Unused,
        why: Some(Closed::ZERO),
        pending_event: false,
        staging: Staging::EMPTY,
        step: Instant::ZERO,
        http: ResponseDecoder::ZERO,
        json: Scanner::ZERO,
        tx_buffer: [0; TX_BUFFER],
    };

    /// Not started; never asked.
    pub(crate) fn init(&mut self) {
        self.state = LookupdState::Unused;
        self.why = None;
        self.pending_event = false;
        self.step = Instant::NEVER;
    }

    pub(crate) fn state(&self) -> LookupdState {
        self.state
    }

    pub(crate) fn why(&self) -> Option<Closed> {
        self.why
    }

    /// Whether a query ended since this was called last.
    pub(crate) fn take_pending_event(&mut self) -> bool {
        core::mem::take(&mut self.pending_event)
    }

    pub(crate) fn step(&self) -> Instant {
        self.step
    }

    fn set_state(&mut self, state: LookupdState) {
        trace_state!("lookupd", self.state, state);
        self.state = state;
    }

    /// Starts: the first query is due at `at`.
    pub(crate) fn start(&mut self, at: Instant) {
        self.step = at;
        self.state = LookupdState::Waiting;
    }

    /// Stops: no query follows.
    pub(crate) fn retire(&mut self) {
        self.step = Instant::NEVER;
        self.set_state(LookupdState::Unused);
    }

    /// The next query is due at `until`.
    pub(crate) fn wait(&mut self, until: Instant) {
        trace_state!("lookupd", self.state, LookupdState::Waiting);
        self.start(until);
    }

    /// A dial begins, which is given up at `until`.
    pub(crate) fn dial(&mut self, until: Instant) {
        self.step = until;
        self.set_state(LookupdState::Dialing);
    }

    /// The dial succeeded: the query is given up at `until`.
    pub(crate) fn open(&mut self, until: Instant) {
        self.http = ResponseDecoder::new();
        self.json = Scanner::new();
        self.staging = Staging::EMPTY;
        self.step = until;
        self.set_state(LookupdState::Asking);
    }

    /// Asks the driver to close the connection within `timeout`.
    pub(crate) fn close(&mut self, now: Instant, why: Closed, timeout: Span) {
        self.why = Some(why);
        self.staging.truncate();
        self.step = now.after(timeout);
        self.set_state(LookupdState::Closing);
    }

    /// Whether there is a connection or a dial.
    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.state, LookupdState::Unused | LookupdState::Waiting)
    }

    /// What the driver should do, if the answer is still `wanted` or not.
    pub(crate) fn link(&self, wanted: bool) -> Link {
        match self.state {
            LookupdState::Unused | LookupdState::Waiting => Link::Down,
            LookupdState::Dialing | LookupdState::Asking if wanted => Link::Up,
            LookupdState::Dialing | LookupdState::Asking | LookupdState::Closing => Link::Close,
        }
    }

    /// What to write next of the request, all of which `request` writes.
    pub(crate) fn transmit(
        &mut self,
        request: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) -> Transmit<'_> {
        if self.state == LookupdState::Asking && !self.staging.is_writing() {
            self.staging.stage_text(&mut self.tx_buffer, request);
        }
        Transmit { head: self.staging.pending(&self.tx_buffer), body: &[] }
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.staging.sent(n);
    }

    /// Closes what takes too long.
    pub(crate) fn tick(&mut self, now: Instant, close_timeout: Span) {
        if now < self.step {
            return;
        }
        let why = match self.state {
            LookupdState::Dialing => Closed::Dial(DialError::TimedOut),
            LookupdState::Asking => Closed::Fault(Fault::TimedOut(Awaited::Reply)),
            LookupdState::Unused | LookupdState::Waiting | LookupdState::Closing => return,
        };
        self.close(now, why, close_timeout);
    }

    /// The connection that there [was](Self::is_busy) is gone, or its dial failed. Gives the reason.
    #[inline]
    pub(crate) fn closed(&mut self, why: Closed) -> Closed {
        let why = match self.state {
            LookupdState::Closing => self.why.unwrap_or(why),
            _ => why,
        };
        self.why = Some(why);
        self.pending_event = true;
        self.staging.clear();
        why
    }
}
