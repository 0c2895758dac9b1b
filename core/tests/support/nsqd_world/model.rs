//! The model of an nsqd, without bounds.

use super::*;

#[derive(Debug, Clone)]
pub(super) struct Flight {
    pub(super) number: u64,
    pub(super) owner: usize,
    pub(super) deadline: u64,
    pub(super) delivered: u64,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) id: u64,
    pub(super) topic: u64,
    pub(super) name: usize,
    pub(super) paused: bool,
    pub(super) queue: VecDeque<u64>,
    pub(super) requeued: VecDeque<u64>,
    /// Due times and numbers of messages, in order.
    pub(super) deferred: Vec<(u64, u64)>,
    pub(super) entries: [Option<Flight>; IN_FLIGHT],
    pub(super) attempts: BTreeMap<u64, u16>,
    pub(super) requeued_next: bool,
    pub(super) messages: u64,
    pub(super) requeues: u64,
    pub(super) timeouts: u64,
    pub(super) dropped: u64,
    /// The application named it.
    pub(super) named: bool,
    /// A message was delivered from it.
    pub(super) delivered: bool,
    pub(super) used: u64,
}

impl Channel {
    pub(super) fn in_flight(&self) -> usize {
        self.entries.iter().flatten().count()
    }

    pub(super) fn holds(&self, number: u64) -> bool {
        self.queue.contains(&number)
            || self.requeued.contains(&number)
            || self.deferred.iter().any(|(_, n)| *n == number)
            || self.has_in_flight(number)
    }

    pub(super) fn has_in_flight(&self, number: u64) -> bool {
        self.entries.iter().flatten().any(|flight| flight.number == number)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len() + self.requeued.len()
    }
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) id: u64,
    pub(super) name: usize,
    pub(super) paused: bool,
    pub(super) held: VecDeque<(u64, u64)>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    /// The last time that one of its messages became finished in all channels.
    pub(super) finished: Option<u64>,
    pub(super) named: bool,
    pub(super) used: u64,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Subscriber {
    pub(super) open: bool,
    pub(super) channel: Option<u64>,
    pub(super) closing: bool,
    /// The client was refused with an error: staged bytes are written to their end.
    pub(super) refused: bool,
    pub(super) ready: usize,
    pub(super) delivered: u64,
    pub(super) finished: u64,
    pub(super) requeued: u64,
    pub(super) pubs: Vec<(u64, u32)>,
    /// The message being written.
    pub(super) writing: Option<u64>,
    pub(super) expected: VecDeque<Vec<u8>>,
}

impl Subscriber {
    /// Expects the refusal of a publishing client: there is no room for the message or its topic,
    /// or, if `late`, the rest of the body did not arrive.
    pub(super) fn refused_publishing(&mut self, bytes: &[u8], late: bool) {
        let line = String::from_utf8_lossy(bytes);
        let verb = line.split(' ').next().unwrap();
        if ["PUB", "MPUB", "DPUB"].contains(&verb) {
            let text = match verb {
                _ if late => "E_BAD_*".into(),
                // The second text if the batch waited without success for room, or for its topic.
                "MPUB" if never_fits(bytes) => {
                    "E_BAD_BODY MPUB *|E_MPUB_FAILED MPUB failed no room*".into()
                }
                _ => format!("E_{verb}_FAILED {verb} failed no room*"),
            };
            self.expected.push_back(text.into_bytes());
            self.refused = true;
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) timestamp: i64,
    /// The application published it.
    pub(super) own: bool,
    /// Some client has finished it, or requeued it with a delay.
    pub(super) answered: bool,
}

/// The expected state of an nsqd.
pub(super) struct Model {
    /// The number of expired messages.
    pub(super) expired: u64,
    pub(super) full: Full,
    pub(super) next: u64,
    pub(super) id: u64,
    pub(super) topics: Vec<Topic>,
    pub(super) channels: Vec<Channel>,
    pub(super) subscribers: Vec<Subscriber>,
    pub(super) bodies: BTreeMap<u64, Body>,
    pub(super) finished: u64,
    pub(super) dropped: u64,
    pub(super) abandoned: u64,
    pub(super) given_back: (u32, u32),
    /// The topics and channels that the nsqd has after its last action: of several equally needed
    /// ones it chooses which to evict.
    pub(super) there: Vec<(usize, Option<usize>)>,
}

/// Returns a time in the nsqd's units: the longest unused key is evicted first.
pub(super) fn units(micros: u64) -> u64 {
    micros >> 16
}

/// True if messages wait in it, and the time since which it is unused: the least is evicted first.
pub(super) type Need = (bool, u64);

impl Model {
    pub(super) fn new(full: Full) -> Self {
        Self {
            expired: 0,
            full,
            next: 0,
            id: 0,
            topics: Vec::new(),
            channels: Vec::new(),
            subscribers: vec![Subscriber::default(); CLIENTS],
            bodies: BTreeMap::new(),
            finished: 0,
            dropped: 0,
            abandoned: 0,
            given_back: (0, 0),
            there: Vec::new(),
        }
    }

