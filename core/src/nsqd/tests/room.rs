//! A store that is full: who waits, who is rejected, what is dropped.

use super::*;

#[test]
fn what_is_not_read_keeps_nobody_else_waiting() {
    let mut world = World::with(&WHOLE, 4096);
    world.subscribe(2, 4);
    let many = publish("t", "x").repeat(100);
    let taken = world.take(0, &many);
    assert!(taken < many.len(), "its answers have no room");
    let accepted = world.nsqd.counters().accepted;
    assert!((14..=20).contains(&accepted), "{accepted}");
    world.send(1, publish("t", "y")).expect(1, &[response("OK")]);
    assert_eq!(world.receive(0).len() as u64, accepted);
    assert_eq!(world.take(0, &many[taken..]), taken, "as many again");
}

#[test]
fn a_producer_waits_for_room_and_is_told_when_there_is_none() {
    let mut world = World::with(&WHOLE, 66 * 4);
    world.subscribe(0, 4);
    world.send(1, publish("t", &"a".repeat(200))).expect(1, &[response("OK")]);
    assert_eq!(world.bodies(0).len(), 1);
    // The application is refused at once, a client waits.
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"b"), Err(PublishError::Full));
    assert_eq!(world.nsqd.counters().refused, 1);
    let wait = publish("t", "bb");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    assert_eq!(world.take(1, b"bb"), 0);
    assert_eq!(world.client(1).deadline(), world.now.after(CONFIG.publish_wait));
    world.at(4000).expect(1, &[]);
    let version = world.nsqd.version();
    world.send(0, format!("FIN {}\n", id(0)));
    assert_ne!(world.nsqd.version(), version, "the waiting one is to look");
    world.send(1, "bb").expect(1, &[response("OK")]);
    // It does not wait for ever.
    world.send(1, publish("t", &"c".repeat(80))).expect(1, &[response("OK")]);
    world.send(1, publish("t", "d")).expect(1, &[response("OK")]);
    let wait = publish("t", "dd");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    world.at(8999).expect(1, &[]).expect_link(1, Link::Up);
    world.at(9000).expect(1, &[error("E_PUB_FAILED PUB failed no room")]);
    world.expect_link(1, Link::Close);
    assert_eq!(world.nsqd.counters().waits, 2);
    assert_eq!(
        world.client(2).receive(now, &wait),
        Err(crate::session::Fault::Refused(crate::wire::nsqd::ErrorCode::Pub))
    );
}

#[test]
fn waiting_for_room_is_not_silence() {
    let mut world = World::with(&CONFIG, 66);
    world.send(1, identify("{\"heartbeat_interval\":1000}")).expect(1, &[response("OK")]);
    world.put("t", "a");
    assert_eq!(world.take(1, &publish("t", "b")), publish("t", "b").len() - 1);
    for second in 1..5 {
        world.at(second * 1000).expect(1, &[response("_heartbeat_")]).expect_link(1, Link::Up);
    }
    let now = world.now;
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.send(1, "b").expect(1, &[response("OK")]);
    // From now on it is.
    world.at(5900).expect_link(1, Link::Up).at(6000).expect_link(1, Link::Close);
}

#[test]
fn room_that_came_in_time_counts_even_if_nobody_asked_again() {
    let mut world = World::with(&CONFIG, 66 * 2);
    world.put("t", "a").put("t", "b");
    let wait = publish("t", "cc");
    assert_eq!(world.take(1, &wait[..wait.len() - 1]), wait.len() - 2);
    let now = world.now;
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.at(5000).expect_link(1, Link::Up);
    world.send(1, "cc").expect(1, &[response("OK")]);
}

