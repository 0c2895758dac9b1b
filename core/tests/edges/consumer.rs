//! A consumer's connections: responses at the wrong moment, the shortest messages.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, Consumer, Storage};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{
    Awaited, Closed, DialError, Fault, Link, LinkState, Session, TransportError,
};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::DecodeError;
use nanonsq_core::wire::nsqd::ErrorCode;

use crate::{at, frame, message, written};

const NOW: Instant = at(1000);
pub(crate) const INFO: &[u8] =
    b"{\"max_rdy_count\":2500,\"msg_timeout\":60000,\"max_msg_timeout\":900000}";

pub(crate) fn config() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(60),
        ..Config::new(TopicName::new("t").unwrap(), ChannelName::new("c").unwrap())
    }
}

/// Runs `test` with a consumer whose one connection is open and has sent nothing yet.
fn open(config: &Config<'_>, test: impl FnOnce(&mut Consumer<'_>)) {
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let (mut storage, mut ring) = (Storage::<1, 4>::new(), [0; 4 * 64]);
    let mut consumer = Consumer::new(config, &mut storage, &nsqds, &mut ring).unwrap();
    let mut session = consumer.connection(0).unwrap();
    assert!(session.dial(NOW).is_some());
    session.open(NOW);
    test(&mut consumer);
}

fn sent(consumer: &mut Consumer<'_>) -> String {
    let bytes = written(&mut consumer.connection(0).unwrap(), NOW);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn receive(consumer: &mut Consumer<'_>, bytes: &[u8]) -> Result<(), Fault> {
    consumer.connection(0).unwrap().receive(NOW, bytes)
}

/// Runs `test` with a consumer that has subscribed and sent RDY.
fn ready(config: &Config<'_>, test: impl FnOnce(&mut Consumer<'_>)) {
    open(config, |consumer| {
        assert!(sent(consumer).contains("IDENTIFY"));
        receive(consumer, &frame(0, INFO)).unwrap();
        assert_eq!(sent(consumer), "SUB t c\n");
        receive(consumer, &frame(0, b"OK")).unwrap();
        assert_eq!(sent(consumer), "RDY 4\n");
        test(consumer);
    });
}

#[test]
fn a_response_to_an_unfinished_command_is_unexpected() {
    let mut all = 0;
    open(&config(), |consumer| all = sent(consumer).len());
    for len in 0..=all {
        open(&config(), |consumer| {
            let mut session = consumer.connection(0).unwrap();
            let mut left = len;
            while left > 0 {
                let n = session.transmit(NOW).len().min(left);
                session.sent(NOW, n);
                left -= n;
            }
            let received = receive(consumer, &frame(0, INFO));
            let expected = if len < all { Err(Fault::UnexpectedReply) } else { Ok(()) };
            assert_eq!(received, expected, "{len} of {all} bytes");
        });
    }
    // SUB: no byte written, then half of it.
    for len in [0, 4] {
        open(&config(), |consumer| {
            sent(consumer);
            receive(consumer, &frame(0, INFO)).unwrap();
            let mut session = consumer.connection(0).unwrap();
            assert_eq!(session.transmit(NOW).len(), 8);
            session.sent(NOW, len);
            assert_eq!(receive(consumer, &frame(0, b"OK")), Err(Fault::UnexpectedReply));
        });
    }
    let secret = Config { auth_secret: Some(b"secret"), ..config() };
    for len in [0, 7] {
        open(&secret, |consumer| {
            sent(consumer);
            receive(consumer, &frame(0, b"{\"auth_required\":true}")).unwrap();
            let mut session = consumer.connection(0).unwrap();
            assert!(session.transmit(NOW).len() > len);
            session.sent(NOW, len);
            assert_eq!(receive(consumer, &frame(0, b"{}")), Err(Fault::UnexpectedReply));
        });
    }
}

#[test]
fn sub_is_answered_with_ok_and_nothing_else() {
    open(&config(), |consumer| {
        sent(consumer);
        receive(consumer, &frame(0, INFO)).unwrap();
        sent(consumer);
        assert_eq!(receive(consumer, &frame(0, b"OX")), Err(Fault::UnexpectedReply));
    });
}

