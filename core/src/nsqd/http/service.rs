//! The endpoints that are served over HTTP.

#[cfg(feature = "metrics")]
use super::metrics;
use super::options::{Opt, set_lookupds};
use super::publish::{EMPTY, Publish, no_slot};
use super::stats::Stats;
use super::{Client, Settings, Shared, Span};
use crate::http::emit::{emit_i64, emit_text, emit_u64};
#[cfg(feature = "metrics")]
use crate::http::metrics::Progress;
use crate::http::{
    self, Body, Content, End, Method, Piece, Refusal, Request, Route, Service, Status, Value,
};
use crate::name::{ChannelName, TopicName};
use crate::nsqd::Index;
use crate::nsqd::table::Origin;
use crate::time::Instant;
use crate::wire::Write;

/// A request in progress.
#[derive(Debug)]
pub(super) enum Task {
    /// The request is carried out; the answer has no body.
    Done,
    Ping,
    Info,
    Publish(Publish),
    Stats(Stats),
    #[cfg(feature = "metrics")]
    Metrics(Progress),
    /// Writes an option's value; the number is the step of a list to go on with.
    Option(Opt, u8),
    SetLookupds,
}

#[derive(Debug, Clone, Copy)]
enum Endpoint {
    Ping,
    Info,
    Pub,
    Mpub,
    Stats,
    #[cfg(feature = "metrics")]
    Metrics,
    GetOption,
    PutOption,
    CreateTopic,
    DeleteTopic,
    EmptyTopic,
    PauseTopic(bool),
    CreateChannel,
    DeleteChannel,
    EmptyChannel,
    PauseChannel(bool),
}

const CONFIG: &str = "/config/";

const ROUTES: &[Route<Endpoint>] = &[
    get("/ping", Endpoint::Ping),
    get("/info", Endpoint::Info),
    post("/pub", Endpoint::Pub),
    post("/mpub", Endpoint::Mpub),
    get("/stats", Endpoint::Stats),
    #[cfg(feature = "metrics")]
    get("/metrics", Endpoint::Metrics),
    post("/topic/create", Endpoint::CreateTopic),
    post("/topic/delete", Endpoint::DeleteTopic),
    post("/topic/empty", Endpoint::EmptyTopic),
    post("/topic/pause", Endpoint::PauseTopic(true)),
    post("/topic/unpause", Endpoint::PauseTopic(false)),
    post("/channel/create", Endpoint::CreateChannel),
    post("/channel/delete", Endpoint::DeleteChannel),
    post("/channel/empty", Endpoint::EmptyChannel),
    post("/channel/pause", Endpoint::PauseChannel(true)),
    post("/channel/unpause", Endpoint::PauseChannel(false)),
    get(CONFIG, Endpoint::GetOption),
    Route { method: Method::Put, path: CONFIG, to: Endpoint::PutOption },
];

const fn get(path: &'static str, to: Endpoint) -> Route<Endpoint> {
    Route { method: Method::Get, path, to }
}

const fn post(path: &'static str, to: Endpoint) -> Route<Endpoint> {
    Route { method: Method::Post, path, to }
}

/// The state that requests read and change.
#[derive(Debug)]
pub(super) struct RequestContext<'s, 'a> {
    pub(super) clients: &'s [Client],
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) settings: &'s mut Settings<'a>,
}

const NO_TOPIC: Refusal = Refusal::not_found("TOPIC_NOT_FOUND");

/// The refusal of an empty value, as in nsqd.
const NO_VALUE: Refusal = Refusal::new(Status::ContentTooLarge, "INVALID_VALUE");

