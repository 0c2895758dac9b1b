//! A full store: which clients wait or are refused, and which messages are dropped.

use super::*;

#[test]
fn a_client_that_does_not_read_does_not_block_others() {
    let mut world = World::with(&WHOLE, 4096);
    world.subscribe(2, 4);
    let many = publish("t", "x").repeat(100);
    let taken = world.take(0, &many);
    assert!(taken < many.len(), "there is no room for more responses");
    let accepted = world.nsqd.counters().accepted;
    assert!((14..=20).contains(&accepted), "{accepted}");
    world.send(1, publish("t", "y")).expect(1, &[response("OK")]);
    assert_eq!(world.receive(0).len() as u64, accepted);
    assert_eq!(world.take(0, &many[taken..]), taken, "the same number of commands again");
}

#[test]
fn a_producer_waits_for_room_and_is_refused_after_publish_wait() {
    let mut world = World::with(&WHOLE, blocks(4));
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
    assert_ne!(world.nsqd.version(), version, "the waiting client is woken");
    world.send(1, "bb").expect(1, &[response("OK")]);
    // Without room, the wait ends after `publish_wait`.
    world.send(1, publish("t", &"c".repeat(FIRST + 60))).expect(1, &[response("OK")]);
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
fn a_wait_for_room_does_not_count_as_silence() {
    let mut world = World::with(&CONFIG, blocks(1));
    world.send(1, identify("{\"heartbeat_interval\":1000}")).expect(1, &[response("OK")]);
    world.put("t", "a");
    assert_eq!(world.take(1, &publish("t", "b")), publish("t", "b").len() - 1);
    for second in 1..5 {
        world.at(second * 1000).expect(1, &[response("_heartbeat_")]).expect_link(1, Link::Up);
    }
    let now = world.now;
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.send(1, "b").expect(1, &[response("OK")]);
    // After the wait, silence counts again.
    world.at(5900).expect_link(1, Link::Up).at(6000).expect_link(1, Link::Close);
}

#[test]
fn room_that_became_free_in_time_is_used_at_the_deadline() {
    let mut world = World::with(&CONFIG, blocks(2));
    world.put("t", "a").put("t", "b");
    let wait = publish("t", "cc");
    assert_eq!(world.take(1, &wait[..wait.len() - 1]), wait.len() - 2);
    let now = world.now;
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.at(5000).expect_link(1, Link::Up);
    world.send(1, "cc").expect(1, &[response("OK")]);
}

#[test]
fn a_batch_is_published_as_a_whole_or_not_at_all() {
    let mut world = World::with(&WHOLE, blocks(8));
    let batch = mpub("t", &["a", "b", "c", "d", "e"]);
    // Room for the whole batch is reserved before its messages arrive.
    let (head, rest) = batch.split_at(b"MPUB t\n".len() + 4 + 4 + 4);
    world.send(0, head);
    assert_eq!(world.nsqd.store().promised, 5);
    world.put("t", "x").put("t", "y").put("t", "z");
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"no"), Err(PublishError::Full));
    let (some, last) = rest.split_at(rest.len() - 1);
    world.send(0, some);
    assert_eq!(world.nsqd.topics().next().unwrap().messages, 3, "the batch is incomplete");
    world.send(0, last).expect(0, &[response("OK")]);
    assert_eq!(world.nsqd.topics().next().unwrap().messages, 8);
    // A batch that breaks off leaves nothing.
    world.nsqd.empty(now, &topic("t"), None).unwrap();
    world.send(0, &batch[..batch.len() - 1]);
    let ArenaStatus { free, promised, .. } = world.nsqd.store();
    assert_eq!((free, promised), (4, 1), "a message that has not begun is only reserved");
    world.client(0).closed(now, Closed::Peer);
    world.expect_empty();
}

