//! The commands that nsqd sends to nsqlookupd.

use crate::name::{ChannelName, TopicName};
use crate::wire::json::Object;
use crate::wire::{Write, emit_len, len_of};

/// A command for nsqlookupd, as in `nsqlookupd/lookup_protocol_v1.go`.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// IDENTIFY: describes the node; once per connection, before REGISTER. Reply: JSON
    /// ([`super::IdentifyReply`]).
    Identify(&'a NodeInfo<'a>),
    /// REGISTER: the node has this topic, or this channel of the topic. Idempotent. Reply: `OK`.
    Register {
        /// The topic.
        topic: &'a TopicName,
        /// The channel; `None` for the topic alone.
        channel: Option<&'a ChannelName>,
    },
    /// UNREGISTER: the node does not have this channel any more, or this topic and all its
    /// channels. Reply: `OK`, also if it was not registered.
    Unregister {
        /// The topic.
        topic: &'a TopicName,
        /// The channel; `None` for the topic and all its channels.
        channel: Option<&'a ChannelName>,
    },
    /// PING: keeps the node listed, by default for 300 s. Reply: `OK`.
    Ping,
}

impl Command<'_> {
    /// Writes the command.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        match *self {
            Self::Identify(node) => {
                w.write_all(b"IDENTIFY\n")?;
                emit_len(w, node.encoded_len())?;
                node.emit(w)
            }
            Self::Register { topic, channel } => emit_names(w, b"REGISTER ", topic, channel),
            Self::Unregister { topic, channel } => emit_names(w, b"UNREGISTER ", topic, channel),
            Self::Ping => w.write_all(b"PING\n"),
        }
    }

    /// Returns the length of the command in bytes: [`LINE_MAX`](super::LINE_MAX) at most, except
    /// for IDENTIFY.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

fn emit_names<W: Write>(
    w: &mut W,
    verb: &[u8],
    topic: &TopicName,
    channel: Option<&ChannelName>,
) -> Result<(), W::Error> {
    w.write_all(verb)?;
    w.write_all(topic.as_bytes())?;
    if let Some(channel) = channel {
        w.write_all(b" ")?;
        w.write_all(channel.as_bytes())?;
    }
    w.write_all(b"\n")
}

/// The body of IDENTIFY: the node as nsqlookupd lists it (`nsqd/lookup.go`).
///
/// nsqlookupd refuses a node whose `broadcast_address` or `version` is empty or with a port of 0,
/// so a node without HTTP has to set some `http_port`, too. nsqlookupd reads it with
/// [`NodeInfoScanner`](super::NodeInfoScanner).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NodeInfo<'a> {
    /// The host that consumers connect to: a name or an address without a port.
    pub broadcast_address: &'a str,
    /// The node's name, for display.
    pub hostname: &'a str,
    /// The port for HTTP.
    pub http_port: u16,
    /// The port for consumers and producers.
    pub tcp_port: u16,
    /// The region of the node (newer than 1.3.0); may be empty.
    pub topology_region: &'a str,
    /// The zone in the region (newer than 1.3.0); may be empty.
    pub topology_zone: &'a str,
    /// The node's version, as in `1.3.0`.
    pub version: &'a str,
}

impl NodeInfo<'_> {
    /// A node without any information.
    pub(crate) const NONE: Self = Self {
        broadcast_address: "",
        hostname: "",
        http_port: 0,
        tcp_port: 0,
        topology_region: "",
        topology_zone: "",
        version: "",
    };

    /// Writes the JSON with the keys in nsqd's order.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.string(BROADCAST_ADDRESS, self.broadcast_address)?;
        object.string(HOSTNAME, self.hostname)?;
        object.number(HTTP_PORT, self.http_port.into())?;
        object.number(TCP_PORT, self.tcp_port.into())?;
        object.string(TOPOLOGY_REGION, self.topology_region)?;
        object.string(TOPOLOGY_ZONE, self.topology_zone)?;
        object.string(VERSION, self.version)?;
        object.end()
    }

    /// Returns the length of the JSON in bytes.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }

    /// Checks the fields as nsqlookupd does, and returns its refusal if it refuses.
    pub const fn check(&self) -> Result<(), super::Refusal<'static>> {
        if self.broadcast_address.is_empty()
            || self.tcp_port == 0
            || self.http_port == 0
            || self.version.is_empty()
        {
            return Err(super::Refusal::MissingFields);
        }
        Ok(())
    }
}

pub(super) const BROADCAST_ADDRESS: &str = "broadcast_address";
pub(super) const HOSTNAME: &str = "hostname";
pub(super) const HTTP_PORT: &str = "http_port";
pub(super) const TCP_PORT: &str = "tcp_port";
pub(super) const TOPOLOGY_REGION: &str = "topology_region";
pub(super) const TOPOLOGY_ZONE: &str = "topology_zone";
pub(super) const VERSION: &str = "version";