    /// Returns how much a channel is needed; `None` if it must not be evicted.
    pub(super) fn channel_need(&self, now: u64, channel: &Channel) -> Option<Need> {
        let topic = self.topics.iter().find(|topic| topic.id == channel.topic).unwrap();
        let is_served =
            self.subscribers.iter().any(|subscriber| subscriber.channel == Some(channel.id));
        // 60 s, rounded up.
        let is_old = units(now) - units(channel.used) > units(60_000_000);
        let may = !channel.delivered && !channel.named && !channel.paused && !is_served;
        let waiting = channel.waiting() + channel.deferred.len() > 0;
        (may && (is_old || topic.messages == 0)).then_some((waiting, units(channel.used)))
    }

    pub(super) fn topic_need(&self, now: u64, topic: &Topic) -> Option<Need> {
        if topic.named || topic.paused || !topic.held.is_empty() {
            return None;
        }
        let mut waiting = false;
        for channel in self.channels.iter().filter(|channel| channel.topic == topic.id) {
            waiting |= self.channel_need(now, channel)?.0;
        }
        Some((waiting, units(topic.used)))
    }

    pub(super) fn has_slot_for(&self, now: u64, name: usize) -> bool {
        self.topics.len() < TOPICS
            || self.topics.iter().any(|topic| topic.name == name)
            || self.topics.iter().any(|topic| self.topic_need(now, topic).is_some())
    }

    /// Evicts the topic that the nsqd evicted, which must be one of the least needed.
    pub(super) fn evict_topic(&mut self, now: u64) -> Option<()> {
        let needs = self.topics.iter().map(|topic| self.topic_need(now, topic));
        let least = needs.flatten().min()?;
        let is_gone = |topic: &Topic| {
            self.topic_need(now, topic) == Some(least) && !self.there.contains(&(topic.name, None))
        };
        let at =
            self.topics.iter().position(is_gone).expect("the nsqd evicts one of the least needed");
        let id = self.topics[at].id;
        for channel in self.channels.iter().filter(|channel| channel.topic == id) {
            self.abandoned += (channel.waiting() + channel.deferred.len()) as u64;
        }
        self.given_back.0 += 1;
        self.delete_topic(at);
        Some(())
    }

