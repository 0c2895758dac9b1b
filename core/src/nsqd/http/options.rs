//! `/config`: those of nsqd's options that have a meaning here.

use core::convert::Infallible;

use super::Settings;
use crate::address::{Address, HOST_MAX};
use crate::http::emit::{emit_text, emit_u64};
use crate::http::{Content, Piece, Refusal, Status, Value};
use crate::nsqd::engine::Shared;
use crate::wire::json::{Scanner, Token};
use crate::wire::{Decimal, Write};

/// An option of [`NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opt {
    BroadcastAddress,
    BroadcastTcpPort,
    BroadcastHttpPort,
    Lookupds,
    MsgTimeout,
    MaxMsgTimeout,
    MaxMsgSize,
    MaxReqTimeout,
    MaxBodySize,
    MaxHeartbeatInterval,
    MaxRdyCount,
    MaxOutputBufferSize,
    MaxOutputBufferTimeout,
    MinOutputBufferTimeout,
    MaxChannelConsumers,
    Percentiles,
    TlsRequired,
    Deflate,
    Snappy,
}

const NAMES: [(&str, Opt); 19] = [
    ("broadcast_address", Opt::BroadcastAddress),
    ("broadcast_tcp_port", Opt::BroadcastTcpPort),
    ("broadcast_http_port", Opt::BroadcastHttpPort),
    ("nsqlookupd_tcp_addresses", Opt::Lookupds),
    ("msg_timeout", Opt::MsgTimeout),
    ("max_msg_timeout", Opt::MaxMsgTimeout),
    ("max_msg_size", Opt::MaxMsgSize),
    ("max_req_timeout", Opt::MaxReqTimeout),
    ("max_body_size", Opt::MaxBodySize),
    ("max_heartbeat_interval", Opt::MaxHeartbeatInterval),
    ("max_rdy_count", Opt::MaxRdyCount),
    ("max_output_buffer_size", Opt::MaxOutputBufferSize),
    ("max_output_buffer_timeout", Opt::MaxOutputBufferTimeout),
    ("min_output_buffer_timeout", Opt::MinOutputBufferTimeout),
    ("max_channel_consumers", Opt::MaxChannelConsumers),
    ("e2e_processing_latency_percentiles", Opt::Percentiles),
    ("tls_required", Opt::TlsRequired),
    ("deflate", Opt::Deflate),
    ("snappy", Opt::Snappy),
];

impl Opt {
    pub(super) fn find(name: Value<'_>) -> Option<Self> {
        NAMES.iter().find(|(is, _)| name.is(is)).map(|(_, opt)| *opt)
    }

    /// Returns the content type: text for a string, which nsqd writes without quotes, else JSON.
    pub(super) const fn content(self) -> Content {
        match self {
            Self::BroadcastAddress => Content::Text,
            Self::BroadcastTcpPort
            | Self::BroadcastHttpPort
            | Self::Lookupds
            | Self::MsgTimeout
            | Self::MaxMsgTimeout
            | Self::MaxMsgSize
            | Self::MaxReqTimeout
            | Self::MaxBodySize
            | Self::MaxHeartbeatInterval
            | Self::MaxRdyCount
            | Self::MaxOutputBufferSize
            | Self::MaxOutputBufferTimeout
            | Self::MinOutputBufferTimeout
            | Self::MaxChannelConsumers
            | Self::Percentiles
            | Self::TlsRequired
            | Self::Deflate
            | Self::Snappy => Content::Json,
        }
    }

    /// Writes the option's value; of a list, the part from step `at` on. Returns true once the
    /// value is complete; otherwise `at` is the next step.
    pub(super) fn write(
        self,
        shared: &Shared<'_>,
        settings: &Settings<'_>,
        at: &mut u8,
        piece: &mut Piece<'_>,
    ) -> bool {
        let limits = &shared.limits;
        let nanos = |ms: u32| u64::from(ms).saturating_mul(1_000_000);
        let number = match self {
            Self::BroadcastAddress => {
                return piece.put(|w| w.write_all(settings.config.broadcast_address.as_bytes()));
            }
            Self::Lookupds => return write_list(settings.lookupds(), at, piece),
            Self::Percentiles => return piece.put(|w| w.write_all(b"[]")),
            // Not supported.
            Self::Deflate | Self::Snappy => return piece.put(|w| w.write_all(b"false")),
            Self::TlsRequired | Self::MaxChannelConsumers => 0,
            Self::BroadcastTcpPort => settings.config.tcp_port.into(),
            Self::BroadcastHttpPort => settings.config.http_port.into(),
            Self::MsgTimeout => nanos(shared.config.msg_timeout.as_millis()),
            Self::MaxMsgTimeout => nanos(limits.max_msg_timeout_ms),
            Self::MaxMsgSize => limits.max_msg_size.into(),
            Self::MaxReqTimeout => nanos(limits.max_req_timeout_ms),
            Self::MaxBodySize => limits.max_body_size.into(),
            Self::MaxHeartbeatInterval => nanos(limits.max_heartbeat_interval_ms),
            Self::MaxRdyCount => limits.max_rdy_count.into(),
            Self::MaxOutputBufferSize => limits.max_output_buffer_size.into(),
            Self::MaxOutputBufferTimeout => nanos(limits.max_output_buffer_timeout_ms),
            Self::MinOutputBufferTimeout => nanos(limits.min_output_buffer_timeout_ms),
        };
        piece.put(|w| emit_u64(w, number))
    }
}

