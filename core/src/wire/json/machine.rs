//! The state machine of the scanner.

use super::{JsonError, Number, Text, Token};

/// How deep objects and arrays may nest.
pub const DEPTH_MAX: usize = 32;

/// The scanner without its buffer, so that all buffer sizes share one copy of the code.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    /// One bit for each open object or array, the innermost lowest: 1 is an object.
    nest: u32,
    /// The offset of the next byte.
    at: u32,
    /// For a number, its magnitude. For a string, the code unit being read in the low half, and a
    /// high surrogate that waits for its low one in the high half.
    acc: u32,
    /// How many bytes of the buffer are filled.
    len: u16,
    mode: Mode,
    /// How many objects and arrays are open.
    depth: u8,
    /// Which kinds of bytes may come next; after a number, string or literal has begun, which may
    /// come after it.
    allowed: u8,
    /// For a literal, the index of its next letter in [`LITERALS`]; for `\uXXXX`, how many digits
    /// were read; for a number, its row in [`NUMBER`].
    count: u8,
    /// The string did not fit, or the number is not exact.
    lossy: bool,
    negative: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) enum Mode {
    /// Between tokens.
    Structure,
    /// In a string.
    Text,
    /// After the `\` of a string.
    Escape,
    /// After `\u`.
    Hex,
    /// After a high surrogate.
    Half,
    Number,
    Literal,
    // Reasons of a failure, not states of reading.
    TooDeep,
    Incomplete,
    NotAnObject,
    WrongType,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    ObjectStart,
    ObjectEnd,
    ArrayStart,
    ArrayEnd,
    Key,
    String,
    Number,
    True,
    False,
    Null,
}

// The kinds of bytes that may come next, as bits of `allowed`.
const SPACE: u8 = 0;
pub(super) const VALUE: u8 = 1;
pub(super) const KEY: u8 = 2;
pub(super) const COLON: u8 = 4;
pub(super) const COMMA: u8 = 8;
pub(super) const END: u8 = 16;
/// No byte may follow: an error was found. Mode and the other bits show which.
const FAILED: u8 = 128;

/// An error: a byte that does not fit. Mode and `allowed` show why.
pub(super) struct Misfit;

impl Machine {
    pub(super) const fn new() -> Self {
        Self { allowed: VALUE, ..Self::ZERO }
    }

    /// A value of zero bytes, for storage before its use.
    pub(super) const ZERO: Self = Self {
        nest: 0,
        at: 0,
        acc: 0,
        len: 0,
        mode: Mode::Structure,
        depth: 0,
        allowed: 0,
        count: 0,
        lossy: false,
        negative: false,
    };

    pub(super) fn next(
        &mut self,
        text: &mut [u8],
        input: &mut &[u8],
    ) -> Result<Option<Event>, JsonError> {
        while let Some((&byte, rest)) = input.split_first() {
            let Ok(event) = self.step(text, byte) else {
                return Err(self.fail(self.mode));
            };
            // A number ends before the byte that follows, which is to be read again.
            if event != Some(Event::Number) {
                *input = rest;
                self.at = self.at.saturating_add(1);
            }
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Ends the document; returns the number that it ends with, if any.
    pub(super) fn end(&mut self, text: &mut [u8]) -> Result<Option<Event>, JsonError> {
        if self.finished() {
            return Ok(None);
        }
        let (at, failed) = (self.at, self.failed());
        // White space ends a number, and completes no other token.
        let event = self.next(text, &mut &b" "[..]);
        if !self.finished() && !failed {
            self.at = at;
            return Err(self.fail(Mode::Incomplete));
        }
        event
    }

    /// Returns the number just scanned.
    pub(super) fn number_value(&self) -> Number {
        // The magnitude of i32::MIN wraps to i32::MIN.
        let magnitude = self.acc as i32;
        let integer = if self.negative { magnitude.wrapping_neg() } else { magnitude };
        Number { integer, exact: !self.lossy }
    }

    pub(super) fn token<'s>(&self, text: &'s [u8], event: Event) -> Token<'s> {
        match event {
            Event::ObjectStart => Token::ObjectStart,
            Event::ObjectEnd => Token::ObjectEnd,
            Event::ArrayStart => Token::ArrayStart,
            Event::ArrayEnd => Token::ArrayEnd,
            Event::Key => Token::Key(self.text(text)),
            Event::String => Token::String(self.text(text)),
            Event::Number => Token::Number(self.number_value()),
            Event::True => Token::Bool(true),
            Event::False => Token::Bool(false),
            Event::Null => Token::Null,
        }
    }

