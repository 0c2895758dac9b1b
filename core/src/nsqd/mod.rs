//! A small nsqd: topics, channels, and clients that publish, subscribe, or both.
//!
//! A [`Nsqd`] takes messages from the application ([`Nsqd::publish`]) and from clients, keeps
//! them in the lent store, and delivers each to every channel of its topic: within a channel to
//! one client, until that finishes it. Standard clients see an nsqd.
//!
//! ```text
//!            accepted                 fatal error, silence, channel deleted
//! Unused ---------------> Up -------------------------------------> Closing
//!    ^                     |  Init --SUB--> Subscribed --CLS--> Closing |
//!    |                     | the client went                            |
//!    +---------------------+-------------------------------- closed ----+
//! ```
//!
//! # The life of a message
//!
//! A topic holds its messages back while it has no channel, or is paused; the first channel gets
//! them all. Then each channel has its own cursor over the topic's list. A message that is
//! delivered takes one of the channel's entries, until FIN, or REQ, or until its time is up, or its
//! client goes: then it waits to be delivered again, at once or when it is due, and its entry is
//! free. It leaves the store when every channel is done with it. So a message that waits, for
//! whatever reason, holds its own blocks and nothing else.
//!
//! What differs from nsqd, on purpose:
//!
//! - A client that goes gives back at once what it had; nsqd waits for the timeout.
//! - Attempts stay at 32,767 instead of wrapping: pynsq reads a signed number.
//! - Requeued and new messages are delivered in turn, and clients that wait get theirs in turn.
//! - A full nsqd lets producers wait for room, then refuses: `E_PUB_FAILED PUB failed no room`.
//!   What can never fit is refused at once with nsqd's words for what is too long, `E_BAD_MESSAGE`
//!   or `E_BAD_BODY`: no repetition cures that, a smaller batch does.
//! - Each KiB of a message has [`Config::body_timeout`] to come; nsqd gives a command two heartbeat
//!   intervals as a whole.
//! - FIN, REQ and TOUCH that come too late are answered as nsqd does (`E_FIN_FAILED FIN ...`):
//!   go-nsq and pynsq log that, and their users learn that their handlers are slow. tokio-nsq gets
//!   the bare code: it gives a server up for good that says more.
//! - Sampling at n percent delivers n percent, not one more.
//! - A new topic waits for its channels also while an nsqlookupd is being connected to for the
//!   first time, and [`Config::channels_wait`] at most; see below.
//!
//! # The channels of a new topic
//!
//! As nsqd does, a [`Nsqd`] asks its nsqlookupds which channels a new topic has elsewhere (`GET
//! /channels?topic=`) and creates those that are not ephemeral, before it delivers any message. So
//! a consumer that finds the server a minute later misses nothing, nor does one after a reset of
//! the device. Meanwhile the topic is held, as if it were paused, and accepts messages.
//! [`Nsqd::asking`] is the session for that; `drive` runs it. Unreachable nsqlookupds are not
//! asked. Those that do not answer are counted and reported ([`Event::AskFailed`]), and channels
//! for which there is no room are counted ([`Counters::channels_left_out`]).
//!
//! ```text
//!          topic made        nsqlookupd known             all asked, or no time left
//! (held) ------------> Waiting ----> Dialing ----> Asking ----> Closing ----> Waiting ----> (flows)
//! ```
//!
//! # Full tables
//!
//! Topics and channels stay as long as there is room for others, as in nsqd. When one needs room
//! that there is not, one that can be spared is given back, with its registrations:
//!
//! - *a topic* that has no messages, and no channel that cannot be spared;
//! - *a channel* that has never delivered anything and has no client: at once if its topic never
//!   had a message, and a client made it; otherwise, and if an nsqlookupd named it, once it had no
//!   client for 60 s.
//!
//! Never given back are a channel that has delivered a message, what the application named (by
//! creating it, or publishing to it), a channel that was named over HTTP, what is paused, and the
//! topics of all these channels. A topic that `/topic/create` named goes after all others, and not
//! for another that is only named. First go those in which no messages wait, of these those that
//! nobody named, of these the one that was not used for longest: made, published to, or left by its
//! last client. Messages that wait in a channel go with it: they are counted
//! ([`Counters::abandoned`]) and told ([`Event::Dropped`]).
//!
//! If nothing can be spared the newcomer is refused, told which table is full, and counted;
//! [`Event::TableFull`] tells the application, once until there was room again. So an application
//! makes its topics when it starts: then it has them, whatever clients do.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | messages | the lent store: [`message_cost`] each | [`Full`]; producers wait for [`Config::publish_wait`] |
//! | a message, a batch | what clients can announce, `limits`; of the application the store | refused before its body, as nsqd does |
//! | what clients have announced and not sent as a whole | [`Config::announced_percent`] of the store, together | they wait for [`Config::publish_wait`]; what is here as a whole does not |
//! | each KiB of a body, and its end | [`Config::body_timeout`] | closed, its room is free; [`Counters::body_timeouts`] |
//! | clients' messages in topics of which nothing was finished for a minute | [`Config::unconsumed_percent`] of the store, together, and 7/8 of that in one topic | producers wait for [`Config::publish_wait`], then `E_PUB_FAILED PUB failed no room for what nobody consumes`; other topics go on |
//! | messages in a topic without a channel, which the application has not named | until others need their room, and at least [`Config::unconsumed_age`] | dropped, the oldest first; [`Counters::expired`], [`Event::Expired`] |
//! | what clients can take of the store | all but [`Config::reserve_percent`], which is the application's | as if it were full |
//! | what some client has finished or sent back for later, and others have not finished | the store | with [`Full::DropAnswered`] the application's next message has the oldest dropped: [`Counters::dropped`]; else as if it were full |
//! | topics, channels | the storage's `TOPICS` and `CHANNELS`, [`Config::channels_per_topic`] | what nobody uses is given back, see above; else `E_SUB_FAILED`, `E_PUB_FAILED`, [`NsqdError`] |
//! | a channel that has delivered nothing, and has no client | 60 s, if its topic ever had a message | given back if others need its room |
//! | clients | the storage's `CLIENTS` | the listener refuses |
//! | in flight, a channel | the storage's `IN_FLIGHT`; announced as `max_rdy_count` | messages wait; the last entries are for clients that have nothing |
//! | the application's messages in flight in a channel, with [`Full::DropAnswered`], while no more than [`Config::reserve_percent`] is free | half of that, divided by `CLIENTS` | messages wait; a client that has nothing in flight gets one |
//! | requeued, deferred | none of their own: they wait in the store | |
//! | nsqlookupds asked for channels | 8 | the others are not asked |
//! | asking | [`Config::channels_wait`] for a topic | the topic flows without the channels of those that have not answered |
//! | unread answers | about 15 a client | nothing more is read from it until it reads |
//! | a client that says nothing, also not its magic | two heartbeat intervals, [`Config::heartbeat`]'s until it asks for another | closed |
//! | a client that takes nothing | one heartbeat interval | closed |
//! | a command line, IDENTIFY or AUTH that does not end | two heartbeat intervals | closed |
//! | what a client says of itself | 32 bytes each | cut off |
//!
//! Timers live in the clients' sessions. With no client there is nothing to deliver, so an nsqd
//! needs none of its own.

