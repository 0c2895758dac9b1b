//! A consumer's connections and polls as scenarios: times in milliseconds, bytes as nsqd 1.3.0
//! sends them.

mod edges;

use super::*;
use crate::address::HOST_MAX;
use crate::name::{ChannelName, TopicName};
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, TransportError};
use crate::wire::DecodeError;
use crate::wire::http::{BadAnswer, HttpError};
use crate::wire::nsqd::ErrorCode;

const INFO: &[u8] = b"{\"max_rdy_count\":2500,\"version\":\"1.3.0\",\"max_msg_timeout\":900000,\
    \"msg_timeout\":60000,\"tls_v1\":false,\"deflate\":false,\"deflate_level\":6,\
    \"max_deflate_level\":6,\"snappy\":false,\"sample_rate\":0,\"auth_required\":false,\
    \"output_buffer_size\":16384,\"output_buffer_timeout\":250}";

fn config() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(10),
        ..Config::new(TopicName::new("t").unwrap(), ChannelName::new("ch").unwrap())
    }
}

fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, kind], data].concat()
}

fn message(id: u8, attempts: u16, body: &[u8]) -> Vec<u8> {
    let data = [&[0; 7][..], &[id], &attempts.to_be_bytes(), &name(id)[..], body].concat();
    frame(2, &data)
}

fn name(id: u8) -> [u8; 16] {
    let text = format!("{id:016x}");
    text.as_bytes().try_into().unwrap()
}

fn id(id: u8) -> String {
    String::from_utf8(name(id).to_vec()).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

/// A consumer and the time.
struct Bench<'a> {
    consumer: Consumer<'a>,
    now: u64,
}

impl<'a> Bench<'a> {
    fn now(&self) -> Instant {
        at(self.now)
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        assert!(ms >= self.now);
        self.now = ms;
        self
    }

    fn session(&mut self, index: usize) -> ConnectionSession<'_, 'a> {
        self.consumer.connection(index).unwrap()
    }

    fn tick(&mut self) -> &mut Self {
        let now = self.now();
        for index in 0..self.consumer.connections() {
            self.session(index).tick(now);
        }
        for index in 0..self.consumer.lookupds() {
            self.consumer.lookupd(index).unwrap().tick(now);
        }
        self
    }

    /// Everything that a connection writes.
    fn written(&mut self, index: usize) -> Vec<u8> {
        let now = self.now();
        let mut all = Vec::new();
        let mut session = self.session(index);
        loop {
            let bytes = session.transmit(now);
            assert!(bytes.body.is_empty());
            let n = bytes.head.len();
            if n == 0 {
                return all;
            }
            all.extend(bytes.head);
            session.sent(now, n);
        }
    }

    #[track_caller]
    fn writes(&mut self, index: usize, text: &str) -> &mut Self {
        let written = self.written(index);
        assert_eq!(String::from_utf8_lossy(&written), text);
        self
    }

    #[track_caller]
    fn receive(&mut self, index: usize, bytes: &[u8]) -> &mut Self {
        let now = self.now();
        self.session(index).receive(now, bytes).unwrap();
        self
    }

    #[track_caller]
    fn fault(&mut self, index: usize, bytes: &[u8]) -> Fault {
        let now = self.now();
        let fault = self.session(index).receive(now, bytes).unwrap_err();
        assert_eq!(self.session(index).link(), Link::Close);
        assert_eq!(self.session(index).receive(now, b"more"), Ok(()), "ignored");
        fault
    }

    #[track_caller]
    fn dial(&mut self, index: usize) -> String {
        let now = self.now();
        self.session(index).dial(now).expect("a dial is due").to_string()
    }

    fn open(&mut self, index: usize) -> &mut Self {
        let now = self.now();
        self.session(index).open(now);
        self
    }

    fn closed(&mut self, index: usize, why: Closed) -> &mut Self {
        let now = self.now();
        self.session(index).closed(now, why);
        self
    }

    /// Whom connection 0 dials now, if anybody, and is refused; then goes on to its next deadline.
    fn dial_in_vain(&mut self) -> Option<String> {
        self.tick();
        let now = self.now();
        let dialed = self.session(0).dial(now).map(Address::to_string);
        if dialed.is_some() {
            self.closed(0, Closed::Dial(DialError::Refused));
        }
        let next = self.session(0).deadline().as_micros().div_ceil(1000);
        let next = next.max(self.now + 1);
        self.at(next);
        dialed
    }

    /// Dials and goes through the handshake, up to SUB's answer.
    #[track_caller]
    fn connect(&mut self, index: usize) -> &mut Self {
        self.connect_with(index, INFO)
    }

    /// As [`connect`](Self::connect), with that answer to IDENTIFY.
    #[track_caller]
    fn connect_with(&mut self, index: usize, info: &[u8]) -> &mut Self {
        self.dial(index);
        self.open(index);
        assert!(self.written(index).starts_with(b"  V2IDENTIFY\n"));
        self.receive(index, &frame(0, info)).writes(index, "SUB t ch\n");
        self.receive(index, &frame(0, b"OK"))
    }

    #[track_caller]
    fn take(&mut self) -> Token {
        let now = self.now();
        self.consumer.take(now).expect("a message waits").token
    }

    #[track_caller]
    fn finish(&mut self, token: Token) -> &mut Self {
        let now = self.now();
        self.consumer.finish(now, token).unwrap();
        self
    }

    fn state(&self, index: usize) -> ConnectionState {
        self.consumer.status(index).unwrap().state
    }

    #[track_caller]
    fn body(&self, token: Token) -> &[u8] {
        self.consumer.message(token).unwrap().body
    }
}

fn addresses<const N: usize>() -> [Address; N] {
    core::array::from_fn(|n| format!("nsqd{n}:4150").parse().unwrap())
}

/// Runs a scenario with so many connections, nsqds and slots of 64 bytes.
fn with<const C: usize, const M: usize>(
    config: &Config<'_>,
    nsqds: usize,
    scenario: impl FnOnce(&mut Bench<'_>),
) {
    let mut storage = Storage::<C, M>::new();
    let all = addresses::<8>();
    let mut ring = vec![0; M * 64];
    let consumer = Consumer::new(config, &mut storage, &all[..nsqds], &mut ring).unwrap();
    scenario(&mut Bench { consumer, now: 0 });
}

#[test]
fn connects_subscribes_and_asks() {
    with::<1, 4>(&config(), 1, |bench| {
        assert_eq!(bench.state(0), ConnectionState::Unused);
        assert_eq!(bench.dial(0), "nsqd0:4150");
        assert_eq!(bench.session(0).link(), Link::Up);
        bench.open(0).at(5);
        let hello = String::from_utf8(bench.written(0)).unwrap();
        let (head, body) = hello.split_once('{').unwrap();
        assert_eq!(
            head.as_bytes(),
            [b"  V2IDENTIFY\n\0\0\0", &[body.len() as u8 + 1][..]].concat()
        );
        assert!(body.contains("\"heartbeat_interval\":10000"), "{body}");
        bench.receive(0, &frame(0, INFO)).writes(0, "SUB t ch\n");
        assert_eq!(bench.state(0), ConnectionState::Subscribing);
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        assert_eq!(bench.state(0), ConnectionState::Ready);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Connected));
        assert_eq!(bench.session(0).poll_event(), None);
        // A message, in pieces.
        let bytes = message(7, 1, b"hello");
        for byte in &bytes {
            assert_eq!(bench.consumer.waiting(), 0);
            bench.receive(0, &[*byte]);
        }
        let token = bench.take();
        assert_eq!(bench.body(token), b"hello");
        let head = bench.consumer.message(token).unwrap().head;
        assert_eq!((head.attempts, head.timestamp, head.id.0), (1, 7, name(7)));
        assert_eq!(bench.consumer.take(at(5)), None);
        bench.writes(0, "");
        bench.finish(token).writes(0, &format!("FIN {}\n", id(7)));
        assert!(bench.consumer.message(token).is_none());
        assert_eq!(bench.consumer.finish(at(5), token), Err(AnswerError::Unknown));
        let counters = bench.consumer.counters();
        assert_eq!((counters.received, counters.finished), (1, 1));
    });
}

