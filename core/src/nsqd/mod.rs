//! A small nsqd: topics, channels, and clients that publish, subscribe, or both.
//!
//! A [`Nsqd`] accepts messages from the application ([`Nsqd::publish`]) and from clients, keeps
//! them in the lent store, and delivers each message to every channel of its topic; within a
//! channel to one client at a time, until a client finishes the message. Standard clients connect
//! to it as to any nsqd.
//!
//! ```text
//!            accepted                 fatal error, silence, channel deleted
//! Unused ---------------> Up -------------------------------------> Closing
//!    ^                     |  Init --SUB--> Subscribed --CLS--> Closing |
//!    |                     | the client disconnects                     |
//!    +---------------------+-------------------------------- closed ----+
//! ```
//!
//! # The life of a message
//!
//! A topic holds its messages back while it has no channel or is paused; its first channel gets all
//! of them. From then on each channel has its own cursor over the topic's list. A message in flight
//! takes one of the channel's entries until FIN, REQ, its timeout, or the end of its client's
//! connection. Unless it is finished, it then waits for its next delivery, at once or when it is
//! due, without an entry. A message leaves the store when every channel is done with it. So a
//! waiting message, for whatever reason, holds only its own blocks.
//!
//! Deliberate differences from nsqd:
//!
//! - When a client disconnects, its messages in flight are requeued at once; nsqd waits for their
//!   timeout.
//! - Attempts stay at 32,767 instead of wrapping: pynsq reads a signed number.
//! - Requeued and new messages are delivered alternately, and waiting clients in turn.
//! - A full nsqd lets producers wait for room, then refuses: `E_PUB_FAILED PUB failed no room`.
//!   A message or batch that can never fit is refused at once with nsqd's errors for excessive
//!   length, `E_BAD_MESSAGE` or `E_BAD_BODY`: a retry does not help, a smaller batch does.
//! - Each KiB of a message must arrive within [`Config::body_timeout`]; nsqd gives a whole command
//!   two heartbeat intervals.
//! - FIN, REQ and TOUCH that are too late are answered as by nsqd (`E_FIN_FAILED FIN ...`): go-nsq
//!   and pynsq log the error, which shows their users that handlers are slow. tokio-nsq gets only
//!   the code: it does not reconnect after an error text that it does not know.
//! - Sampling at n percent delivers n percent, not n + 1.
//! - A new topic waits for its channels also while the first connection to an nsqlookupd is being
//!   made, and [`Config::channels_wait`] at most; see below.
//!
//! # The channels of a new topic
//!
//! Like nsqd, a [`Nsqd`] asks its nsqlookupds which channels a new topic has elsewhere (`GET
//! /channels?topic=`) and creates those that are not ephemeral before it delivers any message. So
//! a consumer that finds the server a minute later, or after a reset of the device, misses nothing.
//! Meanwhile the topic is held, as if it were paused, and accepts messages. [`Nsqd::asking`] is the
//! session for that; `drive` runs it. Unreachable nsqlookupds are not asked. Those that do not
//! answer are counted and reported ([`Event::AskFailed`]), and channels for which there is no room
//! are counted ([`Counters::channels_left_out`]).
//!
//! ```text
//!       topic created      nsqlookupd known             all asked, or time is up
//! (held) ------------> Waiting ----> Dialing ----> Asking ----> Closing ----> Waiting ----> (flows)
//! ```
//!
//! # Full tables
//!
//! Topics and channels stay as long as there is room for others, as in nsqd. When a new topic or
//! channel finds its table full, the least needed topic or channel is evicted and its registrations
//! are withdrawn:
//!
//! - *a topic* that has no messages, and only channels that can be evicted;
//! - *a channel* that has never delivered a message and has no client: at once if a client created
//!   the channel and its topic never had a message; otherwise, and if an nsqlookupd named the
//!   channel, after 60 s without a client.
//!
//! Never evicted are a channel that has delivered a message, a topic or channel that the
//! application named (by creating it, or publishing to it), a channel that was created over HTTP,
//! a paused topic or channel, and the topics of all these channels. A topic that `/topic/create`
//! named is evicted after all others, and not for another `/topic/create`. Those without waiting
//! messages are evicted first, of these those that were not named over HTTP, of these the one that
//! was unused for longest: created, published to, or left by its last client. Messages that wait in
//! an evicted channel are dropped: they are counted ([`Counters::abandoned`]) and reported
//! ([`Event::Dropped`]).
//!
//! If nothing can be evicted, the request is refused with an error that names the full table, and
//! counted. [`Event::TableFull`] reports this to the application, once until there was room again.
//! So an application that creates its topics at its start has them, whatever clients do.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | messages | the lent store: [`message_cost`] each | [`Full`]; producers wait for [`Config::publish_wait`] |
//! | a message, a batch | the share that clients can announce, `limits`; for the application the store | refused before its body, as nsqd does |
//! | messages that clients have announced and not completely sent | [`Config::announced_percent`] of the store, together | they wait for [`Config::publish_wait`]; a message that has completely arrived does not |
//! | each KiB of a body, and its end | [`Config::body_timeout`] | closed, its room is free; [`Counters::body_timeouts`] |
//! | clients' messages in topics of which no message was finished for a minute | [`Config::unconsumed_percent`] of the store, together, and 7/8 of that in one topic | producers wait for [`Config::publish_wait`], then `E_PUB_FAILED PUB failed no room for what nobody consumes`; other topics are not affected |
//! | messages in a topic without a channel that the application has not named | until others need their room, and at least [`Config::unconsumed_age`] | dropped, the oldest first; [`Counters::expired`], [`Event::Expired`] |
//! | clients' part of the store | all but [`Config::reserve_percent`], which is the application's | as if the store were full |
//! | messages that some client has finished or requeued with a delay, and other channels still need | the store | with [`Full::DropAnswered`] the application's next message drops the oldest: [`Counters::dropped`]; else as if the store were full |
//! | topics, channels | the storage's `TOPICS` and `CHANNELS`, [`Config::channels_per_topic`] | unused ones are evicted, see above; else `E_SUB_FAILED`, `E_PUB_FAILED`, [`NsqdError`] |
//! | a channel that has delivered nothing, and has no client | 60 s, if its topic ever had a message | evicted if others need its room |
//! | clients | the storage's `CLIENTS` | the listener rejects them |
//! | in flight in each channel | the storage's `IN_FLIGHT`; announced as `max_rdy_count` | messages wait; the last entries are for clients with nothing in flight |
//! | the application's messages in flight in a channel, with [`Full::DropAnswered`], while at most [`Config::reserve_percent`] is free | half of that, divided by `CLIENTS` | messages wait; a client with nothing in flight gets one |
//! | requeued, deferred | none of their own: they wait in the store | |
//! | the deferral of a message | `limits.max_req_timeout_ms`, at most 2^32 - 2^16 ms (49.7 days); for the application [`DEFER_MAX`] | DPUB is refused, REQ shortened, as nsqd does; [`ConfigError`], [`PublishError`] |
//! | the work for a message among `n` deferred ones of a channel | one comparison to defer it; amortised O(log `n`) to release or drop it, at most `n` comparisons | |
//! | nsqlookupds asked for channels | 8 | the others are not asked |
//! | the queries for a topic's channels | [`Config::channels_wait`] | the topic flows without the channels of the nsqlookupds that have not answered |
//! | unread answers | about 15 for each client | no command is read from the client until it reads |
//! | a client that sends nothing, not even its magic | two heartbeat intervals, [`Config::heartbeat`]'s until it asks for another | closed |
//! | a client that reads nothing | one heartbeat interval | closed |
//! | a command line, IDENTIFY or AUTH that does not end | two heartbeat intervals | closed |
//! | each text of a client's IDENTIFY | 32 bytes | cut off |
//!
//! All timers belong to the clients' sessions. Without clients there is nothing to deliver, so the
//! nsqd itself has no timer.

