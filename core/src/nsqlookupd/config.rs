//! The settings of an nsqlookupd.

use super::IdentifyReply;
use crate::http;
use crate::time::Span;

/// The settings of an nsqlookupd, which borrows them: a constant costs no RAM.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The answer to IDENTIFY, of which `/info` returns the version. nsqds query its `http_port`
    /// for the channels that a new topic has elsewhere; with port 0 they do not. Default: empty,
    /// with version 1.3.0, whose behaviour this implements.
    pub info: IdentifyReply<'a>,
    /// `-inactive-producer-timeout`: the time after its last PING for which an nsqd is listed.
    /// Default 300 s.
    pub inactive_timeout: Span,
    /// `-tombstone-lifetime`: the time for which a tombstone hides an nsqd. Default 45 s.
    pub tombstone_lifetime: Span,
    /// The time of silence after which an nsqd's connection is closed. nsqd sends PING every 15 s.
    /// Default 300 s.
    pub idle_timeout: Span,
    /// The time of silence after which an nsqd's connection may be replaced by a newer connection
    /// that announces the same address, or closed because a caller was rejected. Default 45 s,
    /// three of nsqd's PINGs.
    pub replace_timeout: Span,
    /// The timeout of an nsqd's IDENTIFY. Default 10 s.
    pub greeting_timeout: Span,
    /// The time in which an nsqd must read some of its waiting answers. Default 5 s.
    pub reply_timeout: Span,
    /// The timeout of a close. Default 1 s.
    pub close_timeout: Span,
    /// The time after which an unused topic or channel without nsqds is removed, unless it was
    /// created over HTTP; zero is never, as in nsqlookupd. Its slot may be given back before, if
    /// others need it. Default one hour.
    pub empty_timeout: Span,
    /// The most topics, if the storage has room for more. Default 65,535.
    pub max_topics: u16,
    /// The most channels of all topics together, if the storage has room for more. Default 65,535.
    pub max_channels: u16,
    /// The most connections of nsqds, if the storage has room for more. Default 65,535.
    pub max_nodes: u16,
    /// The number of topics that a connection of an nsqd may have and still create another topic by
    /// REGISTER, so that one connection cannot take all slots. Existing topics it may always
    /// register. Default no limit.
    pub topics_per_node: u16,
    /// The same limit for channels. Default no limit.
    pub channels_per_node: u16,
    /// The maximum length of IDENTIFY's body in bytes; nsqd sends about 150. Default 1024.
    pub max_body: u32,
    /// The settings of HTTP connections.
    pub http: http::Config,
}

impl<'a> Config<'a> {
    /// Returns the default settings.
    pub const fn new() -> Self {
        Self {
            info: IdentifyReply {
                broadcast_address: "",
                hostname: "",
                http_port: 0,
                tcp_port: 0,
                version: "1.3.0",
            },
            inactive_timeout: Span::from_secs(300),
            tombstone_lifetime: Span::from_secs(45),
            idle_timeout: Span::from_secs(300),
            replace_timeout: Span::from_secs(45),
            greeting_timeout: Span::from_secs(10),
            reply_timeout: Span::from_secs(5),
            close_timeout: Span::from_secs(1),
            empty_timeout: Span::from_secs(3600),
            max_topics: u16::MAX,
            max_channels: u16::MAX,
            max_nodes: u16::MAX,
            topics_per_node: u16::MAX,
            channels_per_node: u16::MAX,
            max_body: 1024,
            http: http::Config::new(),
        }
    }
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self::new()
    }
}
