//! What becomes of messages: the part of a node that all sessions share.

use super::config::Full;
use super::store::{Cursor, Lane, NIL, Store};
use super::table::{Channel, Entry, NONE, Seat, Topic};
use super::{Config, Counters};
use crate::name::{ChannelName, TopicName};
use crate::time::{Instant, Jitter, Span};
use crate::wire::v2::{Limits, MessageId};

/// Above it pynsq reads a number below zero.
const ATTEMPTS_MAX: u16 = i16::MAX as u16;

/// How many messages in a row a client's sampling may skip before others get their turn.
const SKIPS_MAX: u32 = 64;

/// What all clients share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config<'a>,
    pub(super) limits: Limits,
    pub(super) store: Store<'a>,
    pub(super) topics: &'a mut [Topic],
    pub(super) channels: &'a mut [Channel],
    /// So many for each channel.
    pub(super) entries: &'a mut [Entry],
    pub(super) per_channel: u16,
    pub(super) seats: &'a mut [Seat],
    /// The next message's number.
    pub(super) next: u64,
    pub(super) counters: Counters,
    pub(super) version: u32,
    pub(super) topology: u32,
    /// Somebody waits for room.
    pub(super) wanted: bool,
    jitter: Jitter,
    /// Unix time at the platform's start, in nanoseconds.
    pub(super) epoch: i64,
}

/// Messages on their way into a topic: stored, but nobody's yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draft {
    first: u16,
    last: u16,
    count: u32,
    bytes: u64,
    /// Blocks that are kept free for the rest.
    promised: u16,
    /// Where the last one is being filled.
    to: Cursor,
}

impl Draft {
    pub(super) const NONE: Self =
        Self { first: NIL, last: NIL, count: 0, bytes: 0, promised: 0, to: Cursor::NONE };
}

/// Why a topic or channel could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSlot {
    Topics,
    Channels,
    /// The topic has as many as it can.
    ChannelsOfTopic,
}

/// Why a message cannot be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotYours {
    NotInFlight,
    NotOwner,
}

/// A message to be written to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) message: u16,
    pub(super) attempts: u16,
}

impl<'a> Shared<'a> {
    pub(super) fn new(
        config: &'a Config<'a>,
        store: Store<'a>,
        topics: &'a mut [Topic],
        channels: &'a mut [Channel],
        entries: &'a mut [Entry],
        seats: &'a mut [Seat],
        per_channel: u16,
    ) -> Self {
        topics.fill_with(|| Topic::NEW);
        channels.fill_with(|| Channel::NEW);
        entries.fill(Entry::FREE);
        seats.fill(Seat::EMPTY);
        let mut limits = config.limits;
        limits.max_rdy_count = limits.max_rdy_count.min(per_channel.into());
        limits.max_msg_size = limits.max_msg_size.min(store.layout().longest());
        limits.deflate = false;
        limits.snappy = false;
        Self {
            config,
            limits,
            store,
            topics,
            channels,
            entries,
            per_channel,
            seats,
            next: 0,
            counters: Counters::default(),
            version: 0,
            topology: 0,
            wanted: false,
            jitter: Jitter::new(config.seed),
            epoch: 0,
        }
    }

    /// Whoever waits may want to look.
    pub(super) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Unix time in nanoseconds.
    pub(super) fn unix(&self, now: Instant) -> i64 {
        let nanos = i64::try_from(now.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000);
        self.epoch.saturating_add(nanos)
    }

    // --- Topics and channels.

    pub(super) fn find_topic(&self, name: &TopicName) -> Option<u8> {
        self.topics.iter().position(|topic| topic.name == *name).map(|at| at as u8)
    }

    pub(super) fn has_slot_for(&self, name: &TopicName) -> bool {
        self.topics.iter().any(|topic| !topic.is_used() || topic.name == *name)
    }

    /// The topic of that name, made if need be.
    pub(super) fn topic_for(&mut self, name: &TopicName) -> Result<u8, NoSlot> {
        if let Some(at) = self.find_topic(name) {
            return Ok(at);
        }
        let free = self.topics.iter().position(|topic| !topic.is_used());
        let at = free.ok_or(NoSlot::Topics)?;
        if let Some(topic) = self.topics.get_mut(at) {
            *topic = Topic { name: *name, ..Topic::NEW };
        }
        self.reshaped();
        Ok(at as u8)
    }

