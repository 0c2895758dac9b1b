//! The limits of a server.

/// The limits of a server, each named after nsqd's option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Limits {
    /// `-max-msg-size`: the longest message, in bytes.
    pub max_msg_size: u32,
    /// `-max-body-size`: the longest body of IDENTIFY, AUTH or MPUB, in bytes.
    pub max_body_size: u32,
    /// `-max-rdy-count`: the largest RDY. tokio-nsq fails above 65,535; go-nsq never requests
    /// messages if it is 0.
    pub max_rdy_count: u32,
    /// `-max-req-timeout`, in milliseconds: the longest deferral of DPUB; longer delays of REQ are
    /// clamped to it.
    pub max_req_timeout_ms: u32,
    /// `-max-msg-timeout`: the longest message timeout, in milliseconds.
    pub max_msg_timeout_ms: u32,
    /// `-max-heartbeat-interval`: the longest interval, in milliseconds.
    pub max_heartbeat_interval_ms: u32,
    /// `-max-output-buffer-size`: the largest output buffer, in bytes.
    pub max_output_buffer_size: u32,
    /// `-min-output-buffer-timeout`: the shortest flush interval, in milliseconds.
    pub min_output_buffer_timeout_ms: u32,
    /// `-max-output-buffer-timeout`: the longest flush interval, in milliseconds.
    pub max_output_buffer_timeout_ms: u32,
    /// `-deflate`: true if clients may use it.
    pub deflate: bool,
    /// `-snappy`: true if clients may use it.
    pub snappy: bool,
}

impl Limits {
    /// nsqd's defaults.
    pub const NSQD: Self = Self {
        max_msg_size: 1 << 20,
        max_body_size: 5 << 20,
        max_rdy_count: 2500,
        max_req_timeout_ms: 3_600_000,
        max_msg_timeout_ms: 900_000,
        max_heartbeat_interval_ms: 60_000,
        max_output_buffer_size: 64 << 10,
        min_output_buffer_timeout_ms: 25,
        max_output_buffer_timeout_ms: 30_000,
        deflate: true,
        snappy: true,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::NSQD
    }
}
