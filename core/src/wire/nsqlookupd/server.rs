//! Commands: what nsqlookupd reads.

use super::{MAGIC, Refusal, Verb};
use crate::name::{ChannelName, TopicName};
use crate::wire::line::Line;
use crate::wire::take;

/// The longest command line that is read, its line feed not counted, in bytes. nsqd's has 140.
pub const LINE_BUFFER: usize = 160;

/// One step of what a node wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'b> {
    /// PING.
    Ping,
    /// IDENTIFY; a body follows, for [`NodeInfoScanner`](super::NodeInfoScanner).
    Identify,
    /// A body follows, in one or more [`Part`](Self::Part)s.
    Body {
        /// Its length in bytes.
        len: u32,
    },
    /// The next bytes of the body; empty only if the body is.
    Part {
        /// The bytes.
        data: &'b [u8],
        /// They end the body: now IDENTIFY is to be answered.
        last: bool,
    },
    /// REGISTER.
    Register {
        /// The topic.
        topic: TopicName,
        /// The channel, or the topic alone.
        channel: Option<ChannelName>,
    },
    /// UNREGISTER.
    Unregister {
        /// The topic.
        topic: TopicName,
        /// The channel, or the topic with all of them.
        channel: Option<ChannelName>,
    },
}

/// Reads what a node sends, magic first, and checks it in nsqlookupd's order and with its answers.
///
/// White space around a line is ignored, parameters are separated by single spaces, further ones
/// are ignored, commands are case-sensitive. A body that is refused is fatal, so a node whose
/// IDENTIFY was read to its end counts as identified.
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
    /// How many bytes of `number` are read, below 4.
    have: u8,
    /// A number being read; then how much of the body is still to come.
    number: u32,
    /// The longest body taken.
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
    /// Before the magic. `max` bounds IDENTIFY's body in bytes; nsqd's has about 150, more with
    /// long names.
    pub const fn new(max: u32) -> Self {
        Self { line: Line::new(), state: State::Magic, identified: false, have: 0, number: 0, max }
    }

    /// Takes bytes from the front of `input` and gives the next item; `None` once all are taken.
    ///
    /// All refusals are fatal: answer with it ([`emit_refusal`](super::emit_refusal)) and close.
    /// Whatever comes after a refusal is dropped.
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
                // `take` gives at most `number`.
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

    /// Whether a command ended exactly here, so that the connection may end here as well.
    pub fn at_boundary(&self) -> bool {
        match self.state {
            State::Magic => self.have == 0,
            State::Line => self.line.is_empty(),
            State::Length | State::Body | State::Refused => false,
        }
    }

    /// The node will send nothing more: what nsqlookupd answers to an unfinished IDENTIFY.
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

    /// The next 4 bytes as a number.
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

/// A command line, in the order in which nsqlookupd looks at it.
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

/// Without the white space at both ends, as Go trims it, as far as it is ASCII.
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
