//! The actions of clients and of the application.

use super::*;

impl<D: Dice> World<'_, D> {
    pub(super) fn body(&mut self) -> Vec<u8> {
        let len = match self.below(4) {
            0 => 1 + self.below(20),
            1 => 20 + self.below(5),
            _ => 1 + self.below(300),
        };
        let first = self.below(26);
        (first..first + len).map(|n| b'a' + (n % 26) as u8).collect()
    }

    /// Chooses the next command of a client.
    pub(super) fn choose_command(&mut self, client: usize) {
        let topic = self.below(3);
        let name = TOPIC_NAMES[topic];
        let number = match self.connections[client].sees.len() {
            0 => u64::from(self.random.below(50)),
            n if self.random.one_in(10) => {
                let other = self.below(CLIENTS as u32);
                let at = self.below(n as u32);
                *self.connections[other].sees.last().unwrap_or(&self.connections[client].sees[at])
            }
            n => {
                let at = self.below(n as u32);
                self.connections[client].sees.swap_remove(at)
            }
        };
        let id = format!("00000007{number:08x}");
        let subscribed = self.connections[client].subscribed;
        let sent_cls = self.connections[client].sent_cls;
        let quiet = self.crowd && !self.random.one_in(32);
        let (bytes, effect) = match self.below(20) {
            0 => (b"NOP\n".to_vec(), Effect::None),
            1..=4 if quiet => (b"NOP\n".to_vec(), Effect::None),
            1..=2 => {
                let body = self.body();
                let mut bytes = format!("PUB {name}\n").into_bytes();
                bytes.extend((body.len() as u32).to_be_bytes());
                bytes.extend(&body);
                (bytes, Effect::Publish { topic, bodies: vec![body], defer: 0 })
            }
            3 => {
                let body = self.body();
                let defer = self.random.below(6000).into();
                let mut bytes = format!("DPUB {name} {defer}\n").into_bytes();
                bytes.extend((body.len() as u32).to_be_bytes());
                bytes.extend(&body);
                (bytes, Effect::Publish { topic, bodies: vec![body], defer })
            }
            4 => {
                let count = 1 + self.below(6);
                let bodies: Vec<_> = (0..count).map(|_| self.body()).collect();
                let mut batch = (bodies.len() as u32).to_be_bytes().to_vec();
                for body in &bodies {
                    batch.extend((body.len() as u32).to_be_bytes());
                    batch.extend(body);
                }
                let mut bytes = format!("MPUB {name}\n").into_bytes();
                bytes.extend((batch.len() as u32).to_be_bytes());
                bytes.extend(batch);
                (bytes, Effect::Publish { topic, bodies, defer: 0 })
            }
            _ if !subscribed => {
                let channel = self.below(3);
                let bytes = format!("SUB {name} {}\n", CHANNEL_NAMES[channel]).into_bytes();
                (bytes, Effect::Sub { topic, channel })
            }
            5..=8 => {
                let count = if quiet { 0 } else { self.below(IN_FLIGHT as u32 + 1) };
                (format!("RDY {count}\n").into_bytes(), Effect::Rdy(count))
            }
            9..=10 => {
                let delay =
                    if self.random.one_in(2) { 0 } else { u64::from(self.random.below(15_000)) };
                (format!("REQ {id} {delay}\n").into_bytes(), Effect::Req(number, delay))
            }
            11 => (format!("TOUCH {id}\n").into_bytes(), Effect::Touch(number)),
            12 if !sent_cls && self.random.one_in(8) => (b"CLS\n".to_vec(), Effect::Cls),
            _ => (format!("FIN {id}\n").into_bytes(), Effect::Fin(number)),
        };
        if matches!(effect, Effect::Touch(_)) {
            self.connections[client].sees.push(number);
        }
        self.connections[client].pending = Some((bytes, 0, effect));
    }

    pub(super) fn publish(&mut self) {
        let topic = self.below(3);
        if topic >= self.named {
            return;
        }
        let body = self.body();
        let defer = if self.random.one_in(5) { u64::from(self.random.below(5000)) } else { 0 };
        let has_slot = self.model.has_slot_for(self.now, topic);
        let need = blocks(body.len());
        let store = self.node.store();
        let exact = self.is_exact();
        let had = (store.free - store.promised) as usize;
        let options = PublishOptions { defer: Some(Span::from_millis(defer as u32)) };
        let now = self.instant();
        let before = self.node.counters();
        let done = self.node.publish_with(now, &topic_name(topic), &body, options);
        let dropped = self.node.counters().dropped - before.dropped;
        for _ in before.expired..self.node.counters().expired {
            self.model.expire_held(self.now);
        }
        match done {
            Err(PublishError::TooManyTopics) => assert!(!has_slot),
            Err(PublishError::Full) => {
                assert!(has_slot && need > had);
                assert_eq!(self.node.counters().refused, before.refused + 1);
                assert_eq!(dropped, 0, "a refused message changes nothing");
                if exact {
                    assert!(!self.model.make_room(need));
                }
            }
            Ok(ticket) => {
                assert!(has_slot);
                assert_eq!(ticket.number(), self.model.next);
                if exact {
                    assert!(self.model.make_room(need));
                } else {
                    for _ in 0..dropped {
                        assert!(self.model.drop_oldest(true));
                    }
                }
                self.read_tables();
                self.model.publish(self.now, topic, vec![body], defer * 1000, true);
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(self.node.counters().dropped, self.model.dropped);
    }

    /// Changes topics and channels like the application or HTTP.
    pub(super) fn administer(&mut self) {
        let (topic, channel) = (self.below(3), self.below(3));
        let (topic_is, channel_is) = (topic_name(topic), channel_name(channel));
        let now = self.instant();
        let at = self.model.topic(topic);
        let no_topic = |at: Option<usize>| at.ok_or(NsqdError::NoTopic);
        let action = self.below(16);
        let node = &mut self.node;
        let (done, expected) = match action {
            0 | 7 if topic.max(channel) >= self.named => return,
            0 => {
                let done = node.create(now, &topic_is, None);
                self.read_tables();
                let made = self.model.topic_for(self.now, topic, true);
                (done, made.map(|_| ()).ok_or(NsqdError::TooManyTopics))
            }
            1 if self.random.one_in(4) => {
                let done = node.delete(now, &topic_is, None);
                (done, no_topic(at).map(|at| self.model.delete_topic(at)))
            }
            2 if self.random.one_in(3) => {
                let done = node.empty(now, &topic_is, None);
                (done, no_topic(at).map(|at| self.model.topics[at].held.clear()))
            }
            3 => {
                let done = node.pause(now, &topic_is, None);
                (done, no_topic(at).map(|at| self.model.topics[at].paused = true))
            }
            4..=6 => {
                let done = node.unpause(now, &topic_is, None);
                let expected = no_topic(at).map(|at| {
                    self.model.topics[at].paused = false;
                    self.model.flow(self.now, at);
                });
                (done, expected)
            }
            7 => {
                let done = node.create(now, &topic_is, Some(&channel_is));
                self.read_tables();
                let expected = no_topic(at).and_then(|at| {
                    let made = self.model.channel_for(self.now, at, channel, true);
                    made.map(|_| ()).map_err(|_| NsqdError::TooManyChannels)
                });
                (done, expected)
            }
            _ => {
                let found = no_topic(at)
                    .and_then(|at| self.model.channel(at, channel).ok_or(NsqdError::NoChannel));
                let model = &mut self.model;
                match action {
                    8 if self.random.one_in(2) => (
                        node.delete(now, &topic_is, Some(&channel_is)),
                        found.map(|at| model.delete_channel(at)),
                    ),
                    9 if self.random.one_in(2) => (
                        node.empty(now, &topic_is, Some(&channel_is)),
                        found.map(|at| model.empty_channel(at)),
                    ),
                    10 => (
                        node.pause(now, &topic_is, Some(&channel_is)),
                        found.map(|at| model.channels[at].paused = true),
                    ),
                    _ => (
                        node.unpause(now, &topic_is, Some(&channel_is)),
                        found.map(|at| model.channels[at].paused = false),
                    ),
                }
            }
        };
        assert_eq!(done, expected);
    }
}
