//! A closing link never goes up again: whatever a driver, a server, an application and the clock do
//! in whatever order, it stays [`Link::Close`] until the driver calls `closed`.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{self, Consumer, Discovery};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{self, ChannelQuery, Lookupd, Nsqd};
use nanonsq_core::publisher::{self, Publisher};
use nanonsq_core::registration::{self, NodeInfo, Registration};
use nanonsq_core::session::{Closed, Link, Session, TransportError};
use nanonsq_core::time::{Instant, Span};

#[path = "support/sessions.rs"]
mod sessions;
mod support;

use sessions::{frame, message, written};
use support::Random;

const NOW: Instant = Instant::from_millis(1000);

/// A session, bytes that its server may send, and actions of its application.
trait Party {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session));

    fn pieces(&self) -> Vec<Vec<u8>>;

    fn act(&mut self, now: Instant, act: usize);

    fn link(&mut self) -> Link {
        let mut link = Link::Down;
        self.with(&mut |session| link = session.link());
        link
    }

    /// Dials and opens the connection.
    fn open(&mut self) {
        self.dial();
        self.with(&mut |session| session.open(NOW));
    }

    fn dial(&mut self) {
        self.with(&mut |session| {
            session.tick(NOW);
            assert!(session.dial(NOW).is_some());
        });
    }

    fn send(&mut self) -> usize {
        let mut len = 0;
        self.with(&mut |session| len = written(session, NOW).len());
        len
    }

    /// Stages bytes that are not written.
    fn stage(&mut self) {
        self.with(&mut |session| assert!(!session.transmit(NOW).is_empty()));
    }

    /// Receives bytes of the server; a fault is ignored.
    fn receive(&mut self, bytes: &[u8]) {
        self.with(&mut |session| {
            let _ = session.receive(NOW, bytes);
        });
    }

    /// Advances the time from deadline to deadline until the link closes.
    fn time_out(&mut self) {
        for _ in 0..20 {
            self.with(&mut |session| {
                let deadline = session.deadline();
                assert_ne!(deadline, Instant::NEVER);
                session.tick(deadline);
            });
            if self.link() == Link::Close {
                return;
            }
        }
    }
}

/// Checks that the link of a party stays closing after `close`, for random calls.
fn stays_closed<P: Party>(case: &str, new: impl Fn() -> P, close: impl Fn(&mut P)) {
    for seed in 0..100 {
        let mut party = new();
        close(&mut party);
        settle(&mut party, NOW);
        assert_eq!(party.link(), Link::Close, "{case}");
        let pieces = party.pieces();
        let mut random = Random::new(seed);
        let mut below = |n: usize| random.below(n as u32) as usize;
        let mut now = NOW;
        for step in 0..60 {
            let call = below(10);
            let piece = &pieces[below(pieces.len())];
            let (one, two) = piece.split_at(below(piece.len() + 1));
            match call {
                0 => now = now.after(Span::from_millis(below(3000) as u32)),
                1 => party.act(now, below(8)),
                _ => party.with(&mut |session| match call {
                    2 => assert_eq!(session.dial(now), None, "{case}: {seed}.{step}"),
                    3 => session.open(now),
                    4 => session.tick(now),
                    5 => session.upgraded(now),
                    6 => {
                        let n = session.transmit(now).len();
                        session.sent(now, n.min(one.len()));
                    }
                    7 => assert_eq!(session.take(now, piece), piece.len()),
                    _ => {
                        assert_eq!(session.receive(now, one), Ok(()), "the bytes are ignored");
                        assert_eq!(session.receive(now, two), Ok(()), "the bytes are ignored");
                    }
                }),
            }
            assert_eq!(party.link(), Link::Close, "{case}: call {call} in {seed}.{step}");
        }
        party.with(&mut |session| session.closed(now, Closed::Local));
        assert_eq!(party.link(), Link::Down, "{case}");
    }
}

/// Calls the session as a driver does before it reads the link.
fn settle(party: &mut impl Party, now: Instant) {
    party.with(&mut |session| {
        let _ = session.transmit(now);
        if session.deadline() <= now {
            session.tick(now);
        }
    });
}

/// Leaks a value: a party has to own all its parts.
fn lend<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

