//! The texts of errors: each error has a text of its own, with its numbers.

use std::collections::BTreeSet;
use std::fmt::Display;

use nanonsq_core::address::{Address, AddressError};
use nanonsq_core::consumer::{self, AnswerError};
use nanonsq_core::name::NameError;
use nanonsq_core::nsqd::{self, NsqdError, TableFull, TooManyLookupds};
use nanonsq_core::publisher::{self, Outcome};
use nanonsq_core::registration::{self, RegistryFull, TooManyPeers};
use nanonsq_core::session::{Awaited, Closed, DialError, Fault, TransportError};
use nanonsq_core::time::Span;
use nanonsq_core::wire::DecodeError;
use nanonsq_core::wire::http::{BadAnswer, HttpError};
use nanonsq_core::wire::nsqd::ErrorCode;

/// Checks that each value has a distinct text of one line.
#[track_caller]
fn distinct<T: Display>(all: &[T]) {
    let texts: BTreeSet<_> = all.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), all.len(), "{texts:?}");
    for text in texts {
        assert!(text.len() > 5 && !text.contains('\n'), "{text:?}");
    }
}

#[test]
fn errors_of_settings() {
    distinct(&[
        AddressError::EmptyHost,
        AddressError::HostTooLong { len: 200 },
        AddressError::BadHost,
        AddressError::MissingPort,
        AddressError::BadPort,
        AddressError::UnbracketedIpv6,
    ]);
    assert!(AddressError::HostTooLong { len: 200 }.to_string().contains("200 bytes"));
    let bad = NameError::BadCharacter { byte: b'!', at: 7 };
    distinct(&[NameError::Empty, NameError::TooLong { len: 65 }, bad]);
    assert!(bad.to_string().contains("byte 0x21 at position 7"));
    distinct(&[registration::ConfigError::EmptyField, registration::ConfigError::ZeroPort]);
    assert!(TooManyPeers { max: 3 }.to_string().contains("than the 3 that fit"));
    assert!(TooManyLookupds { max: 4 }.to_string().contains("than the 4 that fit"));
    distinct(&[RegistryFull::Topics { max: 3 }, RegistryFull::Channels { max: 3 }]);
    assert!(RegistryFull::Topics { max: 3 }.to_string().contains("all 3 topic"));
    distinct(&[
        publisher::ConfigError::Addresses { count: 300 },
        publisher::ConfigError::Heartbeat { ms: 300 },
        publisher::ConfigError::RingTooSmall { len: 300 },
    ]);
    distinct(&[
        consumer::ConfigError::Heartbeat { ms: 300 },
        consumer::ConfigError::MsgTimeout { ms: 300 },
        consumer::ConfigError::OutputBufferTimeout { ms: 300 },
        consumer::ConfigError::SampleRate { percent: 100 },
        consumer::ConfigError::Connections { count: 300 },
        consumer::ConfigError::Addresses { count: 300 },
        consumer::ConfigError::Lookupds { count: 300 },
        consumer::ConfigError::Messages { count: 300 },
        consumer::ConfigError::RingTooSmall { len: 300 },
    ]);
    assert!(publisher::ConfigError::Heartbeat { ms: 300 }.to_string().contains("300 ms"));
}

