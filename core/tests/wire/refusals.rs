//! Each refusal has the text of nsqd and nsqlookupd 1.3.0.

use nanonsq_core::wire::nsqd::{self, ErrorCode, Limits, Refusal, Settings, Verb};
use nanonsq_core::wire::nsqlookupd;

use crate::emitted;
use crate::golden_v2::ID;
use crate::support::{identification, node, v1_items, v2_items};

#[track_caller]
fn v2_refuses(stream: &[u8], text: &str) {
    let stream = [b"  V2", stream].concat();
    let lines = v2_items(&Limits::NSQD, &[&stream[..]]);
    assert_eq!(lines.last().map(String::as_str), Some(text), "{}", stream.escape_ascii());
}

#[track_caller]
fn v1_refuses(stream: &[u8], text: &str) {
    let stream = [b"  V1", stream].concat();
    let lines = v1_items(1024, &[&stream[..]]);
    assert_eq!(lines.last().map(String::as_str), Some(text), "{}", stream.escape_ascii());
}

#[test]
fn v2_lines() {
    for (line, text) in [
        ("", "E_INVALID invalid command "),
        ("nop", "E_INVALID invalid command nop"),
        ("XYZ a b", "E_INVALID invalid command XYZ"),
        (" NOP", "E_INVALID invalid command "),
        ("NOP\r\r", "E_INVALID invalid command NOP\r"),
        ("GET / HTTP/1.1\r", "E_INVALID invalid command GET"),
        ("RDY 1", "E_INVALID cannot RDY in current state"),
        ("FIN", "E_INVALID cannot FIN in current state"),
        ("REQ", "E_INVALID cannot REQ in current state"),
        ("TOUCH", "E_INVALID cannot TOUCH in current state"),
        ("CLS", "E_INVALID cannot CLS in current state"),
        ("AUTH x", "E_INVALID AUTH invalid number of parameters"),
        ("SUB", "E_INVALID SUB insufficient number of parameters"),
        ("SUB t", "E_INVALID SUB insufficient number of parameters"),
        ("SUB t!", "E_INVALID SUB insufficient number of parameters"),
        ("SUB  c", "E_BAD_TOPIC SUB topic name \"\" is not valid"),
        ("SUB t! c!", "E_BAD_TOPIC SUB topic name \"t!\" is not valid"),
        ("SUB t c!", "E_BAD_CHANNEL SUB channel name \"c!\" is not valid"),
        ("SUB t ", "E_BAD_CHANNEL SUB channel name \"\" is not valid"),
        ("PUB", "E_INVALID PUB insufficient number of parameters"),
        ("PUB ", "E_BAD_TOPIC PUB topic name \"\" is not valid"),
        (
            "PUB a\"\\\t\u{7}\u{7f}\u{e9}",
            "E_BAD_TOPIC PUB topic name \"a\\\"\\\\\\t\\a\\x7f\u{e9}\" is not valid",
        ),
        ("MPUB", "E_INVALID MPUB insufficient number of parameters"),
        ("MPUB $", "E_BAD_TOPIC E_BAD_TOPIC MPUB topic name \"$\" is not valid"),
        ("DPUB t", "E_INVALID DPUB insufficient number of parameters"),
        ("DPUB $ x", "E_BAD_TOPIC DPUB topic name \"$\" is not valid"),
        ("DPUB t x", "E_INVALID DPUB could not parse timeout x"),
        ("DPUB t 3600001", "E_INVALID DPUB timeout 3600001 out of range 0-3600000"),
        ("SUB t c\nSUB t c", "E_INVALID cannot SUB in current state"),
        ("SUB t c\nIDENTIFY", "E_INVALID cannot IDENTIFY in current state"),
        ("SUB t c\nAUTH", "E_INVALID cannot AUTH in current state"),
        ("SUB t c\nFIN", "E_INVALID FIN insufficient number of params"),
        ("SUB t c\nTOUCH", "E_INVALID TOUCH insufficient number of params"),
        ("SUB t c\nREQ 0123456789abcdef", "E_INVALID REQ insufficient number of params"),
        ("SUB t c\nFIN 0123456789abcde", "E_INVALID invalid message ID"),
        ("SUB t c\nTOUCH 0123456789abcdefg", "E_INVALID invalid message ID"),
        ("SUB t c\nREQ x y", "E_INVALID invalid message ID"),
        ("SUB t c\nREQ 0123456789abcdef 1s", "E_INVALID REQ could not parse timeout 1s"),
        ("SUB t c\nRDY x", "E_INVALID RDY could not parse count x"),
        ("SUB t c\nRDY 2501", "E_INVALID RDY count 2501 out of range 0-2500"),
        ("SUB t c\nCLS\nCLS", "E_INVALID cannot CLS in current state"),
        ("SUB t c\nCLS\nSUB t c", "E_INVALID cannot SUB in current state"),
    ] {
        v2_refuses(format!("{line}\n").as_bytes(), text);
    }
    let long = "x".repeat(65);
    v2_refuses(
        format!("PUB {long}\n").as_bytes(),
        &format!("E_BAD_TOPIC PUB topic name \"{long}\" is not valid"),
    );
    v2_refuses(b"PUB \xff\xc3\n", "E_BAD_TOPIC PUB topic name \"\\xff\\xc3\" is not valid");
}

