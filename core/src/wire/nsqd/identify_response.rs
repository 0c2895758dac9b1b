//! The response to IDENTIFY: [`IdentifyResponse`] writes it, [`GrantedScanner`] reads it.

use crate::wire::json::Object;
use crate::wire::{DecodeError, Write, len_of};

/// The response to an IDENTIFY with `feature_negotiation`.
///
/// tokio-nsq requires the first 13 fields, each in its range, or gives the server up for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IdentifyResponse<'a> {
    /// The largest RDY; 1 to 65,535.
    pub max_rdy_count: u32,
    /// The server's version, as in `1.3.0`.
    pub version: &'a str,
    /// The longest time that TOUCH can keep a message in flight, in milliseconds.
    pub max_msg_timeout: u32,
    /// How long a message of this connection may be in flight, in milliseconds.
    pub msg_timeout: u32,
    /// True if TLS follows.
    pub tls_v1: bool,
    /// True if deflate follows.
    pub deflate: bool,
    /// The level of deflate.
    pub deflate_level: u32,
    /// The highest level of deflate of the server.
    pub max_deflate_level: u32,
    /// True if snappy follows.
    pub snappy: bool,
    /// The percentage of messages to deliver; 0 for all.
    pub sample_rate: u32,
    /// True if AUTH is required before any other command.
    pub auth_required: bool,
    /// The size of the server's output buffer for this client, in bytes.
    pub output_buffer_size: u32,
    /// The flush interval of the output buffer, in milliseconds.
    pub output_buffer_timeout: u32,
    /// The region of the server (newer than 1.3.0).
    pub topology_region: &'a str,
    /// The zone of the server (newer than 1.3.0).
    pub topology_zone: &'a str,
}

impl IdentifyResponse<'_> {
    /// Writes the JSON with the keys in nsqd's order.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.number("max_rdy_count", self.max_rdy_count)?;
        object.string("version", self.version)?;
        object.number("max_msg_timeout", self.max_msg_timeout)?;
        object.number("msg_timeout", self.msg_timeout)?;
        object.bool("tls_v1", self.tls_v1)?;
        object.bool("deflate", self.deflate)?;
        object.number("deflate_level", self.deflate_level)?;
        object.number("max_deflate_level", self.max_deflate_level)?;
        object.bool("snappy", self.snappy)?;
        object.number("sample_rate", self.sample_rate)?;
        object.bool("auth_required", self.auth_required)?;
        object.number("output_buffer_size", self.output_buffer_size)?;
        object.number("output_buffer_timeout", self.output_buffer_timeout)?;
        object.string("topology_region", self.topology_region)?;
        object.string("topology_zone", self.topology_zone)?;
        object.end()
    }

    /// Returns the length of the JSON in bytes; nsqd's is 304.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

impl Default for IdentifyResponse<'_> {
    /// The response of nsqd 1.3.0 with default options, to a client that requested nothing.
    fn default() -> Self {
        Self {
            max_rdy_count: 2500,
            version: "1.3.0",
            max_msg_timeout: 900_000,
            msg_timeout: 60_000,
            tls_v1: false,
            deflate: false,
            deflate_level: 6,
            max_deflate_level: 6,
            snappy: false,
            sample_rate: 0,
            auth_required: false,
            output_buffer_size: 16_384,
            output_buffer_timeout: 250,
            topology_region: "",
            topology_zone: "",
        }
    }
}

/// Every field of the response, in nsqd's order, with its default if this client uses it. To use
/// another field, set its default here and read its number in [`GrantedScanner`].
const FIELDS: [(&str, Option<u32>); 15] = [
    ("max_rdy_count", Some(2500)),
    ("version", None),
    ("max_msg_timeout", Some(900_000)),
    ("msg_timeout", Some(60_000)),
    ("tls_v1", None),
    ("deflate", None),
    ("deflate_level", None),
    ("max_deflate_level", None),
    ("snappy", None),
    ("sample_rate", None),
    ("auth_required", Some(0)),
    ("output_buffer_size", None),
    ("output_buffer_timeout", None),
    ("topology_region", None),
    ("topology_zone", None),
];