#[test]
fn a_batch_comes_whole_or_not_at_all() {
    let mut world = World::with(&WHOLE, 66 * 8);
    let batch = mpub("t", &["a", "b", "c", "d", "e"]);
    // Room for all of them is promised to the batch before its messages come.
    let (head, rest) = batch.split_at(b"MPUB t\n".len() + 4 + 4 + 4);
    world.send(0, head);
    assert_eq!(world.nsqd.store().promised, 5);
    world.put("t", "x").put("t", "y").put("t", "z");
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"no"), Err(PublishError::Full));
    let (some, last) = rest.split_at(rest.len() - 1);
    world.send(0, some);
    assert_eq!(world.nsqd.topics().next().unwrap().messages, 3, "not yet");
    world.send(0, last).expect(0, &[response("OK")]);
    assert_eq!(world.nsqd.topics().next().unwrap().messages, 8);
    // One that is broken off leaves nothing.
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.send(0, &batch[..batch.len() - 1]);
    let ArenaStatus { free, promised, .. } = world.nsqd.store();
    assert_eq!((free, promised), (4, 1), "what has not begun to come is only promised");
    world.client(0).closed(now, Closed::Peer);
    world.expect_empty();
}

#[test]
fn a_batch_that_never_fits_is_refused_for_good() {
    // Clients can announce 30 blocks.
    let batch = |count: usize, len: usize| mpub("t", &vec![&*"x".repeat(len); count]);
    let with_last = |last: &str| {
        let long = "x".repeat(21);
        let mut bodies = vec![&*long; 15];
        bodies.push(last);
        mpub("t", &bodies)
    };
    // One that just fits: short messages, and such as take two blocks.
    for fits in [batch(30, 1), batch(15, 21)] {
        let mut world = World::with(&CONFIG, 66 * 100);
        world.send(0, fits).expect(0, &[response("OK")]);
        assert_eq!(world.nsqd.store().free, 70);
    }
    // Its numbers say so; they do not, but its messages; also if there is no room now.
    for (never, count) in [(batch(31, 1), 31), (with_last("xxxxx"), 16)] {
        for others in [0, 40] {
            let mut world = World::with(&CONFIG, 66 * 100);
            for _ in 0..others {
                world.put("t", "x");
            }
            let text = format!("E_BAD_BODY MPUB invalid message count {count}");
            world.refused(0, &never, &text);
            let ArenaStatus { free, promised, announced, .. } = world.nsqd.store();
            assert_eq!((free, promised, announced), (100 - others, 0, 0));
        }
    }
}

/// A command whose body is announced, and does not come.
fn announce(verb: &str, topic: &str, len: u32) -> Vec<u8> {
    [format!("{verb} {topic}\n").as_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn a_client_that_sends_no_body_does_not_keep_the_application_from_publishing() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let now = world.now;
    world.nsqd.publish(now, &topic("readings"), b"21.5").unwrap();
    world.send(0, identify("{\"heartbeat_interval\":60000}")).expect(0, &[response("OK")]);
    // The longest that is taken, of which one byte comes.
    let longest = world.nsqd.limits().max_msg_size;
    assert_eq!(longest, 30 * 64 - 44);
    world.send(0, announce("PUB", "junk", longest)).send(0, "x");
    let ArenaStatus { free, announced, .. } = world.nsqd.store();
    assert_eq!((free, announced), (69, 30));
    // The others of its kind wait.
    assert_eq!(world.take(1, &[&announce("PUB", "junk", 20)[..], b"x"].concat()), 13);
    // The application and small messages that are here as a whole do not.
    world.nsqd.publish(now, &topic("readings"), &[b'x'; 200]).unwrap();
    world.send(2, publish("readings", &"x".repeat(200))).expect(2, &[response("OK")]);
    world.send(2, mpub("readings", &["a", "b", "c"])).expect(2, &[response("OK")]);
    assert_eq!(world.nsqd.store().announced, 30);
    // Not for long.
    world.at(4999).expect_link(0, Link::Up);
    world.at(5000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE PUB failed to read message body")]);
    assert_eq!((world.nsqd.counters().body_timeouts, world.nsqd.store().announced), (1, 1));
}

#[test]
fn a_body_that_comes_slowly_is_taken_and_one_that_trickles_is_not() {
    let mut world = World::with(&CONFIG, 66 * 400);
    let body = "x".repeat(3000);
    let whole = publish("t", &body);
    let (mut rest, mut now) = (&whole[..], 0);
    // A KiB each time, a moment before the last.
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(1024));
        world.at(now).send(0, piece);
        (rest, now) = (after, now + 4990);
    }
    world.expect(0, &[response("OK")]);
    for client in [0, 1] {
        world.open(client);
    }
    // A byte a second; a body that has all but its last byte.
    let begun = world.now.as_micros() / 1000 - 1000;
    world.send(0, &whole[..20]).send(1, &whole[..whole.len() - 1]);
    for second in 1..5 {
        world.at(begun + second * 1000).send(0, "x").expect_link(0, Link::Up);
    }
    world.at(begun + 4999).expect_link(0, Link::Up).expect_link(1, Link::Up);
    world.at(begun + 5000).expect_link(0, Link::Close).expect_link(1, Link::Close);
    assert_eq!(world.nsqd.counters().body_timeouts, 2);
    let used = world.nsqd.store().blocks - world.nsqd.store().free;
    assert_eq!(usize::from(used), message_cost(3000, 2) / 66, "theirs is free");
}