#[test]
fn errors_of_calls() {
    distinct(&[
        publisher::PublishError::Full,
        publisher::PublishError::TooLarge { max: 79 },
        publisher::PublishError::Empty,
        publisher::PublishError::DeferTooLong,
        publisher::PublishError::Stopped,
    ]);
    distinct(&[
        nsqd::PublishError::Full,
        nsqd::PublishError::TooLarge { max: 79 },
        nsqd::PublishError::Empty,
        nsqd::PublishError::DeferTooLong,
        nsqd::PublishError::TooManyTopics,
    ]);
    assert!(publisher::PublishError::TooLarge { max: 79 }.to_string().contains("79 bytes"));
    assert!(nsqd::PublishError::TooLarge { max: 79 }.to_string().contains("79 bytes"));
    distinct(&[
        NsqdError::NoTopic,
        NsqdError::NoChannel,
        NsqdError::TooManyTopics,
        NsqdError::TooManyChannels,
    ]);
    distinct(&[TableFull::Topics, TableFull::Channels, TableFull::ChannelsOfTopic]);
    distinct(&[
        nsqd::ConfigError::Heartbeat { ms: 300 },
        nsqd::ConfigError::MsgTimeout { ms: 300 },
        nsqd::ConfigError::Tables { count: 300 },
        nsqd::ConfigError::InFlight { count: 0 },
        nsqd::ConfigError::ChannelsPerTopic { count: 9 },
        nsqd::ConfigError::StoreTooSmall { len: 9 },
    ]);
    distinct(&[
        HttpError::NotHttp,
        HttpError::HeadTooLong,
        HttpError::Length,
        HttpError::Coding,
        HttpError::Chunk,
        HttpError::Truncated,
    ]);
    distinct(&[AnswerError::Late, AnswerError::Unknown]);
    distinct(&[
        Outcome::Acknowledged,
        Outcome::Rejected(ErrorCode::BadTopic),
        Outcome::Expired,
        Outcome::Dropped,
        Outcome::Forgotten,
    ]);
    assert!(Outcome::Rejected(ErrorCode::BadTopic).to_string().contains("E_BAD_TOPIC"));
}

#[test]
fn ends_of_connections() {
    let dials = [
        DialError::Refused,
        DialError::TimedOut,
        DialError::Unreachable,
        DialError::NameNotFound,
        DialError::NoSocket,
        DialError::Other,
    ];
    distinct(&dials);
    let breaks = [
        TransportError::Reset,
        TransportError::TimedOut,
        TransportError::Unsupported,
        TransportError::Other,
    ];
    distinct(&breaks);
    let faults = [
        Fault::Decode(DecodeError::BadLength { len: 70, max: 60 }),
        Fault::Decode(DecodeError::WrongPort),
        Fault::Decode(DecodeError::UnknownFrame { frame_type: 9 }),
        Fault::Decode(DecodeError::ShortMessage { len: 3 }),
        Fault::UnexpectedReply,
        Fault::Decode(DecodeError::BadIdentifyReply),
        Fault::Refused(ErrorCode::Invalid),
        Fault::BadAnswer(BadAnswer::NoProducers),
        Fault::BadAnswer(BadAnswer::Status(503)),
        Fault::BadAnswer(BadAnswer::Http(HttpError::HeadTooLong)),
        Fault::AuthRequired,
        Fault::TlsRequired,
        Fault::AuthRefused,
        Fault::IdentifyRefused,
        Fault::TimedOut(Awaited::Handshake),
        Fault::TimedOut(Awaited::Reply),
        Fault::TimedOut(Awaited::Heartbeat),
        Fault::TimedOut(Awaited::Drain),
    ];
    distinct(&faults);
    assert!(
        Fault::Decode(DecodeError::BadLength { len: 70, max: 60 })
            .to_string()
            .contains("70 bytes where at most 60")
    );
    distinct(&[Closed::Peer, Closed::Local]);
    // A wrapped error has the text of the error in it.
    for dial in dials {
        assert_eq!(Closed::Dial(dial).to_string(), dial.to_string());
    }
    for broken in breaks {
        assert_eq!(Closed::Transport(broken).to_string(), broken.to_string());
    }
    for fault in faults {
        assert_eq!(Closed::Fault(fault).to_string(), fault.to_string());
    }
}

#[cfg(feature = "async")]
#[test]
fn errors_of_an_nsqds_settings_are_those_of_its_parts() {
    use nanonsq_core::drive::nsqd::SettingsError;
    let peers = TooManyPeers { max: 3 };
    let lookup = registration::ConfigError::ZeroPort;
    assert_eq!(SettingsError::Lookupds(peers).to_string(), peers.to_string());
    assert_eq!(SettingsError::Registration(lookup).to_string(), lookup.to_string());
}

#[test]
fn values() {
    let span = Span::from_millis(1500);
    assert_eq!((format!("{span}"), format!("{span:?}")), ("1500 ms".into(), "1500 ms".into()));
    let address: Address = "[::1]:4150".parse().unwrap();
    assert_eq!(format!("{address:?}"), "[::1]:4150");
}
