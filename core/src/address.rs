//! `host:port`, as in the flags and settings of NSQ.
//!
//! The host stays a name, which is resolved at every dial, so that a node follows a server that
//! moves (nsqd resolves only at its first dial). RAM: [`HOST_MAX`] + 4 bytes.

use core::fmt;
use core::str::FromStr;

/// The longest host in bytes. Enough for generated names, as in Kubernetes or a cloud.
pub const HOST_MAX: usize = 96;

/// The address of a server: a host name or a literal IPv4 or IPv6 address, and a TCP port.
// Bytes rather than a `heapless::String`, which cannot be created in a constant.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    port: u16,
    len: u8,
    host: [u8; HOST_MAX],
}

/// Why an address is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AddressError {
    /// There is no host before the port.
    EmptyHost,
    /// The host has more than [`HOST_MAX`] bytes.
    HostTooLong {
        /// The host's length in bytes.
        len: usize,
    },
    /// The host has white space, a control character, a bracket, or `/`, as in `http://host:port`.
    BadHost,
    /// There is no `:port` at the end.
    MissingPort,
    /// The port is not a number from 1 to 65535.
    BadPort,
    /// An IPv6 address is not in brackets, as in `[::1]:4150`.
    UnbracketedIpv6,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyHost => f.write_str("no host before the port; write host:port"),
            Self::HostTooLong { len } => {
                write!(f, "the host has {len} bytes; at most {HOST_MAX} are kept")
            }
            Self::BadHost => {
                f.write_str("not a host; write host:port, without http:// and without a path")
            }
            Self::MissingPort => f.write_str("no port; write host:port, as in 127.0.0.1:4150"),
            Self::BadPort => f.write_str("the port is not a number from 1 to 65535"),
            Self::UnbracketedIpv6 => {
                f.write_str("put an IPv6 address into brackets, as in [::1]:4150")
            }
        }
    }
}

impl core::error::Error for AddressError {}

/// An [`Address`](crate::address::Address) that is checked when the program is compiled.
///
/// The argument is a constant: a literal, or an `env!`. A program with an invalid address does not
/// compile, and the reason is in the error. In a `static` it takes no RAM:
///
/// ```
/// use nanonsq_core::address;
/// use nanonsq_core::address::Address;
///
/// static NSQDS: [Address; 2] = [address!("10.0.0.1:4150"), address!("[::1]:4150")];
/// assert_eq!(NSQDS[0].to_string(), "10.0.0.1:4150");
/// ```
///
/// ```compile_fail,E0080
/// let nsqd = nanonsq_core::address!("http://10.0.0.1:4150");
/// ```
#[macro_export]
macro_rules! address {
    ($text:expr) => {
        const {
            use $crate::address::AddressError;
            match $crate::address::Address::from_text($text) {
                Ok(address) => address,
                Err(AddressError::MissingPort) => panic!("no port; write host:port"),
                Err(AddressError::BadPort) => panic!("the port is not a number from 1 to 65535"),
                Err(AddressError::UnbracketedIpv6) => {
                    panic!("put an IPv6 address into brackets, as in [::1]:4150")
                }
                Err(AddressError::HostTooLong { .. }) => panic!("the host has more than 96 bytes"),
                Err(_) => panic!("not a host; write host:port, without http:// and without a path"),
            }
        }
    };
}

