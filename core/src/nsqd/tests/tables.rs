//! Tables that are full: what is given back for others, in which order, and what never is.

use super::*;

impl World {
    /// A client subscribes, and leaves at once.
    fn pass(&mut self, topic: &str, channel: &str) -> &mut Self {
        self.send(2, format!("SUB {topic} {channel}\n")).expect(2, &[response("OK")]);
        self.leave(2)
    }

    /// Time passes, and clients answer heartbeats.
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

    /// A client publishes.
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

    fn given_back(&self) -> (u32, u32, u64) {
        let counters = self.nsqd.counters();
        (counters.topics_given_back, counters.channels_given_back, counters.abandoned)
    }
}

#[test]
fn topics_of_clients_that_left_are_given_back_at_once_the_longest_unused_first() {
    let mut world = World::new();
    world.pass("x", "c").later(500).pass("y", "c");
    // Used again.
    world.later(1000).pass("x", "c");
    world.later(1500).publishes("readings");
    assert_eq!((world.names(), world.given_back()), ("readings x x/c".into(), (1, 0, 0)));
    // What has messages stays; who is subscribed, too.
    world.send(0, "SUB y c\n").expect(0, &[response("OK")]);
    assert_eq!(world.names(), "readings y y/c");
    world.has_no_topic_for("z");
    world.leave(0).send(0, "SUB z c\n").expect(0, &[response("OK")]);
    assert_eq!((world.names(), world.given_back()), ("readings z z/c".into(), (3, 0, 0)));
}

#[test]
fn a_topic_without_messages_is_given_back_and_one_with_messages_is_not() {
    let mut world = World::new();
    let now = world.now;
    world.publishes("x").publishes("y");
    world.has_no_topic_for("z");
    world.nsqd.empty(now, &topic("y"), None).unwrap();
    world.publishes("z");
    assert_eq!(world.names(), "x z");
}

#[test]
fn a_channel_that_has_delivered_nothing_waits_for_its_client_for_60_s() {
    let mut world = World::new();
    // Its topic has had a message.
    world.send(0, "SUB t a\nRDY 0\n").expect(0, &[response("OK")]);
    world.publishes("t").pass("t", "b");
    world.has_no_channel_for("t", "c");
    world.later(59_900).has_no_channel_for("t", "c");
    world.later(60_200).pass("t", "c");
    assert_eq!((world.names(), world.given_back()), ("t t/a t/c".into(), (0, 1, 0)));
    // Its client may be there for as long as it likes, and with nothing.
    world.later(200_000).pass("t", "d").leave(0);
    assert_eq!(world.names(), "t t/a t/d");
    world.later(259_000).has_no_channel_for("t", "e");
}

#[test]
fn a_channel_is_given_back_at_once_if_its_topic_never_had_a_message() {
    let mut world = World::new();
    world.pass("t", "a").later(100).pass("t", "b").later(200).pass("t", "c");
    assert_eq!((world.names(), world.given_back()), ("t t/b t/c".into(), (0, 1, 0)));
    // The topic stays, also an ephemeral one.
    world.pass("e#ephemeral", "a").pass("e#ephemeral", "b").pass("e#ephemeral", "c");
    assert_eq!(world.nsqd.topics().count(), 2);
    assert_eq!(world.given_back(), (0, 2, 0));
}

#[test]
fn channels_without_messages_go_first_and_what_waits_in_others_is_counted() {
    let mut world = World::new();
    world.pass("t", "a").publishes("t").publishes("t");
    world.later(5000).send(0, "SUB t b\n").expect(0, &[response("OK")]).leave(0);
    // Used after the other, but nothing is lost with it.
    world.later(70_000).pass("t", "c");
    assert_eq!((world.names(), world.given_back()), ("t t/a t/c".into(), (0, 1, 0)));
    world.send(0, "SUB t d\n").expect(0, &[response("OK")]);
    assert_eq!((world.names(), world.given_back()), ("t t/c t/d".into(), (0, 2, 2)));
    world.expect_empty();
    world.nsqd.poll_event();
    assert_eq!(world.nsqd.counters().dropped, 0, "nothing was dropped for messages");
}

#[test]
fn a_topic_goes_with_its_channels_and_their_messages_when_no_other_can() {
    let mut world = World::new();
    world.pass("x", "c").publishes("x").pass("y", "c").publishes("y").publishes("y");
    world.later(59_000).has_no_topic_for("z");
    world.later(61_000).publishes("z");
    assert_eq!((world.names(), world.given_back()), ("y y/c z".into(), (1, 0, 1)));
    let told = core::iter::from_fn(|| world.nsqd.poll_event());
    let told: Vec<_> = told.filter(|it| !matches!(it, Event::Client { .. })).collect();
    assert_eq!(told, [Event::Dropped { count: 1 }, Event::TableFull(TableFull::Topics)]);
}

