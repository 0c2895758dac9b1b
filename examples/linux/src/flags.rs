//! Values of flags in the formats of nsqd and nsqlookupd.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use nanonsq_core::address::Address;
use nanonsq_core::time::Span;
use nanonsq_std::TcpListener;

/// A duration in Go's format: `60s`, `1m30s`, `1.5h`, `250ms`, `0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Span);

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a duration; write it as 60s, 1m30s or 250ms");
        if text == "0" {
            return Ok(Self(Span::ZERO));
        }
        let mut ms = 0.0;
        let mut rest = text;
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let unit = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
            let (number, tail) = rest.split_at(unit);
            let number: f64 = number.parse().map_err(|_| bad())?;
            let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(end);
            ms += number
                * match unit {
                    "ns" => 1e-6,
                    "us" | "µs" | "μs" => 1e-3,
                    "ms" => 1.0,
                    "s" => 1e3,
                    "m" => 60e3,
                    "h" => 3600e3,
                    _ => return Err(bad()),
                };
            rest = tail;
        }
        if ms > f64::from(u32::MAX) {
            return Err(format!("{text:?} is longer than 49 days"));
        }
        // A duration above zero does not become zero.
        Ok(Self(Span::from_millis(if ms > 0.0 { (ms.round() as u32).max(1) } else { 0 })))
    }
}

/// An address to listen on, as `host:port`, or `:port` for all addresses; port 0 is any free port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    /// Empty: all IPv6 and IPv4 addresses.
    host: String,
    port: u16,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Ok(Self { host: host.to_owned(), port })
    }
}

impl Listen {
    /// Listens on the address. As in nsqd, without IPv6 all addresses are those of IPv4, and IPv4
    /// addresses of a name have priority.
    pub(crate) async fn bind(&self) -> Result<TcpListener, String> {
        let addresses = self.addresses().await;
        let listener = match addresses {
            Ok(addresses) => TcpListener::bind(&addresses[..]).await,
            Err(error) => Err(error),
        };
        listener.map_err(|error| format!("cannot listen on {}:{}: {error}", self.host, self.port))
    }

    async fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        let all: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        if self.host.is_empty() {
            return Ok(all.map(|ip| SocketAddr::new(ip, self.port)).to_vec());
        }
        let found = tokio::net::lookup_host((&*self.host, self.port)).await?;
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        Ok(found)
    }
}

/// The longest time in seconds that a flag accepts: 136 years.
pub(crate) const SECONDS_MAX: u64 = u32::MAX as u64;

/// The longest secret, in bytes.
pub(crate) const SECRET_MAX: u64 = 64 * 1024;

/// The environment variable of the secret.
const SECRET: &str = "NANONSQ_AUTH_SECRET";

/// The secret for nsqds that require AUTH. It is never printed.
#[derive(clap::Args)]
pub(crate) struct Secret {
    /// Secret for an nsqd that requires AUTH. Other users of this machine can see it: prefer
    /// --auth-secret-file, or the variable NANONSQ_AUTH_SECRET, which counts if no flag is given.
    #[arg(long, value_name = "SECRET")]
    auth_secret: Option<String>,

    /// File with that secret. One newline at its end is ignored.
    #[arg(long, value_name = "PATH", conflicts_with = "auth_secret")]
    auth_secret_file: Option<PathBuf>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    /// Returns the secret of the flags, or else of the environment variable.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, String> {
        let (from, secret) = if let Some(path) = &self.auth_secret_file {
            let from = format!("--auth-secret-file {}", path.display());
            if path.as_os_str() == "-" {
                return Err(format!("{from}: not a file; for standard input give /dev/stdin"));
            }
            let mut secret = Vec::new();
            let read = File::open(path)
                .and_then(|file| file.take(SECRET_MAX + 3).read_to_end(&mut secret));
            read.map_err(|error| format!("{from}: {error}"))?;
            if secret.pop_if(|last| *last == b'\n').is_some() {
                secret.pop_if(|last| *last == b'\r');
            }
            (from, secret)
        } else if let Some(secret) = &self.auth_secret {
            ("--auth-secret".to_owned(), secret.clone().into_bytes())
        } else {
            let set = std::env::var_os(SECRET).filter(|secret| !secret.is_empty());
            let Some(secret) = set else { return Ok(None) };
            (SECRET.to_owned(), secret.into_encoded_bytes())
        };
        if secret.is_empty() {
            return Err(format!("{from} is empty"));
        }
        if secret.len() as u64 > SECRET_MAX {
            return Err(format!("{from} has more than {SECRET_MAX} bytes: is that the secret?"));
        }
        Ok(Some(secret))
    }
}

/// Returns the address that a server announces: the given one, or the hostname.
pub(crate) fn broadcast(given: Option<&str>, hostname: &str) -> Result<String, String> {
    let host = given.unwrap_or(hostname);
    match Address::new(host, 1) {
        Ok(_) => Ok(host.to_owned()),
        Err(_) if host.is_empty() => Err("--broadcast-address is empty".to_owned()),
        Err(error) => Err(format!("--broadcast-address {host}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_secret_file_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let flags = Secret { auth_secret: None, auth_secret_file: Some(file.path().into()) };
        assert_eq!(format!("{flags:?}"), "Secret { .. }");
        for (written, secret) in [
            (&b"a b"[..], &b"a b"[..]),
            (b"a\n", b"a"),
            (b"a\r\n", b"a"),
            (b"a\r", b"a\r"),
            (b"a\n\n", b"a\n"),
            (b"\xff\n", b"\xff"),
            (&[b'x'; SECRET_MAX as usize], &[b'x'; SECRET_MAX as usize]),
        ] {
            std::fs::write(&file, written).unwrap();
            assert_eq!(flags.read().unwrap().as_deref(), Some(secret));
        }
        std::fs::write(&file, [b'x'; SECRET_MAX as usize + 1]).unwrap();
        assert!(flags.read().unwrap_err().contains("more than 65536 bytes"));
    }

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, ms) in [
            ("0", 0),
            ("0s", 0),
            ("60s", 60_000),
            ("5m", 300_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            (".5s", 500),
            ("1.s", 1000),
            ("250ms", 250),
            ("1500us", 2),
            ("1ns", 1),
            ("1h0m1s", 3_601_000),
        ] {
            assert_eq!(text.parse(), Ok(GoDuration(Span::from_millis(ms))), "{text}");
        }
        for text in ["", "60", "s", "1x", "-1s", "1s5", "1 s", "1..5s", ".s", "1e3s", "1200h"] {
            assert!(text.parse::<GoDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_to_listen_on() {
        for (text, host, port) in [
            ("127.0.0.1:4150", "127.0.0.1", 4150),
            (":4150", "", 4150),
            ("[::1]:0", "::1", 0),
            ("localhost:65535", "localhost", 65535),
        ] {
            assert_eq!(text.parse(), Ok(Listen { host: host.to_owned(), port }), "{text}");
        }
        for text in ["", "4150", "localhost", "localhost:", "localhost:65536", "localhost:-1"] {
            assert!(text.parse::<Listen>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_broadcast_address_is_checked() {
        assert_eq!(broadcast(None, "vm"), Ok("vm".to_owned()));
        assert_eq!(broadcast(Some("10.0.0.9"), "vm"), Ok("10.0.0.9".to_owned()));
        assert!(broadcast(Some(""), "vm").is_err());
    }
}
