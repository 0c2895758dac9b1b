//! Every limit at its edge: the last accepted value, the first refused, zero, negative, huge.

use nanonsq_core::wire::nsqd::{self, FrameDecoder, Limits};
use nanonsq_core::wire::nsqlookupd::{self, ReplyDecoder};
use nanonsq_core::wire::{ChunkWriter, Count, Decimal, DecodeError, Write};

use crate::support::{v1_items, v2_items};

#[track_caller]
fn frame_fault(max: u32, input: &[u8]) -> DecodeError {
    let mut input = input;
    FrameDecoder::new(max).next(&mut input).unwrap_err()
}

#[test]
fn frame_sizes() {
    for size in [0u32, 1, 3] {
        let mut bytes = size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 8]);
        assert_eq!(frame_fault(10, &bytes), DecodeError::BadLength { len: size, max: 14 });
    }
    for size in [15u32, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let fault = DecodeError::BadLength { len: size, max: 14 };
        assert_eq!(frame_fault(10, &[&size.to_be_bytes()[..], b"\0\0\0\0"].concat()), fault);
    }
    for size in [4u32, 14] {
        let mut bytes = size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 14]);
        let mut input = &bytes[..];
        let part = FrameDecoder::new(10).next(&mut input).unwrap().unwrap();
        assert_eq!(
            (part.size, part.data.len() as u32, part.first, part.last),
            (size - 4, size - 4, true, true)
        );
    }
    // Only empty frames are accepted.
    assert_eq!(frame_fault(0, b"\0\0\0\x05\0\0\0\0"), DecodeError::BadLength { len: 5, max: 4 });
    assert!(FrameDecoder::new(0).next(&mut &b"\0\0\0\x04\0\0\0\0"[..]).unwrap().is_some());
}

#[test]
fn http_is_the_wrong_port_whatever_the_maximum() {
    let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n";
    for max in [0, 1024, u32::MAX] {
        assert_eq!(frame_fault(max, answer), DecodeError::WrongPort);
        let mut input = &answer[..];
        assert_eq!(ReplyDecoder::new(max).next(&mut input), Err(DecodeError::WrongPort));
    }
}

#[test]
fn unknown_frame_types() {
    for frame_type in [3u32, 256, 0x8000_0000, u32::MAX] {
        let mut bytes = b"\0\0\0\x04".to_vec();
        bytes.extend_from_slice(&frame_type.to_be_bytes());
        assert_eq!(frame_fault(10, &bytes), DecodeError::UnknownFrame { frame_type });
    }
}

#[test]
fn reply_sizes() {
    let reply = |max: u32, size: u32| {
        let mut bytes = size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0; 10]);
        let mut input = &bytes[..];
        ReplyDecoder::new(max).next(&mut input).map(|part| part.unwrap().data.len())
    };
    assert_eq!(reply(10, 0), Ok(0));
    assert_eq!(reply(10, 10), Ok(10));
    for len in [11, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        assert_eq!(reply(10, len), Err(DecodeError::BadLength { len, max: 10 }));
    }
}

const SMALL: Limits =
    Limits { max_msg_size: 10, max_body_size: 24, max_rdy_count: 5, ..Limits::NSQD };

#[track_caller]
fn last(limits: &Limits, stream: &[u8]) -> String {
    v2_items(limits, &[stream]).pop().unwrap()
}

fn command(line: &str, numbers: &[i32]) -> Vec<u8> {
    let mut bytes = b"  V2".to_vec();
    bytes.extend_from_slice(line.as_bytes());
    bytes.push(b'\n');
    numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_be_bytes()));
    bytes
}

#[test]
fn message_sizes() {
    for verb in ["PUB t", "DPUB t 0"] {
        let name = verb.split(' ').next().unwrap();
        assert_eq!(
            last(&SMALL, &command(verb, &[10])),
            format!("E_BAD_MESSAGE {name} failed to read message body")
        );
        assert_eq!(
            last(&SMALL, &command(verb, &[11])),
            format!("E_BAD_MESSAGE {name} message too big 11 > 10")
        );
        for len in [0, -1, i32::MIN] {
            let expected = format!("E_BAD_MESSAGE {name} invalid message body size {len}");
            assert_eq!(last(&SMALL, &command(verb, &[len])), expected);
        }
    }
}