    pub(super) fn text<'s>(&self, text: &'s [u8]) -> Text<'s> {
        let bytes = text.get(..self.len.into()).unwrap_or_default();
        Text { bytes, truncated: self.lossy }
    }

    pub(super) fn depth(&self) -> u8 {
        self.depth
    }

    pub(super) fn finished(&self) -> bool {
        self.allowed == 0 && matches!(self.mode, Mode::Structure)
    }

    pub(super) fn failed(&self) -> bool {
        self.allowed & FAILED != 0
    }

    /// Records an error, which all later calls return.
    pub(super) fn fail(&mut self, mode: Mode) -> JsonError {
        self.mode = mode;
        let error = JsonError { at: self.at, mode, allowed: self.allowed & !FAILED };
        self.allowed |= FAILED;
        error
    }

    fn step(&mut self, text: &mut [u8], byte: u8) -> Result<Option<Event>, Misfit> {
        if self.failed() {
            return Err(Misfit);
        }
        if self.mode == Mode::Half {
            // Returns to the text, or gives up waiting for the low surrogate.
            self.unescape(text, byte)?;
        }
        match self.mode {
            Mode::Structure => return self.structure(byte),
            Mode::Text => return self.plain(text, byte),
            Mode::Escape | Mode::Hex | Mode::Half => self.unescape(text, byte)?,
            Mode::Number => return self.number(byte),
            Mode::Literal => return self.literal(byte),
            Mode::TooDeep | Mode::Incomplete | Mode::NotAnObject | Mode::WrongType => {
                return Err(Misfit);
            }
        }
        Ok(None)
    }

    fn structure(&mut self, byte: u8) -> Result<Option<Event>, Misfit> {
        let role = ROLES.iter().find(|(name, _)| *name == byte).map_or(VALUE, |(_, role)| *role);
        if role == SPACE {
            return Ok(None);
        }
        let is_object = self.nest & 1 == 1;
        let now = self.allowed & role;
        if now == 0 || (now == END && is_object != (byte == b'}')) {
            return Err(Misfit);
        }
        match now {
            COLON => self.allowed = VALUE,
            COMMA => self.allowed = if is_object { KEY } else { VALUE },
            END => {
                self.depth = self.depth.wrapping_sub(1);
                self.nest >>= 1;
                self.after_value();
                return Ok(Some(if is_object { Event::ObjectEnd } else { Event::ArrayEnd }));
            }
            _ => return self.value(byte, now),
        }
        Ok(None)
    }

    /// Handles the first byte of a value or key.
    fn value(&mut self, byte: u8, role: u8) -> Result<Option<Event>, Misfit> {
        self.acc = 0;
        self.count = 0;
        self.len = 0;
        self.lossy = false;
        self.negative = byte == b'-';
        match byte {
            b'{' | b'[' => return self.open(byte == b'{'),
            b'"' => {
                self.mode = Mode::Text;
                self.after_value();
                if role == KEY {
                    self.allowed = COLON;
                }
            }
            b'-' | b'0'..=b'9' => {
                self.mode = Mode::Number;
                self.after_value();
                if !self.negative {
                    return self.number(byte);
                }
            }
            b't' => self.open_literal(1),
            b'f' => self.open_literal(TRUE_END.wrapping_add(1)),
            b'n' => self.open_literal(FALSE_END.wrapping_add(1)),
            _ => return Err(Misfit),
        }
        Ok(None)
    }

    fn open_literal(&mut self, second_letter: u8) {
        self.mode = Mode::Literal;
        self.after_value();
        self.count = second_letter;
    }

    fn open(&mut self, is_object: bool) -> Result<Option<Event>, Misfit> {
        if usize::from(self.depth) >= DEPTH_MAX {
            self.mode = Mode::TooDeep;
            return Err(Misfit);
        }
        self.depth = self.depth.wrapping_add(1);
        self.nest = self.nest << 1 | u32::from(is_object);
        self.allowed = END | if is_object { KEY } else { VALUE };
        Ok(Some(if is_object { Event::ObjectStart } else { Event::ArrayStart }))
    }

    fn after_value(&mut self) {
        self.allowed = if self.depth == 0 { 0 } else { COMMA | END };
    }

    fn plain(&mut self, text: &mut [u8], byte: u8) -> Result<Option<Event>, Misfit> {
        if byte == b'\\' {
            self.mode = Mode::Escape;
            return Ok(None);
        }
        if byte == b'"' {
            self.mode = Mode::Structure;
            return Ok(Some(if self.allowed == COLON { Event::Key } else { Event::String }));
        }
        if byte < b' ' {
            return Err(Misfit);
        }
        self.push(text, byte);
        Ok(None)
    }

    /// Handles a byte of an escape; stores the character in UTF-8.
    pub(super) fn unescape(&mut self, text: &mut [u8], byte: u8) -> Result<(), Misfit> {
        match self.mode {
            Mode::Hex => return self.hex(text, byte),
            Mode::Half => {
                self.mode = Mode::Text;
                if byte != b'\\' {
                    self.lone_surrogate(text);
                }
                return Ok(());
            }
            _ if byte == b'u' => {
                self.count = 0;
                self.mode = Mode::Hex;
                return Ok(());
            }
            _ => {}
        }
        let Some((_, unescaped)) = ESCAPES.iter().find(|(letter, _)| *letter == byte) else {
            return Err(Misfit);
        };
        self.mode = Mode::Text;
        self.lone_surrogate(text);
        self.push(text, *unescaped);
        Ok(())
    }

    fn hex(&mut self, text: &mut [u8], byte: u8) -> Result<(), Misfit> {
        let Some(digit) = char::from(byte).to_digit(16) else {
            return Err(Misfit);
        };
        let high = self.acc >> 16;
        let unit = (self.acc << 4 | digit) & 0xffff;
        self.acc = high << 16 | unit;
        self.count = self.count.wrapping_add(1);
        if self.count < 4 {
            return Ok(());
        }
        self.mode = Mode::Text;
        let half = unit & 0xfc00;
        if high != 0 && half == LOW_SURROGATE {
            self.acc = 0;
            // Ten bits of each half, above the first plane.
            let code = ((high & 0x3ff) << 10 | unit & 0x3ff).wrapping_add(0x1_0000);
            self.push_char(text, code);
            return Ok(());
        }
        self.lone_surrogate(text);
        if half == HIGH_SURROGATE {
            self.acc = unit << 16;
            self.mode = Mode::Half;
        } else {
            self.push_char(text, if half == LOW_SURROGATE { REPLACEMENT } else { unit });
        }
        Ok(())
    }

    /// Gives up waiting for the low surrogate.
    fn lone_surrogate(&mut self, text: &mut [u8]) {
        let high = self.acc >> 16;
        self.acc = 0;
        if high != 0 {
            self.push_char(text, REPLACEMENT);
        }
    }

    /// Appends a character as UTF-8.
    fn push_char(&mut self, text: &mut [u8], code: u32) {
        if code < 0x80 {
            return self.push(text, code as u8);
        }
        // The number of continuation bytes after the first.
        let more = match code {
            0..0x800 => 1u32,
            0x800..0x1_0000 => 2,
            _ => 3,
        };
        let mut shift = more.wrapping_mul(6);
        self.push(text, (0xff80u32.unbounded_shr(more) | code.unbounded_shr(shift)) as u8);
        while shift > 0 {
            shift = shift.wrapping_sub(6);
            self.push(text, (0x80 | code.unbounded_shr(shift) & 0x3f) as u8);
        }
    }

    #[inline(never)] // Small, and called from six places.
    fn push(&mut self, text: &mut [u8], byte: u8) {
        match text.get_mut(usize::from(self.len)) {
            Some(slot) if self.len < u16::MAX => {
                *slot = byte;
                self.len = self.len.wrapping_add(1);
            }
            _ => self.lossy = true,
        }
    }

    fn number(&mut self, byte: u8) -> Result<Option<Event>, Misfit> {
        let class = match byte {
            b'0' => 0,
            b'1'..=b'9' => 4,
            b'.' => 8,
            b'e' | b'E' => 12,
            b'+' | b'-' => 16,
            _ => 20,
        };
        let row = NUMBER.get(usize::from(self.count)).copied().unwrap_or_default();
        let next = (row >> class & 0xf) as u8;
        match next {
            NUMBER_BAD => return Err(Misfit),
            NUMBER_END => {
                self.mode = Mode::Structure;
                return Ok(Some(Event::Number));
            }
            NUMBER_INTEGER => self.digit(byte),
            NUMBER_DOT.. => self.lossy = true,
            _ => {}
        }
        self.count = next;
        Ok(None)
    }

    fn digit(&mut self, byte: u8) {
        // The magnitude of i32::MAX or i32::MIN.
        let limit = (i32::MAX as u32).wrapping_add(self.negative.into());
        let acc = if self.acc > i32::MAX as u32 / 10 {
            u32::MAX
        } else {
            self.acc.wrapping_mul(10).wrapping_add(byte.wrapping_sub(b'0').into())
        };
        self.lossy |= acc > limit;
        self.acc = acc.min(limit);
    }

    fn literal(&mut self, byte: u8) -> Result<Option<Event>, Misfit> {
        if LITERALS.get(usize::from(self.count)) != Some(&byte) {
            return Err(Misfit);
        }
        self.count = self.count.wrapping_add(1);
        let event = match self.count {
            TRUE_END => Event::True,
            FALSE_END => Event::False,
            NULL_END => Event::Null,
            _ => return Ok(None),
        };
        self.mode = Mode::Structure;
        Ok(Some(event))
    }
}

