//! V2, the protocol between clients and nsqd.
//!
//! A client sends [`MAGIC`] once, then commands: a line, and for some commands a `u32be` length and
//! a body. nsqd answers with frames: `u32be` size (4 + data), `u32be` type, data. Responses arrive
//! in the order of the commands; heartbeats and messages arrive anywhere between them.
//!
//! A client uses [`emit_identify`], [`emit_auth`], [`emit_sub`] and the `emit_*_head` functions,
//! [`FrameDecoder`], [`GrantedScanner`] and [`ErrorCode`]; nsqd [`CommandDecoder`],
//! [`IdentifyScanner`], [`IdentifyResponse`], [`Refusal`], [`emit_frame`] and
//! [`emit_message_head`]. The behaviour is that of nsqd 1.3.0 (`nsqd/protocol_v2.go`).

mod command;
mod error;
mod frame;
mod identify;
mod identify_response;
mod limits;
mod message;
mod refusal;
mod server;

pub(crate) use command::emit_line;
pub use command::{emit_auth, emit_dpub_head, emit_mpub_head, emit_pub_head, emit_sub};
pub use error::{ErrorCode, Meaning};
pub use frame::{FrameDecoder, FramePart, FrameType, emit_frame, emit_frame_head};
pub use identify::{
    Identification, IdentifyNumber, IdentifyOption, IdentifyRequest, IdentifyScanner, Settings,
    emit_identify,
};
pub use identify_response::{Granted, GrantedScanner, IdentifyResponse};
pub use limits::Limits;
pub use message::{Message, MessageHead, MessageId, emit_message_head};
pub use refusal::{Refusal, Setting, Verb, Within};
pub use server::{CommandDecoder, Item, LINE_BUFFER, Phase};

/// The first bytes of a client.
pub const MAGIC: [u8; 4] = *b"  V2";

/// The longest line of a well-behaved client, line feed included: SUB with two longest names.
pub const LINE_MAX: usize = 134;

/// Data of the response frame for most commands.
pub const OK: &[u8] = b"OK";

/// Data of the response frame that nsqd sends every heartbeat interval; answer it with NOP.
pub const HEARTBEAT: &[u8] = b"_heartbeat_";

/// The answer to a heartbeat; nsqd does not answer NOP.
pub const NOP: &[u8] = b"NOP\n";

/// Data of the response frame for CLS.
pub const CLOSE_WAIT: &[u8] = b"CLOSE_WAIT";
