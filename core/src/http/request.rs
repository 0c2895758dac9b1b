//! The request of a client.

use super::VALUE_MAX;
use crate::name::{ChannelName, NameError, TopicName};

/// The method of a request, as far as NSQ's servers distinguish methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Method {
    /// `GET`
    Get,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `HEAD`: answered without a body. NSQ's servers refuse it with 405.
    Head,
    /// `OPTIONS`: lists the methods of a path.
    Options,
    /// Any other.
    Other,
}

impl Method {
    pub(super) fn parse(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"HEAD" => Self::Head,
            b"OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

/// The kept parts of a request's head.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    pub(super) method: Method,
    pub(super) path: &'r [u8],
    /// The parameters that the service uses.
    pub(super) names: &'r [&'r str],
    /// The parameters that were given: each as its index in `names`, its length, and its value.
    pub(super) params: &'r [u8],
    pub(super) bad_query: bool,
    pub(super) body_len: Option<u32>,
}

/// The query is invalid: a `%` without two hexadecimal digits, or a `;`, which Go refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BadQuery;

impl<'r> Request<'r> {
    /// Returns the method.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Returns the length of the body in bytes; `None` if the body is chunked, so that its length
    /// is known only at its end.
    pub const fn body_len(&self) -> Option<u32> {
        self.body_len
    }

    /// Returns whether the path, with its escapes decoded, is `path`. A path of more than
    /// [`PATH_MAX`](super::PATH_MAX) bytes matches none.
    pub fn is_for(&self, path: &str) -> bool {
        self.path == path.as_bytes()
    }

    /// Returns the rest of the path behind `prefix`, if that is one name: not empty and without
    /// `/`.
    pub fn name_after(&self, prefix: &str) -> Option<Value<'r>> {
        let bytes = self.path.strip_prefix(prefix.as_bytes())?;
        (!bytes.is_empty() && !bytes.contains(&b'/')).then_some(Value { bytes })
    }

    /// Fails if the query is invalid; nsqd and nsqlookupd refuse such a query as a whole.
    pub fn check_query(&self) -> Result<(), BadQuery> {
        if self.bad_query { Err(BadQuery) } else { Ok(()) }
    }

    /// Returns the first value of one of [`Service::PARAMS`](super::Service::PARAMS); `None` if the
    /// parameter was not given. A parameter without `=` is empty.
    pub fn param(&self, name: &str) -> Option<Value<'r>> {
        let index = self.names.iter().position(|is| *is == name)?;
        find_param(self.params, index).map(|bytes| Value { bytes })
    }
}

/// Returns the value of the parameter with that index.
pub(super) fn find_param(params: &[u8], index: usize) -> Option<&[u8]> {
    let mut rest = params;
    while let Some((&[at, len], behind)) = rest.split_first_chunk() {
        let (value, behind) = behind.split_at_checked(len.into())?;
        if usize::from(at) == index {
            return Some(value);
        }
        rest = behind;
    }
    None
}

/// A decoded value of a path or query. A value of more than [`VALUE_MAX`](super::VALUE_MAX) bytes
/// is cut to one byte more than that.
#[derive(Debug, Clone, Copy)]
pub struct Value<'r> {
    bytes: &'r [u8],
}

impl<'r> Value<'r> {
    /// Returns the bytes.
    pub const fn bytes(&self) -> &'r [u8] {
        self.bytes
    }

    /// Returns whether the value is `text`.
    pub fn is(&self, text: &str) -> bool {
        self.bytes == text.as_bytes()
    }

    /// Returns the value as a topic's name.
    pub fn topic(&self) -> Result<TopicName, NameError> {
        TopicName::from_bytes(self.bytes)
    }

    /// Returns the value as a channel's name.
    pub fn channel(&self) -> Result<ChannelName, NameError> {
        ChannelName::from_bytes(self.bytes)
    }

    /// Returns the value as a decimal number without a sign; `None` if it is not a number of 32
    /// bits.
    pub fn number(&self) -> Option<u32> {
        if self.bytes.len() > VALUE_MAX {
            return None;
        }
        let mut number = None;
        for byte in self.bytes {
            let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
            let tens = number.unwrap_or(0u32).checked_mul(10)?;
            number = Some(tens.checked_add(digit.into())?);
        }
        number
    }

    /// Returns the value as Go's `strconv.ParseBool` reads it.
    pub fn bool(&self) -> Option<bool> {
        match self.bytes {
            b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True" => Some(true),
            b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False" => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NAME_MAX;

    fn value(text: &str) -> Value<'_> {
        Value { bytes: text.as_bytes() }
    }

    #[test]
    fn values() {
        assert_eq!(value("a#ephemeral").topic().unwrap().as_str(), "a#ephemeral");
        assert_eq!(value("").channel(), Err(NameError::Empty));
        let longest = "x".repeat(NAME_MAX);
        assert_eq!(value(&longest).channel().unwrap().as_str(), longest);
        let long = "x".repeat(NAME_MAX + 1);
        assert_eq!(value(&long).topic(), Err(NameError::TooLong { len: NAME_MAX + 1 }));
        assert_eq!(value("4294967295").number(), Some(u32::MAX));
        let longest = "0".repeat(VALUE_MAX);
        assert_eq!(value(&longest).number(), Some(0));
        let long = "0".repeat(VALUE_MAX + 1);
        for none in ["", "4294967296", "-1", "+1", "1x", "99999999999", &long] {
            assert_eq!(value(none).number(), None, "{none}");
        }
        assert_eq!((value("TRUE").bool(), value("f").bool()), (Some(true), Some(false)));
        assert_eq!((value("yes").bool(), value("").bool()), (None, None));
    }
}
