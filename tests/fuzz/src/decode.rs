//! Decoders: what comes out does not depend on where the stream was split.

use std::fmt::{Display, Write as _};

use nanonsq_core::wire::http::ResponseDecoder;
use nanonsq_core::wire::json::{Fields, Scanner, Token};
use nanonsq_core::wire::v1::{self, NodeScanner, PeerInfoScanner, ReplyDecoder};
use nanonsq_core::wire::v2::{
    self, AuthScanner, ErrorCode, FrameDecoder, GrantedScanner, IdentifyScanner, Limits, Message,
    NegotiatedScanner,
};

use crate::feature;
use crate::input::pieces;

/// What came out of a stream, in which splits do not show.
#[derive(Debug, Default, PartialEq)]
struct Transcript {
    said: String,
    /// A fault ended it.
    over: bool,
    kinds: usize,
}

impl Transcript {
    fn item(&mut self, kind: &str, rest: impl Display) {
        if self.kinds < 6 {
            // What comes first is what later things depend on.
            feature((self.kinds, kind));
        }
        self.kinds += 1;
        let _ = write!(self.said, " {kind} {rest}");
    }

    fn data(&mut self, data: &[u8]) {
        let _ = write!(self.said, "{}", data.escape_ascii());
    }

    fn fault(&mut self, fault: impl Display) {
        let text = fault.to_string();
        assert!(text.len() > 3, "a fault has a reason: {text:?}");
        // Not what is quoted in it.
        feature((
            "fault",
            text.split(' ').take(2).filter(|word| word.is_ascii()).count(),
            text.len() / 8,
        ));
        let _ = write!(self.said, " !{text}");
        self.over = true;
    }
}

/// Decodes a stream twice, in one piece and in others.
fn agree(data: &[u8], decode: impl Fn(&mut dyn Iterator<Item = &[u8]>) -> Transcript) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = decode(&mut std::iter::once(stream));
    let split = decode(&mut pieces(stream, seed));
    assert_eq!(whole.said, split.said, "splits show, with {seed}");
}

/// Takes all that `next` has to give; it must give nothing only once it took all.
fn drain<'b>(
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
            assert!(input.is_empty(), "gave nothing and left something");
            return;
        }
    }
    panic!("more items than bytes");
}

pub(crate) fn v2_frames(data: &[u8]) {
    const MAX: u32 = 1000;
    agree(data, |pieces| {
        let mut decoder = FrameDecoder::new(MAX);
        let mut transcript = Transcript::default();
        let mut frame = Vec::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(part)) => {
                    assert!(part.size <= MAX && part.data.len() <= part.size as usize);
                    if part.first {
                        frame.clear();
                        transcript.item(&format!("{:?}", part.frame_type), part.size);
                    }
                    assert!(part.first || !part.data.is_empty());
                    frame.extend_from_slice(part.data);
                    assert_eq!(part.last, frame.len() == part.size as usize);
                    if part.last {
                        transcript.data(&frame);
                        let (code, _) = ErrorCode::parse(&frame);
                        feature(std::mem::discriminant(&code));
                        if let Some(message) = Message::parse(&frame) {
                            assert_eq!(message.encoded_len(), frame.len());
                        }
                    }
                    true
                }
                Ok(None) => false,
                Err(fault) => {
                    transcript.fault(fault);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        transcript
    });
}

pub(crate) fn v2_commands(data: &[u8]) {
    let limits = Limits { max_msg_size: 300, max_body_size: 1000, ..Limits::NSQD };
    agree(data, |pieces| {
        let mut decoder = v2::CommandDecoder::new();
        let mut transcript = Transcript::default();
        let mut identify = IdentifyScanner::<24, 20>::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(&limits, input) {
                Ok(Some(v2::Item::Part { data, last, done })) => {
                    assert!(!data.is_empty() && (last || !done));
                    transcript.data(data);
                    if last {
                        transcript.item("end", done);
                    }
                    let _ = identify.feed(data);
                    true
                }
                Ok(Some(item)) => {
                    match item {
                        v2::Item::Body { len } => assert!((1..=1000).contains(&len)),
                        v2::Item::Batch { count, .. } => assert!((1..=199).contains(&count)),
                        v2::Item::Req { delay_ms, .. } => {
                            assert!(delay_ms <= limits.max_req_timeout_ms);
                        }
                        v2::Item::Identify => identify = IdentifyScanner::new(),
                        _ => {}
                    }
                    let text = format!("{item:?}");
                    let kind = text.split(['(', ' ']).next().unwrap_or_default();
                    transcript.item(kind, &text);
                    true
                }
                Ok(None) => false,
                Err(refusal) => {
                    transcript.fault(refusal);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        let _ = write!(transcript.said, " at boundary: {}", decoder.at_boundary());
        if let Err(refusal) = decoder.end() {
            transcript.fault(refusal);
            assert_eq!(decoder.end(), Ok(()), "refused once");
        }
        transcript
    });
}

pub(crate) fn v1_replies(data: &[u8]) {
    agree(data, |pieces| {
        let mut decoder = ReplyDecoder::new(1000);
        let mut transcript = Transcript::default();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(part)) => {
                    assert!(part.data.len() <= 1000);
                    if part.first {
                        transcript.item("reply", "");
                    }
                    transcript.data(part.data);
                    if part.last {
                        transcript.item("end", decoder.at_boundary());
                    }
                    true
                }
                Ok(None) => false,
                Err(fault) => {
                    transcript.fault(fault);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        transcript
    });
}

pub(crate) fn v1_commands(data: &[u8]) {
    agree(data, |pieces| {
        let mut decoder = v1::CommandDecoder::new(500);
        let mut transcript = Transcript::default();
        let mut node = NodeScanner::new();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(v1::Item::Part { data, last })) => {
                    transcript.data(data);
                    if last {
                        transcript.item("end", "");
                    }
                    let _ = node.feed(data);
                    true
                }
                Ok(Some(item)) => {
                    if let v1::Item::Body { len } = item {
                        assert!(len <= 500);
                    }
                    let text = format!("{item:?}");
                    let kind = text.split(['(', ' ']).next().unwrap_or_default();
                    transcript.item(kind, &text);
                    true
                }
                Ok(None) => false,
                Err(refusal) => {
                    transcript.fault(refusal);
                    false
                }
            });
            if transcript.over {
                break;
            }
        }
        let _ = write!(transcript.said, " at boundary: {}", decoder.at_boundary());
        if let Err(refusal) = decoder.end() {
            transcript.fault(refusal);
        }
        transcript
    });
}