impl RequestContext<'_, '_> {
    /// Creates, deletes, empties and pauses topics and channels.
    fn administer(
        &mut self,
        now: Instant,
        to: Endpoint,
        request: &Request<'_>,
    ) -> Result<Task, Refusal> {
        let given = topic_param(request)?;
        let topic = given.topic();
        let found = topic.ok().and_then(|topic| self.shared.find_topic(&topic));
        match to {
            Endpoint::CreateTopic => {
                let topic = topic.map_err(|_| Refusal::bad_request("INVALID_TOPIC"))?;
                self.shared.topic_for(now, &topic, Origin::Http).map_err(no_slot)?;
            }
            Endpoint::DeleteTopic => self.shared.delete_topic(found.ok_or(NO_TOPIC)?),
            Endpoint::EmptyTopic => {
                topic.map_err(|_| Refusal::bad_request("INVALID_TOPIC"))?;
                self.shared.empty_topic(found.ok_or(NO_TOPIC)?);
            }
            Endpoint::PauseTopic(paused) => {
                self.shared.pause_topic(now, found.ok_or(NO_TOPIC)?, paused);
            }
            Endpoint::CreateChannel
            | Endpoint::DeleteChannel
            | Endpoint::EmptyChannel
            | Endpoint::PauseChannel(_)
            | Endpoint::Ping
            | Endpoint::Info
            | Endpoint::Pub
            | Endpoint::Mpub
            | Endpoint::Stats
            | Endpoint::GetOption
            | Endpoint::PutOption => {
                topic.map_err(|_| Refusal::bad_request("INVALID_ARG_TOPIC"))?;
                let channel = channel_param(request)?;
                self.change_channel(now, to, found.ok_or(NO_TOPIC)?, &channel)?;
            }
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => {}
        }
        Ok(Task::Done)
    }

    fn change_channel(
        &mut self,
        now: Instant,
        to: Endpoint,
        topic: Index,
        channel: &ChannelName,
    ) -> Result<(), Refusal> {
        if matches!(to, Endpoint::CreateChannel) {
            let made = self.shared.channel_for(now, topic, channel, Origin::Http);
            return made.map(|_| ()).map_err(no_slot);
        }
        let found = self.shared.find_channel(topic, channel);
        let at = found.ok_or(Refusal::not_found("CHANNEL_NOT_FOUND"))?;
        match to {
            Endpoint::DeleteChannel => self.shared.delete_channel(at),
            Endpoint::EmptyChannel => self.shared.empty_channel(at),
            Endpoint::PauseChannel(paused) => self.shared.pause_channel(at, paused),
            Endpoint::CreateChannel
            | Endpoint::CreateTopic
            | Endpoint::DeleteTopic
            | Endpoint::EmptyTopic
            | Endpoint::PauseTopic(_)
            | Endpoint::Ping
            | Endpoint::Info
            | Endpoint::Pub
            | Endpoint::Mpub
            | Endpoint::Stats
            | Endpoint::GetOption
            | Endpoint::PutOption => {}
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => {}
        }
        Ok(())
    }

    fn publish(&mut self, now: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        let limits = self.shared.limits;
        if request.body_len() == Some(0) {
            return Err(EMPTY);
        }
        let topic = self.topic_to_publish(now, request)?;
        let defer = request.param("defer").map(|defer| {
            let defer = defer.number().filter(|ms| *ms <= limits.max_req_timeout_ms);
            defer.ok_or(Refusal::bad_request("INVALID_DEFER"))
        });
        let defer_ms = defer.transpose()?.unwrap_or(0);
        Ok(Task::Publish(Publish::one(topic, defer_ms, request.body_len())))
    }

    fn publish_many(&mut self, now: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        let topic = self.topic_to_publish(now, request)?;
        Ok(Task::Publish(if is_binary(request) {
            Publish::binary(topic, request.body_len())
        } else {
            Publish::lines(topic)
        }))
    }

    fn topic_to_publish(
        &mut self,
        now: Instant,
        request: &Request<'_>,
    ) -> Result<TopicName, Refusal> {
        let given = topic_param(request)?;
        let topic = given.topic().map_err(|_| Refusal::bad_request("INVALID_TOPIC"))?;
        // Refuse the request before its body is read.
        self.shared.has_slot_for(now, &topic, Origin::Client).map_err(no_slot)?;
        Ok(topic)
    }

