//! Decoders: the results do not depend on where the stream was split, and are those of a simple
//! reference that reads the whole stream.

use std::fmt::{Display, Write as _};

use nanonsq_core::address::Address;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::wire::http::ResponseDecoder;
use nanonsq_core::wire::nsqd::{self, ErrorCode, FrameDecoder, Limits, Message};
use nanonsq_core::wire::nsqlookupd::{self, ReplyDecoder};

use crate::feature;
use crate::input::pieces;
use crate::json::Scanned;
use crate::reference::{self, commands, names};

/// The results of decoding a stream, in which splits do not show.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Transcript {
    /// The results that the reference also returns.
    pub(crate) items: String,
    /// Further results: the reasons of errors, the final state.
    pub(crate) rest: String,
    /// True once decoding failed.
    pub(crate) over: bool,
    pub(crate) kinds: usize,
    /// For JSON, the results of the scanners.
    pub(crate) scanned: Option<Scanned>,
}

impl Transcript {
    pub(crate) fn item(&mut self, kind: &str, rest: impl Display) {
        if self.kinds < 6 {
            // Later items depend on the first ones.
            feature((self.kinds, kind));
        }
        self.kinds += 1;
        let _ = write!(self.items, " {kind}{rest}");
    }

    fn data(&mut self, data: &[u8]) {
        let _ = write!(self.items, "{}", data.escape_ascii());
    }

    /// Records an error, with its code if it has one.
    pub(crate) fn fault(&mut self, code: &str, fault: impl Display) {
        let text = fault.to_string();
        assert!(text.len() > 3, "a fault has a reason: {text:?}");
        // Without the quoted part.
        feature((
            "fault",
            text.split(' ').take(2).filter(|word| word.is_ascii()).count(),
            text.len() / 8,
        ));
        let _ = write!(self.items, " !{code}");
        let _ = write!(self.rest, " !{text}");
        self.over = true;
    }
}

/// Decodes a stream in one piece and split, and compares both with the expected results.
pub(crate) fn agree(
    data: &[u8],
    decode: impl Fn(&mut dyn Iterator<Item = &[u8]>) -> Transcript,
    expected: impl Fn(&[u8]) -> String,
) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = decode(&mut std::iter::once(stream));
    let split = decode(&mut pieces(stream, seed));
    assert_eq!(whole.items, expected(stream), "the results differ from the reference's");
    assert_eq!(whole.items, split.items, "splits show, seed {seed}");
    assert_eq!(whole.rest, split.rest, "splits show, seed {seed}");
}

/// Calls `next` until it returns nothing; by then it must have consumed all of the piece.
pub(crate) fn drain<'b>(
    piece: &'b [u8],
    transcript: &mut Transcript,
    mut next: impl FnMut(&mut &'b [u8], &mut Transcript) -> bool,
) {
    let mut input = piece;
    for _ in 0..=2 * piece.len() + 1 {
        let more = next(&mut input, transcript);
        if transcript.over {
            return;
        }
        if !more {
            assert!(input.is_empty(), "bytes were left without an item");
            return;
        }
    }
    panic!("more items than bytes");
}

pub(crate) fn v2_frames(data: &[u8]) {
    const MAX: u32 = 1000;
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = FrameDecoder::new(MAX);
        let mut transcript = Transcript::default();
        let mut frame = Vec::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(part)) => {
                    assert!(part.size <= MAX && part.data.len() <= part.size as usize);
                    assert_eq!(part.first, frame.is_empty());
                    assert!(part.first || !part.data.is_empty());
                    frame.extend_from_slice(part.data);
                    assert_eq!(part.last, frame.len() == part.size as usize);
                    if part.last {
                        transcript.item(&format!("{:?}", part.frame_type), " ");
                        transcript.data(&frame);
                        read_frame(&frame);
                        frame.clear();
                    }
                    true
                }
                Ok(None) => false,
                Err(fault) => {
                    transcript.fault("", fault);
                    false
                }
            });
            if transcript.over {
                return transcript;
            }
        }
        let _ = write!(transcript.items, " at boundary: {}", decoder.at_boundary());
        transcript
    };
    agree(data, decode, |stream| reference::frames(stream, MAX));
}

