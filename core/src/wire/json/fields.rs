//! One flat object, field by field.

use super::scan::{Event, Machine};
use super::{JsonError, Problem, Token};

/// Scans one object and picks the fields that are asked for.
///
/// Unknown keys are skipped with all that is nested in them. `null` is the same as the key's
/// absence, as in nsqd and nsqlookupd. A key given twice is handed on twice: keep the last.
///
/// `N` bounds keys and strings as in [`Scanner`](super::Scanner). RAM: `N` + 28 bytes, rounded up
/// to 4.
///
/// ```
/// use nanonsq_core::wire::json::Fields;
///
/// const KEYS: [&str; 2] = ["tcp_port", "http_port"];
/// let mut fields = Fields::<16>::new();
/// let mut input = &br#"{"version":"1.3.0","http_port":4161}"#[..];
/// let (key, value) = fields.next(&KEYS, &mut input).unwrap().unwrap();
/// assert_eq!((key, value.as_i32()), (1, Some(4161)));
/// assert_eq!(fields.next(&KEYS, &mut input), Ok(None));
/// assert!(fields.finish().is_ok());
/// ```
#[derive(Debug, Clone)]
pub struct Fields<const N: usize> {
    text: [u8; N],
    machine: Machine,
    /// Which key the value that comes next belongs to; 255 is one that nobody asked for.
    key: u8,
}

const UNKNOWN: u8 = u8::MAX;

impl<const N: usize> Fields<N> {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self { text: [0; N], machine: Machine::new(), key: UNKNOWN }
    }

    /// Takes bytes from the front of `input` up to and including the next value of one of `keys`,
    /// or all of them if none ends there (`None`). Gives the key's place in `keys` and the value:
    /// a string, number or boolean, or the start of an object or array, which is skipped.
    ///
    /// Give the same `keys` each time, at most 255 of them. After an error every later call gives
    /// an error, too.
    pub fn next<'s>(
        &'s mut self,
        keys: &[&str],
        input: &mut &[u8],
    ) -> Result<Option<(u8, Token<'s>)>, JsonError> {
        let event = next(&mut self.machine, &mut self.key, &mut self.text, keys, input)?;
        Ok(event.map(|event| (self.key, self.machine.token(&self.text, event))))
    }

    /// The value just given is of no use: the error to return. The object is refused from here.
    pub fn refuse(&mut self) -> JsonError {
        self.machine.fail(Problem::WrongType)
    }

    /// The input is complete: whether the object is.
    pub fn finish(&mut self) -> Result<(), JsonError> {
        if self.machine.finished() { Ok(()) } else { Err(self.machine.fail(Problem::Incomplete)) }
    }
}

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self::new()
    }
}

fn next(
    machine: &mut Machine,
    key: &mut u8,
    text: &mut [u8],
    keys: &[&str],
    input: &mut &[u8],
) -> Result<Option<Event>, JsonError> {
    loop {
        let depth = machine.depth();
        let Some(event) = machine.next(text, input)? else { return Ok(None) };
        match event {
            _ if depth > 1 => {}
            Event::ObjectStart if depth == 0 => {}
            _ if depth == 0 => return Err(machine.fail(Problem::NotAnObject)),
            Event::Key => {
                let name = machine.text(text);
                let found = keys
                    .iter()
                    .position(|key| key.as_bytes() == name.as_bytes() && !name.truncated());
                *key = found.map_or(UNKNOWN, |at| at as u8);
            }
            Event::Null | Event::ObjectEnd => {}
            _ if *key == UNKNOWN => {}
            _ => return Ok(Some(event)),
        }
    }
}
