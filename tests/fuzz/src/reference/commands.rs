//! The commands that nsqd and nsqlookupd read.

use std::fmt::Write as _;

use nanonsq_core::wire::nsqd::Limits;

use super::names::is_name;
use super::number;

/// The longest line, without its line feed.
const LINE: usize = 160;

enum Line<'b> {
    /// A line, and the rest.
    Whole(&'b [u8], &'b [u8]),
    Begun,
    TooLong,
}

fn line(stream: &[u8]) -> Line<'_> {
    match stream.iter().position(|byte| *byte == b'\n') {
        Some(end) if end <= LINE => Line::Whole(&stream[..end], &stream[end + 1..]),
        None if stream.len() <= LINE => Line::Begun,
        _ => Line::TooLong,
    }
}

fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).expect("a name is ASCII")
}

/// Parses decimal digits; saturates. No digits are 0.
fn decimal(digits: &[u8]) -> Option<u32> {
    let digits = digits.strip_prefix(b"+").map_or(digits, |_| b"x");
    let digits = std::str::from_utf8(digits).ok()?;
    if !digits.chars().all(|char| char.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_start_matches('0');
    Some(match significant.len() {
        0 => 0,
        1..=10 => significant.parse::<u64>().expect("digits").min(u32::MAX.into()) as u32,
        _ => u32::MAX,
    })
}

/// Appends the available part of a body of this length; returns the rest if the body is complete.
fn body<'b>(items: &mut String, stream: &'b [u8], len: u32, done: bool) -> Option<&'b [u8]> {
    let _ = write!(items, " Body {len} ");
    let have = stream.len().min(len as usize);
    let _ = write!(items, "{}", stream[..have].escape_ascii());
    if have < len as usize {
        return None;
    }
    let _ = write!(items, " end {done}");
    Some(&stream[have..])
}

/// Returns everything that nsqd reads on one connection, and the code of its refusal.
pub(crate) fn nsqd(stream: &[u8], limits: &Limits) -> String {
    let mut items = String::new();
    let unfinished = " at boundary: false";
    let Some((magic, mut rest)) = stream.split_at_checked(4) else {
        return format!(" at boundary: {}", stream.is_empty());
    };
    if magic != b"  V2" {
        return " !E_BAD_PROTOCOL".into();
    }
    // Init, subscribed, closing.
    let mut phase = 0;
    loop {
        let line = match line(rest) {
            Line::Whole(line, behind) => {
                rest = behind;
                line
            }
            Line::Begun => return items + &format!(" at boundary: {}", rest.is_empty()),
            Line::TooLong => return items + " !E_INVALID",
        };
        let words: Vec<_> =
            line.strip_suffix(b"\r").unwrap_or(line).split(|byte| *byte == b' ').collect();
        let word = |at: usize| words.get(at).copied();
        let verb = String::from_utf8_lossy(words[0]).into_owned();
        let (one, two, three): (&[&str], &[&str], &[&str]) = (
            &["IDENTIFY", "AUTH", "SUB", "PUB", "MPUB", "DPUB", "NOP"],
            &["RDY", "FIN", "REQ", "TOUCH", "CLS", "PUB", "MPUB", "DPUB", "NOP"],
            &["RDY", "FIN", "REQ", "TOUCH", "PUB", "MPUB", "DPUB", "NOP"],
        );
        if ![one, two, three][phase].contains(&verb.as_str()) {
            return items + " !E_INVALID";
        }
        let item = match verb.as_str() {
            "IDENTIFY" => Ok("Identify".into()),
            "AUTH" if words.len() > 1 => Err("E_INVALID"),
            "AUTH" => Ok("Auth".into()),
            "SUB" => match (word(1), word(2)) {
                (Some(topic), Some(_)) if !is_name(topic) => Err("E_BAD_TOPIC"),
                (Some(_), Some(channel)) if !is_name(channel) => Err("E_BAD_CHANNEL"),
                (Some(topic), Some(channel)) => {
                    phase = 1;
                    Ok(format!("Sub {} {}", text(topic), text(channel)))
                }
                _ => Err("E_INVALID"),
            },
            "RDY" if phase == 2 => Ok("Nop".into()),
            "RDY" => match word(1).map_or(Some(1), decimal) {
                Some(count) if count <= limits.max_rdy_count => Ok(format!("Rdy {count}")),
                _ => Err("E_INVALID"),
            },
            "FIN" | "TOUCH" => match word(1) {
                Some(id) if id.len() == 16 => {
                    let kind = if verb == "FIN" { "Fin" } else { "Touch" };
                    Ok(format!("{kind} {}", id.escape_ascii()))
                }
                _ => Err("E_INVALID"),
            },
            "REQ" => match (word(1), word(2).and_then(decimal)) {
                (Some(id), Some(delay)) if id.len() == 16 => {
                    let delay = delay.min(limits.max_req_timeout_ms);
                    Ok(format!("Req {} {delay}", id.escape_ascii()))
                }
                _ => Err("E_INVALID"),
            },
            "CLS" => {
                phase = 2;
                Ok("Cls".into())
            }
            "NOP" => Ok("Nop".into()),
            "PUB" | "MPUB" => match word(1) {
                None => Err("E_INVALID"),
                Some(topic) if !is_name(topic) => Err("E_BAD_TOPIC"),
                Some(topic) => {
                    let kind = if verb == "PUB" { "Pub" } else { "Mpub" };
                    Ok(format!("{kind} {}", text(topic)))
                }
            },
            _ => match (word(1), word(2)) {
                (Some(topic), Some(_)) if !is_name(topic) => Err("E_BAD_TOPIC"),
                (Some(topic), Some(digits)) => match decimal(digits) {
                    Some(defer) if defer <= limits.max_req_timeout_ms => {
                        Ok(format!("Dpub {} {defer}", text(topic)))
                    }
                    _ => Err("E_INVALID"),
                },
                _ => Err("E_INVALID"),
            },
        };
        match item {
            Ok(item) => items += &format!(" {item}"),
            Err(code) => return items + " !" + code,
        }
        if !["IDENTIFY", "AUTH", "PUB", "MPUB", "DPUB"].contains(&verb.as_str()) {
            continue;
        }

        // The body; the stream's end may cut it off.
        let is_message = ["PUB", "DPUB"].contains(&verb.as_str());
        let code = if is_message { "E_BAD_MESSAGE" } else { "E_BAD_BODY" };
        let Some((len, behind)) = number(rest) else {
            return items + unfinished + " !" + code;
        };
        let max = if is_message { limits.max_msg_size } else { limits.max_body_size };
        if len as i32 <= 0 || len > max {
            return items + " !" + code;
        }
        if verb != "MPUB" {
            match body(&mut items, behind, len, true) {
                Some(behind) => rest = behind,
                None => return items + unfinished + " !" + code,
            }
            continue;
        }
        let Some((count, behind)) = number(behind) else {
            return items + unfinished + " !E_BAD_BODY";
        };
        rest = behind;
        let most = (limits.max_body_size - 4) / 5;
        if count as i32 <= 0 || count > most {
            return items + " !E_BAD_BODY";
        }
        let _ = write!(items, " Batch {len} {count}");
        for left in (0..count).rev() {
            let Some((len, behind)) = number(rest) else {
                return items + unfinished + " !E_BAD_MESSAGE";
            };
            if len as i32 <= 0 || len > limits.max_msg_size {
                return items + " !E_BAD_MESSAGE";
            }
            match body(&mut items, behind, len, left == 0) {
                Some(behind) => rest = behind,
                None => return items + unfinished + " !E_BAD_MESSAGE",
            }
        }
    }
}