/// Checks further parsers of a frame: an error's code, a message.
fn read_frame(frame: &[u8]) {
    let (code, detail) = ErrorCode::parse(frame);
    feature(std::mem::discriminant(&code));
    let word = frame.split(|byte| *byte == b' ').next().expect("one at least");
    if code == ErrorCode::Other {
        assert_eq!(detail, frame, "the whole text of an unknown code");
    } else {
        assert_eq!(code.as_str().as_bytes(), word);
        assert_eq!(detail, frame.get(word.len() + 1..).unwrap_or_default());
    }
    let message = Message::parse(frame);
    assert_eq!(message.is_some(), frame.len() >= 26);
    if let Some(message) = message {
        let head = message.head;
        let again = [
            &head.timestamp.to_be_bytes()[..],
            &head.attempts.to_be_bytes(),
            &head.id.0,
            message.body,
        ];
        assert_eq!(again.concat(), frame);
    }
}

pub(crate) fn v2_commands(data: &[u8]) {
    let limits = Limits { max_msg_size: 300, max_body_size: 1000, ..Limits::NSQD };
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = nsqd::CommandDecoder::new();
        let mut transcript = Transcript::default();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(&limits, input) {
                Ok(Some(item)) => {
                    v2_item(transcript, item);
                    true
                }
                Ok(None) => false,
                Err(refusal) => {
                    assert!(refusal.is_fatal());
                    transcript.fault(refusal.code().as_str(), refusal);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        if transcript.over {
            assert!(!decoder.at_boundary());
        } else {
            let _ = write!(transcript.items, " at boundary: {}", decoder.at_boundary());
        }
        if let Err(refusal) = decoder.end() {
            transcript.fault(refusal.code().as_str(), refusal);
            assert_eq!(decoder.end(), Ok(()), "refused once");
        }
        transcript
    };
    agree(data, decode, |stream| commands::nsqd(stream, &limits));
}

fn v2_item(transcript: &mut Transcript, item: nsqd::Item<'_>) {
    let id = |id: nsqd::MessageId| id.0.escape_ascii().to_string();
    match item {
        nsqd::Item::Identify => transcript.item("Identify", ""),
        nsqd::Item::Auth => transcript.item("Auth", ""),
        nsqd::Item::Sub { topic, channel } => transcript.item("Sub", format!(" {topic} {channel}")),
        nsqd::Item::Rdy(count) => transcript.item("Rdy", format!(" {count}")),
        nsqd::Item::Fin(message) => transcript.item("Fin", format!(" {}", id(message))),
        nsqd::Item::Req { id: message, delay_ms } => {
            transcript.item("Req", format!(" {} {delay_ms}", id(message)));
        }
        nsqd::Item::Touch(message) => transcript.item("Touch", format!(" {}", id(message))),
        nsqd::Item::Cls => transcript.item("Cls", ""),
        nsqd::Item::Nop => transcript.item("Nop", ""),
        nsqd::Item::Pub { topic } => transcript.item("Pub", format!(" {topic}")),
        nsqd::Item::Mpub { topic } => transcript.item("Mpub", format!(" {topic}")),
        nsqd::Item::Dpub { topic, defer_ms } => {
            transcript.item("Dpub", format!(" {topic} {defer_ms}"));
        }
        nsqd::Item::Batch { len, count } => transcript.item("Batch", format!(" {len} {count}")),
        nsqd::Item::Body { len } => transcript.item("Body", format!(" {len} ")),
        nsqd::Item::Part { data, last, done } => {
            assert!(!data.is_empty() && (last || !done));
            transcript.data(data);
            if last {
                transcript.item("end", format!(" {done}"));
            }
        }
    }
}

pub(crate) fn v1_replies(data: &[u8]) {
    const MAX: u32 = 1000;
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = ReplyDecoder::new(MAX);
        let mut transcript = Transcript::default();
        let mut reply = Vec::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(part)) => {
                    assert_eq!(part.first, reply.is_empty());
                    assert!(!part.data.is_empty() || (part.first && part.last));
                    reply.extend_from_slice(part.data);
                    if part.last {
                        feature(("reply", reply.len().min(20), transcript.kinds.min(9)));
                        transcript.item("reply", " ");
                        transcript.data(&reply);
                        reply.clear();
                    }
                    assert_eq!(part.last, decoder.at_boundary());
                    true
                }
                Ok(None) => false,
                Err(fault) => {
                    transcript.fault("", fault);
                    false
                }
            });
            if transcript.over {
                return transcript;
            }
        }
        let _ = write!(transcript.items, " at boundary: {}", decoder.at_boundary());
        transcript
    };
    agree(data, decode, |stream| reference::replies(stream, MAX));
}

