//! Parses the commands of a client from the bytes that a [`Proxy`](crate::Proxy) recorded.
//!
//! Written against the protocol, not against nanonsq. The parser is strict: bytes that nsqd would
//! refuse are an error with their position. A command that is cut off at the end is no error.

use std::fmt;

/// A V2 command, as a client sends it to nsqd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum V2 {
    /// `IDENTIFY`, with its JSON.
    Identify(Vec<u8>),
    /// `AUTH`, with the secret.
    Auth(Vec<u8>),
    /// `SUB topic channel`.
    Sub(String, String),
    /// `RDY count`.
    Rdy(u64),
    /// `FIN id`.
    Fin(String),
    /// `REQ id milliseconds`.
    Req(String, u64),
    /// `TOUCH id`.
    Touch(String),
    /// `CLS`.
    Cls,
    /// `NOP`.
    Nop,
    /// `PUB topic`, with the body.
    Pub(String, Vec<u8>),
    /// `MPUB topic`, with the bodies.
    Mpub(String, Vec<Vec<u8>>),
    /// `DPUB topic milliseconds`, with the body.
    Dpub(String, u64, Vec<u8>),
}

/// A V1 command, as nsqd sends it to nsqlookupd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum V1 {
    /// `IDENTIFY`, with its JSON.
    Identify(Vec<u8>),
    /// `REGISTER topic [channel]`.
    Register(String, Option<String>),
    /// `UNREGISTER topic [channel]`.
    Unregister(String, Option<String>),
    /// `PING`.
    Ping,
}

/// The commands of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tapped<C> {
    /// All complete commands, in order.
    pub commands: Vec<C>,
    /// The length of an incomplete command at the end.
    pub incomplete: usize,
}

/// The number of commands of each kind; see [`Tapped::counts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are those of the commands.
pub struct Counts {
    pub identify: usize,
    pub auth: usize,
    pub sub: usize,
    pub rdy: usize,
    pub fin: usize,
    pub req: usize,
    pub touch: usize,
    pub cls: usize,
    pub nop: usize,
    pub publish: usize,
    pub mpub: usize,
    /// Messages in all MPUBs together.
    pub mpub_messages: usize,
    pub dpub: usize,
}

impl Tapped<V2> {
    /// Counts the commands.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for command in &self.commands {
            *match command {
                V2::Identify(_) => &mut counts.identify,
                V2::Auth(_) => &mut counts.auth,
                V2::Sub(..) => &mut counts.sub,
                V2::Rdy(_) => &mut counts.rdy,
                V2::Fin(_) => &mut counts.fin,
                V2::Req(..) => &mut counts.req,
                V2::Touch(_) => &mut counts.touch,
                V2::Cls => &mut counts.cls,
                V2::Nop => &mut counts.nop,
                V2::Pub(..) => &mut counts.publish,
                V2::Mpub(_, bodies) => {
                    counts.mpub_messages += bodies.len();
                    &mut counts.mpub
                }
                V2::Dpub(..) => &mut counts.dpub,
            } += 1;
        }
        counts
    }

    /// Returns every published body in order, whichever command carried it.
    pub fn published(&self) -> Vec<&[u8]> {
        let bodies = self.commands.iter().flat_map(|command| match command {
            V2::Pub(_, body) | V2::Dpub(_, _, body) => std::slice::from_ref(body),
            V2::Mpub(_, bodies) => bodies,
            _ => &[],
        });
        bodies.map(Vec::as_slice).collect()
    }
}

/// Bytes that no client should send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// The position at which the command starts.
    pub at: usize,
    /// The reason.
    pub why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.at, self.why)
    }
}

impl std::error::Error for Malformed {}

/// Parses the bytes that a client sent to nsqd.
pub fn nsqd(bytes: &[u8]) -> Result<Tapped<V2>, Malformed> {
    parse(bytes, b"  V2", v2_command)
}

/// Parses the bytes that nsqd sent to nsqlookupd.
pub fn nsqlookupd(bytes: &[u8]) -> Result<Tapped<V1>, Malformed> {
    parse(bytes, b"  V1", v1_command)
}

/// Why a command cannot be parsed.
enum Stop {
    Incomplete,
    Malformed(String),
}

