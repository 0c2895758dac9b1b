//! Full tables, tombstones, and the removal of unused topics and channels.

use super::*;

#[test]
fn a_full_table_refuses_new_topics_and_channels() {
    let mut world = small();
    world.arrive(0, "a");
    for name in ["t", "u", "v"] {
        world.ok(0, &format!("REGISTER {name} c\n"));
    }
    let before = world.ask("GET /debug");
    // Not fatal: the registrations stay.
    let topics = b"\0\0\0\x34E_REGISTER_FAILED REGISTER no room for another topic";
    let channels = b"\0\0\0\x36E_REGISTER_FAILED REGISTER no room for another channel";
    assert_eq!(world.send(0, b"REGISTER w\n"), topics);
    assert_eq!(world.send(0, b"REGISTER t d\n"), channels);
    assert_eq!(world.send(0, b"REGISTER w c\n"), channels);
    assert_eq!(world.ask("POST /topic/create?topic=w"), r#"503 {"message":"TOO_MANY_TOPICS"}"#);
    let channels = r#"503 {"message":"TOO_MANY_CHANNELS"}"#;
    assert_eq!(world.ask("POST /channel/create?topic=t&channel=d"), channels);
    assert_eq!(world.ask("POST /channel/create?topic=w&channel=d"), channels);
    assert_eq!(world.ask("GET /debug"), before);
    assert_eq!(world.nsqlookupd.counters().full, 6);
    // An existing topic or channel may be registered and created again.
    world.ok(0, "REGISTER t c\n");
    assert_eq!(world.ask("POST /channel/create?topic=t&channel=c"), "");
    // Room for the channel, none for its topic: nothing changes.
    assert_eq!(world.ask("POST /channel/delete?topic=v&channel=c"), "");
    let answer = world.send(0, b"REGISTER w c\n");
    assert!(answer.ends_with(b"another topic"));
    assert_eq!(world.ask("GET /channels?topic=v"), r#"{"channels":[]}"#);
    assert_eq!(world.ask("POST /topic/delete?topic=u"), "");
    world.ok(0, "REGISTER w c\n");
    // In the slots of those that were deleted.
    assert_eq!(world.ask("GET /topics"), r#"{"topics":["t","w","v"]}"#);
    assert_eq!(world.lookup("v"), "a");
}

#[test]
fn a_tombstone_hides_a_producer_from_a_topic_for_a_while() {
    let mut world = small();
    world.arrive(0, "a");
    world.arrive(1, "b");
    for at in [0, 1] {
        world.ok(at, "REGISTER t c\n");
        world.ok(at, "REGISTER u\n");
    }
    let bury = "POST /topic/tombstone?topic=t&node=a%3A2";
    assert_eq!(world.ask(bury), "");
    assert_eq!((world.lookup("t"), world.lookup("u")), ("b".into(), "a b".into()));
    assert!(world.ask("GET /nodes").contains(r#""topics":["t","u"],"tombstones":[true,false]}"#));
    // REGISTER alone does not lift the tombstone.
    world.ok(0, "REGISTER t\n");
    assert_eq!(world.lookup("t"), "b");
    // After its lifetime it no longer hides.
    world.after(44);
    assert_eq!(world.lookup("t"), "b");
    world.after(1);
    assert_eq!(world.lookup("t"), "a b");
    assert!(!world.ask("GET /nodes").contains("true"));
    assert!(world.ask("GET /debug").contains("\"tombstoned\":true"), "still shown in /debug");
    // A repetition restarts the lifetime; UNREGISTER and REGISTER lift the tombstone.
    world.ask(bury);
    world.after(30);
    world.ask(bury);
    world.after(30);
    assert_eq!(world.lookup("t"), "b");
    world.ok(0, "UNREGISTER t\n");
    world.ok(0, "REGISTER t\n");
    assert_eq!(world.lookup("t"), "a b");
    assert!(!world.ask("GET /debug").contains("\"tombstoned\":true"));
    // So does a new connection.
    world.ask(bury);
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
    world.arrive(0, "a");
    world.ok(0, "REGISTER t\n");
    assert_eq!(world.lookup("t"), "a b");
}

#[test]
fn a_full_table_of_tombstones_refuses_new_ones() {
    let mut world = a_world(Storage::<2, 17, 0, 1>::new(), Config::new());
    world.arrive(0, "a");
    world.connect(1);
    // On the same machine, at the same HTTP port.
    world.send(1, &identify(&node("a").replace("\"tcp_port\":1", "\"tcp_port\":9")));
    for topic in 0..=TOMBSTONES {
        world.ok(0, &format!("REGISTER t{topic}\n"));
    }
    for topic in 0..TOMBSTONES - 1 {
        assert_eq!(world.ask(&format!("POST /topic/tombstone?topic=t{topic}&node=a:2")), "");
    }
    world.ok(1, "REGISTER t15\n");
    world.ok(1, "REGISTER t0\n");
    let full = r#"503 {"message":"TOO_MANY_TOMBSTONES"}"#;
    // Two are needed, one is left: none is added.
    assert_eq!(world.ask("POST /topic/tombstone?topic=t15&node=a:2"), full);
    assert_eq!(world.lookup("t15"), "a a");
    // Two are needed, one exists already.
    assert_eq!(world.ask("POST /topic/tombstone?topic=t0&node=a:2"), "");
    assert_eq!(world.lookup("t0"), "");
    assert_eq!(world.ask("POST /topic/tombstone?topic=t16&node=a:2"), full);
    assert_eq!(world.nsqlookupd.counters().full, 2);
    // Expired tombstones give room.
    world.after(45);
    assert_eq!(world.ask("POST /topic/tombstone?topic=t15&node=a:2"), "");
    assert_eq!(world.lookup("t15"), "");
}

#[test]
fn an_unused_topic_or_channel_is_removed_after_a_while() {
    let mut world = a_world(Storage::<2, 3, 4, 1>::new(), Config::new());
    world.arrive(0, "a");
    world.ok(0, "REGISTER t c\n");
    world.ok(0, "REGISTER t d\n");
    world.ok(0, "UNREGISTER t d\n");
    assert_eq!(world.ask("POST /channel/create?topic=made&channel=c"), "");
    let listed = |world: &mut World<'_>| {
        let _ = world.ask("GET /topics");
        let topics = world.nsqlookupd.topics().map(|(name, _)| name.to_string());
        let channels = world.nsqlookupd.channels().map(|(topic, name)| format!("{topic}/{name}"));
        topics.chain(channels).collect::<Vec<_>>().join(" ")
    };
    for _ in 0..12 {
        world.after(299);
        world.ok(0, "PING\n");
    }
    assert_eq!(listed(&mut world), "t made t/c t/d made/c");
    world.after(12);
    assert_eq!(listed(&mut world), "t made t/c made/c");
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
    world.after(3599);
    assert_eq!(listed(&mut world), "t made t/c made/c");
    // A lookup of a topic counts as use of the topic, not of its channels.
    assert_eq!(world.lookup("t"), "");
    world.after(1);
    // Topics and channels that an administrator created stay.
    assert_eq!(listed(&mut world), "t made made/c");
    assert_eq!(world.nsqlookupd.counters().collected, 2);
    world.after(3597);
    assert_eq!(world.ask("GET /channels?topic=t"), r#"{"channels":[]}"#);
    world.after(3599);
    assert_eq!(listed(&mut world), "t made made/c");
    world.after(1);
    assert_eq!(listed(&mut world), "made made/c");
    assert_eq!(world.nsqlookupd.counters().collected, 3);
    world.after(1_000_000);
    assert_eq!(world.ask("GET /channels?topic=made"), r#"{"channels":["c"]}"#);

    // Never, with a timeout of zero.
    let config = Config { empty_timeout: Span::ZERO, ..Config::new() };
    let mut world = a_world(Small::new(), config);
    world.arrive(0, "a");
    world.ok(0, "REGISTER t c\n");
    world.ok(0, "UNREGISTER t\n");
    world.after(299);
    for _ in 0..10_000 {
        world.ok(0, "PING\n");
        world.after(299);
    }
    assert_eq!(world.ask("GET /channels?topic=t"), r#"{"channels":["c"]}"#);
}

/// Returns all topics and channels, sorted.
fn names(world: &World<'_>) -> String {
    let topics = world.nsqlookupd.topics().map(|(name, _)| name.to_string());
    let channels = world.nsqlookupd.channels().map(|(topic, name)| format!("{topic}/{name}"));
    let mut names: Vec<_> = topics.chain(channels).collect();
    names.sort();
    names.join(" ")
}

#[test]
fn unused_topics_and_channels_are_given_back_least_recently_used_first() {
    let mut world = a_world(Storage::<3, 4, 4, 1>::new(), Config::new());
    for topic in ["m1", "m2", "m3"] {
        assert_eq!(world.ask(&format!("POST /channel/create?topic={topic}&channel=c")), "");
        world.after(1);
    }
    world.arrive(0, "a");
    world.ok(0, "REGISTER mine c\n");
    assert_eq!(names(&world), "m1 m1/c m2 m2/c m3 m3/c mine mine/c");
    // A lookup counts as use of the topic, and so does its creation.
    world.after(1);
    world.lookup("m1");
    world.after(1);
    assert_eq!(world.ask("POST /topic/create?topic=m2"), "");
    // A topic is given back with its channels.
    world.ok(0, "REGISTER mine2\n");
    assert_eq!(names(&world), "m1 m1/c m2 m2/c mine mine/c mine2");
    assert_eq!(world.nsqlookupd.counters().given_back, 2);
    // So is a topic that was registered before.
    world.arrive(1, "b");
    world.ok(1, "REGISTER m1\n");
    world.after(1);
    world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Peer);
    assert_eq!(world.ask("POST /topic/create?topic=m4"), "", "over HTTP as well");
    assert_eq!(names(&world), "m1 m1/c m4 mine mine/c mine2");
    // Channels are given back alone, also of registered topics.
    world.ok(0, "REGISTER mine d\n");
    world.after(1);
    assert_eq!(world.ask("POST /channel/create?topic=mine&channel=made"), "");
    world.after(1);
    world.ok(0, "UNREGISTER mine d\n");
    world.ok(0, "REGISTER mine e\n");
    assert_eq!(names(&world), "m1 m4 mine mine/c mine/d mine/e mine/made mine2");
    world.ok(0, "REGISTER mine f\n");
    world.arrive(1, "b");
    world.ok(1, "REGISTER mine2 f\n");
    assert_eq!(names(&world), "m1 m4 mine mine/c mine/e mine/f mine2 mine2/f");
    // Registrations of a connected nsqd are never given back.
    assert!(world.send(0, b"REGISTER m1 c\n").ends_with(b"another channel"));
    let full = r#"503 {"message":"TOO_MANY_CHANNELS"}"#;
    assert_eq!(world.ask("POST /channel/create?topic=m1&channel=c"), full);
    assert_eq!(world.ask("POST /channel/create?topic=m9&channel=c"), full, "nothing changes");
    assert_eq!(names(&world), "m1 m4 mine mine/c mine/e mine/f mine2 mine2/f");
    world.arrive(2, "c");
    world.ok(2, "REGISTER m1\n");
    world.ok(2, "REGISTER m4\n");
    assert!(world.send(2, b"REGISTER m5\n").ends_with(b"another topic"));
    // A channel could be given back, no topic: nothing changes.
    world.ok(0, "UNREGISTER mine c\n");
    assert!(world.send(2, b"REGISTER m5 c\n").ends_with(b"another topic"));
    assert_eq!(names(&world), "m1 m4 mine mine/c mine/e mine/f mine2 mine2/f");
    let counters = world.nsqlookupd.counters();
    assert_eq!((counters.full, counters.given_back, counters.collected), (5, 7, 0));
}

#[test]
fn unused_topics_and_channels_keep_no_node_out() {
    let mut world = a_world(Storage::<3, 8, 16, 1>::new(), Config::new());
    let fill = |world: &mut World<'_>, n: usize| {
        for at in 0..40 {
            match n {
                0 => world.ask(&format!("POST /topic/create?topic=junk{at}")),
                1 => world.ask(&format!("POST /channel/create?topic=junk{at}&channel=c")),
                _ => world.ask(&format!("POST /channel/create?topic=junk&channel=c{at}")),
            };
        }
        // Also by an nsqd that leaves.
        world.arrive(1, "b");
        for at in 0..40 {
            world.send(1, format!("REGISTER left{} c{}\n", at % (n + 5), at).as_bytes());
        }
        world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Peer);
    };
    for n in 0..3 {
        fill(&mut world, n);
        world.arrive(0, "a");
        for at in 0..4 {
            world.ok(0, &format!("REGISTER good{at} c{n}\n"));
        }
        fill(&mut world, n);
        for at in 0..4 {
            assert_eq!(world.lookup(&format!("good{at}")), "a");
            let channels = world.ask(&format!("GET /channels?topic=good{at}"));
            assert!(channels.contains(&format!("\"c{n}\"")), "{channels}");
        }
        world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
    }
}

#[test]
fn one_connection_cannot_take_all_slots() {
    let config = Config { topics_per_node: 6, channels_per_node: 20, ..Config::new() };
    let mut world = a_world(Storage::<3, 8, 24, 1>::new(), config);
    world.arrive(0, "greedy");
    world.arrive(1, "good");
    for at in 0..6 {
        world.ok(0, &format!("REGISTER g{at}\n"));
    }
    let no = b"E_REGISTER_FAILED REGISTER no room for more of one node";
    assert!(world.send(0, b"REGISTER more\n").ends_with(no));
    assert!(world.send(0, b"REGISTER more c\n").ends_with(no));
    for at in 0..20 {
        world.ok(0, &format!("REGISTER g0 c{at}\n"));
    }
    assert!(world.send(0, b"REGISTER g0 more\n").ends_with(no));
    assert_eq!(world.ask("GET /topics").matches('g').count(), 6);
    // Every connection may register existing topics and channels.
    world.ok(1, "REGISTER good c\n");
    world.ok(1, "REGISTER good2 c\n");
    world.ok(0, "REGISTER good c\n");
    world.ok(0, "REGISTER g0 c0\n");
    assert_eq!(world.nsqlookupd.counters().full, 3);
    // Requests over HTTP have no share.
    assert_eq!(world.ask("POST /channel/create?topic=g0&channel=more"), "");
    world.ok(0, "UNREGISTER good\n");
    world.ok(0, "UNREGISTER g5\n");
    world.ok(0, "REGISTER more\n");
}

#[test]
fn a_full_table_is_reported_once() {
    let config = Config { topics_per_node: 3, channels_per_node: 3, ..Config::new() };
    let mut world = a_world(Storage::<3, 4, 4, 1>::new(), config);
    world.arrive(0, "a");
    world.arrive(1, "b");
    for at in 0..3 {
        world.ok(0, &format!("REGISTER t{at} c\n"));
    }
    while world.nsqlookupd.poll_event().is_some() {}
    let version = world.nsqlookupd.version();
    world.send(0, b"REGISTER t4\nREGISTER t5\n");
    assert_ne!(world.nsqlookupd.version(), version, "tasks that wait for events are woken");
    world.ok(1, "REGISTER t4 c\n");
    world.send(1, b"REGISTER t5\nREGISTER t4 d\nREGISTER t4 d\n");
    let events = [(); 4].map(|()| world.nsqlookupd.poll_event());
    let bounds = [TableFull::Topics, TableFull::Channels, TableFull::Share]
        .map(|it| Some(Event::TableFull(it)));
    assert_eq!(events, [bounds[0], bounds[1], bounds[2], None]);
    world.send(1, b"REGISTER t5\n");
    assert_eq!(world.nsqlookupd.poll_event(), Some(Event::TableFull(TableFull::Topics)));
    assert_eq!(world.nsqlookupd.counters().full, 6);
}

#[test]
fn ephemeral_topics_and_channels_are_removed_when_unregistered() {
    let mut world = small();
    world.arrive(0, "a");
    world.arrive(1, "b");
    for at in [0, 1] {
        world.ok(at, "REGISTER t#ephemeral c#ephemeral\n");
    }
    world.ok(0, "UNREGISTER t#ephemeral c#ephemeral\n");
    assert_eq!(world.ask("GET /channels?topic=t%23ephemeral"), r#"{"channels":["c#ephemeral"]}"#);
    world.ok(1, "UNREGISTER t#ephemeral c#ephemeral\n");
    assert_eq!(world.ask("GET /channels?topic=t%23ephemeral"), r#"{"channels":[]}"#);
    world.ok(0, "UNREGISTER t#ephemeral\n");
    assert_eq!(world.lookup("t%23ephemeral"), "b");
    world.ok(1, "UNREGISTER t#ephemeral\n");
    assert!(world.ask("GET /lookup?topic=t%23ephemeral").starts_with("404"));
}