/// The number of used fields.
const USED: usize = PLACES[FIELDS.len()];

/// The hashes of the names of the used fields, and their defaults. A string value cannot be taken
/// for a name: the quotes inside it are escaped.
const HASHES: [u32; USED] = TABLE.0;
const DEFAULTS: [u32; USED] = TABLE.1;

const MAX_RDY_COUNT: usize = PLACES[0];
const MAX_MSG_TIMEOUT: usize = PLACES[2];
const MSG_TIMEOUT: usize = PLACES[3];
const AUTH_REQUIRED: usize = PLACES[10];

/// For each field, how many fields before it are used: the index of each used field.
const PLACES: [usize; FIELDS.len() + 1] = {
    let (mut places, mut at) = ([0; FIELDS.len() + 1], 0);
    while at < FIELDS.len() {
        places[at + 1] = places[at] + FIELDS[at].1.is_some() as usize;
        at += 1;
    }
    places
};

/// The hashes and the defaults of the used fields.
const TABLE: ([u32; USED], [u32; USED]) = {
    let (mut hashes, mut defaults) = ([0; USED], [0; USED]);
    let mut at = 0;
    while at < FIELDS.len() {
        if let (name, Some(default)) = FIELDS[at] {
            hashes[PLACES[at]] = hash(name.as_bytes());
            defaults[PLACES[at]] = default;
        }
        at += 1;
    }
    (hashes, defaults)
};

/// The fields of the response to IDENTIFY that a client uses. RAM: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Granted {
    /// The largest RDY that the server accepts.
    pub max_rdy_count: u32,
    /// How long a message may be in flight, in milliseconds.
    pub msg_timeout_ms: u32,
    /// The longest time that TOUCH can keep a message in flight, in milliseconds.
    pub max_msg_timeout_ms: u32,
    /// True if AUTH is required before any other command.
    pub auth_required: bool,
}

/// Reads [`Granted`] in pieces, without a JSON parser, which would be a tenth of a client's flash.
///
/// Fields that are absent or `null` keep nsqd's default. Numbers are clamped to 0 and [`u32::MAX`];
/// a fraction is dropped. Names are compared by a hash of 32 bits.
///
/// RAM: 24 bytes.
#[derive(Debug, Clone)]
pub struct GrantedScanner {
    /// The first byte and the last byte so far.
    first: u8,
    last: u8,
    /// The field whose value is being read, as an index of `numbers`.
    reading: u8,
    value: Value,
    /// The hash of the bytes since the last quote.
    hash: u32,
    /// The number of each used field; a flag is 1 or 0.
    numbers: [u32; USED],
}

/// The state of reading a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// No value of a used field.
    Other,
    /// The name of a used field was read.
    Named,
    /// The value comes next.
    Begins,
    Digits,
    /// The rest is ignored: a fraction, or the digits of a negative number.
    Rest,
    /// The value is no number: the response is invalid.
    Bad,
}

impl GrantedScanner {
    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self =
        Self { first: 0, last: 0, reading: 0, value: Value::Other, hash: 0, numbers: [0; USED] };

    /// Creates a scanner for a new response.
    pub const fn new() -> Self {
        Self { numbers: DEFAULTS, ..Self::ZERO }
    }