fn addresses<const N: usize>(port: u16) -> [Address; N] {
    core::array::from_fn(|n| format!("host{n}:{port}").parse().unwrap())
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

const INFO: &[u8] = b"{\"max_rdy_count\":2500,\"msg_timeout\":60000,\"max_msg_timeout\":900000}";

/// Returns frames that an nsqd may send.
fn frames() -> Vec<Vec<u8>> {
    vec![
        frame(0, INFO),
        frame(0, b"OK"),
        frame(0, b"_heartbeat_"),
        frame(0, b"CLOSE_WAIT"),
        frame(1, b"E_INVALID"),
        frame(9, b"x"),
        message(1, b"body"),
    ]
}

struct Publishing(Publisher<'static>);

impl Party for Publishing {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut self.0);
    }

    fn pieces(&self) -> Vec<Vec<u8>> {
        frames()
    }

    fn act(&mut self, now: Instant, act: usize) {
        match act {
            0 => self.0.stop(now),
            _ => drop(self.0.publish(&topic("t"), b"body")),
        }
    }
}

fn publisher() -> Publishing {
    let (nsqds, ring) = (lend(addresses::<2>(4150)), lend([0; 512]));
    Publishing(Publisher::new(lend(publisher::Config::new()), nsqds, ring).unwrap())
}

#[test]
fn a_closing_publisher_stays_closing() {
    type P = Publishing;
    let ready = |p: &mut P| {
        p.open();
        p.send();
        p.receive(&frame(0, INFO));
        let _ = p.0.publish(&topic("t"), b"body").unwrap();
    };
    stays_closed("a fault", publisher, |p: &mut P| {
        ready(p);
        p.receive(&frame(9, b"x"));
    });
    stays_closed("a fault in the handshake", publisher, |p: &mut P| {
        p.open();
        p.receive(&frame(0, INFO));
    });
    stays_closed("a dial that takes too long", publisher, |p: &mut P| {
        p.dial();
        p.time_out();
    });
    stays_closed("silence", publisher, |p: &mut P| {
        ready(p);
        p.time_out();
    });
    stays_closed("stopped", publisher, |p: &mut P| {
        ready(p);
        p.stage();
        p.0.stop(NOW);
    });
    stays_closed("stopped while it dials", publisher, |p: &mut P| {
        p.dial();
        p.0.stop(NOW);
    });
}

/// A registration, of which peer 0 is tested.
struct Registering(Registration<'static, 2, 2, 2>);

impl Party for Registering {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut self.0.peer(0).unwrap());
    }

    fn pieces(&self) -> Vec<Vec<u8>> {
        let reply = |text: &[u8]| [&(text.len() as u32).to_be_bytes()[..], text].concat();
        vec![reply(b"{\"tcp_port\":4160}"), reply(b"OK"), reply(b"E_INVALID"), vec![0xff; 9]]
    }

    fn act(&mut self, now: Instant, act: usize) {
        let [one, two, _] = addresses::<3>(4160);
        match act {
            0 => self.0.stop(now),
            1 => self.0.configure(now, &[one, two]).unwrap(),
            2 => self.0.configure(now, &[two]).unwrap(),
            3 => self.0.configure(now, &[]).unwrap(),
            4 => drop(self.0.unregister(&topic("t"), None)),
            _ => drop(self.0.register(&topic("t"), None)),
        }
    }
}

fn registration() -> Registering {
    let config = lend(registration::Config::new(NodeInfo {
        broadcast_address: "node",
        hostname: "node",
        http_port: 4151,
        tcp_port: 4150,
        topology_region: "",
        topology_zone: "",
        version: "1.3.0",
    }));
    let mut registration = Registration::new(config).unwrap();
    registration.configure(NOW, &addresses::<1>(4160)).unwrap();
    registration.register(&topic("t"), None).unwrap();
    Registering(registration)
}

