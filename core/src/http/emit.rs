//! Writers of values in answers, each with a bounded length.

use core::net::{IpAddr, SocketAddr};

use crate::wire::json::hex;
use crate::wire::{Decimal, Write};

/// Writes a JSON string of at most twice the text's length and two quotes. A control character,
/// whose escape would take six bytes, becomes `?`.
pub(crate) fn emit_text<W: Write>(w: &mut W, text: &str) -> Result<(), W::Error> {
    w.write_all(b"\"")?;
    let mut rest = text.as_bytes();
    loop {
        let is_special = |byte: &u8| matches!(byte, 0..b' ' | b'"' | b'\\');
        let plain = rest.iter().position(is_special).unwrap_or(rest.len());
        let (run, tail) = rest.split_at_checked(plain).unwrap_or_default();
        w.write_all(run)?;
        let Some((&byte, tail)) = tail.split_first() else { break };
        if byte < b' ' {
            w.write_all(b"?")?;
        } else {
            w.write_all(&[b'\\', byte])?;
        }
        rest = tail;
    }
    w.write_all(b"\"")
}

/// Writes a number of up to 20 digits.
pub(crate) fn emit_u64<W: Write>(w: &mut W, number: u64) -> Result<(), W::Error> {
    const BILLION: u64 = 1_000_000_000;
    // Nine digits at a time; the first part has at most two.
    let mut begun = false;
    for (part, is_last) in [
        (number / BILLION / BILLION, false),
        (number / BILLION % BILLION, false),
        (number % BILLION, true),
    ] {
        if part == 0 && !begun && !is_last {
            continue;
        }
        let digits = Decimal::unsigned(part as u32);
        let zeros = 9usize.saturating_sub(digits.as_bytes().len());
        if begun {
            w.write_all(b"00000000".get(..zeros).unwrap_or_default())?;
        }
        w.write_all(digits.as_bytes())?;
        begun = true;
    }
    Ok(())
}

/// Writes a signed number of up to 20 characters.
pub(crate) fn emit_i64<W: Write>(w: &mut W, number: i64) -> Result<(), W::Error> {
    if number < 0 {
        w.write_all(b"-")?;
    }
    emit_u64(w, number.unsigned_abs())
}

/// Writes an address and port as Go does, at most 47 bytes: `127.0.0.1:4150`, `[::1]:4150`.
pub(crate) fn emit_remote<W: Write>(w: &mut W, remote: SocketAddr) -> Result<(), W::Error> {
    let ip = remote.ip().to_canonical();
    w.write_all(if ip.is_ipv6() { b"[" } else { b"" })?;
    emit_ip(w, ip)?;
    w.write_all(if ip.is_ipv6() { b"]:" } else { b":" })?;
    w.write_all(Decimal::unsigned(remote.port().into()).as_bytes())
}

/// Writes an address alone, at most 39 bytes.
pub(crate) fn emit_ip<W: Write>(w: &mut W, ip: IpAddr) -> Result<(), W::Error> {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let mut before = b"".as_slice();
            for part in ip.octets() {
                w.write_all(before)?;
                w.write_all(Decimal::unsigned(part.into()).as_bytes())?;
                before = b".";
            }
            Ok(())
        }
        IpAddr::V6(ip) => emit_ipv6(w, ip.segments()),
    }
}

/// Writes an address with its longest run of two or more zeros as `::` (RFC 5952).
fn emit_ipv6<W: Write>(w: &mut W, segments: [u16; 8]) -> Result<(), W::Error> {
    let zeros_at = |at: usize| {
        let zeros = segments.iter().skip(at).take_while(|part| **part == 0);
        zeros.fold(0usize, |zeros, _| zeros.saturating_add(1))
    };
    let (mut start, mut len) = (8, 1);
    for at in 0..8 {
        if zeros_at(at) > len {
            (start, len) = (at, zeros_at(at));
        }
    }
    let mut before = b"".as_slice();
    for (at, part) in (0..8).zip(segments) {
        if at == start {
            w.write_all(b"::")?;
            before = b"";
        }
        if at >= start && at < start.saturating_add(len) {
            continue;
        }
        w.write_all(before)?;
        let digits = [part >> 12, part >> 8 & 0xf, part >> 4 & 0xf, part & 0xf];
        let digits = digits.map(|digit| hex(digit as u8));
        let mut digits = digits.as_slice();
        while let [b'0', rest @ ..] = digits
            && !rest.is_empty()
        {
            digits = rest;
        }
        w.write_all(digits)?;
        before = b":";
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::wire::ChunkWriter;

    fn written(
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), core::convert::Infallible>,
    ) -> String {
        let mut buf = [0; 512];
        let mut writer = ChunkWriter::new(&mut buf, 0);
        emit(&mut writer).unwrap();
        let len = writer.total();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    }

    #[test]
    fn texts() {
        assert_eq!(written(|w| emit_text(w, "a\"b\\c\n\u{7f}é\0")), "\"a\\\"b\\\\c?\u{7f}é?\"");
        assert_eq!(written(|w| emit_text(w, &"\"".repeat(100))).len(), 202);
        assert_eq!(written(|w| emit_text(w, "")), "\"\"");
    }

    #[test]
    fn numbers() {
        for number in [
            0,
            9,
            999_999_999,
            1_000_000_000,
            1_000_000_001,
            20_000_000_300_000_004,
            1_000_000_000_000_000_000,
            u64::MAX,
        ] {
            assert_eq!(written(|w| emit_u64(w, number)), number.to_string());
        }
        for number in [0, -1, i64::MIN, i64::MAX, -6_795_364_578_871_345_152] {
            assert_eq!(written(|w| emit_i64(w, number)), number.to_string());
        }
    }

    #[test]
    fn remotes() {
        for remote in [
            "127.0.0.1:65535",
            "[::1]:1",
            "[::]:1",
            "[1::]:1",
            "[fe80::1234:5:0:6]:80",
            "[1:0:2:0:3:0:4:0]:1",
            "[1:0:0:2::3]:1",
            "[abcd:ef01:2345:6789:abcd:ef01:2345:6789]:65535",
        ] {
            let text = written(|w| emit_remote(w, remote.parse().unwrap()));
            assert_eq!(text, remote);
            assert!(text.len() <= 47);
        }
        // An IPv4 client of a socket for both versions.
        let mapped = SocketAddr::from((Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0x7f00, 1), 1));
        assert_eq!(written(|w| emit_remote(w, mapped)), "127.0.0.1:1");
        // All addresses are written as the standard library does.
        let mut seed = 1u32;
        for _ in 0..2000 {
            let segments = [(); 8].map(|()| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if seed >> 30 == 0 { (seed >> 8) as u16 } else { 0 }
            });
            let remote = SocketAddr::from((segments, 7));
            if remote.ip().to_canonical().is_ipv6() {
                assert_eq!(written(|w| emit_remote(w, remote)), remote.to_string());
            }
        }
    }
}
