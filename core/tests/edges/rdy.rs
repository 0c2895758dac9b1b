//! The RDY counts that a consumer sends to its nsqds.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Consumer, Storage};
use nanonsq_core::session::{Closed, Session};
use nanonsq_core::time::{Instant, Span};

use crate::consumer::{INFO, config};
use crate::{at, frame, message, written};

const CONNECTIONS: usize = 5;
const MESSAGES: usize = 16;
const NOW: Instant = at(1000);

fn connect(consumer: &mut Consumer<'_>, index: usize) {
    let mut session = consumer.connection(index).unwrap();
    assert!(session.dial(NOW).is_some());
    session.open(NOW);
    written(&mut session, NOW);
    for answer in [INFO, b"OK"] {
        session.receive(NOW, &frame(0, answer)).unwrap();
        written(&mut session, NOW);
    }
}

/// Runs `test` with a consumer that is connected to `nsqds` nsqds.
fn connected(nsqds: usize, test: impl FnOnce(&mut Consumer<'_>)) {
    let addresses: Vec<Address> =
        (0..nsqds).map(|at| format!("nsqd{at}:4150").parse().unwrap()).collect();
    let (mut storage, mut ring) = (Storage::<CONNECTIONS, MESSAGES>::new(), [0; MESSAGES * 64]);
    let config = config();
    let mut consumer = Consumer::new(&config, &mut storage, &addresses, &mut ring).unwrap();
    (0..nsqds).for_each(|index| connect(&mut consumer, index));
    test(&mut consumer);
}

/// Advances the time by a second, with a heartbeat of every nsqd.
fn pass(consumer: &mut Consumer<'_>, nsqds: usize, now: &mut Instant) {
    *now = now.after(Span::from_secs(1));
    for index in 0..nsqds {
        let mut session = consumer.connection(index).unwrap();
        if session.deadline() <= *now {
            session.tick(*now);
        }
        session.receive(*now, &frame(0, b"_heartbeat_")).unwrap();
    }
    for index in 0..nsqds {
        written(&mut consumer.connection(index).unwrap(), *now);
    }
}

/// Advances the time until lowered RDY counts were surely read by nsqd and raised elsewhere.
fn settle(consumer: &mut Consumer<'_>, nsqds: usize, now: &mut Instant) {
    (0..15).for_each(|_| pass(consumer, nsqds, now));
}

fn rdys(consumer: &Consumer<'_>, nsqds: usize) -> Vec<u16> {
    (0..nsqds).map(|index| consumer.status(index).unwrap().rdy).collect()
}

#[test]
fn the_rdy_counts_add_up_to_max_in_flight() {
    for nsqds in 1..=CONNECTIONS {
        connected(nsqds, |consumer| {
            let mut now = NOW;
            for max in (0..=20).chain((0..20).rev()) {
                consumer.set_max_in_flight(now, max);
                let all = max.min(MESSAGES as u16);
                settle(consumer, nsqds, &mut now);
                // With less than one each, nsqds get RDY 1 in turn, with gaps while it moves.
                let mut most = 0;
                for _ in 0..if usize::from(max) < nsqds { 9 } else { 1 } {
                    pass(consumer, nsqds, &mut now);
                    let rdys = rdys(consumer, nsqds);
                    most = most.max(rdys.iter().sum::<u16>());
                    let (least, largest) = (rdys.iter().min().unwrap(), rdys.iter().max().unwrap());
                    assert!(largest - least <= 1, "{rdys:?} of {max}");
                }
                assert_eq!(most, all, "of {nsqds}");
            }
        });
    }
}

#[test]
fn the_rdy_count_of_a_lost_connection_goes_to_the_others() {
    connected(CONNECTIONS, |consumer| {
        let mut now = NOW;
        for left in (1..CONNECTIONS).rev() {
            consumer.connection(left).unwrap().closed(now, Closed::Peer);
            settle(consumer, left, &mut now);
            let rdys = rdys(consumer, left);
            assert_eq!(rdys.iter().sum::<u16>(), MESSAGES as u16, "{rdys:?}");
        }
    });
}

#[test]
fn with_max_in_flight_below_the_connections_each_gets_rdy_in_turn() {
    connected(CONNECTIONS, |consumer| {
        let mut now = NOW;
        consumer.set_max_in_flight(now, 2);
        settle(consumer, CONNECTIONS, &mut now);
        let mut turns = [0; CONNECTIONS];
        for _ in 0..300 {
            pass(consumer, CONNECTIONS, &mut now);
            let rdys = rdys(consumer, CONNECTIONS);
            assert!(rdys.iter().sum::<u16>() <= 2, "{rdys:?}");
            for (turns, rdy) in turns.iter_mut().zip(rdys) {
                *turns += rdy;
            }
        }
        assert!(turns.iter().all(|&turns| turns >= 60), "{turns:?}");
        assert!(turns.iter().sum::<u16>() >= 500, "{turns:?}");
    });
}

#[test]
fn a_reused_storage_keeps_nothing() {
    let addresses: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let (mut storage, mut ring) = (Storage::<1, 4>::new(), [0; 4 * 64]);
    let config = config();
    let mut token = None;
    for _ in 0..3 {
        let mut consumer = Consumer::new(&config, &mut storage, &addresses, &mut ring).unwrap();
        assert!(token.is_none_or(|token| consumer.message(token).is_none()));
        assert_eq!((consumer.waiting(), rdys(&consumer, 1)), (0, vec![0]));
        assert!(!consumer.is_paused());
        connect(&mut consumer, 0);
        let mut session = consumer.connection(0).unwrap();
        session.receive(NOW, &message(1, b"body")).unwrap();
        token = consumer.take(NOW).map(|delivery| delivery.token);
        assert!(token.is_some());
        consumer.pause(NOW);
        assert!(consumer.is_paused());
        consumer.resume(NOW);
        assert!(!consumer.is_paused());
        consumer.pause(NOW);
    }
}
