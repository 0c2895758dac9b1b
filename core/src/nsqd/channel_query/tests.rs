//! The requests that nsqlookupds get, and the effect of their answers on topics.

use super::*;
use crate::name::TopicName;
use crate::nsqd::{Config, PublishOptions, Storage};
use crate::session::{DialError, TransportError};
use crate::wire::http::HttpError;

const WAIT: u64 = 5000;

/// An nsqd without clients that asks nsqlookupds.
struct Rig {
    node: Nsqd<'static>,
    /// The states of the nsqlookupds `lookup0`, `lookup1` and so on.
    lookupds: Vec<Kind>,
    hosts: Vec<Address>,
    now: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Absent,
    Coming,
    At,
}

const CONFIG: Config<'_> = Config::new();

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// Returns an answer in the form of Go's net/http.
fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn channels(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    answer("200 OK", &format!("{{\"channels\":[{}]}}", names.join(",")))
}

impl Rig {
    fn new(lookupds: &[Kind]) -> Self {
        Self::with(lookupds, &CONFIG)
    }

    fn with(lookupds: &[Kind], config: &'static Config<'static>) -> Self {
        let storage = Box::leak(Box::new(Storage::<3, 4, 1, 4>::new()));
        let store = Box::leak(vec![0xaa; 4096].into_boxed_slice());
        let mut node = Nsqd::new(config, storage, store).unwrap();
        node.ask_lookupds(Box::leak(Box::new(ChannelQuery::new())));
        let hosts = (0..9).map(|n| format!("lookup{n}:4160").parse().unwrap()).collect();
        let now = Instant::from_millis(1000);
        Self { node, lookupds: lookupds.to_vec(), hosts, now }
    }

    fn with_session<R>(
        &mut self,
        f: impl FnOnce(&mut ChannelQuerySession<'_, '_>, Instant) -> R,
    ) -> R {
        let lookupds: Vec<_> = (0u16..)
            .zip(self.lookupds.iter().zip(&self.hosts))
            .map(|(n, (kind, host))| match kind {
                Kind::Absent => Lookupd::Absent,
                Kind::Coming => Lookupd::Coming,
                Kind::At => Lookupd::At(host, 4161 + n),
            })
            .collect();
        f(&mut self.node.asking(&lookupds).unwrap(), self.now)
    }

    fn publish(&mut self, name: &str) -> &mut Self {
        self.node.publish(self.now, &topic(name), b"body").unwrap();
        self
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        self.now = Instant::from_millis(1000 + ms);
        let now = self.now;
        self.with_session(|session, _| {
            if session.deadline() <= now {
                session.tick(now);
            }
        });
        self
    }

    fn deadline(&mut self) -> Instant {
        self.with_session(|session, _| session.deadline())
    }

    fn link(&mut self) -> Link {
        self.with_session(|session, _| session.link())
    }

    /// Returns the link after a change that makes the answer unneeded: a tick is due at once.
    fn link_after_tick(&mut self) -> Link {
        self.with_session(|session, now| {
            assert_eq!(session.deadline(), Instant::ZERO);
            session.tick(now);
            session.link()
        })
    }

    /// Returns the address that the session dials, if any.
    fn dial(&mut self) -> Option<String> {
        self.with_session(|session, now| session.dial(now).map(ToString::to_string))
    }

    #[track_caller]
    fn dials(&mut self, address: &str) -> &mut Self {
        assert_eq!(self.dial().as_deref(), Some(address));
        assert_eq!(self.link(), Link::Up);
        self
    }

    /// Opens the connection. Returns the request.
    fn open(&mut self) -> String {
        let mut request = Vec::new();
        self.with_session(|session, now| {
            session.open(now);
            loop {
                let bytes = session.transmit(now);
                // One byte at a time.
                let Some(&byte) = bytes.head.first() else { break };
                assert!(bytes.body.is_empty());
                request.push(byte);
                session.sent(now, 1);
            }
        });
        String::from_utf8(request).unwrap()
    }

