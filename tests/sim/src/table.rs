//! Prints which pairs of state and event were exercised, and finds gaps.

use std::fmt::Write as _;

use crate::watch::{BUSY, Coverage, Event, HTTP, Kind, LOOKUPD, MACHINES, NODE, PRODUCER};

/// Returns the tables for a person to read.
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

/// From this many seeds on, every possible pair must have happened, except rare ones.
const ENOUGH: u64 = 20_000;
/// From this many seeds on, rare pairs as well.
const PLENTY: u64 = 1_000_000;

const PUBLISHER: Kind = 0;
const PEER: Kind = 1;
const CONSUMER: Kind = 2;

/// Events of a transport. [`Event::Closed`] is separate: the driver reports it to the session
/// before it drops the transport.
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

/// Responses that clients receive, by kind.
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

/// Events of the transport of an accepted connection.
const SERVED: &[Event] = &[
    Event::Wrote,
    Event::WrotePart,
    Event::Blocked,
    Event::WriteError,
    Event::ReadError,
    Event::End,
    Event::Heard,
];

/// Pairs that cannot happen: the machine, its states (none means all), the events, and the reason.
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
            "the session opens a dialed transport or ends the dial",
        ),
        (PUBLISHER, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (
            PUBLISHER,
            &["Identifying", "Authenticating", "Ready", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (PUBLISHER, &["Identifying"], &[Authorized, Ok], "nsqd answers the command it was sent"),
        (PUBLISHER, &["Authenticating"], &[Identified, Ok], "nsqd answers the command it was sent"),
        (PUBLISHER, &["Ready"], &[Identified, Authorized], "nsqd answers the command it was sent"),
        (PEER, ALL, &[Authorized, Heartbeat, Message, CloseWait, Late], "the V1 protocol has none"),
        (PEER, DOWN, TRANSPORT, "there is no transport"),
        (PEER, &["Dialing"], &[Closed], "the session opens a dialed transport or ends the dial"),
        (PEER, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (
            PEER,
            &["Identifying", "Ready", "Leaving", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (PEER, &["Identifying"], &[Ok], "nsqlookupd answers the command it was sent"),
        (PEER, &["Ready", "Leaving"], &[Identified], "nsqlookupd answers the command it was sent"),
        (PEER, &["Ready", "Leaving"], &[Refusal], "nsqlookupd never refuses these commands"),
        (CONSUMER, ALL, &[Configure], "a consumer's nsqds are given once, or found"),
        (CONSUMER, DOWN, TRANSPORT, "there is no transport"),
        (
            CONSUMER,
            &["Dialing"],
            &[Closed],
            "the session opens a dialed transport or ends the dial",
        ),
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
            "nsqd answers the command it was sent",
        ),
        (
            CONSUMER,
            &["Authenticating"],
            &[Identified, Ok, CloseWait, Message, Late],
            "nsqd answers the command it was sent",
        ),
        (
            CONSUMER,
            &["Subscribing"],
            &[Identified, Authorized, CloseWait, Message, Late],
            "nsqd answers the command it was sent",
        ),
        (
            CONSUMER,
            &["Ready", "Draining", "Leaving"],
            &[Identified, Authorized, Ok, Refusal],
            "the handshake is over, and no command after it is refused fatally",
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
            "the session opens a dialed transport or ends the dial",
        ),
        (LOOKUPD, &["Idle", "Waiting"], &[Up, DialFailed], "it does not dial"),
        (LOOKUPD, &["Asking", "Closing"], &[Up, DialFailed], "it has a connection"),
        (
            LOOKUPD,
            &["Closing"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "an unfinished request is dropped",
        ),
        (PUBLISHER, ALL, &[Heard], "it reads responses"),
        (PEER, ALL, &[Heard], "it reads responses"),
        (CONSUMER, ALL, &[Heard], "it reads responses"),
        (LOOKUPD, ALL, &[Heard], "it reads responses"),
        (NODE, ALL, &[Configure], "a server does not dial"),
        (NODE, ALL, ANSWERS, "it reads commands"),
        (NODE, &["Unused"], SERVED, "there is no transport"),
        (NODE, &["Init", "Subscribed", "Closing"], &[Up, DialFailed], "it has a connection"),
        (PRODUCER, ALL, &[Configure], "a server does not dial"),
        (PRODUCER, ALL, &[Work], "a directory has no work of its own"),
        (PRODUCER, ALL, ANSWERS, "it reads commands"),
        (PRODUCER, &["Free"], SERVED, "there is no transport"),
        (
            PRODUCER,
            &["Greeting"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "the first response answers IDENTIFY, or is a refusal, which closes",
        ),
        (
            PRODUCER,
            &["Greeting", "Identified", "Closing"],
            &[Up, DialFailed],
            "it has a connection",
        ),
        (HTTP, ALL, &[Configure], "a server does not dial"),
        (HTTP, ALL, ANSWERS, "it reads requests"),
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
            "nothing is read while earlier bytes are held back",
        ),
        (BUSY, ALL, &[Configure], "a server does not dial"),
        (BUSY, ALL, ANSWERS, "it reads only the first bytes"),
        (BUSY, &["Down"], SERVED, "there is no transport"),
        (
            BUSY,
            &["Listening"],
            &[Wrote, WrotePart, Blocked, WriteError],
            "nothing is sent before the caller sends something",
        ),
        (BUSY, &["Listening", "Answering"], &[Up, DialFailed], "it has a connection"),
    ]
};

/// Pairs that are possible, but may not happen in 20 000 worlds; as [`IMPOSSIBLE`]. A million
/// worlds exercise all of them.
const RARE: &[(Kind, &[&str], &[Event], &str)] = {
    use Event::*;
    &[
        (
            PUBLISHER,
            &["Closing"],
            &[ClockJump],
            "closing lasts only until the close reaches the other side",
        ),
        (
            CONSUMER,
            &["Leaving"],
            &[Stop, ClockJump, Dropped, WriteError, ReadError, End, Closed, Heartbeat],
            "leaving lasts only until the transport accepts the rest",
        ),
        (
            CONSUMER,
            &["Leaving"],
            &[Message, CloseWait, Late, Lie],
            "leaving lasts only until the transport accepts the rest",
        ),
        (
            CONSUMER,
            &["Closing"],
            &[WriteError],
            "closing lasts only until the close reaches the other side",
        ),
        (
            CONSUMER,
            &["Authenticating"],
            &[Lie],
            "a server would have to turn wrong between two responses",
        ),
        (PEER, &["Leaving"], &[WriteError], "leaving lasts only until a few answers have come"),
        (
            PEER,
            &["Closing"],
            &[WriteError],
            "closing lasts only until the close reaches the other side",
        ),
        (
            PUBLISHER,
            &["Closing"],
            &[ReadError],
            "the driver closes before it reads, so that the close fails first",
        ),
        (
            PEER,
            &["Closing"],
            &[ReadError],
            "the driver closes before it reads, so that the close fails first",
        ),
        (
            CONSUMER,
            &["Closing"],
            &[ReadError],
            "the driver closes before it reads, so that the close fails first",
        ),
        (
            LOOKUPD,
            &["Closing"],
            &[ReadError],
            "the driver closes before it reads, so that the close fails first",
        ),
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
            "rejecting a caller lasts a moment, three seconds at most",
        ),
        (PRODUCER, &["Greeting"], &[End], "a node sends IDENTIFY first"),
        (
            PRODUCER,
            &["Closing"],
            &[WriteError],
            "closing lasts only until the other side hangs up, a second at most",
        ),
    ]
};

/// Describes pairs that were possible and never happened, and impossible ones that did.
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
