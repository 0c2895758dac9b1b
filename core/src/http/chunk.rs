//! The framing of a chunked body: the bytes between the data.

use super::CHUNK_LINE_MAX;

/// The position in a body that may be chunked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    part: Part,
    /// The number of digits of the chunk's size.
    digits: u8,
    /// The length of the line before a chunk so far, or of all lines behind the last chunk.
    line: u16,
    size: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The body is not chunked.
    None,
    Size,
    /// In blanks behind the size.
    Blank,
    Extension,
    SizeEnd,
    /// Behind the data of a chunk.
    DataEnd,
    DataNewline,
    /// At the beginning of a line behind the last chunk.
    Trailer,
    TrailerLine,
    TrailerEnd,
    LastNewline,
}

/// What comes next in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// More framing.
    More,
    /// So many bytes of data.
    Data(u32),
    /// The end of the body.
    End,
}

/// An error: the byte is not valid in a chunked body at its position.
#[derive(Debug)]
pub(super) struct BadChunk;

impl Chunks {
    /// A body that is not chunked.
    pub(super) const NONE: Self = Self { part: Part::None, digits: 0, line: 0, size: 0 };

    /// The beginning of a chunked body.
    pub(super) const START: Self = Self { part: Part::Size, ..Self::NONE };

    pub(super) fn is_none(self) -> bool {
        self.part == Part::None
    }

    /// Returns whether this byte ends the body.
    pub(super) fn is_last(self, byte: u8) -> bool {
        self.part == Part::LastNewline && byte == b'\n'
    }

    /// Consumes a byte that is not data.
    pub(super) fn take(&mut self, byte: u8) -> Result<Next, BadChunk> {
        self.line = self.line.saturating_add(1);
        if self.line > CHUNK_LINE_MAX {
            return Err(BadChunk);
        }
        let digit = char::from(byte).to_digit(16);
        self.part = match (self.part, byte) {
            (Part::Size, _) if digit.is_some() => {
                self.digits = self.digits.saturating_add(1);
                if self.digits > 16 {
                    return Err(BadChunk);
                }
                // A saturated size is above every bound.
                let high = self.size.saturating_mul(16);
                self.size = high.saturating_add(digit.unwrap_or(0));
                Part::Size
            }
            (Part::Size, _) if self.digits == 0 => return Err(BadChunk),
            (Part::Size | Part::Blank | Part::Extension, b'\r') => Part::SizeEnd,
            (Part::Size | Part::Blank, b' ' | b'\t') => Part::Blank,
            (Part::Size, b';') => Part::Extension,
            (Part::SizeEnd, b'\n') => {
                let size = self.size;
                *self = Self { part: Part::DataEnd, ..Self::START };
                if size > 0 {
                    return Ok(Next::Data(size));
                }
                Part::Trailer
            }
            (Part::DataEnd, b'\r') => Part::DataNewline,
            (Part::DataNewline, b'\n') => {
                *self = Self::START;
                Part::Size
            }
            (Part::Trailer, b'\r') => Part::LastNewline,
            (Part::TrailerLine, b'\r') => Part::TrailerEnd,
            (Part::TrailerEnd, b'\n') => Part::Trailer,
            (Part::LastNewline, b'\n') => {
                *self = Self::NONE;
                return Ok(Next::End);
            }
            (Part::Extension | Part::Trailer | Part::TrailerLine, b'\n') => return Err(BadChunk),
            (Part::Extension, _) => Part::Extension,
            (Part::Trailer | Part::TrailerLine, _) => Part::TrailerLine,
            _ => return Err(BadChunk),
        };
        Ok(Next::More)
    }
}
