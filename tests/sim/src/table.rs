//! Which pairs of state and event were exercised.

use std::fmt::Write as _;

use crate::watch::{BUSY, Coverage, Event, HTTP, Kind, LOOKUPD, MACHINES, NODE, PRODUCER};

/// The tables, for a person to read.
pub fn text(coverage: &Coverage) -> String {
    let mut text = String::new();
    for (kind, machine) in MACHINES.iter().enumerate() {
        let _ = write!(text, "\n{:<14}", machine.name);
        for state in machine.states {
            let _ = write!(text, "{state:>15}");
        }
        for event in Event::ALL {
            let _ = write!(text, "\n{:<14}", format!("{event:?}"));
            for state in 0..machine.states.len() {
                match coverage.events(kind, state, event) {
                    0 => text.push_str("              ."),
                    n => drop(write!(text, "{n:>15}")),
                }
            }
        }
        text.push('\n');
        for (from, old) in machine.states.iter().enumerate() {
            for (to, new) in machine.states.iter().enumerate() {
                match coverage.changes(kind, from, to) {
                    0 => {}
                    n => drop(writeln!(text, "{:<32}{n:>12}", format!("{old} -> {new}"))),
                }
            }
        }
    }
    let _ = writeln!(text);
    for (what, n) in coverage.counts() {
        let _ = writeln!(text, "{what:<22}{n:>12}");
    }
    text
}

/// From so many seeds on, everything that is possible has happened, but what is rare.
const ENOUGH: u64 = 20_000;
/// From so many on, that has as well.
const PLENTY: u64 = 1_000_000;

const PUBLISHER: Kind = 0;
const PEER: Kind = 1;
const CONSUMER: Kind = 2;

/// What comes from a transport. [`Event::Closed`] is apart: the driver tells the session first and
/// drops the transport then.
const TRANSPORT: &[Event] = &[
    Event::Wrote,
    Event::WrotePart,
    Event::Blocked,
    Event::WriteError,
    Event::ReadError,
    Event::End,
    Event::Identified,
    Event::Authorized,
    Event::Ok,
    Event::Heartbeat,
    Event::Refusal,
    Event::Message,
    Event::CloseWait,
    Event::Late,
    Event::Part,
    Event::Lie,
];

/// What clients hear, each with its kind.
const ANSWERS: &[Event] = &[
    Event::Identified,
    Event::Authorized,
    Event::Ok,
    Event::Heartbeat,
    Event::Refusal,
    Event::Message,
    Event::CloseWait,
    Event::Late,
    Event::Part,
    Event::Lie,
];

/// What comes from the transport of a connection that was accepted.
const SERVED: &[Event] = &[
    Event::Wrote,
    Event::WrotePart,
    Event::Blocked,
    Event::WriteError,
    Event::ReadError,
    Event::End,
    Event::Heard,
];

