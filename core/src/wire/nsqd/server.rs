//! The commands that nsqd reads.

use super::refusal::Within;
use super::{Limits, MAGIC, MessageId, Refusal, Verb};
use crate::name::{ChannelName, TopicName};
use crate::wire::line::Line;
use crate::wire::take;

/// The longest command line that is read, without its line feed, in bytes. A well-behaved client's
/// has at most 133.
pub const LINE_BUFFER: usize = 160;

/// A command of a client, or a part of one.
///
/// A command with a body is an item of its own first. Once its length is known and within the
/// limits, [`Body`](Self::Body) follows, then the body in one or more [`Part`](Self::Part)s. MPUB
/// has a [`Batch`](Self::Batch) before that, and a body for each message. The server may refuse a
/// command (for example because its topic is full) at any of these by an error frame and closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'b> {
    /// IDENTIFY; a body follows, for [`IdentifyScanner`](super::IdentifyScanner).
    Identify,
    /// AUTH; a body follows: the secret.
    Auth,
    /// SUB. The decoder is in [`Phase::Subscribed`] from here on.
    Sub {
        /// The topic.
        topic: TopicName,
        /// The channel.
        channel: ChannelName,
    },
    /// RDY, within the limits.
    Rdy(u32),
    /// FIN.
    Fin(MessageId),
    /// REQ.
    Req {
        /// The message.
        id: MessageId,
        /// The delay in milliseconds, clamped to the limits.
        delay_ms: u32,
    },
    /// TOUCH.
    Touch(MessageId),
    /// CLS. The decoder is in [`Phase::Closing`] from here on.
    Cls,
    /// NOP, or RDY after CLS, which nsqd ignores. Not answered.
    Nop,
    /// PUB; a body follows: the message.
    Pub {
        /// The topic.
        topic: TopicName,
    },
    /// MPUB; a batch follows.
    Mpub {
        /// The topic.
        topic: TopicName,
    },
    /// DPUB; a body follows: the message.
    Dpub {
        /// The topic.
        topic: TopicName,
        /// The deferral in milliseconds, within the limits.
        defer_ms: u32,
    },
    /// The messages of an MPUB follow, each as a body.
    Batch {
        /// The announced length of all that follows; as in nsqd, it may be wrong.
        len: u32,
        /// The number of messages, at least 1.
        count: u32,
    },
    /// A body follows.
    Body {
        /// The length in bytes, at least 1.
        len: u32,
    },
    /// The next bytes of the body, never empty.
    Part {
        /// The bytes.
        data: &'b [u8],
        /// True if they end the body.
        last: bool,
        /// True if they end the command, which is now to be answered.
        done: bool,
    },
}

/// The commands that a client may send; nsqd calls it the client's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Phase {
    /// Before SUB: IDENTIFY, AUTH, SUB, publishing.
    Init,
    /// After SUB: RDY, FIN, REQ, TOUCH, CLS, publishing.
    Subscribed,
    /// After CLS: FIN, REQ, TOUCH, publishing.
    Closing,
}

/// Reads the bytes of a client, magic first. Checks everything that does not depend on topics,
/// channels and messages, in nsqd's order and with its refusals.
///
/// RAM: [`LINE_BUFFER`] + 24 bytes.
///
/// ```
/// use nanonsq_core::wire::nsqd::{CommandDecoder, Item, Limits};
///
/// let mut commands = CommandDecoder::new();
/// let mut input = &b"  V2PUB t\n\0\0\0\x02hi"[..];
/// let mut next = || commands.next(&Limits::NSQD, &mut input).unwrap();
/// assert!(matches!(next(), Some(Item::Pub { topic }) if topic.as_str() == "t"));
/// assert_eq!(next(), Some(Item::Body { len: 2 }));
/// assert_eq!(next(), Some(Item::Part { data: b"hi", last: true, done: true }));
/// assert_eq!(next(), None);
/// ```
#[derive(Debug, Clone)]
pub struct CommandDecoder {
    line: Line<LINE_BUFFER>,
    state: State,
    phase: Phase,
    /// The command whose body is being read.
    verb: Verb,
    heartbeats: bool,
    /// How many bytes of `number` were read, below 4.
    have: u8,
    number: u32,
    /// Bytes of the body still to come; before an MPUB's count, the announced length.
    left: u32,
    /// MPUB: the number of messages.
    count: u32,
    /// MPUB: the index of the message that is next or being read.
    index: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    Line,
    Length,
    Count,
    MessageLength,
    Body,
    Refused,
}

impl CommandDecoder {
    /// Creates a decoder for a new connection.
    pub const fn new() -> Self {
        Self { verb: Verb::Nop, heartbeats: true, ..Self::ZERO }
    }

    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self = Self {
        line: Line::new(),
        state: State::Magic,
        phase: Phase::Init,
        verb: Verb::Identify,
        heartbeats: false,
        have: 0,
        number: 0,
        left: 0,
        count: 0,
        index: 0,
    };

