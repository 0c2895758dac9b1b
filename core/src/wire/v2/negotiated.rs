//! The answer to IDENTIFY, as a client reads it.

use super::OK;
use super::identify::{
    AUTH_REQUIRED, DEFLATE, MAX_MSG_TIMEOUT, MAX_RDY_COUNT, MSG_TIMEOUT, SAMPLE_RATE, SNAPPY,
    TLS_V1,
};
use crate::session::Fault;
use crate::wire::json::Fields;

/// What IDENTIFY settled, as far as a client session needs it. RAM: 20 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Negotiated {
    /// The largest RDY that the server takes.
    pub max_rdy_count: u32,
    /// How long a message may be in flight, in milliseconds.
    pub msg_timeout_ms: u32,
    /// How long TOUCH can keep it there, in milliseconds.
    pub max_msg_timeout_ms: u32,
    /// How many percent of the messages are delivered; 0 is all.
    pub sample_rate: u8,
    /// AUTH is needed before anything else.
    pub auth_required: bool,
    /// TLS follows this answer.
    pub tls_v1: bool,
    /// Snappy follows this answer.
    pub snappy: bool,
    /// Deflate follows this answer.
    pub deflate: bool,
}

impl Negotiated {
    /// What holds where the server does not say: nsqd's defaults, nothing upgraded.
    pub const DEFAULT: Self = Self {
        max_rdy_count: 2500,
        msg_timeout_ms: 60_000,
        max_msg_timeout_ms: 900_000,
        sample_rate: 0,
        auth_required: false,
        tls_v1: false,
        snappy: false,
        deflate: false,
    };
}

impl Default for Negotiated {
    fn default() -> Self {
        Self::DEFAULT
    }
}

const KEYS: [&str; 8] = [
    // Numbers,
    MAX_RDY_COUNT,
    MSG_TIMEOUT,
    MAX_MSG_TIMEOUT,
    SAMPLE_RATE,
    // flags.
    AUTH_REQUIRED,
    TLS_V1,
    SNAPPY,
    DEFLATE,
];

/// Reads the answer to IDENTIFY in pieces: JSON, or the plain `OK` of a server that negotiates
/// nothing.
///
/// Fields that are absent or `null` keep their default, unknown ones are skipped. Escapes are
/// stepped over unchecked: no field that matters has any.
///
/// RAM: 72 bytes.
#[derive(Debug, Clone)]
pub struct NegotiatedScanner {
    fields: Fields<24>,
    negotiated: Negotiated,
    /// How much of `OK` was read, [`JSON`] or [`REFUSED`].
    plain: u8,
}

const JSON: u8 = 3;

/// What came before is of no use, whatever comes.
const REFUSED: u8 = 4;

impl NegotiatedScanner {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self { fields: Fields::new(), negotiated: Negotiated::DEFAULT, plain: 0 }
    }

    /// Takes the next piece of the answer. Fails with [`Fault::BadIdentifyReply`] only; after that
    /// every later call fails, too.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut bytes = bytes;
        while let Some((byte, rest)) = bytes.split_first()
            && OK.get(usize::from(self.plain)) == Some(byte)
        {
            self.plain = self.plain.wrapping_add(1);
            bytes = rest;
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if self.plain == 0 {
            self.plain = JSON;
        }
        if self.plain == JSON && self.json(bytes).is_some() {
            return Ok(());
        }
        self.plain = REFUSED;
        Err(Fault::BadIdentifyReply)
    }

    /// The answer is complete. Fails with [`Fault::BadIdentifyReply`] only.
    pub fn finish(&mut self) -> Result<Negotiated, Fault> {
        let is_plain = usize::from(self.plain) == OK.len();
        if is_plain || (self.plain == JSON && self.fields.finish().is_ok()) {
            Ok(self.negotiated)
        } else {
            Err(Fault::BadIdentifyReply)
        }
    }

    fn json(&mut self, bytes: &[u8]) -> Option<()> {
        let mut bytes = bytes;
        let fields = &mut self.fields;
        let negotiated = &mut self.negotiated;
        while let Some(key) = fields.take_textless(&KEYS, &mut bytes).ok()? {
            let number = fields.integer().map(|number| number.max(0).unsigned_abs());
            let flag = fields.flag();
            match key {
                0 => negotiated.max_rdy_count = number?,
                1 => negotiated.msg_timeout_ms = number?,
                2 => negotiated.max_msg_timeout_ms = number?,
                3 => negotiated.sample_rate = number?.min(100) as u8,
                4 => negotiated.auth_required = flag?,
                5 => negotiated.tls_v1 = flag?,
                6 => negotiated.snappy = flag?,
                _ => negotiated.deflate = flag?,
            }
        }
        Some(())
    }
}

impl Default for NegotiatedScanner {
    fn default() -> Self {
        Self::new()
    }
}

/// All that a producer needs of the answer to IDENTIFY: whether AUTH is to follow. In pieces, and
/// without a JSON parser, which would be a tenth of a producer's flash.
///
/// RAM: 3 bytes.
#[derive(Debug, Clone, Copy)]
pub struct RequiresAuth {
    /// How much of [`Self::FIELD`] the last bytes are; all of it once it was found.
    matched: u8,
    first: u8,
    last: u8,
}

impl RequiresAuth {
    /// As nsqd writes it. Inside a string the quotes would be escaped.
    const FIELD: &'static [u8] = b"\"auth_required\":true";

    /// Before the first byte.
    pub const fn new() -> Self {
        Self { matched: 0, first: 0, last: 0 }
    }

