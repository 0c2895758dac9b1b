//! The protocol of nsqd 1.3.0, byte for byte.

use nanonsq_core::wire::nsqd::{
    CLOSE_WAIT, ErrorCode, FrameType, HEARTBEAT, IdentifyNumber, IdentifyOption, IdentifyRequest,
    IdentifyResponse, LINE_MAX, Limits, MAGIC, Meaning, Message, MessageHead, MessageId, OK,
    Settings, emit_auth, emit_dpub_head, emit_frame, emit_message_head, emit_mpub_head,
    emit_pub_head, emit_sub,
};
use nanonsq_core::wire::{ChunkWriter, Write};

use crate::emitted;
use crate::support::{
    Trickle, channel, frames, granted, identification, identify, requires_auth, topic, v2_items,
};

/// The response of the real nsqd.
pub(crate) const IDENTIFY_RESPONSE: &str = r#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250,"topology_region":"","topology_zone":""}"#;

pub(crate) const ID: MessageId = MessageId(*b"0e56cbb0bd1e8000");

const REQUEST: IdentifyRequest<'static> = IdentifyRequest {
    client_id: "sensor",
    hostname: "sensor.local",
    user_agent: "nanonsq/0.1.0",
    heartbeat_interval: 1000,
};

/// All settings, each with a value other than nsqd's default.
const NUMBERS: [IdentifyNumber; 5] = [
    IdentifyNumber::output_buffer_size(64),
    IdentifyNumber::output_buffer_timeout(25),
    IdentifyNumber::msg_timeout(900_000),
    IdentifyNumber::sample_rate(99),
    IdentifyNumber::deflate_level(6),
];
const OPTIONS: [IdentifyOption<'static>; 5] = [
    IdentifyOption::tls_v1(false),
    IdentifyOption::snappy(true),
    IdentifyOption::deflate(false),
    IdentifyOption::topology_region("r"),
    IdentifyOption::topology_zone("\"z\""),
];

#[test]
fn identify_response_is_nsqds() {
    assert_eq!(IDENTIFY_RESPONSE.len(), 304);
    assert_eq!(emitted!(IdentifyResponse::default()), IDENTIFY_RESPONSE.as_bytes());
    assert_eq!(granted(&[IDENTIFY_RESPONSE.as_bytes()]), granted(&[b"OK"]));
}

