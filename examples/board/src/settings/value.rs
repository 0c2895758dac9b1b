//! Parses and writes the values of settings.

use core::fmt::{self, Write};
use core::net::Ipv4Addr;

use heapless::{String, Vec};
use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::time::Span;

use super::{Ip, Key, Mode, NAME_MAX};

/// Bytes of an invalid value that an error repeats.
const WORD_MAX: usize = 24;

type Word = String<WORD_MAX>;

/// Why a setting or its value is invalid. The settings are unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Display` says what each means")]
pub enum Wrong {
    UnknownKey(Word),
    NoWifi(Key),
    Missing(Key),
    TooLong { key: Key, max: usize },
    TooShort { key: Key, min: usize },
    Name(Word),
    NotPlain(Key),
    Ip(Word),
    Mode(Word),
    Host(Word),
    Address { text: Word, why: nanonsq_core::address::AddressError },
    TooMany { key: Key, max: usize },
    Topic { text: Word, why: nanonsq_core::name::NameError },
    NotATime(Word),
    TimeRange { text: Word, key: Key },
    NotANumber(Word),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKey(word) => write!(f, "unknown setting '{word}'; `show` lists all"),
            Self::NoWifi(key) => write!(f, "this board has no {}: it has no Wi-Fi", key.word()),
            Self::Missing(key) => {
                let key = key.word();
                write!(f, "{key} needs a value; `unset {key}` restores the default")
            }
            Self::TooLong { key, max } => {
                write!(f, "{} has at most {max} characters", key.word())
            }
            Self::TooShort { key, min } => {
                write!(f, "{} has at least {min} characters", key.word())
            }
            Self::Name(word) => {
                write!(f, "'{word}' is not a name: 1 to {NAME_MAX} of a-z A-Z 0-9 - _ .")
            }
            Self::NotPlain(key) => write!(f, "{} has a control character", key.word()),
            Self::Ip(word) => {
                write!(f, "'{word}' is neither dhcp nor an address such as 192.168.1.50/24")
            }
            Self::Mode(word) => write!(f, "'{word}' is neither publish nor node"),
            Self::Host(word) => write!(f, "'{word}' is not an address such as 192.168.1.1"),
            Self::Address { text, why } => {
                write!(f, "'{text}' is not host:port such as 192.168.1.10:4150: {why}")
            }
            Self::TooMany { key, max } => write!(f, "{} takes at most {max} addresses", key.word()),
            Self::Topic { text, why } => write!(f, "'{text}' is not a topic: {why}"),
            Self::NotATime(word) => {
                write!(f, "'{word}' is not a duration; try 500ms, 5s, 2m or 1h")
            }
            Self::TimeRange { text, key } => {
                let range = match key {
                    Key::Interval => "10ms and 24h",
                    Key::Heartbeat => "1s and 60s",
                    _ => "1s and 24h",
                };
                write!(f, "'{text}' is not between {range}")
            }
            Self::NotANumber(word) => write!(f, "'{word}' is not a number from 0 to {}", u32::MAX),
        }
    }
}

impl core::error::Error for Wrong {}

pub(super) fn name(value: &str) -> Result<String<NAME_MAX>, Wrong> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !value.bytes().all(is_plain) {
        return Err(Wrong::Name(cut(value)));
    }
    String::try_from(value).map_err(|_| Wrong::Name(cut(value)))
}

pub(super) fn text<const N: usize>(key: Key, value: &str) -> Result<String<N>, Wrong> {
    if value.chars().any(char::is_control) {
        return Err(Wrong::NotPlain(key));
    }
    String::try_from(value).map_err(|_| Wrong::TooLong { key, max: N })
}

pub(super) fn ip(value: &str) -> Result<Ip, Wrong> {
    if value == "dhcp" {
        return Ok(Ip::Dhcp);
    }
    let wrong = || Wrong::Ip(cut(value));
    let (address, prefix) = value.split_once('/').ok_or_else(wrong)?;
    let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
    let is_host = !address.is_unspecified() && !address.is_multicast() && !address.is_broadcast();
    let prefix = prefix.parse().ok().filter(|prefix| (1..=30).contains(prefix));
    match prefix {
        Some(prefix) if is_host => Ok(Ip::Static { address, prefix }),
        _ => Err(wrong()),
    }
}

pub(super) fn mode(value: &str) -> Result<Mode, Wrong> {
    match value {
        "publish" => Ok(Mode::Publish),
        "node" => Ok(Mode::Node),
        other => Err(Wrong::Mode(cut(other))),
    }
}

pub(super) fn host(value: &str) -> Result<Ipv4Addr, Wrong> {
    let address = value.parse().ok().filter(|address: &Ipv4Addr| !address.is_unspecified());
    address.ok_or_else(|| Wrong::Host(cut(value)))
}

pub(super) fn addresses<const N: usize>(key: Key, value: &str) -> Result<Vec<Address, N>, Wrong> {
    let mut all = Vec::new();
    for one in value.split([',', ' ']).filter(|one| !one.is_empty()) {
        all.push(address(one)?).map_err(|_| Wrong::TooMany { key, max: N })?;
    }
    if all.is_empty() { Err(Wrong::Missing(key)) } else { Ok(all) }
}

pub(super) fn address(value: &str) -> Result<Address, Wrong> {
    value.parse().map_err(|why| Wrong::Address { text: cut(value), why })
}

pub(super) fn topic(value: &str) -> Result<TopicName, Wrong> {
    TopicName::new(value).map_err(|why| Wrong::Topic { text: cut(value), why })
}

pub(super) fn span(key: Key, value: &str, (least, most): (Span, Span)) -> Result<Span, Wrong> {
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = value.split_at(digits);
    let unit: u32 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(Wrong::NotATime(cut(value))),
    };
    if number.is_empty() {
        return Err(Wrong::NotATime(cut(value)));
    }
    let millis = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    let span = millis.map(Span::from_millis).filter(|span| (least..=most).contains(span));
    span.ok_or_else(|| Wrong::TimeRange { text: cut(value), key })
}

pub(super) fn write_some(value: &Option<impl fmt::Display>, out: &mut impl Write) -> fmt::Result {
    match value {
        Some(value) => write!(out, "{value}"),
        None => Ok(()),
    }
}

pub(super) fn write_list(addresses: &[Address], out: &mut impl Write) -> fmt::Result {
    for (index, address) in addresses.iter().enumerate() {
        if index > 0 {
            out.write_char(',')?;
        }
        write!(out, "{address}")?;
    }
    Ok(())
}

pub(super) fn write_span(span: Span, out: &mut impl Write) -> fmt::Result {
    let ms = span.as_millis();
    let units = [("h", 60 * 60 * 1000), ("m", 60 * 1000), ("s", 1000)];
    let whole = units.into_iter().find(|&(_, unit)| ms > 0 && ms.is_multiple_of(unit));
    match whole {
        Some((name, unit)) => write!(out, "{}{name}", ms / unit),
        None => write!(out, "{ms}ms"),
    }
}

/// Copies the start of `text`, with `?` for control characters.
pub(super) fn cut(text: &str) -> Word {
    let mut word = Word::new();
    for c in text.chars() {
        if word.push(if c.is_control() { '?' } else { c }).is_err() {
            break;
        }
    }
    word
}