/// The kind of a byte between values; any other byte begins a value.
const ROLES: [(u8, u8); 9] = [
    (b' ', SPACE),
    (b'\t', SPACE),
    (b'\n', SPACE),
    (b'\r', SPACE),
    (b':', COLON),
    (b',', COMMA),
    (b'}', END),
    (b']', END),
    (b'"', VALUE | KEY),
];

const LITERALS: &[u8; 13] = b"truefalsenull";
const TRUE_END: u8 = 4;
const FALSE_END: u8 = 9;
const NULL_END: u8 = 13;

const ESCAPES: [(u8, u8); 8] = [
    (b'"', b'"'),
    (b'\\', b'\\'),
    (b'/', b'/'),
    (b'b', 8),
    (b'f', 12),
    (b'n', b'\n'),
    (b'r', b'\r'),
    (b't', b'\t'),
];

const HIGH_SURROGATE: u32 = 0xd800;
const LOW_SURROGATE: u32 = 0xdc00;
const REPLACEMENT: u32 = 0xfffd;

// Rows of `NUMBER`, and results.
const NUMBER_BAD: u8 = 0;
const NUMBER_END: u8 = 1;
const NUMBER_INTEGER: u8 = 3;
const NUMBER_DOT: u8 = 4;

/// The state machine of numbers: a row for each place, in it the next place for `0`, `1` to `9`,
/// `.`, `e`, a sign and any other byte, as hexadecimal digits from the right.
const NUMBER: [u32; 9] = [
    // 0: before the first digit
    0x00_0032, 0x00_0000, // 2: after a leading 0
    0x11_6400, // 3: in its integer part
    0x11_6433, // 4: after the .
    0x00_0055, // 5: in its fraction
    0x11_6155, // 6: after the e
    0x07_0088, // 7: after the exponent's sign
    0x00_0088, // 8: in its exponent
    0x11_1188,
];
