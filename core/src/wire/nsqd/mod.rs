//! V2: clients and nsqd.
//!
//! A client sends [`MAGIC`] once, then [`Command`]s: a line, and for some a `u32be` length and a
//! body. nsqd answers with frames: `u32be` size (4 + data), `u32be` type, data. Answers come in
//! the order of the commands; heartbeats and messages come anywhere between them.
//!
//! The client's half is [`Command`] and the `emit_*_head` functions, [`FrameDecoder`],
//! [`NegotiatedScanner`], [`ErrorCode`]; nsqd's is [`CommandDecoder`], [`IdentifyScanner`],
//! [`IdentifyResponse`], [`emit_frame`] and its kin. Facts are those of nsqd 1.3.0
//! (`nsqd/protocol_v2.go`).

mod auth;
mod command;
mod error;
mod frame;
pub(crate) mod hello;
mod identify;
mod limits;
mod message;
mod negotiated;
mod refusal;
mod server;

pub use auth::{AuthResponse, AuthScanner, Authorized};
pub(crate) use command::emit_line;
pub use command::{
    Command, emit_auth, emit_dpub_head, emit_fin, emit_identify, emit_mpub_head, emit_pub_head,
    emit_rdy, emit_req, emit_sub, emit_touch,
};
pub use error::ErrorCode;
pub use frame::{
    FrameDecoder, FramePart, FrameType, emit_error, emit_frame, emit_frame_head, emit_refusal,
};
pub use identify::{Identification, IdentifyRequest, IdentifyResponse, IdentifyScanner, Settings};
pub use limits::Limits;
pub use message::{Message, MessageHead, MessageId, emit_message, emit_message_head};
pub use negotiated::{Granted, GrantedScanner, Negotiated, NegotiatedScanner};
pub use refusal::{Refusal, Setting, Verb, Within};
pub use server::{CommandDecoder, Item, LINE_BUFFER, Phase};

/// What a client sends first.
pub const MAGIC: [u8; 4] = *b"  V2";

/// The longest line of a well-behaved client, line feed included: a SUB of two longest names.
pub const LINE_MAX: usize = 134;

/// Data of the response frame for most commands.
pub const OK: &[u8] = b"OK";

/// Data of the response frame that nsqd sends every heartbeat interval; answer it with NOP.
pub const HEARTBEAT: &[u8] = b"_heartbeat_";

/// The answer to a heartbeat; itself not answered.
pub const NOP: &[u8] = b"NOP\n";

/// Data of the response frame for CLS.
pub const CLOSE_WAIT: &[u8] = b"CLOSE_WAIT";
