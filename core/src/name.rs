//! Topic and channel names, checked once, where they enter the program.
//!
//! NSQ allows `^[.a-zA-Z0-9_-]+(#ephemeral)?$` with 1 to 64 bytes *including* the suffix
//! (nsq `internal/protocol/names.go`). A value of these types has passed that check, so no
//! encoder has to check, or escape, a name again. [`topic!`](crate::topic) and
//! [`channel!`](crate::channel) check a name when the program is compiled.
//!
//! RAM: 65 bytes each.

use core::fmt;
use core::str::FromStr;

/// The longest name in bytes, suffix included.
pub const NAME_MAX: usize = 64;

const EPHEMERAL: &[u8] = b"#ephemeral";

/// Why a name is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty, or empty before `#ephemeral`.
    Empty,
    /// The name has more than [`NAME_MAX`] bytes.
    TooLong {
        /// The name's length in bytes.
        len: usize,
    },
    /// The name has a byte that NSQ does not allow.
    BadCharacter {
        /// The byte.
        byte: u8,
        /// The index of the byte, from 0.
        at: usize,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty; NSQ names have 1 to 64 characters"),
            Self::TooLong { len } => {
                write!(f, "the name has {len} bytes; NSQ allows at most {NAME_MAX}")
            }
            Self::BadCharacter { byte, at } => write!(
                f,
                "byte {byte:#04x} at position {at} is not allowed; NSQ names are made of \
                 letters, digits, '.', '_', '-' and may end in #ephemeral"
            ),
        }
    }
}

impl core::error::Error for NameError {}

const fn check(name: &[u8]) -> Result<(), NameError> {
    if name.len() > NAME_MAX {
        return Err(NameError::TooLong { len: name.len() });
    }
    let stem =
        if is_ephemeral(name) { name.len().saturating_sub(EPHEMERAL.len()) } else { name.len() };
    if stem == 0 {
        return Err(NameError::Empty);
    }
    let mut rest = name;
    let mut at = 0;
    while at < stem {
        let Some((&byte, tail)) = rest.split_first() else { break };
        if !matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-') {
            return Err(NameError::BadCharacter { byte, at });
        }
        rest = tail;
        at += 1;
    }
    Ok(())
}

