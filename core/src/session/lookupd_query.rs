//! A query to an nsqlookupd over HTTP, on a connection of its own, from the dial to the close. The
//! discovery of a consumer and the channel query of an nsqd share this code.
//!
//! The owner scans the answer as it arrives, however long it is: passing the answer through a
//! function here would cost a consumer 60 bytes of flash.

use core::convert::Infallible;

use super::dialed::{Dialed, Role};
use super::{Closed, Link, LinkState, Transmit};
use crate::time::{Backoff, Instant, Span};
use crate::wire::ChunkWriter;
use crate::wire::http::ResponseDecoder;
use crate::wire::json::Scanner;

/// The size of the buffer in which the request is staged, in bytes.
const TX_BUFFER: usize = 46;

/// Queries to one nsqlookupd, one after the other. Keys and strings of an answer are cut after `N`
/// bytes.
#[derive(Debug)]
pub(crate) struct LookupdQuery<const N: usize> {
    pub(crate) dialed: Dialed,
    pub(crate) http: ResponseDecoder,
    pub(crate) json: Scanner<N>,
    tx_buffer: [u8; TX_BUFFER],
}

impl<const N: usize> LookupdQuery<N> {
    /// A value of zero bytes, for storage; [`init`](Self::init) makes it usable.
    pub(crate) const ZERO: Self = Self {
        dialed: Dialed::ZERO,
        http: ResponseDecoder::ZERO,
        json: Scanner::ZERO,
        tx_buffer: [0; TX_BUFFER],
    };

    /// Sets the connection to idle, as one on which no query was made.
    pub(crate) fn init(&mut self) {
        self.dialed = Dialed::new(Role::Query, Backoff::ONE);
    }

    /// Schedules the first query for `at`.
    pub(crate) fn start(&mut self, at: Instant) {
        self.dialed = Dialed::due(Role::Query, Backoff::ONE, at);
    }

    pub(crate) fn state(&self) -> LinkState {
        self.dialed.state()
    }

    /// Notes that the transport is up: the query is given up at `until`. Returns false, and changes
    /// nothing, if no connection is wanted.
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

    /// Returns whether there is a connection or a dial.
    pub(crate) fn is_busy(&self) -> bool {
        !self.state().is_down()
    }

    /// Returns what the driver should do with the transport.
    pub(crate) fn link(&self) -> Link {
        self.dialed.link()
    }

    /// Returns the bytes of the request to write next. `request` writes all of the request.
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

    /// Returns when to call `leave` or `tick`: at once if the answer is not `wanted` any more.
    pub(crate) fn deadline(&self, wanted: bool) -> Instant {
        let unwanted = !wanted && self.state().is_coming_up();
        if unwanted { Instant::ZERO } else { self.dialed.deadline }
    }

    /// Closes the connection if the answer is not `wanted` any more, and returns whether it did.
    pub(crate) fn leave(&mut self, wanted: bool, now: Instant, close_timeout: Span) -> bool {
        let unwanted = !wanted && self.state().is_coming_up();
        if unwanted {
            self.close(now, Closed::Local, close_timeout);
        }
        unwanted
    }

    /// Closes the connection if its deadline has passed, and returns whether it did.
    pub(crate) fn tick(&mut self, now: Instant, close_timeout: Span) -> bool {
        let why = self.dialed.tick(now);
        if let Some(why) = why {
            self.close(now, why, close_timeout);
        }
        why.is_some()
    }
}