pub(crate) fn v1_commands(data: &[u8]) {
    const MAX: u32 = 500;
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = nsqlookupd::CommandDecoder::new(MAX);
        let mut transcript = Transcript::default();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(item)) => {
                    v1_item(transcript, item);
                    true
                }
                Ok(None) => false,
                Err(refusal) => {
                    transcript.fault(code(&refusal.to_string()), refusal);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        if transcript.over {
            assert!(!decoder.at_boundary());
        } else {
            let _ = write!(transcript.items, " at boundary: {}", decoder.at_boundary());
        }
        if let Err(refusal) = decoder.end() {
            transcript.fault(code(&refusal.to_string()), refusal);
            assert_eq!(decoder.end(), Ok(()), "refused once");
        }
        transcript
    };
    agree(data, decode, |stream| commands::nsqlookupd(stream, MAX));
}

fn v1_item(transcript: &mut Transcript, item: nsqlookupd::Item<'_>) {
    let names = |topic: TopicName, channel: Option<ChannelName>| {
        let channel = channel.map_or("-".to_owned(), |channel| channel.to_string());
        format!(" {topic} {channel}")
    };
    match item {
        nsqlookupd::Item::Ping => transcript.item("Ping", ""),
        nsqlookupd::Item::Identify => transcript.item("Identify", ""),
        nsqlookupd::Item::Register { topic, channel } => {
            transcript.item("Register", names(topic, channel));
        }
        nsqlookupd::Item::Unregister { topic, channel } => {
            transcript.item("Unregister", names(topic, channel));
        }
        nsqlookupd::Item::Body { len } => transcript.item("Body", format!(" {len} ")),
        nsqlookupd::Item::Part { data, last } => {
            transcript.data(data);
            if last {
                transcript.item("end", " true");
            }
        }
    }
}

/// Returns the code at the beginning of an nsqlookupd's refusal.
fn code(refusal: &str) -> &str {
    refusal.split(' ').next().expect("one word")
}

pub(crate) fn http_response(data: &[u8]) {
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut decoder = ResponseDecoder::new();
        let mut transcript = Transcript::default();
        let mut whole = Vec::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(body)) => {
                    assert!(!body.is_empty());
                    if whole.is_empty() {
                        transcript.item("body", decoder.status().expect("a head before a body"));
                    }
                    whole.extend_from_slice(body);
                    true
                }
                Ok(None) => false,
                Err(error) => {
                    transcript.fault("", error);
                    false
                }
            });
            if transcript.over {
                transcript.items = "!".into();
                return transcript;
            }
        }
        let status = decoder.status();
        feature((status.map(|status| status / 25), decoder.is_complete(), whole.len().min(9)));
        let complete = decoder.finish();
        assert_eq!(complete.is_ok(), decoder.is_complete());
        transcript.items = format!("{status:?} {} {}", whole.escape_ascii(), complete.is_ok());
        transcript
    };
    agree(data, decode, |stream| match reference::http::response(stream) {
        None => "!".into(),
        Some((status, body, complete)) => {
            format!("{status:?} {} {complete}", body.escape_ascii())
        }
    });
}