    fn receive(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Fault> {
        self.with_session(|session, now| session.receive(now, bytes.as_ref()))
    }

    fn closed(&mut self, why: Closed) -> &mut Self {
        self.with_session(|session, now| session.closed(now, why));
        assert_eq!(self.link(), Link::Down);
        self
    }

    /// Lets the nsqlookupd at `address` answer the next query.
    #[track_caller]
    fn answers(&mut self, address: &str, answer: &str) -> &mut Self {
        self.dials(address);
        self.open();
        assert_eq!(self.receive(answer), Ok(()));
        assert_eq!(self.link(), Link::Close);
        self.closed(Closed::Local)
    }

    /// Returns a topic's channels, each with its depth, and the number of messages that it holds.
    fn depths(&self, name: &str) -> (Vec<(String, u32)>, u32) {
        let mut channels: Vec<_> = self
            .node
            .channels(&topic(name))
            .map(|channel| (channel.name.as_str().to_owned(), channel.depth))
            .collect();
        channels.sort();
        let held = self.node.topics().find(|it| *it.name == topic(name)).unwrap().depth;
        (channels, held)
    }

    #[track_caller]
    fn expect(&self, name: &str, channels: &[(&str, u32)], held: u32) {
        let (seen, depth) = self.depths(name);
        let seen: Vec<_> = seen.iter().map(|(name, depth)| (name.as_str(), *depth)).collect();
        assert_eq!((seen.as_slice(), depth), (channels, held));
    }

    #[track_caller]
    fn failed(&mut self, lookupd: usize, why: Closed) {
        assert_eq!(self.node.poll_event(), Some(Event::AskFailed { lookupd, why }));
        assert_eq!(self.node.poll_event(), None);
    }

    fn counts(&self) -> (u32, u32, u32) {
        let counters = self.node.counters();
        (counters.asked, counters.ask_failures, counters.channels_left_out)
    }
}

#[test]
fn a_new_topic_gets_its_channels_of_elsewhere_before_its_messages_are_distributed() {
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t").publish("t");
    rig.expect("t", &[], 2);
    assert!(rig.node.is_asking());
    assert_eq!(rig.node.ask_state(), LinkState::Waiting);
    rig.dials("lookup0:4161");
    assert_eq!(
        rig.open(),
        format!(
            "GET /channels?topic=t HTTP/1.1\r\nHost: lookup0:4161\r\nUser-Agent: {USER_AGENT}\r\n\
             Accept: application/vnd.nsq; version=1.0\r\nConnection: close\r\n\r\n"
        )
    );
    assert_eq!(rig.node.ask_state(), LinkState::Asking);
    let topology = rig.node.topology();
    assert_eq!(rig.receive(channels(&["b", "c#ephemeral", "a", "no name", ""])), Ok(()));
    rig.expect("t", &[("a", 2), ("b", 2)], 0);
    assert_ne!(rig.node.topology(), topology, "the channels must be registered");
    assert_eq!(rig.link(), Link::Close);
    rig.closed(Closed::Local);
    assert_eq!((rig.dial(), rig.deadline()), (None, Instant::NEVER));
    assert!(!rig.node.is_asking());
    assert_eq!((rig.counts(), rig.node.poll_event()), ((1, 0, 0), None));
    // The topic is no longer new, and nsqlookupds are not asked again.
    rig.publish("t");
    rig.expect("t", &[("a", 3), ("b", 3)], 0);
    assert_eq!(rig.dial(), None);
}

#[test]
fn channels_of_elsewhere_are_kept_for_60_s_without_a_client() {
    let mut rig = Rig::new(&[Kind::At]);
    // The topic never had a message, so a channel made by a client would be evicted at once.
    rig.node.create(rig.now, &topic("t"), None).unwrap();
    rig.answers("lookup0:4161", &channels(&["a", "b"]));
    let sub = |rig: &mut Rig, ms: u64, name: &str| {
        rig.at(ms);
        let now = rig.now;
        let mut client = rig.node.client(0).unwrap();
        client.open(now);
        client.take(now, format!("  V2SUB t {name}\n").as_bytes());
        let is_subscribed = client.link() == Link::Up;
        client.closed(now, Closed::Peer);
        is_subscribed
    };
    assert!(!sub(&mut rig, 59_900, "c"));
    // The client of `b` comes in time, so `a` is evicted for `c`.
    assert!(sub(&mut rig, 60_000, "b"));
    assert!(sub(&mut rig, 60_200, "c"));
    rig.expect("t", &[("b", 0), ("c", 0)], 0);
    assert!(sub(&mut rig, 60_300, "d"), "a client made channel `c`");
    rig.expect("t", &[("b", 0), ("d", 0)], 0);
}

#[test]
fn the_answer_for_an_evicted_topic_is_ignored() {
    let mut rig = Rig::new(&[Kind::At]);
    for name in ["x", "y", "z"] {
        let now = rig.now;
        let mut client = rig.node.client(0).unwrap();
        client.open(now);
        client.take(now, format!("  V2SUB {name} c\n").as_bytes());
        client.closed(now, Closed::Peer);
    }
    rig.dials("lookup0:4161");
    assert!(rig.open().starts_with("GET /channels?topic=x "));
    rig.publish("readings");
    assert_eq!(rig.receive(channels(&["a"])), Ok(()));
    rig.expect("readings", &[], 1);
    assert_eq!(rig.link_after_tick(), Link::Close);
    rig.closed(Closed::Local).dials("lookup0:4161");
    assert!(rig.open().starts_with("GET /channels?topic=readings "));
}

#[test]
fn answers_may_be_split_anywhere_and_end_in_every_way() {
    let body = "{\"channels\":[\"a\",\"b\"]}";
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        &body[..5],
        body.len() - 5,
        &body[5..]
    );
    let to_the_end = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
    for text in [answer("200 OK", body), chunks, to_the_end] {
        for at in 0..=text.len() {
            let mut rig = Rig::new(&[Kind::At]);
            rig.publish("t").dials("lookup0:4161");
            rig.open();
            let (one, two) = text.split_at(at);
            assert_eq!((rig.receive(one), rig.receive(two)), (Ok(()), Ok(())), "split at {at}");
            rig.closed(Closed::Peer);
            rig.expect("t", &[("a", 1), ("b", 1)], 0);
            assert_eq!(rig.counts(), (1, 0, 0));
        }
    }
}