mod administer;
mod arena;
mod channel_query;
mod client;
mod config;
mod engine;
mod error;
mod event;
mod http;
mod publish;
mod status;
mod storage;
mod table;
#[cfg(test)]
mod tests;

use crate::name::TopicName;
use crate::time::{Instant, Span};

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
use engine::Shared;
use http::Http;
use table::Channel;

/// The longest deferral, one hour: nsqd's `--max-req-timeout`.
pub const DEFER_MAX: Span = Span::from_secs(3600);

/// A small nsqd. See the [module](self).
///
/// RAM: at most 448 bytes beside storage, store and the borrowed configuration.
#[derive(Debug)]
pub struct Nsqd<'a> {
    clients: &'a mut [Client],
    shared: Shared<'a>,
    http: Http<'a>,
    channel_query: Option<&'a mut ChannelQuery>,
}

impl<'a> Nsqd<'a> {
    /// An nsqd without topics and clients.
    ///
    /// Messages lie in `store` until every channel is done with them; with the nsqd they are gone.
    /// How many it takes is up to [`message_cost`].
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
        let layout = config.check(TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, store.len())?;
        let Storage { topics, channels, clients, subscriptions, entries } = storage;
        clients.iter_mut().for_each(Client::init);
        let store = Arena::new(store, layout);
        let entries = entries.as_flattened_mut();
        let per_channel = IN_FLIGHT as u16;
        let shared =
            Shared::new(config, store, topics, channels, entries, subscriptions, per_channel);
        Ok(Self { clients, shared, http: Http::none(), channel_query: None })
    }

    /// The number of client connections, used or not.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// The session of one connection: for one that was accepted.
    pub fn client(&mut self, index: usize) -> Option<ClientSession<'_, 'a>> {
        let client = self.clients.get_mut(index)?;
        Some(ClientSession { client, shared: &mut self.shared, id: index as u8 })
    }

    /// Says what time it is: Unix time in nanoseconds. Before that, messages' timestamps count
    /// from the platform's start.
    pub fn set_unix_time(&mut self, now: Instant, nanoseconds: i64) {
        self.shared.epoch = 0;
        let since_start = self.shared.unix(now);
        self.shared.epoch = nanoseconds.saturating_sub(since_start);
    }

    /// Moves what was deferred until now to what waits, in all channels: for who looks at
    /// [`channels`](Self::channels) of channels that nobody is subscribed to.
    pub fn tick(&mut self, now: Instant) {
        for channel in 0..self.shared.channels.len() as u8 {
            self.shared.release_due(now, channel);
        }
    }

    /// The next event; call until `None`.
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
            if self.shared.full_pending & full.bit() != 0 {
                self.shared.full_pending &= !full.bit();
                return Some(Event::TableFull(full));
            }
        }
        if let Some(event) =
            self.channel_query.as_mut().and_then(|channel_query| channel_query.poll_event())
        {
            return Some(event);
        }
        self.clients
            .iter_mut()
            .enumerate()
            .find_map(|(index, client)| Some(Event::Client { index, event: client.poll_event()? }))
    }

    /// Changes when somebody who waits may want to look: a session for a message, a producer for
    /// room, a registration for topics.
    pub const fn version(&self) -> u32 {
        self.shared.version
    }

    /// Whether others may have given connection `index` something to do: a message, room for what
    /// it publishes, an earlier deadline, or its end. A driver asks when [`version`](Self::version)
    /// changed.
    #[cfg(feature = "async")]
    pub(crate) fn has_work_for(&self, index: usize) -> bool {
        self.clients.get(index).is_some_and(Client::waits_for_room)
            || self.shared.has_work_for(index as u8)
    }

    /// Changes whenever a topic or channel comes or goes: who has a
    /// [`Registration`](crate::registration::Registration) brings it into agreement with
    /// [`topics`](Self::topics) and [`channels`](Self::channels) then.
    pub const fn topology(&self) -> u32 {
        self.shared.topology
    }

    /// What happened so far.
    pub const fn counters(&self) -> Counters {
        self.shared.counters
    }

    /// The use of the store.
    pub const fn store(&self) -> ArenaStatus {
        let store = &self.shared.store;
        ArenaStatus {
            blocks: store.capacity(),
            free: store.free(),
            promised: store.reserved(),
            announced: self.shared.announced as u16,
        }
    }

    /// The limits as they hold for clients: those configured, less what is larger than the storage.
    pub const fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// The configuration.
    pub const fn config(&self) -> &'a Config<'a> {
        self.shared.config
    }

    /// The topics, in no particular order.
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

    /// A topic's channels, in no particular order; none if there is no such topic.
    pub fn channels(&self, topic: &TopicName) -> impl Iterator<Item = ChannelStatus<'_>> {
        let at = self.shared.find_topic(topic);
        let of_topic = move |channel: &&Channel| Some(channel.topic) == at;
        self.shared.channels.iter().filter(of_topic).filter_map(|channel| {
            let topic = &self.shared.topic(channel.topic)?.name;
            Some(ChannelStatus {
                topic,
                name: &channel.name,
                paused: channel.paused,
                clients: channel.clients,
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

    /// The status of a client; `None` if no client is connected at `index`.
    pub fn status(&self, index: usize) -> Option<ClientStatus<'_>> {
        self.clients.get(index)?.status(&self.shared, index as u8)
    }

    /// All clients that are connected.
    pub fn statuses(&self) -> impl Iterator<Item = ClientStatus<'_>> {
        (0..self.clients.len()).filter_map(|index| self.status(index))
    }
}