/// Returns everything that nsqlookupd reads on one connection, and the code of its refusal.
pub(crate) fn nsqlookupd(stream: &[u8], max: u32) -> String {
    let mut items = String::new();
    let unfinished = " at boundary: false";
    let Some((magic, mut rest)) = stream.split_at_checked(4) else {
        return format!(" at boundary: {}", stream.is_empty());
    };
    if magic != b"  V1" {
        return " !E_BAD_PROTOCOL".into();
    }
    let mut identified = false;
    loop {
        let line = match line(rest) {
            Line::Whole(line, behind) => {
                rest = behind;
                line
            }
            Line::Begun => return items + &format!(" at boundary: {}", rest.is_empty()),
            Line::TooLong => return items + " !E_INVALID",
        };
        // The ASCII bytes that Go considers white space.
        let is_space = |byte: &u8| b" \t\n\x0b\x0c\r".contains(byte);
        let from = line.iter().position(|byte| !is_space(byte)).unwrap_or(line.len());
        let to = line.iter().rposition(|byte| !is_space(byte)).map_or(from, |at| at + 1);
        let words: Vec<_> = line[from..to].split(|byte| *byte == b' ').collect();
        match words[0] {
            b"PING" => items += " Ping",
            b"IDENTIFY" if !identified => {
                items += " Identify";
                let Some((len, behind)) = number(rest) else {
                    return items + unfinished + " !E_BAD_BODY";
                };
                if len > i32::MAX as u32 || len > max {
                    return items + " !E_BAD_BODY";
                }
                match body(&mut items, behind, len, true) {
                    Some(behind) => rest = behind,
                    None => return items + unfinished + " !E_BAD_BODY",
                }
                identified = true;
            }
            b"REGISTER" | b"UNREGISTER" if identified => {
                let channel = words.get(2).copied().filter(|channel| !channel.is_empty());
                let topic = match (words.get(1), channel) {
                    (None, _) => return items + " !E_INVALID",
                    (Some(topic), _) if !is_name(topic) => return items + " !E_BAD_TOPIC",
                    (_, Some(channel)) if !is_name(channel) => return items + " !E_BAD_CHANNEL",
                    (Some(topic), _) => text(topic),
                };
                let kind = if words[0] == b"REGISTER" { "Register" } else { "Unregister" };
                let channel = channel.map_or("-", text);
                let _ = write!(items, " {kind} {topic} {channel}");
            }
            _ => return items + " !E_INVALID",
        }
    }
}