#[test]
fn only_the_list_of_channels_counts_and_it_may_be_empty() {
    for body in [
        "{\"channels\":[]}",
        "{\"channels\":null}",
        "{\"x\":{\"channels\":7},\"channels\":[]}",
        "{\"channels\":[[\"a\"],{\"channels\":[\"b\"]},1,null]}",
    ] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.node.create(rig.now, &topic("t"), None).unwrap();
        rig.answers("lookup0:4161", &answer("200 OK", body));
        rig.expect("t", &[], 0);
        assert_eq!(rig.counts(), (1, 0, 0), "{body}");
    }
    // Other values beside the list, around it or in it are skipped.
    for body in [
        "{\"x\":null,\"channels\":[\"a\"]}",
        "{\"x\":[\"b\"],\"channels\":[\"a\"],\"y\":[\"b\"]}",
        "{\"channels\":[[\"b\"],\"a\",[]]}",
        "{\"channels\":[\"a\"],\"channels\":[\"b\"]}",
        "{\"x\":{\"y\":{\"channels\":[\"b\"]}},\"channels\":[\"a\"]}",
        "{\"channels\":[\"a\"],\"x\":\"b\"}",
    ] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.publish("t");
        rig.answers("lookup0:4161", &answer("200 OK", body));
        let (seen, _) = rig.depths("t");
        assert_eq!(seen, [("a".to_owned(), 1)], "{body}");
    }
    // The answer of an nsqlookupd before 1.0.
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t");
    let old = "{\"status_code\":200,\"status_txt\":\"OK\",\"data\":{\"channels\":[\"a\"]}}";
    rig.answers("lookup0:4161", &answer("200 OK", old));
    rig.expect("t", &[("a", 1)], 0);
}

