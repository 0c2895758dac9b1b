//! The decoded items never depend on where the input is split.

use std::fmt::Debug;

use nanonsq_core::wire::nsqd::{FrameType, Limits, emit_frame};

use crate::golden_v1::{IDENTIFY, IDENTIFY_REPLY};
use crate::golden_v2::IDENTIFY_RESPONSE;
use crate::support::{
    frames, granted, identification, node, replies, requires_auth, tokens, v1_items, v2_items,
};

/// Decodes `input` as a whole, in two parts at every split, byte by byte, and, if short, in three
/// parts.
#[track_caller]
fn alike<T: Debug + PartialEq>(input: &[u8], decode: impl Fn(&[&[u8]]) -> T) {
    let whole = decode(&[input]);
    for at in 0..=input.len() {
        let (one, two) = input.split_at(at);
        assert_eq!(decode(&[one, two]), whole, "cut at {at}");
    }
    assert_eq!(decode(&input.chunks(1).collect::<Vec<_>>()), whole, "byte by byte");
    if input.len() <= 100 {
        for at in 0..=input.len() {
            for then in at..=input.len() {
                let parts = [&input[..at], &input[at..then], &input[then..]];
                assert_eq!(decode(&parts), whole, "cut at {at} and {then}");
            }
        }
    }
}

#[test]
fn split_at_every_byte_frames() {
    let mut stream = Vec::new();
    emit_frame(&mut stream, FrameType::Response, b"OK").unwrap();
    emit_frame(&mut stream, FrameType::Response, b"").unwrap();
    emit_frame(&mut stream, FrameType::Error, b"E_BAD_TOPIC PUB topic name").unwrap();
    emit_frame(&mut stream, FrameType::Message, b"0123456789012345678901234567body").unwrap();
    alike(&stream, frames);
    // A stream that is cut off, and every fault.
    alike(&stream[..stream.len() - 3], frames);
    alike(b"\0\0\0\x06\0\0\0\0OKHTTP/1.1 400 Bad Request\r\n", frames);
    alike(b"\0\0\0\x03\0\0\0\0OK", frames);
    alike(b"\0\0\0\x06\0\0\0\x03OK", frames);
    alike(b"\xff\xff\xff\xff\0\0\0\0OK", frames);
    alike(b"\0\0\x03\xed\0\0\0\0OK", frames);
}

#[test]
fn split_at_every_byte_replies() {
    alike(b"\0\0\0\x02OK\0\0\0\0\0\0\0\x0eE_BAD_PROTOCOL\0\0\0", replies);
    alike(b"\0\0\0\x02OKHTTP/1.1 400 Bad Request\r\n", replies);
    alike(b"\xff\xff\xff\xffOK", replies);
    alike(b"\0\0\x03\xe9OK", replies);
}

#[test]
fn split_at_every_byte_v1_commands() {
    let decode = |parts: &[&[u8]]| v1_items(1024, parts);
    let mut stream = b"  V1PING\n \tPING \r\nIDENTIFY\n\0\0\0\x8e".to_vec();
    stream.extend_from_slice(IDENTIFY.as_bytes());
    stream.extend_from_slice(b"REGISTER t1\nREGISTER t1 c1\r\nUNREGISTER t1 c1 extra\nPING\n");
    alike(&stream, decode);
    alike(b"  V1IDENTIFY\n\0\0\0\0PING\n", decode);
    for refused in [
        &b"  V2PING\n"[..],
        b"GET / HTTP/1.1\r\n",
        b"  V1NOPE x\n",
        b"  V1\n",
        b"  V1REGISTER t\n",
        b"  V1IDENTIFY\n\0\0\0\x02{}IDENTIFY\n\0\0\0\x02{}",
        b"  V1IDENTIFY\n\0\0\0\x02{}REGISTER\n",
        b"  V1IDENTIFY\n\0\0\0\x02{}UNREGISTER a!b c\n",
        b"  V1IDENTIFY\n\0\0\0\x02{}REGISTER a b*c\n",
        b"  V1IDENTIFY\n\xff\xff\xff\xff{}",
        b"  V1IDENTIFY\n\0\0\x04\x01{}",
        b"  V1IDENTIFY\n\0\0\0",
        b"  V1IDENTIFY\n\0\0\0\x05{}",
    ] {
        alike(refused, decode);
    }
    for len in [159, 160, 161, 162, 400] {
        alike(format!("  V1{}\nPING\n", "x".repeat(len)).as_bytes(), decode);
        alike(format!("  V1PING{}\nPING\n", " ".repeat(len - 4)).as_bytes(), decode);
    }
}