/// Parses a name or an address.
pub(crate) fn names(data: &[u8]) {
    let topic = TopicName::from_bytes(data);
    feature(topic.as_ref().map_err(std::mem::discriminant).map(TopicName::is_ephemeral));
    assert_eq!(topic.is_ok(), names::is_name(data), "{topic:?}");
    match (topic, ChannelName::from_bytes(data)) {
        (Ok(topic), Ok(channel)) => {
            assert_eq!([topic.as_str(), channel.as_str()].map(str::as_bytes), [data; 2]);
            assert_eq!(topic.is_ephemeral(), data.ends_with(b"#ephemeral"));
            assert_eq!(channel.is_ephemeral(), topic.is_ephemeral());
        }
        (topic, channel) => assert_eq!(topic.err(), channel.err(), "the same rules"),
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let address = text.parse::<Address>();
    feature(address.as_ref().err().map(std::mem::discriminant));
    let expected = names::address(text);
    assert_eq!(address.is_ok(), expected.is_some(), "{address:?}");
    if let (Ok(address), Some((host, port))) = (address, expected) {
        assert_eq!((address.host(), address.port()), (host, port));
        assert_eq!(address.to_string().parse(), Ok(address), "the printed address parses again");
    }
}

/// Puts each way to split before a stream.
pub(crate) fn split_seeds(streams: &[&[u8]]) -> Vec<Vec<u8>> {
    let seeds = streams.iter().enumerate();
    seeds.map(|(at, stream)| [&[at as u8], *stream].concat()).collect()
}

pub(crate) const FRAMES: &[&[u8]] = &[
    b"\0\0\0\x06\0\0\0\0OK",
    b"\0\0\0\x0f\0\0\0\0_heartbeat_",
    b"\0\0\0\x12\0\0\0\x01E_BAD_TOPIC x!",
    b"\0\0\0\x04\0\0\0\0",
    b"\0\0\0\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x010123456789abcdefbody",
    b"\0\0\0\x0e\0\0\0\0CLOSE_WAIT",
    b"\0\0\0\x1c\0\0\0\0{\"auth_required\":false }",
    b"\0\0\0\x1b\0\0\0\0{\"auth_required\":true }",
    b"\0\0\0\x06\0\0\0\0OK\0\0\0\x0f\0\0\0\0_heartbeat_\0\0\0\x06\0\0\0\x03OK",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0\0\0\x03\0\0\0\0",
    b"\0\0\x04\0\0\0\0\0",
    b"\0\0\0\x11\0\0\0\x01E_BAD_MESSAGE",
];

pub(crate) fn v2_frames_seeds() -> Vec<Vec<u8>> {
    split_seeds(FRAMES)
}

pub(crate) fn v2_commands_seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        b"  V2SUB topic channel\nRDY 100\nRDY\nFIN 0123456789abcdef\nCLS\nRDY 1\nNOP\n",
        b"  V2IDENTIFY\n\0\0\0\x1d{\"heartbeat_interval\":30000}",
        b"  V2IDENTIFY\n\0\0\0\x02{}AUTH\n\0\0\0\x02s3PUB topic\n\0\0\0\x05hello",
        b"  V2MPUB topic\n\0\0\0\x12\0\0\0\x02\0\0\0\x02ab\0\0\0\x04cdefNOP\n",
        b"  V2DPUB topic 250\n\0\0\0\x05hello",
        b"  V2SUB t c#ephemeral\r\nTOUCH 0123456789abcdef\r\nREQ 0123456789abcdef 1000\n",
        b"  V2PUB bad$topic\n\0\0\0\x05hello",
        b"  V2PUB t\n\0\0\0\0",
        b"  V1PING\n",
    ])
}

pub(crate) fn v1_replies_seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        b"\0\0\0\x02OK\0\0\0\x02OK",
        b"\0\0\0\0",
        b"\0\0\0\x0eE_BAD_PROTOCOL",
        b"\0\0\0\x18{\"broadcast_address\":\"\"}\0\0\0\x02OK",
        b"HTTP/1.1 400 Bad Request",
        b"\0\0\x04\0",
    ])
}

pub(crate) fn v1_commands_seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        b"  V1IDENTIFY\n\0\0\0\x41{\"broadcast_address\":\"a\",\"tcp_port\":1,\"http_port\":2,\
          \"version\":\"v\"}REGISTER topic channel\nPING\n",
        b"  V1PING\nIDENTIFY\n\0\0\0\x02{}UNREGISTER topic#ephemeral\r\n",
        b"  V1REGISTER topic\n",
        b"  V1 PING \r\nIDENTIFY\n\xff\xff\xff\xff",
        b"  V2NOP\n",
    ])
}

pub(crate) fn http_seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 92\r\n\r\n{\"channels\":[\"c\"],\"producers\":[{\
          \"broadcast_address\":\"h\",\"tcp_port\":4150,\"http_port\":4151}]}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1d\r\n{\"producers\":[{\"tcp_port\":1,\
          \r\n1a\r\n\"broadcast_address\":\"h\"}]}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n{\"data\":{\"producers\":[{\"broadcast_address\":\"a\",\"tcp_port\":1},\
          {\"broadcast_address\":\"b\",\"tcp_port\":2},{\"broadcast_address\":\"c\",\"tcp_port\":3}]}}",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 29\r\n\r\n{\"message\":\"TOPIC_NOT_FOUND\"}",
        b"HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10;x=y\r\n{\"producers\":[]}\r\n0\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length:2\n\n{}",
    ])
}

pub(crate) fn names_seeds() -> Vec<Vec<u8>> {
    let long = "x".repeat(54);
    let texts = [
        "a",
        "A-b_c.9",
        "#ephemeral",
        "t#ephemeral",
        "t#ephemera",
        "t#ephemeral2",
        &format!("{long}#ephemeral"),
        &format!("{long}y#ephemeral"),
        "bad name",
        "127.0.0.1:4150",
        "h:0",
        "h:65536",
        "[::1]:4150",
        "::1:4150",
        "[::1]",
        "http://h:1",
        &format!("{long}{}:1", "y".repeat(42)),
        &format!("{long}{}:1", "y".repeat(43)),
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
