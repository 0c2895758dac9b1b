//! Ten million bytes of random and mutated input into every decoder, in random chunks: none
//! panics, each fault has a text, and each call without an item consumes all its input.

use std::fmt::Display;

use nanonsq_core::wire::json::Scanner;
use nanonsq_core::wire::nsqd::{self, FrameDecoder, Limits};
use nanonsq_core::wire::nsqlookupd::{self, ReplyDecoder};

use crate::golden_v1::{IDENTIFY, IDENTIFY_REPLY};
use crate::golden_v2::IDENTIFY_RESPONSE;
use crate::support::Random;

const TOTAL: usize = 10_000_000;

/// Calls `feed` with chunks, and whether a new stream begins, until it has decoded `TOTAL` bytes.
///
/// `feed` returns how many bytes were decoded; as an error if there was a fault.
fn ten_million_bytes(
    seed: u64,
    corpus: &[&[u8]],
    mut feed: impl FnMut(bool, &[u8]) -> Result<usize, usize>,
) {
    let mut random = Random::new(seed);
    let mut stream = Vec::new();
    let mut total = 0;
    while total < TOTAL {
        stream.clear();
        compose(&mut random, corpus, &mut stream);
        let mut fresh = true;
        let mut faulted = false;
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let most = *random.pick(&[1, 3, 17, 200, 5000]);
            let (chunk, tail) = rest.split_at((1 + random.below(most)).min(rest.len()));
            rest = tail;
            match feed(fresh, chunk) {
                Ok(taken) if !faulted => total += taken,
                Ok(_) => {}
                Err(taken) => {
                    if !faulted {
                        total += taken;
                    }
                    faulted = true;
                    // Sometimes a decoder is used after its fault.
                    if random.below(4) != 0 {
                        break;
                    }
                }
            }
            fresh = false;
        }
    }
}

fn compose(random: &mut Random, corpus: &[&[u8]], stream: &mut Vec<u8>) {
    if random.below(8) == 0 {
        for _ in 0..random.below(512) {
            stream.extend_from_slice(&random.next().to_le_bytes());
        }
        return;
    }
    let most = *random.pick(&[1, 1, 12]);
    for _ in 0..1 + random.below(most) {
        stream.extend_from_slice(random.pick::<&[u8]>(corpus));
    }
    for _ in 0..random.below(4) {
        let at = random.below(stream.len());
        match random.below(5) {
            0 => stream[at] = random.next() as u8,
            1 => stream[at] ^= 1 << random.below(8),
            2 => {
                stream.remove(at);
            }
            3 => stream.insert(at, *random.pick(&b"\0\xff\n\r \"\\{}[],:0159-aZ#\x7f"[..])),
            _ => {
                let end = (at + random.below(40)).min(stream.len());
                stream.extend_from_within(at..end);
            }
        }
        if stream.is_empty() {
            stream.push(b'x');
        }
    }
}

#[track_caller]
fn has_a_text(fault: impl Display) {
    let text = fault.to_string();
    assert!(text.len() > 3, "{text:?}");
}

#[test]
fn ten_million_bytes_of_garbage_frames() {
    let corpus: [&[u8]; 5] = [
        b"\0\0\0\x06\0\0\0\0OK",
        b"\0\0\0\x0f\0\0\0\0_heartbeat_",
        b"\0\0\0\x12\0\0\0\x01E_BAD_TOPIC x!",
        b"\0\0\0\x04\0\0\0\0",
        b"\0\0\0\x20\0\0\0\x02\0\0\0\0\0\0\0\0\0\x010123456789abcdefhi",
    ];
    let mut decoder = FrameDecoder::new(0);
    ten_million_bytes(1, &corpus, |fresh, mut chunk| {
        if fresh {
            decoder = FrameDecoder::new(1000);
        }
        let len = chunk.len();
        for _ in 0..=len + 1 {
            match decoder.next(&mut chunk) {
                Ok(Some(part)) => {
                    assert!(part.size <= 1000 && part.data.len() <= part.size as usize);
                    if part.first && part.last {
                        nsqd::ErrorCode::parse(part.data);
                        nsqd::Message::parse(part.data);
                    }
                }
                Ok(None) => {
                    assert!(chunk.is_empty());
                    return Ok(len);
                }
                Err(fault) => {
                    has_a_text(fault);
                    return Err(len - chunk.len());
                }
            }
        }
        panic!("more parts than bytes");
    });
}

#[test]
fn ten_million_bytes_of_garbage_replies() {
    let mut long = b"\0\0\0\x66".to_vec();
    long.extend_from_slice(IDENTIFY_REPLY.as_bytes());
    let corpus: [&[u8]; 4] = [b"\0\0\0\x02OK", b"\0\0\0\0", b"\0\0\0\x0eE_BAD_PROTOCOL", &long];
    let mut decoder = ReplyDecoder::new(0);
    ten_million_bytes(2, &corpus, |fresh, mut chunk| {
        if fresh {
            decoder = ReplyDecoder::new(1000);
        }
        let len = chunk.len();
        for _ in 0..=len + 1 {
            match decoder.next(&mut chunk) {
                Ok(Some(part)) => assert!(part.data.len() <= 1000),
                Ok(None) => {
                    assert!(chunk.is_empty());
                    return Ok(len);
                }
                Err(fault) => {
                    has_a_text(fault);
                    return Err(len - chunk.len());
                }
            }
        }
        panic!("more parts than bytes");
    });
}