pub(crate) fn http_response(data: &[u8]) {
    agree(data, |pieces| {
        let mut decoder = ResponseDecoder::new();
        let mut transcript = Transcript::default();
        for piece in pieces {
            drain(piece, &mut transcript, |input, transcript| match decoder.next(input) {
                Ok(Some(body)) => {
                    assert!(!body.is_empty());
                    if transcript.kinds == 0 {
                        transcript.item("body", decoder.status().expect("a head before a body"));
                    }
                    transcript.data(body);
                    true
                }
                Ok(None) => false,
                Err(error) => {
                    transcript.fault(error);
                    false
                }
            });
            if transcript.over {
                return transcript;
            }
        }
        let _ = write!(transcript.said, " {:?} {}", decoder.status(), decoder.is_complete());
        feature((decoder.status().map(|status| status / 100), decoder.is_complete()));
        if let Err(error) = decoder.finish() {
            transcript.fault(error);
        } else {
            assert!(decoder.is_complete());
        }
        transcript
    });
}

/// One text to all that read JSON.
pub(crate) fn json(data: &[u8]) {
    agree(data, |pieces| {
        let mut transcript = Transcript::default();
        let mut scanner = Scanner::<20>::new();
        let mut fields = Fields::<12>::new();
        let mut field_error = None;
        let mut is_object = false;
        let mut negotiated = NegotiatedScanner::new();
        let mut granted = GrantedScanner::new();
        let mut auth = AuthScanner::new();
        let mut identify = IdentifyScanner::<24, 20>::new();
        let mut info = PeerInfoScanner::new();
        let mut node = NodeScanner::new();
        for piece in pieces {
            // Each of them has its own opinion of where it ends.
            let _ = negotiated.feed(piece);
            granted.feed(piece);
            let _ = auth.feed(piece);
            let _ = identify.feed(piece);
            let _ = info.feed(piece);
            let _ = node.feed(piece);
            let mut rest = piece;
            while field_error.is_none() {
                match fields.next(&["a", "tcp_port"], &mut rest) {
                    Ok(Some((key, value))) => {
                        feature(("field", key, std::mem::discriminant(&value)));
                    }
                    Ok(None) => break,
                    Err(error) => field_error = Some(error),
                }
            }
            if !transcript.over {
                drain(piece, &mut transcript, |input, transcript| match scanner.next(input) {
                    Ok(Some(token)) => {
                        is_object |= transcript.kinds == 0 && token == Token::ObjectStart;
                        let text = match token {
                            Token::Key(text) | Token::String(text) => {
                                assert!(text.as_bytes().len() <= 20);
                                format!("{:?} {}", text.as_str(), text.truncated())
                            }
                            other => format!("{other:?}"),
                        };
                        transcript.item("token", text);
                        true
                    }
                    Ok(None) => false,
                    Err(error) => {
                        transcript.fault(error);
                        false
                    }
                });
                assert!(scanner.depth() < 256);
            }
        }
        let mut end = String::new();
        if !transcript.over {
            match scanner.end() {
                Ok(token) => {
                    let _ = write!(end, "{token:?}");
                    let agree = field_error.is_none() || !is_object;
                    assert!(agree, "the one takes it, the other does not: {field_error:?}");
                }
                Err(error) => end = error.to_string(),
            }
        }
        let _ = write!(
            transcript.said,
            " {end} {field_error:?} {:?} {:?} {:?} {:?} {:?} {:?}",
            negotiated.finish(),
            granted.finish(),
            auth.finish().map_err(|error| error.to_string()),
            identify.finish(&Limits::NSQD).map_err(|refusal| refusal.to_string()),
            info.finish().map_err(|error| error.to_string()),
            node.finish().map_err(|refusal| refusal.to_string()),
        );
        let required = granted.finish().map(|granted| granted.auth_required);
        feature(("auth required", required.ok(), negotiated.finish().is_ok()));
        transcript
    });
}

/// Each of these behind each way to split.
fn split_seeds(streams: &[&[u8]]) -> Vec<Vec<u8>> {
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

pub(crate) fn json_seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        br#"{"broadcast_address":"l","hostname":"l","http_port":1,"tcp_port":2,"version":"1"}"#,
        br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"auth_required":true,"sample_rate":0}"#,
        br#"{"identity":"\u00e9\ud83d\ude00","identity_url":"","permission_count":3}"#,
        br#"{"client_id":null,"heartbeat_interval":-1,"hostname":"a\nb","tls_v1":true,"feature_negotiation":true}"#,
        br#"[1,-2.5e7,[[[[[["\"\\\/\b"]]]]]],null,true,false,{"":{}}]"#,
        b" [ ",
        br#"{"a":12345678901,"tcp_port":"x","a":{"tcp_port":[1]}} 7"#,
        b"-0.0e+0",
    ])
}
