//! The settings of an nsqlookupd.

use super::IdentifyReply;
use crate::http;
use crate::time::Span;

/// The settings. Borrowed, so that a constant one costs no RAM.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// What it says of itself, in answer to IDENTIFY; the version also to `/info`. nsqds ask at its
    /// `http_port` which channels a new topic has elsewhere: without one they do not. Default
    /// nothing but the version 1.3.0, whose behaviour this is.
    pub info: IdentifyReply<'a>,
    /// `-inactive-producer-timeout`: how long after its last PING an nsqd is listed. Default 300 s.
    pub inactive_timeout: Span,
    /// `-tombstone-lifetime`: how long a tombstone hides an nsqd. Default 45 s.
    pub tombstone_lifetime: Span,
    /// How long an nsqd's connection may be silent. nsqd sends PING every 15 s. Default 300 s.
    pub idle_timeout: Span,
    /// How long an nsqd's connection has been silent when a newer one that announces the same
    /// address replaces it, or when it makes room for a caller that finds none. Default 45 s, three
    /// of nsqd's PINGs.
    pub replace_timeout: Span,
    /// How long an nsqd may take to IDENTIFY itself. Default 10 s.
    pub greeting_timeout: Span,
    /// How long an nsqd may take to read answers. Default 5 s.
    pub reply_timeout: Span,
    /// How long closing may take. Default 1 s.
    pub close_timeout: Span,
    /// How long a topic or channel is kept that no nsqd has and nobody uses, unless it was made
    /// over HTTP; zero is for ever, as nsqlookupd. Sooner when others need its slot. Default one
    /// hour.
    pub empty_timeout: Span,
    /// How many topics a connection of an nsqd may have and make another one by REGISTER: so that
    /// one cannot take all that there is room for. What is there already, it may register as well.
    /// Default no limit.
    pub topics_per_node: u16,
    /// How many channels, likewise.
    pub channels_per_node: u16,
    /// The longest IDENTIFY, in bytes; nsqd's has about 150. Default 1024.
    pub max_body: u32,
    /// The times of HTTP connections.
    pub http: http::Config,
}

impl<'a> Config<'a> {
    /// The defaults.
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
