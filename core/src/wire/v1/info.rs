//! The answer to IDENTIFY, both sides.

use super::VERSION_MAX;
use super::command::{BROADCAST_ADDRESS, HOSTNAME, HTTP_PORT, TCP_PORT, VERSION};
use crate::address::HOST_MAX;
use crate::wire::json::{Fields, JsonError, Object};
use crate::wire::{Write, len_of};

/// The answer to IDENTIFY, as nsqlookupd writes it: itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IdentifyReply<'a> {
    /// Where nsqlookupd is reached by HTTP: a name or an address without a port.
    pub broadcast_address: &'a str,
    /// Its host's name.
    pub hostname: &'a str,
    /// Where it answers HTTP.
    pub http_port: u16,
    /// Where it speaks V1.
    pub tcp_port: u16,
    /// Its version, as in `1.3.0`.
    pub version: &'a str,
}

impl IdentifyReply<'_> {
    /// Writes the JSON, its keys in nsqlookupd's order; [`emit_reply`](super::emit_reply) does not
    /// stage it: write [`encoded_len`](Self::encoded_len) as `u32be` before it.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.string(BROADCAST_ADDRESS, self.broadcast_address)?;
        object.string(HOSTNAME, self.hostname)?;
        object.number(HTTP_PORT, self.http_port.into())?;
        object.number(TCP_PORT, self.tcp_port.into())?;
        object.string(VERSION, self.version)?;
        object.end()
    }

    /// How many bytes that is.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

/// What nsqd keeps of the answer to IDENTIFY: whom it registered with.
///
/// RAM: [`HOST_MAX`] + 22 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PeerInfo {
    /// Where nsqlookupd is reached by HTTP; empty if it did not say or says more than [`HOST_MAX`]
    /// bytes or what is not ASCII: a cut host is no host.
    pub broadcast_address: heapless::String<HOST_MAX, u8>,
    /// Its version; the first [`VERSION_MAX`] bytes of it, up to what is not ASCII.
    pub version: heapless::String<VERSION_MAX, u8>,
    /// Where it answers HTTP; 0 if it did not say or says no port.
    pub http_port: u16,
    /// Where it speaks V1; 0 if it did not say or says no port.
    pub tcp_port: u16,
}

impl PeerInfo {
    /// Nothing known.
    pub const fn new() -> Self {
        Self {
            broadcast_address: heapless::String::new(),
            version: heapless::String::new(),
            http_port: 0,
            tcp_port: 0,
        }
    }
}

const KEYS: [&str; 4] = [BROADCAST_ADDRESS, VERSION, HTTP_PORT, TCP_PORT];

/// Reads the answer to IDENTIFY in pieces. RAM: 2 [`HOST_MAX`] + 48 bytes.
#[derive(Debug, Clone, Default)]
pub struct PeerInfoScanner {
    fields: Fields<HOST_MAX>,
    info: PeerInfo,
}

impl PeerInfoScanner {
    /// Before the first byte.
    pub const fn new() -> Self {
        Self { fields: Fields::new(), info: PeerInfo::new() }
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
    pub fn finish(&mut self) -> Result<&PeerInfo, JsonError> {
        self.fields.finish()?;
        Ok(&self.info)
    }

    /// What was read so far.
    pub const fn info(&self) -> &PeerInfo {
        &self.info
    }

    /// `None` if the value has the wrong type.
    fn keep(&mut self, key: u8) -> Option<()> {
        let info = &mut self.info;
        let port = self.fields.integer().map(|port| u16::try_from(port).unwrap_or(0));
        match key {
            0 => {
                if !self.fields.string()?.store_ascii(&mut info.broadcast_address) {
                    info.broadcast_address.clear();
                }
            }
            1 => {
                self.fields.string()?.store_ascii(&mut info.version);
            }
            2 => info.http_port = port?,
            _ => info.tcp_port = port?,
        }
        Some(())
    }
}
