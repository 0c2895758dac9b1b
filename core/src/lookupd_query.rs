//! One question to an nsqlookupd over HTTP, on a connection of its own, from the dial to the close:
//! what a consumer that looks for nsqds and a node that looks for channels have in common.
//!
//! ```text
//!            dial            open            answered, fault, timeout
//! Waiting ---------> Dialing ----> Asking ----------------------------> Closing
//!    ^                  |             | the connection broke               |
//!    +------------------+-------------+------------------------------------+
//! ```
//!
//! The answer is scanned as it arrives, however long it is, by who asked: handing it on by way of a
//! function would cost a consumer 60 bytes of flash.

use core::convert::Infallible;

use crate::macros::trace_state;
use crate::session::{Awaited, Closed, DialError, Fault, Link, Transmit};
use crate::time::{Instant, Span};
use crate::wire::ChunkWriter;
use crate::wire::http::ResponseDecoder;
use crate::wire::json::Scanner;

const STAGING: usize = 60;

/// Where asking an nsqlookupd is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum LookupdState {
    /// There is no such nsqlookupd, or who asks has stopped.
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

/// One connection after the other. Keys and strings in an answer have `N` bytes at most; longer
/// ones are cut.
#[derive(Debug)]
pub(crate) struct LookupdQuery<const N: usize> {
    state: LookupdState,
    /// How the last one ended.
    why: Option<Closed>,
    /// Nobody asked how that was.
    news: bool,
    staged: u8,
    written: u8,
    /// How much of the request was staged, and its length once known.
    request_at: u16,
    request_len: u16,
    /// Waiting: ask, if the owner says so. Dialing, Asking: give up. Closing: abort.
    step: Instant,
    pub(crate) http: ResponseDecoder,
    pub(crate) json: Scanner<N>,
    staging: [u8; STAGING],
}

impl<const N: usize> LookupdQuery<N> {
    /// For storage.
    pub(crate) const NEW: Self = Self {
        state: LookupdState::Unused,
        why: None,
        news: false,
        staged: 0,
        written: 0,
        request_at: 0,
        request_len: 0,
        step: Instant::NEVER,
        http: ResponseDecoder::new(),
        json: Scanner::new(),
        staging: [0; STAGING],
    };

    pub(crate) fn state(&self) -> LookupdState {
        self.state
    }

    pub(crate) fn why(&self) -> Option<Closed> {
        self.why
    }

    /// Whether one ended since this was asked last.
    pub(crate) fn take_pending_event(&mut self) -> bool {
        core::mem::take(&mut self.news)
    }

    pub(crate) fn step(&self) -> Instant {
        self.step
    }

    fn set_state(&mut self, state: LookupdState) {
        trace_state!("lookupd", self.state, state);
        self.state = state;
    }

    /// What was unused so far asks at a time.
    pub(crate) fn start(&mut self, at: Instant) {
        self.step = at;
        self.state = LookupdState::Waiting;
    }

    /// Asks no more.
    pub(crate) fn retire(&mut self) {
        self.step = Instant::NEVER;
        self.set_state(LookupdState::Unused);
    }

    /// Asks at a time.
    pub(crate) fn wait(&mut self, until: Instant) {
        trace_state!("lookupd", self.state, LookupdState::Waiting);
        self.start(until);
    }

    /// Dials, until a time.
    pub(crate) fn dial(&mut self, until: Instant) {
        self.step = until;
        self.set_state(LookupdState::Dialing);
    }

    /// Asks, until a time.
    pub(crate) fn open(&mut self, until: Instant) {
        self.http = ResponseDecoder::new();
        self.json = Scanner::new();
        self.staged = 0;
        self.written = 0;
        self.request_at = 0;
        self.request_len = 0;
        self.step = until;
        self.set_state(LookupdState::Asking);
    }

    /// Has the connection closed, until a time.
    pub(crate) fn close(&mut self, now: Instant, why: Closed, timeout: Span) {
        self.why = Some(why);
        self.staged = self.written;
        self.step = now.after(timeout);
        self.set_state(LookupdState::Closing);
    }

    /// Whether there is a connection, or is to be one.
    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.state, LookupdState::Unused | LookupdState::Waiting)
    }

    /// The link, if the answer is still wanted.
    pub(crate) fn link(&self, wanted: bool) -> Link {
        match self.state {
            LookupdState::Unused | LookupdState::Waiting => Link::Down,
            LookupdState::Dialing | LookupdState::Asking if wanted => Link::Up,
            LookupdState::Dialing | LookupdState::Asking | LookupdState::Closing => Link::Close,
        }
    }

    /// `request` writes all of it.
    pub(crate) fn transmit(
        &mut self,
        request: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) -> Transmit<'_> {
        if self.written >= self.staged
            && self.state == LookupdState::Asking
            && (self.request_len == 0 || self.request_at < self.request_len)
        {
            self.stage(request);
        }
        let pending = self.written.into()..self.staged.into();
        Transmit { head: self.staging.get(pending).unwrap_or_default(), body: &[] }
    }

    /// The request is longer than the staging area: it is made again for each piece.
    #[inline(never)]
    fn stage(&mut self, request: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>) {
        let mut window = ChunkWriter::new(&mut self.staging, self.request_at.into());
        let Ok(()) = request(&mut window);
        let staged = window.written();
        self.request_len = window.total() as u16;
        self.staged = staged as u8;
        self.written = 0;
        self.request_at = self.request_at.saturating_add(staged as u16);
    }

    pub(crate) fn sent(&mut self, n: usize) {
        let n = n.min(self.staged.saturating_sub(self.written).into());
        self.written = self.written.saturating_add(n as u8);
    }

    /// Gives up what takes too long.
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

    /// The connection is gone, if there [is](Self::is_busy) one or was to be one: why.
    #[inline]
    pub(crate) fn closed(&mut self, why: Closed) -> Closed {
        let why = match self.state {
            LookupdState::Closing => self.why.unwrap_or(why),
            _ => why,
        };
        self.why = Some(why);
        self.news = true;
        self.staged = 0;
        self.written = 0;
        why
    }
}
