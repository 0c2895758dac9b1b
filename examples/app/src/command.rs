//! Parses commands: lines of text.

use core::fmt;
use core::fmt::Write as _;

use heapless::String;
use nanonsq_core::consumer::MessageId;
use nanonsq_core::time::Span;

/// The longest command, in bytes.
pub const COMMAND_MAX: usize = 128;

/// The longest `#id`, in bytes.
const ID_MAX: usize = 32;
/// Bytes of an invalid word that an error repeats.
const WORD_MAX: usize = 24;

/// The shortest and the longest interval between readings.
const INTERVAL: (Span, Span) = (Span::from_millis(10), Span::from_secs(24 * 60 * 60));

/// The `#id` of a command, or nsqd's id of its message.
pub(crate) type Id = String<ID_MAX>;

/// The invalid word of a command, cut to [`WORD_MAX`].
pub(crate) type Word = String<WORD_MAX>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    SetInterval(Span),
    Blink,
    Stats,
    Reboot,
}

/// Why a command is invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    TooLong,
    NotText,
    NoCommand,
    Id,
    Unknown(Word),
    UnknownSetting(Word),
    Interval(Word),
    IntervalRange(Word),
    TooMuch(Word),
}

/// Parses the body of a message. Returns an id for the reply in any case.
pub(crate) fn read(body: &[u8], message: MessageId) -> (Id, Result<Command, Refusal>) {
    let mut id = Id::new();
    let _ = write!(id, "{message}");
    if body.len() > COMMAND_MAX {
        return (id, Err(Refusal::TooLong));
    }
    let Ok(line) = str::from_utf8(body) else { return (id, Err(Refusal::NotText)) };
    let mut words = line.split_ascii_whitespace().peekable();
    if let Some(own) = words.next_if(|word| word.starts_with('#')) {
        let own = own.get(1..).unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        match Id::try_from(own) {
            Ok(own) if !own.is_empty() && own.bytes().all(is_plain) => id = own,
            _ => return (id, Err(Refusal::Id)),
        }
    }
    (id, command(words))
}

fn command<'w>(mut words: impl Iterator<Item = &'w str>) -> Result<Command, Refusal> {
    let command = match words.next().ok_or(Refusal::NoCommand)? {
        "set" => match words.next().unwrap_or_default() {
            "interval" => Command::SetInterval(interval(words.next().unwrap_or_default())?),
            other => return Err(Refusal::UnknownSetting(word(other))),
        },
        "blink" => Command::Blink,
        "stats" => Command::Stats,
        "reboot" => Command::Reboot,
        other => return Err(Refusal::Unknown(word(other))),
    };
    match words.next() {
        Some(more) => Err(Refusal::TooMuch(word(more))),
        None => Ok(command),
    }
}

/// Parses an interval such as `250ms`, `5s`, `2m` or `1h`.
fn interval(text: &str) -> Result<Span, Refusal> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or_default();
    let unit: u32 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(Refusal::Interval(word(text))),
    };
    if number.is_empty() {
        return Err(Refusal::Interval(word(text)));
    }
    let millis = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
    let span = millis.map(Span::from_millis);
    span.filter(|span| (INTERVAL.0..=INTERVAL.1).contains(span))
        .ok_or_else(|| Refusal::IntervalRange(word(text)))
}

/// Copies the start of `text`, with `?` for control characters.
fn word(text: &str) -> Word {
    let mut word = Word::new();
    for c in text.chars() {
        if word.push(if c.is_control() { '?' } else { c }).is_err() {
            break;
        }
    }
    word
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than {COMMAND_MAX} bytes"),
            Self::NotText => f.write_str("not UTF-8"),
            Self::NoCommand => f.write_str("no command"),
            Self::Id => write!(f, "an #id has 1 to {ID_MAX} of a-z A-Z 0-9 - _ . :"),
            Self::Unknown(word) => write!(f, "unknown command '{word}'"),
            Self::UnknownSetting(word) => write!(f, "unknown setting '{word}'"),
            Self::Interval(word) => {
                write!(f, "'{word}' is not a duration; try 500ms, 5s, 2m or 1h")
            }
            Self::IntervalRange(word) => write!(f, "'{word}' is not between 10ms and 24h"),
            Self::TooMuch(word) => write!(f, "'{word}' is too much"),
        }
    }
}

/// The valid commands, for replies to invalid ones.
pub(crate) const UNDERSTOOD: &str = "[#id] set interval 5s | blink | stats | reboot";
