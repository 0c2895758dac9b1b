//! `/pub` and `/mpub`: receives messages and publishes them.

use crate::http::{Refusal, Status};
use crate::name::TopicName;
use crate::nsqd::engine::{Draft, Piece, Shared, TableFull};
use crate::nsqd::table::Origin;
use crate::time::Instant;
use crate::wire::{saturate, take};

/// A request that publishes.
#[derive(Debug)]
pub(super) struct Publish {
    topic: TopicName,
    defer_ms: u32,
    draft: Draft,
    part: Part,
    /// The length of the body in bytes, if known.
    len: Option<u32>,
    /// The request's wait for room is already counted.
    waited: bool,
}

/// The part of the body that is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// One message, the whole body.
    Raw,
    /// One message of unknown length, the whole body.
    Open,
    /// One message: each call has a whole line.
    Line,
    /// The number of messages, of whose four bytes `have` are read.
    Count { number: u32, have: u8 },
    /// Reserve room for `count` messages.
    Room { count: u32 },
    /// The length of the next of `count` messages, of whose four bytes `have` are read.
    Size { count: u32, number: u32, have: u8 },
    /// Take room for the next of `count` messages, with `size` bytes.
    Begin { count: u32, size: u32 },
    /// The remaining `left` bytes of a message, which `count` messages follow.
    Data { count: u32, left: u32 },
    /// Ignore the rest of the body.
    End,
}

impl Publish {
    /// Publishes the whole body, of `len` bytes if known, as one message.
    pub(super) const fn one(topic: TopicName, defer_ms: u32, len: Option<u32>) -> Self {
        let part = if len.is_some() { Part::Raw } else { Part::Open };
        Self { topic, defer_ms, draft: Draft::NONE, part, len, waited: false }
    }

    /// Publishes each line as a message.
    pub(super) const fn lines(topic: TopicName) -> Self {
        Self { part: Part::Line, ..Self::one(topic, 0, None) }
    }

    /// Publishes messages in MPUB's format, with their number and lengths.
    pub(super) const fn binary(topic: TopicName, len: Option<u32>) -> Self {
        Self { part: Part::Count { number: 0, have: 0 }, ..Self::one(topic, 0, len) }
    }

    /// Consumes bytes of the body. Returns how many; fewer if the store has no room.
    pub(super) fn take(
        &mut self,
        now: Instant,
        shared: &mut Shared<'_>,
        bytes: &[u8],
    ) -> Result<usize, Refusal> {
        let mut input = bytes;
        while !input.is_empty() {
            if !self.step(now, shared, &mut input)? {
                shared.wanted = true;
                if !self.waited {
                    self.waited = true;
                    shared.counters.waits = shared.counters.waits.saturating_add(1);
                }
                break;
            }
        }
        Ok(bytes.len().saturating_sub(input.len()))
    }

    /// Publishes the messages once the body is complete.
    pub(super) fn commit(&mut self, now: Instant, shared: &mut Shared<'_>) -> Result<(), Refusal> {
        match self.part {
            Part::Open if self.draft.count() == 0 => return Err(EMPTY),
            Part::Raw | Part::Open | Part::Line | Part::End => {}
            Part::Count { .. } | Part::Room { .. } => return Err(too_large("BAD_BODY")),
            Part::Size { .. } | Part::Begin { .. } | Part::Data { .. } => {
                return Err(too_large("BAD_MESSAGE"));
            }
        }
        if !shared.may_commit(now, &self.topic, &self.draft) {
            return Err(Refusal::new(Status::Unavailable, "BUSY"));
        }
        let at = shared.topic_for(now, &self.topic, Origin::Client).map_err(no_slot)?;
        shared.commit(now, at, &mut self.draft, self.defer_ms);
        Ok(())
    }

    /// Frees the messages of a request that was not completed.
    pub(super) fn discard(&mut self, shared: &mut Shared<'_>) {
        shared.discard(&mut self.draft);
    }

