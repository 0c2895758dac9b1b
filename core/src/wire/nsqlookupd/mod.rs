//! V1, the protocol between nsqd and nsqlookupd.
//!
//! nsqd sends [`MAGIC`] once, then [`Command`]s: a line, and for IDENTIFY a `u32be` length and
//! JSON. nsqlookupd answers each command, in order, with a `u32be` length and that many bytes:
//! `OK`, JSON for IDENTIFY, or an error as text, after which it closes. There is no frame type.
//!
//! nsqd uses [`Command`] and [`ReplyDecoder`]; nsqlookupd [`CommandDecoder`], [`NodeInfoScanner`],
//! [`IdentifyReply`] and [`emit_reply`]. The behaviour is that of nsqlookupd 1.3.0
//! (`nsqlookupd/lookup_protocol_v1.go`).

mod command;
mod info;
mod node_info;
mod refusal;
mod reply;
mod server;

pub use command::{Command, NodeInfo};
pub(crate) use info::HttpPortFinder;
pub use info::IdentifyReply;
pub use node_info::{NodeInfoScanner, OwnedNodeInfo};
pub use refusal::{Refusal, Verb};
pub use reply::{ReplyDecoder, ReplyPart, emit_refusal, emit_reply};
pub use server::{CommandDecoder, Item, LINE_BUFFER};

/// The first bytes of nsqd.
pub const MAGIC: [u8; 4] = *b"  V1";

/// The longest line that nsqd sends, line feed included: UNREGISTER with two longest names.
pub const LINE_MAX: usize = 141;

/// The reply to all commands but IDENTIFY.
pub const OK: &[u8] = b"OK";

/// The longest version that is kept, in bytes.
pub const VERSION_MAX: usize = 16;