#[test]
fn v2_unfinished_bodies() {
    for (stream, text) in [
        (&b"IDENTIFY\n\0\0"[..], "E_BAD_BODY IDENTIFY failed to read body size"),
        (b"IDENTIFY\n\0\0\0\x05{", "E_BAD_BODY IDENTIFY failed to read body"),
        (b"AUTH\n", "E_BAD_BODY AUTH failed to read body size"),
        (b"PUB t\n\0", "E_BAD_MESSAGE PUB failed to read message body size"),
        (b"PUB t\n\0\0\0\x02x", "E_BAD_MESSAGE PUB failed to read message body"),
        (b"DPUB t 1\n\0", "E_BAD_MESSAGE DPUB failed to read message body size"),
        (b"MPUB t\n\0", "E_BAD_BODY MPUB failed to read body size"),
        (b"MPUB t\n\0\0\0\x09\0", "E_BAD_BODY MPUB failed to read message count"),
        (
            b"MPUB t\n\0\0\0\x09\0\0\0\x01\0",
            "E_BAD_MESSAGE MPUB failed to read message(0) body size",
        ),
        (
            b"MPUB t\n\0\0\0\x09\0\0\0\x01\0\0\0\x02x",
            "E_BAD_MESSAGE MPUB failed to read message body",
        ),
    ] {
        v2_refuses(stream, text);
    }
}

#[test]
fn v2_magic_and_bytes_after_a_refusal() {
    assert_eq!(v2_items(&Limits::NSQD, &[&b"  V3NOP\n"[..]]), ["E_BAD_PROTOCOL"]);
    let mut decoder = nsqd::CommandDecoder::new();
    let mut input = &b"  V2X\nNOP\n"[..];
    assert!(decoder.next(&Limits::NSQD, &mut input).is_err_and(|refusal| refusal.is_fatal()));
    assert_eq!(decoder.next(&Limits::NSQD, &mut input), Ok(None));
    assert!(input.is_empty() && decoder.end().is_ok());
}

#[test]
fn v2_sub_needs_heartbeats() {
    let mut decoder = nsqd::CommandDecoder::new();
    decoder.set_heartbeats(false);
    let mut input = &b"  V2PUB t\n\0\0\0\x01xSUB\n"[..];
    let refusal = loop {
        match decoder.next(&Limits::NSQD, &mut input) {
            Ok(item) => assert!(item.is_some()),
            Err(refusal) => break refusal.to_string(),
        }
    };
    assert_eq!(refusal, "E_INVALID cannot SUB with heartbeats disabled");
}

#[test]
fn v2_settings() {
    let set =
        |settings: Settings| settings.check(&Limits::NSQD).map_err(|refusal| refusal.to_string());
    let none = Settings::new();
    let taken: [&[i32]; 5] = [
        &[1000, 60_000, -1, 0],
        &[64, 65_536, -1, 0],
        &[25, 30_000, -1, 0],
        &[1000, 900_000, 0],
        &[0, 1, 99],
    ];
    let refused: [&[i32]; 5] = [
        &[999, 60_001, -2, 1, i32::MIN, i32::MAX],
        &[63, 65_537, -2, 1],
        &[24, 30_001, -2, 1],
        &[999, 900_001, -1, 1],
        &[100, -1],
    ];
    let names = [
        "heartbeat interval",
        "output buffer size",
        "output buffer timeout",
        "msg timeout",
        "sample rate",
    ];
    for (index, name) in names.into_iter().enumerate() {
        let with = |value: i32| match index {
            0 => Settings { heartbeat_interval: value, ..none },
            1 => Settings { output_buffer_size: value, ..none },
            2 => Settings { output_buffer_timeout: value, ..none },
            3 => Settings { msg_timeout: value, ..none },
            _ => Settings { sample_rate: value, ..none },
        };
        for value in taken[index] {
            assert_eq!(set(with(*value)), Ok(()), "{name} {value}");
        }
        for value in refused[index] {
            let text = format!("E_BAD_BODY IDENTIFY {name} ({value}) is invalid");
            assert_eq!(set(with(*value)), Err(text));
        }
    }
    let both = Settings { feature_negotiation: true, deflate: true, snappy: true, ..none };
    let text = "E_IDENTIFY_FAILED cannot enable both deflate and snappy compression";
    assert_eq!(set(both), Err(text.to_string()));
    // Not refused by a server without compression, or without negotiation.
    assert_eq!(both.check(&Limits { deflate: false, ..Limits::NSQD }), Ok(()));
    assert_eq!(set(Settings { feature_negotiation: false, ..both }), Ok(()));
}