    /// Takes the next piece of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte.is_ascii_whitespace() {
                continue;
            }
            if self.first == 0 {
                self.first = byte;
            }
            self.last = byte;
            match Self::FIELD.get(usize::from(self.matched)) {
                None => {}
                Some(next) if *next == byte => self.matched = self.matched.wrapping_add(1),
                Some(_) => self.matched = (byte == b'"').into(),
            }
        }
    }

    /// The answer is complete: whether AUTH is needed before anything else. Fails with
    /// [`Fault::BadIdentifyReply`] only, if the answer is neither an object nor the `OK` of a
    /// server that negotiates nothing.
    pub fn finish(&self) -> Result<bool, Fault> {
        match (self.first, self.last) {
            (b'{', b'}') => Ok(usize::from(self.matched) == Self::FIELD.len()),
            (b'O', b'K') => Ok(false),
            _ => Err(Fault::BadIdentifyReply),
        }
    }
}

impl Default for RequiresAuth {
    fn default() -> Self {
        Self::new()
    }
}

/// What a consumer needs of the answer to IDENTIFY. RAM: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Granted {
    /// The largest RDY that the server takes.
    pub max_rdy_count: u32,
    /// How long a message may be in flight, in milliseconds.
    pub msg_timeout_ms: u32,
    /// How long TOUCH can keep it there, in milliseconds.
    pub max_msg_timeout_ms: u32,
    /// AUTH is needed before anything else.
    pub auth_required: bool,
}

/// Reads [`Granted`] in pieces, without a JSON parser, as [`RequiresAuth`] does.
///
/// Fields that are absent or `null` keep their default ([`Negotiated::DEFAULT`]). A number below 0
/// reads 0, one above [`u32::MAX`] reads that, of a fraction the integer part counts.
///
/// RAM: 24 bytes.
#[derive(Debug, Clone)]
pub struct GrantedScanner {
    auth: RequiresAuth,
    /// How much of each of [`Self::FIELDS`] the last bytes are.
    matched: [u8; 3],
    /// Whose value is being read.
    reading: u8,
    value: Value,
    numbers: [u32; 3],
}

/// How far a number was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// Not at all, or it is not a field's.
    Begins,
    Digits,
    /// What follows does not count: a fraction, or the digits of a number below 0.
    Rest,
    /// It is no number: the answer makes no sense.
    Bad,
}

impl GrantedScanner {
    /// As nsqd writes them.
    const FIELDS: [&'static [u8]; 3] =
        [b"\"max_rdy_count\":", b"\"msg_timeout\":", b"\"max_msg_timeout\":"];
    /// No field's value is being read.
    const NONE: u8 = 3;

    /// Before the first byte.
    pub const fn new() -> Self {
        let Negotiated { max_rdy_count, msg_timeout_ms, max_msg_timeout_ms, .. } =
            Negotiated::DEFAULT;
        Self {
            auth: RequiresAuth::new(),
            matched: [0; 3],
            reading: Self::NONE,
            value: Value::Begins,
            numbers: [max_rdy_count, msg_timeout_ms, max_msg_timeout_ms],
        }
    }

    /// Takes the next piece of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.auth.feed(bytes);
        for &byte in bytes {
            if byte.is_ascii_whitespace() {
                continue;
            }
            self.number(byte);
            for (at, (matched, field)) in self.matched.iter_mut().zip(Self::FIELDS).enumerate() {
                if field.get(usize::from(*matched)) == Some(&byte) {
                    *matched = matched.wrapping_add(1);
                } else {
                    *matched = (byte == b'"').into();
                }
                if usize::from(*matched) == field.len() {
                    *matched = 0;
                    // What makes no sense once stays so.
                    if !matches!(self.value, Value::Bad) {
                        self.reading = at as u8;
                    }
                }
            }
        }
    }

    /// The answer is complete. Fails with [`Fault::BadIdentifyReply`] only, if the answer is neither
    /// an object nor the `OK` of a server that negotiates nothing, or a field is no number.
    pub fn finish(&self) -> Result<Granted, Fault> {
        let auth_required = self.auth.finish()?;
        if matches!(self.value, Value::Bad) {
            return Err(Fault::BadIdentifyReply);
        }
        let [max_rdy_count, msg_timeout_ms, max_msg_timeout_ms] = self.numbers;
        Ok(Granted { max_rdy_count, msg_timeout_ms, max_msg_timeout_ms, auth_required })
    }

    /// The next byte, if it is of a value that matters.
    fn number(&mut self, byte: u8) {
        let Some(number) = self.numbers.get_mut(usize::from(self.reading)) else { return };
        self.value = match (self.value, byte) {
            (Value::Begins, b'0'..=b'9') => {
                *number = u32::from(byte & 15);
                Value::Digits
            }
            (Value::Begins, b'-') => {
                *number = 0;
                Value::Rest
            }
            (Value::Digits, b'0'..=b'9') => {
                *number = number.saturating_mul(10).saturating_add(u32::from(byte & 15));
                return;
            }
            (Value::Digits | Value::Rest, b'.' | b'e' | b'E')
            | (Value::Rest, b'0'..=b'9' | b'+' | b'-') => Value::Rest,
            (Value::Begins, b'n') | (Value::Digits | Value::Rest, b',' | b'}') => Value::Begins,
            _ => Value::Bad,
        };
        if matches!(self.value, Value::Begins) {
            self.reading = Self::NONE;
        }
    }
}

impl Default for GrantedScanner {
    fn default() -> Self {
        Self::new()
    }
}
