//! The commands that nsqlookupd reads.

use super::{MAGIC, Refusal, Verb};
use crate::name::{ChannelName, TopicName};
use crate::wire::line::Line;
use crate::wire::take;

/// The longest command line that is read, without its line feed, in bytes. nsqd's has at most 140.
pub const LINE_BUFFER: usize = 160;

/// A command of a node, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'b> {
    /// PING.
    Ping,
    /// IDENTIFY; a body follows, for [`NodeInfoScanner`](super::NodeInfoScanner).
    Identify,
    /// A body follows, in one or more [`Part`](Self::Part)s.
    Body {
        /// The length in bytes.
        len: u32,
    },
    /// The next bytes of the body; empty only if the body is.
    Part {
        /// The bytes.
        data: &'b [u8],
        /// True if they end the body, and IDENTIFY is now to be answered.
        last: bool,
    },
    /// REGISTER.
    Register {
        /// The topic.
        topic: TopicName,
        /// The channel; `None` for the topic alone.
        channel: Option<ChannelName>,
    },
    /// UNREGISTER.
    Unregister {
        /// The topic.
        topic: TopicName,
        /// The channel; `None` for the topic and all its channels.
        channel: Option<ChannelName>,
    },
}

/// Reads the bytes of a node, magic first, and checks them in nsqlookupd's order and with its
/// refusals.
///
/// White space around a line is ignored, parameters are separated by single spaces, further
/// parameters are ignored, commands are case-sensitive. A refused body is fatal, so a node counts
/// as identified once IDENTIFY was read to its end.
///
/// RAM: [`LINE_BUFFER`] + 12 bytes.
///
/// ```
/// use nanonsq_core::wire::nsqlookupd::{CommandDecoder, Item};
///
/// let mut commands = CommandDecoder::new(1024);
/// let mut input = &b"  V1PING\n"[..];
/// assert_eq!(commands.next(&mut input), Ok(Some(Item::Ping)));
/// assert_eq!(commands.next(&mut input), Ok(None));
/// ```
#[derive(Debug, Clone)]
pub struct CommandDecoder {
    line: Line<LINE_BUFFER>,
    state: State,
    identified: bool,
    /// How many bytes of `number` were read, below 4.
    have: u8,
    /// A number being read; then how many bytes of the body are still to come.
    number: u32,
    /// The longest body that is accepted, in bytes.
    max: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Magic,
    Line,
    Length,
    Body,
    Refused,
}

impl CommandDecoder {
    /// Creates a decoder for a new connection. `max` bounds IDENTIFY's body in bytes; nsqd's has
    /// about 150, more with long names.
    pub const fn new(max: u32) -> Self {
        Self { line: Line::new(), state: State::Magic, identified: false, have: 0, number: 0, max }
    }

    /// Consumes bytes from the front of `input` and returns the next item; `None` once all bytes
    /// are consumed.
    ///
    /// All refusals are fatal: send the reply ([`emit_refusal`](super::emit_refusal)) and close.
    /// All bytes after a refusal are dropped.
    pub fn next<'s, 'b: 's>(
        &'s mut self,
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
        match self.state {
            State::Line => self.command(input),
            State::Length => {
                let Some(number) = self.number(input) else {
                    return Ok(None);
                };
                let (len, max) = (number as i32, self.max);
                if len < 0 || number > max {
                    self.state = State::Refused;
                    return Err(Refusal::BadLength { len, max });
                }
                self.state = State::Body;
                Ok(Some(Item::Body { len: number }))
            }
            State::Body => {
                let data = take(input, self.number);
                if data.is_empty() && self.number != 0 {
                    return Ok(None);
                }
                // `take` returns at most `number` bytes.
                self.number = self.number.wrapping_sub(data.len() as u32);
                let last = self.number == 0;
                if last {
                    self.identified = true;
                    self.state = State::Line;
                }
                Ok(Some(Item::Part { data, last }))
            }
            State::Magic | State::Refused => {
                *input = &[];
                Ok(None)
            }
        }
    }

    /// Returns whether a command ended exactly here, so that the connection may end here as well.
    pub fn at_boundary(&self) -> bool {
        match self.state {
            State::Magic => self.have == 0,
            State::Line => self.line.is_empty(),
            State::Length | State::Body | State::Refused => false,
        }
    }

    /// Notes that the node will send nothing more. Fails with nsqlookupd's refusal of an unfinished
    /// IDENTIFY.
    pub fn end(&mut self) -> Result<(), Refusal<'static>> {
        let refusal = match self.state {
            State::Magic | State::Line | State::Refused => return Ok(()),
            State::Length => Refusal::EndedInLength,
            State::Body => Refusal::EndedInBody,
        };
        self.state = State::Refused;
        Err(refusal)
    }

    fn command<'s, 'b: 's>(
        &'s mut self,
        input: &mut &'b [u8],
    ) -> Result<Option<Item<'b>>, Refusal<'s>> {
        let Ok(line) = self.line.next(input) else {
            self.state = State::Refused;
            return Err(Refusal::LineTooLong);
        };
        let Some(line) = line else { return Ok(None) };
        let parsed = parse(line, self.identified);
        self.state = match parsed {
            Ok(Item::Identify) => State::Length,
            Ok(_) => State::Line,
            Err(_) => State::Refused,
        };
        parsed.map(Some)
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

/// Parses a command line, with the checks in nsqlookupd's order.
fn parse<'b>(line: &[u8], identified: bool) -> Result<Item<'b>, Refusal<'_>> {
    let mut words = trim(line).split(|byte| *byte == b' ');
    let word = words.next().unwrap_or_default();
    let verb = match word {
        b"PING" => return Ok(Item::Ping),
        b"IDENTIFY" if identified => return Err(Refusal::IdentifiedAlready),
        b"IDENTIFY" => return Ok(Item::Identify),
        b"REGISTER" => Verb::Register,
        b"UNREGISTER" => Verb::Unregister,
        _ => return Err(Refusal::UnknownCommand(word)),
    };
    if !identified {
        return Err(Refusal::NotIdentified);
    }
    let name = words.next().ok_or(Refusal::Parameters(verb))?;
    let topic = TopicName::from_bytes(name).map_err(|_| Refusal::BadTopic { verb, name })?;
    let channel = match words.next() {
        None | Some([]) => None,
        Some(name) => {
            Some(ChannelName::from_bytes(name).map_err(|_| Refusal::BadChannel { verb, name })?)
        }
    };
    Ok(match verb {
        Verb::Register => Item::Register { topic, channel },
        Verb::Unregister => Item::Unregister { topic, channel },
    })
}

/// Removes ASCII white space at both ends, as Go does.
fn trim(line: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | 9..=13);
    let mut line = line;
    while let Some((first, rest)) = line.split_first()
        && is_space(first)
    {
        line = rest;
    }
    while let Some((last, rest)) = line.split_last()
        && is_space(last)
    {
        line = rest;
    }
    line
}