#[test]
fn body_sizes() {
    for verb in ["IDENTIFY", "AUTH", "MPUB"] {
        let line = if verb == "MPUB" { "MPUB t" } else { verb };
        let next = if verb == "MPUB" { "message count" } else { "body" };
        assert_eq!(
            last(&SMALL, &command(line, &[24])),
            format!("E_BAD_BODY {verb} failed to read {next}")
        );
        assert_eq!(
            last(&SMALL, &command(line, &[25])),
            format!("E_BAD_BODY {verb} body too big 25 > 24")
        );
        assert_eq!(
            last(&SMALL, &command(line, &[i32::MAX])),
            format!("E_BAD_BODY {verb} body too big 2147483647 > 24")
        );
        for len in [0, -1, i32::MIN] {
            let expected = format!("E_BAD_BODY {verb} invalid body size {len}");
            assert_eq!(last(&SMALL, &command(line, &[len])), expected);
        }
    }
}

#[test]
fn message_counts() {
    // (24 - 4) / 5
    assert_eq!(
        last(&SMALL, &command("MPUB t", &[8, 4])),
        "E_BAD_MESSAGE MPUB failed to read message(0) body size"
    );
    for count in [5, 0, -1, i32::MIN, i32::MAX, 0x3333_3334] {
        assert_eq!(
            last(&SMALL, &command("MPUB t", &[8, count])),
            format!("E_BAD_BODY MPUB invalid message count {count}")
        );
    }
    let none = Limits { max_body_size: 8, ..SMALL };
    assert_eq!(last(&none, &command("MPUB t", &[8, 1])), "E_BAD_BODY MPUB invalid message count 1");
    assert_eq!(
        last(&SMALL, &command("MPUB t", &[8, 2, 10])),
        "E_BAD_MESSAGE MPUB failed to read message body"
    );
    assert_eq!(
        last(&SMALL, &command("MPUB t", &[8, 2, 11])),
        "E_BAD_MESSAGE MPUB message too big 11 > 10"
    );
    for len in [0, -1] {
        assert_eq!(
            last(&SMALL, &command("MPUB t", &[8, 2, len])),
            format!("E_BAD_MESSAGE MPUB invalid message(0) body size {len}")
        );
    }
    let second = [&command("MPUB t", &[8, 2, 1])[..], b"a\0\0\0\0"].concat();
    assert_eq!(last(&SMALL, &second), "E_BAD_MESSAGE MPUB invalid message(1) body size 0");
}

#[test]
fn numbers_in_lines() {
    let after_sub =
        |line: &str| v2_items(&SMALL, &[format!("  V2SUB t c\n{line}\n").as_bytes()])[1].clone();
    for (line, expected) in [
        ("RDY", "Rdy(1)"),
        ("RDY ", "Rdy(0)"),
        ("RDY 0", "Rdy(0)"),
        ("RDY 5", "Rdy(5)"),
        ("RDY 0005 9", "Rdy(5)"),
        ("RDY 6", "E_INVALID RDY count 6 out of range 0-5"),
        ("RDY 0010", "E_INVALID RDY count 10 out of range 0-5"),
        ("RDY 4294967296", "E_INVALID RDY count 4294967296 out of range 0-5"),
        ("RDY -1", "E_INVALID RDY could not parse count -1"),
        ("RDY 1x", "E_INVALID RDY could not parse count 1x"),
        ("REQ 0123456789abcdef 3600000", "Req { id: 0123456789abcdef, delay_ms: 3600000 }"),
        ("REQ 0123456789abcdef 3600001", "Req { id: 0123456789abcdef, delay_ms: 3600000 }"),
        ("REQ 0123456789abcdef 99999999999", "Req { id: 0123456789abcdef, delay_ms: 3600000 }"),
        ("REQ 0123456789abcdef ", "Req { id: 0123456789abcdef, delay_ms: 0 }"),
        ("REQ 0123456789abcdef -1", "E_INVALID REQ could not parse timeout -1"),
        ("REQ 0123456789abcde 1", "E_INVALID invalid message ID"),
        ("DPUB t 3600000", "Dpub { topic: \"t\", defer_ms: 3600000 }"),
        ("DPUB t 3600001", "E_INVALID DPUB timeout 3600001 out of range 0-3600000"),
        ("DPUB t -1", "E_INVALID DPUB could not parse timeout -1"),
    ] {
        assert_eq!(after_sub(line), expected, "{line}");
    }
}