#[test]
fn v2_identify_bodies() {
    let text = "E_BAD_BODY IDENTIFY failed to decode JSON body";
    for body in [
        "",
        "x",
        "[]",
        "{",
        "{}x",
        "null{}",
        "\"\"",
        r#"{"client_id":1}"#,
        r#"{"HOSTNAME":1}"#,
        r#"{"msg_timeout":"1"}"#,
        r#"{"tls_v1":1}"#,
        r#"{"sample_rate":1.5}"#,
        r#"{"deflate":[true]}"#,
    ] {
        assert_eq!(identification(&[body.as_bytes()]).unwrap_err().to_string(), text, "{body}");
    }
    for body in [
        r#"{"heartbeat_interval":100}"#,
        r#"{"Heartbeat_Interval":100}"#,
        r#"{"heartbeat_interval":1000,"HEARTBEAT_INTERVAL":100}"#,
        r#"{"\u0048eartbeat_interval":100,"heartbeat_interval":null}"#,
    ] {
        assert_eq!(
            identification(&[body.as_bytes()]).unwrap_err().to_string(),
            "E_BAD_BODY IDENTIFY heartbeat interval (100) is invalid",
            "{body}"
        );
    }
    assert_eq!(identification(&[b"null"]), identification(&[b"{}"]));
}

#[test]
fn v2_refusals_of_the_engine() {
    for (refusal, text, fatal) in [
        (Refusal::HeartbeatsOff, "E_INVALID cannot SUB with heartbeats disabled", true),
        (Refusal::AuthDisabled, "E_AUTH_DISABLED AUTH disabled", true),
        (
            Refusal::NotInFlight { verb: Verb::Fin, id: ID },
            "E_FIN_FAILED FIN 0e56cbb0bd1e8000 failed ID not in flight",
            false,
        ),
        (
            Refusal::NotOwner { verb: Verb::Req, id: ID },
            "E_REQ_FAILED REQ 0e56cbb0bd1e8000 failed client does not own message",
            false,
        ),
        (
            Refusal::NotInFlight { verb: Verb::Touch, id: ID },
            "E_TOUCH_FAILED TOUCH 0e56cbb0bd1e8000 failed ID not in flight",
            false,
        ),
        (Refusal::Failed { verb: Verb::Pub, why: "full" }, "E_PUB_FAILED PUB failed full", true),
        (Refusal::Failed { verb: Verb::Mpub, why: "full" }, "E_MPUB_FAILED MPUB failed full", true),
        (Refusal::Failed { verb: Verb::Dpub, why: "full" }, "E_DPUB_FAILED DPUB failed full", true),
        (
            Refusal::Failed { verb: Verb::Sub, why: "exiting" },
            "E_SUB_FAILED SUB failed exiting",
            true,
        ),
    ] {
        assert_eq!(refusal.to_string(), text);
        assert_eq!(emitted!(refusal), text.as_bytes());
        assert_eq!(refusal.is_fatal(), fatal);
        assert_eq!(ErrorCode::parse(text.as_bytes()).0, refusal.code());
    }
}