    /// Reads the next piece of the response.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte.is_ascii_whitespace() {
                continue;
            }
            if self.first == 0 {
                self.first = byte;
            }
            self.last = byte;
            self.value(byte);
            self.hash = if byte == b'"' { self.name() } else { hash_of(self.hash, byte) };
        }
    }

    /// Returns the fields once the response is complete. Fails, with
    /// [`DecodeError::BadIdentifyReply`] only, if the response is neither an object nor the `OK` of
    /// a server that negotiates nothing, or if a field is no number.
    pub fn finish(&self) -> Result<Granted, DecodeError> {
        let is_answer = matches!((self.first, self.last), (b'{', b'}') | (b'O', b'K'));
        if !is_answer || self.value == Value::Bad {
            return Err(DecodeError::BadIdentifyReply);
        }
        Ok(Granted {
            max_rdy_count: self.max_rdy_count(),
            msg_timeout_ms: self.msg_timeout_ms(),
            max_msg_timeout_ms: self.max_msg_timeout_ms(),
            auth_required: self.numbers[AUTH_REQUIRED] > 0,
        })
    }

    pub(crate) fn max_rdy_count(&self) -> u32 {
        self.numbers[MAX_RDY_COUNT]
    }

    pub(crate) fn msg_timeout_ms(&self) -> u32 {
        self.numbers[MSG_TIMEOUT]
    }

    pub(crate) fn max_msg_timeout_ms(&self) -> u32 {
        self.numbers[MAX_MSG_TIMEOUT]
    }

    /// Handles a quote, which may end the name of a used field. Returns the start of the next hash.
    fn name(&mut self) -> u32 {
        if matches!(self.value, Value::Other | Value::Named)
            && let Some(at) = HASHES.iter().position(|field| *field == self.hash)
        {
            self.reading = at as u8;
            self.value = Value::Named;
        }
        HASH
    }

    /// Handles the next byte, if it belongs to the value of a used field.
    fn value(&mut self, byte: u8) {
        let Some(number) = self.numbers.get_mut(usize::from(self.reading)) else { return };
        let digit = u32::from(byte).wrapping_sub(u32::from(b'0'));
        let is_flag = usize::from(self.reading) == AUTH_REQUIRED;
        self.value = match (self.value, byte) {
            (Value::Named, b':') => Value::Begins,
            (Value::Begins, b'n') => Value::Rest,
            (Value::Begins, b'-') => {
                *number = 0;
                Value::Rest
            }
            (Value::Begins, b't' | b'f') if is_flag => {
                *number = (byte == b't').into();
                Value::Rest
            }
            (Value::Begins, _) if digit < 10 => {
                *number = digit;
                Value::Digits
            }
            (Value::Begins, _) => Value::Bad,
            (Value::Digits, _) if digit < 10 => {
                *number = number.saturating_mul(10).saturating_add(digit);
                Value::Digits
            }
            (Value::Digits | Value::Rest, b',' | b'}') => Value::Other,
            (Value::Digits, _) => Value::Rest,
            (Value::Named, _) => Value::Other,
            (value, _) => value,
        };
    }
}

/// The start value of FNV-1a.
const HASH: u32 = 0x811c_9dc5;

/// Adds a byte to an FNV-1a hash.
const fn hash_of(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as u32).wrapping_mul(0x0100_0193)
}

const fn hash(mut name: &[u8]) -> u32 {
    let mut hash = HASH;
    while let [byte, rest @ ..] = name {
        hash = hash_of(hash, *byte);
        name = rest;
    }
    hash
}

impl Default for GrantedScanner {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::json::Fields;

    #[test]
    fn the_table_has_every_field_in_the_order_of_nsqd() {
        let keys = FIELDS.map(|(key, _)| key);
        let mut answer = Vec::new();
        IdentifyResponse::default().emit(&mut answer).unwrap();
        let mut fields = Fields::<24>::new();
        let mut input = &answer[..];
        let mut found = Vec::new();
        while let Some((index, value)) = fields.next(&keys, &mut input).unwrap() {
            let (key, default) = FIELDS[usize::from(index)];
            let number = value.as_i32().or(value.as_bool().map(i32::from));
            if let Some(default) = default {
                assert_eq!(number, Some(default as i32), "{key}");
            }
            found.push(key);
        }
        assert_eq!(found, keys);
        let used = [MAX_RDY_COUNT, MAX_MSG_TIMEOUT, MSG_TIMEOUT, AUTH_REQUIRED];
        assert_eq!((used, USED), ([0, 1, 2, 3], 4));
    }
}
