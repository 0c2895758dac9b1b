//! Tombstones: producers that are hidden from a topic for a while.

use super::Tables;
use crate::nsqlookupd::TableFull;
use crate::time::{Instant, Span};

/// A producer that is hidden from a topic for a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tombstone {
    pub(super) topic: u16,
    pub(super) producer: u16,
    /// The time at which the tombstone was added; [`Instant::NEVER`] in a free slot.
    pub(super) at: Instant,
}

impl Tombstone {
    pub(super) const FREE: Self = Self { topic: 0, producer: 0, at: Instant::NEVER };
}

impl Tables<'_> {
    /// Tombstones those of `producers` that have registered a topic. Changes nothing if there is no
    /// room for all of them.
    pub(in crate::nsqlookupd) fn add_tombstones(
        &mut self,
        now: Instant,
        lifetime: Span,
        topic: usize,
        producers: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), TableFull> {
        let is_expired = |tombstone: &Tombstone| {
            tombstone.at == Instant::NEVER || tombstone.at.after(lifetime) <= now
        };
        let is_for = |tombstone: &Tombstone, producer: usize| {
            tombstone.at != Instant::NEVER
                && usize::from(tombstone.topic) == topic
                && usize::from(tombstone.producer) == producer
        };
        let mut room = self.tombstones.iter().filter(|tombstone| is_expired(tombstone));
        let fits = producers.clone().all(|producer| {
            let has_one =
                || self.tombstones.iter().any(|is| !is_expired(is) && is_for(is, producer));
            !self.has_topic(topic, producer) || has_one() || room.next().is_some()
        });
        if !fits {
            return Err(TableFull::Tombstones);
        }
        for producer in producers {
            if !self.has_topic(topic, producer) {
                continue;
            }
            let tombstones = &mut self.tombstones;
            let slot = match tombstones.iter().position(|is| is_for(is, producer)) {
                Some(at) => tombstones.get_mut(at),
                None => tombstones.iter_mut().find(|is| is_expired(is)),
            };
            if let Some(slot) = slot {
                *slot = Tombstone { topic: topic as u16, producer: producer as u16, at: now };
            }
        }
        self.changed();
        Ok(())
    }

    /// Returns the time at which a producer was last tombstoned for a topic, if it was, and whether
    /// that is still in force.
    pub(in crate::nsqlookupd) fn tombstone(
        &self,
        now: Instant,
        lifetime: Span,
        topic: usize,
        producer: usize,
    ) -> Option<(Instant, bool)> {
        self.tombstones
            .iter()
            .find(|tombstone| {
                tombstone.at != Instant::NEVER
                    && usize::from(tombstone.topic) == topic
                    && usize::from(tombstone.producer) == producer
            })
            .map(|tombstone| (tombstone.at, now < tombstone.at.after(lifetime)))
    }
}