#[test]
fn a_bad_answer_is_reported_and_ends_the_query_at_once() {
    let http = |error| BadAnswer::Http(error);
    for (text, why) in [
        (answer("404 Not Found", "{\"channels\":[\"a\"]}"), BadAnswer::Status(404)),
        (answer("500 Internal Server Error", ""), BadAnswer::Status(500)),
        (answer("200 OK", "{\"producers\":[]}"), BadAnswer::NoChannels),
        (answer("200 OK", "{\"channels\":7}"), BadAnswer::NoChannels),
        (answer("200 OK", "[\"channels\",[]]"), BadAnswer::NoChannels),
        ("\0\0\0\x0eE_BAD_PROTOCOL".to_owned(), http(HttpError::NotHttp)),
        ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned(), http(HttpError::Length)),
    ] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.publish("t").dials("lookup0:4161");
        rig.open();
        assert_eq!(rig.receive(&text), Err(Fault::BadAnswer(why)), "{text}");
        // The topic does not wait until the connection is closed.
        assert!(!rig.node.is_asking());
        assert_eq!((rig.link(), rig.receive("more")), (Link::Close, Ok(())));
        rig.closed(Closed::Local);
        rig.expect("t", &[], 1);
        assert_eq!(rig.counts(), (0, 1, 0), "{text}");
        rig.failed(0, Closed::Fault(Fault::BadAnswer(why)));
        rig.node.create(rig.now, &topic("t"), Some(&channel("c"))).unwrap();
        rig.expect("t", &[("c", 1)], 0);
    }
    for broken in ["{\"channels\":[\"a\"", "{\"channels\":[\"a\"]]", "{", "x"] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.publish("t").dials("lookup0:4161");
        rig.open();
        let fault = rig.receive(answer("200 OK", broken)).unwrap_err();
        assert!(matches!(fault, Fault::BadAnswer(BadAnswer::Json(_))), "{fault:?}");
        assert!(!rig.node.is_asking());
    }
}

/// Any answer ends the query, and only valid names become channels.
#[test]
fn an_answer_with_one_wrong_byte_does_no_harm() {
    let body = "{\"channels\":[\"a\",\"b\\u0063\"],\"x\":[1,{}]}";
    let chunks = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    for text in [answer("200 OK", body), chunks] {
        for at in 0..text.len() {
            for byte in [0, b'"', b'#', b'[', b']', b'{', b'9', b'\\', b'\n', 0x80, 0xff] {
                let mut text = text.clone().into_bytes();
                text[at] = byte;
                let mut rig = Rig::new(&[Kind::At]);
                rig.publish("t").dials("lookup0:4161");
                rig.open();
                for piece in text.chunks(at % 7 + 1) {
                    let _ = rig.receive(piece);
                }
                rig.closed(Closed::Peer);
                assert!(!rig.node.is_asking());
                let (asked, failed, _) = rig.counts();
                assert_eq!(asked + failed, 1, "{byte} at {at}");
                let (channels, held) = rig.depths("t");
                assert!(channels.iter().all(|(name, depth)| !name.is_empty() && *depth == 1));
                assert_eq!(held, u32::from(channels.is_empty()));
            }
        }
    }
}