    /// Consumes bytes from the front of `input` and returns the next item; `None` once all bytes
    /// are consumed.
    ///
    /// All refusals from here are fatal: send the error frame and close. All bytes after a refusal
    /// are dropped.
    pub fn next<'s, 'b: 's>(
        &'s mut self,
        limits: &Limits,
        input: &mut &'b [u8],
    ) -> Result<Option<Item<'b>>, Refusal<'s>> {
        if self.state == State::Magic {
            match self.number(input) {
                None => return Ok(None),
                Some(magic) if magic == u32::from_be_bytes(MAGIC) => self.state = State::Line,
                Some(_) => {
                    self.state = State::Refused;
                    return Err(Refusal::BadProtocol);
                }
            }
        }
        if self.state == State::Line {
            self.command(limits, input)
        } else {
            let item = self.body(limits, input);
            if item.is_err() {
                self.state = State::Refused;
            }
            item
        }
    }

    /// Sets whether the client receives heartbeats: IDENTIFY may have disabled or enabled them. SUB
    /// is refused without heartbeats.
    pub const fn set_heartbeats(&mut self, on: bool) {
        self.heartbeats = on;
    }

    /// Returns the commands that the client may send now.
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns whether a command ended exactly here, so that the connection may end here as well.
    pub fn at_boundary(&self) -> bool {
        match self.state {
            State::Magic => self.have == 0,
            State::Line => self.line.is_empty(),
            State::Length | State::Count | State::MessageLength | State::Body | State::Refused => {
                false
            }
        }
    }

    /// Notes that the client will send nothing more. Fails with nsqd's refusal of an unfinished
    /// body.
    pub fn end(&mut self) -> Result<(), Refusal<'static>> {
        let at = match self.state {
            State::Magic | State::Line | State::Refused => return Ok(()),
            State::Length => Within::Length,
            State::Count => Within::Count,
            State::MessageLength => Within::MessageLength(self.index),
            State::Body => Within::Body,
        };
        self.state = State::Refused;
        Err(Refusal::Ended { verb: self.verb, at })
    }

    fn command<'s, 'b: 's>(
        &'s mut self,
        limits: &Limits,
        input: &mut &'b [u8],
    ) -> Result<Option<Item<'b>>, Refusal<'s>> {
        let Ok(line) = self.line.next(input) else {
            self.state = State::Refused;
            return Err(Refusal::LineTooLong);
        };
        let Some(line) = line else { return Ok(None) };
        let parsed = parse(line, self.phase, self.heartbeats, limits);
        let next = match &parsed {
            Err(_) => State::Refused,
            Ok((Item::Sub { .. }, _)) => {
                self.phase = Phase::Subscribed;
                State::Line
            }
            Ok((Item::Cls, _)) => {
                self.phase = Phase::Closing;
                State::Line
            }
            Ok((
                Item::Identify
                | Item::Auth
                | Item::Pub { .. }
                | Item::Mpub { .. }
                | Item::Dpub { .. },
                verb,
            )) => {
                self.verb = *verb;
                State::Length
            }
            Ok(_) => State::Line,
        };
        self.state = next;
        parsed.map(|(item, _)| Some(item))
    }

    fn body<'b>(
        &mut self,
        limits: &Limits,
        input: &mut &'b [u8],
    ) -> Result<Option<Item<'b>>, Refusal<'static>> {
        let verb = self.verb;
        if self.state == State::Length {
            let Some(number) = self.number(input) else {
                return Ok(None);
            };
            let max = match verb {
                Verb::Pub | Verb::Dpub => limits.max_msg_size,
                _ => limits.max_body_size,
            };
            let len = number as i32;
            if len <= 0 {
                return Err(Refusal::BadLength { verb, len });
            }
            if number > max {
                return Err(Refusal::TooBig { verb, len, max });
            }
            self.left = number;
            if verb != Verb::Mpub {
                // The body is read as the only message of a batch.
                self.index = 0;
                self.count = 1;
                self.state = State::Body;
                return Ok(Some(Item::Body { len: number }));
            }
            self.state = State::Count;
        }
        if self.state == State::Count {
            let Some(count) = self.number(input) else {
                return Ok(None);
            };
            // Each message has a length and at least one byte.
            let most = limits.max_body_size.saturating_sub(4);
            let fits = count <= u32::MAX / 5 && count.wrapping_mul(5) <= most;
            if count as i32 <= 0 || !fits {
                return Err(Refusal::BadCount(count as i32));
            }
            self.index = 0;
            self.count = count;
            self.state = State::MessageLength;
            return Ok(Some(Item::Batch { len: self.left, count }));
        }
        if self.state == State::MessageLength {
            let Some(number) = self.number(input) else {
                return Ok(None);
            };
            let len = number as i32;
            if len <= 0 {
                return Err(Refusal::BadMessageLength { index: self.index, len });
            }
            if number > limits.max_msg_size {
                return Err(Refusal::MessageTooBig { len, max: limits.max_msg_size });
            }
            self.left = number;
            self.state = State::Body;
            return Ok(Some(Item::Body { len: number }));
        }
        if self.state == State::Refused {
            *input = &[];
        }
        let data = take(input, self.left);
        if data.is_empty() {
            return Ok(None);
        }
        // `take` returns at most `left` bytes.
        self.left = self.left.wrapping_sub(data.len() as u32);
        let last = self.left == 0;
        let mut done = false;
        if last {
            self.index = self.index.saturating_add(1);
            done = self.index >= self.count;
            self.state = if done { State::Line } else { State::MessageLength };
        }
        Ok(Some(Item::Part { data, last, done }))
    }

    /// Reads 4 bytes as a number; `None` until all of them have arrived.
    fn number(&mut self, input: &mut &[u8]) -> Option<u32> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            self.number = self.number << 8 | u32::from(byte);
            self.have = self.have.wrapping_add(1) & 3;
            if self.have == 0 {
                return Some(self.number);
            }
        }
        None
    }
}