#[test]
fn who_waits_for_events_is_told_of_a_connection_of_which_nothing_is_wanted() {
    with::<1, 4>(&config(), 1, |bench| {
        let now = bench.now();
        bench.consumer.pause(now);
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, INFO)).writes(0, "SUB t ch\n");
        let before = bench.consumer.version();
        bench.receive(0, &frame(0, b"OK")).writes(0, "");
        assert_ne!(bench.consumer.version(), before);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Connected));
    });
}

#[test]
fn who_waits_for_events_is_told_of_a_message_that_was_too_long_too_often() {
    let config = Config { max_attempts: 1, ..config() };
    with::<1, 1>(&config, 1, |bench| {
        bench.connect(0).writes(0, "RDY 1\n");
        let before = bench.consumer.version();
        bench.receive(0, &message(7, 2, &[b'x'; 100]));
        assert_ne!(bench.consumer.version(), before);
        let told = bench.consumer.poll_event();
        assert!(matches!(told, Some(Event::Connection { .. } | Event::GivenUp { .. })));
        assert_eq!(bench.consumer.counters().given_up, 1);
        bench.writes(0, &format!("FIN {}\n", id(7)));
    });
}

#[test]
fn the_answer_to_identify_may_come_in_pieces() {
    for len in 1..=INFO.len() {
        with::<1, 4>(&config(), 1, |bench| {
            bench.dial(0);
            bench.open(0).written(0);
            let answer = frame(0, INFO);
            let (last, pieces) = answer.split_last().unwrap();
            for piece in pieces.chunks(len) {
                // A driver asks after each piece whether there is something to write.
                bench.receive(0, piece).writes(0, "");
            }
            bench.receive(0, &[*last]).writes(0, "SUB t ch\n");
        });
    }
}

#[test]
fn authenticates_if_it_has_to() {
    let info = b"{\"auth_required\":true,\"max_rdy_count\":3}";
    let secret = Config { auth_secret: Some(b"s3"), ..config() };
    with::<1, 4>(&secret, 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, info)).writes(0, "AUTH\n\0\0\0\x02s3");
        bench.receive(0, &frame(0, b"{\"permission_count\":1}")).writes(0, "SUB t ch\n");
        // No more than the server's max_rdy_count.
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 3\n");
    });
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        assert_eq!(bench.fault(0, &frame(0, info)), Fault::AuthRequired);
    });
}

#[test]
fn identify_asks_for_timeout_and_sample() {
    let config = Config { msg_timeout: Some(Span::from_secs(5)), sample_rate: 7, ..config() };
    with::<1, 4>(&config, 1, |bench| {
        bench.dial(0);
        let hello = String::from_utf8_lossy(&bench.open(0).written(0)).into_owned();
        assert!(hello.contains("\"msg_timeout\":5000,\"sample_rate\":7"), "{hello}");
        assert!(!hello.contains("output_buffer"), "{hello}");
    });
}

#[test]
fn identify_asks_how_long_messages_may_be_held_back() {
    let said = |ms| {
        let output_buffer_timeout = Some(Span::from_millis(ms));
        let mut hello = String::new();
        with::<1, 4>(&Config { output_buffer_timeout, ..config() }, 1, |bench| {
            bench.dial(0);
            hello = String::from_utf8_lossy(&bench.open(0).written(0)).into_owned();
        });
        let more = hello.split_once("\"heartbeat_interval\":").unwrap().1;
        more.trim_start_matches(|digit: char| digit.is_ascii_digit()).to_owned()
    };
    assert_eq!(said(25), ",\"output_buffer_timeout\":25}");
    assert_eq!(said(30_000), ",\"output_buffer_timeout\":30000}");
    assert_eq!(said(0), ",\"output_buffer_size\":-1}");
}

#[test]
fn heartbeats_are_answered_whatever_the_application_does() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, &[b'x'; 30])).receive(0, &message(2, 1, &[b'y'; 30]));
        let beat = frame(0, b"_heartbeat_");
        // Nobody takes anything, and there is no room left.
        for second in 1..50 {
            bench.at(second * 1000).tick().receive(0, &beat).writes(0, "NOP\n").writes(0, "");
        }
        // Two at once are one answer.
        bench.receive(0, &[beat.clone(), beat].concat()).writes(0, "NOP\n");
        assert_eq!(bench.consumer.counters().heartbeats, 51);
        // One that comes while a command is half written goes behind that.
        let (one, two) = (bench.take(), bench.take());
        bench.finish(one).finish(two);
        let now = bench.now();
        assert_eq!(bench.session(0).transmit(now).len(), 42);
        bench.session(0).sent(now, 10);
        bench.receive(0, &frame(0, b"_heartbeat_"));
        assert!(bench.written(0).ends_with(b"\nNOP\n"));
    });
}

#[test]
fn silence_is_noticed() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).written(0);
        bench.at(15_000).receive(0, &frame(0, b"_heartbeat_")[..7]);
        assert_eq!(bench.session(0).deadline(), at(35_000));
        bench.at(34_999).tick();
        assert_eq!(bench.state(0), ConnectionState::Ready);
        bench.at(35_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        // Who is silent takes no farewell: it is due at once, and stays so, for the driver to abort.
        let end = bench.session(0).deadline();
        assert_eq!(end, at(35_000));
        bench.at(36_000).tick();
        assert_eq!((bench.session(0).link(), bench.session(0).deadline()), (Link::Close, end));
        bench.closed(0, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
        let _ = bench.session(0).poll_event();
        assert_eq!(bench.consumer.status(0).unwrap().last, Some(why));
        assert_eq!(bench.state(0), ConnectionState::Waiting);
    });
}

#[test]
fn each_step_of_the_handshake_has_its_time() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.dial(0);
        bench.at(5_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        let why = Closed::Dial(DialError::TimedOut);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Disconnected(why)));
        bench.at(6_000).connect(0);
        bench.closed(0, Closed::Transport(TransportError::Reset)).at(7_000);
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, INFO)).written(0);
        bench.at(12_000).tick();
        bench.closed(0, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Handshake));
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Disconnected(why)));
        assert_eq!(bench.consumer.counters().failures, 3);
    });
}

#[test]
fn refusals_give_nsqds_own_words_and_waits_grow() {
    with::<1, 2>(&config(), 1, |bench| {
        let mut waits = Vec::new();
        for _ in 0..12 {
            bench.dial(0);
            bench.open(0).written(0);
            bench.receive(0, &frame(0, INFO)).written(0);
            let fault = bench.fault(0, &frame(1, b"E_SUB_FAILED SUB failed to too many consumers"));
            assert_eq!(fault, Fault::Refused(ErrorCode::Sub));
            bench.closed(0, Closed::Peer);
            let detail = bench.consumer.status(0).unwrap().detail;
            assert_eq!(detail, "E_SUB_FAILED SUB failed to too many consumers");
            let next = bench.session(0).deadline().as_micros() / 1000;
            waits.push(next - bench.now);
            bench.at(next);
        }
        for (wait, high) in waits.iter().zip([1000, 2000, 4000, 8000, 16_000, 16_000]) {
            assert!((high / 2..=high).contains(wait), "{waits:?}");
        }
        assert!(waits[11] <= 16_000, "{waits:?}");
    });
}

