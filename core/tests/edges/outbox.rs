//! The outbox at its bounds.

use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::outbox::{HEADER_OVERHEAD, Outbox, PushError, RECORD_OVERHEAD};
use nanonsq_core::time::Instant;

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

#[test]
fn a_message_fills_the_outbox_to_the_last_byte_and_no_further() {
    let overhead = HEADER_OVERHEAD + 1 + RECORD_OVERHEAD;
    let mut ring = [0; 64];
    let mut outbox = Outbox::new(&mut ring);
    let longest = 64 - overhead;
    assert_eq!(
        outbox.push(&topic(), &[0; 64], None, Instant::NEVER),
        Err(PushError::TooLarge { max: longest })
    );
    assert!(outbox.push(&topic(), &vec![0; longest + 1], None, Instant::NEVER).is_err());
    assert_eq!(outbox.used(), 0, "a refusal changes nothing");
    outbox.push(&topic(), &vec![0; longest], None, Instant::NEVER).unwrap();
    assert_eq!(outbox.free(), 0);
    assert_eq!(outbox.push(&topic(), &[0], None, Instant::NEVER), Err(PushError::Full));
    assert_eq!((outbox.used(), outbox.messages()), (64, 1));
}

#[test]
fn consecutive_messages_of_a_topic_share_a_header() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    let mut push = |name: &str| {
        let before = outbox.used();
        outbox.push(&TopicName::new(name).unwrap(), &[1], None, Instant::NEVER).unwrap();
        outbox.used() - before
    };
    let header = HEADER_OVERHEAD + 1;
    assert_eq!(
        [push("a"), push("a"), push("b"), push("a")],
        [header + 5, 5, header + 5, header + 5]
    );
}

#[test]
fn an_emptied_outbox_starts_at_the_front_again() {
    let mut ring = [0; 100];
    let mut outbox = Outbox::new(&mut ring);
    for n in 0..50 {
        outbox.push(&topic(), &[n; 30], None, Instant::NEVER).unwrap();
        let batch = outbox.next_batch(9, 999).unwrap();
        assert_eq!(outbox.bytes(batch.index(), 34).len(), 34, "the message is contiguous");
        outbox.resolve(&batch.into());
    }
}

#[test]
fn an_empty_ring_rejects_messages_without_a_panic() {
    let mut outbox = Outbox::new(&mut []);
    assert_eq!(
        outbox.push(&topic(), &[0], None, Instant::NEVER),
        Err(PushError::TooLarge { max: 0 })
    );
    assert_eq!(outbox.next_batch(1, 1), None);
    outbox.rewind();
    assert_eq!(outbox.drop_oldest(), None);
}