#[test]
fn a_broken_connection_is_a_failure() {
    let broken = Closed::Transport(TransportError::Reset);
    let truncated = Closed::Fault(Fault::BadAnswer(BadAnswer::Http(HttpError::Truncated)));
    for (why, reported) in [(Closed::Peer, truncated), (broken, broken)] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.publish("t").dials("lookup0:4161");
        rig.open();
        rig.receive("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"channels\":[\"a\"").unwrap();
        rig.closed(why);
        // The channels of the partial answer are created.
        rig.expect("t", &[("a", 1)], 0);
        rig.failed(0, reported);
        assert_eq!(rig.counts(), (0, 1, 0));
    }
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t").dials("lookup0:4161").closed(Closed::Dial(DialError::Refused));
    rig.expect("t", &[], 1);
    assert!(!rig.node.is_asking());
    rig.failed(0, Closed::Dial(DialError::Refused));
}

#[test]
fn a_topic_is_held_for_channels_wait_at_most() {
    // A dial that does not end.
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t").dials("lookup0:4161");
    let end = Instant::from_millis(1000 + WAIT);
    assert_eq!(rig.deadline(), end);
    rig.at(WAIT - 1);
    assert!(rig.node.is_asking());
    rig.at(WAIT);
    assert!(!rig.node.is_asking());
    assert_eq!(rig.link(), Link::Close);
    rig.closed(Closed::Dial(DialError::TimedOut));
    rig.failed(0, Closed::Dial(DialError::TimedOut));
    assert_eq!(rig.counts(), (0, 1, 0));

    // An answer that does not come: the time counts from the topic's creation.
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t").dials("lookup0:4161").at(1000);
    rig.open();
    assert_eq!(rig.deadline(), end);
    rig.at(WAIT);
    assert!(!rig.node.is_asking());
    assert_eq!(
        (rig.link(), rig.deadline()),
        (Link::Close, end),
        "the topic does not wait for a silent nsqlookupd"
    );
    rig.closed(Closed::Local);
    rig.failed(0, Closed::Fault(Fault::TimedOut(crate::session::Awaited::Reply)));

    // No nsqlookupd can be asked for all of the time.
    let mut rig = Rig::new(&[Kind::Coming]);
    rig.publish("t");
    assert_eq!((rig.dial(), rig.deadline()), (None, end));
    rig.at(WAIT);
    assert!(!rig.node.is_asking());
    assert_eq!((rig.counts(), rig.deadline()), ((0, 0, 0), Instant::NEVER));
}

#[test]
fn all_nsqlookupds_are_asked_even_if_one_fails() {
    let mut rig = Rig::new(&[Kind::At, Kind::Absent, Kind::At]);
    rig.publish("t").dials("lookup0:4161").closed(Closed::Dial(DialError::Refused));
    assert!(rig.node.is_asking());
    rig.expect("t", &[], 1);
    rig.answers("lookup2:4163", &channels(&["a"]));
    rig.expect("t", &[("a", 1)], 0);
    // Each knows a channel that the other does not.
    rig.publish("u");
    rig.answers("lookup2:4163", &channels(&["a", "b"]));
    rig.expect("u", &[("a", 0), ("b", 0)], 1);
    rig.answers("lookup0:4161", &channels(&["b"]));
    rig.expect("u", &[("a", 1), ("b", 1)], 0);
    assert_eq!(rig.counts(), (3, 1, 0));
}