// Conversions of `Block` and `Index`, which the feature widens to their targets.
#![cfg_attr(
    feature = "large",
    allow(
        clippy::unnecessary_cast,
        clippy::unnecessary_fallible_conversions,
        clippy::useless_conversion
    )
)]

mod administer;
mod arena;
mod channel_query;
mod client;
mod config;
mod engine;
mod error;
mod event;
mod heap;
mod http;
mod publish;
mod slots;
mod status;
mod storage;
mod table;
#[cfg(test)]
mod tests;

use crate::name::TopicName;
use crate::time::{Instant, Span};
use crate::wire::first;

pub use crate::wire::nsqd::Limits;
pub use channel_query::{ChannelQuery, ChannelQuerySession, Lookupd};
pub use client::ClientSession;
pub use config::{Config, ConfigError, Full, LANES_MAX};
pub use engine::TableFull;
pub use error::{NsqdError, PublishError};
pub use event::{ClientEvent, Event};
pub use http::{HttpConfig, HttpSession, HttpStorage, TooManyLookupds};
pub use publish::{PublishOptions, Ticket};
pub use status::{ArenaStatus, ChannelStatus, ClientState, ClientStatus, Counters, TopicStatus};
pub use storage::{Storage, message_cost};

use arena::Arena;
use client::Client;
use engine::{CLIENT_EVENT, Shared};
use http::Http;
use table::Channel;

