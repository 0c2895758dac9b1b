//! A dialer over the TCP stacks of `embedded-nal-async`.

use core::net::{IpAddr, SocketAddr};

use embedded_io_async::{Error, ErrorKind};
use embedded_nal_async::{AddrType, Dns, TcpConnect};

use super::{Dialer, Stream};
use crate::address::Address;
use crate::session::DialError;

/// Connects over any `TcpConnect` (feature `embedded-nal-async`), as AT modems and other stacks
/// implement it. A literal address needs no DNS: without it pass [`NoDns`].
///
/// A dial asks for one address, IPv4 or IPv6, and tries that. The stack's connections must meet the
/// requirements of [`Stream`]; those of TLS do not, and need a [`pump`](super::pump).
#[derive(Debug)]
pub struct NalDialer<T, D> {
    tcp: T,
    dns: D,
}

impl<T: TcpConnect, D: Dns> NalDialer<T, D> {
    /// Connects with `tcp` and resolves names with `dns`; both may be references.
    pub const fn new(tcp: T, dns: D) -> Self {
        Self { tcp, dns }
    }
}

impl<T: TcpConnect, D: Dns> Dialer for NalDialer<T, D> {
    type Transport<'d>
        = Stream<T::Connection<'d>>
    where
        Self: 'd;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        let ip = match address.host().parse() {
            Ok(ip) => ip,
            Err(_) => {
                let found = self.dns.get_host_by_name(address.host(), AddrType::Either).await;
                found.map_err(|_| DialError::NameNotFound)?
            }
        };
        let connected = self.tcp.connect(SocketAddr::new(ip, address.port())).await;
        connected.map(Stream::new).map_err(|error| match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => DialError::Refused,
            ErrorKind::TimedOut => DialError::TimedOut,
            ErrorKind::AddrNotAvailable | ErrorKind::NotConnected => DialError::Unreachable,
            ErrorKind::AddrInUse | ErrorKind::OutOfMemory => DialError::NoSocket,
            _ => DialError::Other,
        })
    }
}

/// No DNS, for [`NalDialer`]: no name is found.
#[derive(Debug, Clone, Copy)]
pub struct NoDns;

impl Dns for NoDns {
    type Error = DialError;

    async fn get_host_by_name(&self, _: &str, _: AddrType) -> Result<IpAddr, DialError> {
        Err(DialError::NameNotFound)
    }

    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, DialError> {
        Err(DialError::NameNotFound)
    }
}
