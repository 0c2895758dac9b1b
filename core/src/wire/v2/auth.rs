//! The answer to AUTH.

use serde::Deserialize;

use crate::wire::json::{Fields, JsonError};
use crate::wire::json::{Object, Token};
use crate::wire::{Write, len_of};

/// The answer to AUTH, as a server writes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[serde(default)]
pub struct AuthResponse<'a> {
    /// Whom the authorization server took the client for; may be empty.
    pub identity: &'a str,
    /// A page about them; may be empty.
    pub identity_url: &'a str,
    /// How many authorizations there are.
    pub permission_count: u32,
}

impl AuthResponse<'_> {
    /// Writes the JSON.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.string("identity", self.identity)?;
        object.string("identity_url", self.identity_url)?;
        object.number("permission_count", self.permission_count)?;
        object.end()
    }

    /// How many bytes that is.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

/// The answer to AUTH, as a client keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Authorized {
    /// Whom the authorization server took the client for, cut to 32 bytes; may be empty.
    pub identity: heapless::String<32, u8>,
    /// How many authorizations there are.
    pub permission_count: u32,
}

impl Authorized {
    fn take(&mut self, key: u8, value: Token<'_>) -> bool {
        if key == 0 {
            return value.as_text().inspect(|text| text.store(&mut self.identity)).is_some();
        }
        let Some(count) = value.as_i32() else {
            return false;
        };
        self.permission_count = count.max(0).unsigned_abs();
        true
    }
}

/// In the order of `Authorized::take`.
const KEYS: [&str; 2] = ["identity", "permission_count"];

/// Reads the answer to AUTH in pieces. RAM: 96 bytes.
#[derive(Debug, Clone, Default)]
pub struct AuthScanner {
    fields: Fields<32>,
    authorized: Authorized,
}

impl AuthScanner {
    /// Before the first byte.
    pub const fn new() -> Self {
        let authorized = Authorized { identity: heapless::String::new(), permission_count: 0 };
        Self { fields: Fields::new(), authorized }
    }

    /// Takes the next piece of the answer.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), JsonError> {
        let mut bytes = bytes;
        while let Some((key, value)) = self.fields.next(&KEYS, &mut bytes)? {
            if !self.authorized.take(key, value) {
                return Err(self.fields.refuse());
            }
        }
        Ok(())
    }

    /// The answer is complete.
    pub fn finish(&mut self) -> Result<&Authorized, JsonError> {
        self.fields.finish()?;
        Ok(&self.authorized)
    }
}
