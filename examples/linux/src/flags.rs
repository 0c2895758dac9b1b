//! Values of flags as nsqd and nsqlookupd take them.

use std::str::FromStr;

use nanonsq_core::address::Address;
use nanonsq_core::time::Span;
use nanonsq_std::TcpListener;

/// A duration as Go writes it: `60s`, `1m30s`, `1.5h`, `250ms`, `0`.
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
        // A duration that is not zero stays so.
        Ok(Self(Span::from_millis(if ms > 0.0 { (ms.round() as u32).max(1) } else { 0 })))
    }
}

/// Where to listen, as `host:port`, or `:port` on all addresses; port 0 is any that is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listen {
    host: String,
    port: u16,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not host:port");
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse().map_err(|_| bad())?;
        let host = match host {
            "" => "0.0.0.0",
            host => host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl Listen {
    /// Listens there.
    pub(crate) async fn bind(&self) -> Result<TcpListener, String> {
        TcpListener::bind((&*self.host, self.port))
            .await
            .map_err(|error| format!("cannot listen on {}:{}: {error}", self.host, self.port))
    }
}

/// What a server says of itself: an address without which nobody finds it.
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
            (":4150", "0.0.0.0", 4150),
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
