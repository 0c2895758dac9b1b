//! The tables that are listed, and one entry of a list.

use core::convert::Infallible;

use crate::http::Piece;
use crate::http::emit::{emit_i64, emit_remote, emit_text};
use crate::nsqlookupd::Shared;
use crate::nsqlookupd::producer::{Producer, twins};
use crate::nsqlookupd::table::numbered;
use crate::time::Instant;
use crate::wire::nsqlookupd::OwnedNodeInfo;
use crate::wire::{Decimal, Write};

/// The value of Go's `Time{}.UnixNano()`, which means never tombstoned.
const NEVER: i64 = -6_795_364_578_871_345_152;

/// The tables that are listed, and the current time.
#[derive(Debug)]
pub(in crate::nsqlookupd) struct View<'v, 'a> {
    pub(in crate::nsqlookupd) producers: &'v [Producer],
    pub(in crate::nsqlookupd) shared: &'v Shared<'a>,
    pub(in crate::nsqlookupd) now: Instant,
}

/// The connection that a list shows for an address.
pub(super) struct Listed<'v> {
    id: usize,
    producer: &'v Producer,
    node: &'v OwnedNodeInfo,
}

impl Listed<'_> {
    /// Writes the entry, 720 bytes at most; `end` ends the object.
    pub(super) fn emit(&self, piece: &mut Piece<'_>, count: u16, end: &str) -> bool {
        let node = self.node;
        piece.put(|w| {
            w.write_all(if count == 0 { b"" } else { b"," })?;
            w.write_all(b"{\"remote_address\":\"")?;
            emit_remote(w, self.producer.remote())?;
            w.write_all(b"\",\"hostname\":")?;
            emit_text(w, &node.hostname)?;
            w.write_all(b",\"broadcast_address\":")?;
            emit_text(w, &node.broadcast_address)?;
            w.write_all(b",\"tcp_port\":")?;
            w.write_all(Decimal::unsigned(node.tcp_port.into()).as_bytes())?;
            w.write_all(b",\"http_port\":")?;
            w.write_all(Decimal::unsigned(node.http_port.into()).as_bytes())?;
            w.write_all(b",\"version\":")?;
            emit_text(w, &node.version)?;
            for (key, text) in [
                (",\"topology_zone\":", &node.topology_zone),
                (",\"topology_region\":", &node.topology_region),
            ] {
                if !text.is_empty() {
                    w.write_all(key.as_bytes())?;
                    emit_text(w, text)?;
                }
            }
            w.write_all(end.as_bytes())
        })
    }
}

/// The keys of `/debug`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Key<'v> {
    Client,
    Topic(usize, &'v str),
    Channel(usize, &'v str, &'v str),
    /// A free slot.
    None,
}

impl Key<'_> {
    /// Writes the key, which needs no escaping.
    pub(super) fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let (category, topic, channel) = match *self {
            Self::Client | Self::None => ("client:", "", ""),
            Self::Topic(_, topic) => ("topic:", topic, ""),
            Self::Channel(_, topic, channel) => ("channel:", topic, channel),
        };
        w.write_all(category.as_bytes())?;
        w.write_all(topic.as_bytes())?;
        w.write_all(b":")?;
        w.write_all(channel.as_bytes())
    }
}