/// The number of a block or message in the store, or a count of them.
#[cfg(not(feature = "large"))]
type Block = u16;
#[cfg(feature = "large")]
type Block = u32;

/// The number of a topic, channel or client, or a count of them.
#[cfg(not(feature = "large"))]
type Index = u8;
#[cfg(feature = "large")]
type Index = u16;

/// The longest deferral: one hour, the default of nsqd's `--max-req-timeout`.
pub const DEFER_MAX: Span = Span::from_secs(3600);

/// A small nsqd. See the [module](self).
///
/// RAM: at most 448 bytes, plus the storage, the store and the borrowed configuration.
#[derive(Debug)]
pub struct Nsqd<'a> {
    clients: &'a mut [Client],
    shared: Shared<'a>,
    http: Http<'a>,
    channel_query: Option<&'a mut ChannelQuery>,
}

impl<'a> Nsqd<'a> {
    /// Returns an nsqd without topics and clients.
    ///
    /// Messages lie in `store`, each with [`message_cost`] bytes, until every channel is done with
    /// them. They are lost with the nsqd.
    pub fn new<
        const TOPICS: usize,
        const CHANNELS: usize,
        const CLIENTS: usize,
        const IN_FLIGHT: usize,
    >(
        config: &'a Config<'a>,
        storage: &'a mut Storage<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>,
        store: &'a mut [u8],
    ) -> Result<Self, ConfigError> {
        let Storage { topics, channels, clients, subscriptions, entries } = storage;
        let topics = first(topics, config.max_topics);
        let channels = first(channels, config.max_channels);
        let clients = first(clients, config.max_clients);
        let subscriptions = first(subscriptions, config.max_clients);
        let tables = [topics.len(), channels.len(), clients.len()];
        let layout = config.check(tables, IN_FLIGHT, store.len())?;
        clients.iter_mut().for_each(Client::init);
        let store = Arena::new(store, layout);
        let entries = entries.as_flattened_mut();
        let per_channel = IN_FLIGHT as u16;
        let shared =
            Shared::new(config, store, topics, channels, entries, subscriptions, per_channel);
        Ok(Self { clients, shared, http: Http::none(), channel_query: None })
    }

    /// Returns the number of client connections that there may be at a time.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Returns the session of client connection `index`; `None` from [`clients`](Self::clients) on.
    pub fn client(&mut self, index: usize) -> Option<ClientSession<'_, 'a>> {
        let client = self.clients.get_mut(index)?;
        Some(ClientSession { client, shared: &mut self.shared, id: index as Index })
    }

    /// Sets the Unix time at `now`, in nanoseconds. Until the first call, timestamps of messages
    /// count from the platform's start.
    pub fn set_unix_time(&mut self, now: Instant, nanoseconds: i64) {
        self.shared.epoch = 0;
        let since_start = self.shared.unix(now);
        self.shared.epoch = nanoseconds.saturating_sub(since_start);
    }

    /// Counts the deferred messages that are due as waiting, in all channels. Sessions do this for
    /// their own channel; call it before [`channels`](Self::channels) for channels without clients.
    pub fn tick(&mut self, now: Instant) {
        for channel in 0..self.shared.channels.len() as Index {
            self.shared.release_due(now, channel);
        }
    }

