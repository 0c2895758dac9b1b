//! Decoders and writers.

use nanonsq_core::http::Piece;
use nanonsq_core::wire::http::{HttpError, ResponseDecoder};
use nanonsq_core::wire::json::{Scanner, Token};
use nanonsq_core::wire::nsqd::{Item, Limits};
use nanonsq_core::wire::{ChunkWriter, Write, nsqd, nsqlookupd};

#[test]
fn writers_always_accept_all_bytes() {
    let mut buf = [0; 4];
    let mut window = ChunkWriter::new(&mut buf, 2);
    assert_eq!(window.write(b"abc"), Ok(3));
    assert_eq!(window.write(b"defgh"), Ok(5));
    assert_eq!((window.written(), window.total()), (4, 8));
    assert_eq!(&buf, b"cdef");
    let mut buf = [0; 4];
    let mut piece = Piece::new(&mut buf);
    assert_eq!(piece.write(b"abc"), Ok(3));
    assert_eq!(piece.write(b"defgh"), Ok(5));
    assert_eq!(piece.len(), 4);
}

#[test]
fn command_decoders_are_at_a_boundary_only_between_commands() {
    let mut commands = nsqd::CommandDecoder::new();
    assert!(commands.at_boundary());
    for (bytes, boundary) in
        [(&b" "[..], false), (b" V2", true), (b"NO", false), (b"P\n", true), (b"PUB t\n", false)]
    {
        let mut input = bytes;
        while !input.is_empty() {
            commands.next(&Limits::NSQD, &mut input).unwrap();
        }
        assert_eq!(commands.at_boundary(), boundary, "{bytes:?}");
    }
    let mut commands = nsqlookupd::CommandDecoder::new(100);
    assert!(commands.at_boundary());
    for (bytes, boundary) in [
        (&b" "[..], false),
        (b" V1", true),
        (b"PI", false),
        (b"NG\n", true),
        (b"IDENTIFY\n", false),
    ] {
        let mut input = bytes;
        while !input.is_empty() {
            commands.next(&mut input).unwrap();
        }
        assert_eq!(commands.at_boundary(), boundary, "{bytes:?}");
    }
}

/// A number above 2^32 does not wrap to a small one.
#[test]
fn a_number_above_32_bits_is_out_of_range() {
    let rdy = |number: &str| {
        let mut commands = nsqd::CommandDecoder::new();
        let text = format!("  V2SUB t c\nRDY {number}\n");
        let mut input = text.as_bytes();
        assert!(matches!(commands.next(&Limits::NSQD, &mut input), Ok(Some(Item::Sub { .. }))));
        matches!(commands.next(&Limits::NSQD, &mut input), Ok(Some(Item::Rdy { .. })))
    };
    assert!(rdy("5"));
    assert!(rdy("0000000000000005"));
    for large in ["4294967301", "42949672961", "10000000000000000000000000000000005"] {
        assert!(!rdy(large), "{large}");
    }
}

#[test]
fn numbers_have_only_digits_of_their_base() {
    let read = |text: &str| {
        let mut decoder = ResponseDecoder::new();
        let mut input = text.as_bytes();
        while !input.is_empty() {
            decoder.next(&mut input)?;
        }
        Ok(())
    };
    let length = |digits| read(&format!("HTTP/1.1 200 OK\r\nContent-Length: {digits}\r\n\r\n"));
    assert_eq!(length("19"), Ok(()));
    for bad in ["a", "1a", ":", "1:", "/", ""] {
        assert_eq!(length(bad), Err(HttpError::Length), "{bad:?}");
    }
    let chunk = |digits| {
        read(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{digits}\r\n"))
    };
    assert_eq!((chunk("f"), chunk("1F")), (Ok(()), Ok(())));
    for bad in ["g", "1G", "@", "`"] {
        assert_eq!(chunk(bad), Err(HttpError::Chunk), "{bad:?}");
    }
}

/// The quotes are those of Go's `%q`.
#[test]
fn a_clients_bytes_are_quoted_in_errors() {
    let shown =
        |text: &[u8]| nsqd::Refusal::BadTopic { verb: nsqd::Verb::Pub, name: text }.to_string();
    let quoted = shown(b"\x07\x08\t\n\x0b\x0c\r\"\\\x01\x7f\xff");
    assert!(quoted.contains(r#""\a\b\t\n\v\f\r\"\\\x01\x7f\xff""#), "{quoted}");
}

fn tokens(json: &str) -> Vec<(Option<bool>, Option<i32>, Option<i32>)> {
    let mut scanner = Scanner::<16>::new();
    let mut input = json.as_bytes();
    let mut all = Vec::new();
    while let Some(token) = scanner.next(&mut input).unwrap() {
        all.push((token.as_bool(), token.as_i32(), token.as_exact()));
    }
    all
}

#[test]
fn tokens_convert_only_to_their_own_type() {
    let none = (None, None, None);
    assert_eq!(
        tokens("[true,false,null,7,-7,7.5,99999999999,\"x\"]"),
        [
            none,
            (Some(true), None, None),
            (Some(false), None, None),
            none,
            (None, Some(7), Some(7)),
            (None, Some(-7), Some(-7)),
            (None, Some(7), None),
            (None, Some(i32::MAX), None),
            none,
            none,
        ]
    );
}

/// A text's length has 16 bits: a longer text is cut off, whatever the buffer.
#[test]
fn a_text_has_at_most_65535_bytes() {
    for (len, kept) in [(65_534, 65_534), (65_535, 65_535), (65_536, 65_535), (70_000, 65_535)] {
        let mut scanner = Box::new(Scanner::<70_000>::new());
        let json = format!("\"{}\"", "x".repeat(len));
        let mut input = json.as_bytes();
        let Some(Token::String(text)) = scanner.next(&mut input).unwrap() else { panic!("a text") };
        assert_eq!((text.as_bytes().len(), text.truncated()), (kept, len > kept));
    }
}

#[test]
fn response_decoders_are_at_a_boundary_only_between_frames() {
    let mut frames = nsqd::FrameDecoder::new(100);
    assert!(frames.at_boundary());
    for (bytes, boundary) in [(&b"\0\0"[..], false), (b"\0\x06\0\0\0\0O", false), (b"K", true)] {
        let mut input = bytes;
        while !input.is_empty() {
            frames.next(&mut input).unwrap();
        }
        assert_eq!(frames.at_boundary(), boundary, "{bytes:?}");
    }
    let mut replies = nsqlookupd::ReplyDecoder::new(100);
    assert!(replies.at_boundary());
    for (bytes, boundary) in [(&b"\0\0"[..], false), (b"\0\x02O", false), (b"K", true)] {
        let mut input = bytes;
        while !input.is_empty() {
            replies.next(&mut input).unwrap();
        }
        assert_eq!(replies.at_boundary(), boundary, "{bytes:?}");
    }
}

#[test]
fn only_string_tokens_have_a_text() {
    let mut scanner = Scanner::<16>::new();
    let mut input = &b"\"x\""[..];
    let token = scanner.next(&mut input).unwrap().unwrap();
    assert_eq!(token.as_text().map(|text| text.as_bytes()), Some(&b"x"[..]));
    assert_eq!(Token::Null.as_text(), None);
}
