//! Reads one flat object, field by field.

use super::machine::{Event, Machine, Mode};
use super::{JsonError, Text, Token};

/// Scans one object and returns the fields of given keys.
///
/// Unknown keys are skipped with all that is nested in their values. As in nsqd and nsqlookupd,
/// keys match in any case of ASCII letters; `null` as a value counts as an absent field, and as a
/// document as `{}`. A key that occurs twice is returned twice: keep the last.
///
/// `N` bounds keys and strings as in [`Scanner`](super::Scanner). RAM: `N` + 24 bytes, rounded up
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
    /// The index of the key whose value comes next; 255 for a key that was not given.
    key: u8,
    /// The kind of the value just returned.
    event: Event,
}

const UNKNOWN: u8 = u8::MAX;

/// Defines an enum of fields with the key of each: the keys that are given to [`Fields`], and the
/// meaning of the index that it returns.
macro_rules! fields {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($field:ident = $key:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy)]
        $vis enum $name {
            $($field,)+
        }

        impl $name {
            /// The keys, in the order of the variants.
            const KEYS: &'static [&'static str] = &[$($key,)+];

            /// Returns the field at that index of [`Self::KEYS`].
            fn at(index: u8) -> Option<Self> {
                [$(Self::$field,)+].get(usize::from(index)).copied()
            }

            /// Returns the text before the value of a field that is not the first: `,"key":`.
            #[allow(dead_code, reason = "for those that write the object as well")]
            const fn json_key(self) -> &'static str {
                match self {
                    $(Self::$field => concat!(",\"", $key, "\":"),)+
                }
            }
        }
    };
}
pub(in crate::wire) use fields;

impl<const N: usize> Fields<N> {
    /// Creates a scanner for a new object.
    pub const fn new() -> Self {
        Self { text: [0; N], machine: Machine::new(), key: UNKNOWN, event: Event::Null }
    }

    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self =
        Self { text: [0; N], machine: Machine::ZERO, key: 0, event: Event::ObjectStart };

    /// Consumes bytes from the front of `input` up to and including the next value of one of
    /// `keys`, or all bytes if no such value ends there (`None`). Returns the index of the key in
    /// `keys` and the value: a string, number or boolean, or the start of an object or array, which
    /// is skipped.
    ///
    /// Pass the same `keys` each time, at most 255 of them. After an error every later call returns
    /// an error, too.
    pub fn next<'s>(
        &'s mut self,
        keys: &[&str],
        input: &mut &[u8],
    ) -> Result<Option<(u8, Token<'s>)>, JsonError> {
        let key = self.pull(keys, input)?;
        Ok(key.map(|key| (key, self.machine.token(&self.text, self.event))))
    }

    /// As [`next`](Self::next), but the value is read with the methods below.
    pub(in crate::wire) fn take(
        &mut self,
        keys: &[&str],
        input: &mut &[u8],
    ) -> Result<Option<u8>, JsonError> {
        self.pull(keys, input)
    }

    /// Returns the value just found, if it is an integer that fits.
    pub(in crate::wire) fn exact(&self) -> Option<i32> {
        let number = self.machine.number_value();
        (self.event == Event::Number && number.exact).then_some(number.integer)
    }

    /// Returns the value just found, if it is a boolean.
    pub(in crate::wire) fn flag(&self) -> Option<bool> {
        match self.event {
            Event::True => Some(true),
            Event::False => Some(false),
            _ => None,
        }
    }

    /// Returns the value just found, if it is a string.
    pub(in crate::wire) fn string(&self) -> Option<Text<'_>> {
        (self.event == Event::String).then_some(self.machine.text(&self.text))
    }

    fn pull(&mut self, keys: &[&str], input: &mut &[u8]) -> Result<Option<u8>, JsonError> {
        pull(&mut self.machine, &mut self.key, &mut self.text, keys, input).map(|event| {
            self.event = event?;
            Some(self.key)
        })
    }

    /// Rejects the value just returned as of the wrong type. Returns the error; later calls fail.
    pub fn refuse(&mut self) -> JsonError {
        self.machine.fail(Mode::WrongType)
    }

    /// Returns an error unless the object is complete at the end of the input.
    pub fn finish(&mut self) -> Result<(), JsonError> {
        if self.machine.finished() { Ok(()) } else { Err(self.machine.fail(Mode::Incomplete)) }
    }
}

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self::new()
    }
}

fn pull(
    machine: &mut Machine,
    key: &mut u8,
    text: &mut [u8],
    keys: &[&str],
    input: &mut &[u8],
) -> Result<Option<Event>, JsonError> {
    loop {
        let depth = machine.depth();
        let Some(event) = machine.next(text, input)? else { return Ok(None) };
        match (depth, event) {
            (0, Event::ObjectStart | Event::Null) | (1, Event::ObjectEnd | Event::Null) => {}
            (0, _) => return Err(machine.fail(Mode::NotAnObject)),
            (1, Event::Key) => {
                let name = machine.text(text);
                let found = keys.iter().position(|key| {
                    let (key, name) = (key.as_bytes(), name.as_bytes());
                    key.eq_ignore_ascii_case(name)
                });
                *key = match found {
                    Some(at) if !name.truncated() => at as u8,
                    _ => UNKNOWN,
                };
            }
            (1, event) if *key != UNKNOWN => return Ok(Some(event)),
            _ => {}
        }
    }
}
