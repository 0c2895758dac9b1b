//! Which client gets a message, and when a message is delivered again.

use super::*;

#[test]
fn a_message_is_delivered_again_after_its_timeout() {
    let mut world = World::new();
    world.send(0, identify("{\"msg_timeout\":1000}")).expect(0, &[response("OK")]);
    world.subscribe(0, 1).put("t", "a").expect(0, &[message(0, 1, "a")]);
    world.at(999).expect(0, &[]);
    world.at(1000).expect(0, &[message(0, 2, "a")]);
    world.send(0, format!("TOUCH {}\n", id(0))).at(1999).expect(0, &[]);
    world.send(0, format!("TOUCH {}\n", id(0))).at(2500).expect(0, &[]);
    world.send(0, format!("FIN {}\n", id(0))).at(9000).expect(0, &[]);
    let status = world.channel_status("c");
    assert_eq!((status.timed_out, status.depth, status.in_flight), (1, 0, 0));
    world.expect_empty();
}

/// pynsq reads the number as signed 16 bits.
#[test]
fn attempts_saturate_at_32767() {
    let mut world = World::new();
    world.put("t", "a").send(0, "SUB t c\nRDY 1\n");
    world.expect(0, &[response("OK"), message(0, 1, "a")]);
    for attempts in 2..=32_769u16 {
        world.send(0, format!("REQ {} 0\n", id(0)));
        world.expect(0, &[message(0, attempts.min(32_767), "a")]);
    }
}

#[test]
fn touch_keeps_a_message_no_longer_than_max_msg_timeout() {
    const SHORT: Config<'_> = Config {
        limits: Limits { max_msg_timeout_ms: 2500, ..Limits::NSQD },
        msg_timeout: Span::from_millis(1000),
        ..CONFIG
    };
    let mut world = World::with(&SHORT, 4096);
    world.subscribe(0, 1).put("t", "a").expect(0, &[message(0, 1, "a")]);
    for ms in [900, 1800, 2400] {
        world.at(ms).send(0, format!("TOUCH {}\n", id(0))).expect(0, &[]);
    }
    world.at(2499).expect(0, &[]);
    world.at(2500).expect(0, &[message(0, 2, "a")]);
}

#[test]
fn deferred_messages_take_no_entries() {
    let mut world = World::new();
    world.subscribe(0, 4);
    // Four messages may be in flight, and many more deferred.
    for n in 0..40 {
        world.put("t", &format!("m{n}"));
        assert_eq!(world.bodies(0), [format!("m{n}")]);
        // The delay is limited to an hour.
        world.send(0, format!("REQ {} 9999999\n", id(n)));
    }
    let status = world.channel_status("c");
    assert_eq!((status.deferred, status.in_flight, status.requeued), (40, 0, 40));
    world.at(3_599_999).expect_link(0, Link::Close);
    let now = world.now;
    world.client(1).closed(now, Closed::Local);
    world.open(1);
    world.subscribe(1, 4).expect(1, &[]);
    world.at(3_600_000);
    assert_eq!(world.bodies(1), ["m0", "m1", "m2", "m3"]);
}

#[test]
fn a_dpub_message_is_deferred_in_each_channel() {
    let mut world = World::new();
    let now = world.now;
    world.subscribe(0, 1);
    world.nsqd.create(now, &topic("t"), Some(&channel("d"))).unwrap();
    world.send(1, "DPUB t 2000\n\0\0\0\x05later").expect(1, &[response("OK")]);
    world.put("t", "now").expect(0, &[message(1, 1, "now")]);
    world.send(0, format!("FIN {}\n", id(1)));
    assert_eq!(world.channel_status("d").deferred, 1);
    assert_eq!(world.client(0).deadline(), Instant::from_millis(3000));
    world.at(1999).expect(0, &[]);
    world.at(2000).expect(0, &[message(0, 1, "later")]);
    assert_eq!(
        world.channel_status("d").depth,
        1,
        "the message waits in the other channel as well"
    );
    world.nsqd.tick(Instant::from_millis(3000));
    assert_eq!((world.channel_status("d").depth, world.channel_status("d").deferred), (2, 0));
    world.refused(1, "DPUB t 3600001\n", "E_INVALID DPUB timeout 3600001 out of range 0-3600000");
}

/// As long as lanes can hold.
const LONG: Config<'_> = Config {
    limits: Limits { max_req_timeout_ms: 4_294_901_760, ..Limits::NSQD },
    channels_per_topic: 3,
    ..CONFIG
};

impl World {
    fn create(&mut self, channels: &[&str]) {
        self.nsqd.create(self.now, &topic("t"), None).unwrap();
        for name in channels {
            self.nsqd.create(self.now, &topic("t"), Some(&channel(name))).unwrap();
        }
    }
}