    pub(super) fn find_channel(&self, topic: u8, name: &ChannelName) -> Option<u8> {
        let is = |channel: &Channel| channel.topic == topic && channel.name == *name;
        self.channels.iter().position(is).map(|at| at as u8)
    }

    /// The topic's channel of that name, made if need be: the topic's first gets what the topic
    /// has held back so far.
    pub(super) fn channel_for(
        &mut self,
        now: Instant,
        topic: u8,
        name: &ChannelName,
    ) -> Result<u8, NoSlot> {
        if let Some(at) = self.find_channel(topic, name) {
            return Ok(at);
        }
        let lanes = self.config.channels_per_topic;
        let is_taken = |lane: u8| {
            self.channels.iter().any(|channel| channel.topic == topic && channel.lane == lane)
        };
        let lane = (0..lanes).find(|lane| !is_taken(*lane)).ok_or(NoSlot::ChannelsOfTopic)?;
        let free = self.channels.iter().position(|channel| !channel.is_used());
        let at = free.ok_or(NoSlot::Channels)?;
        if let Some(channel) = self.channels.get_mut(at) {
            *channel = Channel { name: *name, topic, lane, ..Channel::NEW };
        }
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_add(1);
        }
        self.reshaped();
        self.flow(now, topic);
        Ok(at as u8)
    }

    /// Deletes a topic with its channels and messages; its subscribers are closed.
    pub(super) fn delete_topic(&mut self, at: u8) {
        for channel in 0..self.channels.len() as u8 {
            if self.channel(channel).is_some_and(|channel| channel.topic == at) {
                self.drop_channel(channel);
            }
        }
        self.empty_topic(at);
        if let Some(topic) = self.topic_mut(at) {
            *topic = Topic::NEW;
        }
        for seat in &mut *self.seats {
            for count in &mut seat.pubs {
                if count.0 == at {
                    *count = (NONE, 0);
                }
            }
        }
        self.reshaped();
    }

    /// Deletes a channel with its messages; its subscribers are closed. An ephemeral topic goes
    /// with its last channel.
    pub(super) fn delete_channel(&mut self, at: u8) {
        let Some(topic) = self.channel(at).map(|channel| channel.topic) else { return };
        self.drop_channel(at);
        self.reshaped();
        if self.topic(topic).is_some_and(|topic| topic.channels == 0 && topic.name.is_ephemeral()) {
            self.delete_topic(topic);
        }
    }

    fn drop_channel(&mut self, at: u8) {
        self.empty_channel(at);
        for seat in &mut *self.seats {
            if seat.channel == at {
                seat.channel = NONE;
                seat.ready = 0;
                seat.kicked = true;
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        let topic = channel.topic;
        *channel = Channel::NEW;
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_sub(1);
        }
    }

    /// Drops what a topic has not given to its channels.
    pub(super) fn empty_topic(&mut self, at: u8) {
        while let Some(message) = self.pop_held(at) {
            self.release(message);
        }
    }

    /// Drops what a channel has: also what is in flight, whose answers come too late then.
    pub(super) fn empty_channel(&mut self, at: u8) {
        let Some(channel) = self.channel_mut(at).filter(|channel| channel.is_used()) else {
            return;
        };
        let (topic, lane, mut message) = (channel.topic, channel.lane, channel.cursor);
        channel.cursor = NIL;
        channel.queued = 0;
        for _ in 0..self.store.capacity() {
            if message == NIL {
                break;
            }
            let next = self.store.next(message);
            self.done(message, lane);
            message = next;
        }
        self.trim(topic);
        while let Some(message) = self.pop_requeued(at) {
            self.done(message, lane);
        }
        while let Some(message) = self.pop_deferred(at) {
            self.done(message, lane);
        }
        for index in self.range(at) {
            let Some(entry) = self.entries.get(index) else { break };
            let (message, owner) = (entry.message, entry.owner);
            if message != NIL {
                self.end_flight(at, index, owner);
                self.done(message, lane);
            }
        }
        self.changed();
    }

    pub(super) fn pause_topic(&mut self, now: Instant, at: u8, paused: bool) {
        if let Some(topic) = self.topic_mut(at) {
            topic.paused = paused;
        }
        self.flow(now, at);
    }

    pub(super) fn pause_channel(&mut self, at: u8, paused: bool) {
        if let Some(channel) = self.channel_mut(at) {
            channel.paused = paused;
        }
        self.changed();
    }

    fn reshaped(&mut self) {
        self.topology = self.topology.wrapping_add(1);
        self.changed();
    }

    pub(super) fn topic(&self, at: u8) -> Option<&Topic> {
        self.topics.get(usize::from(at))
    }

    fn topic_mut(&mut self, at: u8) -> Option<&mut Topic> {
        self.topics.get_mut(usize::from(at))
    }

    pub(super) fn channel(&self, at: u8) -> Option<&Channel> {
        self.channels.get(usize::from(at))
    }

    fn channel_mut(&mut self, at: u8) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(at))
    }

    pub(super) fn seat(&self, id: u8) -> Option<&Seat> {
        self.seats.get(usize::from(id))
    }

    pub(super) fn seat_mut(&mut self, id: u8) -> Option<&mut Seat> {
        self.seats.get_mut(usize::from(id))
    }

    // --- Publishing.

    /// How many blocks to keep free for a batch, if its announced length is true and its messages
    /// are of a length; `None` if it never fits.
    pub(super) fn batch_blocks(&self, len: u32, count: u32) -> Option<u16> {
        let layout = self.store.layout();
        let bytes = len.saturating_sub(4).saturating_sub(count.saturating_mul(4));
        if count.max(layout.blocks(bytes)) > self.store.capacity().into() {
            return None;
        }
        let each = layout.blocks(bytes.checked_div(count).unwrap_or_default());
        let all = u16::try_from(each.saturating_mul(count)).unwrap_or(u16::MAX);
        Some(all.min(self.store.capacity()))
    }

    /// Keeps room for a batch; false if there is none now.
    pub(super) fn promise(&mut self, draft: &mut Draft, blocks: u16) -> bool {
        loop {
            if self.store.reserve(blocks) {
                draft.promised = draft.promised.saturating_add(blocks);
                return true;
            }
            if !self.make_room() {
                return false;
            }
        }
    }

    /// Begins a message of `len` bytes; false if there is no room now.
    pub(super) fn begin(&mut self, draft: &mut Draft, len: u32) -> bool {
        loop {
            if let Some((message, to)) = self.store.take(len, &mut draft.promised) {
                if draft.first == NIL {
                    draft.first = message;
                } else {
                    self.store.set_next(draft.last, message);
                }
                draft.last = message;
                draft.to = to;
                draft.count = draft.count.saturating_add(1);
                draft.bytes = draft.bytes.saturating_add(len.into());
                return true;
            }
            if !self.make_room() {
                return false;
            }
        }
    }

    pub(super) fn fill(&mut self, draft: &mut Draft, data: &[u8]) {
        self.store.fill(&mut draft.to, data);
    }

    /// The messages are whole: the topic has them. Gives the number of the first, and how many
    /// they are.
    pub(super) fn commit(
        &mut self,
        now: Instant,
        at: u8,
        draft: &mut Draft,
        defer_ms: u32,
    ) -> (u64, u32) {
        let first = self.next;
        let Draft { first: mut message, count, bytes, mut promised, .. } = *draft;
        *draft = Draft::NONE;
        self.store.release(&mut promised);
        let timestamp = self.unix(now);
        for _ in 0..count {
            let next = self.store.next(message);
            self.store.label(message, at, self.next as u32, timestamp);
            self.store.set_refs(message, 1);
            // Until the topic gives it to its channels.
            self.store.set_due(message, 0, Instant::from_millis(defer_ms.into()));
            self.next = self.next.wrapping_add(1);
            if let Some(topic) = self.topics.get_mut(usize::from(at)) {
                topic.held.push(&mut self.store, message);
            }
            message = next;
        }
        if let Some(topic) = self.topic_mut(at) {
            topic.messages = topic.messages.saturating_add(count.into());
            topic.bytes = topic.bytes.saturating_add(bytes);
        }
        self.counters.accepted = self.counters.accepted.saturating_add(count.into());
        self.flow(now, at);
        self.changed();
        (first, count)
    }

    /// The messages will not be whole.
    pub(super) fn discard(&mut self, draft: &mut Draft) {
        let Draft { first: mut message, count, mut promised, .. } = *draft;
        *draft = Draft::NONE;
        self.store.release(&mut promised);
        for _ in 0..count {
            let next = self.store.next(message);
            self.store.give(message);
            message = next;
        }
        self.freed();
    }

    /// Gives the channels what the topic has held back, if it may flow.
    fn flow(&mut self, now: Instant, at: u8) {
        while self.topic(at).is_some_and(|topic| !topic.paused && topic.channels > 0)
            && let Some(message) = self.pop_held(at)
        {
            self.distribute(now, at, message);
        }
        self.changed();
    }

    fn distribute(&mut self, now: Instant, at: u8, message: u16) {
        let defer = self.store.due(message, 0);
        let is_deferred = defer != Instant::ZERO;
        let due = Instant::from_micros(now.as_micros().saturating_add(defer.as_micros()));
        let mut refs = 0u16;
        for channel in self.channels.iter_mut().filter(|channel| channel.topic == at) {
            refs = refs.saturating_add(1);
            channel.messages = channel.messages.saturating_add(1);
            let lane = channel.lane;
            if is_deferred {
                self.store.set_lane(message, lane, Lane::Deferred);
                channel.deferred.insert_lane(&mut self.store, message, lane, due);
            } else {
                self.store.set_lane(message, lane, Lane::Queued);
                channel.queued = channel.queued.saturating_add(1);
                if channel.cursor == NIL {
                    channel.cursor = message;
                }
            }
        }
        self.store.set_refs(message, refs);
        if !is_deferred && let Some(topic) = self.topics.get_mut(usize::from(at)) {
            self.store.set_listed(message, true);
            topic.list.push(&mut self.store, message);
        }
    }

    fn pop_held(&mut self, at: u8) -> Option<u16> {
        self.topics.get_mut(usize::from(at))?.held.pop(&self.store)
    }

    // --- Delivering.

    /// The next message for a client, if it is to have one now.
    pub(super) fn deliver(
        &mut self,
        now: Instant,
        id: u8,
        msg_timeout: Span,
        sample_rate: u8,
    ) -> Option<Delivery> {
        let seat = *self.seat(id)?;
        let at = seat.channel;
        if !seat.wants() || self.channel(at)?.paused {
            return None;
        }
        self.release_due(now, at);
        for _ in 0..SKIPS_MAX {
            let channel = self.channel(at)?;
            if channel.queued == 0 && channel.requeued.len == 0 {
                return None;
            }
            if !self.may_have_entry(id, at) || self.yields(id, at) {
                return None;
            }
            let lane = self.channel(at)?.lane;
            let message = self.next_message(at)?;
            if sample_rate > 0 && !self.samples(sample_rate) {
                self.done(message, lane);
                self.trim_of(at);
                self.counters.sampled_out = self.counters.sampled_out.saturating_add(1);
                continue;
            }
            return self.take_off(now, id, at, message, msg_timeout);
        }
        // The rest another time.
        self.changed();
        None
    }

    fn take_off(
        &mut self,
        now: Instant,
        id: u8,
        at: u8,
        message: u16,
        msg_timeout: Span,
    ) -> Option<Delivery> {
        let free = self
            .range(at)
            .find(|index| self.entries.get(*index).is_some_and(|entry| entry.message == NIL))?;
        let lane = self.channel(at)?.lane;
        let attempts = self.store.attempts(message, lane).saturating_add(1).min(ATTEMPTS_MAX);
        self.store.set_attempts(message, lane, attempts);
        self.store.set_lane(message, lane, Lane::InFlight);
        if let Some(entry) = self.entries.get_mut(free) {
            *entry = Entry {
                deadline: now.after(msg_timeout),
                delivered: now,
                sequence: self.store.sequence(message),
                message,
                owner: id,
            };
        }
        let channel = self.channel_mut(at)?;
        channel.in_flight = channel.in_flight.saturating_add(1);
        channel.turn = channel.turn.wrapping_add(1);
        let turn = channel.turn;
        let more = channel.queued > 0 || channel.requeued.len > 0;
        let seat = self.seat_mut(id)?;
        seat.in_flight = seat.in_flight.saturating_add(1);
        seat.delivered = seat.delivered.saturating_add(1);
        seat.turn = turn;
        seat.yielded = false;
        self.counters.delivered = self.counters.delivered.saturating_add(1);
        self.trim_of(at);
        // Pinned while it is being written.
        self.pin(message);
        if more && self.has_other(id, at) {
            // The next one is somebody else's.
            self.changed();
        }
        Some(Delivery { message, attempts })
    }

    /// Whether there is an entry for one more message to a client. The last ones are for those who
    /// have nothing.
    fn may_have_entry(&mut self, id: u8, at: u8) -> bool {
        let Some(channel) = self.channel(at) else { return false };
        let free = self.per_channel.saturating_sub(channel.in_flight);
        let mut owed = 0u16;
        if self.seat(id).is_some_and(|seat| seat.in_flight > 0) {
            let others = self
                .seats
                .iter()
                .filter(|seat| seat.channel == at && seat.ready > 0 && seat.in_flight == 0);
            owed = others.count() as u16;
        }
        let may = free > owed;
        if !may && let Some(channel) = self.channel_mut(at) {
            channel.starved = true;
        }
        may
    }

    /// Whether it is another client's turn. One that was passed over once is not again, whatever
    /// the others do.
    fn yields(&mut self, id: u8, at: u8) -> bool {
        let Some(seat) = self.seat(id).copied() else { return false };
        if seat.yielded {
            return false;
        }
        let before = |other: &Seat| (other.turn.wrapping_sub(seat.turn) as i32) < 0;
        let is_next =
            |other: &Seat| other.channel == at && other.idle && other.wants() && before(other);
        let yields = self.seats.iter().any(is_next);
        if yields {
            if let Some(seat) = self.seat_mut(id) {
                seat.yielded = true;
            }
            self.changed();
        }
        yields
    }

    fn has_other(&self, id: u8, at: u8) -> bool {
        let others = self.seats.iter().enumerate().filter(|(other, _)| *other != usize::from(id));
        others.into_iter().any(|(_, seat)| seat.channel == at && seat.idle && seat.wants())
    }

    fn samples(&mut self, rate: u8) -> bool {
        self.jitter.between(Span::ZERO, Span::from_millis(99)).as_millis() < rate.into()
    }

    /// Takes a message out of what waits: of new and requeued ones in turn, so that neither keeps
    /// the other waiting.
    fn next_message(&mut self, at: u8) -> Option<u16> {
        let channel = self.channel_mut(at)?;
        let both = channel.requeued.len > 0 && channel.cursor != NIL;
        let requeued = if both { channel.requeued_next } else { channel.requeued.len > 0 };
        channel.requeued_next = both && !requeued;
        if requeued {
            return self.pop_requeued(at);
        }
        let message = channel.cursor;
        if message == NIL {
            return None;
        }
        channel.queued = channel.queued.saturating_sub(1);
        let next = self.store.next(message);
        self.channel_mut(at)?.cursor = next;
        Some(message)
    }

    fn pop_requeued(&mut self, at: u8) -> Option<u16> {
        let channel = self.channels.get_mut(usize::from(at))?;
        channel.requeued.pop_lane(&self.store, channel.lane)
    }

    fn pop_deferred(&mut self, at: u8) -> Option<u16> {
        let channel = self.channels.get_mut(usize::from(at))?;
        channel.deferred.pop_lane(&self.store, channel.lane)
    }

    /// What was deferred until now waits for its delivery.
    pub(super) fn release_due(&mut self, now: Instant, at: u8) {
        let mut released = false;
        while let Some(channel) = self.channels.get_mut(usize::from(at))
            && channel.deferred.len > 0
            && self.store.due(channel.deferred.first, channel.lane) <= now
            && let Some(message) = channel.deferred.pop_lane(&self.store, channel.lane)
        {
            self.store.set_lane(message, channel.lane, Lane::Requeued);
            channel.requeued.push_lane(&mut self.store, message, channel.lane);
            released = true;
        }
        if released {
            self.changed();
        }
    }

    /// When the next deferred message of a channel is due.
    pub(super) fn next_due(&self, at: u8) -> Instant {
        match self.channel(at) {
            Some(channel) if channel.deferred.len > 0 => {
                self.store.due(channel.deferred.first, channel.lane)
            }
            _ => Instant::NEVER,
        }
    }

    /// The message is being written: its blocks stay.
    fn pin(&mut self, message: u16) {
        let refs = self.store.refs(message).saturating_add(1);
        self.store.set_refs(message, refs);
    }

    /// One fewer needs the message.
    pub(super) fn release(&mut self, message: u16) {
        let refs = self.store.refs(message).saturating_sub(1);
        self.store.set_refs(message, refs);
        if refs == 0 && !self.store.is_listed(message) {
            self.store.give(message);
            self.freed();
        }
    }

    /// A channel is done with a message.
    fn done(&mut self, message: u16, lane: u8) {
        self.store.set_lane(message, lane, Lane::Done);
        self.release(message);
    }

    fn trim_of(&mut self, channel: u8) {
        if let Some(topic) = self.channel(channel).map(|channel| channel.topic) {
            self.trim(topic);
        }
    }

    /// Takes out of a topic's list what all cursors have passed.
    fn trim(&mut self, at: u8) {
        while let Some(topic) = self.topics.get_mut(usize::from(at))
            && topic.list.len > 0
        {
            let message = topic.list.first;
            let is_queued = |lane| self.store.lane(message, lane) == Lane::Queued;
            if (0..self.config.channels_per_topic).any(is_queued) {
                return;
            }
            let _ = topic.list.pop(&self.store);
            self.unlisted(message);
        }
    }

    fn unlisted(&mut self, message: u16) {
        self.store.set_listed(message, false);
        if self.store.refs(message) == 0 {
            self.store.give(message);
            self.freed();
        }
    }

    /// Blocks became free.
    fn freed(&mut self) {
        if self.wanted {
            self.wanted = false;
            self.changed();
        }
    }

    // --- Answers.

    /// Which entry a client means.
    fn flight(&self, id: u8, message: &MessageId) -> Result<(u8, usize), NotYours> {
        let at = self.seat(id).map_or(NONE, |seat| seat.channel);
        let sequence = self.sequence_of(message).ok_or(NotYours::NotInFlight)?;
        let is = |entry: &Entry| entry.message != NIL && entry.sequence == sequence;
        let found = self.range(at).find(|index| self.entries.get(*index).is_some_and(is));
        let index = found.ok_or(NotYours::NotInFlight)?;
        match self.entries.get(index) {
            Some(entry) if entry.owner == id => Ok((at, index)),
            _ => Err(NotYours::NotOwner),
        }
    }

    /// FIN.
    pub(super) fn finish(&mut self, id: u8, message: &MessageId) -> Result<(), NotYours> {
        let (at, index) = self.flight(id, message)?;
        let (message, lane) = self.land(at, index);
        self.done(message, lane);
        if let Some(seat) = self.seat_mut(id) {
            seat.finished = seat.finished.saturating_add(1);
        }
        self.counters.finished = self.counters.finished.saturating_add(1);
        Ok(())
    }

    /// REQ.
    pub(super) fn requeue(
        &mut self,
        now: Instant,
        id: u8,
        message: &MessageId,
        delay_ms: u32,
    ) -> Result<(), NotYours> {
        let (at, index) = self.flight(id, message)?;
        let (message, lane) = self.land(at, index);
        if delay_ms == 0 {
            self.put_back(at, message, lane);
        } else {
            let due = now.after(Span::from_millis(delay_ms));
            self.store.set_lane(message, lane, Lane::Deferred);
            if let Some(channel) = self.channels.get_mut(usize::from(at)) {
                channel.deferred.insert_lane(&mut self.store, message, lane, due);
            }
            self.changed();
        }
        if let Some(channel) = self.channel_mut(at) {
            channel.requeues = channel.requeues.saturating_add(1);
        }
        if let Some(seat) = self.seat_mut(id) {
            seat.requeued = seat.requeued.saturating_add(1);
        }
        self.counters.requeued = self.counters.requeued.saturating_add(1);
        Ok(())
    }

    /// TOUCH: gives the new deadline.
    pub(super) fn touch(
        &mut self,
        now: Instant,
        id: u8,
        message: &MessageId,
        msg_timeout: Span,
    ) -> Result<Instant, NotYours> {
        let (_, index) = self.flight(id, message)?;
        let longest = Span::from_millis(self.limits.max_msg_timeout_ms);
        let Some(entry) = self.entries.get_mut(index) else { return Err(NotYours::NotInFlight) };
        entry.deadline = now.after(msg_timeout).min(entry.delivered.after(longest));
        Ok(entry.deadline)
    }

    /// Takes back what a client has had for too long. Gives the time of the next.
    pub(super) fn expire(&mut self, now: Instant, id: u8) -> Instant {
        let at = self.seat(id).map_or(NONE, |seat| seat.channel);
        let mut next = Instant::NEVER;
        for index in self.range(at) {
            let Some(entry) = self.entries.get(index) else { break };
            if entry.message == NIL || entry.owner != id {
                continue;
            }
            if entry.deadline > now {
                next = next.min(entry.deadline);
                continue;
            }
            let (message, lane) = self.land(at, index);
            self.put_back(at, message, lane);
            if let Some(channel) = self.channel_mut(at) {
                channel.timeouts = channel.timeouts.saturating_add(1);
            }
            self.counters.timed_out = self.counters.timed_out.saturating_add(1);
        }
        next
    }

    /// A client goes: others get at once what it has in flight.
    pub(super) fn leave(&mut self, id: u8) {
        let Some(seat) = self.seat_mut(id) else { return };
        let at = seat.channel;
        *seat = Seat { kicked: seat.kicked, ..Seat::EMPTY };
        if at == NONE {
            return;
        }
        for index in self.range(at) {
            let is = |entry: &Entry| entry.message != NIL && entry.owner == id;
            if self.entries.get(index).is_some_and(is) {
                let (message, lane) = self.land(at, index);
                self.put_back(at, message, lane);
                self.counters.returned = self.counters.returned.saturating_add(1);
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_sub(1);
        let is_over = channel.clients == 0 && channel.name.is_ephemeral();
        if is_over {
            self.delete_channel(at);
        }
        self.changed();
    }

    /// A client joins a channel.
    pub(super) fn join(&mut self, id: u8, at: u8) {
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_add(1);
        let turn = channel.turn;
        if let Some(seat) = self.seat_mut(id) {
            seat.channel = at;
            seat.turn = turn;
        }
    }

    /// The message is no longer in flight.
    fn land(&mut self, at: u8, index: usize) -> (u16, u8) {
        let entry = self.entries.get(index).copied().unwrap_or(Entry::FREE);
        self.end_flight(at, index, entry.owner);
        (entry.message, self.channel(at).map_or(0, |channel| channel.lane))
    }

    fn end_flight(&mut self, at: u8, index: usize, owner: u8) {
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Entry::FREE;
        }
        if let Some(seat) = self.seat_mut(owner) {
            seat.in_flight = seat.in_flight.saturating_sub(1);
        }
        let Some(channel) = self.channel_mut(at) else { return };
        channel.in_flight = channel.in_flight.saturating_sub(1);
        if channel.starved {
            channel.starved = false;
            self.changed();
        }
    }

    fn put_back(&mut self, at: u8, message: u16, lane: u8) {
        self.store.set_lane(message, lane, Lane::Requeued);
        if let Some(channel) = self.channels.get_mut(usize::from(at)) {
            channel.requeued.push_lane(&mut self.store, message, lane);
        }
        self.changed();
    }

    fn range(&self, channel: u8) -> core::ops::Range<usize> {
        if channel == NONE {
            return 0..0;
        }
        let per = usize::from(self.per_channel);
        let start = usize::from(channel).saturating_mul(per);
        start..start.saturating_add(per)
    }

    // --- Ids.

    /// Sixteen hexadecimal digits: the boot's number, then the message's.
    pub(super) fn id_of(&self, sequence: u32) -> MessageId {
        let mut id = [0; 16];
        let number = u64::from(self.config.boot) << 32 | u64::from(sequence);
        for (slot, nibble) in id.iter_mut().zip((0..16).rev()) {
            let digit = (number >> (4 * nibble)) as u8 & 15;
            *slot = if digit < 10 { b'0' | digit } else { (b'a' - 10).wrapping_add(digit) };
        }
        MessageId(id)
    }

    fn sequence_of(&self, id: &MessageId) -> Option<u32> {
        let mut number = 0u64;
        for byte in id.0 {
            let digit = match byte {
                b'0'..=b'9' => byte & 15,
                b'a'..=b'f' => byte.wrapping_sub(b'a').wrapping_add(10),
                _ => return None,
            };
            number = number << 4 | u64::from(digit);
        }
        ((number >> 32) as u32 == self.config.boot).then_some(number as u32)
    }

    // --- When the store is full.

    /// Drops the oldest message, if that is wanted and there is one that may be dropped.
    fn make_room(&mut self) -> bool {
        self.config.full == Full::DropOldest && self.drop_oldest()
    }

    /// Of each queue the first message that nobody has in flight, and of these the oldest.
    fn drop_oldest(&mut self) -> bool {
        let mut oldest: Option<(u32, u16)> = None;
        let mut consider = |message: u16, store: &Store<'_>, next: u64| {
            let age = (next as u32).wrapping_sub(store.sequence(message));
            if oldest.is_none_or(|(most, _)| age > most) {
                oldest = Some((age, message));
            }
        };
        for topic in &*self.topics {
            for list in [topic.held, topic.list] {
                let mut message = list.first;
                for _ in 0..list.len {
                    if self.is_droppable(message) {
                        consider(message, &self.store, self.next);
                        break;
                    }
                    message = self.store.next(message);
                }
            }
        }
        for channel in self.channels.iter().filter(|channel| channel.is_used()) {
            for list in [channel.requeued, channel.deferred] {
                let mut message = list.first;
                for _ in 0..list.len {
                    if self.is_droppable(message) {
                        consider(message, &self.store, self.next);
                        break;
                    }
                    message = self.store.lane_next(message, channel.lane);
                }
            }
        }
        let Some((_, message)) = oldest else { return false };
        self.drop_message(message);
        true
    }

    /// Nobody has it in flight, nor is it being written.
    fn is_droppable(&self, message: u16) -> bool {
        let mut waiting = 0u16;
        for lane in 0..self.config.channels_per_topic {
            match self.store.lane(message, lane) {
                Lane::Done => {}
                Lane::Queued | Lane::Requeued | Lane::Deferred => {
                    waiting = waiting.saturating_add(1);
                }
                Lane::InFlight => return false,
            }
        }
        // What the topic holds is in no lane.
        self.store.refs(message) == waiting.max(1)
    }

    fn drop_message(&mut self, message: u16) {
        let at = self.store.topic(message);
        for channel in self.channels.iter_mut().filter(|channel| channel.topic == at) {
            let lane = channel.lane;
            match self.store.lane(message, lane) {
                Lane::Done | Lane::InFlight => continue,
                Lane::Queued => {
                    channel.queued = channel.queued.saturating_sub(1);
                    if channel.cursor == message {
                        channel.cursor = self.store.next(message);
                    }
                }
                Lane::Requeued => channel.requeued.unlink_lane(&mut self.store, message, lane),
                Lane::Deferred => channel.deferred.unlink_lane(&mut self.store, message, lane),
            }
            channel.dropped = channel.dropped.saturating_add(1);
        }
        if let Some(topic) = self.topics.get_mut(usize::from(at)) {
            let waits = (0..self.config.channels_per_topic)
                .any(|lane| self.store.lane(message, lane) != Lane::Done);
            if self.store.is_listed(message) {
                topic.list.unlink(&mut self.store, message);
            } else if !waits {
                topic.held.unlink(&mut self.store, message);
            }
            topic.dropped = topic.dropped.saturating_add(1);
        }
        self.counters.dropped = self.counters.dropped.saturating_add(1);
        self.store.give(message);
        self.changed();
    }
}