    /// Messages that became due count in the depth, no longer as deferred.
    fn release_due(&mut self, now: Instant) {
        for channel in 0..self.shared.channels.len() as Index {
            self.shared.release_due(now, channel);
        }
    }

    fn option(&self, request: &Request<'_>) -> Result<Opt, Refusal> {
        let name = request.name_after(CONFIG);
        name.and_then(Opt::find).ok_or(Refusal::bad_request("INVALID_OPTION"))
    }

    fn put_option(&self, request: &Request<'_>) -> Result<Task, Refusal> {
        if request.body_len() == Some(0) {
            return Err(NO_VALUE);
        }
        if self.option(request) != Ok(Opt::Lookupds) {
            return Err(Refusal::bad_request("INVALID_OPTION"));
        }
        Ok(Task::SetLookupds)
    }

    fn write_info(&self, piece: &mut Piece<'_>) -> bool {
        let config = self.settings.config;
        let limits = &self.shared.limits;
        piece.put(|w| {
            w.write_all(b"{\"version\":")?;
            emit_text(w, self.shared.config.version)?;
            w.write_all(b",\"broadcast_address\":")?;
            emit_text(w, config.broadcast_address)?;
            w.write_all(b",\"hostname\":")?;
            emit_text(w, config.hostname)?;
            for (key, number) in [
                (",\"http_port\":", u64::from(config.http_port)),
                (",\"tcp_port\":", config.tcp_port.into()),
            ] {
                w.write_all(key.as_bytes())?;
                emit_u64(w, number)?;
            }
            w.write_all(b",\"start_time\":")?;
            emit_i64(w, start_time(self.shared))?;
            let nanos = |ms: u32| u64::from(ms).saturating_mul(1_000_000);
            for (key, number) in [
                (",\"max_heartbeat_interval\":", nanos(limits.max_heartbeat_interval_ms)),
                (",\"max_output_buffer_size\":", limits.max_output_buffer_size.into()),
                (",\"max_output_buffer_timeout\":", nanos(limits.max_output_buffer_timeout_ms)),
                // nsqd's default; deflate is not supported here.
                (",\"max_deflate_level\":", 6),
            ] {
                w.write_all(key.as_bytes())?;
                emit_u64(w, number)?;
            }
            w.write_all(b"}")
        })
    }
}

/// Returns the Unix time of the platform's start, in seconds.
pub(super) fn start_time(shared: &Shared<'_>) -> i64 {
    shared.unix(Instant::ZERO).div_euclid(1_000_000_000)
}

fn topic_param<'r>(request: &Request<'r>) -> Result<Value<'r>, Refusal> {
    request.check_query().map_err(|_| Refusal::bad_request("INVALID_REQUEST"))?;
    request.param("topic").ok_or(Refusal::bad_request("MISSING_ARG_TOPIC"))
}

/// Returns whether the body is in MPUB's format. As in nsqd, every value but `false` and `0` means
/// true.
fn is_binary(request: &Request<'_>) -> bool {
    request.param("binary").is_some_and(|value| !value.is("false") && !value.is("0"))
}

fn channel_param(request: &Request<'_>) -> Result<ChannelName, Refusal> {
    let channel = request.param("channel").ok_or(Refusal::bad_request("MISSING_ARG_CHANNEL"))?;
    channel.channel().map_err(|_| Refusal::bad_request("INVALID_ARG_CHANNEL"))
}

impl Service for RequestContext<'_, '_> {
    type Task = Task;