fn parse<C>(
    bytes: &[u8],
    magic: &[u8; 4],
    command: impl Fn(&mut Cursor<'_>) -> Result<C, Stop>,
) -> Result<Tapped<C>, Malformed> {
    let mut tapped = Tapped { commands: Vec::new(), incomplete: 0 };
    if bytes.len() < magic.len() {
        tapped.incomplete = bytes.len();
        return Ok(tapped);
    }
    let Some(mut rest) = bytes.strip_prefix(magic) else {
        let why = format!("the magic is {:?}", String::from_utf8_lossy(&bytes[..magic.len()]));
        return Err(Malformed { at: 0, why });
    };
    while !rest.is_empty() {
        let mut cursor = Cursor(rest);
        match command(&mut cursor) {
            Ok(command) => tapped.commands.push(command),
            Err(Stop::Incomplete) => break,
            Err(Stop::Malformed(why)) => {
                return Err(Malformed { at: bytes.len() - rest.len(), why });
            }
        }
        rest = cursor.0;
    }
    tapped.incomplete = rest.len();
    Ok(tapped)
}

fn v2_command(cursor: &mut Cursor<'_>) -> Result<V2, Stop> {
    let line = cursor.line()?;
    let words: Vec<_> = line.split(' ').collect();
    Ok(match words[..] {
        ["IDENTIFY"] => V2::Identify(cursor.sized()?),
        ["AUTH"] => V2::Auth(cursor.sized()?),
        ["SUB", topic, channel] => V2::Sub(name(topic)?, name(channel)?),
        ["RDY", count] => V2::Rdy(number(count)?),
        ["FIN", message] => V2::Fin(id(message)?),
        ["REQ", message, delay] => V2::Req(id(message)?, number(delay)?),
        ["TOUCH", message] => V2::Touch(id(message)?),
        ["CLS"] => V2::Cls,
        ["NOP"] => V2::Nop,
        ["PUB", topic] => V2::Pub(name(topic)?, cursor.body()?),
        ["DPUB", topic, delay] => V2::Dpub(name(topic)?, number(delay)?, cursor.body()?),
        ["MPUB", topic] => {
            let topic = name(topic)?;
            let size = cursor.u32()?;
            let mut content = Cursor(cursor.take(size)?);
            // From here on nothing can be missing, unless the size is wrong.
            let bodies = mpub_bodies(&mut content).map_err(|stop| match stop {
                Stop::Incomplete => {
                    Stop::Malformed(format!("the content of MPUB exceeds its size {size}"))
                }
                malformed => malformed,
            })?;
            V2::Mpub(topic, bodies)
        }
        _ => return Err(Stop::Malformed(format!("unknown command {line:?}"))),
    })
}

fn mpub_bodies(content: &mut Cursor<'_>) -> Result<Vec<Vec<u8>>, Stop> {
    let count = content.u32()?;
    if count == 0 {
        return Err(Stop::Malformed("MPUB of no messages".into()));
    }
    let bodies = (0..count).map(|_| content.body()).collect::<Result<_, _>>()?;
    match content.0.len() {
        0 => Ok(bodies),
        left => Err(Stop::Malformed(format!("{left} bytes after the last message of MPUB"))),
    }
}

fn v1_command(cursor: &mut Cursor<'_>) -> Result<V1, Stop> {
    let line = cursor.line()?;
    let words: Vec<_> = line.split(' ').collect();
    Ok(match words[..] {
        ["IDENTIFY"] => V1::Identify(cursor.sized()?),
        ["REGISTER", topic] => V1::Register(name(topic)?, None),
        ["REGISTER", topic, channel] => V1::Register(name(topic)?, Some(name(channel)?)),
        ["UNREGISTER", topic] => V1::Unregister(name(topic)?, None),
        ["UNREGISTER", topic, channel] => V1::Unregister(name(topic)?, Some(name(channel)?)),
        ["PING"] => V1::Ping,
        _ => return Err(Stop::Malformed(format!("unknown command {line:?}"))),
    })
}

/// The bytes that are not parsed yet.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, size: u32) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(size as usize).ok_or(Stop::Incomplete)?;
        self.0 = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, Stop> {
        let end = self.0.iter().position(|&byte| byte == b'\n').ok_or(Stop::Incomplete)?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 1..];
        let text = std::str::from_utf8(line)
            .ok()
            .filter(|line| line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        text.ok_or_else(|| {
            Stop::Malformed(format!("a line that is not text: {:?}", String::from_utf8_lossy(line)))
        })
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    fn sized(&mut self) -> Result<Vec<u8>, Stop> {
        let size = self.u32()?;
        Ok(self.take(size)?.to_vec())
    }

    /// Parses a message: nsqd refuses empty ones.
    fn body(&mut self) -> Result<Vec<u8>, Stop> {
        match self.u32()? {
            0 => Err(Stop::Malformed("an empty message".into())),
            size => Ok(self.take(size)?.to_vec()),
        }
    }
}

fn name(word: &str) -> Result<String, Stop> {
    let stem = word.strip_suffix("#ephemeral").unwrap_or(word);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if (1..=64).contains(&word.len()) && !stem.is_empty() && stem.bytes().all(allowed) {
        Ok(word.to_owned())
    } else {
        Err(Stop::Malformed(format!("bad name {word:?}")))
    }
}

fn id(word: &str) -> Result<String, Stop> {
    match word.len() {
        16 => Ok(word.to_owned()),
        _ => Err(Stop::Malformed(format!("bad message id {word:?}"))),
    }
}

fn number(word: &str) -> Result<u64, Stop> {
    let number = word.parse().ok().filter(|_| word.bytes().all(|byte| byte.is_ascii_digit()));
    number.ok_or_else(|| Stop::Malformed(format!("bad number {word:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b"  V2IDENTIFY\n\0\0\0\x02{}SUB t c#ephemeral\nRDY 5\nFIN 0123456789abcdef\nPUB t\n\
        \0\0\0\x01a\
        MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01b\0\0\0\x02cdDPUB t 250\n\0\0\0\x01eNOP\nCLS\n";

    #[test]
    fn v2_commands_are_read_and_counted() {
        let tapped = nsqd(STREAM).unwrap();
        assert_eq!(tapped.incomplete, 0);
        let counts = tapped.counts();
        assert_eq!(
            counts,
            Counts {
                identify: 1,
                sub: 1,
                rdy: 1,
                fin: 1,
                publish: 1,
                mpub: 1,
                mpub_messages: 2,
                dpub: 1,
                nop: 1,
                cls: 1,
                ..Counts::default()
            }
        );
        assert_eq!(tapped.published(), [&b"a"[..], b"b", b"cd", b"e"]);
    }

    #[test]
    fn a_cut_anywhere_leaves_the_complete_commands() {
        let all = nsqd(STREAM).unwrap().commands;
        for end in 0..STREAM.len() {
            let tapped = nsqd(&STREAM[..end]).unwrap();
            assert_eq!(tapped.commands, all[..tapped.commands.len()], "cut at {end}");
        }
    }

    #[test]
    fn v1_commands_are_read() {
        let tapped = nsqlookupd(
            b"  V1IDENTIFY\n\0\0\0\x02{}REGISTER t\nREGISTER t c\nUNREGISTER t c\nPING\nPI",
        )
        .unwrap();
        let text = |name: &str| name.to_owned();
        assert_eq!(
            tapped.commands,
            [
                V1::Identify(b"{}".to_vec()),
                V1::Register(text("t"), None),
                V1::Register(text("t"), Some(text("c"))),
                V1::Unregister(text("t"), Some(text("c"))),
                V1::Ping,
            ]
        );
        assert_eq!(tapped.incomplete, 2);
    }

    #[test]
    fn commands_that_nsqd_refuses_are_malformed() {
        let why = |bytes: &[u8]| nsqd(bytes).unwrap_err();
        assert_eq!(why(b"  V1").at, 0);
        assert_eq!(
            why(b"  V2NOP\nnop\n"),
            Malformed { at: 8, why: "unknown command \"nop\"".into() }
        );
        assert_eq!(why(b"  V2PUB t\n\0\0\0\0").why, "an empty message");
        assert_eq!(why(b"  V2PUB a/b\n\0\0\0\x01x").why, "bad name \"a/b\"");
        assert_eq!(why(b"  V2REQ 0123456789abcdef +1\n").why, "bad number \"+1\"");
        let mpub = b"  V2MPUB t\n\0\0\0\x0a\0\0\0\x01\0\0\0\x01ab";
        assert_eq!(why(mpub).why, "1 bytes after the last message of MPUB");
    }
}
