//! The example over smoltcp.

#[path = "../examples/smoltcp.rs"]
#[allow(dead_code)]
mod example;

#[test]
fn messages_are_published_over_smoltcp() {
    let counters = example::publish(1000).unwrap();
    assert_eq!((counters.accepted, counters.acknowledged, counters.connections), (1000, 1000, 1));
}