#[test]
fn only_an_nsqd_that_delivers_or_lasts_is_dialed_again_at_once() {
    for (bytes, held, at_once) in [
        (vec![], 9999, false),
        (vec![], 10_000, true),
        (frame(0, b"_heartbeat_"), 1000, false),
        (message(1, 1, b"x"), 0, true),
    ] {
        with::<1, 2>(&config(), 1, |bench| {
            bench.connect(0).written(0);
            bench.receive(0, &bytes);
            let lost = bench.now + held;
            bench.at(lost).closed(0, Closed::Peer);
            let next = bench.session(0).deadline().as_micros() / 1000;
            assert_eq!(next == lost, at_once, "{held} ms, {bytes:?}: at {next}");
            assert!(at_once || next >= lost + 500, "{next}");
        });
    }
}

#[test]
fn an_nsqd_that_refuses_for_good_is_left_out_and_makes_room() {
    let refusals: [(&[u8], Fault); 5] = [
        (b"E_INVALID cannot SUB in current state, TLS required", Fault::TlsRequired),
        (b"E_UNAUTHORIZED AUTH failed for SUB on \"t\" \"ch\"", Fault::AuthRefused),
        (b"E_AUTH_FIRST AUTH required before SUB", Fault::AuthRefused),
        (b"E_BAD_TOPIC SUB topic name", Fault::Refused(ErrorCode::BadTopic)),
        (b"E_BAD_CHANNEL SUB channel name", Fault::Refused(ErrorCode::BadChannel)),
    ];
    for (words, fault) in refusals {
        for nsqds in [1, 2] {
            with::<1, 2>(&config(), nsqds, |bench| {
                bench.dial(0);
                bench.open(0).written(0);
                bench.receive(0, &frame(0, INFO)).written(0);
                assert_eq!(bench.fault(0, &frame(1, words)), fault);
                bench.closed(0, Closed::Local);
                let told = bench.session(0).poll_event();
                assert_eq!(told, Some(ConnectionEvent::LeftOut(fault)));
                assert_eq!(bench.session(0).poll_event(), None);
                if nsqds == 1 {
                    bench.at(299_999).tick();
                    assert_eq!(bench.session(0).dial(at(299_999)), None);
                    bench.at(300_000).tick();
                    assert_eq!(bench.dial(0), "nsqd0:4150");
                } else {
                    bench.at(100).tick();
                    assert_eq!(bench.dial(0), "nsqd1:4150");
                }
            });
        }
    }
}

#[test]
fn several_nsqds_that_are_down_are_not_dialed_without_a_pause() {
    with::<1, 2>(&config(), 3, |bench| {
        let mut dialed = std::collections::HashMap::new();
        let mut dials = 0;
        while bench.now < 60_000 {
            if let Some(address) = bench.dial_in_vain() {
                *dialed.entry(address).or_insert(0) += 1;
                dials += 1;
            }
        }
        // Each makes room as soon as it fails, so the pauses double only once round.
        assert!(dials < 60, "{dials}: {dialed:?}");
        assert!(dialed.len() == 3 && dialed.values().all(|&n| n > 1), "{dialed:?}");
    });
}

#[test]
fn an_nsqd_that_fails_makes_room_for_another_at_once() {
    with::<1, 2>(&config(), 3, |bench| {
        let mut dialed = Vec::new();
        while dialed.len() < 3 {
            dialed.extend(bench.dial_in_vain());
        }
        dialed.sort();
        assert_eq!(dialed, ["nsqd0:4150", "nsqd1:4150", "nsqd2:4150"], "each of them once");
        assert!(bench.now < 1000, "{} ms", bench.now);
    });
    // One that was good is dialed again first.
    with::<1, 2>(&config(), 2, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, b"x"));
        bench.closed(0, Closed::Peer);
        assert_eq!(bench.dial_in_vain().as_deref(), Some("nsqd0:4150"));
        assert_eq!(bench.dial_in_vain().as_deref(), Some("nsqd1:4150"));
    });
}

#[test]
fn a_connection_that_is_for_nobody_waits_for_nothing() {
    with::<2, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.consumer.requeue(at(0), token, None).unwrap();
        // Backing off ends by itself, soon.
        assert!(bench.session(0).deadline() < at(10_000));
        assert_eq!(bench.state(1), ConnectionState::Unused);
        assert_eq!(bench.session(1).deadline(), Instant::NEVER);
    });
}

#[test]
fn a_message_is_touched_for_as_long_as_its_own_nsqd_has_it() {
    with::<2, 4>(&Config { msg_timeout: Some(Span::from_secs(60)), ..config() }, 2, |bench| {
        bench.connect(0).written(0);
        // The other one grants less.
        let info = String::from_utf8(INFO.to_vec()).unwrap().replace("60000", "10000");
        bench.connect_with(1, info.as_bytes()).written(1);
        bench.receive(1, &message(1, 1, b"x"));
        let token = bench.take();
        bench.at(9_000).consumer.touch(at(9_000), token).unwrap();
        assert_eq!(bench.written(1), format!("TOUCH {}\n", id(1)).as_bytes());
        bench.at(18_999).tick();
        assert_eq!(bench.consumer.counters().timed_out, 0);
        bench.at(19_000).tick();
        assert_eq!(bench.consumer.counters().timed_out, 1);
    });
}

#[test]
fn answers_in_any_order_and_slots_used_again() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for round in 0..50u8 {
            for n in 0..4 {
                bench.receive(0, &message(round * 4 + n, 1, &[round * 4 + n; 38]));
            }
            let tokens: Vec<Token> = (0..4).map(|_| bench.take()).collect();
            for n in [2, 0, 3, 1] {
                let number = round * 4 + n;
                assert_eq!(bench.body(tokens[usize::from(n)]), [number; 38]);
                bench.finish(tokens[usize::from(n)]);
                bench.writes(0, &format!("FIN {}\n", id(number)));
            }
        }
        let counters = bench.consumer.counters();
        assert_eq!((counters.received, counters.finished, counters.no_room), (200, 200, 0));
    });
}

#[test]
fn a_long_message_takes_several_slots_and_fewer_are_asked_for() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        // 26 + 150 bytes: three slots of 64.
        bench.receive(0, &message(1, 1, &[7; 150])).writes(0, "RDY 2\n");
        bench.receive(0, &message(2, 1, b"short"));
        // What was on its way when RDY was lowered.
        bench.receive(0, &message(3, 1, b"none left"));
        bench.writes(0, &format!("REQ {} 1000\n", id(3)));
        let (long, short) = (bench.take(), bench.take());
        assert_eq!((bench.body(long), bench.body(short)), (&[7; 150][..], &b"short"[..]));
        bench.finish(long);
        assert_eq!(bench.consumer.counters().no_room, 1);
        bench.writes(0, &format!("FIN {}\nRDY 4\n", id(1)));
    });
}

