//! Full tables: which topics and channels are evicted, in which order, and which never are.

use super::*;

impl World {
    /// Subscribes a client that disconnects at once.
    fn sub_once(&mut self, topic: &str, channel: &str) -> &mut Self {
        self.send(2, format!("SUB {topic} {channel}\n")).expect(2, &[response("OK")]);
        self.leave(2)
    }

    /// Advances the time to `ms` after the start, while clients answer heartbeats.
    fn later(&mut self, ms: u64) -> &mut Self {
        let until = Instant::from_millis(1000 + ms);
        while self.now < until {
            self.now = until.min(self.now.after(Span::from_secs(20)));
            let now = self.now;
            for index in 0..3 {
                self.client(index).tick(now);
                self.send(index, "NOP\n").receive(index);
            }
        }
        self
    }

    fn leave(&mut self, index: usize) -> &mut Self {
        let now = self.now;
        self.client(index).closed(now, Closed::Peer);
        self.open(index);
        self
    }

    /// Publishes a message of a client.
    #[track_caller]
    fn publishes(&mut self, topic: &str) -> &mut Self {
        self.send(1, publish(topic, "x")).expect(1, &[response("OK")])
    }

    #[track_caller]
    fn has_no_topic_for(&mut self, name: &str) {
        self.refused(1, publish(name, "x"), "E_PUB_FAILED PUB failed no room for another topic");
        let sub = format!("SUB {name} c\n");
        self.refused(1, sub, "E_SUB_FAILED SUB failed no room for another topic");
    }

    #[track_caller]
    fn has_no_channel_for(&mut self, topic: &str, name: &str) {
        let text = "E_SUB_FAILED SUB failed no room for another channel of this topic";
        self.refused(1, format!("SUB {topic} {name}\n"), text);
    }

    fn names(&self) -> String {
        let mut names: Vec<_> = self.nsqd.topics().map(|it| it.name.to_string()).collect();
        for topic in self.nsqd.topics() {
            let channels = self.nsqd.channels(topic.name);
            names.extend(channels.map(|it| format!("{}/{}", topic.name, it.name)));
        }
        names.sort();
        names.join(" ")
    }

    /// Returns the numbers of evicted topics, of evicted channels, and of messages lost with these.
    fn evicted(&self) -> (u32, u32, u64) {
        let counters = self.nsqd.counters();
        (counters.topics_given_back, counters.channels_given_back, counters.abandoned)
    }
}

#[test]
fn topics_of_clients_that_left_are_evicted_at_once_the_longest_unused_first() {
    let mut world = World::new();
    world.sub_once("x", "c").later(500).sub_once("y", "c");
    // Used again.
    world.later(1000).sub_once("x", "c");
    world.later(1500).publishes("readings");
    assert_eq!((world.names(), world.evicted()), ("readings x x/c".into(), (1, 0, 0)));
    // A topic with messages or a subscriber is not evicted.
    world.send(0, "SUB y c\n").expect(0, &[response("OK")]);
    assert_eq!(world.names(), "readings y y/c");
    world.has_no_topic_for("z");
    world.leave(0).send(0, "SUB z c\n").expect(0, &[response("OK")]);
    assert_eq!((world.names(), world.evicted()), ("readings z z/c".into(), (3, 0, 0)));
}

#[test]
fn a_topic_without_messages_is_evicted_and_one_with_messages_is_not() {
    let mut world = World::new();
    let now = world.now;
    world.publishes("x").publishes("y");
    world.has_no_topic_for("z");
    world.nsqd.empty(now, &topic("y"), None).unwrap();
    world.publishes("z");
    assert_eq!(world.names(), "x z");
}

#[test]
fn a_channel_that_has_delivered_nothing_is_kept_for_60_s() {
    let mut world = World::new();
    // The topic has had a message.
    world.send(0, "SUB t a\nRDY 0\n").expect(0, &[response("OK")]);
    world.publishes("t").sub_once("t", "b");
    world.has_no_channel_for("t", "c");
    world.later(59_900).has_no_channel_for("t", "c");
    world.later(60_200).sub_once("t", "c");
    assert_eq!((world.names(), world.evicted()), ("t t/a t/c".into(), (0, 1, 0)));
    // A channel with a client is not evicted.
    world.later(200_000).sub_once("t", "d").leave(0);
    assert_eq!(world.names(), "t t/a t/d");
    world.later(259_000).has_no_channel_for("t", "e");
}