#[test]
fn an_nsqlookupd_that_hangs_does_not_keep_others_from_being_asked() {
    let mut rig = Rig::new(&[Kind::At, Kind::At, Kind::At]);
    rig.publish("t").publish("u").dials("lookup0:4161");
    // Each of three has at least a quarter of the time.
    assert_eq!(rig.deadline(), Instant::from_millis(1000 + WAIT / 4));
    rig.open();
    rig.at(WAIT / 4);
    assert_eq!(rig.link(), Link::Close);
    rig.closed(Closed::Local);
    // Those that answer are asked first, also for other topics.
    rig.answers("lookup1:4162", &channels(&["a"]));
    rig.answers("lookup2:4163", &channels(&["b"]));
    rig.expect("t", &[("a", 1), ("b", 1)], 0);
    rig.answers("lookup1:4162", &channels(&["a"]));
    rig.answers("lookup2:4163", &channels(&[]));
    rig.expect("u", &[("a", 0)], 1);
    rig.dials("lookup0:4161");
    // The last one has the rest of the time.
    assert_eq!(rig.deadline(), Instant::from_millis(1000 + WAIT));
    rig.at(WAIT).closed(Closed::Local);
    rig.expect("u", &[("a", 1)], 0);
    // After an answer it is asked in its usual place again.
    rig.publish("v");
    for address in ["lookup1:4162", "lookup2:4163", "lookup0:4161"] {
        rig.answers(address, &channels(&[]));
    }
    rig.node.delete(rig.now, &topic("v"), None).unwrap();
    rig.publish("v").dials("lookup0:4161");
}

#[test]
fn a_topic_waits_for_the_first_connection_to_an_nsqlookupd() {
    // The connection succeeds.
    let mut rig = Rig::new(&[Kind::Coming]);
    rig.publish("t");
    assert_eq!(rig.dial(), None);
    assert!(rig.node.is_asking());
    rig.lookupds[0] = Kind::At;
    rig.answers("lookup0:4161", &channels(&["a"]));
    rig.expect("t", &[("a", 1)], 0);
    // The connection fails.
    let mut rig = Rig::new(&[Kind::Coming]);
    rig.publish("t");
    assert_eq!(rig.dial(), None);
    rig.lookupds[0] = Kind::Absent;
    assert_eq!(rig.dial(), None);
    assert!(!rig.node.is_asking());
}

#[test]
fn without_nsqlookupds_no_topic_is_held() {
    for lookupds in [&[][..], &[Kind::Absent, Kind::Absent]] {
        let mut rig = Rig::new(lookupds);
        rig.node.create(rig.now, &topic("t"), None).unwrap();
        rig.node.create(rig.now, &topic("t"), Some(&channel("c"))).unwrap();
        rig.publish("t");
        rig.expect("t", &[("c", 0)], 1);
        assert_eq!(rig.dial(), None);
        rig.expect("t", &[("c", 1)], 0);
        assert_eq!(rig.counts(), (0, 0, 0));
    }
    // Nor with `channels_wait` of zero, or without `ask_lookupds`.
    const NEVER: Config<'_> = Config { channels_wait: Span::ZERO, ..Config::new() };
    let mut rig = Rig::with(&[Kind::At], &NEVER);
    rig.publish("t");
    assert!(!rig.node.is_asking());
    assert_eq!((rig.dial(), rig.deadline()), (None, Instant::NEVER));
    let storage = Box::leak(Box::new(Storage::<3, 4, 1, 4>::new()));
    let mut node = Nsqd::new(&CONFIG, storage, Box::leak(vec![0; 4096].into())).unwrap();
    node.publish(rig.now, &topic("t"), b"x").unwrap();
    assert!(!node.is_asking() && node.asking(&[]).is_none());
    assert_eq!(node.ask_state(), LinkState::Idle);
}

#[test]
fn only_the_first_eight_are_asked() {
    let mut rig = Rig::new(&[Kind::At; 9]);
    rig.publish("t");
    for n in 0..LOOKUPDS_MAX {
        rig.answers(&format!("lookup{n}:{}", 4161 + n), &channels(&[]));
    }
    assert!(!rig.node.is_asking());
    assert_eq!(rig.dial(), None);
}

#[test]
fn channels_without_room_are_counted() {
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t");
    rig.answers("lookup0:4161", &channels(&["a", "b", "c", "a", "b"]));
    // A topic can have two channels.
    rig.expect("t", &[("a", 1), ("b", 1)], 0);
    assert_eq!(rig.counts(), (1, 0, 1));
    rig.publish("u");
    rig.answers("lookup0:4161", &channels(&["a", "b"]));
    // All topics together can have four.
    rig.publish("v");
    rig.answers("lookup0:4161", &channels(&["a"]));
    rig.expect("v", &[], 1);
    assert_eq!(rig.counts(), (3, 0, 2));
}