#[test]
fn a_message_larger_than_the_ring_is_skipped_and_the_stream_goes_on() {
    for (too_large, attempts, answer) in [
        (TooLarge::Requeue, 1, "REQ {id} 90000\n"),
        (TooLarge::Requeue, 3, "REQ {id} 270000\n"),
        (TooLarge::Requeue, 6, "FIN {id}\n"),
        (TooLarge::Finish, 1, "FIN {id}\n"),
    ] {
        with::<1, 4>(&Config { too_large, ..config() }, 1, |bench| {
            bench.connect(0).writes(0, "RDY 4\n");
            let bytes = [message(1, attempts, &[b'x'; 100_000]), message(2, 1, b"next")].concat();
            for piece in bytes.chunks(777) {
                bench.receive(0, piece);
            }
            bench.writes(0, &answer.replace("{id}", &id(1)));
            let token = bench.take();
            assert_eq!(bench.body(token), b"next");
            let counters = bench.consumer.counters();
            assert_eq!((counters.too_large, counters.received), (1, 1));
            let given_up = (attempts == 6).then_some((MessageId(name(1)), 6));
            assert_eq!(bench.consumer.given_up(), given_up);
        });
    }
}

#[test]
fn more_skipped_messages_than_can_be_answered_at_once_are_left_to_nsqd() {
    with::<1, 1>(&Config { too_large: TooLarge::Finish, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 1\n");
        let all: Vec<u8> = (1..=9).flat_map(|n| message(n, 1, &[0; 99])).collect();
        bench.receive(0, &all);
        let answers = bench.written(0).iter().filter(|&&byte| byte == b'\n').count();
        let counters = bench.consumer.counters();
        assert_eq!((counters.too_large, answers + counters.unanswered as usize), (9, 9));
        assert!(answers >= 2);
    });
}

#[test]
fn a_message_delivered_too_often_is_given_up_or_marked() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 6, b"again")).receive(0, &message(2, 5, b"last try"));
        let token = bench.take();
        assert_eq!(bench.body(token), b"last try");
        assert_eq!(bench.consumer.take(at(0)), None);
        bench.writes(0, &format!("FIN {}\n", id(1)));
        assert_eq!(bench.consumer.given_up(), Some((MessageId(name(1)), 6)));
        assert_eq!(bench.consumer.given_up(), None);
        assert_eq!(bench.consumer.counters().given_up, 1);
    });
    with::<1, 2>(&Config { exhausted: Exhausted::Deliver, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 6, b"again"));
        assert!(bench.consumer.take(at(0)).unwrap().exhausted);
    });
}

#[test]
fn requeueing_waits_longer_each_time_and_backs_off() {
    let config = Config { requeue_cap: Span::from_secs(200), max_attempts: 0, ..config() };
    with::<2, 4>(&config, 2, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.connect(1).writes(1, "").writes(0, "RDY 2\n").at(1_000).tick();
        bench.writes(1, "RDY 2\n").writes(0, "");
        // Somebody else's fault: nothing changes.
        for (attempts, delay) in [(1, 90_000), (2, 180_000), (3, 200_000)] {
            let now = bench.now();
            bench.receive(0, &message(1, attempts, b"x"));
            let token = bench.take();
            bench.consumer.release(now, token, None).unwrap();
            bench.writes(0, &format!("REQ {} {delay}\n", id(1)));
        }
        // The message's fault.
        bench.receive(0, &message(2, 1, b"x")).receive(0, &message(3, 1, b"x"));
        let (one, two) = (bench.take(), bench.take());
        let now = bench.now();
        bench.consumer.requeue(now, one, Some(Span::from_millis(5))).unwrap();
        assert!(bench.consumer.is_backing_off());
        bench.writes(0, &format!("RDY 0\nREQ {} 5\n", id(2))).writes(1, "RDY 0\n");
        // A success of what was delivered before tells nothing.
        bench.finish(two).writes(0, &format!("FIN {}\n", id(3)));
        let wait = bench.session(1).deadline().as_micros() / 1000;
        assert!((1_500..=2_000).contains(&wait), "{wait}");
        bench.at(wait).tick().at(2_001).tick().writes(1, "").writes(0, "RDY 1\n");
        bench.receive(0, &message(4, 1, b"x"));
        let token = bench.take();
        bench.finish(token);
        assert!(!bench.consumer.is_backing_off());
        bench.writes(0, &format!("RDY 2\nFIN {}\n", id(4))).writes(1, "RDY 2\n");
    });
}

#[test]
fn pause_resume_and_another_limit_tell_only_what_changes() {
    with::<1, 4>(&Config { max_in_flight: 3, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 3\n");
        let now = bench.now();
        bench.consumer.pause(now);
        bench.consumer.resume(now);
        bench.writes(0, "");
        bench.consumer.pause(now);
        bench.writes(0, "RDY 0\n").writes(0, "");
        bench.consumer.set_max_in_flight(now, 2);
        bench.writes(0, "");
        bench.consumer.resume(now);
        bench.writes(0, "RDY 2\n");
        bench.consumer.set_max_in_flight(now, 100);
        bench.writes(0, "RDY 4\n");
        bench.consumer.set_max_in_flight(now, 0);
        bench.writes(0, "RDY 0\n");
    });
}

#[test]
fn touches_by_itself_before_the_time_is_up_as_long_as_nsqd_lets_it() {
    let info = b"{\"msg_timeout\":4000,\"max_msg_timeout\":9000}";
    with::<1, 4>(&Config { auto_touch: true, ..config() }, 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, info)).written(0);
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"taken")).receive(0, &message(2, 1, b"waiting"));
        let token = bench.take();
        let touches = format!("TOUCH {}\nTOUCH {}\n", id(1), id(2));
        for second in [2, 4, 6, 8] {
            assert_eq!(bench.session(0).deadline(), at(second * 1000));
            bench.at(second * 1000).tick().writes(0, &touches);
            bench.receive(0, &frame(0, b"_heartbeat_")).writes(0, "NOP\n");
        }
        // nsqd takes them back.
        bench.at(9_000).tick();
        assert_eq!(bench.consumer.take(at(9_000)), None);
        assert_eq!(bench.body(token), b"taken", "still readable");
        assert_eq!(bench.consumer.finish(at(9_000), token), Err(AnswerError::Late));
        assert!(bench.consumer.message(token).is_none());
        let counters = bench.consumer.counters();
        assert_eq!((counters.timed_out, counters.late, counters.touched), (2, 1, 8));
    });
}

#[test]
fn touched_by_hand_or_given_up() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        let keep = |bench: &mut Bench<'_>| {
            let beat = frame(0, b"_heartbeat_");
            bench.tick().receive(0, &beat).writes(0, "NOP\n");
        };
        for second in (15..60).step_by(15) {
            keep(bench.at(second * 1000));
        }
        bench.at(59_000);
        bench.consumer.touch(at(59_000), token).unwrap();
        bench.writes(0, &format!("TOUCH {}\n", id(1)));
        for second in (60..119).step_by(15) {
            keep(bench.at(second * 1000));
        }
        bench.at(119_000).tick();
        assert_eq!(bench.consumer.touch(at(119_000), token), Err(AnswerError::Late));
        // It holds a slot until the application lets go of it.
        bench.writes(0, "RDY 3\n");
        let late = bench.consumer.release(at(119_000), token, None);
        assert_eq!(late, Err(AnswerError::Late));
        bench.at(120_000).tick().writes(0, "RDY 4\n");
    });
}

#[test]
fn an_answer_after_the_connection_is_dropped_and_counted() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, b"taken")).receive(0, &message(2, 1, b"waiting"));
        let old = bench.take();
        bench.closed(0, Closed::Peer).at(1);
        assert_eq!(bench.consumer.take(at(1)), None, "nsqd delivers it again");
        // The old one keeps its slot.
        bench.connect(0).writes(0, "RDY 1\n");
        bench.receive(0, &message(1, 2, b"again"));
        let new = bench.take();
        assert_eq!((bench.body(old), bench.body(new)), (&b"taken"[..], &b"again"[..]));
        assert_eq!(bench.consumer.finish(at(1), old), Err(AnswerError::Late));
        assert_eq!(bench.consumer.finish(at(1), old), Err(AnswerError::Unknown));
        bench.writes(0, "RDY 2\n");
        bench.finish(new).writes(0, &format!("FIN {}\n", id(1)));
        assert_eq!(bench.consumer.counters().late, 1);
    });
}