const fn is_ephemeral(name: &[u8]) -> bool {
    let mut name = name;
    let mut suffix = EPHEMERAL;
    // Compared from the back and without indexing, since this is a `const fn`.
    while let Some((&want, front)) = suffix.split_last() {
        match name.split_last() {
            Some((&byte, rest)) if byte == want => {
                name = rest;
                suffix = front;
            }
            Some(_) | None => return false,
        }
    }
    true
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            len: u8,
            // Unused bytes are zero, so that the derived comparisons are right.
            bytes: [u8; NAME_MAX],
        }

        impl $name {
            /// Checks and copies a name. Usable in constants.
            pub const fn new(name: &str) -> Result<Self, NameError> {
                Self::from_bytes(name.as_bytes())
            }

            /// Checks and copies a name from the wire. Usable in constants.
            pub const fn from_bytes(name: &[u8]) -> Result<Self, NameError> {
                if let Err(error) = check(name) {
                    return Err(error);
                }
                let mut bytes = [0; NAME_MAX];
                let mut from = name;
                let mut to: &mut [u8] = &mut bytes;
                while let (Some((&byte, rest)), Some((slot, slots))) =
                    (from.split_first(), to.split_first_mut())
                {
                    *slot = byte;
                    from = rest;
                    to = slots;
                }
                // At most NAME_MAX, which fits.
                Ok(Self { len: name.len() as u8, bytes })
            }

            /// The value of a slot without a name.
            pub(crate) const NONE: Self = Self { len: 0, bytes: [0; NAME_MAX] };

            /// Returns the name.
            pub fn as_str(&self) -> &str {
                core::str::from_utf8(self.as_bytes()).unwrap_or_default()
            }

            /// Returns the bytes of the name, 1 to 64.
            pub(crate) fn as_bytes(&self) -> &[u8] {
                self.bytes.get(..usize::from(self.len).min(NAME_MAX)).unwrap_or_default()
            }

            /// Returns whether the name ends in `#ephemeral`: nsqd then keeps nothing of the topic
            /// or channel on disk, and deletes it with its last client or channel.
            pub fn is_ephemeral(&self) -> bool {
                is_ephemeral(self.as_bytes())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        #[cfg(feature = "defmt")]
        impl defmt::Format for $name {
            fn format(&self, f: defmt::Formatter<'_>) {
                defmt::write!(f, "{=str}", self.as_str());
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl TryFrom<&str> for $name {
            type Error = NameError;

            fn try_from(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
    };
}

name_type! {
    /// The name of a topic, to which messages are published.
    TopicName
}

name_type! {
    /// The name of a channel, an independent copy of its topic's messages.
    ChannelName
}

/// A [`TopicName`](crate::name::TopicName) that is checked when the program is compiled.
///
/// The argument is a constant: a literal, or an `env!`. A program with an invalid name does not
/// compile, and the reason is in the error.
///
/// ```
/// use nanonsq_core::name::TopicName;
///
/// const READINGS: TopicName = nanonsq_core::topic!("readings");
/// assert_eq!(READINGS.as_str(), "readings");
/// ```
///
/// ```compile_fail,E0080
/// let topic = nanonsq_core::topic!("room 7");
/// ```
#[macro_export]
macro_rules! topic {
    ($name:expr) => {
        $crate::__name!(TopicName, $name)
    };
}

/// A [`ChannelName`](crate::name::ChannelName) that is checked when the program is compiled, as
/// [`topic!`](crate::topic).
///
/// ```
/// let channel = nanonsq_core::channel!("archive#ephemeral");
/// assert!(channel.is_ephemeral());
/// ```
///
/// ```compile_fail,E0080
/// let channel = nanonsq_core::channel!("");
/// ```
#[macro_export]
macro_rules! channel {
    ($name:expr) => {
        $crate::__name!(ChannelName, $name)
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __name {
    ($type:ident, $name:expr) => {
        const {
            use $crate::name::NameError;
            match $crate::name::$type::new($name) {
                Ok(name) => name,
                Err(NameError::Empty) => panic!("the name is empty"),
                Err(NameError::TooLong { .. }) => panic!("the name has more than 64 bytes"),
                Err(_) => panic!(
                    "a name is made of letters, digits, '.', '_', '-' and may end in #ephemeral"
                ),
            }
        }
    };
}

impl TopicName {
    /// Replaces the name by one that was checked before.
    pub(crate) fn set<'n>(&mut self, name: impl Iterator<Item = &'n u8>) {
        self.len = 0;
        for (slot, &byte) in self.bytes.iter_mut().zip(name) {
            *slot = byte;
            self.len = self.len.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nsq_accepts_are_accepted() {
        for name in ["a", "sensors.temp-1_x", "0", "logs#ephemeral", &"x".repeat(64)] {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
            assert_eq!(ChannelName::new(name).unwrap().to_string(), name);
        }
        assert!(TopicName::new("logs#ephemeral").unwrap().is_ephemeral());
        assert!(!TopicName::new("ephemeral").unwrap().is_ephemeral());
    }

    #[test]
    fn names_that_nsq_refuses_are_refused_with_the_reason() {
        let err = |name: &str| TopicName::new(name).unwrap_err();
        assert_eq!(err(""), NameError::Empty);
        assert_eq!(err("#ephemeral"), NameError::Empty);
        assert_eq!(err(&"x".repeat(65)), NameError::TooLong { len: 65 });
        // The suffix counts.
        assert_eq!(err(&format!("{}#ephemeral", "x".repeat(55))), NameError::TooLong { len: 65 });
        assert!(TopicName::new(&format!("{}#ephemeral", "x".repeat(54))).is_ok());
        assert_eq!(err("a b"), NameError::BadCharacter { byte: b' ', at: 1 });
        assert_eq!(err("a\n"), NameError::BadCharacter { byte: b'\n', at: 1 });
        assert_eq!(err("a#b"), NameError::BadCharacter { byte: b'#', at: 1 });
        assert_eq!(err("é"), NameError::BadCharacter { byte: 0xc3, at: 0 });
        assert_eq!(err("a#ephemeral#ephemeral"), NameError::BadCharacter { byte: b'#', at: 1 });
    }

    #[test]
    fn every_byte_is_accepted_as_by_the_regular_expression() {
        for byte in 0..=u8::MAX {
            let ok = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            assert_eq!(TopicName::from_bytes(&[byte]).is_ok(), ok, "{byte:#x}");
        }
    }

    #[test]
    fn ram() {
        assert_eq!(size_of::<TopicName>(), 65);
    }
}
