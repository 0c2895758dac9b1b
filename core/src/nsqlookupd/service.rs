//! The HTTP endpoints.

use super::listing::{Step, Task, View};
use super::producer::Producer;
use super::table::{Maker, numbered};
use super::{Shared, TableFull};
use crate::http::{
    self, Body, Connection, Content, End, Method, Piece, Refusal, Request, Route, Service, Status,
    Value,
};
use crate::name::{ChannelName, TopicName};
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::Instant;
use crate::wire::Decimal;

/// The session of a connection to the HTTP port.
///
/// Made for each call by [`Nsqlookupd::http`](super::Nsqlookupd::http); the state is in the
/// nsqlookupd.
#[derive(Debug)]
pub struct HttpSession<'s, 'a> {
    pub(super) connection: &'s mut Connection<Task>,
    pub(super) producers: &'s mut [Producer],
    pub(super) shared: &'s mut Shared<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Endpoint {
    Ping,
    Info,
    Lookup,
    Topics,
    Channels,
    Nodes,
    Debug,
    #[cfg(feature = "metrics")]
    Metrics,
    CreateTopic,
    DeleteTopic,
    CreateChannel,
    DeleteChannel,
    Tombstone,
}

const ROUTES: &[Route<Endpoint>] = &[
    get("/ping", Endpoint::Ping),
    get("/info", Endpoint::Info),
    get("/lookup", Endpoint::Lookup),
    get("/topics", Endpoint::Topics),
    get("/channels", Endpoint::Channels),
    get("/nodes", Endpoint::Nodes),
    get("/debug", Endpoint::Debug),
    #[cfg(feature = "metrics")]
    get("/metrics", Endpoint::Metrics),
    post("/topic/create", Endpoint::CreateTopic),
    post("/topic/delete", Endpoint::DeleteTopic),
    post("/channel/create", Endpoint::CreateChannel),
    post("/channel/delete", Endpoint::DeleteChannel),
    post("/topic/tombstone", Endpoint::Tombstone),
];

const fn get(path: &'static str, to: Endpoint) -> Route<Endpoint> {
    Route { method: Method::Get, path, to }
}

const fn post(path: &'static str, to: Endpoint) -> Route<Endpoint> {
    Route { method: Method::Post, path, to }
}

/// The state that requests read and change.
struct RequestContext<'s, 'a> {
    producers: &'s [Producer],
    shared: &'s mut Shared<'a>,
}

impl RequestContext<'_, '_> {
    fn view(&self, now: Instant) -> View<'_, '_> {
        View { producers: self.producers, shared: self.shared, now }
    }

    /// Records that a table is full and returns the refusal.
    fn full(&mut self, full: TableFull) -> Refusal {
        self.shared.reject_full(full);
        Refusal::new(
            Status::Unavailable,
            match full {
                TableFull::Topics | TableFull::Share => "TOO_MANY_TOPICS",
                TableFull::Channels => "TOO_MANY_CHANNELS",
                TableFull::Tombstones => "TOO_MANY_TOMBSTONES",
            },
        )
    }

    /// Carries out a request and returns the answer to write.
    fn handle(
        &mut self,
        now: Instant,
        to: Endpoint,
        request: &Request<'_>,
    ) -> Result<Task, Refusal> {
        let timeout = self.shared.config.empty_timeout;
        self.shared.tables.collect(now, timeout);
        let step = match to {
            Endpoint::Ping => return Ok(Task::new(Step::Ping)),
            Endpoint::Info => return Ok(Task::new(Step::Info)),
            Endpoint::Topics => return Ok(Task::new(Step::Topics)),
            Endpoint::Nodes => return Ok(Task::new(Step::Nodes)),
            Endpoint::Debug => return Ok(Task::new(Step::Debug)),
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => return Ok(Task::new(Step::Metrics)),
            Endpoint::Lookup => Step::Lookup,
            Endpoint::Channels => Step::Channels,
            Endpoint::CreateTopic
            | Endpoint::DeleteTopic
            | Endpoint::CreateChannel
            | Endpoint::DeleteChannel
            | Endpoint::Tombstone => Step::Nothing,
        };
        request.check_query().map_err(|_| Refusal::bad_request("INVALID_REQUEST"))?;
        let given = request.param("topic").ok_or(Refusal::bad_request("MISSING_ARG_TOPIC"))?;
        let topic = given.topic();
        // An invalid name is not found. Only requests that create a topic are refused as invalid.
        let found = topic.ok().and_then(|topic| self.shared.tables.topic(&topic));
        match to {
            Endpoint::Lookup if found.is_none() => {
                return Err(Refusal::not_found("TOPIC_NOT_FOUND"));
            }
            Endpoint::Lookup | Endpoint::Channels => {
                if let Some(topic) = found {
                    self.shared.tables.touch(now, topic);
                }
            }
            Endpoint::Ping
            | Endpoint::Info
            | Endpoint::Topics
            | Endpoint::Nodes
            | Endpoint::Debug => {}
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => {}
            Endpoint::DeleteTopic => {
                if let Some(topic) = found {
                    self.shared.tables.remove_topic(topic);
                }
            }
            Endpoint::Tombstone => {
                let node = request.param("node").ok_or(Refusal::bad_request("MISSING_ARG_NODE"))?;
                self.add_tombstones(now, found, node)?;
            }
            Endpoint::CreateTopic => {
                let topic = topic.map_err(|_| Refusal::bad_request("INVALID_ARG_TOPIC"))?;
                let maker = Maker::Administrator;
                let made = self.shared.tables.add(now, timeout, &topic, None, maker);
                made.map_err(|full| self.full(full))?;
            }
            Endpoint::CreateChannel => {
                let (topic, channel) = names(topic.ok(), request)?;
                let maker = Maker::Administrator;
                let made = self.shared.tables.add(now, timeout, &topic, Some(&channel), maker);
                made.map_err(|full| self.full(full))?;
            }
            Endpoint::DeleteChannel => {
                let (_, channel) = names(topic.ok(), request)?;
                let tables = &mut self.shared.tables;
                let channel = found.and_then(|topic| tables.channel(topic, &channel));
                tables.remove_channel(channel.ok_or(Refusal::not_found("CHANNEL_NOT_FOUND"))?);
            }
        }
        Ok(Task::about(step, found, &self.view(now)))
    }

