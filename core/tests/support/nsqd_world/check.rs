//! Compares the visible state of the nsqd with the model.

use super::*;

impl<D: Dice> World<'_, D> {
    /// Returns whether all blocks in use belong to messages of the model.
    pub(super) fn is_exact(&self) -> bool {
        let is_publishing = |connection: &Connection| matches!(connection.pending, Some((_, at, Effect::Publish { .. })) if at > 0);
        self.model.subscribers.iter().all(|subscriber| !subscriber.closing)
            && !self.connections.iter().any(is_publishing)
    }

    /// Compares all visible state.
    pub(super) fn check(&mut self) {
        let Self { node, model, .. } = &*self;
        assert_eq!(node.topics().count(), model.topics.len());
        for topic in &model.topics {
            let name = topic_name(topic.name);
            let status = node.topics().find(|status| *status.name == name).unwrap();
            let of = || model.channels.iter().filter(|channel| channel.topic == topic.id);
            assert_eq!(
                (status.paused, status.depth, status.messages, status.bytes, status.dropped),
                (topic.paused, topic.held.len() as u32, topic.messages, topic.bytes, topic.dropped)
            );
            assert_eq!(usize::from(status.channels), of().count());
            assert_eq!(node.channels(&name).count(), of().count());
            for channel in of() {
                let name_of = channel_name(channel.name);
                let status = node.channels(&name).find(|status| *status.name == name_of).unwrap();
                let clients = model
                    .subscribers
                    .iter()
                    .filter(|subscriber| subscriber.channel == Some(channel.id))
                    .count();
                assert_eq!(
                    (
                        (status.paused, status.clients, status.depth, status.in_flight),
                        (status.deferred, status.messages, status.requeued, status.timed_out),
                        status.dropped
                    ),
                    (
                        (
                            channel.paused,
                            clients as u16,
                            channel.waiting() as u32,
                            channel.in_flight() as u32
                        ),
                        (
                            channel.deferred.len() as u32,
                            channel.messages,
                            channel.requeues,
                            channel.timeouts
                        ),
                        channel.dropped
                    ),
                    "{channel:?}"
                );
            }
        }
        for (index, subscriber) in model.subscribers.iter().enumerate() {
            let Some(status) = node.status(index) else {
                assert!(!subscriber.open);
                continue;
            };
            let in_flight = model.in_flight(index);
            assert_eq!(
                (usize::from(status.ready), usize::from(status.in_flight)),
                (subscriber.ready, in_flight),
            );
            if !subscriber.closing {
                assert_eq!(
                    (status.messages, status.finished, status.requeued),
                    (subscriber.delivered, subscriber.finished, subscriber.requeued)
                );
                let published: u32 = status.published().map(|(_, count)| count).sum();
                assert_eq!(published, subscriber.pubs.iter().map(|(_, count)| count).sum::<u32>());
            }
        }
        assert_eq!(node.counters().finished, model.finished);
        assert_eq!(node.counters().dropped, model.dropped);
        assert_eq!(node.counters().expired, model.expired);
        let counters = node.counters();
        let given_back = (counters.topics_given_back, counters.channels_given_back);
        assert_eq!((counters.abandoned, given_back), (model.abandoned, model.given_back));
        assert_eq!(node.counters().delivered, self.delivered);
        assert!(node.store().announced as usize <= ANNOUNCED);
        if self.is_exact() {
            assert_eq!((node.store().promised, node.store().announced), (0, 0));
            assert_eq!(node.store().free as usize, BLOCKS - model.used());
        }
    }

    /// Lets all clients read until no bytes come. Then no message may wait for a client that could
    /// get it.
    pub(super) fn drain(&mut self) {
        loop {
            let version = self.node.version();
            let mut received = false;
            for client in 0..CLIENTS {
                if self.model.subscribers[client].open {
                    while self.read_some(client, true) {
                        received = true;
                    }
                }
            }
            if !received && self.node.version() == version {
                break;
            }
        }
        let free = (self.node.store().free - self.node.store().promised) as usize;
        for client in 0..CLIENTS {
            let subscriber = &self.model.subscribers[client];
            let Some(id) = subscriber.channel.filter(|_| !subscriber.closing) else { continue };
            let channel = &self.model.channels[self.model.channel_at(id)];
            assert!(
                channel.waiting() == 0 || !self.model.may_have(client, free),
                "client {client} could have a message of {channel:?}"
            );
            assert!(subscriber.expected.is_empty());
        }
        self.check();
        self.model.forget();
    }

    /// Ends the life: every remaining message is delivered once, and the store is empty then.
    pub(super) fn finish(&mut self) {
        for client in 0..CLIENTS {
            if self.model.subscribers[client].open {
                self.hang_up(client, Closed::Peer);
            }
            self.connections[client].pending = None;
        }
        for topic in 0..3 {
            let Some(at) = self.model.topic(topic) else { continue };
            let now = self.instant();
            self.node.unpause(now, &topic_name(topic), None).unwrap();
            self.model.topics[at].paused = false;
            self.model.flow(self.now, at);
            if !self.model.channels.iter().any(|c| c.topic == self.model.topics[at].id) {
                self.node.delete(now, &topic_name(topic), None).unwrap();
                self.model.delete_topic(at);
            }
        }
        self.wait(3_600_000_000);
        let all: Vec<_> = self
            .model
            .channels
            .iter()
            .map(|channel| {
                let topic = self.model.topics.iter().find(|t| t.id == channel.topic).unwrap();
                (topic.name, channel.name, channel.waiting())
            })
            .collect();
        for (topic, channel, waiting) in all {
            let now = self.instant();
            self.node.unpause(now, &topic_name(topic), Some(&channel_name(channel))).unwrap();
            let at = self.model.topic(topic).unwrap();
            let at = self.model.channel(at, channel).unwrap();
            self.model.channels[at].paused = false;
            self.connect(0);
            let (topic_is, channel_is) = (TOPIC_NAMES[topic], CHANNEL_NAMES[channel]);
            let send = |world: &mut Self, text: String, effect: Effect| {
                world.connections[0].pending = Some((text.into_bytes(), 0, effect));
                while world.connections[0].pending.is_some() {
                    world.send_some(0);
                }
            };
            send(self, "  V2".into(), Effect::None);
            let sub = format!("SUB {topic_is} {channel_is}\n");
            send(self, sub, Effect::Sub { topic, channel });
            while self.read_some(0, true) {}
            send(self, "RDY 1\n".into(), Effect::Rdy(1));
            for _ in 0..waiting {
                while self.read_some(0, true) {}
                let number = *self.connections[0].sees.last().expect("another message");
                send(self, format!("FIN 00000007{number:08x}\n"), Effect::Fin(number));
                self.check();
            }
            assert!(!self.read_some(0, true), "no further message");
            self.hang_up(0, Closed::Peer);
        }
        self.check();
        assert_eq!(self.node.store().free as usize, BLOCKS);
    }
}