#[test]
fn a_trickled_batch_has_the_same_deadline() {
    let mut world = World::with(&CONFIG, 66 * 100);
    // Whole messages, one a second, each of which may seem to be all there is.
    let one = [&1u32.to_be_bytes()[..], b"x"].concat();
    let head = [&announce("MPUB", "t", 4 + 30 * 5)[..], &30u32.to_be_bytes()].concat();
    world.send(0, [head, one.clone()].concat());
    for second in 1..5 {
        world.at(second * 1000).send(0, &one);
        assert_eq!(world.nsqd.store().announced, 30);
    }
    world.at(5000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE MPUB failed to read message(5) body size")]);
    world.expect_empty();
}

#[test]
fn who_lies_about_a_batch_holds_no_more_than_its_share() {
    let mut world = World::with(&CONFIG, 66 * 100);
    // Another one has all of it.
    let hold = world.nsqd.limits().max_msg_size;
    world.send(0, [announce("PUB", "t", hold), vec![b'x']].concat());
    let count = 20u32.to_be_bytes();
    let body = [&count[..], &[&1u32.to_be_bytes()[..], b"x"].concat().repeat(20)].concat();
    let truth = [&announce("MPUB", "t", body.len() as u32)[..], &body].concat();
    // All of it is here, if it is as long as it says: but its first message is longer.
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 4 + 3] = 200;
    world.send(1, lie).expect(1, &[error("E_MPUB_FAILED MPUB failed no room")]);
    // Or there is more of it than it says.
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 3] = 21;
    lie[b"MPUB t\n".len() + 3] += 5;
    lie.extend([0, 0, 0]);
    assert_eq!(world.take(1, &lie), 15, "not all that it announces is here: it waits");
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    lie[b"MPUB t\n".len() + 4 + 3] = 20;
    lie[b"MPUB t\n".len() + 3] -= 5;
    world.send(1, &lie).expect(1, &[response("OK")]);
    assert_eq!(world.nsqd.store().announced, 30);
}

