//! A query to an nsqlookupd over HTTP, on a connection of its own, from the dial to the close. The
//! discovery of a consumer and the channel query of an nsqd share it.
//!
//! The owner scans the answer as it arrives, however long it is: handing it on by way of a function
//! would cost a consumer 60 bytes of flash.

use core::convert::Infallible;

use super::dialed::{Dialed, Role};
use super::{Closed, Link, LinkState, Transmit};
use crate::time::{Backoff, Instant, Span};
use crate::wire::ChunkWriter;
use crate::wire::http::ResponseDecoder;
use crate::wire::json::Scanner;

/// Bytes of the request that are staged at once.
const TX_BUFFER: usize = 46;

/// Queries to one nsqlookupd, one after the other. Keys and strings in an answer have `N` bytes at
/// most; longer ones are cut.
#[derive(Debug)]
pub(crate) struct LookupdQuery<const N: usize> {
    pub(crate) dialed: Dialed,
    pub(crate) http: ResponseDecoder,
    pub(crate) json: Scanner<N>,
    tx_buffer: [u8; TX_BUFFER],
}

impl<const N: usize> LookupdQuery<N> {
    /// All bytes are zero, for storage: [`init`](Self::init) makes it usable.
    pub(crate) const ZERO: Self = Self {
        dialed: Dialed::ZERO,
        http: ResponseDecoder::ZERO,
        json: Scanner::ZERO,
        tx_buffer: [0; TX_BUFFER],
    };

    /// Not started; never asked.
    pub(crate) fn init(&mut self) {
        self.dialed = Dialed::new(Role::Query, Backoff::ONE);
    }

    /// The first query is due at a time.
    pub(crate) fn start(&mut self, at: Instant) {
        self.dialed = Dialed::due(Role::Query, Backoff::ONE, at);
    }

    pub(crate) fn state(&self) -> LinkState {
        self.dialed.state()
    }

    /// The transport is up: the query is given up at `until`. Not if no transport is wanted.
    pub(crate) fn open(&mut self, now: Instant, until: Instant) -> bool {
        let wanted = self.dialed.come_up(now);
        if wanted {
            self.http = ResponseDecoder::new();
            self.json = Scanner::new();
            self.dialed.step(LinkState::Asking, until);
        }
        wanted
    }

    /// Asks the driver to close the connection within `timeout`.
    pub(crate) fn close(&mut self, now: Instant, why: Closed, timeout: Span) {
        self.dialed.staging.truncate();
        self.dialed.close(&why, timeout, now);
    }

    /// Whether there is a connection or a dial.
    pub(crate) fn is_busy(&self) -> bool {
        !self.state().is_down()
    }

    /// What the driver should do.
    pub(crate) fn link(&self) -> Link {
        self.dialed.link()
    }

    /// What to write next of the request, all of which `request` writes.
    pub(crate) fn transmit(
        &mut self,
        request: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) -> Transmit<'_> {
        let asks = self.state() == LinkState::Asking;
        let staging = &mut self.dialed.staging;
        if asks && !staging.is_writing() {
            staging.stage_text(&mut self.tx_buffer, request);
        }
        Transmit { head: staging.pending(&self.tx_buffer), body: &[] }
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.dialed.staging.sent(n);
    }

    /// When to do the next thing: at once if the answer is not `wanted` any more.
    pub(crate) fn deadline(&self, wanted: bool) -> Instant {
        let unwanted = !wanted && self.state().is_coming_up();
        if unwanted { Instant::ZERO } else { self.dialed.deadline }
    }

    /// Closes the connection if the answer is not `wanted` any more. Says whether that is so.
    pub(crate) fn leave(&mut self, wanted: bool, now: Instant, close_timeout: Span) -> bool {
        let unwanted = !wanted && self.state().is_coming_up();
        if unwanted {
            self.close(now, Closed::Local, close_timeout);
        }
        unwanted
    }

    /// Closes what takes too long. Says whether it does.
    pub(crate) fn tick(&mut self, now: Instant, close_timeout: Span) -> bool {
        let why = self.dialed.tick(now);
        if let Some(why) = why {
            self.close(now, why, close_timeout);
        }
        why.is_some()
    }
}