fn dpub(ms: u32, body: &str) -> String {
    format!("DPUB t {ms}\n\0\0\0\x01{body}")
}

/// The low 32 bits of its due time may say anything by then.
#[test]
fn what_was_due_long_ago_is_delivered_however_long_nobody_came() {
    const DAY: u64 = 86_400_000;
    for days in [1, 20, 24, 25, 26, 40, 49, 50, 51, 60, 74, 75, 99, 100, 1000] {
        let mut world = World::with(&LONG, 4096);
        world.create(&["c", "d"]);
        world.send(0, dpub(1000, "a")).send(0, dpub(LONG.limits.max_req_timeout_ms, "z"));
        // Nothing happens but this.
        world.now = Instant::from_millis(days * DAY);
        world.open(0);
        world.send(0, dpub(5000, "b"));
        let is_over = days >= 50;
        for (index, name) in [(1, "c"), (2, "d")] {
            world.open(index);
            world.send(index, format!("SUB t {name}\nRDY 4\n"));
            let first = if is_over { vec!["a", "z"] } else { vec!["a"] };
            assert_eq!(world.bodies(index), first, "after {days} days");
            assert_eq!(world.channel_status(name).deferred, 2 - u32::from(is_over));
        }
        world.at(days * DAY - 1000 + 4999);
        assert_eq!((world.bodies(1), world.bodies(2)), (vec![], vec![]));
        world.at(days * DAY - 1000 + 5000);
        assert_eq!((world.bodies(1), world.bodies(2)), (vec!["b".into()], vec!["b".into()]));
    }
}

#[test]
fn the_longest_deferral_ends_when_it_should() {
    let longest = LONG.limits.max_req_timeout_ms;
    // Where the base is as far away as it can be, and a little before and after.
    let ends = [0, 1 << 32, 5 << 32, 7 << 45].map(|ms: u64| (ms + 0xffff) * 1000);
    for end in ends {
        for micros in [end - 1000, end - 999, end - 1, end, end + 1, end + 999, end + 1000] {
            let mut world = World::with(&LONG, 4096);
            world.now = Instant::from_micros(micros);
            world.create(&["c"]);
            for (delay, body) in [(longest, "c"), (1, "a"), (longest - 1, "b")] {
                world.open(0);
                world.send(0, dpub(delay, body)).expect(0, &[response("OK")]);
            }
            let due = micros.div_ceil(1000) + u64::from(longest);
            let mut waiting_at = |ms: u64, micros: i64| {
                let at = Instant::from_micros((ms * 1000).saturating_add_signed(micros));
                world.nsqd.tick(at);
                world.channel_status("c").depth
            };
            assert_eq!(waiting_at(micros.div_ceil(1000), 0), 0);
            assert_eq!(waiting_at(micros.div_ceil(1000) + 1, 0), 1);
            assert_eq!(waiting_at(due - 1, -1), 1);
            assert_eq!(waiting_at(due - 1, 0), 2);
            assert_eq!(waiting_at(due, -1), 2);
            assert_eq!(waiting_at(due, 0), 3);
        }
    }
    let mut world = World::with(&LONG, 4096);
    let refusal = "E_INVALID DPUB timeout 4294901761 out of range 0-4294901760";
    world.refused(0, "DPUB t 4294901761\n", refusal);
}

/// A clock that goes back makes messages late, no more.
#[test]
fn what_is_deferred_after_the_clock_went_back_is_late() {
    let mut world = World::with(&LONG, 4096);
    world.now = Instant::from_millis(1 << 33);
    world.create(&["c"]);
    world.open(0);
    world.send(0, dpub(1, "a"));
    world.now = Instant::from_millis(5);
    world.open(1);
    world.send(1, dpub(1, "b"));
    world.nsqd.tick(Instant::from_millis((1 << 33) - 1));
    assert_eq!(world.channel_status("c").deferred, 2);
    world.nsqd.tick(Instant::from_millis((1 << 33) + 1));
    assert_eq!(world.channel_status("c").deferred, 0);
}

#[test]
fn messages_of_a_client_that_disconnects_go_to_another_at_once() {
    let mut world = World::new();
    world.subscribe(0, 3).put("t", "a").put("t", "b");
    assert_eq!(world.bodies(0), ["a", "b"]);
    let now = world.now;
    let version = world.nsqd.version();
    world.client(0).closed(now, Closed::Peer);
    assert_ne!(world.nsqd.version(), version);
    world.subscribe(1, 3);
    world.expect(1, &[]);
    let mut world = World::new();
    world.subscribe(0, 3).subscribe(1, 3).put("t", "a").put("t", "b");
    assert_eq!(world.bodies(0).len() + world.bodies(1).len() + world.bodies(0).len(), 2);
    world.client(0).closed(now, Closed::Peer);
    let again = world.receive(1);
    assert!(matches!(again[..], [Frame::Message { attempts: 2, .. }]), "{again:?}");
}

