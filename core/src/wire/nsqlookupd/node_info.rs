//! The body of IDENTIFY, as nsqlookupd reads it.

use super::{NodeInfo, Refusal, VERSION_MAX};
use crate::address::HOST_MAX;
use crate::wire::json::{Fields, fields};

/// A node as nsqlookupd keeps it. RAM: [`HOST_MAX`] + 154 bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct OwnedNodeInfo {
    /// The host that consumers connect to, never empty.
    pub broadcast_address: heapless::String<HOST_MAX, u8>,
    /// The node's name, cut to 64 bytes; may be empty.
    pub hostname: heapless::String<64, u8>,
    /// The node's version, cut to [`VERSION_MAX`] bytes; never empty.
    pub version: heapless::String<VERSION_MAX, u8>,
    /// The node's region, cut to 32 bytes; may be empty.
    pub topology_region: heapless::String<32, u8>,
    /// The node's zone in the region, cut to 32 bytes; may be empty.
    pub topology_zone: heapless::String<32, u8>,
    /// The port for consumers and producers, never 0.
    pub tcp_port: u16,
    /// The port for HTTP, never 0.
    pub http_port: u16,
}

impl OwnedNodeInfo {
    /// Returns the borrowed form of the same information.
    pub fn info(&self) -> NodeInfo<'_> {
        NodeInfo {
            broadcast_address: &self.broadcast_address,
            hostname: &self.hostname,
            http_port: self.http_port,
            tcp_port: self.tcp_port,
            topology_region: &self.topology_region,
            topology_zone: &self.topology_zone,
            version: &self.version,
        }
    }

    const fn new() -> Self {
        Self {
            broadcast_address: heapless::String::new(),
            hostname: heapless::String::new(),
            version: heapless::String::new(),
            topology_region: heapless::String::new(),
            topology_zone: heapless::String::new(),
            tcp_port: 0,
            http_port: 0,
        }
    }
}

fields! {
    /// Every field that nsqlookupd reads.
    enum Field {
        TcpPort = "tcp_port",
        HttpPort = "http_port",
        Hostname = "hostname",
        Version = "version",
        TopologyRegion = "topology_region",
        TopologyZone = "topology_zone",
        BroadcastAddress = "broadcast_address",
        RemoteAddress = "remote_address",
    }
}

/// Reads the body of IDENTIFY in pieces and checks it as nsqlookupd does. Keeps only the result.
/// RAM: 2 [`HOST_MAX`] + 180 bytes.
#[derive(Debug, Clone)]
pub struct NodeInfoScanner {
    fields: Fields<HOST_MAX>,
    node: OwnedNodeInfo,
    /// The address was cut: it would send consumers to another host.
    address_cut: bool,
}

impl NodeInfoScanner {
    /// Creates a scanner for a new body.
    pub const fn new() -> Self {
        Self { fields: Fields::new(), node: OwnedNodeInfo::new(), address_cut: false }
    }

    /// All bytes are zero, for storage before its use.
    pub(crate) const ZERO: Self =
        Self { fields: Fields::ZERO, node: OwnedNodeInfo::new(), address_cut: false };

    /// Reads the next piece of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Refusal<'static>> {
        let mut bytes = bytes;
        while let Some(key) =
            self.fields.take(Field::KEYS, &mut bytes).map_err(|_| Refusal::BadJson)?
        {
            if self.keep(key).is_none() {
                self.fields.refuse();
                return Err(Refusal::BadJson);
            }
        }
        Ok(())
    }

    /// Checks the complete body and returns the node.
    pub fn finish(&mut self) -> Result<&OwnedNodeInfo, Refusal<'static>> {
        self.fields.finish().map_err(|_| Refusal::BadJson)?;
        if self.address_cut {
            return Err(Refusal::AddressTooLong);
        }
        self.node.info().check()?;
        Ok(&self.node)
    }

    /// Returns the fields read so far.
    pub const fn node(&self) -> &OwnedNodeInfo {
        &self.node
    }

    /// Stores the value of a field; `None` if the value has the wrong type.
    fn keep(&mut self, key: u8) -> Option<()> {
        let node = &mut self.node;
        let port = self.fields.exact().map(|port| u16::try_from(port).unwrap_or(0));
        let text = self.fields.string();
        match Field::at(key)? {
            Field::TcpPort => node.tcp_port = port?,
            Field::HttpPort => node.http_port = port?,
            Field::Hostname => text?.store(&mut node.hostname),
            Field::Version => text?.store(&mut node.version),
            Field::TopologyRegion => text?.store(&mut node.topology_region),
            Field::TopologyZone => text?.store(&mut node.topology_zone),
            Field::BroadcastAddress => {
                let text = text?;
                self.address_cut = text.truncated();
                text.store(&mut node.broadcast_address);
            }
            // nsqlookupd sets this field itself, but the type has to be right.
            Field::RemoteAddress => drop(text?),
        }
        Some(())
    }
}

impl Default for NodeInfoScanner {
    fn default() -> Self {
        Self::new()
    }
}