#[test]
fn what_is_here_as_a_whole_does_not_count_as_announced() {
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, 66 * 100);
    world.send(0, "SUB t c\nRDY 1\n").expect(0, &[response("OK")]);
    for _ in 0..63 {
        world.send(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    // 20 messages of one block each on average: in fact 30, of which 25 are free.
    let bodies: Vec<_> = (0u32..20).map(|n| vec![b'x'; 19 + 2 * (n as usize % 2)]).collect();
    let mut body = 20u32.to_be_bytes().to_vec();
    for one in &bodies {
        body.extend((one.len() as u32).to_be_bytes());
        body.extend(one);
    }
    let batch = [announce("MPUB", "t", body.len() as u32), body].concat();
    let taken = world.take(1, &batch);
    assert!(taken < batch.len(), "it waits for room");
    let ArenaStatus { free, announced, .. } = world.nsqd.store();
    assert!(free < 20 && announced == 0, "{free} free, {announced} announced");
    for number in 0..10 {
        assert_eq!(world.receive(0).len(), 1);
        world.send(0, format!("FIN {}\n", id(number)));
    }
    world.send(1, &batch[taken..]).expect(1, &[response("OK")]);
    let ArenaStatus { promised, announced, .. } = world.nsqd.store();
    assert_eq!((promised, announced), (0, 0));
}

#[test]
fn the_last_blocks_are_the_applications() {
    // 12 of 100.
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, 66 * 100);
    world.send(0, "SUB t c\n").expect(0, &[response("OK")]);
    for _ in 0..88 {
        world.send(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    let wait = publish("t", "xx");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    for _ in 0..12 {
        world.put("t", "x");
    }
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"x"), Err(PublishError::Full));
    // What is free is first the application's again.
    world.send(0, "RDY 1\n");
    for number in 0..12 {
        assert_eq!(world.receive(0).len(), 1);
        world.send(0, format!("FIN {}\n", id(number)));
        assert_eq!(world.take(1, b"xx"), 0);
    }
    assert_eq!(world.receive(0).len(), 1);
    world.send(0, format!("FIN {}\n", id(12)));
    world.send(1, "xx").expect(1, &[response("OK")]);
}

#[test]
fn of_the_applications_messages_clients_have_none_dropped_that_its_reserve_has_room_for() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, 66 * 100);
    for _ in 0..20 {
        world.put("t", "own");
    }
    for _ in 0..500 {
        world.send(1, publish("u", "x")).expect(1, &[response("OK")]);
    }
    let depth =
        |world: &World, name| world.nsqd.topics().find(|it| *it.name == topic(name)).unwrap().depth;
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (12, 88));
    assert_eq!(world.nsqd.counters().dropped, 8 + 412);
    // The application's own are not spared for the application.
    for _ in 0..100 {
        world.put("t", "own");
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (100, 0));
    // What it has beyond the reserve makes room for others.
    for _ in 0..88 {
        world.send(1, publish("u", "x")).expect(1, &[response("OK")]);
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (12, 88));
}

#[test]
fn a_client_that_is_full_of_what_others_hold_leaves_nothing_behind() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let now = world.now;
    for _ in 0..3 {
        for verb in ["PUB", "DPUB"] {
            let topic = if verb == "PUB" { "t" } else { "t 100" };
            let longest = world.nsqd.limits().max_msg_size;
            world.send(0, [announce(verb, topic, longest), vec![b'x']].concat());
            world.client(0).closed(now, Closed::Peer);
            world.expect_empty();
            world.open(0);
        }
    }
}