#[test]
fn waiting_clients_get_messages_in_turn() {
    let mut world = World::new();
    for index in 0..3 {
        world.subscribe(index, 1);
    }
    let mut got = [0; 3];
    for n in 0..30 {
        world.put("t", "x");
        let mut served = None;
        // Clients are always polled in the same order.
        for index in [0, 1, 2, 0, 1, 2] {
            if !world.receive(index).is_empty() {
                assert_eq!(served.replace(index), None, "only one client gets the message");
            }
        }
        let index = served.unwrap();
        got[index] += 1;
        world.send(index, format!("FIN {}\n", id(n)));
    }
    assert_eq!(got, [10; 3]);
}

#[test]
fn one_client_does_not_take_all_entries() {
    let mut world = World::new();
    world.subscribe(0, 4).subscribe(1, 4);
    for _ in 0..6 {
        world.put("t", "x");
    }
    // The last of four entries is for the other client, however late it reads.
    assert_eq!(world.bodies(0).len() + world.bodies(0).len() + world.bodies(0).len(), 3);
    assert_eq!(world.bodies(1).len(), 1);
    // No entry is kept for a client with RDY 0.
    world.subscribe(2, 1);
    let version = world.nsqd.version();
    world.send(2, "RDY 0\n");
    assert_ne!(world.nsqd.version(), version, "waiting clients are woken");
    // The freed entry is for either client, since both have a message.
    let version = world.nsqd.version();
    world.send(0, format!("FIN {}\n", id(0)));
    assert_ne!(world.nsqd.version(), version, "waiting clients are woken");
    assert_eq!(world.bodies(0).len() + world.bodies(1).len() + world.bodies(0).len(), 1);
}

#[test]
fn the_first_channel_gets_held_messages_and_later_channels_only_new_ones() {
    let mut world = World::new();
    world.put("t", "a").put("t", "b");
    assert_eq!(world.nsqd.topics().next().unwrap().depth, 2);
    world.subscribe(0, 4);
    world.send(1, "SUB t d\nRDY 4\n").put("t", "c");
    assert_eq!(world.bodies(1), ["c"]);
    assert_eq!(world.bodies(0), ["c"]);
    let messages = |name| world.channel_status(name).messages;
    assert_eq!((messages("c"), messages("d")), (3, 1));
    let fins = format!("FIN {}\nFIN {}\nFIN {}\n", id(0), id(1), id(2));
    world.send(0, fins).expect(0, &[]);
    let ArenaStatus { blocks, free, .. } = world.nsqd.store();
    assert_eq!(blocks - free, 1, "the other channel still has one");
    world.send(1, format!("FIN {}\n", id(2))).expect(1, &[]);
    world.expect_empty();
}