#[test]
fn the_answer_for_a_deleted_topic_is_ignored() {
    for (asks, remade) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut rig = Rig::new(&[Kind::At]);
        rig.publish("t").dials("lookup0:4161");
        if asks {
            rig.open();
            rig.receive("HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{\"channels\":[").unwrap();
        }
        rig.node.delete(rig.now, &topic("t"), None).unwrap();
        if remade {
            // In the same slot.
            rig.publish("u");
        }
        assert_eq!(rig.link_after_tick(), Link::Close);
        if asks {
            assert_eq!(rig.receive("\"a\"]}"), Ok(()));
            let sent = rig.with_session(|session, now| session.transmit(now).len());
            assert_eq!(sent, 0);
            assert_eq!(rig.deadline(), rig.now.after(CONFIG.close_timeout));
            rig.closed(Closed::Local);
        } else {
            rig.closed(Closed::Dial(DialError::TimedOut));
        }
        assert_eq!((rig.counts(), rig.node.poll_event()), ((0, 0, 0), None));
        assert_eq!(rig.node.is_asking(), remade);
        if remade {
            rig.expect("u", &[], 1);
            rig.answers("lookup0:4161", &channels(&["b"]));
            rig.expect("u", &[("b", 1)], 0);
        } else {
            assert_eq!(rig.dial(), None);
        }
    }
}

#[test]
fn the_connection_to_a_removed_nsqlookupd_is_closed() {
    for (asks, other) in [(false, false), (false, true), (true, false), (true, true)] {
        let all = [Kind::At, Kind::At];
        let mut rig = Rig::new(if other { &all } else { &all[..1] });
        rig.publish("t").dials("lookup0:4161");
        if asks {
            rig.open();
        }
        // Other nsqlookupds are configured, or the nsqd stops.
        rig.lookupds = vec![Kind::Absent, Kind::At];
        assert_eq!(rig.link_after_tick(), Link::Close);
        rig.closed(Closed::Local);
        assert_eq!(rig.node.is_asking(), other);
        assert_eq!((rig.counts(), rig.node.poll_event()), ((0, 0, 0), None));
        if other {
            rig.answers("lookup1:4162", &channels(&["a"]));
            rig.expect("t", &[("a", 1)], 0);
        }
    }
}