#[test]
fn an_earlier_delivery_of_the_same_message_does_not_answer_the_new_one() {
    for (before, after) in [(1, 2), (2, 3), (2, 5)] {
        with::<1, 4>(&config(), 1, |bench| {
            bench.connect(0).writes(0, "RDY 4\n");
            bench.receive(0, &message(1, before, b"first"));
            let old = bench.take();
            bench.receive(0, &message(1, after, b"second"));
            assert_eq!(bench.consumer.finish(at(0), old), Err(AnswerError::Late));
            let new = bench.take();
            assert_eq!(bench.body(new), b"second");
        });
    }
}

#[test]
fn refused_answers_are_noise() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for code in ["FIN", "REQ", "TOUCH"] {
            let text = format!("E_{code}_FAILED {code} {} failed ID not in flight", id(1));
            bench.receive(0, &frame(1, text.as_bytes()));
        }
        assert_eq!(bench.state(0), ConnectionState::Ready);
        assert_eq!(bench.consumer.counters().refused, 3);
        let fault = bench.fault(0, &frame(1, b"E_INVALID invalid message ID"));
        assert_eq!(fault, Fault::Refused(ErrorCode::Invalid));
    });
}

#[test]
fn stops_with_everything_answered() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for n in 1..=3 {
            bench.receive(0, &message(n, 1, b"x"));
        }
        let (one, two) = (bench.take(), bench.take());
        bench.consumer.stop();
        assert_eq!(bench.session(0).link(), Link::Up, "it has to say so");
        bench.writes(0, &format!("CLS\nREQ {} 0\n", id(3)));
        assert_eq!(bench.state(0), ConnectionState::Draining);
        assert_eq!(bench.consumer.take(at(0)), None);
        // What was on its way goes back.
        bench.receive(0, &message(4, 1, b"x")).writes(0, &format!("REQ {} 0\n", id(4)));
        bench.receive(0, &frame(0, b"CLOSE_WAIT"));
        bench.at(1000).finish(one).finish(two);
        let now = bench.now();
        let mut session = bench.session(0);
        assert_eq!(session.transmit(now).len(), 42);
        assert_eq!(session.link(), Link::Close, "once that is written");
        session.sent(now, 42);
        assert!(session.transmit(now).is_empty());
        session.closed(now, Closed::Local);
        assert!(bench.consumer.is_stopped());
        assert_eq!(bench.session(0).dial(now), None);
        assert_eq!(bench.session(0).deadline(), Instant::NEVER);
    });
}

#[test]
fn stopping_does_not_wait_for_ever() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.consumer.stop();
        bench.writes(0, "CLS\n").receive(0, &frame(0, b"CLOSE_WAIT"));
        bench.at(4_999).tick().writes(0, "");
        bench.at(5_000).tick().writes(0, &format!("REQ {} 0\n", id(1)));
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert!(bench.consumer.is_stopped());
        assert_eq!(bench.consumer.finish(at(5_000), token), Err(AnswerError::Late));
    });
    // Nor for a transport that takes nothing.
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        bench.consumer.stop();
        bench.tick().at(5_000).tick();
        assert_eq!(bench.state(0), ConnectionState::Leaving);
        bench.at(5_999).tick();
        assert_eq!(bench.session(0).link(), Link::Up);
        bench.at(6_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
    });
    // Before it is connected.
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.consumer.stop();
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert!(bench.consumer.is_stopped());
    });
}

#[test]
fn nonsense_ends_the_connection_with_its_reason() {
    let cases: [(&[u8], Fault); 6] = [
        (b"HTTP/1.1 400 Bad Request\r\n", Fault::Decode(DecodeError::WrongPort)),
        (b"\0\0\0\x06\0\0\0\x03OK", Fault::Decode(DecodeError::UnknownFrame { frame_type: 3 })),
        (b"\0\0\0\x1d\0\0\0\x02", Fault::Decode(DecodeError::ShortMessage { len: 25 })),
        (
            b"\0\x10\0\0\0\0\0\0x",
            Fault::Decode(DecodeError::BadLength { len: (1 << 20) - 4, max: 16 << 10 }),
        ),
        (b"\0\0\0\x06\0\0\0\0OK", Fault::UnexpectedReply),
        (b"\0\0\0\x0e\0\0\0\0CLOSE_WAIT", Fault::UnexpectedReply),
    ];
    for (bytes, fault) in cases {
        with::<1, 4>(&config(), 1, |bench| {
            bench.connect(0).written(0);
            // The data of a short message need not come for it to be known as one.
            let bytes = [bytes, b"x"].concat();
            assert_eq!(bench.fault(0, &bytes), fault);
            assert!(!fault.to_string().is_empty());
            // A connection that came up and brought nothing is followed by a wait.
            bench.closed(0, Closed::Local).at(1000);
            bench.connect(0).writes(0, "RDY 4\n");
        });
    }
    // An answer before the question was asked.
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0);
        assert_eq!(bench.fault(0, &frame(0, INFO)), Fault::UnexpectedReply);
    });
}

fn producer(host: &str) -> String {
    format!(
        "{{\"remote_address\":\"127.0.0.1:37372\",\"hostname\":\"h\",\"broadcast_address\":\
         \"{host}\",\"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\",\
         \"topology_zone\":\"\",\"topology_region\":\"\"}}"
    )
}

fn lookup_body(hosts: &[&str]) -> String {
    let producers: Vec<String> = hosts.iter().map(|host| producer(host)).collect();
    format!("{{\"channels\":[\"archive\",\"metrics\"],\"producers\":[{}]}}", producers.join(","))
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n\
         X-Nsq-Content-Type: nsq; version=1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl<'a> Bench<'a> {
    fn poll(&mut self, index: usize) -> LookupdSession<'_, 'a> {
        self.consumer.lookupd(index).unwrap()
    }

    /// Dials nsqlookupd `index` and gives what is asked.
    #[track_caller]
    fn ask(&mut self, index: usize) -> String {
        let now = self.now();
        let mut session = self.poll(index);
        session.dial(now).expect("a dial is due");
        session.open(now);
        let mut request = Vec::new();
        loop {
            let bytes = session.transmit(now).head.to_vec();
            if bytes.is_empty() {
                return String::from_utf8(request).unwrap();
            }
            session.sent(now, bytes.len());
            request.extend(bytes);
        }
    }

    /// Asks nsqlookupd `index` as soon as it is due.
    #[track_caller]
    fn ask_when_due(&mut self, index: usize) {
        let due = self.poll(index).deadline().as_micros().div_ceil(1000);
        let due = due.max(self.now);
        self.at(due).tick();
        self.ask(index);
    }

    /// Asks nsqlookupd `index` as soon as it is due, and answers.
    #[track_caller]
    fn answer(&mut self, index: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.ask_when_due(index);
        let now = self.now();
        let mut session = self.poll(index);
        let answered = session.receive(now, bytes);
        session.closed(now, if session.link() == Link::Up { Closed::Peer } else { Closed::Local });
        answered
    }

    fn hosts(&mut self) -> Vec<String> {
        self.tick();
        let ids = 0..self.consumer.connections();
        let address = |id| self.consumer.status(id).unwrap().address.map(Address::host);
        ids.filter_map(address).map(str::to_owned).collect()
    }
}

fn looking_up(config: &Config<'_>, lookupds: usize, scenario: impl FnOnce(&mut Bench<'_>)) {
    let mut storage = Storage::<3, 4>::new();
    let mut discovery = Discovery::<2, 3>::new();
    let all: [Address; 2] = ["one:4161", "two:4161"].map(|host| host.parse().unwrap());
    let mut ring = [0; 256];
    let mut consumer = Consumer::new(config, &mut storage, &[], &mut ring).unwrap();
    consumer.discover(&mut discovery, &all[..lookupds]).unwrap();
    scenario(&mut Bench { consumer, now: 0 });
}