#[test]
fn a_batch_that_never_fits_gets_a_permanent_error() {
    // Clients can announce 30 blocks.
    let batch = |count: usize, len: usize| mpub("t", &vec![&*"x".repeat(len); count]);
    let with_last = |last: &str| {
        let long = "x".repeat(FIRST + 1);
        let mut bodies = vec![&*long; 15];
        bodies.push(last);
        mpub("t", &bodies)
    };
    // Batches that just fit: of messages with one block, and with two.
    for fits in [batch(30, 1), batch(15, FIRST + 1)] {
        let mut world = World::with(&CONFIG, blocks(100));
        world.send(0, fits).expect(0, &[response("OK")]);
        assert_eq!(world.nsqd.store().free, 70);
    }
    // One is too long by its announced numbers, one by its messages; with room now and without.
    for (never, count) in [(batch(31, 1), 31), (with_last("xxxxx"), 16)] {
        for others in [0, 40] {
            let mut world = World::with(&CONFIG, blocks(100));
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

/// Returns a command that announces a body, without the body.
fn announce(verb: &str, topic: &str, len: u32) -> Vec<u8> {
    [format!("{verb} {topic}\n").as_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn a_client_that_sends_no_body_does_not_keep_the_application_from_publishing() {
    let mut world = World::with(&CONFIG, blocks(100));
    let now = world.now;
    world.nsqd.publish(now, &topic("readings"), b"21.5").unwrap();
    world.send(0, identify("{\"heartbeat_interval\":60000}")).expect(0, &[response("OK")]);
    // The longest message is announced, and one byte of it arrives.
    let longest = world.nsqd.limits().max_msg_size;
    assert_eq!(longest as usize, 29 * 64 + FIRST);
    world.send(0, announce("PUB", "junk", longest)).send(0, "x");
    let ArenaStatus { free, announced, .. } = world.nsqd.store();
    assert_eq!((free, announced), (69, 30));
    // Another announced message waits.
    assert_eq!(world.take(1, &[&announce("PUB", "junk", FIRST as u32)[..], b"x"].concat()), 13);
    // The application does not, nor do messages that have completely arrived.
    world.nsqd.publish(now, &topic("readings"), &[b'x'; 200]).unwrap();
    world.send(2, publish("readings", &"x".repeat(200))).expect(2, &[response("OK")]);
    world.send(2, mpub("readings", &["a", "b", "c"])).expect(2, &[response("OK")]);
    assert_eq!(world.nsqd.store().announced, 30);
    // The announced room is free after `body_timeout`.
    world.at(4999).expect_link(0, Link::Up);
    world.at(5000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE PUB failed to read message body")]);
    assert_eq!((world.nsqd.counters().body_timeouts, world.nsqd.store().announced), (1, 1));
}

#[test]
fn a_slow_body_is_accepted_and_a_trickled_one_is_not() {
    let mut world = World::with(&CONFIG, blocks(400));
    let body = "x".repeat(3000);
    let whole = publish("t", &body);
    let (mut rest, mut now) = (&whole[..], 0);
    // Each KiB arrives just before its deadline.
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(1024));
        world.at(now).send(0, piece);
        (rest, now) = (after, now + 4990);
    }
    world.expect(0, &[response("OK")]);
    for client in [0, 1] {
        world.open(client);
    }
    // One body with a byte a second; another without its last byte.
    let begun = world.now.as_micros() / 1000 - 1000;
    world.send(0, &whole[..20]).send(1, &whole[..whole.len() - 1]);
    for second in 1..5 {
        world.at(begun + second * 1000).send(0, "x").expect_link(0, Link::Up);
    }
    world.at(begun + 4999).expect_link(0, Link::Up).expect_link(1, Link::Up);
    world.at(begun + 5000).expect_link(0, Link::Close).expect_link(1, Link::Close);
    assert_eq!(world.nsqd.counters().body_timeouts, 2);
    let used = world.nsqd.store().blocks - world.nsqd.store().free;
    assert_eq!(
        used as usize,
        message_cost(3000, 2) / message_cost(1, 2),
        "the room of both bodies is free"
    );
}

#[test]
fn a_trickled_batch_has_the_same_deadline() {
    let mut world = World::with(&CONFIG, blocks(100));
    // A complete message each second, which might look like the end of the batch.
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
fn a_batch_with_a_false_length_holds_no_more_than_the_announced_share() {
    let mut world = World::with(&CONFIG, blocks(100));
    // Another client holds all of the share.
    let hold = world.nsqd.limits().max_msg_size;
    world.send(0, [announce("PUB", "t", hold), vec![b'x']].concat());
    let count = 20u32.to_be_bytes();
    let body = [&count[..], &[&1u32.to_be_bytes()[..], b"x"].concat().repeat(20)].concat();
    let truth = [&announce("MPUB", "t", body.len() as u32)[..], &body].concat();
    // By its announced length the batch has arrived, but its first message is longer.
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 4 + 3] = 200;
    world.send(1, lie).expect(1, &[error("E_MPUB_FAILED MPUB failed no room")]);
    // The announced length is longer than what has arrived.
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 3] = 21;
    lie[b"MPUB t\n".len() + 3] += 5;
    lie.extend([0, 0, 0]);
    assert_eq!(world.take(1, &lie), 15, "the batch is incomplete and waits");
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    lie[b"MPUB t\n".len() + 4 + 3] = 20;
    lie[b"MPUB t\n".len() + 3] -= 5;
    world.send(1, &lie).expect(1, &[response("OK")]);
    assert_eq!(world.nsqd.store().announced, 30);
}

#[test]
fn a_complete_batch_does_not_count_as_announced() {
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, blocks(100));
    world.send(0, "SUB t c\nRDY 1\n").expect(0, &[response("OK")]);
    for _ in 0..63 {
        world.send(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    // 20 messages look like 20 blocks but take 30, of which 25 are free.
    let bodies: Vec<_> = (0u32..20).map(|n| vec![b'x'; FIRST - 1 + 2 * (n as usize % 2)]).collect();
    let mut body = 20u32.to_be_bytes().to_vec();
    for one in &bodies {
        body.extend((one.len() as u32).to_be_bytes());
        body.extend(one);
    }
    let batch = [announce("MPUB", "t", body.len() as u32), body].concat();
    let taken = world.take(1, &batch);
    assert!(taken < batch.len(), "the batch waits for room");
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
fn the_reserve_is_only_for_the_application() {
    // The reserve has 12 of 100 blocks.
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, blocks(100));
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
    // The first 12 free blocks are the application's again.
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
fn clients_do_not_displace_the_applications_messages_within_its_reserve() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, blocks(100));
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
    // The application's own messages are dropped for the application.
    for _ in 0..100 {
        world.put("t", "own");
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (100, 0));
    // Beyond the reserve they are dropped for clients.
    for _ in 0..88 {
        world.send(1, publish("u", "x")).expect(1, &[response("OK")]);
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (12, 88));
}

#[test]
fn a_client_that_disconnects_in_a_body_leaves_no_blocks_taken() {
    let mut world = World::with(&CONFIG, blocks(100));
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
fn an_unconsumed_topic_does_not_block_others() {
    let mut world = World::with(&CONFIG, blocks(100));
    let wait = publish("junk", "xx");
    let full = error("E_PUB_FAILED PUB failed no room for what nobody consumes");
    // One unconsumed topic can take 7/8 of 50 blocks, all together 50.
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
    // The bound is not for the application, nor for a topic with a finished message.
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
    // This lasts for a minute.
    world.at(5000 + 59_900).send(1, publish("t", "x")).expect_link(1, Link::Up);
    world.receive(1);
    world.at(5000 + 60_100);
    assert_eq!(world.take(1, &other), other.len() - 2);
}

#[test]
fn unconsumed_messages_expire_if_others_need_the_room() {
    let mut world = World::with(&CONFIG, blocks(100));
    let begun = world.now.as_micros() >> 16;
    for _ in 0..44 {
        world.send(0, publish("junk", "x")).expect(0, &[response("OK")]);
    }
    let wait = publish("junk", "xx");
    let age = 300_000_000 >> 16;
    // Just before the age, and exactly at it.
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
    let expired: Vec<_> = events.into_iter().filter(is_expired).collect();
    assert_eq!(expired, [Event::Expired { count: 1 }]);
    // Messages also expire for the application, as many as it needs.
    for _ in 0..56 {
        world.put("t", "x");
    }
    assert_eq!((world.nsqd.store().free, junk(&world)), (0, (44, 1)));
    world.put("t", &"x".repeat(100));
    assert_eq!(junk(&world), (41, 4));
    // Not in a topic that the application has created, nor in one with a channel.
    let now = world.now;
    world.nsqd.create(now, &topic("junk"), None).unwrap();
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"x"), Err(PublishError::Full));
    let mut world = World::with(&CONFIG, blocks(100));
    world.send(2, "SUB junk c\nCLS\n");
    for _ in 0..44 {
        world.send(0, publish("junk", "x"));
        world.receive(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    // With zero no message expires.
    const KEEP: Config<'_> = Config { unconsumed_age: Span::ZERO, ..CONFIG };
    let mut world = World::with(&KEEP, blocks(100));
    for _ in 0..44 {
        world.send(0, publish("junk", "x"));
        world.receive(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
}

#[test]
fn the_second_client_for_the_last_unconsumed_room_is_refused() {
    let mut world = World::with(&CONFIG, blocks(100));
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
    let mut world = World::with(&WHOLE, blocks(8));
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
fn drop_oldest_drops_the_oldest_waiting_message() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, blocks(4));
    world.subscribe(0, 1).put("t", "a").put("t", "b").put("u", "c").put("t", "d");
    assert_eq!(world.bodies(0), ["a"]);
    // "a" is in flight: the next oldest is dropped.
    world.put("t", "e").put("t", "f");
    assert_eq!(world.nsqd.counters().dropped, 2);
    assert_eq!(world.nsqd.poll_event(), Some(Event::Dropped { count: 2 }));
    let dropped = |name| world.nsqd.topics().find(|t| *t.name == topic(name)).unwrap().dropped;
    assert_eq!((dropped("t"), dropped("u")), (1, 1));
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["d", "e", "f"]);
    // All messages are in flight.
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"g"), Err(PublishError::Full));
    // Deferred messages are dropped as well.
    world.send(0, format!("REQ {} 5000\n", id(3))).put("t", "g");
    assert_eq!(world.channel_status("c").deferred, 0);
    assert_eq!(world.channel_status("c").dropped, 2);
}

/// The setting of the example for boards.
const DROP_ANSWERED: Config<'_> = Config { full: Full::DropAnswered, ..CONFIG };

#[test]
fn messages_that_one_channel_has_finished_make_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, blocks(100));
    world.subscribe(0, 1);
    world.send(1, "SUB t d\n").expect(1, &[response("OK")]);
    // No client consumes `d`.
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.send(0, format!("FIN {}\n", id(number)));
    }
    assert_eq!(world.nsqd.counters().dropped, 50);
    let dropped = |world: &World, name| world.channel_status(name).dropped;
    assert_eq!((dropped(&world, "c"), dropped(&world, "d")), (0, 50));
    // Clients wait, and messages without an answer stay.
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
fn clients_that_do_not_answer_leave_room_in_the_reserve() {
    let mut world = World::with(&DROP_ANSWERED, blocks(100));
    world.subscribe(0, 0);
    // Only the reserve is free: a channel may have a sixth of it in flight, with three clients.
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x", "x"]);
    // A client with nothing in flight gets one.
    world.send(1, "SUB t c\nRDY 4\n").expect(1, &[response("OK"), message(2, 1, "x")]);
    assert_eq!(world.bodies(0), [""; 0]);
    assert_eq!(world.channel_status("c").in_flight, 3);
    // Once more is free, clients get all messages that RDY allows.
    world.send(1, format!("FIN {}\n", id(2)));
    for client in [0, 1, 0, 1] {
        world.receive(client);
    }
    assert_eq!(world.channel_status("c").in_flight, 4);

    // With `Full::Refuse` this bound does not exist.
    let mut world = World::with(&CONFIG, blocks(100));
    world.subscribe(0, 0);
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.send(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x"; 4]);
}

#[test]
fn refuse_drops_no_message_that_a_channel_still_needs() {
    let mut world = World::with(&CONFIG, blocks(100));
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
fn messages_requeued_with_a_delay_make_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, blocks(100));
    world.subscribe(0, 1);
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.send(0, format!("REQ {} 5000\n", id(number)));
    }
    assert_eq!(world.nsqd.counters().dropped, 50);
    assert_eq!(world.channel_status("c").deferred, 100);
    // A message that is requeued without a delay, or after its timeout, stays.
    let mut world = World::with(&DROP_ANSWERED, blocks(100));
    world.subscribe(0, 1).put("t", "x");
    assert_eq!(world.bodies(0), ["x"]);
    world.send(0, format!("RDY 0\nREQ {} 0\n", id(0)));
    for _ in 1..100 {
        world.put("t", "y");
    }
    let now = world.now;
    assert_eq!(world.nsqd.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
}
