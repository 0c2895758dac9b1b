//! Reads JSON as tokens.

use super::machine::Machine;
use super::{JsonError, Token};

/// A pull tokenizer in constant memory: pass the document in pieces, split anywhere, and pull the
/// tokens.
///
/// Checks the whole grammar, except that strings are UTF-8 ([`Text::as_str`](super::Text::as_str)
/// checks that). `N` bounds the kept bytes of a string or key, 1 to 65,535; longer ones are cut and
/// flagged.
///
/// RAM: `N` + 20 bytes, rounded up to 4.
///
/// ```
/// use nanonsq_core::wire::json::{Scanner, Token};
///
/// let mut scanner = Scanner::<24>::new();
/// let mut input = &br#"{"max_rdy_count":25"#[..];
/// assert_eq!(scanner.next(&mut input), Ok(Some(Token::ObjectStart)));
/// assert!(matches!(scanner.next(&mut input), Ok(Some(Token::Key(k))) if k.as_bytes() == b"max_rdy_count"));
/// assert_eq!(scanner.next(&mut input), Ok(None)); // the number may go on
/// let mut input = &b"00}"[..];
/// assert_eq!(scanner.next(&mut input).unwrap().and_then(Token::as_i32), Some(2500));
/// assert_eq!(scanner.next(&mut input), Ok(Some(Token::ObjectEnd)));
/// assert!(scanner.finished());
/// ```
#[derive(Debug, Clone)]
pub struct Scanner<const N: usize> {
    text: [u8; N],
    machine: Machine,
}

impl<const N: usize> Scanner<N> {
    /// Creates a scanner for a new document.
    pub const fn new() -> Self {
        Self { text: [0; N], machine: Machine::new() }
    }

    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self = Self { text: [0; N], machine: Machine::ZERO };

    /// Consumes bytes from the front of `input` up to and including the end of the next token, or
    /// all bytes if no token ends there (`None`).
    ///
    /// A number ends with the byte after it. After an error every later call returns the same
    /// error.
    pub fn next<'s>(&'s mut self, input: &mut &[u8]) -> Result<Option<Token<'s>>, JsonError> {
        let event = self.machine.next(&mut self.text, input)?;
        Ok(event.map(|event| self.machine.token(&self.text, event)))
    }

    /// Ends the document. Returns the number that the document consists of, if it does; fails if
    /// the document is incomplete.
    pub fn end(&mut self) -> Result<Option<Token<'_>>, JsonError> {
        let event = self.machine.end(&mut self.text)?;
        Ok(event.map(|event| self.machine.token(&self.text, event)))
    }

    /// Returns whether a whole document was scanned. A document that is a number ends with the byte
    /// after it, or with [`end`](Self::end).
    pub fn finished(&self) -> bool {
        self.machine.finished()
    }

    /// Returns how many objects and arrays are open.
    pub fn depth(&self) -> usize {
        self.machine.depth().into()
    }
}

impl<const N: usize> Default for Scanner<N> {
    fn default() -> Self {
        Self::new()
    }
}