#[test]
fn finds_nsqds_through_nsqlookupd() {
    looking_up(&config(), 1, |bench| {
        let request = bench.ask(0);
        assert!(
            request.starts_with("GET /lookup?topic=t HTTP/1.1\r\nHost: one:4161\r\n")
                && request.ends_with("\r\nConnection: close\r\n\r\n"),
            "{request}"
        );
        let bytes = http("200 OK", &lookup_body(&["a", "b"]));
        let now = bench.now();
        for byte in &bytes {
            bench.poll(0).receive(now, &[*byte]).unwrap();
        }
        assert_eq!(bench.poll(0).link(), Link::Close);
        bench.poll(0).closed(now, Closed::Local);
        let event = bench.poll(0).poll_event();
        assert_eq!(event, Some(LookupdEvent::Answered { producers: 2 }));
        assert_eq!(bench.hosts(), ["a", "b"]);
        assert_eq!(bench.dial(1), "b:4150");
        let next = bench.poll(0).deadline().as_micros() / 1000;
        assert!((45_000..=60_000).contains(&next), "{next}");
    });
}

/// All connections dial whom they are to dial, in vain; says whom.
fn dial_all_in_vain(bench: &mut Bench<'_>) -> Vec<String> {
    bench.tick();
    let now = bench.now();
    let mut dialed = Vec::new();
    for index in 0..bench.consumer.connections() {
        if let Some(address) = bench.session(index).dial(now).map(Address::to_string) {
            dialed.push(address);
            bench.closed(index, Closed::Dial(DialError::Refused));
        }
    }
    dialed
}

#[test]
fn while_nsqds_fail_and_others_wait_nsqlookupds_are_asked_soon_and_ever_less_often() {
    let hosts: Vec<String> = (0..9).map(|n| format!("nsqd{n}")).collect();
    let body = http("200 OK", &lookup_body(&hosts.iter().map(String::as_str).collect::<Vec<_>>()));
    looking_up(&config(), 1, |bench| {
        let (mut asked, mut first) = (Vec::new(), Vec::new());
        bench.answer(0, &body).unwrap();
        while bench.now < 300_000 {
            let dialed = dial_all_in_vain(bench);
            if asked.len() < 3 {
                first.extend(dialed);
            }
            bench.answer(0, &body).unwrap();
            asked.push(bench.now);
        }
        first.sort();
        first.dedup();
        assert!(first.len() >= 8, "in three rounds: {first:?}");
        let gaps: Vec<u64> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!((437..=563).contains(&asked[0]) && asked[2] < 2000, "{asked:?}");
        assert!(gaps.iter().all(|&gap| gap >= 437), "twice a second at most: {gaps:?}");
        let last = &gaps[gaps.len() - 5..];
        assert!(last.iter().all(|gap| (13_000..=17_000).contains(gap)), "a quarter: {gaps:?}");
        // Somebody new: at once again.
        let others = lookup_body(&["nsqd0", "a", "b", "c", "d", "e"]);
        bench.answer(0, &http("200 OK", &others)).unwrap();
        let before = bench.now;
        dial_all_in_vain(bench);
        bench.answer(0, &http("200 OK", &others)).unwrap();
        assert!(bench.now - before <= 563, "{}", bench.now - before);
    });
    // Nobody waits, or nobody fails: as usual.
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b", "c"]))).unwrap();
        dial_all_in_vain(bench);
        let next = bench.poll(0).deadline();
        assert!(next >= at(45_000), "{next:?}");
        bench.answer(0, &body).unwrap();
        let next = bench.poll(0).deadline();
        assert!(next > bench.now().after(Span::from_secs(45)), "{next:?}");
    });
}

#[test]
fn nobody_may_take_long_to_come_up_while_others_wait() {
    let four = http("200 OK", &lookup_body(&["a", "b", "c", "d"]));
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &four).unwrap();
        bench.dial(0);
        assert_eq!(bench.session(0).deadline(), at(1000));
        bench.dial(1);
        bench.at(900).open(1).written(1);
        assert_eq!(bench.session(1).deadline(), at(1900));
        bench.at(1000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local).answer(0, &four).unwrap();
        assert_eq!(bench.hosts()[0], "d");
        assert_eq!(bench.dial(0), "d:4150");
    });
    // Nobody waits.
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b", "c"]))).unwrap();
        bench.dial(0);
        assert_eq!(bench.session(0).deadline(), at(5000));
    });
    // It grows with the laps, for those that need longer.
    with::<1, 2>(&config(), 3, |bench| {
        let mut longest = 0;
        for round in 0..40 {
            if round > 0 {
                let next = bench.session(0).deadline().as_micros().div_ceil(1000);
                bench.now = next.max(bench.now);
            }
            bench.tick();
            let now = bench.now();
            if bench.session(0).dial(now).is_some() {
                let due = bench.session(0).deadline();
                longest = longest.max(due.since(now).as_millis());
                bench.now = due.as_micros() / 1000;
                bench.tick().closed(0, Closed::Local);
            }
        }
        assert_eq!(longest, 5000);
    });
}