#[test]
fn a_closing_registration_stays_closing() {
    type P = Registering;
    let ready = |p: &mut P| {
        p.open();
        p.send();
        let identified = &p.pieces()[0];
        p.receive(identified);
    };
    stays_closed("a fault", registration, |p: &mut P| {
        ready(p);
        p.stage();
        p.receive(&[0xff; 9]);
    });
    stays_closed("a dial that takes too long", registration, |p: &mut P| {
        p.dial();
        p.time_out();
    });
    stays_closed("a handshake that hangs", registration, |p: &mut P| {
        p.open();
        p.time_out();
    });
    stays_closed("the nsqlookupd is removed", registration, |p: &mut P| {
        ready(p);
        p.stage();
        p.0.configure(NOW, &[]).unwrap();
    });
    stays_closed("the nsqlookupd is removed during the dial", registration, |p: &mut P| {
        p.dial();
        p.0.configure(NOW, &[]).unwrap();
    });
    stays_closed("stopped", registration, |p: &mut P| {
        ready(p);
        p.send();
        p.0.stop(NOW);
        p.time_out();
    });
}

/// A consumer, of which the query of an nsqlookupd or the connection to an nsqd is tested.
struct Consuming {
    consumer: Consumer<'static>,
    asks: bool,
}

const LIST: &str = "{\"producers\":[{\"broadcast_address\":\"a\",\"tcp_port\":4150}]}";
const OTHERS: &str = "{\"producers\":[{\"broadcast_address\":\"b\",\"tcp_port\":4150}]}";

fn http(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into()
}

impl Consuming {
    /// Runs a query whose answer changes the nsqds to connect to.
    fn ask(&mut self, now: Instant, body: &str) {
        let mut asking = self.consumer.lookupd(0).unwrap();
        if asking.dial(now.max(asking.deadline())).is_some() {
            asking.open(now);
            written(&mut asking, now);
            asking.receive(now, &http(body)).unwrap();
            asking.closed(now, Closed::Local);
        }
    }
}

impl Party for Consuming {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        match self.asks {
            true => f(&mut self.consumer.lookupd(0).unwrap()),
            false => f(&mut self.consumer.connection(0).unwrap()),
        }
    }

    fn pieces(&self) -> Vec<Vec<u8>> {
        if self.asks { vec![http(LIST), http(OTHERS), http("x")] } else { frames() }
    }

    fn act(&mut self, now: Instant, act: usize) {
        match act {
            0 => self.consumer.stop(),
            1 => self.consumer.pause(now),
            2 => self.consumer.resume(now),
            3 | 4 if self.asks => {
                let mut nsqd = self.consumer.connection(0).unwrap();
                nsqd.tick(now);
                let _ = nsqd.dial(now);
                nsqd.closed(now, Closed::Transport(TransportError::Reset));
            }
            3 => self.ask(now, LIST),
            4 => self.ask(now, OTHERS),
            _ => drop(self.consumer.take(now)),
        }
    }
}

/// Returns a consumer that knows one nsqd; if `asks`, one that has asked no nsqlookupd yet.
fn consumer(asks: bool) -> Consuming {
    let config = lend(consumer::Config {
        // The consumer leaves unlisted nsqds at once.
        grace: Span::ZERO,
        ..consumer::Config::new(topic("t"), ChannelName::new("c").unwrap())
    });
    let (storage, ring) = (lend(consumer::Storage::<1, 2>::new()), lend([0; 2 * 64]));
    let mut consumer = Consumer::new(config, storage, &[], ring).unwrap();
    let lookupds = lend(addresses::<1>(4161));
    consumer.discover(lend(Discovery::<1, 1>::new()), lookupds).unwrap();
    let mut party = Consuming { consumer, asks };
    if !asks {
        party.ask(Instant::ZERO, LIST);
    }
    party
}

#[test]
fn a_closing_consumer_stays_closing() {
    type P = Consuming;
    let identified = |p: &mut P| {
        p.open();
        p.send();
        p.receive(&frame(0, INFO));
    };
    let ready = |p: &mut P| {
        identified(p);
        assert_eq!(p.send(), "SUB t c\n".len());
        p.receive(&frame(0, b"OK"));
    };
    let gone = |p: &mut P| {
        // Another nsqd is listed instead, and after the grace time the slot is free.
        p.ask(NOW, OTHERS);
        settle(p, NOW);
    };
    stays_closed(
        "a fault",
        || consumer(false),
        |p: &mut P| {
            ready(p);
            p.receive(&frame(9, b"x"));
        },
    );
    stays_closed(
        "silence",
        || consumer(false),
        |p: &mut P| {
            ready(p);
            p.time_out();
        },
    );
    stays_closed(
        "a dial to an unlisted nsqd",
        || consumer(false),
        |p: &mut P| {
            p.dial();
            gone(p);
        },
    );
    stays_closed(
        "a connection to an unlisted nsqd, IDENTIFY half written",
        || consumer(false),
        |p| {
            p.open();
            p.stage();
            gone(p);
        },
    );
    stays_closed(
        "an identified connection to an unlisted nsqd",
        || consumer(false),
        |p| {
            identified(p);
            gone(p);
        },
    );
    stays_closed(
        "stopped while it subscribes",
        || consumer(false),
        |p| {
            identified(p);
            p.stage();
            p.consumer.stop();
        },
    );
    stays_closed(
        "left",
        || consumer(false),
        |p: &mut P| {
            ready(p);
            p.send();
            gone(p);
            assert_eq!(p.link(), Link::Up, "CLS is sent first");
            p.send();
            p.receive(&frame(0, b"CLOSE_WAIT"));
        },
    );
}