/// What cannot happen: the machine, its states, the events, and why.
const IMPOSSIBLE: &[(Kind, &[&str], &[Event], &str)] = {
    use Event::*;
    const DOWN: &[&str] = &["Waiting", "Dialing", "Idle"];
    const ALL: &[&str] = &[];
    &[
        (PUBLISHER, ALL, &[Configure], "a publisher's nsqds are given once"),
        (PUBLISHER, ALL, &[Message, CloseWait, Late], "it does not subscribe"),
        (PUBLISHER, DOWN, TRANSPORT, "there is no transport"),
        (
            PUBLISHER,
            &["Dialing"],
            &[Closed],
            "a transport that comes up is opened or the dial over",
        ),
        (PUBLISHER, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (
            PUBLISHER,
            &["Identifying", "Authenticating", "Ready", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (PUBLISHER, &["Identifying"], &[Authorized, Ok], "nsqd answers what it was asked"),
        (PUBLISHER, &["Authenticating"], &[Identified, Ok], "nsqd answers what it was asked"),
        (PUBLISHER, &["Ready"], &[Identified, Authorized], "nsqd answers what it was asked"),
        (PEER, ALL, &[Authorized, Heartbeat, Message, CloseWait, Late], "V1 has none"),
        (PEER, DOWN, TRANSPORT, "there is no transport"),
        (PEER, &["Dialing"], &[Closed], "a transport that comes up is opened or the dial over"),
        (PEER, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (
            PEER,
            &["Identifying", "Ready", "Leaving", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (PEER, &["Identifying"], &[Ok], "nsqlookupd answers what it was asked"),
        (PEER, &["Ready", "Leaving"], &[Identified], "nsqlookupd answers what it was asked"),
        (PEER, &["Ready", "Leaving"], &[Refusal], "nsqlookupd has nothing to refuse"),
        (CONSUMER, ALL, &[Configure], "a consumer's nsqds are given once, or found"),
        (CONSUMER, DOWN, TRANSPORT, "there is no transport"),
        (CONSUMER, &["Dialing"], &[Closed], "a transport that comes up is opened or the dial over"),
        (CONSUMER, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (
            CONSUMER,
            &[
                "Identifying",
                "Authenticating",
                "Subscribing",
                "Ready",
                "Draining",
                "Leaving",
                "Closing",
            ],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (
            CONSUMER,
            &["Identifying"],
            &[Authorized, Ok, CloseWait, Message, Late],
            "nsqd answers what it was asked",
        ),
        (
            CONSUMER,
            &["Authenticating"],
            &[Identified, Ok, CloseWait, Message, Late],
            "nsqd answers what it was asked",
        ),
        (
            CONSUMER,
            &["Subscribing"],
            &[Identified, Authorized, CloseWait, Message, Late],
            "nsqd answers what it was asked",
        ),
        (
            CONSUMER,
            &["Ready", "Draining", "Leaving"],
            &[Identified, Authorized, Ok, Refusal],
            "the handshake is over, and nothing that is refused is fatal",
        ),
        (CONSUMER, &["Ready"], &[CloseWait], "it did not ask to leave"),
        (LOOKUPD, ALL, &[Configure], "a consumer's nsqlookupds are given once"),
        (
            LOOKUPD,
            ALL,
            &[Identified, Authorized, Heartbeat, Message, CloseWait, Late],
            "HTTP has none",
        ),
        (LOOKUPD, DOWN, TRANSPORT, "there is no transport"),
        (
            LOOKUPD,
            &["Idle", "Dialing"],
            &[Closed],
            "a transport that comes up is opened or the dial over",
        ),
        (LOOKUPD, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (LOOKUPD, &["Asking", "Closing"], &[Up, DialFailed], "it has a connection"),
        (
            LOOKUPD,
            &["Closing"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "a request of which more is to be written is dropped",
        ),
        (PUBLISHER, ALL, &[Heard], "what it reads are answers"),
        (PEER, ALL, &[Heard], "what it reads are answers"),
        (CONSUMER, ALL, &[Heard], "what it reads are answers"),
        (LOOKUPD, ALL, &[Heard], "what it reads are answers"),
        (NODE, ALL, &[Configure], "a server is not told with whom to be connected"),
        (NODE, ALL, ANSWERS, "what it reads are commands"),
        (NODE, &["Unused"], SERVED, "there is no transport"),
        (NODE, &["Init", "Subscribed", "Closing"], &[Up, DialFailed], "it has a connection"),
        (PRODUCER, ALL, &[Configure], "a server is not told with whom to be connected"),
        (PRODUCER, ALL, &[Work], "a directory is given no work"),
        (PRODUCER, ALL, ANSWERS, "what it reads are commands"),
        (PRODUCER, &["Free"], SERVED, "there is no transport"),
        (
            PRODUCER,
            &["Greeting"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "what is answered first is IDENTIFY, or a refusal, which closes",
        ),
        (
            PRODUCER,
            &["Greeting", "Identified", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (HTTP, ALL, &[Configure], "it has nobody to connect to"),
        (HTTP, ALL, ANSWERS, "what it reads are requests"),
        (HTTP, &["Down"], SERVED, "there is no transport"),
        (
            HTTP,
            &["Idle", "Head", "Body", "Held", "Answer", "Linger", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (
            HTTP,
            &["Idle", "Head", "Linger", "Closing"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "there is nothing to write",
        ),
        (
            HTTP,
            &["Held"],
            &[ReadError, End, Heard],
            "nothing is read while what was read before is held back",
        ),
        (BUSY, ALL, &[Configure], "it has nobody to connect to"),
        (BUSY, ALL, ANSWERS, "what it reads are first words"),
        (BUSY, &["Down"], SERVED, "there is no transport"),
        (
            BUSY,
            &["Listening"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "nothing is said before the caller says something",
        ),
        (BUSY, &["Listening", "Answering"], &[Up, DialFailed], "it has a connection"),
    ]
};

/// What happens now and then, but hardly in any twenty thousand worlds: as [`IMPOSSIBLE`]. A million
/// show all of it.
const RARE: &[(Kind, &[&str], &[Event], &str)] = {
    use Event::*;
    &[
        (
            PUBLISHER,
            &["Closing"],
            &[ClockJump],
            "closing lasts only as long as the other side takes to hear of it",
        ),
        (
            CONSUMER,
            &["Leaving"],
            &[Stop, ClockJump, Dropped, WriteError, ReadError, End, Closed, Heartbeat],
            "leaving lasts only as long as the transport does not take what is left",
        ),
        (
            CONSUMER,
            &["Leaving"],
            &[Message, CloseWait, Late, Lie],
            "leaving lasts only as long as the transport does not take what is left",
        ),
        (
            CONSUMER,
            &["Closing"],
            &[WriteError],
            "closing lasts only as long as the other side takes to hear of it",
        ),
        (
            CONSUMER,
            &["Authenticating"],
            &[Lie],
            "a server has to begin to lie between two of its answers",
        ),
        (PEER, &["Leaving"], &[WriteError], "leaving lasts no longer than a few answers"),
        (
            NODE,
            &["Closing"],
            &[WriteError],
            "closing lasts only until the other side hangs up, a second at most",
        ),
        (
            HTTP,
            &["Body", "Held"],
            &[WriteError, Dropped],
            "what is written before the answer is 25 bytes, and few bodies take long",
        ),
        (BUSY, &["Down"], &[ClockJump], "it waits for a second, and only if accepting failed"),
        (
            BUSY,
            &["Listening", "Answering"],
            &[Stop, Dropped, ClockJump, End, ReadError],
            "turning away lasts a moment, three seconds at most",
        ),
        (PRODUCER, &["Greeting"], &[End], "a node says who it is before anything else"),
        (
            PRODUCER,
            &["Closing"],
            &[WriteError],
            "closing lasts only until the other side hangs up, a second at most",
        ),
    ]
};

/// What was to be exercised and was not, or was and is not possible.
pub fn gaps(coverage: &Coverage, seeds: u64) -> Vec<String> {
    let mut gaps = Vec::new();
    for (kind, machine) in MACHINES.iter().enumerate() {
        for (state, name) in machine.states.iter().enumerate() {
            for event in Event::ALL {
                let why = IMPOSSIBLE.iter().find(|(of, states, events, _)| {
                    let here = states.is_empty() || states.contains(name);
                    *of == kind && here && events.contains(&event)
                });
                let rare = RARE.iter().any(|(of, states, events, _)| {
                    *of == kind && states.contains(name) && events.contains(&event)
                });
                let times = coverage.events(kind, state, event);
                let pair = format!("{}: {event:?} while {name}", machine.name);
                match why {
                    Some((.., why)) if times > 0 => gaps.push(format!(
                        "{pair} happened {times} times, though it is listed as impossible: {why}"
                    )),
                    None if times == 0 && seeds >= if rare { PLENTY } else { ENOUGH } => {
                        gaps.push(format!(
                            "{pair} never happened, and is not listed as impossible"
                        ));
                    }
                    _ => {}
                }
            }
        }
    }
    gaps
}