#[test]
fn a_channel_is_evicted_at_once_if_its_topic_never_had_a_message() {
    let mut world = World::new();
    world.sub_once("t", "a").later(100).sub_once("t", "b").later(200).sub_once("t", "c");
    assert_eq!((world.names(), world.evicted()), ("t t/b t/c".into(), (0, 1, 0)));
    // The topic stays, even an ephemeral one.
    world.sub_once("e#ephemeral", "a").sub_once("e#ephemeral", "b").sub_once("e#ephemeral", "c");
    assert_eq!(world.nsqd.topics().count(), 2);
    assert_eq!(world.evicted(), (0, 2, 0));
}

#[test]
fn channels_without_messages_are_evicted_first_and_lost_messages_are_counted() {
    let mut world = World::new();
    world.sub_once("t", "a").publishes("t").publishes("t");
    world.later(5000).send(0, "SUB t b\n").expect(0, &[response("OK")]).leave(0);
    // `b` was used more recently, but has no message.
    world.later(70_000).sub_once("t", "c");
    assert_eq!((world.names(), world.evicted()), ("t t/a t/c".into(), (0, 1, 0)));
    world.send(0, "SUB t d\n").expect(0, &[response("OK")]);
    assert_eq!((world.names(), world.evicted()), ("t t/c t/d".into(), (0, 2, 2)));
    world.expect_empty();
    world.nsqd.poll_event();
    assert_eq!(world.nsqd.counters().dropped, 0, "no message was dropped for another message");
}

#[test]
fn a_topic_is_evicted_with_its_channels_messages_if_no_other_can_be() {
    let mut world = World::new();
    world.sub_once("x", "c").publishes("x").sub_once("y", "c").publishes("y").publishes("y");
    world.later(59_000).has_no_topic_for("z");
    world.later(61_000).publishes("z");
    assert_eq!((world.names(), world.evicted()), ("y y/c z".into(), (1, 0, 1)));
    let events = core::iter::from_fn(|| world.nsqd.poll_event());
    let events: Vec<_> = events.filter(|it| !matches!(it, Event::Client { .. })).collect();
    assert_eq!(events, [Event::Dropped { count: 1 }, Event::TableFull(TableFull::Topics)]);
}

#[test]
fn a_channel_that_has_delivered_is_never_evicted() {
    let mut world = World::new();
    for name in ["x", "y"] {
        world.send(0, format!("SUB {name} c\nRDY 1\n")).expect(0, &[response("OK")]);
        world.publishes(name).expect_bodies(0, 1);
        let last = world.nsqd.counters().delivered as u32 - 1;
        world.send(0, format!("FIN {}\n", id(last))).leave(0);
    }
    world.expect_empty();
    world.later(10_000_000).has_no_topic_for("z");
    assert_eq!(world.names(), "x x/c y y/c");
}

impl World {
    #[track_caller]
    fn expect_bodies(&mut self, index: usize, count: usize) {
        assert_eq!(self.bodies(index).len(), count);
    }
}

#[test]
fn topics_and_channels_of_the_application_are_never_evicted() {
    let mut world = World::new();
    let now = world.now;
    // The application publishes to a topic that a client made, and creates another.
    world.sub_once("x", "c").put("x", "m");
    world.nsqd.empty(now, &topic("x"), Some(&channel("c"))).unwrap();
    world.nsqd.create(now, &topic("y"), None).unwrap();
    world.later(10_000_000).has_no_topic_for("z");
    let now = world.now;
    assert_eq!(world.nsqd.create(now, &topic("z"), None), Err(NsqdError::TooManyTopics));
    // The same for channels that clients made.
    world.sub_once("y", "a").sub_once("y", "b");
    for name in ["a", "b"] {
        world.nsqd.create(now, &topic("y"), Some(&channel(name))).unwrap();
    }
    world.later(20_000_000).has_no_channel_for("y", "c");
    // Channels that clients made in the application's topics are evicted.
    world.nsqd.delete(now, &topic("y"), Some(&channel("a"))).unwrap();
    world.sub_once("y", "d").sub_once("y", "e");
    assert_eq!(world.names(), "x x/c y y/b y/e");
}