#[test]
fn a_closing_query_of_a_consumer_stays_closing() {
    type P = Consuming;
    stays_closed(
        "answered",
        || consumer(true),
        |p: &mut P| {
            p.open();
            p.send();
            p.receive(&http(LIST));
        },
    );
    stays_closed(
        "answered before the request",
        || consumer(true),
        |p: &mut P| {
            p.open();
            p.stage();
            p.receive(&http(LIST));
        },
    );
    stays_closed(
        "a fault",
        || consumer(true),
        |p: &mut P| {
            p.open();
            p.receive(&http("x"));
        },
    );
    stays_closed(
        "no answer",
        || consumer(true),
        |p: &mut P| {
            p.open();
            p.time_out();
        },
    );
    stays_closed(
        "stopped while it dials",
        || consumer(true),
        |p: &mut P| {
            p.dial();
            p.consumer.stop();
        },
    );
    stays_closed(
        "stopped during the query",
        || consumer(true),
        |p: &mut P| {
            p.open();
            p.stage();
            p.consumer.stop();
        },
    );
}

/// An nsqd that asks for the channels of new topics, and whether the nsqlookupd is reachable.
struct Asking {
    node: Nsqd<'static>,
    host: Address,
    is_there: bool,
}

impl Party for Asking {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        let lookupd = if self.is_there { Lookupd::At(&self.host, 4161) } else { Lookupd::Absent };
        f(&mut self.node.asking(&[lookupd]).unwrap());
    }

    fn pieces(&self) -> Vec<Vec<u8>> {
        vec![http("{\"channels\":[\"c\"]}"), http("{\"channels\":[]}"), http("x")]
    }

    fn act(&mut self, now: Instant, act: usize) {
        match act {
            0 => self.is_there = false,
            1 => self.is_there = true,
            2 => drop(self.node.delete(now, &topic("t"), None)),
            n => drop(self.node.publish(now, &topic(["t", "u"][n % 2]), b"body")),
        }
    }
}

fn asking() -> Asking {
    let storage = lend(nsqd::Storage::<3, 4, 1, 4>::new());
    let mut node = Nsqd::new(lend(nsqd::Config::new()), storage, lend([0; 4096])).unwrap();
    node.ask_lookupds(lend(ChannelQuery::new()));
    node.publish(NOW, &topic("t"), b"body").unwrap();
    let [host] = addresses(4160);
    Asking { node, host, is_there: true }
}

#[test]
fn a_closing_query_of_an_nsqd_stays_closing() {
    type P = Asking;
    stays_closed("answered", asking, |p: &mut P| {
        p.open();
        p.send();
        p.receive(&http("{\"channels\":[\"c\"]}"));
    });
    stays_closed("a fault", asking, |p: &mut P| {
        p.open();
        p.receive(&http("x"));
    });
    stays_closed("no answer", asking, |p: &mut P| {
        p.open();
        p.time_out();
    });
    stays_closed("the topic is deleted during the dial", asking, |p: &mut P| {
        p.dial();
        p.node.delete(NOW, &topic("t"), None).unwrap();
    });
    stays_closed("the topic is deleted during the query", asking, |p: &mut P| {
        p.open();
        p.stage();
        p.node.delete(NOW, &topic("t"), None).unwrap();
    });
    stays_closed("the nsqlookupd is removed", asking, |p: &mut P| {
        p.open();
        p.stage();
        p.is_there = false;
    });
}
