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

/// What a client needs of the answer to IDENTIFY. RAM: 16 bytes.
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

/// Reads [`Granted`] in pieces, without a JSON parser, which would be a tenth of a client's flash.
///
/// Fields that are absent or `null` keep their default ([`Negotiated::DEFAULT`]). A number below 0
/// reads 0, one above [`u32::MAX`] reads that, of a fraction the integer part counts. Names are
/// compared by a hash of 32 bits.
///
/// RAM: 24 bytes.
#[derive(Debug, Clone)]
pub struct GrantedScanner {
    /// The first byte and the last one so far.
    first: u8,
    last: u8,
    /// Whose value is being read.
    reading: u8,
    value: Value,
    /// Of what follows the last quote.
    hash: u32,
    /// What was read for each of [`Self::FIELDS`]: a flag is 1 or 0.
    numbers: [u32; 4],
}

/// How far a value was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    /// It is not a field's.
    Other,
    /// Its field was named.
    Named,
    /// It is what comes next.
    Begins,
    Digits,
    /// What follows does not count: a fraction, or the digits of a number below 0.
    Rest,
    /// It is no number: the answer makes no sense.
    Bad,
}

impl GrantedScanner {
    /// As nsqd names them. Inside a string the quotes behind them would be escaped.
    const FIELDS: [u32; 4] = [
        hash(b"max_rdy_count"),
        hash(b"msg_timeout"),
        hash(b"max_msg_timeout"),
        hash(b"auth_required"),
    ];
    /// The one that is a flag.
    const AUTH: u8 = 3;

    /// As memory comes.
    pub(crate) const ZERO: Self =
        Self { first: 0, last: 0, reading: 0, value: Value::Other, hash: 0, numbers: [0; 4] };

    /// Before the first byte.
    pub const fn new() -> Self {
        let Negotiated { max_rdy_count, msg_timeout_ms, max_msg_timeout_ms, .. } =
            Negotiated::DEFAULT;
        Self { numbers: [max_rdy_count, msg_timeout_ms, max_msg_timeout_ms, 0], ..Self::ZERO }
    }

    /// Takes the next piece of the answer.
    #[inline(never)]
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

    /// The answer is complete. Fails with [`Fault::BadIdentifyReply`] only, if the answer is neither
    /// an object nor the `OK` of a server that negotiates nothing, or a field is no number.
    pub fn finish(&self) -> Result<Granted, Fault> {
        let is_answer = matches!((self.first, self.last), (b'{', b'}') | (b'O', b'K'));
        if !is_answer || self.value == Value::Bad {
            return Err(Fault::BadIdentifyReply);
        }
        let [max_rdy_count, msg_timeout_ms, max_msg_timeout_ms, auth_required] = self.numbers;
        Ok(Granted {
            max_rdy_count,
            msg_timeout_ms,
            max_msg_timeout_ms,
            auth_required: auth_required > 0,
        })
    }

    pub(crate) fn max_rdy_count(&self) -> u32 {
        self.numbers[0]
    }

    pub(crate) fn msg_timeout_ms(&self) -> u32 {
        self.numbers[1]
    }

    pub(crate) fn max_msg_timeout_ms(&self) -> u32 {
        self.numbers[2]
    }

    /// A quote: it may end a field's name. The next name's hash begins.
    fn name(&mut self) -> u32 {
        if matches!(self.value, Value::Other | Value::Named)
            && let Some(at) = Self::FIELDS.iter().position(|field| *field == self.hash)
        {
            self.reading = at as u8;
            self.value = Value::Named;
        }
        HASH
    }

    /// The next byte, if it is of a value that matters.
    fn value(&mut self, byte: u8) {
        let Some(number) = self.numbers.get_mut(usize::from(self.reading)) else { return };
        let digit = u32::from(byte).wrapping_sub(u32::from(b'0'));
        let is_flag = self.reading == Self::AUTH;
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

/// FNV-1a, before the first byte.
const HASH: u32 = 0x811c_9dc5;

/// FNV-1a, with one byte more.
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
