//! The answer to AUTH.

use serde::Deserialize;

use crate::wire::json::{Fields, JsonError, Object};
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
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Authorized {
    /// Whom the authorization server took the client for, cut to 32 bytes; may be empty.
    pub identity: heapless::String<32, u8>,
    /// How many authorizations there are.
    pub permission_count: u32,
}

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
        while let Some(key) = self.fields.take(&KEYS, &mut bytes)? {
            if self.keep(key).is_none() {
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

    /// `None` if the value has the wrong type.
    fn keep(&mut self, key: u8) -> Option<()> {
        if key == 0 {
            self.fields.string()?.store(&mut self.authorized.identity);
        } else {
            self.authorized.permission_count = self.fields.integer()?.max(0).unsigned_abs();
        }
        Some(())
    }
}