#[test]
fn what_is_listed_and_nobody_can_use_is_told_once_and_the_others_are_used() {
    let long = "h".repeat(HOST_MAX + 1);
    let longest = "h".repeat(HOST_MAX);
    let cases = [
        (r#""broadcast_address":"a","tcp_port":0"#, "a", Some(0), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":65536"#, "a", Some(65_536), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":-1"#, "a", Some(-1), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":4150.5"#, "a", Some(4150), BadProducer::BadPort),
        (r#""tcp_port":"4150","broadcast_address":"a""#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":null"#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":[1]"#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a""#, "a", None, BadProducer::NoPort),
        (r#""broadcast_address":"[::1]","tcp_port":1"#, "[::1]", Some(1), BadProducer::BadHost),
        (r#""broadcast_address":"a\u000ab","tcp_port":1"#, "a?b", Some(1), BadProducer::BadHost),
        (
            r#""broadcast_address":"http://a","tcp_port":1"#,
            "http://a",
            Some(1),
            BadProducer::BadHost,
        ),
        (r#""broadcast_address":"aü","tcp_port":1"#, "a", Some(1), BadProducer::BadHost),
        (r#""broadcast_address":"","tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        (r#""broadcast_address":7,"tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        (r#""tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        ("", "", None, BadProducer::NoHost),
    ];
    let long = format!(r#""broadcast_address":"{long}","tcp_port":1"#);
    let too_long = (&*long, &longest[..unusable::HOST_SHOWN], Some(1), BadProducer::HostTooLong);
    for (fields, host, port, why) in cases.into_iter().chain([too_long]) {
        looking_up(&config(), 1, |bench| {
            let good = |host: &str| format!(r#"{{"broadcast_address":"{host}","tcp_port":4150}}"#);
            let body = format!(r#"{{"producers":[{},{{{fields}}},{}]}}"#, good("one"), good("two"));
            let answer = http("200 OK", &body);
            for poll in 0..3 {
                assert_eq!(bench.answer(0, &answer), Ok(()), "{body}");
                assert_eq!(bench.hosts(), ["one", "two"], "{fields}");
                let status = bench.consumer.lookupd_status(0).unwrap();
                assert_eq!((status.producers, status.unusable), (3, 1), "{fields}");
                let answered =
                    Event::Lookupd { index: 0, event: LookupdEvent::Answered { producers: 3 } };
                assert_eq!(bench.consumer.poll_event(), Some(answered));
                let told = (poll == 0).then_some(Event::Unusable { index: 0 });
                assert_eq!(bench.consumer.poll_event(), told, "{fields}, in poll {poll}");
                let known = bench.consumer.unusable(0).unwrap();
                assert_eq!(known, Unusable { lookupd: 0, host, port, why }, "{fields}");
            }
            // It is gone, and comes again.
            bench.answer(0, &http("200 OK", &lookup_body(&["one"]))).unwrap();
            assert_eq!(bench.consumer.unusable(0), None);
            bench.answer(0, &answer).unwrap();
            let told = std::iter::from_fn(|| bench.consumer.poll_event());
            assert!(told.into_iter().any(|event| event == Event::Unusable { index: 0 }));
        });
    }
}

#[test]
fn no_more_of_what_nobody_can_use_is_kept_than_there_are_nsqlookupds() {
    looking_up(&config(), 2, |bench| {
        let bad = |ports: &[u32]| {
            let each = |port| format!(r#"{{"broadcast_address":"a","tcp_port":{port}}}"#);
            let all: Vec<String> = ports.iter().map(each).collect();
            http("200 OK", &format!("{{\"producers\":[{}]}}", all.join(",")))
        };
        let polled = |bench: &mut Bench<'_>| {
            let events = std::iter::from_fn(|| bench.consumer.poll_event());
            events.filter(|event| matches!(event, Event::Unusable { .. })).count()
        };
        bench.answer(0, &bad(&[70_000, 70_001, 70_002])).unwrap();
        assert_eq!(polled(bench), 2);
        assert_eq!(bench.consumer.lookupd_status(0).unwrap().unusable, 3);
        assert_eq!(bench.consumer.unusable(1).unwrap().port, Some(70_001));
        assert_eq!(bench.consumer.unusable(2), None);
        bench.answer(1, &bad(&[70_000])).unwrap();
        assert_eq!(polled(bench), 0, "there is no room");
        // One of them is gone; another one is told in the next answer.
        bench.answer(0, &bad(&[70_001, 70_002])).unwrap();
        assert_eq!(polled(bench), 0);
        bench.answer(1, &bad(&[70_000])).unwrap();
        assert_eq!(polled(bench), 1);
        assert_eq!(bench.consumer.unusable(0).unwrap().lookupd, 1);
    });
}

#[test]
fn an_answer_longer_than_any_buffer() {
    looking_up(&config(), 1, |bench| {
        bench.ask(0);
        let hosts: Vec<String> = (0..20_000).map(|n| format!("nsqd{n}")).collect();
        let body = lookup_body(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
        let bytes = http("200 OK", &body);
        assert!(bytes.len() > 3_000_000);
        let now = bench.now();
        for piece in bytes.chunks(100) {
            bench.poll(0).receive(now, piece).unwrap();
        }
        bench.poll(0).closed(now, Closed::Peer);
        assert_eq!(bench.hosts(), ["nsqd0", "nsqd1", "nsqd2"]);
        assert_eq!(bench.consumer.unserved(), 19_997);
    });
}

#[test]
fn a_failing_or_empty_nsqlookupd_empties_nothing_and_says_what_is_wrong() {
    use BadAnswer::*;
    let body = lookup_body(&["a"]);
    let bad = |why| Err(Fault::BadAnswer(why));
    let cases = [
        (http("200 OK", "{\"channels\":[],\"producers\":[]}"), Ok(())),
        (http("200 OK", "{\"channels\":null,\"producers\":null}"), Ok(())),
        // Something else, as nsqd's HTTP port or a web server.
        (http("404 Not Found", "{\"message\":\"NOT_FOUND\"}"), bad(Status(404))),
        (http("404 Not Found", "<html></html>"), bad(Status(404))),
        (http("404 Not Found", ""), bad(Status(404))),
        (http("404 Not Found", "{\"message\":\"TOPIC_NOT_FOUND\"}"), Ok(())),
        (http("500 Internal Server Error", "{}"), bad(Status(500))),
        (http("301 Moved Permanently", ""), bad(Status(301))),
        (http("200 OK", "{\"producers\":3}"), bad(NoProducers)),
        (http("200 OK", "{\"message\":\"OK\"}"), bad(NoProducers)),
        (b"\0\0\0\x0eE_BAD_PROTOCOL".to_vec(), bad(Http(HttpError::NotHttp))),
    ];
    looking_up(&Config { grace: Span::from_secs(1), ..config() }, 1, |bench| {
        bench.answer(0, &http("200 OK", &body)).unwrap();
        for (bytes, result) in cases {
            let failures = bench.consumer.counters().lookups_failed;
            assert_eq!(bench.answer(0, &bytes), result);
            let failed = bench.consumer.counters().lookups_failed - failures;
            assert_eq!(failed, u32::from(result.is_err()));
            let wait = bench.poll(0).deadline().since(bench.now()).as_millis();
            // Asked again sooner after a failure.
            assert!(if result.is_err() { wait <= 16_000 } else { wait >= 45_000 }, "{wait}");
            let later = bench.now + 5_000;
            bench.at(later);
            assert_eq!(bench.hosts(), ["a"]);
        }
        // Cut off, or not JSON in its middle.
        let whole = http("200 OK", &lookup_body(&["x", "y"]));
        assert_eq!(bench.answer(0, &whole[..whole.len() - 1]), Ok(()));
        let why = Closed::Fault(Fault::BadAnswer(Http(HttpError::Truncated)));
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(why)));
        let text = http("200 OK", &body.replace("4150", "4150,,"));
        let error = bench.answer(0, &text).unwrap_err().to_string();
        assert!(error.starts_with("nsqlookupd's answer is not JSON: a key in quotes"), "{error}");
        // What it listed before that is known all the same.
        assert_eq!(bench.hosts(), ["a", "x", "y"]);
        // An answer that ends with its connection has to end well.
        bench.ask_when_due(0);
        let now = bench.now();
        let text = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
        bench.poll(0).receive(now, text.as_bytes()).unwrap();
        let broken = Closed::Transport(TransportError::Reset);
        bench.poll(0).closed(now, broken);
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(broken)));
    });
}

#[test]
fn an_nsqlookupd_that_hangs_is_given_up_and_delays_no_other() {
    looking_up(&config(), 2, |bench| {
        bench.ask(0);
        bench.answer(1, &http("200 OK", &lookup_body(&["b"]))).unwrap();
        assert_eq!(bench.hosts(), ["b"]);
        // A byte now and then does not help.
        for (second, byte) in (1..10).zip(b"HTTP/1.1 ") {
            bench.at(second * 1000).tick();
            let now = bench.now();
            bench.poll(0).receive(now, &[*byte]).unwrap();
            if second == 1 {
                assert_eq!(bench.poll(0).link(), Link::Up);
            }
        }
        bench.at(10_000).tick();
        assert_eq!(bench.poll(0).link(), Link::Close);
        let now = bench.now();
        bench.poll(0).closed(now, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(why)));
    });
}

#[test]
fn an_nsqd_that_nobody_lists_is_left_after_the_grace_period() {
    let heartbeat = Span::from_secs(60);
    let config = Config { grace: Span::from_secs(90), heartbeat, ..config() };
    looking_up(&config, 2, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b"]))).unwrap();
        bench.answer(1, &http("200 OK", &lookup_body(&["b"]))).unwrap();
        bench.connect(0).written(0);
        // The first no longer lists either, the second still has one of them.
        bench.answer(0, &http("200 OK", &lookup_body(&["c"]))).unwrap();
        let since = bench.now;
        assert_eq!(bench.hosts(), ["a", "b", "c"]);
        bench.receive(0, &frame(0, b"_heartbeat_")).written(0);
        assert_eq!(
            bench.consumer.connection(0).unwrap().shared.nsqds.slot(0).unwrap().leaves,
            at(since + 90_000)
        );
        for second in (10..90).step_by(10) {
            bench.at(since + second * 1000).tick();
            bench.receive(0, &frame(0, b"_heartbeat_")).writes(0, "NOP\n");
        }
        bench.at(since + 90_000);
        assert_eq!(bench.hosts(), ["b", "c"]);
        bench.writes(0, "CLS\n").receive(0, &frame(0, b"CLOSE_WAIT"));
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert_eq!(bench.state(0), ConnectionState::Unused);
    });
}

#[test]
fn given_and_found_nsqds_all_have_their_turns() {
    let config = Config { lookup_interval: Span::from_secs(5), ..config() };
    let (mut storage, mut ring) = (Storage::<1, 1>::new(), [0; 64]);
    let mut discovery = Discovery::<1, 1>::new();
    let given = ["g1:1", "g2:1"].map(|host| host.parse().unwrap());
    let lookups = ["one:4161".parse().unwrap()];
    let mut consumer = Consumer::new(&config, &mut storage, &given, &mut ring).unwrap();
    consumer.discover(&mut discovery, &lookups).unwrap();
    let mut bench = Bench { consumer, now: 0 };
    let mut turns = std::collections::HashMap::new();
    while bench.now < 3_600_000 {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b"]))).unwrap();
        let host = bench.hosts().remove(0);
        *turns.entry(host).or_insert(0) += 1;
    }
    assert!(turns.len() == 4 && turns.values().all(|&n| n > 80), "{turns:?}");
}

#[test]
fn producers_that_make_no_sense_are_passed_over() {
    let body = "{\"x\":[{\"broadcast_address\":\"no\",\"tcp_port\":1}],\"producers\":[\
        {\"tcp_port\":7,\"nested\":{\"broadcast_address\":\"no\",\"tcp_port\":1},\
        \"broadcast_address\":\"yes\"},{\"broadcast_address\":\"\",\"tcp_port\":1},\
        {\"broadcast_address\":\"no\"},{\"broadcast_address\":\"no\",\"tcp_port\":0},\
        {\"broadcast_address\":\"no\",\"tcp_port\":65536},{\"broadcast_address\":\"n o\",\
        \"tcp_port\":1},{\"broadcast_address\":3,\"tcp_port\":\"1\"},[],4,null]}";
    let long = format!("{{\"broadcast_address\":\"{}\",\"tcp_port\":1}},", "h".repeat(97));
    let wrapped = format!("{{\"status_code\":200,\"data\":{}}}", lookup_body(&["old"]));
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", body)).unwrap();
        assert_eq!(bench.hosts(), ["yes"]);
        let body = body.replace("[{\"tcp_port\":7", &format!("[{long}{{\"tcp_port\":7"));
        bench.answer(0, &http("200 OK", &body)).unwrap();
        assert_eq!(bench.hosts(), ["yes"]);
        // As nsqlookupds before 1.0 answer.
        bench.answer(0, &http("200 OK", &wrapped)).unwrap();
        assert_eq!(bench.hosts(), ["yes", "old"]);
    });
}

#[test]
fn stopping_ends_the_polls_too() {
    looking_up(&config(), 2, |bench| {
        bench.ask(0);
        bench.consumer.stop();
        assert_eq!(bench.poll(0).link(), Link::Close);
        assert!(!bench.consumer.is_stopped());
        let now = bench.now();
        bench.poll(0).closed(now, Closed::Local);
        assert!(bench.consumer.is_stopped());
        bench.at(1_000_000);
        let now = bench.now();
        assert_eq!(bench.poll(0).dial(now), None);
        assert_eq!(bench.poll(1).dial(now), None);
    });
}

#[test]
fn settings_are_checked() {
    let check = |config: &Config<'_>, ring: usize, nsqds: usize| {
        let mut storage = Storage::<1, 2>::new();
        let mut ring = vec![0; ring];
        let all = vec!["h:1".parse().unwrap(); nsqds];
        let error = Consumer::new(config, &mut storage, &all, &mut ring).err();
        assert!(error.is_none_or(|error| !error.to_string().is_empty()));
        error
    };
    let c = config();
    assert_eq!(check(&c, 64, 255), None);
    assert_eq!(check(&c, 63, 1), Some(ConfigError::RingTooSmall { len: 63 }));
    assert_eq!(check(&c, 64, 256), Some(ConfigError::Addresses { count: 256 }));
    let short = Config { heartbeat: Span::from_millis(999), ..c };
    assert_eq!(check(&short, 64, 1), Some(ConfigError::Heartbeat { ms: 999 }));
    let all = Config { sample_rate: 100, ..c };
    assert_eq!(check(&all, 64, 1), Some(ConfigError::SampleRate { percent: 100 }));
    let hasty = Config { msg_timeout: Some(Span::from_millis(1)), ..c };
    assert_eq!(check(&hasty, 64, 1), Some(ConfigError::MsgTimeout { ms: 1 }));
    for (ms, refused) in
        [(0, false), (1, true), (24, true), (25, false), (30_000, false), (30_001, true)]
    {
        let held = Config { output_buffer_timeout: Some(Span::from_millis(ms)), ..c };
        let error = refused.then_some(ConfigError::OutputBufferTimeout { ms });
        assert_eq!(check(&held, 64, 1), error);
    }
    let (mut storage, mut ring) = (Storage::<1, 2>::new(), [0; 64]);
    let mut consumer = Consumer::new(&c, &mut storage, &[], &mut ring).unwrap();
    let lookups = ["h:1".parse().unwrap(), "i:1".parse().unwrap()];
    let mut discovery = Discovery::<1, 1>::new();
    let refused = consumer.discover(&mut discovery, &lookups);
    assert_eq!(refused, Err(ConfigError::Lookupds { count: 2 }));
}

#[test]
fn ram() {
    let word = size_of::<usize>();
    // On a 32-bit machine 112 bytes less.
    assert_eq!(size_of::<Consumer<'_>>(), if word == 8 { 424 } else { 0 });
    let one = size_of::<Storage<1, 0>>() - size_of::<Counters>();
    assert!(one <= 288 + 8, "{one}");
    let hundred = size_of::<Storage<100, 0>>() - size_of::<Counters>();
    assert_eq!(hundred / 100, 288);
    assert_eq!((size_of::<Storage<0, 100>>() - size_of::<Counters>()) / 100, 32);
    let lookupd = size_of::<Discovery<100, 0>>() / 100;
    assert!(lookupd <= 480, "{lookupd}");
    assert!(size_of::<Discovery<0, 100>>() / 100 <= 104);
    let all = size_of::<Consumer<'_>>() + size_of::<Storage<2, 4>>();
    assert_eq!(all - 112, 1096, "two connections, four messages in flight, on a 32-bit machine");
}