impl Default for CommandDecoder {
    fn default() -> Self {
        Self::new()
    }
}

/// Parses a command line, with the checks in nsqd's order.
fn parse<'b, 's>(
    line: &'s [u8],
    phase: Phase,
    heartbeats: bool,
    limits: &Limits,
) -> Result<(Item<'b>, Verb), Refusal<'s>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut words = line.split(|byte| *byte == b' ');
    let word = words.next().unwrap_or_default();
    let Some(verb) = Verb::parse(word) else {
        return Err(Refusal::UnknownCommand(word));
    };
    let fits = match verb {
        Verb::Identify | Verb::Auth | Verb::Sub => phase == Phase::Init,
        Verb::Rdy | Verb::Fin | Verb::Req | Verb::Touch => phase != Phase::Init,
        Verb::Cls => phase == Phase::Subscribed,
        Verb::Nop | Verb::Pub | Verb::Mpub | Verb::Dpub => true,
    };
    if !fits {
        return Err(Refusal::WrongState(verb));
    }
    let (first, second) = (words.next(), words.next());
    let missing = Refusal::Parameters(verb);
    let item = match verb {
        Verb::Identify => Item::Identify,
        Verb::Auth if first.is_some() => return Err(missing),
        Verb::Auth => Item::Auth,
        Verb::Sub if !heartbeats => return Err(Refusal::HeartbeatsOff),
        Verb::Sub => {
            let name = second.ok_or(missing)?;
            Item::Sub {
                topic: topic(verb, first)?,
                channel: ChannelName::from_bytes(name).map_err(|_| Refusal::BadChannel { name })?,
            }
        }
        Verb::Rdy if phase == Phase::Closing => Item::Nop,
        Verb::Rdy => match first {
            None => check_count(1, b"1", limits)?,
            Some(digits) => check_count(number(verb, digits)?, digits, limits)?,
        },
        Verb::Fin => Item::Fin(id(verb, first)?),
        Verb::Req => {
            let text = second.ok_or(missing)?;
            Item::Req {
                id: id(verb, first)?,
                delay_ms: number(verb, text)?.min(limits.max_req_timeout_ms),
            }
        }
        Verb::Touch => Item::Touch(id(verb, first)?),
        Verb::Cls => Item::Cls,
        Verb::Nop => Item::Nop,
        Verb::Pub => Item::Pub { topic: topic(verb, first)? },
        Verb::Mpub => Item::Mpub { topic: topic(verb, first)? },
        Verb::Dpub => {
            let digits = second.ok_or(missing)?;
            let topic = topic(verb, first)?;
            let defer_ms = number(verb, digits)?;
            let max = limits.max_req_timeout_ms;
            if defer_ms > max {
                return Err(Refusal::OutOfRange { verb, digits, max });
            }
            Item::Dpub { topic, defer_ms }
        }
    };
    Ok((item, verb))
}

fn check_count<'b, 's>(
    count: u32,
    digits: &'s [u8],
    limits: &Limits,
) -> Result<Item<'b>, Refusal<'s>> {
    let max = limits.max_rdy_count;
    if count > max {
        return Err(Refusal::OutOfRange { verb: Verb::Rdy, digits, max });
    }
    Ok(Item::Rdy(count))
}

fn topic(verb: Verb, word: Option<&[u8]>) -> Result<TopicName, Refusal<'_>> {
    let name = word.ok_or(Refusal::Parameters(verb))?;
    TopicName::from_bytes(name).map_err(|_| Refusal::BadTopic { verb, name })
}

fn id(verb: Verb, word: Option<&[u8]>) -> Result<MessageId, Refusal<'_>> {
    let word = word.ok_or(Refusal::Parameters(verb))?;
    MessageId::parse(word).ok_or(Refusal::BadMessageId)
}

/// Parses decimal digits; no digits at all are 0. Saturates, where nsqd wraps at 2^64.
fn number(verb: Verb, text: &[u8]) -> Result<u32, Refusal<'_>> {
    let mut number = 0u32;
    for byte in text {
        if !byte.is_ascii_digit() {
            return Err(Refusal::BadNumber { verb, text });
        }
        let digit = u32::from(byte.wrapping_sub(b'0'));
        // `saturating_mul` would take a 64-bit product.
        number = if number > u32::MAX / 10 { u32::MAX } else { number.wrapping_mul(10) };
        number = number.saturating_add(digit);
    }
    Ok(number)
}