#[test]
fn what_has_delivered_is_never_given_back() {
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
fn what_the_application_named_is_never_given_back() {
    let mut world = World::new();
    let now = world.now;
    // By publishing, by name, and also what a client had made before.
    world.pass("x", "c").put("x", "m");
    world.nsqd.empty(now, &topic("x"), Some(&channel("c"))).unwrap();
    world.nsqd.create(now, &topic("y"), None).unwrap();
    world.later(10_000_000).has_no_topic_for("z");
    let now = world.now;
    assert_eq!(world.nsqd.create(now, &topic("z"), None), Err(NsqdError::TooManyTopics));
    // A channel, too.
    world.pass("y", "a").pass("y", "b");
    for name in ["a", "b"] {
        world.nsqd.create(now, &topic("y"), Some(&channel(name))).unwrap();
    }
    world.later(20_000_000).has_no_channel_for("y", "c");
    // But not what others made in its topics.
    world.nsqd.delete(now, &topic("y"), Some(&channel("a"))).unwrap();
    world.pass("y", "d").pass("y", "e");
    assert_eq!(world.names(), "x x/c y y/b y/e");
}

#[test]
fn what_is_paused_is_not_given_back() {
    let mut world = World::new();
    let now = world.now;
    world.pass("x", "c").pass("y", "c");
    world.nsqd.pause(now, &topic("x"), None).unwrap();
    world.nsqd.pause(now, &topic("y"), Some(&channel("c"))).unwrap();
    world.later(100_000).has_no_topic_for("z");
    world.nsqd.unpause(now, &topic("y"), Some(&channel("c"))).unwrap();
    world.publishes("z");
    assert_eq!(world.names(), "x x/c z");
}

#[test]
fn the_table_of_all_channels_is_full() {
    let mut world = World::new();
    // Four, of two topics; two are in use.
    world.send(0, "SUB t a\n").expect(0, &[response("OK")]);
    world.pass("t", "b").pass("u#ephemeral", "c").publishes("u#ephemeral").later(1000);
    world.send(1, "SUB u#ephemeral d\n").expect(1, &[response("OK")]);
    // A topic that is there: its own goes, since its topic had no message.
    world.send(2, "SUB t e\n").expect(2, &[response("OK")]);
    assert_eq!(world.names(), "t t/a t/e u#ephemeral u#ephemeral/c u#ephemeral/d");
}

#[test]
fn who_is_refused_changes_nothing_and_it_is_said_once() {
    // Three topics, and two channels for all of them.
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
    let told = |world: &mut World| {
        let events = core::iter::from_fn(|| world.nsqd.poll_event());
        events.filter(|it| !matches!(it, Event::Client { .. })).collect::<Vec<_>>()
    };
    let version = world.nsqd.version();
    world.refused(0, "SUB x c\n", text);
    assert_ne!(world.nsqd.version(), version);
    assert_eq!(told(&mut world), [Event::TableFull(TableFull::Channels)]);
    world.refused(0, "SUB x c\n", text);
    assert_eq!(told(&mut world), []);
    assert_eq!(world.names(), names, "nor was its topic made");
    // Of a topic that is there.
    world.nsqd.delete(now, &topic("t"), Some(&channel("b"))).unwrap();
    world.nsqd.create(now, &topic("u"), None).unwrap();
    world.nsqd.create(now, &topic("u"), Some(&channel("b"))).unwrap();
    world.refused(0, "SUB u d\n", text);
    assert_eq!(told(&mut world), [Event::TableFull(TableFull::Channels)], "there was room");
    world.nsqd.create(now, &topic("v"), None).unwrap();
    world.has_no_topic_for("w");
    world.refused(0, "SUB u d\n", text);
    assert_eq!(told(&mut world), [Event::TableFull(TableFull::Topics)], "each by itself");
    let counters = world.nsqd.counters();
    let refused = (counters.topics_refused, counters.channels_refused);
    assert_eq!((refused, counters.channels_of_topic_refused), ((2, 4), 0));
    assert_eq!(world.given_back(), (0, 0, 0));
}

#[test]
fn clients_that_published_to_a_topic_that_was_given_back_published_nothing_to_the_next() {
    let mut world = World::new();
    let now = world.now;
    world.put("t", "x").publishes("x");
    world.nsqd.empty(now, &topic("x"), None).unwrap();
    world.send(0, "SUB y c\n").expect(0, &[response("OK")]);
    assert_eq!(world.names(), "t y y/c");
    assert_eq!(world.nsqd.status(1).unwrap().published().count(), 0);
}
