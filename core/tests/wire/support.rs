//! Helpers: transcripts of decoders, and random indices.

use std::fmt::Display;

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::wire::json::{Scanner, Token};
use nanonsq_core::wire::{ChunkWriter, DecodeError, Write, nsqd, nsqlookupd};
use nanonsq_models::random;

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// Returns the bytes of an encoder, and checks their length against `encoded_len`.
#[macro_export]
macro_rules! emitted {
    ($thing:expr) => {{
        let thing = $thing;
        let mut bytes = Vec::new();
        thing.emit(&mut bytes).unwrap();
        assert_eq!(thing.encoded_len(), bytes.len());
        let mut count = nanonsq_core::wire::Count::new();
        thing.emit(&mut count).unwrap();
        assert_eq!(count.get(), bytes.len());
        bytes
    }};
}

/// Returns the bytes of a client's IDENTIFY.
pub(crate) fn identify(
    request: &nsqd::IdentifyRequest<'_>,
    numbers: &[nsqd::IdentifyNumber],
    options: &[nsqd::IdentifyOption<'_>],
) -> Vec<u8> {
    let mut bytes = vec![0; 1000];
    let mut window = ChunkWriter::new(&mut bytes, 0);
    let Ok(()) = nsqd::emit_identify(&mut window, request, numbers, options);
    let len = window.written();
    bytes.truncate(len);
    bytes
}

/// The decoded items as lines, with split data joined.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Transcript {
    pub lines: Vec<String>,
    data: Vec<u8>,
    open: bool,
}

impl Transcript {
    pub(crate) fn line(&mut self, item: impl Display) {
        self.flush();
        self.lines.push(item.to_string());
    }

    fn data(&mut self, data: &[u8]) {
        self.open = true;
        self.data.extend_from_slice(data);
    }

    fn flush(&mut self) {
        if std::mem::take(&mut self.open) {
            let data = std::mem::take(&mut self.data);
            self.lines.push(format!("data {}", data.escape_ascii()));
        }
    }
}

/// Returns the frames of a stream, up to its fault.
pub(crate) fn frames(chunks: &[&[u8]]) -> Vec<String> {
    let mut decoder = nsqd::FrameDecoder::new(1000);
    let mut transcript = Transcript::default();
    for &chunk in chunks {
        let mut chunk = chunk;
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(part)) => {
                    if part.first {
                        transcript.line(format!("{:?} of {}", part.frame_type, part.size));
                    }
                    transcript.data(part.data);
                    if part.last {
                        transcript.line("end");
                    }
                }
                Ok(None) => break,
                Err(fault) => {
                    transcript.line(fault);
                    return transcript.lines;
                }
            }
        }
        assert!(chunk.is_empty(), "all bytes are consumed");
    }
    transcript.line(if decoder.at_boundary() { "whole" } else { "cut" });
    transcript.lines
}

/// Returns the replies of a stream, up to its fault.
pub(crate) fn replies(chunks: &[&[u8]]) -> Vec<String> {
    let mut decoder = nsqlookupd::ReplyDecoder::new(1000);
    let mut transcript = Transcript::default();
    for &chunk in chunks {
        let mut chunk = chunk;
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(part)) => {
                    if part.first {
                        transcript.line("reply");
                    }
                    transcript.data(part.data);
                    if part.last {
                        transcript.line("end");
                    }
                }
                Ok(None) => break,
                Err(fault) => {
                    transcript.line(fault);
                    return transcript.lines;
                }
            }
        }
        assert!(chunk.is_empty(), "all bytes are consumed");
    }
    transcript.line(if decoder.at_boundary() { "whole" } else { "cut" });
    transcript.lines
}

/// Returns the items that nsqd reads from a stream, up to its refusal.
pub(crate) fn v2_items(limits: &nsqd::Limits, chunks: &[&[u8]]) -> Vec<String> {
    let mut decoder = nsqd::CommandDecoder::new();
    let mut transcript = Transcript::default();
    for &chunk in chunks {
        let mut chunk = chunk;
        loop {
            match decoder.next(limits, &mut chunk) {
                Ok(Some(nsqd::Item::Part { data, last, done })) => {
                    transcript.data(data);
                    match (last, done) {
                        (true, true) => transcript.line("done"),
                        (true, false) => transcript.line("last"),
                        (false, false) => {}
                        (false, true) => panic!("done before the last part"),
                    }
                }
                Ok(Some(item)) => transcript.line(format!("{item:?}")),
                Ok(None) => break,
                Err(refusal) => {
                    transcript.line(refusal);
                    return transcript.lines;
                }
            }
        }
        assert!(chunk.is_empty(), "all bytes are consumed");
    }
    transcript.line(format!("{:?}, {}", decoder.phase(), decoder.at_boundary()));
    if let Err(refusal) = decoder.end() {
        transcript.line(refusal);
    }
    transcript.lines
}