#[test]
fn v1_lines() {
    const IDENTIFIED: &str = "IDENTIFY\n\0\0\0\x02{}";
    for (line, text) in [
        ("\n", "E_INVALID invalid command "),
        ("ping\n", "E_INVALID invalid command ping"),
        (" \t x y \r\n", "E_INVALID invalid command x"),
        ("REGISTER t!\n", "E_INVALID client must IDENTIFY"),
        ("UNREGISTER\n", "E_INVALID client must IDENTIFY"),
        ("IDENTIFY\n\0\0\0\x02{}IDENTIFY\n", "E_INVALID cannot IDENTIFY again"),
        ("IDENTIFY\n\0", "E_BAD_BODY IDENTIFY failed to read body size"),
        ("IDENTIFY x\n\0\0\0\x05{", "E_BAD_BODY IDENTIFY failed to read body"),
    ] {
        v1_refuses(line.as_bytes(), text);
    }
    for (line, text) in [
        ("REGISTER", "E_INVALID REGISTER insufficient number of params"),
        ("UNREGISTER  ", "E_INVALID UNREGISTER insufficient number of params"),
        ("REGISTER  c", "E_BAD_TOPIC REGISTER topic name '' is not valid"),
        ("REGISTER t\"! c", "E_BAD_TOPIC REGISTER topic name 't\"!' is not valid"),
        ("UNREGISTER t! c!", "E_BAD_TOPIC UNREGISTER topic name 't!' is not valid"),
        ("REGISTER t c!", "E_BAD_CHANNEL REGISTER channel name 'c!' is not valid"),
        ("UNREGISTER t c#x", "E_BAD_CHANNEL UNREGISTER channel name 'c#x' is not valid"),
    ] {
        v1_refuses(format!("{IDENTIFIED}{line}\n").as_bytes(), text);
    }
    // As in nsqlookupd, an empty channel means no channel.
    let stream = format!("  V1{IDENTIFIED}REGISTER t  c\n");
    assert_eq!(v1_items(9, &[stream.as_bytes()])[4], "Register { topic: \"t\", channel: None }");
    assert_eq!(v1_items(9, &[&b"  V2PING\n"[..]]), ["E_BAD_PROTOCOL"]);
}

#[test]
fn v1_identify_bodies() {
    let full = r#"{"broadcast_address":"a","tcp_port":1,"http_port":2,"version":"v","hostname":null,"x":{}}"#;
    assert!(node(&[full.as_bytes()]).is_ok());
    assert_eq!(
        node(&[full.to_uppercase().replace("NULL", "null").as_bytes()]).unwrap().broadcast_address,
        "A"
    );
    assert_eq!(node(&[b"null"]), Err(nsqlookupd::Refusal::MissingFields));
    let odd = full.replace("\"v\"", "\"\u{e9}\"");
    let bytes = odd.as_bytes().iter().map(|&byte| if byte == 0xa9 { b'v' } else { byte });
    // Invalid UTF-8 is replaced, as in Go.
    assert_eq!(node(&[&bytes.collect::<Vec<_>>()[..]]).unwrap().version, "\u{fffd}v");
    for (from, to, refusal) in [
        ("\"a\"", "\"\"", nsqlookupd::Refusal::MissingFields),
        ("\"a\"", "null", nsqlookupd::Refusal::MissingFields),
        ("\"v\"", "\"\"", nsqlookupd::Refusal::MissingFields),
        (":1", ":0", nsqlookupd::Refusal::MissingFields),
        (":2", ":65536", nsqlookupd::Refusal::MissingFields),
        ("\"http_port\":2,", "", nsqlookupd::Refusal::MissingFields),
        (":1", ":\"1\"", nsqlookupd::Refusal::BadJson),
        (":1", ":1.5", nsqlookupd::Refusal::BadJson),
        (":1", ":1,\"Tcp_Port\":0", nsqlookupd::Refusal::MissingFields),
        (":1", ":1,\"remote_address\":1", nsqlookupd::Refusal::BadJson),
        ("\"v\"", "1", nsqlookupd::Refusal::BadJson),
        ("{}}", "{}", nsqlookupd::Refusal::BadJson),
        ("\"a\"", &format!("\"{}\"", "a".repeat(97)), nsqlookupd::Refusal::AddressTooLong),
    ] {
        assert_eq!(node(&[full.replacen(from, to, 1).as_bytes()]), Err(refusal), "{from} {to}");
    }
    assert_eq!(
        nsqlookupd::Refusal::MissingFields.to_string(),
        "E_BAD_BODY IDENTIFY missing fields"
    );
    assert_eq!(
        nsqlookupd::Refusal::BadJson.to_string(),
        "E_BAD_BODY IDENTIFY failed to decode JSON body"
    );
    assert_eq!(
        emitted!(nsqlookupd::Refusal::AddressTooLong),
        b"E_BAD_BODY IDENTIFY broadcast_address longer than 96 bytes"
    );
}