/// Writes a list from step `at` on: `[`, each element, `]`. Returns true once it is complete.
fn write_list(addresses: &[Address], at: &mut u8, piece: &mut Piece<'_>) -> bool {
    loop {
        let before: &[u8] = if *at < 2 { b"" } else { b"," };
        let address = at.checked_sub(1).map(|at| addresses.get(usize::from(at)));
        let fits = piece.put(|w| match address {
            None => w.write_all(b"["),
            Some(Some(address)) => {
                w.write_all(before)?;
                emit_address(w, address)
            }
            Some(None) => w.write_all(b"]"),
        });
        if !fits {
            return false;
        }
        *at = at.saturating_add(1);
        if address == Some(None) {
            return true;
        }
    }
}

/// Writes an address as a string in quotes.
fn emit_address(w: &mut Piece<'_>, address: &Address) -> Result<(), Infallible> {
    let is_ipv6 = address.host().contains(':');
    w.write_all(if is_ipv6 { b"\"[" } else { b"\"" })?;
    // A host can contain characters that JSON escapes.
    let mut quoted = [0; 2 * HOST_MAX + 2];
    let mut host = Piece::new(&mut quoted);
    host.put(|w| emit_text(w, address.host()));
    let len = host.len();
    let inside = quoted.get(1..len.saturating_sub(1)).unwrap_or_default();
    w.write_all(inside)?;
    w.write_all(if is_ipv6 { b"]:" } else { b":" })?;
    w.write_all(Decimal::unsigned(address.port().into()).as_bytes())?;
    w.write_all(b"\"")
}

/// Sets the nsqlookupds to those in a JSON array of strings; `null` is an empty array. Changes
/// nothing if any of them is invalid or if there is no room for all.
pub(super) fn set_lookupds(settings: &mut Settings<'_>, body: &[u8]) -> Result<(), Refusal> {
    let mut count = 0usize;
    each_address(body, |_| {
        count = count.saturating_add(1);
        Ok(())
    })?;
    if count > settings.lookupds.len() {
        return Err(Refusal::new(Status::ContentTooLarge, "TOO_MANY_ADDRESSES"));
    }
    let mut slots = settings.lookupds.iter_mut();
    each_address(body, |address| {
        if let Some(slot) = slots.next() {
            *slot = address;
        }
        Ok(())
    })?;
    settings.count = count;
    settings.version = settings.version.wrapping_add(1);
    Ok(())
}

fn each_address(
    body: &[u8],
    mut then: impl FnMut(Address) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    const BAD: Refusal = Refusal::bad_request("INVALID_VALUE");
    // A host in brackets, a colon and a port.
    let mut scanner = Scanner::<{ HOST_MAX + 8 }>::new();
    let mut input = body;
    let mut depth = 0u8;
    while let Some(token) = scanner.next(&mut input).map_err(|_| BAD)? {
        match token {
            Token::ArrayStart if depth == 0 => depth = 1,
            Token::ArrayEnd => depth = 2,
            Token::Null if depth == 0 => depth = 2,
            Token::String(text) if depth == 1 && !text.truncated() => {
                let address = text.as_str().and_then(|text| text.parse().ok());
                then(address.ok_or(BAD)?)?;
            }
            Token::ObjectStart
            | Token::ObjectEnd
            | Token::ArrayStart
            | Token::Key(_)
            | Token::String(_)
            | Token::Number(_)
            | Token::Bool(_)
            | Token::Null => return Err(BAD),
        }
    }
    if scanner.finished() && depth == 2 { Ok(()) } else { Err(BAD) }
}