#[test]
fn what_nobody_consumes_does_not_refuse_others() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let wait = publish("junk", "xx");
    let full = error("E_PUB_FAILED PUB failed no room for what nobody consumes");
    // One topic has 7/8 of 50 blocks, and all of them 50 together.
    for _ in 0..44 {
        world.send(0, publish("junk", "x")).expect(0, &[response("OK")]);
    }
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    for _ in 0..6 {
        world.send(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    let other = publish("t", "xx");
    assert_eq!(world.take(1, &other), other.len() - 2);
    world.at(4999).expect_link(0, Link::Up);
    world.at(5000).expect_link(0, Link::Close).expect(0, &[full]);
    // The application is not bound by that, and who consumes makes room.
    for _ in 0..20 {
        world.put("t", "own");
    }
    world.open(0);
    world.open(1);
    world.subscribe(2, 1);
    world.send(2, format!("FIN {}\n", id(44)));
    for _ in 0..10 {
        world.send(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    // For a minute.
    world.at(5000 + 59_900).send(1, publish("t", "x")).expect_link(1, Link::Up);
    world.receive(1);
    world.at(5000 + 60_100);
    assert_eq!(world.take(1, &other), other.len() - 2);
}

#[test]
fn what_nobody_consumes_goes_after_an_age_if_others_need_the_room() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let begun = world.now.as_micros() >> 16;
    for _ in 0..44 {
        world.send(0, publish("junk", "x")).expect(0, &[response("OK")]);
    }
    let wait = publish("junk", "xx");
    let age = 300_000_000 >> 16;
    // The unit's last moment before, and its first.
    world.now = Instant::from_micros(((begun + age) << 16) - 1);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    assert_eq!(world.nsqd.counters().expired, 0);
    world.now = Instant::from_micros((begun + age) << 16);
    world.send(0, "xx").expect(0, &[response("OK")]);
    assert_eq!(world.nsqd.counters().expired, 1);
    let junk = |world: &World| {
        let it = world.nsqd.topics().find(|it| *it.name == topic("junk")).unwrap();
        (it.depth, it.dropped)
    };
    assert_eq!(junk(&world), (44, 1));
    let is_expired = |event: &Event| matches!(event, Event::Expired { .. });
    let events: Vec<_> = core::iter::from_fn(|| world.nsqd.poll_event()).collect();
    let said: Vec<_> = events.into_iter().filter(is_expired).collect();
    assert_eq!(said, [Event::Expired { count: 1 }]);
    // Also for the application; as many as it needs.
    for _ in 0..56 {
        world.put("t", "x");
    }
    assert_eq!((world.nsqd.store().free, junk(&world)), (0, (44, 1)));
    world.put("t", &"x".repeat(100));
    assert_eq!(junk(&world), (41, 4));
    // What the application has made is kept, whoever publishes there; so is what has a channel.
    let now = world.now;
    world.nsqd.create(now, &topic("junk"), None).unwrap();
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"x"), Err(PublishError::Full));
    let mut world = World::with(&CONFIG, 66 * 100);
    world.send(2, "SUB junk c\nCLS\n");
    for _ in 0..44 {
        world.send(0, publish("junk", "x"));
        world.receive(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    // Zero keeps all.
    const KEEP: Config<'_> = Config { unconsumed_age: Span::ZERO, ..CONFIG };
    let mut world = World::with(&KEEP, 66 * 100);
    for _ in 0..44 {
        world.send(0, publish("junk", "x"));
        world.receive(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
}

#[test]
fn who_comes_second_to_the_last_room_for_what_nobody_consumes_is_refused() {
    let mut world = World::with(&CONFIG, 66 * 100);
    for _ in 0..43 {
        world.send(0, publish("t", "x")).expect(0, &[response("OK")]);
    }
    world.send(0, announce("PUB", "t", 2)).send(0, "x");
    world.send(1, announce("PUB", "t", 2)).send(1, "x");
    world.send(1, "y").expect(1, &[response("OK")]);
    world.send(0, "y");
    world.expect(0, &[error("E_PUB_FAILED PUB failed no room for what nobody consumes")]);
    let ArenaStatus { free, announced, .. } = world.nsqd.store();
    assert_eq!((free, announced), (56, 0));
}

#[test]
fn two_batches_do_not_starve_each_other() {
    let mut world = World::with(&WHOLE, 66 * 8);
    let batch = mpub("t", &["a", "b", "c", "d", "e"]);
    let half = batch.len() / 2;
    world.send(0, &batch[..half]);
    let taken = world.take(1, &batch);
    assert!(taken < batch.len());
    world.send(0, &batch[half..]).expect(0, &[response("OK")]);
    let now = world.now;
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.send(1, &batch[taken..]).expect(1, &[response("OK")]);
}

#[test]
fn the_oldest_makes_room_if_so_configured() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, 66 * 4);
    world.subscribe(0, 1).put("t", "a").put("t", "b").put("u", "c").put("t", "d");
    assert_eq!(world.bodies(0), ["a"]);
    // "a" is in flight: the next oldest goes.
    world.put("t", "e").put("t", "f");
    assert_eq!(world.nsqd.counters().dropped, 2);
    assert_eq!(world.nsqd.poll_event(), Some(Event::Dropped { count: 2 }));
    let dropped = |name| world.nsqd.topics().find(|t| *t.name == topic(name)).unwrap().dropped;
    assert_eq!((dropped("t"), dropped("u")), (1, 1));
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["d", "e", "f"]);
    // All are in flight.
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"g"), Err(PublishError::Full));
    // Deferred ones go as well.
    world.send(0, format!("REQ {} 5000\n", id(3))).put("t", "g");
    assert_eq!(world.channel_status("c").deferred, 0);
    assert_eq!(world.channel_status("c").dropped, 2);
}