/// Returns the items that nsqlookupd reads from a stream, up to its refusal.
pub(crate) fn v1_items(max: u32, chunks: &[&[u8]]) -> Vec<String> {
    let mut decoder = nsqlookupd::CommandDecoder::new(max);
    let mut transcript = Transcript::default();
    for &chunk in chunks {
        let mut chunk = chunk;
        loop {
            match decoder.next(&mut chunk) {
                Ok(Some(nsqlookupd::Item::Part { data, last })) => {
                    transcript.data(data);
                    if last {
                        transcript.line("done");
                    }
                }
                Ok(Some(item)) => transcript.line(format!("{item:?}")),
                Ok(None) => break,
                Err(refusal) => {
                    transcript.line(refusal);
                    return transcript.lines;
                }
            }
        }
        assert!(chunk.is_empty(), "all bytes are consumed");
    }
    transcript.line(decoder.at_boundary());
    if let Err(refusal) = decoder.end() {
        transcript.line(refusal);
    }
    transcript.lines
}

/// Returns the tokens of a document, up to its error.
pub(crate) fn tokens(chunks: &[&[u8]]) -> Vec<String> {
    let mut scanner = Scanner::<12>::new();
    let mut lines = Vec::new();
    for &chunk in chunks {
        let mut chunk = chunk;
        loop {
            match scanner.next(&mut chunk) {
                Ok(Some(token)) => lines.push(show(token)),
                Ok(None) => break,
                Err(error) => {
                    lines.push(error.to_string());
                    return lines;
                }
            }
        }
        assert!(chunk.is_empty(), "all bytes are consumed");
    }
    match scanner.end() {
        Ok(Some(token)) => lines.push(show(token)),
        Ok(None) => assert!(scanner.finished()),
        Err(error) => lines.push(error.to_string()),
    }
    lines
}

pub(crate) fn show(token: Token<'_>) -> String {
    let text = |text: nanonsq_core::wire::json::Text<'_>| {
        let cut = if text.truncated() { "..." } else { "" };
        format!("{}{cut}", text.as_bytes().escape_ascii())
    };
    match token {
        Token::Key(key) => format!("{}:", text(key)),
        Token::String(string) => format!("\"{}\"", text(string)),
        Token::Number(number) if number.exact => number.integer.to_string(),
        Token::Number(number) => format!("~{}", number.integer),
        other => format!("{other:?}"),
    }
}

pub(crate) fn requires_auth(chunks: &[&[u8]]) -> Result<bool, DecodeError> {
    granted(chunks).map(|granted| granted.auth_required)
}

pub(crate) fn granted(chunks: &[&[u8]]) -> Result<nsqd::Granted, DecodeError> {
    let mut scanner = nsqd::GrantedScanner::new();
    for chunk in chunks {
        scanner.feed(chunk);
    }
    scanner.finish()
}

pub(crate) fn node(
    chunks: &[&[u8]],
) -> Result<nsqlookupd::OwnedNodeInfo, nsqlookupd::Refusal<'static>> {
    let mut scanner = nsqlookupd::NodeInfoScanner::new();
    for chunk in chunks {
        scanner.feed(chunk)?;
    }
    scanner.finish().cloned()
}

pub(crate) fn identification(
    chunks: &[&[u8]],
) -> Result<nsqd::Identification<32>, nsqd::Refusal<'static>> {
    let mut scanner = nsqd::IdentifyScanner::<32, 32>::new();
    for chunk in chunks {
        scanner.feed(chunk)?;
    }
    scanner.finish(&nsqd::Limits::NSQD).cloned()
}

/// The random generator of the models, for indices.
pub(crate) struct Random(random::Random);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(random::Random::new(seed))
    }

    pub(crate) fn next(&mut self) -> u32 {
        (self.0.next() >> 32) as u32
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0.below(end as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// A writer that takes one byte at a time.
pub(crate) struct Trickle(pub Vec<u8>);

impl nanonsq_core::wire::ErrorType for Trickle {
    type Error = std::convert::Infallible;
}

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Self::Error> {
        self.0.extend(bytes.first());
        Ok(bytes.len().min(1))
    }

    fn flush(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }
}
