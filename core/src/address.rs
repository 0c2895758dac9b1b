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

impl Address {
    /// Creates an address from its parts. An IPv6 literal is passed without brackets.
    ///
    /// An address that is known at compile time costs no RAM:
    ///
    /// ```
    /// use nanonsq_core::address::Address;
    ///
    /// const NSQD: Address = match Address::new("10.0.0.1", 4150) {
    ///     Ok(address) => address,
    ///     Err(_) => panic!("not an address"),
    /// };
    /// static NSQDS: [Address; 1] = [NSQD];
    /// assert_eq!(NSQDS[0].to_string(), "10.0.0.1:4150");
    /// ```
    pub const fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        if host.is_empty() {
            return Err(AddressError::EmptyHost);
        }
        let mut address = Self { port, len: host.len() as u8, host: [0; HOST_MAX] };
        let mut from = host.as_bytes();
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

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return Err(AddressError::BadHost);
        }
        // Not `rsplit_once`: the compiler does not see that its search cannot panic.
        let colon = text.bytes().rposition(|byte| byte == b':').ok_or(AddressError::MissingPort)?;
        let (host, port) = text.split_at_checked(colon).ok_or(AddressError::MissingPort)?;
        let port = port.get(1..).unwrap_or_default();
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(literal) => literal,
            // `[::1]` without a port splits inside the brackets.
            None if host.starts_with('[') => return Err(AddressError::MissingPort),
            None if host.contains(':') => return Err(AddressError::UnbracketedIpv6),
            None => host,
        };
        // `u16::from_str` accepts "+1".
        if port.is_empty() || port.bytes().any(|b| !b.is_ascii_digit()) {
            return Err(if port.is_empty() {
                AddressError::MissingPort
            } else {
                AddressError::BadPort
            });
        }
        Self::new(host, port.parse().map_err(|_| AddressError::BadPort)?)
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