/// As a board has it.
const DROP_ANSWERED: Config<'_> = Config { full: Full::DropAnswered, ..CONFIG };

#[test]
fn what_one_channel_is_done_with_makes_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1);
    world.send(1, "SUB t d\n").expect(1, &[response("OK")]);
    // Nobody consumes `d`.
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.send(0, format!("FIN {}\n", id(number)));
    }
    assert_eq!(world.nsqd.counters().dropped, 50);
    let dropped = |world: &World, name| world.channel_status(name).dropped;
    assert_eq!((dropped(&world, "c"), dropped(&world, "d")), (0, 50));
    // Clients wait all the same, and what nobody has answered stays.
    let wait = publish("t", "x");
    assert!(world.take(2, &wait) < wait.len());
    world.send(0, "RDY 0\n");
    for _ in 0..100 {
        world.put("t", "y");
    }
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
    assert_eq!(world.nsqd.counters().dropped, 150);
    assert_eq!(world.channel_status("c").depth, 100);
}

#[test]
fn who_does_not_answer_leaves_room_of_the_reserve_to_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 0);
    // No more than the reserve is free: each of three clients may have a sixth of it in flight.
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x", "x"]);
    // Who has nothing gets one.
    world.send(1, "SUB t c\nRDY 4\n").expect(1, &[response("OK"), message(2, 1, "x")]);
    assert_eq!(world.bodies(0), [""; 0]);
    assert_eq!(world.channel_status("c").in_flight, 3);
    // Once more is free they get all that they ask for.
    world.send(1, format!("FIN {}\n", id(2)));
    for client in [0, 1, 0, 1] {
        world.receive(client);
    }
    assert_eq!(world.channel_status("c").in_flight, 4);

    // An nsqd that refuses gives all at once.
    let mut world = World::with(&CONFIG, 66 * 100);
    world.subscribe(0, 0);
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x"; 4]);
}

#[test]
fn a_node_that_refuses_drops_nothing_that_a_channel_still_needs() {
    let mut world = World::with(&CONFIG, 66 * 100);
    world.subscribe(0, 1);
    world.send(1, "SUB t d\n").expect(1, &[response("OK")]);
    for number in 0..100 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.send(0, format!("FIN {}\n", id(number)));
    }
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
    assert_eq!(world.channel_status("d").depth, 100);
    assert_eq!(world.nsqd.counters().dropped, 0);
}

#[test]
fn what_is_sent_back_for_later_makes_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1);
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.send(0, format!("REQ {} 5000\n", id(number)));
    }
    assert_eq!(world.nsqd.counters().dropped, 50);
    assert_eq!(world.channel_status("c").deferred, 100);
    // Sent back to be delivered at once, or taken back, it stays.
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1).put("t", "x");
    assert_eq!(world.bodies(0), ["x"]);
    world.send(0, format!("RDY 0\nREQ {} 0\n", id(0)));
    for _ in 1..100 {
        world.put("t", "y");
    }
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
}