#[test]
fn a_driver_that_is_dropped_and_runs_again_continues() {
    let mut rig = Rig::new(&[Kind::At, Kind::At]);
    rig.publish("t").dials("lookup0:4161");
    rig.open();
    rig.receive("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"chan").unwrap();
    rig.closed(Closed::Transport(TransportError::Other));
    rig.failed(0, Closed::Transport(TransportError::Other));
    rig.answers("lookup1:4162", &channels(&["a"]));
    rig.expect("t", &[("a", 1)], 0);
}

#[test]
fn a_topic_times_out_while_another_is_asked_for() {
    let mut rig = Rig::new(&[Kind::At, Kind::Coming]);
    rig.publish("t").answers("lookup0:4161", &channels(&["a"]));
    rig.expect("t", &[("a", 0)], 1);
    rig.at(WAIT - 1000).publish("u").dials("lookup0:4161");
    rig.open();
    // Half of `u`'s five seconds would end later than `t`'s time.
    assert_eq!(rig.deadline(), Instant::from_millis(1000 + WAIT));
    rig.at(WAIT);
    rig.expect("t", &[("a", 1)], 0);
    assert_eq!((rig.link(), rig.node.is_asking()), (Link::Up, true));
    rig.receive(channels(&["b"])).unwrap();
    rig.closed(Closed::Local);
    rig.expect("u", &[("b", 0)], 1);
    assert_eq!(rig.deadline(), Instant::from_millis(1000 + 2 * WAIT - 1000));
    rig.at(2 * WAIT - 1000);
    rig.expect("u", &[("b", 1)], 0);
}

#[test]
fn messages_wait_for_all_nsqlookupds() {
    let mut rig = Rig::new(&[Kind::At, Kind::At]);
    rig.publish("t");
    rig.node.create(rig.now, &topic("t"), Some(&channel("mine"))).unwrap();
    rig.answers("lookup0:4161", &channels(&["a"]));
    rig.publish("t");
    rig.expect("t", &[("a", 0), ("mine", 0)], 2);
    rig.answers("lookup1:4162", &channels(&[]));
    rig.expect("t", &[("a", 2), ("mine", 2)], 0);
}

#[test]
fn a_paused_topic_stays_paused_and_a_deferral_begins_when_it_flows() {
    let mut rig = Rig::new(&[Kind::At]);
    let defer = PublishOptions { defer: Some(Span::from_secs(2)) };
    rig.node.publish_with(rig.now, &topic("t"), b"later", defer).unwrap();
    rig.publish("t");
    rig.node.pause(rig.now, &topic("t"), None).unwrap();
    rig.at(1000).answers("lookup0:4161", &channels(&["a"]));
    rig.expect("t", &[("a", 0)], 2);
    rig.node.unpause(rig.now, &topic("t"), None).unwrap();
    rig.expect("t", &[("a", 1)], 0);
    rig.at(2999);
    rig.node.tick(rig.now);
    rig.expect("t", &[("a", 1)], 0);
    rig.at(3000);
    rig.node.tick(rig.now);
    rig.expect("t", &[("a", 2)], 0);
    // Unpausing does not release a topic that is held.
    rig.publish("u");
    rig.node.create(rig.now, &topic("u"), Some(&channel("c"))).unwrap();
    rig.node.unpause(rig.now, &topic("u"), None).unwrap();
    rig.expect("u", &[("c", 0)], 1);
}

#[test]
fn the_name_of_an_ephemeral_topic_is_percent_encoded() {
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t#ephemeral").dials("lookup0:4161");
    assert!(rig.open().starts_with("GET /channels?topic=t%23ephemeral HTTP/1.1\r\n"));
}

#[test]
fn a_saturated_clock_delays_without_errors() {
    let mut rig = Rig::new(&[Kind::At, Kind::At]);
    rig.now = Instant::from_micros(u64::MAX - 1);
    rig.publish("t").answers("lookup0:4161", &channels(&["a"]));
    rig.dials("lookup1:4162");
    assert_eq!(rig.deadline(), Instant::NEVER);
    rig.open();
    rig.receive(channels(&[])).unwrap();
    rig.expect("t", &[("a", 1)], 0);
    // A clock that jumps to its end ends the query.
    let mut rig = Rig::new(&[Kind::At, Kind::At]);
    rig.publish("t").dials("lookup0:4161");
    rig.open();
    rig.now = Instant::from_micros(u64::MAX - 1);
    rig.with_session(|session, now| session.tick(now));
    assert!(!rig.node.is_asking());
    // A clock that jumps back does not move the deadline.
    let mut rig = Rig::new(&[Kind::At]);
    rig.publish("t");
    rig.now = Instant::ZERO;
    rig.dials("lookup0:4161");
    assert_eq!(rig.deadline(), Instant::from_millis(1000 + WAIT));
}

#[test]
fn an_nsqlookupd_with_port_0_is_not_asked() {
    let mut rig = Rig::new(&[]);
    rig.publish("t");
    let host: Address = "lookup:4160".parse().unwrap();
    let lookupds = [Lookupd::At(&host, 0)];
    assert_eq!(rig.node.asking(&lookupds).unwrap().dial(rig.now), None);
    assert!(!rig.node.is_asking());
}