impl Address {
    /// Creates an address from its parts. An IPv6 literal is passed without brackets.
    /// Usable in constants.
    pub const fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        Self::from_parts(host.as_bytes(), port)
    }

    /// Parses `host:port`, as `str::parse` does. Usable in constants: see
    /// [`address!`](crate::address!).
    pub const fn from_text(text: &str) -> Result<Self, AddressError> {
        let text = text.as_bytes();
        if contains(text, b'/') {
            return Err(AddressError::BadHost);
        }
        // The port is read from its last digit, up to the colon.
        let (mut rest, mut port, mut unit, mut is_number) = (text, 0_u32, 1_u32, true);
        let host = loop {
            let Some((&byte, front)) = rest.split_last() else {
                return Err(AddressError::MissingPort);
            };
            if byte == b':' {
                break front;
            }
            is_number &= byte.is_ascii_digit();
            let digit = byte.wrapping_sub(b'0') as u32;
            port = port.saturating_add(unit.saturating_mul(digit));
            unit = unit.saturating_mul(10);
            rest = front;
        };
        let host = match host {
            [b'[', literal @ .., b']'] => literal,
            // `[::1]` without a port is split inside the brackets.
            [b'[', ..] => return Err(AddressError::MissingPort),
            _ if contains(host, b':') => return Err(AddressError::UnbracketedIpv6),
            _ => host,
        };
        if unit == 1 {
            return Err(AddressError::MissingPort);
        }
        if !is_number || port > u16::MAX as u32 {
            return Err(AddressError::BadPort);
        }
        Self::from_parts(host, port as u16)
    }

    /// Checks the parts. The bytes of the host are those of a whole `str`.
    const fn from_parts(host: &[u8], port: u16) -> Result<Self, AddressError> {
        if host.is_empty() {
            return Err(AddressError::EmptyHost);
        }
        let mut address = Self { port, len: host.len() as u8, host: [0; HOST_MAX] };
        let mut from = host;
        let mut to: &mut [u8] = &mut address.host;
        while let Some((&byte, rest)) = from.split_first() {
            if byte <= b' ' || matches!(byte, 0x7f | b'/' | b'[' | b']') {
                return Err(AddressError::BadHost);
            }
            let Some((slot, slots)) = to.split_first_mut() else {
                return Err(AddressError::HostTooLong { len: host.len() });
            };
            *slot = byte;
            to = slots;
            from = rest;
        }
        if port == 0 {
            return Err(AddressError::BadPort);
        }
        Ok(address)
    }

    /// The value of a slot without an address: it cannot be dialed.
    pub(crate) const NONE: Self = Self { port: 0, len: 0, host: [0; HOST_MAX] };

    /// Returns the host: a name, or a literal address without brackets.
    pub fn host(&self) -> &str {
        // The bytes were a whole `str`.
        core::str::from_utf8(self.host_bytes()).unwrap_or_default()
    }

    /// Returns the bytes of the host, without a check for UTF-8.
    pub(crate) fn host_bytes(&self) -> &[u8] {
        self.host.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Changes the port.
    pub(crate) fn set_port(&mut self, port: u16) {
        self.port = port;
    }

    /// Returns the TCP port, never 0.
    pub fn port(&self) -> u16 {
        self.port
    }
}

const fn contains(text: &[u8], wanted: u8) -> bool {
    let mut text = text;
    while let Some((&byte, rest)) = text.split_first() {
        if byte == wanted {
            return true;
        }
        text = rest;
    }
    false
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::from_text(text)
    }
}

impl TryFrom<&str> for Address {
    type Error = AddressError;

    fn try_from(text: &str) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host();
        if host.contains(':') {
            write!(f, "[{host}]:{}", self.port)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Address {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=str}:{=u16}", self.host(), self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed_back() {
        for (text, host, port) in [
            ("127.0.0.1:4150", "127.0.0.1", 4150),
            ("nsqd.example:1", "nsqd.example", 1),
            ("[::1]:65535", "::1", 65535),
            ("[fe80::1%eth0]:4160", "fe80::1%eth0", 4160),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
            assert_eq!(address.to_string(), text);
        }
        let longest = format!("{}:1", "h".repeat(HOST_MAX));
        assert_eq!(longest.parse::<Address>().unwrap().to_string(), longest);
    }

    #[test]
    fn a_host_has_no_brackets() {
        for host in ["[", "]", "[::1]", "a[b"] {
            assert_eq!(Address::new(host, 1), Err(AddressError::BadHost), "{host}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_with_the_reason() {
        use AddressError::*;
        for (text, error) in [
            ("", MissingPort),
            ("localhost", MissingPort),
            ("localhost:", MissingPort),
            ("[::1]", MissingPort),
            (":4150", EmptyHost),
            ("[]:4150", EmptyHost),
            ("::1:4150", UnbracketedIpv6),
            ("h:0", BadPort),
            ("h:65536", BadPort),
            ("h:+1", BadPort),
            ("h:4294967297", BadPort),
            ("h:4150x", BadPort),
            ("http://h:4150", BadHost),
            ("h:4150/", BadHost),
            ("a b:1", BadHost),
            ("[[::1]:1", BadHost),
            ("[a]]:1", BadHost),
            ("a]:1", BadHost),
        ] {
            assert_eq!(text.parse::<Address>().unwrap_err(), error, "{text:?}");
        }
        let host = "h".repeat(HOST_MAX + 1);
        assert_eq!(
            format!("{host}:1").parse::<Address>().unwrap_err(),
            HostTooLong { len: HOST_MAX + 1 }
        );
    }

    #[test]
    fn ram() {
        assert_eq!(size_of::<Address>(), HOST_MAX + 4);
    }
}