#[test]
fn requires_auth_reads_the_response() {
    let asks = IdentifyResponse { auth_required: true, ..IdentifyResponse::default() };
    assert_eq!(requires_auth(&[&emitted!(asks)[..]]), Ok(true));
    let quoted = IdentifyResponse { version: r#""auth_required":true"#, ..Default::default() };
    for (answer, required) in [
        (IDENTIFY_RESPONSE, false),
        ("OK", false),
        ("{}", false),
        (&String::from_utf8(emitted!(quoted)).unwrap(), false),
        ("{\n  \"auth_required\" : true\n}\n", true),
        (r#"{"version":"","auth_required":true}"#, true),
        (r#"{"auth_required":null,"auth_required":true,"tls_v1":false}"#, true),
    ] {
        assert_eq!(requires_auth(&[answer.as_bytes()]), Ok(required), "{answer}");
    }
    for bad in ["", "O", "KO", "[]", "{", "auth_required", "E_INVALID"] {
        assert!(requires_auth(&[bad.as_bytes()]).is_err(), "{bad}");
    }
}

#[test]
fn granted_reads_the_response() {
    let of = |json: &str| granted(&[json.as_bytes()]);
    let default = of("{}").unwrap();
    assert_eq!(
        (default.max_rdy_count, default.msg_timeout_ms, default.max_msg_timeout_ms),
        (2500, 60_000, 900_000)
    );
    assert_eq!(of("OK"), Ok(default));
    assert_eq!(of(IDENTIFY_RESPONSE), Ok(default));
    let all = "{\n \"max_rdy_count\" : 1,\"msg_timeout\":2 , \"max_msg_timeout\":3,\"auth_required\":true}";
    let given = of(all).unwrap();
    assert_eq!(
        (given.max_rdy_count, given.msg_timeout_ms, given.max_msg_timeout_ms, given.auth_required),
        (1, 2, 3, true)
    );
    // nsqd's limit may be any number of 64 bits.
    assert_eq!(of("{\"max_rdy_count\":9223372036854775807}").unwrap().max_rdy_count, u32::MAX);
    assert_eq!(of("{\"max_rdy_count\":-9223372036854775808}").unwrap().max_rdy_count, 0);
    for bad in ["", "O", "[]", "{", "{\"msg_timeout\":\"5\"}", "{\"msg_timeout\":[5]}"] {
        assert!(of(bad).is_err(), "{bad}");
    }
}

#[test]
fn identify_request_is_what_nsqd_reads() {
    let least = r#"{"client_id":"sensor","hostname":"sensor.local","user_agent":"nanonsq/0.1.0","feature_negotiation":true,"heartbeat_interval":1000}"#;
    let rest = r#","output_buffer_size":64,"output_buffer_timeout":25,"msg_timeout":900000,"sample_rate":99,"deflate_level":6,"tls_v1":false,"snappy":true,"deflate":false,"topology_region":"r","topology_zone":"\"z\""}"#;
    let start = least.trim_end_matches('}');
    let all = [start, rest].concat();
    let unbuffered = [start, ",\"output_buffer_size\":-1}"].concat();
    let defaults = [IdentifyNumber::msg_timeout(0), IdentifyNumber::unbuffered(false)];
    for (numbers, options, json) in [
        (&[][..], &[][..], least),
        (&defaults[..], &[][..], least),
        (&[IdentifyNumber::unbuffered(true)][..], &[][..], &*unbuffered),
        (&NUMBERS[..], &OPTIONS[..], &*all),
    ] {
        let mut expected = b"IDENTIFY\n".to_vec();
        expected.extend_from_slice(&(json.len() as u32).to_be_bytes());
        expected.extend_from_slice(json.as_bytes());
        assert_eq!(identify(&REQUEST, numbers, options), expected, "{json}");
    }

    let read = identification(&[all.as_bytes()]).unwrap();
    assert_eq!(read.client_id, "sensor");
    assert_eq!(read.hostname, "sensor.local");
    assert_eq!(read.user_agent, "nanonsq/0.1.0");
    assert_eq!((&*read.topology_region, &*read.topology_zone), ("r", "\"z\""));
    let settings = Settings {
        heartbeat_interval: 1000,
        output_buffer_size: 64,
        output_buffer_timeout: 25,
        msg_timeout: 900_000,
        sample_rate: 99,
        deflate_level: 6,
        feature_negotiation: true,
        tls_v1: false,
        snappy: true,
        deflate: false,
    };
    assert_eq!(read.settings, settings);
}

#[test]
fn identify_of_other_clients_is_read() {
    // tokio-nsq sends nulls, go-nsq sends the deprecated ids.
    let tokio = br#"{"client_id":null,"hostname":"h","user_agent":"tokio_nsq/0.14.0","feature_negotiation":true,"tls_v1":false,"deflate":false,"deflate_level":null,"snappy":false,"sample_rate":null}"#;
    let read = identification(&[&tokio[..]]).unwrap();
    assert_eq!((&*read.client_id, read.settings.sample_rate), ("", 0));
    assert_eq!(read.user_agent, "tokio_nsq/0.14.0");
    let go = br#"{"client_id":"vm","deflate":false,"deflate_level":6,"feature_negotiation":true,"heartbeat_interval":30000,"hostname":"vm","long_id":"vm","msg_timeout":0,"output_buffer_size":16384,"output_buffer_timeout":250,"sample_rate":0,"short_id":"vm","snappy":false,"tls_v1":false,"user_agent":"go-nsq/1.1.0"}"#;
    let read = identification(&[&go[..]]).unwrap();
    assert_eq!(read.settings.heartbeat_interval, 30_000);
    // Python escapes characters beyond the basic plane as surrogate pairs.
    let read = identification(&[&br#"{"hostname":"\ud83d\ude00"}"#[..]]).unwrap();
    assert_eq!(read.hostname, "\u{1f600}");
    let read = identification(&[format!(r#"{{"hostname":"{}"}}"#, "h".repeat(40)).as_bytes()]);
    assert_eq!(*read.unwrap().hostname, "h".repeat(32));
}

#[test]
fn commands_are_what_nsqd_reads() {
    let (t, c) = (topic("t"), channel("c"));
    let mut bytes = Vec::new();
    emit_auth(&mut bytes, b"s3").unwrap();
    assert_eq!(bytes, b"AUTH\n\0\0\0\x02s3");
    let sub = b"SUB t c\n";
    // A writer that takes one byte at a time, and one that keeps a window of three bytes.
    let mut trickle = Trickle(Vec::new());
    emit_sub(&mut trickle, &t, &c).unwrap();
    assert_eq!(trickle.0, sub);
    for skip in 0..sub.len() + 2 {
        let mut piece = [0; 3];
        let mut window = ChunkWriter::new(&mut piece, skip);
        emit_sub(&mut window, &t, &c).unwrap();
        let (written, total) = (window.written(), window.total());
        assert_eq!(total, sub.len());
        let end = sub.len().min(skip + 3);
        assert_eq!(&piece[..written], sub.get(skip..end).unwrap_or_default());
    }
    // Too little room is an error, not a panic.
    for len in 0..sub.len() {
        assert!(emit_sub(&mut &mut vec![0; len][..], &t, &c).is_err());
    }
    let (t64, c64) = (topic(&"t".repeat(64)), channel(&"c".repeat(64)));
    let mut longest = Vec::new();
    emit_sub(&mut longest, &t64, &c64).unwrap();
    assert_eq!(longest.len(), LINE_MAX);
}

#[test]
fn heads_are_what_nsqd_reads() {
    let mut bytes = Vec::new();
    emit_pub_head(&mut bytes, (b"t", b"")).unwrap();
    assert_eq!(bytes, b"PUB t\n");
    bytes.clear();
    emit_mpub_head(&mut bytes, (b"t", b""), 11, 2).unwrap();
    assert_eq!(bytes, b"MPUB t\n\0\0\0\x0f\0\0\0\x02");
    bytes.clear();
    emit_dpub_head(&mut bytes, (b"", b"t"), 3_600_000).unwrap();
    assert_eq!(bytes, b"DPUB t 3600000\n");
    let longest = "t".repeat(64);
    for (emit, max) in [
        (emit_pub_head(&mut &mut [0; 69][..], longest.as_bytes().split_at(30)), 69),
        (
            emit_mpub_head(
                &mut &mut [0; 78][..],
                longest.as_bytes().split_at(30),
                u32::MAX,
                u32::MAX,
            ),
            78,
        ),
        (emit_dpub_head(&mut &mut [0; 81][..], longest.as_bytes().split_at(30), u32::MAX), 81),
    ] {
        assert!(emit.is_ok(), "{max}");
    }
}

#[test]
fn every_command_makes_the_round_trip() {
    let mut stream = MAGIC.to_vec();
    let empty = IdentifyRequest { client_id: "", hostname: "", user_agent: "", ..REQUEST };
    stream.write_all(b"NOP\n").unwrap();
    stream.extend(identify(&empty, &[], &[]));
    emit_auth(&mut stream, b"s3").unwrap();
    emit_pub_head(&mut stream, (b"t", b"")).unwrap();
    stream.extend(b"\0\0\0\x02hi");
    emit_mpub_head(&mut stream, (b"t", b""), 11, 2).unwrap();
    stream.extend(b"\0\0\0\x01a\0\0\0\x02bc");
    emit_dpub_head(&mut stream, (b"t", b""), 3_600_000).unwrap();
    stream.extend(b"\0\0\0\x01x");
    emit_sub(&mut stream, &topic("t"), &channel("c")).unwrap();
    stream.extend(b"RDY 2500\nFIN 0e56cbb0bd1e8000\nREQ 0e56cbb0bd1e8000 4294967295\n");
    stream.extend(b"TOUCH 0e56cbb0bd1e8000\nCLS\nRDY 1\nFIN 0e56cbb0bd1e8000\n");
    emit_pub_head(&mut stream, (b"t", b"")).unwrap();
    stream.extend(b"\0\0\0\x02hi");
    let expected = [
        "Nop",
        "Identify",
        "Body { len: 99 }",
        r#"data {\"client_id\":\"\",\"hostname\":\"\",\"user_agent\":\"\",\"feature_negotiation\":true,\"heartbeat_interval\":1000}"#,
        "done",
        "Auth",
        "Body { len: 2 }",
        "data s3",
        "done",
        "Pub { topic: \"t\" }",
        "Body { len: 2 }",
        "data hi",
        "done",
        "Mpub { topic: \"t\" }",
        "Batch { len: 15, count: 2 }",
        "Body { len: 1 }",
        "data a",
        "last",
        "Body { len: 2 }",
        "data bc",
        "done",
        "Dpub { topic: \"t\", defer_ms: 3600000 }",
        "Body { len: 1 }",
        "data x",
        "done",
        "Sub { topic: \"t\", channel: \"c\" }",
        "Rdy(2500)",
        "Fin(0e56cbb0bd1e8000)",
        // The delay is limited, not refused.
        "Req { id: 0e56cbb0bd1e8000, delay_ms: 3600000 }",
        "Touch(0e56cbb0bd1e8000)",
        "Cls",
        // A late RDY is ignored.
        "Nop",
        "Fin(0e56cbb0bd1e8000)",
        "Pub { topic: \"t\" }",
        "Body { len: 2 }",
        "data hi",
        "done",
        "Closing, true",
    ];
    assert_eq!(v2_items(&Limits::NSQD, &[&stream[..]]), expected);
}

#[test]
fn frames_are_nsqds() {
    let mut stream = Vec::new();
    emit_frame(&mut stream, FrameType::Response, OK).unwrap();
    assert_eq!(stream, b"\0\0\0\x06\0\0\0\0OK");
    emit_frame(&mut stream, FrameType::Response, HEARTBEAT).unwrap();
    emit_frame(&mut stream, FrameType::Response, CLOSE_WAIT).unwrap();
    emit_frame(&mut stream, FrameType::Response, b"").unwrap();
    emit_frame(&mut stream, FrameType::Error, b"E_BAD_TOPIC x").unwrap();
    let head = MessageHead { timestamp: 1_795_368_574_000_000_001, attempts: 0x0102, id: ID };
    let message = Message { head, body: b"hi" };
    let at = stream.len();
    emit_message_head(&mut stream, &head, 2).unwrap();
    stream.extend(message.body);
    assert_eq!(
        stream[at..],
        *b"\0\0\0\x20\0\0\0\x02\x18\xea\x6e\x34\xae\x2b\x6c\x01\x01\x020e56cbb0bd1e8000hi"
    );
    assert_eq!(Message::parse(&stream[at + 8..]), Some(message));
    assert_eq!(Message::parse(&stream[at + 8..at + 33]), None);
    let expected = [
        "Response of 2",
        "data OK",
        "end",
        "Response of 11",
        "data _heartbeat_",
        "end",
        "Response of 10",
        "data CLOSE_WAIT",
        "end",
        "Response of 0",
        "data ",
        "end",
        "Error of 13",
        "data E_BAD_TOPIC x",
        "end",
        "Message of 28",
        r"data \x18\xean4\xae+l\x01\x01\x020e56cbb0bd1e8000hi",
        "end",
        "whole",
    ];
    assert_eq!(frames(&[&stream[..]]), expected);
}

#[test]
fn every_error_code_is_known() {
    let codes = [
        "E_INVALID",
        "E_BAD_PROTOCOL",
        "E_BAD_BODY",
        "E_BAD_TOPIC",
        "E_BAD_CHANNEL",
        "E_BAD_MESSAGE",
        "E_IDENTIFY_FAILED",
        "E_AUTH_DISABLED",
        "E_AUTH_FAILED",
        "E_AUTH_FIRST",
        "E_AUTH_ERROR",
        "E_UNAUTHORIZED",
        "E_SUB_FAILED",
        "E_PUB_FAILED",
        "E_MPUB_FAILED",
        "E_DPUB_FAILED",
        "E_FIN_FAILED",
        "E_REQ_FAILED",
        "E_TOUCH_FAILED",
    ];
    let mut seen = std::collections::HashSet::new();
    for name in codes {
        let (code, detail) = ErrorCode::parse(name.as_bytes());
        assert_eq!((code.as_str(), detail), (name, &b""[..]));
        assert_eq!(code.to_string(), name);
        assert!(seen.insert(code));
        let text = format!("{name} PUB  x");
        assert_eq!(ErrorCode::parse(text.as_bytes()), (code, &b"PUB  x"[..]));
        let mild = matches!(name, "E_FIN_FAILED" | "E_REQ_FAILED" | "E_TOUCH_FAILED");
        assert_eq!(code.is_fatal(), !mild, "{name}");
        let meaning = match name {
            "E_INVALID" => Meaning::Command,
            "E_BAD_BODY" | "E_BAD_MESSAGE" => Meaning::Message,
            "E_BAD_TOPIC" | "E_UNAUTHORIZED" => Meaning::Topic,
            "E_BAD_CHANNEL" => Meaning::Channel,
            "E_BAD_PROTOCOL" | "E_IDENTIFY_FAILED" => Meaning::Connection,
            "E_AUTH_DISABLED" | "E_AUTH_FAILED" | "E_AUTH_FIRST" => Meaning::Auth,
            _ if mild => Meaning::InFlight,
            _ => Meaning::Temporary,
        };
        assert_eq!(code.meaning(), meaning, "{name}");
    }
    for other in ["", " ", "E_NEW thing", "e_invalid", "E_INVALIDX", "E_"] {
        let (code, detail) = ErrorCode::parse(other.as_bytes());
        assert_eq!((code, detail), (ErrorCode::Other, other.as_bytes()));
        assert!(code.is_fatal() && !code.to_string().is_empty());
        assert_eq!(code.meaning(), Meaning::Temporary);
    }
}
