//! The answer to IDENTIFY, as a client reads it.

use super::identify::{
    AUTH_REQUIRED, DEFLATE, MAX_MSG_TIMEOUT, MAX_RDY_COUNT, MSG_TIMEOUT, SAMPLE_RATE, SNAPPY,
    TLS_V1,
};
use crate::session::Fault;
use crate::wire::json::{Fields, Token};

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

    fn take(&mut self, key: u8, value: Token<'_>) -> bool {
        let number = match key {
            0 => &mut self.max_rdy_count,
            1 => &mut self.msg_timeout_ms,
            2 => &mut self.max_msg_timeout_ms,
            _ => return self.take_small(key, value),
        };
        let Some(value) = value.as_i32() else {
            return false;
        };
        *number = value.max(0).unsigned_abs();
        true
    }

    fn take_small(&mut self, key: u8, value: Token<'_>) -> bool {
        let flag = match key {
            4 => &mut self.auth_required,
            5 => &mut self.tls_v1,
            6 => &mut self.snappy,
            7 => &mut self.deflate,
            _ => {
                let Some(value) = value.as_i32() else {
                    return false;
                };
                self.sample_rate = value.clamp(0, 100) as u8;
                return true;
            }
        };
        let Some(value) = value.as_bool() else {
            return false;
        };
        *flag = value;
        true
    }
}

impl Default for Negotiated {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// In the order of `Negotiated::take`.
const KEYS: [&str; 8] = [
    MAX_RDY_COUNT,
    MSG_TIMEOUT,
    MAX_MSG_TIMEOUT,
    SAMPLE_RATE,
    AUTH_REQUIRED,
    TLS_V1,
    SNAPPY,
    DEFLATE,
];

/// Reads the answer to IDENTIFY in pieces: JSON, or the plain `OK` of a server that negotiates
/// nothing.
///
/// Fields that are absent or `null` keep their default, unknown ones are skipped.
///
/// RAM: 76 bytes.
#[derive(Debug, Clone)]
pub struct NegotiatedScanner {
    fields: Fields<24>,
    negotiated: Negotiated,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Nothing read yet.
    Start,
    /// `O`
    PlainO,
    /// `OK`
    Plain,
    Json,
}

impl NegotiatedScanner {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self { fields: Fields::new(), negotiated: Negotiated::DEFAULT, form: Form::Start }
    }

    /// Takes the next piece of the answer. Fails with [`Fault::BadIdentifyReply`] only.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut bytes = bytes;
        while self.form != Form::Json
            && let Some((byte, rest)) = bytes.split_first()
        {
            self.form = match (self.form, byte) {
                (Form::Start, b'O') => Form::PlainO,
                (Form::PlainO, b'K') => Form::Plain,
                (Form::Start, _) => Form::Json,
                _ => return Err(Fault::BadIdentifyReply),
            };
            if self.form != Form::Json {
                bytes = rest;
            }
        }
        while let Some((key, value)) =
            self.fields.next(&KEYS, &mut bytes).map_err(|_| Fault::BadIdentifyReply)?
        {
            if !self.negotiated.take(key, value) {
                self.fields.refuse();
                return Err(Fault::BadIdentifyReply);
            }
        }
        Ok(())
    }

    /// The answer is complete. Fails with [`Fault::BadIdentifyReply`] only.
    pub fn finish(&mut self) -> Result<Negotiated, Fault> {
        match self.form {
            Form::Plain => Ok(self.negotiated),
            Form::Json if self.fields.finish().is_ok() => Ok(self.negotiated),
            Form::Start | Form::PlainO | Form::Json => Err(Fault::BadIdentifyReply),
        }
    }
}

impl Default for NegotiatedScanner {
    fn default() -> Self {
        Self::new()
    }
}