    /// Evicts the channel that the nsqd evicted, of one topic or of all.
    pub(super) fn evict_channel(&mut self, now: u64, of: Option<u64>, stays: u64) -> Option<()> {
        let is_of = |channel: &&Channel| of.is_none_or(|topic| channel.topic == topic);
        let needs = self.channels.iter().filter(is_of).map(|it| self.channel_need(now, it));
        let least = needs.flatten().min()?;
        let is_gone = |channel: &Channel| {
            let topic = self.topics.iter().find(|topic| topic.id == channel.topic).unwrap().name;
            is_of(&channel)
                && self.channel_need(now, channel) == Some(least)
                && !self.there.contains(&(topic, Some(channel.name)))
        };
        let at = self
            .channels
            .iter()
            .position(is_gone)
            .expect("the nsqd evicts one of the least needed");
        let channel = &self.channels[at];
        self.abandoned += (channel.waiting() + channel.deferred.len()) as u64;
        self.given_back.1 += 1;
        if channel.topic == stays {
            self.drop_channel(at)
        } else {
            self.delete_channel(at)
        }
        Some(())
    }

    pub(super) fn topic(&mut self, name: usize) -> Option<usize> {
        self.topics.iter().position(|topic| topic.name == name)
    }

    pub(super) fn topic_for(&mut self, now: u64, name: usize, named: bool) -> Option<usize> {
        if let Some(at) = self.topic(name) {
            self.topics[at].used = now;
            self.topics[at].named |= named;
            return Some(at);
        }
        if self.topics.len() == TOPICS {
            self.evict_topic(now)?;
        }
        self.id += 1;
        self.topics.push(Topic {
            id: self.id,
            name,
            paused: false,
            held: VecDeque::new(),
            messages: 0,
            bytes: 0,
            dropped: 0,
            finished: None,
            named,
            used: now,
        });
        Some(self.topics.len() - 1)
    }

    pub(super) fn channel(&mut self, topic: usize, name: usize) -> Option<usize> {
        let topic = self.topics[topic].id;
        self.channels.iter().position(|channel| channel.topic == topic && channel.name == name)
    }

    pub(super) fn channel_at(&self, id: u64) -> usize {
        self.channels.iter().position(|channel| channel.id == id).unwrap()
    }

    pub(super) fn channel_for(
        &mut self,
        now: u64,
        topic: usize,
        name: usize,
        named: bool,
    ) -> Result<usize, &'static str> {
        if let Some(at) = self.channel(topic, name) {
            self.channels[at].named |= named;
            return Ok(at);
        }
        let id = self.topics[topic].id;
        if self.channels.iter().filter(|channel| channel.topic == id).count() == LANES {
            let spared = self.evict_channel(now, Some(id), id);
            spared.ok_or("no room for another channel of this topic")?;
        } else if self.channels.len() == CHANNELS {
            self.evict_channel(now, None, id).ok_or("no room for another channel")?;
        }
        // Another topic may have been deleted with its channel.
        let topic = self.topics.iter().position(|topic| topic.id == id).unwrap();
        self.id += 1;
        self.channels.push(Channel {
            id: self.id,
            topic: id,
            name,
            paused: false,
            queue: VecDeque::new(),
            requeued: VecDeque::new(),
            deferred: Vec::new(),
            entries: [const { None }; IN_FLIGHT],
            attempts: BTreeMap::new(),
            requeued_next: false,
            messages: 0,
            requeues: 0,
            timeouts: 0,
            dropped: 0,
            named,
            delivered: false,
            used: now,
        });
        self.flow(now, topic);
        Ok(self.channels.len() - 1)
    }

    pub(super) fn flow(&mut self, now: u64, topic: usize) {
        let id = self.topics[topic].id;
        if self.topics[topic].paused || !self.channels.iter().any(|channel| channel.topic == id) {
            return;
        }
        while let Some((number, defer)) = self.topics[topic].held.pop_front() {
            for channel in self.channels.iter_mut().filter(|channel| channel.topic == id) {
                channel.messages += 1;
                if defer == 0 {
                    channel.queue.push_back(number);
                } else {
                    defer_until(channel, number, now + defer);
                }
            }
        }
    }

