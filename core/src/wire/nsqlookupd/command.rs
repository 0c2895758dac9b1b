//! Commands: what nsqd sends.

use crate::name::{ChannelName, TopicName};
use crate::wire::json::Object;
use crate::wire::{Write, emit_len, len_of};

/// A command, ready to be written. All of them are defined in
/// `nsqlookupd/lookup_protocol_v1.go`.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// IDENTIFY: who the node is; once per connection, before REGISTER. Answer: JSON
    /// ([`super::IdentifyReply`]).
    Identify(&'a NodeInfo<'a>),
    /// REGISTER: the node has this topic, or this channel and with it its topic. Idempotent.
    /// Answer: `OK`.
    Register {
        /// The topic.
        topic: &'a TopicName,
        /// The channel, or the topic alone.
        channel: Option<&'a ChannelName>,
    },
    /// UNREGISTER: the node has this channel, or this topic with all its channels, no longer.
    /// Answer: `OK`, also if it never had.
    Unregister {
        /// The topic.
        topic: &'a TopicName,
        /// The channel, or the topic with all of them.
        channel: Option<&'a ChannelName>,
    },
    /// PING: the node is alive; keeps it listed, which lasts 300 s by default. Answer: `OK`.
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

    /// How many bytes that is: [`LINE_MAX`](super::LINE_MAX) at most, except for IDENTIFY.
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

/// IDENTIFY's body: how a node is listed (`nsqd/lookup.go`).
///
/// nsqlookupd refuses a node whose `broadcast_address` or `version` is empty, or one of whose ports
/// is 0, so a node without HTTP has to name some `http_port`, too.
/// [`NodeInfoScanner`](super::NodeInfoScanner) reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NodeInfo<'a> {
    /// Where consumers reach the node: a name or an address without a port.
    pub broadcast_address: &'a str,
    /// The node's name, for display.
    pub hostname: &'a str,
    /// Where the node answers HTTP.
    pub http_port: u16,
    /// Where the node takes consumers and producers.
    pub tcp_port: u16,
    /// Where the node is (newer than 1.3.0); may be empty.
    pub topology_region: &'a str,
    /// Where in the region the node is (newer than 1.3.0); may be empty.
    pub topology_zone: &'a str,
    /// The node's version, as in `1.3.0`.
    pub version: &'a str,
}

impl NodeInfo<'_> {
    /// Nothing known.
    pub(crate) const NONE: Self = Self {
        broadcast_address: "",
        hostname: "",
        http_port: 0,
        tcp_port: 0,
        topology_region: "",
        topology_zone: "",
        version: "",
    };

    /// Writes the JSON, its keys in nsqd's order.
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

    /// How many bytes that is.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }

    /// Whether nsqlookupd takes it, and if not, with what it refuses.
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
