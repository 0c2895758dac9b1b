//! The protocol between nsqd and nsqlookupd 1.3.0, byte for byte.

use nanonsq_core::wire::nsqlookupd::{
    Command, IdentifyReply, LINE_MAX, MAGIC, NodeInfo, OK, Refusal, emit_refusal, emit_reply,
};

use crate::emitted;
use crate::support::{channel, node, replies, topic, v1_items};

/// The body of IDENTIFY of the real nsqd.
pub(crate) const IDENTIFY: &str = r#"{"broadcast_address":"127.0.0.1","hostname":"vm","http_port":24351,"tcp_port":24350,"topology_region":"","topology_zone":"","version":"1.3.0"}"#;

/// The response of the real nsqlookupd.
pub(crate) const IDENTIFY_REPLY: &str = r#"{"broadcast_address":"127.0.0.1","hostname":"vm","http_port":24161,"tcp_port":24160,"version":"1.3.0"}"#;

pub(crate) const NODE: NodeInfo<'static> = NodeInfo {
    broadcast_address: "127.0.0.1",
    hostname: "vm",
    http_port: 24351,
    tcp_port: 24350,
    topology_region: "",
    topology_zone: "",
    version: "1.3.0",
};

#[test]
fn identify_is_nsqds() {
    assert_eq!(IDENTIFY.len(), 142);
    assert_eq!(emitted!(NODE), IDENTIFY.as_bytes());
    let mut expected = b"IDENTIFY\n\0\0\0\x8e".to_vec();
    expected.extend_from_slice(IDENTIFY.as_bytes());
    assert_eq!(emitted!(Command::Identify(&NODE)), expected);
}

#[test]
fn identify_reply_is_nsqlookupds() {
    assert_eq!(IDENTIFY_REPLY.len(), 102);
    let reply = IdentifyReply {
        broadcast_address: "127.0.0.1",
        hostname: "vm",
        http_port: 24161,
        tcp_port: 24160,
        version: "1.3.0",
    };
    assert_eq!(emitted!(reply), IDENTIFY_REPLY.as_bytes());
}

#[test]
fn commands_are_nsqds() {
    let (t, c) = (topic("t1"), channel("c#ephemeral"));
    let lines = [
        (Command::Ping, "PING\n"),
        (Command::Register { topic: &t, channel: None }, "REGISTER t1\n"),
        (Command::Register { topic: &t, channel: Some(&c) }, "REGISTER t1 c#ephemeral\n"),
        (Command::Unregister { topic: &t, channel: None }, "UNREGISTER t1\n"),
        (Command::Unregister { topic: &t, channel: Some(&c) }, "UNREGISTER t1 c#ephemeral\n"),
    ];
    for (command, line) in lines {
        assert_eq!(emitted!(command), line.as_bytes());
    }
    let (t, c) = (topic(&"t".repeat(64)), channel(&"c".repeat(64)));
    let longest = emitted!(Command::Unregister { topic: &t, channel: Some(&c) });
    assert_eq!(longest.len(), LINE_MAX);
}

#[test]
fn every_command_makes_the_round_trip() {
    let (t, c) = (topic(&"t".repeat(64)), channel(&"c".repeat(64)));
    let mut stream = MAGIC.to_vec();
    for command in [
        Command::Ping,
        Command::Identify(&NODE),
        Command::Register { topic: &t, channel: None },
        Command::Register { topic: &t, channel: Some(&c) },
        Command::Unregister { topic: &t, channel: None },
        Command::Unregister { topic: &t, channel: Some(&c) },
        Command::Ping,
    ] {
        stream.extend_from_slice(&emitted!(command));
    }
    let expected = [
        "Ping".to_string(),
        "Identify".to_string(),
        "Body { len: 142 }".to_string(),
        format!("data {}", IDENTIFY.as_bytes().escape_ascii()),
        "done".to_string(),
        format!("Register {{ topic: {t:?}, channel: None }}"),
        format!("Register {{ topic: {t:?}, channel: Some({c:?}) }}"),
        format!("Unregister {{ topic: {t:?}, channel: None }}"),
        format!("Unregister {{ topic: {t:?}, channel: Some({c:?}) }}"),
        "Ping".to_string(),
        "true".to_string(),
    ];
    assert_eq!(v1_items(1024, &[&stream[..]]), expected);
}

#[test]
fn a_node_makes_the_round_trip_through_its_scanner() {
    let parsed = node(&[IDENTIFY.as_bytes()]).unwrap();
    assert_eq!(parsed.info(), NODE);
    let odd = NodeInfo { hostname: "a\"b\\c\u{1}\u{20ac}", ..NODE };
    assert_eq!(node(&[&emitted!(odd)[..]]).unwrap().info(), odd);
}

#[test]
fn replies_are_nsqlookupds() {
    let mut stream = Vec::new();
    emit_reply(&mut stream, OK).unwrap();
    emit_reply(&mut stream, b"").unwrap();
    emit_refusal(&mut stream, &Refusal::BadProtocol).unwrap();
    assert_eq!(stream, b"\0\0\0\x02OK\0\0\0\0\0\0\0\x0eE_BAD_PROTOCOL");
    let expected = [
        "reply",
        "data OK",
        "end",
        "reply",
        "data ",
        "end",
        "reply",
        "data E_BAD_PROTOCOL",
        "end",
        "whole",
    ];
    assert_eq!(replies(&[&stream[..]]), expected);
}
