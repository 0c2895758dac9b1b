//! Producers that an nsqlookupd lists and that nobody can connect to: remembered so that each is
//! told once, and not at every poll.
//!
//! The table has as many entries as the [`Discovery`](super::Discovery) has nsqlookupds, for all of
//! them together. An entry is kept as long as its nsqlookupd lists that producer. Those for which
//! there is no entry are counted only ([`LookupdStatus::unusable`](super::LookupdStatus::unusable)).

use core::fmt;

use heapless::String;

use crate::wire::json::{Number, Text};

/// The most bytes kept of a host that cannot be used.
pub(super) const HOST_SHOWN: usize = 40;

/// What is wrong with a producer that an nsqlookupd lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BadProducer {
    /// `broadcast_address` is missing, empty, or no text.
    NoHost,
    /// `broadcast_address` is no host: white space, a control character, a bracket, `/`, or
    /// something that is not ASCII.
    BadHost,
    /// `broadcast_address` has more than [`HOST_MAX`](crate::address::HOST_MAX) bytes.
    HostTooLong,
    /// `tcp_port` is missing.
    NoPort,
    /// `tcp_port` is no number from 1 to 65535.
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
    /// The nsqlookupd that lists it, in the order of their addresses.
    pub lookupd: usize,
    /// `broadcast_address`, cut off at 40 bytes; `?` for what cannot be shown.
    pub host: &'s str,
    /// `tcp_port`, if it is a number; what is larger than it can be is `i32::MAX`.
    pub port: Option<i32>,
    /// What is wrong with it.
    pub why: BadProducer,
}

/// A place for one.
#[derive(Debug)]
pub(super) struct Entry {
    /// The bit of the nsqlookupd; 0 of a free one.
    source: u8,
    /// It is listed in the current answer.
    seen: bool,
    /// Nobody asked for it yet.
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

/// What is wrong with a producer, beside what its host is.
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

    /// Its host, taken whole or not.
    pub(super) fn host(&mut self, host: &Text<'_>, whole: bool) {
        self.host = match whole {
            _ if host.as_bytes().is_empty() => Some(BadProducer::NoHost),
            true => None,
            false if host.truncated() => Some(BadProducer::HostTooLong),
            false => Some(BadProducer::BadHost),
        };
    }

    /// Its port: the number, if it is one. Gives the port, if it can be one.
    pub(super) fn port(&mut self, number: Option<Number>) -> u16 {
        self.port = number.map(|number| number.integer);
        let exact = number.filter(|number| number.exact);
        let port = exact.and_then(|number| u16::try_from(number.integer).ok()).unwrap_or(0);
        self.bad_port = (port == 0).then_some(BadProducer::BadPort);
        port
    }

    /// Enters it for a source, unless it is there. Says whether there is something new to tell.
    #[inline(never)]
    pub(super) fn enter(&self, entries: &mut [Entry], source: u8, host: &str) -> bool {
        // Something is wrong with the host that only making an address of it shows.
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

/// A source's answer begins.
pub(super) fn begin(entries: &mut [Entry], source: u8) {
    entries.iter_mut().filter(|it| it.source == source).for_each(|it| it.seen = false);
}

/// It is whole: those that it lists no more are forgotten, unless nobody was told of them yet.
pub(super) fn end(entries: &mut [Entry], source: u8) {
    for it in entries.iter_mut().filter(|it| it.source == source && !it.seen && !it.pending_event) {
        *it = Entry::FREE;
    }
}