    /// Consumes part of `input`, which is not empty. Returns false, consuming nothing, without
    /// room.
    fn step(
        &mut self,
        now: Instant,
        shared: &mut Shared<'_>,
        input: &mut &[u8],
    ) -> Result<bool, Refusal> {
        let limits = shared.limits;
        match self.part {
            Part::Raw => {
                let len = self.len.unwrap_or(0);
                self.draft.is_complete = input.len() >= len as usize;
                if !shared.take(now, &self.topic, &mut self.draft, Piece::First(len)) {
                    return Ok(false);
                }
                self.part = Part::Data { count: 0, left: len };
            }
            Part::Open => {
                let len = saturate(input.len());
                let is_first = self.draft.count() == 0;
                let piece = if is_first { Piece::First(len) } else { Piece::Next(len) };
                if !shared.take(now, &self.topic, &mut self.draft, piece) {
                    return Ok(false);
                }
                shared.fill(&mut self.draft, input);
                *input = &[];
            }
            Part::Line => {
                let len = saturate(input.len());
                if len > limits.max_msg_size {
                    return Err(too_large("MSG_TOO_BIG"));
                }
                if shared.never_fits(&self.draft, len) {
                    return Err(too_large("BODY_TOO_BIG"));
                }
                if !shared.take(now, &self.topic, &mut self.draft, Piece::First(len)) {
                    return Ok(false);
                }
                shared.fill(&mut self.draft, input);
                *input = &[];
            }
            Part::Count { number, have } => {
                self.part = match read(input, number, have) {
                    Some((count, 4)) => {
                        let most = limits.max_body_size.saturating_sub(4) / 5;
                        if count == 0 || count > most {
                            return Err(too_large("BAD_BODY"));
                        }
                        Part::Room { count }
                    }
                    Some((number, have)) => Part::Count { number, have },
                    None => return Ok(true),
                };
            }
            Part::Room { count } => {
                // Without a known length of the batch, each message waits for its own room.
                if let Some(len) = self.len {
                    let Some(blocks) = shared.batch_blocks(len, count) else {
                        return Err(too_large("BODY_TOO_BIG"));
                    };
                    let rest = len.saturating_sub(4);
                    self.draft.is_complete =
                        rest >= count.saturating_mul(5) && input.len() >= rest as usize;
                    if !shared.promise(now, &self.topic, &mut self.draft, blocks) {
                        return Ok(false);
                    }
                }
                self.part = Part::Size { count, number: 0, have: 0 };
            }
            Part::Size { count, number, have } => {
                self.part = match read(input, number, have) {
                    Some((size, 4)) => {
                        if size == 0 || size > limits.max_msg_size {
                            return Err(too_large("BAD_MESSAGE"));
                        }
                        Part::Begin { count, size }
                    }
                    Some((number, have)) => Part::Size { count, number, have },
                    None => return Ok(true),
                };
            }
            Part::Begin { count, size } => {
                if shared.never_fits(&self.draft, size) {
                    return Err(too_large("BODY_TOO_BIG"));
                }
                if !shared.take(now, &self.topic, &mut self.draft, Piece::First(size)) {
                    return Ok(false);
                }
                self.part = Part::Data { count: count.saturating_sub(1), left: size };
            }
            Part::Data { count, left } => {
                let data = take(input, left);
                shared.fill(&mut self.draft, data);
                let left = left.saturating_sub(data.len() as u32);
                self.part = match (left, count) {
                    (0, 0) => Part::End,
                    (0, count) => Part::Size { count, number: 0, have: 0 },
                    (left, count) => Part::Data { count, left },
                };
            }
            Part::End => *input = &[],
        }
        Ok(true)
    }
}

pub(super) const EMPTY: Refusal = Refusal::bad_request("MSG_EMPTY");

/// Reads the next byte of a number of four bytes; `None` if `input` is empty.
fn read(input: &mut &[u8], number: u32, have: u8) -> Option<(u32, u8)> {
    let (&byte, rest) = input.split_first()?;
    *input = rest;
    Some((number << 8 | u32::from(byte), have.saturating_add(1)))
}

const fn too_large(code: &'static str) -> Refusal {
    Refusal::new(Status::ContentTooLarge, code)
}

pub(super) const fn no_slot(full: TableFull) -> Refusal {
    Refusal::new(
        Status::Unavailable,
        match full {
            TableFull::Topics => "TOO_MANY_TOPICS",
            TableFull::Channels => "TOO_MANY_CHANNELS",
            TableFull::ChannelsOfTopic => "TOO_MANY_CHANNELS_OF_TOPIC",
        },
    )
}
