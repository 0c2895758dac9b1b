//! A consumer's connections: answers at the wrong moment, messages of the shortest kind.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, Consumer, Storage};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{
    Awaited, Closed, DialError, Fault, Link, LinkState, Session, TransportError,
};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::DecodeError;
use nanonsq_core::wire::nsqd::ErrorCode;

use crate::{at, frame, message, said};

const NOW: Instant = at(1000);
pub(crate) const INFO: &[u8] =
    b"{\"max_rdy_count\":2500,\"msg_timeout\":60000,\"max_msg_timeout\":900000}";

pub(crate) fn config() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(60),
        ..Config::new(TopicName::new("t").unwrap(), ChannelName::new("c").unwrap())
    }
}

/// Runs `test` with a consumer whose one connection is open and has said nothing yet.
fn open(config: &Config<'_>, test: impl FnOnce(&mut Consumer<'_>)) {
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let (mut storage, mut ring) = (Storage::<1, 4>::new(), [0; 4 * 64]);
    let mut consumer = Consumer::new(config, &mut storage, &nsqds, &mut ring).unwrap();
    let mut session = consumer.connection(0).unwrap();
    assert!(session.dial(NOW).is_some());
    session.open(NOW);
    test(&mut consumer);
}

fn says(consumer: &mut Consumer<'_>) -> String {
    let bytes = said(&mut consumer.connection(0).unwrap(), NOW);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hears(consumer: &mut Consumer<'_>, bytes: &[u8]) -> Result<(), Fault> {
    consumer.connection(0).unwrap().receive(NOW, bytes)
}

/// Runs `test` with one that has subscribed and said RDY.
fn ready(config: &Config<'_>, test: impl FnOnce(&mut Consumer<'_>)) {
    open(config, |consumer| {
        assert!(says(consumer).contains("IDENTIFY"));
        hears(consumer, &frame(0, INFO)).unwrap();
        assert_eq!(says(consumer), "SUB t c\n");
        hears(consumer, &frame(0, b"OK")).unwrap();
        assert_eq!(says(consumer), "RDY 4\n");
        test(consumer);
    });
}

#[test]
fn an_answer_to_half_a_question_is_none() {
    let mut all = 0;
    open(&config(), |consumer| all = says(consumer).len());
    for len in 0..=all {
        open(&config(), |consumer| {
            let mut session = consumer.connection(0).unwrap();
            let mut left = len;
            while left > 0 {
                let n = session.transmit(NOW).len().min(left);
                session.sent(NOW, n);
                left -= n;
            }
            let heard = hears(consumer, &frame(0, INFO));
            let wanted = if len < all { Err(Fault::UnexpectedReply) } else { Ok(()) };
            assert_eq!(heard, wanted, "{len} of {all} bytes");
        });
    }
    // SUB: nothing, then half of it.
    for len in [0, 4] {
        open(&config(), |consumer| {
            says(consumer);
            hears(consumer, &frame(0, INFO)).unwrap();
            let mut session = consumer.connection(0).unwrap();
            assert_eq!(session.transmit(NOW).len(), 8);
            session.sent(NOW, len);
            assert_eq!(hears(consumer, &frame(0, b"OK")), Err(Fault::UnexpectedReply));
        });
    }
    let secret = Config { auth_secret: Some(b"secret"), ..config() };
    for len in [0, 7] {
        open(&secret, |consumer| {
            says(consumer);
            hears(consumer, &frame(0, b"{\"auth_required\":true}")).unwrap();
            let mut session = consumer.connection(0).unwrap();
            assert!(session.transmit(NOW).len() > len);
            session.sent(NOW, len);
            assert_eq!(hears(consumer, &frame(0, b"{}")), Err(Fault::UnexpectedReply));
        });
    }
}

#[test]
fn sub_is_answered_with_ok_and_nothing_else() {
    open(&config(), |consumer| {
        says(consumer);
        hears(consumer, &frame(0, INFO)).unwrap();
        says(consumer);
        assert_eq!(hears(consumer, &frame(0, b"OX")), Err(Fault::UnexpectedReply));
    });
}