#[test]
fn ten_million_bytes_of_garbage_v1_commands() {
    let mut identify = b"  V1IDENTIFY\n\0\0\0\x8e".to_vec();
    identify.extend_from_slice(IDENTIFY.as_bytes());
    let corpus: [&[u8]; 6] = [
        &identify,
        b"REGISTER topic channel\n",
        b"UNREGISTER topic#ephemeral\r\n",
        b"PING\n",
        b"  V1PING\nIDENTIFY\n\0\0\0\x02{}",
        b"REGISTER topic\n",
    ];
    let mut decoder = nsqlookupd::CommandDecoder::new(0);
    ten_million_bytes(3, &corpus, |fresh, mut chunk| {
        if fresh {
            decoder = nsqlookupd::CommandDecoder::new(500);
        }
        let len = chunk.len();
        for _ in 0..=len + 1 {
            match decoder.next(&mut chunk) {
                Ok(Some(_)) => {}
                Ok(None) => {
                    assert!(chunk.is_empty());
                    return Ok(len);
                }
                Err(refusal) => {
                    has_a_text(refusal);
                    return Err(len - chunk.len());
                }
            }
        }
        panic!("more items than bytes");
    });
}

#[test]
fn ten_million_bytes_of_garbage_v2_commands() {
    let corpus: [&[u8]; 9] = [
        b"  V2SUB topic channel\n",
        b"  V2IDENTIFY\n\0\0\0\x02{}",
        b"PUB topic\n\0\0\0\x05hello",
        b"MPUB topic\n\0\0\0\x12\0\0\0\x02\0\0\0\x02ab\0\0\0\x04cdef",
        b"DPUB topic 250\n\0\0\0\x05hello",
        b"RDY 100\nRDY\nNOP\n",
        b"FIN 0123456789abcdef\nTOUCH 0123456789abcdef\r\n",
        b"REQ 0123456789abcdef 1000\n",
        b"CLS\n",
    ];
    let limits = Limits { max_msg_size: 300, max_body_size: 1000, ..Limits::NSQD };
    let mut decoder = nsqd::CommandDecoder::new();
    ten_million_bytes(4, &corpus, |fresh, mut chunk| {
        if fresh {
            decoder = nsqd::CommandDecoder::new();
        }
        let len = chunk.len();
        for _ in 0..=len + 1 {
            match decoder.next(&limits, &mut chunk) {
                Ok(Some(nsqd::Item::Body { len })) => assert!((1..=1000).contains(&len)),
                Ok(Some(nsqd::Item::Batch { count, .. })) => assert!((1..=199).contains(&count)),
                Ok(Some(nsqd::Item::Part { data, .. })) => {
                    assert!((1..=1000).contains(&data.len()))
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    assert!(chunk.is_empty());
                    return Ok(len);
                }
                Err(refusal) => {
                    has_a_text(refusal);
                    return Err(len - chunk.len());
                }
            }
        }
        panic!("more items than bytes");
    });
}

const JSON: [&[u8]; 7] = [
    IDENTIFY.as_bytes(),
    IDENTIFY_REPLY.as_bytes(),
    IDENTIFY_RESPONSE.as_bytes(),
    br#"{"identity":"\u00e9\ud83d\ude00","identity_url":"","permission_count":3}"#,
    br#"{"client_id":null,"heartbeat_interval":1000,"hostname":"a\nb","tls_v1":true}"#,
    br#"[1,-2.5e7,[[[[[["\"\\\/\b"]]]]]],null,true,false,{"":{}}]"#,
    b" [ ",
];

#[test]
fn ten_million_bytes_of_garbage_json() {
    let mut scanner = Scanner::<20>::new();
    ten_million_bytes(5, &JSON, |fresh, mut chunk| {
        if fresh {
            scanner = Scanner::new();
        }
        let len = chunk.len();
        for _ in 0..=len + 1 {
            match scanner.next(&mut chunk) {
                Ok(Some(token)) => {
                    if let Some(text) = token.as_text() {
                        assert!(text.as_bytes().len() <= 20);
                        text.as_str();
                    }
                }
                Ok(None) => {
                    assert!(chunk.is_empty());
                    return Ok(len);
                }
                Err(error) => {
                    has_a_text(error);
                    return Err(len - chunk.len());
                }
            }
        }
        panic!("more tokens than bytes");
    });
}

#[test]
fn ten_million_bytes_of_garbage_granted() {
    let mut scanner = nsqd::GrantedScanner::new();
    ten_million_bytes(6, &JSON, |fresh, chunk| {
        if fresh {
            scanner.finish().map_or_else(has_a_text, |_| ());
            scanner = Default::default();
        }
        scanner.feed(chunk);
        Ok(chunk.len())
    });
}

#[test]
fn ten_million_bytes_of_garbage_identification() {
    let mut scanner = nsqd::IdentifyScanner::<24, 20>::new();
    ten_million_bytes(8, &JSON, |fresh, chunk| {
        if fresh {
            scanner.finish(&Limits::NSQD).map_or_else(has_a_text, |_| ());
            scanner = Default::default();
        }
        scanner.feed(chunk).map(|()| chunk.len()).map_err(|error| {
            has_a_text(error);
            0
        })
    });
}

#[test]
fn ten_million_bytes_of_garbage_node() {
    let mut scanner = nsqlookupd::NodeInfoScanner::new();
    ten_million_bytes(10, &JSON, |fresh, chunk| {
        if fresh {
            scanner.finish().map_or_else(has_a_text, |_| ());
            scanner = Default::default();
        }
        scanner.feed(chunk).map(|()| chunk.len()).map_err(|error| {
            has_a_text(error);
            0
        })
    });
}