    /// Returns the next event. Call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        let count = core::mem::take(&mut self.shared.expired_pending);
        if count > 0 {
            return Some(Event::Expired { count });
        }
        let count = core::mem::take(&mut self.shared.dropped_pending);
        if count > 0 {
            return Some(Event::Dropped { count });
        }
        for full in [TableFull::Topics, TableFull::Channels, TableFull::ChannelsOfTopic] {
            if self.shared.pending & full.bit() != 0 {
                self.shared.pending &= !full.bit();
                return Some(Event::TableFull(full));
            }
        }
        if let Some(event) =
            self.channel_query.as_mut().and_then(|channel_query| channel_query.poll_event())
        {
            return Some(event);
        }
        if self.shared.pending & CLIENT_EVENT == 0 {
            return None;
        }
        let mut clients = self.clients.iter_mut().enumerate();
        let event = clients
            .find_map(|(index, client)| Some(Event::Client { index, event: client.poll_event()? }));
        if event.is_none() {
            self.shared.pending &= !CLIENT_EVENT;
        }
        event
    }

    /// Returns a number that changes whenever a waiting task should check its condition again: a
    /// session for a message, a producer for room, a registration for topics, the application for
    /// an event.
    pub const fn version(&self) -> u32 {
        self.shared.version
    }

    /// Returns the indices of clients that may be connected.
    #[cfg(feature = "async")]
    pub(crate) fn clients_in_use(&self) -> core::ops::Range<usize> {
        0..self.shared.subscriptions.len()
    }

    /// Returns whether other sessions may have caused work for client `index`: a message, room for
    /// its publishing, an earlier deadline, or its end. A driver checks this when
    /// [`version`](Self::version) changed.
    #[cfg(feature = "async")]
    pub(crate) fn has_work_for(&self, index: usize) -> bool {
        self.clients.get(index).is_some_and(Client::waits_for_room)
            || self.shared.has_work_for(index as Index)
    }

    /// Returns a number that changes whenever a topic or channel is created or deleted. The owner
    /// of a [`Registration`](crate::registration::Registration) then updates it from
    /// [`topics`](Self::topics) and [`channels`](Self::channels).
    pub const fn topology(&self) -> u32 {
        self.shared.topology
    }

    /// Returns the counters since the start.
    pub const fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// Returns how the store is used.
    pub const fn store(&self) -> ArenaStatus {
        let store = &self.shared.store;
        ArenaStatus {
            blocks: store.capacity() as u32,
            free: store.free() as u32,
            promised: store.reserved() as u32,
            announced: self.shared.announced,
        }
    }

    /// Returns the limits for clients: the configured ones, lowered to what the storage allows.
    pub const fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Returns the configuration.
    pub const fn config(&self) -> &'a Config<'a> {
        self.shared.config
    }

    /// Returns the topics, in no particular order.
    pub fn topics(&self) -> impl Iterator<Item = TopicStatus<'_>> {
        self.shared.topics.iter().filter(|topic| topic.is_used()).map(|topic| TopicStatus {
            name: &topic.name,
            paused: topic.paused,
            asking: topic.asking != 0,
            channels: topic.channels,
            depth: topic.held.len.into(),
            messages: topic.messages,
            bytes: topic.bytes,
            dropped: topic.dropped,
        })
    }

    /// Returns a topic's channels, in no particular order; none if there is no such topic.
    pub fn channels(&self, topic: &TopicName) -> impl Iterator<Item = ChannelStatus<'_>> {
        let at = self.shared.find_topic(topic);
        let of_topic = move |channel: &&Channel| Some(channel.topic) == at;
        self.shared.channels.iter().filter(of_topic).filter_map(|channel| {
            let topic = &self.shared.topic(channel.topic)?.name;
            Some(ChannelStatus {
                topic,
                name: &channel.name,
                paused: channel.paused,
                clients: channel.clients.into(),
                depth: channel.depth(),
                in_flight: channel.in_flight.into(),
                deferred: channel.deferred.len.into(),
                messages: channel.messages,
                requeued: channel.requeues,
                timed_out: channel.timeouts,
                dropped: channel.dropped,
            })
        })
    }

    /// Returns the names of all topics, then those of all channels with their topics.
    #[cfg(feature = "async")]
    pub(crate) fn names(
        &self,
    ) -> impl Iterator<Item = (&TopicName, Option<&crate::name::ChannelName>)> {
        let Shared { topics, channels, .. } = &self.shared;
        let used = topics.iter().filter(|topic| topic.is_used());
        used.map(|topic| (&topic.name, None)).chain(channels.iter().filter_map(|channel| {
            let topic = topics.get(usize::from(channel.topic))?;
            Some((&topic.name, Some(&channel.name)))
        }))
    }

    /// Returns the status of client `index`; `None` if it is not connected.
    pub fn status(&self, index: usize) -> Option<ClientStatus<'_>> {
        self.clients.get(index)?.status(&self.shared, index as Index)
    }

    /// Returns the status of all connected clients.
    pub fn statuses(&self) -> impl Iterator<Item = ClientStatus<'_>> {
        (0..self.clients.len()).filter_map(|index| self.status(index))
    }
}
