//! Runs every target's starting inputs, including the corpus, and some mutations with every
//! `cargo test`; `cargo xtask fuzz` continues from there.

use nanonsq_fuzz::mutate::{Random, mutate};
use nanonsq_fuzz::{TARGETS, take_features, target};

fn try_target(name: &str) {
    let target = target(name).expect("a target");
    let inputs = target.inputs();
    let mut random = Random::new(1);
    take_features();
    for input in &inputs {
        (target.run)(input);
    }
    // A target without features would not exercise its inputs.
    let features = take_features().len();
    assert!(features > 5, "{features} features");
    for at in 0..300 {
        let other = &inputs[random.below(inputs.len())];
        (target.run)(&mutate(&mut random, &inputs[at % inputs.len()], other, 400));
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            try_target(stringify!($name));
        })*

        #[test]
        fn each_target_is_here() {
            let here = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(here));
        }
    };
}

targets! {
    nsqd_frames
    nsqd_commands
    nsqlookupd_replies
    nsqlookupd_commands
    http_response
    json
    names
    outbox
    publisher
    registration
    registry
    consumer
    consumer_lookupd
    rdy
    http
    http_target
    nsqd
    nsqd_http
    nsqd_model
    nsqlookupd
    nsqlookupd_tcp
    nsqlookupd_http
    nsqlookupd_model
}