#[test]
fn split_at_every_byte_v2_commands() {
    let decode = |parts: &[&[u8]]| v2_items(&Limits::NSQD, parts);
    alike(
        b"  V2NOP\nIDENTIFY\n\0\0\0\x02{}AUTH\r\n\0\0\0\x02s3PUB t\n\0\0\0\x02hiMPUB t x\n\0\0\0\x0f\0\0\0\x02\
          \0\0\0\x01a\0\0\0\x02bcDPUB t 250\n\0\0\0\x01xSUB t c\nRDY 5\nRDY\nRDY \n\
          FIN 0123456789abcdef\nREQ 0123456789abcdef 90\nTOUCH 0123456789abcdef\nCLS\nRDY z\nNOP\n",
        decode,
    );
    for refused in [
        &b"  V1NOP\n"[..],
        b"  V2\n",
        b"  V2nop\n",
        b"  V2PUB\n",
        b"  V2PUB a!b\n\0\0\0\x01x",
        b"  V2MPUB \xff\n",
        b"  V2PUB t\n\0\0\0\0",
        b"  V2PUB t\n\xff\xff\xff\xff",
        b"  V2PUB t\n\0\x10\0\x01",
        b"  V2MPUB t\n\0\0\0\x08\0\0\0\0",
        b"  V2MPUB t\n\0\0\0\x08\0\x10\0\0",
        b"  V2MPUB t\n\0\0\0\x08\0\0\0\x01\0\0\0\0",
        b"  V2MPUB t\n\0\0\0\x08\0\0\0\x02\0\0\0\x01a\x7f\0\0\0",
        b"  V2MPUB t\n\0\0\0\x08\0\0\0\x02\0\0\0\x01a\0\0",
        b"  V2SUB t c\nRDY -1\n",
        b"  V2SUB t c\nRDY 2501\n",
        b"  V2SUB t c\nFIN 123\n",
        b"  V2DPUB t 3600001\n",
    ] {
        alike(refused, decode);
    }
    for len in [159, 160, 161, 162, 400] {
        alike(format!("  V2{}\nNOP\n", "x".repeat(len)).as_bytes(), decode);
    }
}

#[test]
fn split_at_every_byte_json() {
    for json in [
        r#"{"a":[1,{"b":null} , "cdefghijklmno"],"":-5.5e3,"\ud83d\ude00\ud83d":false}"#,
        "-12",
        "[1,2,3}",
        "{\"a\":tru}",
        "{\"a\":1}x",
        IDENTIFY,
        IDENTIFY_RESPONSE,
    ] {
        alike(json.as_bytes(), tokens);
    }
}

#[test]
fn split_at_every_byte_scanners() {
    for json in [
        IDENTIFY,
        IDENTIFY_REPLY,
        IDENTIFY_RESPONSE,
        "OK",
        "OKO",
        "{}",
        r#"{"auth_required":true}"#,
        "{\"tcp_port\":\"1\",\"tls_v1\":0}",
        r#"{"identity":"\u00e9\ud83d\ude00","identity_url":"","permission_count":3}"#,
        r#"{"client_id":null,"heartbeat_interval":100,"hostname":"a\nb"}"#,
    ] {
        alike(json.as_bytes(), requires_auth);
        alike(json.as_bytes(), granted);
        alike(json.as_bytes(), node);
        alike(json.as_bytes(), identification);
    }
}
