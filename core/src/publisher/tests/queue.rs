//! Pending messages: how many fit, and how long they may wait.

use super::*;

#[test]
fn full_refuses_at_once_and_changes_nothing() {
    rig!(rig, Config::new(), 100, ["one:4150"]);
    let mut taken = 0;
    while rig.publisher.publish(&topic(T), &[0; 10]).is_ok() {
        taken += 1;
    }
    let before = (rig.publisher.outbox_used(), rig.publisher.counters());
    assert_eq!(rig.publisher.publish(&topic(T), &[0; 10]), Err(PublishError::Full));
    let after = rig.publisher.counters();
    assert_eq!((before.1.accepted, before.1.pending), (taken, taken));
    assert_eq!(before.0, rig.publisher.outbox_used());
    assert_eq!(after, Counters { refused: before.1.refused + 1, ..before.1 });
    rig.connect();
    rig.written();
    rig.receive(OK);
    assert!(rig.publisher.publish(&topic(T), &[0; 10]).is_ok(), "room again");
}

#[test]
fn drop_oldest_drops_counts_and_reports_but_never_messages_in_flight() {
    rig!(rig, Config { full: Full::DropOldest, ..Config::new() }, 100, ["one:4150"]);
    for n in 10..30 {
        let _ = rig.publish(&n.to_string());
    }
    let counters = rig.publisher.counters();
    assert_eq!(counters.accepted, 20);
    assert_eq!((counters.dropped + counters.pending, counters.refused), (20, 0));
    assert!(counters.dropped > 0);
    assert_eq!(rig.outcome(Ticket(0)), Some(Outcome::Dropped));
    assert_eq!(rig.outcome(Ticket(19)), None);
    rig.connect();
    rig.written();
    // All messages are in flight now.
    let refused = core::iter::repeat_with(|| rig.publisher.publish(&topic(T), &[0; 30]))
        .take(5)
        .filter(|taken| *taken == Err(PublishError::Full))
        .count();
    assert!(refused >= 4);
    assert_eq!(rig.publisher.counters().dropped, counters.dropped);
    let events = rig.events();
    let failed: u32 = events
        .iter()
        .map(|event| match event {
            Event::Failed { count, outcome: Outcome::Dropped, .. } => *count,
            _ => 0,
        })
        .sum();
    assert_eq!(u64::from(failed), counters.dropped);
}

#[test]
fn a_deadline_expires_messages_that_were_not_sent() {
    rig!(rig);
    let kept = rig.publish("kept");
    let ticket = with_deadline(&mut rig, 1000);
    rig.wait(999);
    assert_eq!(rig.outcome(ticket), None);
    rig.wait(133);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired), "at most 131 ms late");
    rig.connect();
    rig.expect(pub_one("kept"));
    rig.receive(OK);
    assert_eq!(rig.outcome(kept), Some(Outcome::Acknowledged));
    let counters = rig.publisher.counters();
    assert_eq!((counters.expired, counters.pending, counters.late), (1, 0, 0));
    assert_eq!(rig.publisher.outbox_used(), 0);
}

#[test]
fn a_message_that_expires_in_flight_is_reported_then_and_its_late_response_counted() {
    rig!(rig);
    rig.connect();
    let ticket = with_deadline(&mut rig, 1000);
    rig.written();
    rig.wait(1200);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired));
    rig.receive(OK);
    let counters = rig.publisher.counters();
    assert_eq!((counters.expired, counters.late, counters.acknowledged), (1, 1, 0));
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired));
}

#[test]
fn a_message_that_expired_in_flight_is_not_sent_again() {
    rig!(rig);
    rig.connect();
    let _ = with_deadline(&mut rig, 1000);
    rig.written();
    rig.wait(1200);
    rig.reconnect();
    rig.expect("");
    assert_eq!(rig.publisher.outbox_used(), 0);
}