    /// Tombstones the producers of a topic whose address and HTTP port are `node`.
    fn add_tombstones(
        &mut self,
        now: Instant,
        topic: Option<usize>,
        node: Value<'_>,
    ) -> Result<(), Refusal> {
        let Some(topic) = topic else { return Ok(()) };
        let lifetime = self.shared.config.tombstone_lifetime;
        let is_meant = |producer: &Producer| {
            producer.node().is_some_and(|(is, _)| {
                let port = Decimal::unsigned(is.http_port.into());
                let name = is.broadcast_address.bytes().chain([b':']);
                name.chain(port.as_bytes().iter().copied()).eq(node.bytes().iter().copied())
            })
        };
        let producers = numbered(self.producers, 0);
        let meant = producers.filter(|(_, producer)| is_meant(producer)).map(|(at, _)| at);
        let added = self.shared.tables.add_tombstones(now, lifetime, topic, meant);
        added.map_err(|full| self.full(full))
    }
}

/// Parses the topic and the channel of a request.
fn names(
    topic: Option<TopicName>,
    request: &Request<'_>,
) -> Result<(TopicName, ChannelName), Refusal> {
    let topic = topic.ok_or(Refusal::bad_request("INVALID_ARG_TOPIC"))?;
    let channel = request.param("channel").ok_or(Refusal::bad_request("MISSING_ARG_CHANNEL"))?;
    let channel = channel.channel().map_err(|_| Refusal::bad_request("INVALID_ARG_CHANNEL"))?;
    Ok((topic, channel))
}

impl Service for RequestContext<'_, '_> {
    type Task = Task;

    const PARAMS: &'static [&'static str] = &["topic", "channel", "node"];

    fn config(&self) -> &http::Config {
        &self.shared.config.http
    }

    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal> {
        http::find(ROUTES, request).map(|_| Body::Ignore)
    }

    fn begin(&mut self, now: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        let to = http::find(ROUTES, request)?;
        self.handle(now, to, request)
    }

    fn answer(&mut self, _: Instant, task: &mut Task) -> Result<Content, Refusal> {
        Ok(task.content())
    }

    fn write(&mut self, now: Instant, task: &mut Task, piece: &mut Piece<'_>) -> bool {
        task.write(&self.view(now), piece)
    }

    fn end(&mut self, _: Instant, _: Option<&mut Task>, how: End) {
        let counters = &mut self.shared.counters;
        let count = match how {
            End::Answered => &mut counters.requests,
            End::Refused(_) => &mut counters.requests_refused,
            End::Lost => &mut counters.requests_lost,
        };
        *count = count.saturating_add(1);
    }
}

impl<'a> HttpSession<'_, 'a> {
    fn parts(&mut self) -> (&mut Connection<Task>, RequestContext<'_, 'a>) {
        (self.connection, RequestContext { producers: self.producers, shared: self.shared })
    }
}

impl Session for HttpSession<'_, '_> {
    fn link(&self) -> Link {
        self.connection.link()
    }

    fn open(&mut self, now: Instant) {
        let (connection, mut context) = self.parts();
        connection.open(now, &mut context);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if self.take(now, bytes) < bytes.len() {
            // Only a driver that offers the rest again can hold a client.
            let (connection, mut context) = self.parts();
            connection.abort(now, &mut context);
            return Err(Fault::TimedOut(Awaited::Drain));
        }
        Ok(())
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let (connection, mut context) = self.parts();
        connection.take(now, bytes, &mut context)
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        let mut context = RequestContext { producers: self.producers, shared: self.shared };
        self.connection.transmit(now, &mut context)
    }

    fn sent(&mut self, now: Instant, n: usize) {
        let (connection, mut context) = self.parts();
        connection.sent(now, n, &mut context);
    }

    fn deadline(&self) -> Instant {
        self.connection.deadline()
    }

    fn evictable(&self) -> Instant {
        self.connection.evictable()
    }

    fn tick(&mut self, now: Instant) {
        let (connection, mut context) = self.parts();
        connection.tick(now, &mut context);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let (connection, mut context) = self.parts();
        connection.closed(now, why, &mut context);
    }
}