#[test]
fn lines() {
    let line =
        |name: usize| v2_items(&SMALL, &[format!("  V2NOP {}\n", "x".repeat(name)).as_bytes()]);
    assert_eq!(line(nsqd::LINE_BUFFER - 4)[0], "Nop");
    assert_eq!(line(nsqd::LINE_BUFFER - 3)[0], "E_INVALID line longer than 160 bytes");
    let line = |name: usize| v1_items(9, &[format!("  V1PING {}\n", "x".repeat(name)).as_bytes()]);
    assert_eq!(line(nsqlookupd::LINE_BUFFER - 5)[0], "Ping");
    assert_eq!(line(nsqlookupd::LINE_BUFFER - 4)[0], "E_INVALID line longer than 160 bytes");
}

#[test]
fn v1_body_sizes() {
    let identify = |len: i32| {
        let mut bytes = b"  V1IDENTIFY\n".to_vec();
        bytes.extend_from_slice(&len.to_be_bytes());
        v1_items(9, &[&bytes[..]])
    };
    assert_eq!(identify(0), ["Identify", "Body { len: 0 }", "data ", "done", "true"]);
    assert_eq!(identify(9)[2..], ["false", "E_BAD_BODY IDENTIFY failed to read body"]);
    assert_eq!(identify(10)[1], "E_BAD_BODY IDENTIFY body too big 10 > 9");
    for len in [-1, i32::MIN] {
        assert_eq!(identify(len)[1], format!("E_BAD_BODY IDENTIFY invalid body size {len}"));
    }
}

#[test]
fn decimals() {
    let mut powers = vec![0u32, u32::MAX, i32::MAX as u32];
    powers.extend((0..10).flat_map(|n| [10u32.pow(n) - 1, 10u32.pow(n), 10u32.pow(n) + 1]));
    for number in powers {
        assert_eq!(Decimal::unsigned(number).as_bytes(), number.to_string().as_bytes());
        let signed = number as i32;
        assert_eq!(Decimal::signed(signed).as_bytes(), signed.to_string().as_bytes());
        let signed = signed.wrapping_neg();
        assert_eq!(Decimal::signed(signed).as_bytes(), signed.to_string().as_bytes());
    }
    assert_eq!(Decimal::signed(i32::MIN).as_bytes(), b"-2147483648");
}

#[test]
fn windows() {
    let text = b"hello world";
    for size in 0..14 {
        for skip in [0, 1, 5, 10, 11, 12, usize::MAX] {
            for piece in 1..12 {
                let mut buf = vec![0; size];
                let mut window = ChunkWriter::new(&mut buf, skip);
                for piece in text.chunks(piece) {
                    window.write_all(piece).unwrap();
                }
                let (written, total) = (window.written(), window.total());
                let expected: Vec<u8> = text.iter().copied().skip(skip).take(size).collect();
                assert_eq!((&buf[..written], total), (&expected[..], text.len()));
            }
        }
    }
    let mut count = Count::new();
    count.write_all(text).unwrap();
    assert_eq!((count.write(text), count.get()), (Ok(11), 22));
}

#[test]
fn ram() {
    let sizes = [
        size_of::<FrameDecoder>(),
        size_of::<ReplyDecoder>(),
        size_of::<nsqd::CommandDecoder>(),
        size_of::<nsqlookupd::CommandDecoder>(),
        size_of::<nsqd::Granted>(),
        size_of::<nsqd::GrantedScanner>(),
        size_of::<nsqd::Identification<32>>(),
        size_of::<nsqlookupd::OwnedNodeInfo>(),
        size_of::<nsqlookupd::NodeInfoScanner>(),
    ];
    let expected = [24, 16, 160 + 24, 160 + 12, 16, 24, 5 * 33 + 3 + 28, 96 + 154, 2 * 96 + 180];
    assert_eq!(sizes, expected);
}