#[test]
fn cls_is_answered_with_close_wait_and_nothing_else() {
    for (answer, right) in [(&b"CLOSE_WAIT"[..], true), (b"OK", false), (b"CLOSE_WAI", false)] {
        ready(&config(), |consumer| {
            hears(consumer, &message(1, b"x")).unwrap();
            let token = consumer.take(NOW).unwrap().token;
            consumer.stop();
            // Not before it was asked for.
            assert!(says(consumer).ends_with("CLS\n"));
            let heard = hears(consumer, &frame(0, answer));
            assert_eq!(heard.is_ok(), right, "{answer:?}");
            if right {
                // Once.
                assert_eq!(hears(consumer, &frame(0, answer)), Err(Fault::UnexpectedReply));
                assert!(consumer.finish(NOW, token).is_err());
            }
        });
    }
    ready(&config(), |consumer| {
        hears(consumer, &message(1, b"x")).unwrap();
        consumer.take(NOW).unwrap();
        consumer.stop();
        assert_eq!(hears(consumer, &frame(0, b"CLOSE_WAIT")), Err(Fault::UnexpectedReply));
    });
}

/// Afterwards it is only an answer that came too late.
#[test]
fn an_error_before_the_subscription_is_final() {
    let late = frame(1, b"E_FIN_FAILED FIN 0123456789abcdef failed ID not in flight");
    let refused = Fault::Refused(ErrorCode::Fin);
    open(&config(), |consumer| {
        says(consumer);
        assert_eq!(hears(consumer, &late), Err(refused));
    });
    open(&config(), |consumer| {
        says(consumer);
        hears(consumer, &frame(0, INFO)).unwrap();
        says(consumer);
        assert_eq!(hears(consumer, &late), Err(refused));
    });
    ready(&config(), |consumer| {
        assert_eq!(hears(consumer, &late), Ok(()));
        assert_eq!(consumer.counters().refused, 1);
    });
    open(&config(), |consumer| {
        says(consumer);
        assert_eq!(hears(consumer, &message(1, b"x")), Err(Fault::UnexpectedReply));
    });
}

#[test]
fn the_shortest_message_has_a_head_and_no_body() {
    ready(&config(), |consumer| {
        hears(consumer, &message(1, b"")).unwrap();
        let token = consumer.take(NOW).unwrap().token;
        assert_eq!(consumer.message(token).unwrap().body, b"");
        let short = frame(2, &[0; 25]);
        assert_eq!(
            hears(consumer, &short),
            Err(Fault::Decode(DecodeError::ShortMessage { len: 25 }))
        );
    });
}

#[test]
fn who_did_not_come_up_is_dialed_again_after_a_while() {
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let config = config();
    let (mut storage, mut ring) = (Storage::<1, 4>::new(), [0; 4 * 64]);
    let mut consumer = Consumer::new(&config, &mut storage, &nsqds, &mut ring).unwrap();
    let mut session = consumer.connection(0).unwrap();
    // Nothing there is to be closed yet.
    session.closed(NOW, Closed::Peer);
    assert!(session.dial(NOW).is_some());
    assert!(session.dial(NOW).is_none(), "it is under way");
    session.closed(NOW, Closed::Dial(DialError::Refused));
    let again = session.deadline();
    assert!(again > NOW && again < Instant::NEVER);
    assert!(session.dial(at(again.as_micros() / 1000 - 1)).is_none());
    // Nor now.
    session.closed(NOW, Closed::Peer);
    assert!(session.dial(again).is_some());
    assert_eq!(consumer.counters().failures, 1);
    assert_eq!(consumer.status(0).unwrap().state, LinkState::Dialing);
}

#[test]
fn what_was_wrong_with_one_connection_is_forgotten_with_the_next() {
    ready(&config(), |consumer| {
        let fault = Fault::Decode(DecodeError::UnknownFrame { frame_type: 9 });
        assert_eq!(hears(consumer, &frame(9, b"x")), Err(fault));
        let mut session = consumer.connection(0).unwrap();
        assert_eq!(session.link(), Link::Close);
        session.closed(NOW, Closed::Transport(TransportError::Reset));
        // The first reason is the better one.
        assert_eq!(consumer.status(0).unwrap().last, Some(Closed::Fault(fault)));
        let mut session = consumer.connection(0).unwrap();
        let again = session.deadline();
        assert!(session.dial(again).is_some());
        session.open(again);
        said(&mut session, again);
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