    /// Returns the channel that a client subscribes to. Creates it and its topic, or neither.
    pub(super) fn channel_of(
        &mut self,
        now: u64,
        name: usize,
        channel: usize,
    ) -> Result<usize, &'static str> {
        if self.topic(name).is_none() {
            if !self.has_slot_for(now, name) {
                return Err("no room for another topic");
            }
            let may_go = |channel: &Channel| self.channel_need(now, channel).is_some();
            if self.channels.len() == CHANNELS && !self.channels.iter().any(may_go) {
                return Err("no room for another channel");
            }
        }
        let topic = self.topic_for(now, name, false).expect("a slot was found");
        self.channel_for(now, topic, channel, false)
    }

    pub(super) fn publish(
        &mut self,
        now: u64,
        name: usize,
        bodies: Vec<Vec<u8>>,
        defer: u64,
        named: bool,
    ) -> usize {
        let topic = self.topic_for(now, name, named).unwrap();
        for bytes in bodies {
            let number = self.next;
            self.next += 1;
            self.topics[topic].held.push_back((number, defer));
            self.topics[topic].messages += 1;
            self.topics[topic].bytes += bytes.len() as u64;
            self.bodies.insert(
                number,
                Body { bytes, timestamp: now as i64 * 1000, own: named, answered: false },
            );
        }
        self.flow(now, topic);
        topic
    }

    pub(super) fn drop_channel(&mut self, at: usize) {
        let id = self.channels[at].id;
        for subscriber in
            self.subscribers.iter_mut().filter(|subscriber| subscriber.channel == Some(id))
        {
            subscriber.channel = None;
            subscriber.closing = true;
            subscriber.ready = 0;
        }
        self.channels.remove(at);
    }

    pub(super) fn delete_channel(&mut self, at: usize) {
        let topic = self.channels[at].topic;
        self.drop_channel(at);
        let at = self.topics.iter().position(|other| other.id == topic).unwrap();
        let is_empty = !self.channels.iter().any(|channel| channel.topic == topic);
        if is_empty && TOPIC_NAMES[self.topics[at].name].ends_with("#ephemeral") {
            self.delete_topic(at);
        }
    }

    pub(super) fn delete_topic(&mut self, at: usize) {
        let id = self.topics[at].id;
        while let Some(channel) = self.channels.iter().position(|channel| channel.topic == id) {
            self.drop_channel(channel);
        }
        self.topics.remove(at);
        for subscriber in &mut self.subscribers {
            subscriber.pubs.retain(|(topic, _)| *topic != id);
        }
    }

    pub(super) fn empty_channel(&mut self, at: usize) {
        let channel = &mut self.channels[at];
        channel.queue.clear();
        channel.requeued.clear();
        channel.deferred.clear();
        channel.entries.fill(None);
    }

    pub(super) fn release_due(&mut self, now: u64) {
        for channel in &mut self.channels {
            while channel.deferred.first().is_some_and(|(due, _)| *due <= now) {
                let (_, number) = channel.deferred.remove(0);
                channel.requeued.push_back(number);
            }
        }
    }

    pub(super) fn in_flight(&self, client: usize) -> usize {
        let flights = self.channels.iter().flat_map(|channel| channel.entries.iter().flatten());
        flights.filter(|flight| flight.owner == client).count()
    }

    /// Returns whether a client may have one more message while `free_blocks` blocks are free.
    pub(super) fn may_have(&self, client: usize, free_blocks: usize) -> bool {
        let subscriber = &self.subscribers[client];
        let Some(id) = subscriber.channel else { return false };
        let channel = &self.channels[self.channel_at(id)];
        let free = IN_FLIGHT - channel.in_flight();
        let owed = (0..CLIENTS).filter(|other| {
            let subscriber = &self.subscribers[*other];
            subscriber.channel == Some(id) && subscriber.ready > 0 && self.in_flight(*other) == 0
        });
        let own = self.in_flight(client);
        let flights = channel.entries.iter().flatten().map(|flight| &self.bodies[&flight.number]);
        let theirs: usize =
            flights.filter(|body| body.own).map(|body| blocks(body.bytes.len())).sum();
        let is_bounded = self.full == Full::DropAnswered;
        let leaves_room = !is_bounded || free_blocks > RESERVE || 2 * CLIENTS * theirs < RESERVE;
        if own > 0 && !leaves_room {
            return false;
        }
        !channel.paused && own < subscriber.ready && free > if own == 0 { 0 } else { owed.count() }
    }

    /// Delivers a message to a client, and checks that it is the right one.
    pub(super) fn deliver(
        &mut self,
        now: u64,
        client: usize,
        number: u64,
        attempts: u16,
        free: usize,
    ) {
        assert!(self.may_have(client, free), "client {client} may not have a message");
        let at = self.channel_at(self.subscribers[client].channel.unwrap());
        let channel = &mut self.channels[at];
        let both = !channel.queue.is_empty() && !channel.requeued.is_empty();
        let requeued = if both { channel.requeued_next } else { !channel.requeued.is_empty() };
        channel.requeued_next = both && !requeued;
        let list = if requeued { &mut channel.requeued } else { &mut channel.queue };
        assert_eq!(list.pop_front(), Some(number));
        let count = channel.attempts.entry(number).or_default();
        *count += 1;
        assert_eq!(*count, attempts);
        channel.delivered = true;
        let entry = channel.entries.iter_mut().find(|entry| entry.is_none()).unwrap();
        *entry =
            Some(Flight { number, owner: client, deadline: now + MSG_TIMEOUT, delivered: now });
        self.subscribers[client].delivered += 1;
        self.subscribers[client].writing = Some(number);
    }

    pub(super) fn flight(
        &mut self,
        client: usize,
        number: u64,
    ) -> Result<(usize, usize), &'static str> {
        let Some(id) = self.subscribers[client].channel else { return Err("ID not in flight") };
        let at = self.channel_at(id);
        let is = |entry: &Option<Flight>| entry.as_ref().is_some_and(|f| f.number == number);
        let entry = self.channels[at].entries.iter().position(is).ok_or("ID not in flight")?;
        if self.channels[at].entries[entry].as_ref().unwrap().owner == client {
            Ok((at, entry))
        } else {
            Err("client does not own message")
        }
    }

    /// Requeues the client's messages in flight that `which` selects, in the order of the entries.
    pub(super) fn take_back(&mut self, client: usize, which: impl Fn(&Flight) -> bool) -> u64 {
        let Some(id) = self.subscribers[client].channel else { return 0 };
        let at = self.channel_at(id);
        let Channel { entries, requeued, .. } = &mut self.channels[at];
        let mut count = 0;
        for entry in entries {
            if entry.as_ref().is_some_and(|flight| flight.owner == client && which(flight)) {
                requeued.push_back(entry.take().unwrap().number);
                count += 1;
            }
        }
        count
    }

    pub(super) fn expire(&mut self, now: u64, client: usize) {
        let count = self.take_back(client, |flight| flight.deadline <= now);
        if let Some(id) = self.subscribers[client].channel {
            let at = self.channel_at(id);
            self.channels[at].timeouts += count;
        }
    }

    pub(super) fn leave(&mut self, now: u64, client: usize) {
        self.take_back(client, |_| true);
        let subscriber = &mut self.subscribers[client];
        subscriber.closing = true;
        subscriber.ready = 0;
        subscriber.pubs.clear();
        subscriber.delivered = 0;
        subscriber.finished = 0;
        subscriber.requeued = 0;
        let Some(id) = subscriber.channel.take() else { return };
        let at = self.channel_at(id);
        self.channels[at].used = now;
        let topic = self.channels[at].topic;
        self.topics.iter_mut().find(|other| other.id == topic).unwrap().used = now;
        let is_empty = !self.subscribers.iter().any(|subscriber| subscriber.channel == Some(id));
        if is_empty && CHANNEL_NAMES[self.channels[at].name].ends_with("#ephemeral") {
            self.delete_channel(at);
        }
    }

    pub(super) fn is_pinned(&self, number: u64) -> bool {
        self.subscribers.iter().any(|subscriber| subscriber.writing == Some(number))
    }

    /// Returns whether a message is held by its topic, or waits or is in flight in a channel.
    pub(super) fn waits(&self, number: u64) -> bool {
        self.topics.iter().any(|topic| topic.held.iter().any(|(held, _)| *held == number))
            || self.channels.iter().any(|channel| channel.holds(number))
    }

    /// Returns the number of blocks in use.
    pub(super) fn used(&self) -> usize {
        let is_needed = |number: &&u64| self.waits(**number) || self.is_pinned(**number);
        let needed = self.bodies.keys().filter(is_needed);
        needed.map(|number| blocks(self.bodies[number].bytes.len())).sum()
    }

    /// Returns the number of blocks that messages of the application take.
    pub(super) fn own(&self) -> usize {
        let own = self.bodies.iter().filter(|(number, body)| body.own && self.waits(**number));
        own.map(|(_, body)| blocks(body.bytes.len())).sum()
    }

    /// Removes the bodies that are no longer needed.
    pub(super) fn forget(&mut self) {
        let oldest = self.channels.iter().flat_map(|channel| {
            let flights = channel.entries.iter().flatten().map(|flight| flight.number);
            let deferred = channel.deferred.iter().map(|(_, number)| *number);
            let lists = channel.queue.iter().chain(&channel.requeued).copied();
            lists.chain(flights).chain(deferred)
        });
        let held = self.topics.iter().flat_map(|topic| topic.held.iter().map(|(held, _)| *held));
        let writing = self.subscribers.iter().filter_map(|subscriber| subscriber.writing);
        let oldest = oldest.chain(held).chain(writing).min().unwrap_or(self.next);
        self.bodies.retain(|number, _| *number >= oldest);
        for channel in &mut self.channels {
            channel.attempts.retain(|number, _| *number >= oldest);
        }
    }

    /// Records that a message was finished, or requeued with a delay.
    pub(super) fn answer(&mut self, number: u64) {
        if let Some(body) = self.bodies.get_mut(&number) {
            body.answered = true;
        }
    }

    /// Returns the number of blocks that clients' messages take in a topic.
    pub(super) fn theirs(&self, topic: &Topic) -> usize {
        let is_in = |number: u64| {
            topic.held.iter().any(|(held, _)| *held == number)
                || self.channels.iter().any(|it| it.topic == topic.id && it.holds(number))
        };
        let theirs = self.bodies.iter().filter(|(number, body)| !body.own && is_in(**number));
        theirs.map(|(_, body)| blocks(body.bytes.len())).sum()
    }

    /// Returns whether a client may publish `blocks` more blocks to a topic.
    pub(super) fn has_share(&self, now: u64, name: usize, blocks: usize) -> bool {
        let is_consumed =
            |it: &&Topic| it.finished.is_some_and(|at| (now >> 16) - (at >> 16) < 60_000_000 >> 16);
        let topic = self.topics.iter().find(|topic| topic.name == name);
        let own = topic.map_or(0, |topic| self.theirs(topic));
        let others = self.topics.iter().filter(|topic| !is_consumed(topic));
        let all: usize = others.map(|topic| self.theirs(topic)).sum();
        self.full == Full::DropOldest
            || topic.as_ref().is_some_and(is_consumed)
            || (own + blocks <= UNCONSUMED_EACH && all + blocks <= UNCONSUMED)
    }

    /// Drops the oldest of the old messages in topics without a channel.
    pub(super) fn expire_held(&mut self, now: u64) {
        let may_go = |topic: &&Topic| {
            !topic.named && !self.channels.iter().any(|channel| channel.topic == topic.id)
        };
        let first = |topic: &Topic| topic.held.front().map(|(number, _)| *number);
        let oldest = self.topics.iter().filter(may_go).filter_map(first).filter(|number| {
            let at = (self.bodies[number].timestamp / 1000) as u64;
            (now >> 16) - (at >> 16) >= OLD
        });
        let number = oldest.min().expect("an old message");
        for topic in &mut self.topics {
            if first(topic) == Some(number) {
                topic.held.pop_front();
                topic.dropped += 1;
            }
        }
        self.expired += 1;
    }

    /// Returns whether a message may be dropped to make room, unless it is in flight.
    pub(super) fn drops(&self, body: &Body) -> bool {
        match self.full {
            Full::Refuse => false,
            Full::DropAnswered => body.answered,
            Full::DropOldest => true,
        }
    }

    /// Drops the oldest droppable message; for a client none of the application's within the
    /// reserve.
    pub(super) fn drop_oldest(&mut self, own: bool) -> bool {
        let may_drop_own = own || self.own() > RESERVE;
        let is_droppable = |number: &u64| {
            let body = &self.bodies[number];
            (may_drop_own || !body.own)
                && self.drops(body)
                && !self.is_pinned(*number)
                && !self.channels.iter().any(|channel| channel.has_in_flight(*number))
        };
        let mut oldest = None;
        for topic in &self.topics {
            let held = topic.held.iter().map(|(held, _)| *held).find(is_droppable);
            let mut listed: Vec<u64> = Vec::new();
            for channel in self.channels.iter().filter(|channel| channel.topic == topic.id) {
                listed.extend(&channel.queue);
            }
            // A topic's list is in the order of publishing.
            listed.sort_unstable();
            let listed = listed.into_iter().find(is_droppable);
            oldest = [oldest, held, listed].into_iter().flatten().min();
        }
        for channel in &self.channels {
            let requeued = channel.requeued.iter().copied().find(is_droppable);
            let deferred = channel.deferred.iter().map(|(_, number)| *number).find(is_droppable);
            oldest = [oldest, requeued, deferred].into_iter().flatten().min();
        }
        let Some(number) = oldest else { return false };
        let mut of = None;
        for channel in &mut self.channels {
            if channel.holds(number) {
                channel.dropped += 1;
                of = Some(channel.topic);
            }
            channel.queue.retain(|other| *other != number);
            channel.requeued.retain(|other| *other != number);
            channel.deferred.retain(|(_, other)| *other != number);
        }
        for topic in &mut self.topics {
            let before = topic.held.len();
            topic.held.retain(|(other, _)| *other != number);
            if topic.held.len() < before || of == Some(topic.id) {
                topic.dropped += 1;
            }
        }
        self.dropped += 1;
        true
    }

    /// Makes room for a message of the application. Returns false, changing nothing, if that is
    /// impossible.
    pub(super) fn make_room(&mut self, need: usize) -> bool {
        let free = BLOCKS - self.used();
        let is_droppable = |number: &&u64| {
            let held = |topic: &Topic| topic.held.iter().any(|(held, _)| held == *number);
            let has = |channel: &Channel| channel.has_in_flight(**number);
            self.drops(&self.bodies[*number])
                && (self.topics.iter().any(held) || self.channels.iter().any(|c| c.holds(**number)))
                && !self.is_pinned(**number)
                && !self.channels.iter().any(has)
        };
        let droppable = self.bodies.keys().filter(is_droppable);
        let most: usize = droppable.map(|number| blocks(self.bodies[number].bytes.len())).sum();
        if free < need && (self.full == Full::Refuse || free + most < need) {
            return false;
        }
        while BLOCKS - self.used() < need {
            assert!(self.drop_oldest(true));
        }
        true
    }
}

pub(super) fn defer_until(channel: &mut Channel, number: u64, due: u64) {
    let due = due.div_ceil(1000) * 1000;
    let at = channel.deferred.partition_point(|other| *other < (due, number));
    channel.deferred.insert(at, (due, number));
}