impl<'v> View<'v, '_> {
    /// Returns the slots of a list's entries from slot `from` on: one for each address, at the
    /// first of its connections. `since` is the last serial number issued when the list began:
    /// later connections rank behind the others, so that they do not move an entry to slots that
    /// the list has already passed.
    pub(super) fn entries(&self, from: usize, since: u32) -> impl Iterator<Item = usize> + use<'v> {
        let producers = self.producers;
        let slots = numbered(producers, from).filter(|(_, producer)| producer.node().is_some());
        let is_entry = move |&(at, producer): &(usize, &Producer)| {
            let position = (producer.is_after(since), at);
            twins(producers, at).all(|(other, twin)| (twin.is_after(since), other) >= position)
        };
        slots.filter(is_entry).map(|(at, _)| at)
    }

    /// Returns the connection that sent something last, among those with the address of `at` for
    /// which `is_listed` holds.
    pub(super) fn latest(
        &self,
        at: usize,
        is_listed: impl Fn(usize) -> bool,
    ) -> Option<Listed<'v>> {
        let all = twins(self.producers, at).filter(|(id, _)| is_listed(*id));
        let (id, producer) = all.max_by_key(|(_, producer)| producer.last_received())?;
        let (node, _) = producer.node()?;
        Some(Listed { id, producer, node })
    }

    /// Returns the active connections with the address of `at` that have registered a topic.
    pub(super) fn having(&self, topic: usize, at: usize) -> impl Iterator<Item = usize> {
        let ids = twins(self.producers, at).map(|(id, _)| id);
        ids.filter(move |id| self.is_active(*id) && self.shared.tables.has_topic(topic, *id))
    }

    /// Returns whether an nsqd has sent PING within the inactive timeout.
    pub(super) fn is_active(&self, id: usize) -> bool {
        let timeout = self.shared.config.inactive_timeout;
        self.producers.get(id).is_some_and(|it| self.now <= it.last_update.after(timeout))
    }

    /// Returns whether a producer is hidden from consumers of a topic.
    pub(super) fn is_tombstoned(&self, topic: usize, id: usize) -> bool {
        let lifetime = self.shared.config.tombstone_lifetime;
        let tombstone = self.shared.tables.tombstone(self.now, lifetime, topic, id);
        tombstone.is_some_and(|(_, counts)| counts)
    }

    pub(super) fn is_hidden(&self, key: Key<'_>, id: usize) -> bool {
        match key {
            Key::Topic(topic, _) => self.is_tombstoned(topic, id),
            Key::Client | Key::Channel(..) | Key::None => false,
        }
    }

    /// Returns the serial number of the nsqd on a connection; 0 if there is none.
    pub(super) fn serial(&self, id: usize) -> u32 {
        self.producers.get(id).and_then(Producer::node).map_or(0, |(_, serial)| serial)
    }

    /// Returns key number `at` and its serial number; `None` behind the last key.
    pub(super) fn key(&self, at: usize) -> Option<(Key<'v>, u32)> {
        let tables = &self.shared.tables;
        let Some(at) = at.checked_sub(1) else { return Some((Key::Client, 0)) };
        let (topics, channels) = tables.slots();
        if at < topics {
            let key = tables.topics(at).next().filter(|(slot, _)| *slot == at);
            let key = key.map_or(Key::None, |(slot, name)| Key::Topic(slot, name.as_str()));
            return Some((key, tables.serial(at)));
        }
        let at = at.saturating_sub(topics);
        if at >= channels {
            return None;
        }
        let key = tables.channels(at).next().filter(|(slot, ..)| *slot == at);
        let key = key.map_or(Key::None, |(slot, topic, name)| {
            Key::Channel(slot, topic.as_str(), name.as_str())
        });
        Some((key, tables.channel_serial(at)))
    }

    pub(super) fn has(&self, key: Key<'_>, producer: usize) -> bool {
        match key {
            Key::Client => true,
            Key::Topic(slot, _) => self.shared.tables.has_topic(slot, producer),
            Key::Channel(slot, ..) => self.shared.tables.has_channel(slot, producer),
            Key::None => false,
        }
    }

    /// Writes a producer with its fields in Go's order; together with the key 740 bytes at most.
    pub(super) fn emit_debug(
        &self,
        w: &mut Piece<'_>,
        key: Key<'_>,
        listed: &Listed<'_>,
    ) -> Result<(), Infallible> {
        let Listed { id, producer, node } = *listed;
        let lifetime = self.shared.config.tombstone_lifetime;
        let tombstone = match key {
            Key::Topic(topic, _) => self.shared.tables.tombstone(self.now, lifetime, topic, id),
            Key::Client | Key::Channel(..) | Key::None => None,
        };
        w.write_all(b"{\"broadcast_address\":")?;
        emit_text(w, &node.broadcast_address)?;
        w.write_all(b",\"hostname\":")?;
        emit_text(w, &node.hostname)?;
        w.write_all(b",\"http_port\":")?;
        w.write_all(Decimal::unsigned(node.http_port.into()).as_bytes())?;
        w.write_all(b",\"id\":\"")?;
        emit_remote(w, producer.remote())?;
        w.write_all(b"\",\"last_update\":")?;
        emit_i64(w, self.shared.unix_time(producer.last_update))?;
        w.write_all(b",\"tcp_port\":")?;
        w.write_all(Decimal::unsigned(node.tcp_port.into()).as_bytes())?;
        w.write_all(b",\"tombstoned\":")?;
        w.write_all(if tombstone.is_some() { b"true" } else { b"false" })?;
        w.write_all(b",\"tombstoned_at\":")?;
        emit_i64(w, tombstone.map_or(NEVER, |(at, _)| self.shared.unix_time(at)))?;
        w.write_all(b",\"version\":")?;
        emit_text(w, &node.version)?;
        w.write_all(b"}")
    }
}