#[test]
fn a_paused_topic_gives_held_messages_to_all_its_channels_later() {
    let mut world = World::new();
    let now = world.now;
    let (t, c, d) = (topic("t"), channel("c"), channel("d"));
    world.nsqd.create(now, &t, None).unwrap();
    world.nsqd.pause(now, &t, None).unwrap();
    world.put("t", "a");
    world.nsqd.create(now, &t, Some(&c)).unwrap();
    world.nsqd.create(now, &t, Some(&d)).unwrap();
    let full = world.nsqd.create(now, &t, Some(&channel("e")));
    assert_eq!(full, Err(NsqdError::TooManyChannels), "a topic has at most two");
    world.put("t", "b").subscribe(0, 4);
    world.send(1, "SUB t d\nRDY 4\n").expect(1, &[response("OK")]);
    assert_eq!(world.nsqd.topics().next().unwrap().depth, 2);
    world.nsqd.unpause(now, &t, None).unwrap();
    assert_eq!(
        (world.bodies(0), world.bodies(1)),
        (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
    );
    // A paused channel delivers no message.
    world.nsqd.pause(now, &t, Some(&c)).unwrap();
    world.put("t", "c");
    assert_eq!((world.bodies(0).len(), world.bodies(1).len()), (0, 1));
    world.nsqd.unpause(now, &t, Some(&c)).unwrap();
    assert_eq!(world.bodies(0), ["c"]);
}

#[test]
fn refusals_name_the_full_table() {
    let mut world = World::new();
    world.put("t", "x").put("u", "x");
    let now = world.now;
    let third = world.nsqd.publish(now, &topic("v"), b"x");
    assert_eq!(third, Err(PublishError::TooManyTopics));
    assert_eq!(world.nsqd.create(now, &topic("v"), None), Err(NsqdError::TooManyTopics));
    world.refused(0, publish("v", "x"), "E_PUB_FAILED PUB failed no room for another topic");
    world.refused(0, "SUB v c\n", "E_SUB_FAILED SUB failed no room for another topic");
    for name in ["a", "b"] {
        world.nsqd.create(now, &topic("t"), Some(&channel(name))).unwrap();
    }
    let text = "E_SUB_FAILED SUB failed no room for another channel of this topic";
    world.refused(0, "SUB t c\n", text);
    world.nsqd.delete(now, &topic("u"), None).unwrap();
    world.put("v", "x");
}

#[test]
fn ephemeral_topics_and_channels_are_deleted_with_their_last_user() {
    let mut world = World::new();
    world.send(0, "SUB x#ephemeral c#ephemeral\nRDY 1\n").send(1, "SUB x#ephemeral c#ephemeral\n");
    world.put("x#ephemeral", "m");
    let topology = world.nsqd.topology();
    let now = world.now;
    world.client(0).closed(now, Closed::Peer);
    assert_eq!((world.nsqd.topology(), world.nsqd.topics().count()), (topology, 1));
    world.client(1).closed(now, Closed::Peer);
    assert_ne!(world.nsqd.topology(), topology);
    assert_eq!(world.nsqd.topics().count(), 0);
    world.expect_empty();
}

#[test]
fn deleting_closes_subscribers_without_an_error_and_publishing_creates_the_topic_again() {
    let mut world = World::new();
    world.subscribe(0, 4).put("t", "a").expect(0, &[message(0, 1, "a")]);
    world.send(1, "SUB t d\n").expect(1, &[response("OK")]);
    let now = world.now;
    world.nsqd.delete(now, &topic("t"), Some(&channel("c"))).unwrap();
    world.expect_link(0, Link::Close).expect(0, &[]).expect_link(1, Link::Up);
    assert_eq!(world.client(0).link(), Link::Close);
    world.nsqd.delete(now, &topic("t"), None).unwrap();
    assert!(world.client(1).deadline() <= now, "its tick is due");
    world.expect_link(1, Link::Close).expect(1, &[]);
    world.expect_empty();
    assert_eq!(world.nsqd.delete(now, &topic("t"), None), Err(NsqdError::NoTopic));
    world.put("t", "b");
    let status = world.nsqd.topics().next().unwrap();
    assert_eq!((status.depth, status.messages, status.channels), (1, 1, 0));
}

#[test]
fn a_half_written_message_is_completed_whatever_happens_to_it() {
    let body = "0123456789".repeat(30);
    for case in 0..5 {
        let mut world = World::new();
        world.subscribe(0, 1).put("t", &body);
        let now = world.now;
        let mut bytes: Vec<u8> = Vec::new();
        let mut client = world.client(0);
        let transmit = client.transmit(now);
        bytes.extend(transmit.head);
        bytes.extend(&transmit.body[..100]);
        client.sent(now, 134);
        match case {
            0 => drop(world.send(0, format!("FIN {}\n", id(0)))),
            1 => world.nsqd.empty(now, &topic("t"), Some(&channel("c"))).unwrap(),
            2 => {
                // Its timeout is over, and another client waits for it.
                world.send(1, "SUB t c\nRDY 1\n").at(29_000).send(0, "NOP\n").send(1, "NOP\n");
                world.now = Instant::from_millis(62_000);
                let now = world.now;
                world.client(0).tick(now);
                continue;
            }
            3 => {
                world.nsqd.delete(now, &topic("t"), None).unwrap();
                world.expect(0, &[]);
                world.expect_empty();
                continue;
            }
            _ => world.refused_while_writing(),
        }
        // New messages do not take its blocks.
        for _ in 0..200 {
            let now = world.now;
            let _ = world.nsqd.publish(now, &topic("u"), &[b'!'; 50]);
        }
        loop {
            let mut client = world.client(0);
            let transmit = client.transmit(now);
            let n = transmit.len().min(7);
            if n == 0 || bytes.len() == 34 + body.len() {
                break;
            }
            bytes.extend(transmit.head.iter().chain(transmit.body).take(n));
            client.sent(now, n);
        }
        assert_eq!(&bytes[34..], body.as_bytes(), "case {case}");
    }
}

impl World {
    fn refused_while_writing(&mut self) {
        self.send(0, "nonsense\n").expect_link(0, Link::Close);
    }
}
