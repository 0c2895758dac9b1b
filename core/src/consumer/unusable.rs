//! Listed producers with an unusable address: stored, so that each is reported once and not at
//! every query.
//!
//! The table has as many entries as the [`Discovery`](super::Discovery) has nsqlookupds, for all of
//! them together. An entry is kept while its nsqlookupd lists the producer. Producers without an
//! entry are only counted ([`LookupdStatus::unusable`](super::LookupdStatus::unusable)).

use core::fmt;

use heapless::String;

use crate::wire::json::{Number, Text};

/// The maximum number of bytes kept of an unusable host.
pub(super) const HOST_SHOWN: usize = 40;

/// The error in a producer that an nsqlookupd lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BadProducer {
    /// `broadcast_address` is missing, empty, or not a string.
    NoHost,
    /// `broadcast_address` is not a host: it contains white space, a control character, a bracket,
    /// `/`, or a character that is not ASCII.
    BadHost,
    /// `broadcast_address` has more than [`HOST_MAX`](crate::address::HOST_MAX) bytes.
    HostTooLong,
    /// `tcp_port` is missing.
    NoPort,
    /// `tcp_port` is not a number from 1 to 65535.
    BadPort,
}

impl fmt::Display for BadProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHost => "broadcast_address is missing or empty",
            Self::BadHost => "broadcast_address is not a host (IPv6 addresses have no brackets)",
            Self::HostTooLong => "broadcast_address is too long: at most 96 bytes are kept",
            Self::NoPort => "tcp_port is missing",
            Self::BadPort => "tcp_port is not a number from 1 to 65535",
        })
    }
}

impl core::error::Error for BadProducer {}

/// A producer that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unusable<'s> {
    /// The index of the nsqlookupd that lists the producer, in the order of the addresses.
    pub lookupd: usize,
    /// `broadcast_address`, cut off at 40 bytes, with `?` for characters that cannot be shown.
    pub host: &'s str,
    /// `tcp_port`, if it is a number; `i32::MAX` for larger numbers.
    pub port: Option<i32>,
    /// The error.
    pub why: BadProducer,
}

/// An entry for an unusable producer.
#[derive(Debug)]
pub(super) struct Entry {
    /// The bit of the nsqlookupd; 0 in a free entry.
    source: u8,
    /// The current answer lists the producer.
    seen: bool,
    /// The event of the producer was not polled yet.
    pending_event: bool,
    host: String<HOST_SHOWN, u8>,
    port: Option<i32>,
    why: BadProducer,
}

impl Entry {
    pub(super) const FREE: Self = Self {
        source: 0,
        seen: false,
        pending_event: false,
        host: String::new(),
        port: None,
        why: BadProducer::NoHost,
    };

    pub(super) fn take_pending_event(&mut self) -> bool {
        core::mem::take(&mut self.pending_event)
    }

    pub(super) fn shown(&self) -> Option<Unusable<'_>> {
        let Self { source, port, why, ref host, .. } = *self;
        let lookupd = source.trailing_zeros() as usize;
        (source != 0).then_some(Unusable { lookupd, host, port, why })
    }
}

/// The errors in the producer being read, and its port. Its host is stored elsewhere.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) host: Option<BadProducer>,
    port: Option<i32>,
    bad_port: Option<BadProducer>,
}

impl Listed {
    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self =
        Self { host: Some(BadProducer::NoHost), port: None, bad_port: Some(BadProducer::NoHost) };

    pub(super) const NOTHING: Self =
        Self { host: Some(BadProducer::NoHost), port: None, bad_port: Some(BadProducer::NoPort) };

    /// Records the host. `whole`: all of it was stored.
    pub(super) fn host(&mut self, host: &Text<'_>, whole: bool) {
        self.host = match whole {
            _ if host.as_bytes().is_empty() => Some(BadProducer::NoHost),
            true => None,
            false if host.truncated() => Some(BadProducer::HostTooLong),
            false => Some(BadProducer::BadHost),
        };
    }

    /// Records the port, which is `None` if it is not a number. Returns the port, 0 if it is
    /// invalid.
    pub(super) fn port(&mut self, number: Option<Number>) -> u16 {
        self.port = number.map(|number| number.integer);
        let exact = number.filter(|number| number.exact);
        let port = exact.and_then(|number| u16::try_from(number.integer).ok()).unwrap_or(0);
        self.bad_port = (port == 0).then_some(BadProducer::BadPort);
        port
    }

    /// Adds the producer to the table for a source, unless it is there. Returns whether there is a
    /// new event.
    pub(super) fn enter(&self, entries: &mut [Entry], source: u8, host: &str) -> bool {
        // Without another error, the host was not accepted as an address.
        let why = self.host.or(self.bad_port).unwrap_or(BadProducer::BadHost);
        let mut shown = String::new();
        for byte in host.bytes().take(HOST_SHOWN) {
            let byte = if matches!(byte, b' '..=b'~') { byte } else { b'?' };
            let _ = shown.push(byte.into());
        }
        let is_it = |it: &&mut Entry| {
            it.source == source && it.why == why && it.port == self.port && it.host == shown
        };
        if let Some(known) = entries.iter_mut().find(is_it) {
            known.seen = true;
            return false;
        }
        let Some(free) = entries.iter_mut().find(|it| it.source == 0) else { return false };
        *free =
            Entry { source, seen: true, pending_event: true, host: shown, port: self.port, why };
        true
    }
}

/// Begins a source's answer.
pub(super) fn begin(entries: &mut [Entry], source: u8) {
    entries.iter_mut().filter(|it| it.source == source).for_each(|it| it.seen = false);
}

/// Ends a source's answer: removes the producers that it no longer lists, except those whose event
/// was not polled yet.
pub(super) fn end(entries: &mut [Entry], source: u8) {
    for it in entries.iter_mut().filter(|it| it.source == source && !it.seen && !it.pending_event) {
        *it = Entry::FREE;
    }
}