#[test]
fn cls_is_answered_with_close_wait_and_nothing_else() {
    for (answer, right) in [(&b"CLOSE_WAIT"[..], true), (b"OK", false), (b"CLOSE_WAI", false)] {
        ready(&config(), |consumer| {
            receive(consumer, &message(1, b"x")).unwrap();
            let token = consumer.take(NOW).unwrap().token;
            consumer.stop();
            // CLS is sent.
            assert!(sent(consumer).ends_with("CLS\n"));
            let received = receive(consumer, &frame(0, answer));
            assert_eq!(received.is_ok(), right, "{answer:?}");
            if right {
                // Only once.
                assert_eq!(receive(consumer, &frame(0, answer)), Err(Fault::UnexpectedReply));
                assert!(consumer.finish(NOW, token).is_err());
            }
        });
    }
    ready(&config(), |consumer| {
        receive(consumer, &message(1, b"x")).unwrap();
        consumer.take(NOW).unwrap();
        consumer.stop();
        assert_eq!(receive(consumer, &frame(0, b"CLOSE_WAIT")), Err(Fault::UnexpectedReply));
    });
}

/// After the subscription, the same error only means that an answer was late.
#[test]
fn an_error_before_the_subscription_ends_the_connection() {
    let late = frame(1, b"E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight");
    let refused = Fault::Refused(ErrorCode::Fin);
    open(&config(), |consumer| {
        sent(consumer);
        assert_eq!(receive(consumer, &late), Err(refused));
    });
    open(&config(), |consumer| {
        sent(consumer);
        receive(consumer, &frame(0, INFO)).unwrap();
        sent(consumer);
        assert_eq!(receive(consumer, &late), Err(refused));
    });
    ready(&config(), |consumer| {
        assert_eq!(receive(consumer, &late), Ok(()));
        assert_eq!(consumer.counters().refused, 1);
    });
    open(&config(), |consumer| {
        sent(consumer);
        assert_eq!(receive(consumer, &message(1, b"x")), Err(Fault::UnexpectedReply));
    });
}

#[test]
fn the_shortest_message_has_a_head_and_no_body() {
    ready(&config(), |consumer| {
        receive(consumer, &message(1, b"")).unwrap();
        let token = consumer.take(NOW).unwrap().token;
        assert_eq!(consumer.message(token).unwrap().body, b"");
        let short = frame(2, &[0; 25]);
        assert_eq!(
            receive(consumer, &short),
            Err(Fault::Decode(DecodeError::ShortMessage { len: 25 }))
        );
    });
}

#[test]
fn a_failed_dial_is_repeated_after_a_backoff() {
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let config = config();
    let (mut storage, mut ring) = (Storage::<1, 4>::new(), [0; 4 * 64]);
    let mut consumer = Consumer::new(&config, &mut storage, &nsqds, &mut ring).unwrap();
    let mut session = consumer.connection(0).unwrap();
    // Without a connection, `closed` has no effect.
    session.closed(NOW, Closed::Peer);
    assert!(session.dial(NOW).is_some());
    assert!(session.dial(NOW).is_none(), "the dial is under way");
    session.closed(NOW, Closed::Dial(DialError::Refused));
    let again = session.deadline();
    assert!(again > NOW && again < Instant::NEVER);
    assert!(session.dial(at(again.as_micros() / 1000 - 1)).is_none());
    // `closed` has no effect now either.
    session.closed(NOW, Closed::Peer);
    assert!(session.dial(again).is_some());
    assert_eq!(consumer.counters().failures, 1);
    assert_eq!(consumer.status(0).unwrap().state, LinkState::Dialing);
}

#[test]
fn a_fault_does_not_affect_the_next_connection() {
    ready(&config(), |consumer| {
        let fault = Fault::Decode(DecodeError::UnknownFrame { frame_type: 9 });
        assert_eq!(receive(consumer, &frame(9, b"x")), Err(fault));
        let mut session = consumer.connection(0).unwrap();
        assert_eq!(session.link(), Link::Close);
        session.closed(NOW, Closed::Transport(TransportError::Reset));
        // The first reason is kept.
        assert_eq!(consumer.status(0).unwrap().last, Some(Closed::Fault(fault)));
        let mut session = consumer.connection(0).unwrap();
        let again = session.deadline();
        assert!(session.dial(again).is_some());
        session.open(again);
        written(&mut session, again);
        assert_eq!(session.receive(again, &frame(0, INFO)), Ok(()));
        assert_eq!(session.receive(again, &frame(0, b"_heartbeat_")), Ok(()));
    });
}

#[test]
fn silence_ends_a_connection() {
    ready(&config(), |consumer| {
        let mut session = consumer.connection(0).unwrap();
        session.tick(at(120_999));
        assert_eq!(session.link(), Link::Up);
        session.tick(at(121_000));
        assert_eq!(session.link(), Link::Close);
        session.closed(at(121_000), Closed::Local);
        let due = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
        assert_eq!(consumer.status(0).unwrap().last, Some(due));
    });
}