    const PARAMS: &'static [&'static str] =
        &["topic", "channel", "defer", "binary", "format", "include_clients"];

    fn config(&self) -> &http::Config {
        &self.settings.config.times
    }

    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal> {
        let limits = &self.shared.limits;
        Ok(match http::find(ROUTES, request)? {
            Endpoint::Pub => Body::Pieces(limits.max_msg_size, "MSG_TOO_BIG"),
            Endpoint::Mpub if is_binary(request) => {
                Body::Pieces(limits.max_body_size, "BODY_TOO_BIG")
            }
            Endpoint::Mpub => Body::Lines(limits.max_body_size, "MSG_TOO_BIG"),
            Endpoint::PutOption => Body::Whole("INVALID_VALUE"),
            Endpoint::Ping
            | Endpoint::Info
            | Endpoint::Stats
            | Endpoint::GetOption
            | Endpoint::CreateTopic
            | Endpoint::DeleteTopic
            | Endpoint::EmptyTopic
            | Endpoint::PauseTopic(_)
            | Endpoint::CreateChannel
            | Endpoint::DeleteChannel
            | Endpoint::EmptyChannel
            | Endpoint::PauseChannel(_) => Body::Ignore,
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => Body::Ignore,
        })
    }

    fn begin(&mut self, now: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        let to = http::find(ROUTES, request)?;
        Ok(match to {
            Endpoint::Ping => Task::Ping,
            Endpoint::Info => Task::Info,
            Endpoint::Pub => self.publish(now, request)?,
            Endpoint::Mpub => self.publish_many(now, request)?,
            Endpoint::PutOption => self.put_option(request)?,
            Endpoint::Stats => {
                self.release_due(now);
                Task::Stats(Stats::new(request)?)
            }
            #[cfg(feature = "metrics")]
            Endpoint::Metrics => {
                self.release_due(now);
                Task::Metrics(Progress::NEW)
            }
            Endpoint::GetOption => Task::Option(self.option(request)?, 0),
            Endpoint::CreateTopic
            | Endpoint::DeleteTopic
            | Endpoint::EmptyTopic
            | Endpoint::PauseTopic(_)
            | Endpoint::CreateChannel
            | Endpoint::DeleteChannel
            | Endpoint::EmptyChannel
            | Endpoint::PauseChannel(_) => self.administer(now, to, request)?,
        })
    }

    fn body(&mut self, now: Instant, task: &mut Task, bytes: &[u8]) -> Result<usize, Refusal> {
        match task {
            Task::Publish(publish) => publish.take(now, self.shared, bytes),
            Task::SetLookupds => set_lookupds(self.settings, bytes).map(|()| {
                // Wake the task that registers the nsqd.
                self.shared.changed();
                *task = Task::Option(Opt::Lookupds, 0);
                bytes.len()
            }),
            Task::Done | Task::Ping | Task::Info | Task::Stats(_) | Task::Option(..) => {
                Ok(bytes.len())
            }
            #[cfg(feature = "metrics")]
            Task::Metrics(_) => Ok(bytes.len()),
        }
    }

    fn patience(&self) -> Span {
        self.shared.config.publish_wait
    }

    fn answer(&mut self, now: Instant, task: &mut Task) -> Result<Content, Refusal> {
        Ok(match task {
            Task::Done => Content::Nothing,
            Task::Ping => Content::Plain,
            Task::Info => Content::Json,
            Task::Publish(publish) => {
                publish.commit(now, self.shared)?;
                Content::Text
            }
            Task::Stats(stats) => stats.content(),
            #[cfg(feature = "metrics")]
            Task::Metrics(_) => Content::Plain,
            Task::Option(option, _) => option.content(),
            // The body was empty.
            Task::SetLookupds => return Err(NO_VALUE),
        })
    }

    fn write(&mut self, now: Instant, task: &mut Task, piece: &mut Piece<'_>) -> bool {
        match task {
            Task::Ping | Task::Publish(_) => piece.put(|w| w.write_all(b"OK")),
            Task::Info => self.write_info(piece),
            Task::Stats(stats) => stats.write(now, self.clients, self.shared, piece),
            #[cfg(feature = "metrics")]
            Task::Metrics(progress) => metrics::write(progress, self.clients, self.shared, piece),
            Task::Option(option, at) => option.write(self.shared, self.settings, at, piece),
            Task::Done | Task::SetLookupds => true,
        }
    }

    fn end(&mut self, _: Instant, task: Option<&mut Task>, _: End) {
        if let Some(Task::Publish(publish)) = task {
            publish.discard(self.shared);
        }
    }
}