#[test]
fn paused_topics_and_channels_are_not_evicted() {
    let mut world = World::new();
    let now = world.now;
    world.sub_once("x", "c").sub_once("y", "c");
    world.nsqd.pause(now, &topic("x"), None).unwrap();
    world.nsqd.pause(now, &topic("y"), Some(&channel("c"))).unwrap();
    world.later(100_000).has_no_topic_for("z");
    world.nsqd.unpause(now, &topic("y"), Some(&channel("c"))).unwrap();
    world.publishes("z");
    assert_eq!(world.names(), "x x/c z");
}

#[test]
fn a_full_table_of_channels_evicts_an_unused_channel() {
    let mut world = World::new();
    // Four channels of two topics; two are in use.
    world.send(0, "SUB t a\n").expect(0, &[response("OK")]);
    world.sub_once("t", "b").sub_once("u#ephemeral", "c").publishes("u#ephemeral").later(1000);
    world.send(1, "SUB u#ephemeral d\n").expect(1, &[response("OK")]);
    // `b` is evicted, because its topic had no message.
    world.send(2, "SUB t e\n").expect(2, &[response("OK")]);
    assert_eq!(world.names(), "t t/a t/e u#ephemeral u#ephemeral/c u#ephemeral/d");
}

#[test]
fn a_refused_subscription_changes_nothing_and_is_reported_once() {
    // Room for three topics, and for two channels of all topics.
    let storage = Box::leak(Box::new(Storage::<3, 2, 3, 4>::new()));
    let nsqd = Nsqd::new(&CONFIG, storage, vec![0; 4096].leak()).unwrap();
    let mut world = World { nsqd, now: Instant::from_millis(1000), frames: Vec::new() };
    for index in 0..3 {
        world.frames.push(FrameDecoder::new(1 << 20));
        world.open(index);
    }
    let now = world.now;
    world.nsqd.create(now, &topic("t"), None).unwrap();
    for name in ["a", "b"] {
        world.nsqd.create(now, &topic("t"), Some(&channel(name))).unwrap();
    }
    let names = world.names();
    let text = "E_SUB_FAILED SUB failed no room for another channel";
    let events = |world: &mut World| {
        let events = core::iter::from_fn(|| world.nsqd.poll_event());
        events.filter(|it| !matches!(it, Event::Client { .. })).collect::<Vec<_>>()
    };
    let version = world.nsqd.version();
    world.refused(0, "SUB x c\n", text);
    assert_ne!(world.nsqd.version(), version);
    assert_eq!(events(&mut world), [Event::TableFull(TableFull::Channels)]);
    world.refused(0, "SUB x c\n", text);
    assert_eq!(events(&mut world), []);
    assert_eq!(world.names(), names, "its topic was not created");
    // A channel of an existing topic.
    world.nsqd.delete(now, &topic("t"), Some(&channel("b"))).unwrap();
    world.nsqd.create(now, &topic("u"), None).unwrap();
    world.nsqd.create(now, &topic("u"), Some(&channel("b"))).unwrap();
    world.refused(0, "SUB u d\n", text);
    assert_eq!(
        events(&mut world),
        [Event::TableFull(TableFull::Channels)],
        "there was room meanwhile"
    );
    world.nsqd.create(now, &topic("v"), None).unwrap();
    world.has_no_topic_for("w");
    world.refused(0, "SUB u d\n", text);
    assert_eq!(
        events(&mut world),
        [Event::TableFull(TableFull::Topics)],
        "each table is reported separately"
    );
    let counters = world.nsqd.counters();
    let refused = (counters.topics_refused, counters.channels_refused);
    assert_eq!((refused, counters.channels_of_topic_refused), ((2, 4), 0));
    assert_eq!(world.evicted(), (0, 0, 0));
}

#[test]
fn published_messages_of_an_evicted_topic_are_not_counted_for_the_next() {
    let mut world = World::new();
    let now = world.now;
    world.put("t", "x").publishes("x");
    world.nsqd.empty(now, &topic("x"), None).unwrap();
    world.send(0, "SUB y c\n").expect(0, &[response("OK")]);
    assert_eq!(world.names(), "t y y/c");
    assert_eq!(world.nsqd.status(1).unwrap().published().count(), 0);
}
