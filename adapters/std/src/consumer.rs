//! A consumer for application programs: it owns its memory and runs in a task of its own.

mod message;
mod role;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, Counters, Exhausted, LOOKUPDS_MAX};
use nanonsq_core::drive::{Gathering, consumer as borrowed};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::time::Span;

use crate::client::{Call, Calls, Client, Handle, wait};
use crate::setting::{Settings, StartError, random, span};
use crate::{CriticalSectionRawMutex, TcpDialer, TokioSleep};

pub use message::Message;

use message::Taken;
use role::{Consuming, Known, Locals, TAKE};

/// Connections to nsqds at a time.
const CONNECTIONS: usize = 16;
/// nsqds found by nsqlookupds that are kept.
const NSQDS: usize = 64;
/// Messages in flight.
const MESSAGES: usize = 1024;

/// Bytes of the read and the write buffer of each connection.
const RX: usize = 4096;
const TX: usize = 1024;

/// Takes the messages of a channel from nsqds, given ones or those that nsqlookupds list.
///
/// It owns its memory and is cheap to clone; each message goes to one of the tasks that wait on
/// clones. Its connections are run by a task that [`start`](ConsumerBuilder::start) spawns on the
/// current tokio runtime. It is also a [`Stream`] of messages.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nanonsq_std::Consumer;
///
/// let consumer = Consumer::builder("readings", "archive").lookupd("127.0.0.1:4161").start()?;
/// while let Some(message) = consumer.next().await {
///     println!("{}", String::from_utf8_lossy(message.body()));
///     let _ = message.finish(); // if it is too late, the message is delivered again
/// }
/// # Ok(())
/// # }
/// ```
///
/// When the last clone is dropped, messages that were not taken are requeued at once, and those that
/// were when they are not answered after 5 s; [`shutdown`](Self::shutdown) waits for that. When the
/// runtime shuts down, the connections end at once, and nsqd delivers what is in flight again after
/// its timeout.
///
/// # Bounds
///
/// | what | bound | when full |
/// |---|---|---|
/// | messages in flight | [`max_in_flight`](ConsumerBuilder::max_in_flight), at most 1,024 | nsqd sends no more |
/// | bytes of messages not answered | [`memory`](ConsumerBuilder::memory), 8 MiB, and the same again for those that were taken | nsqd waits; a longer message is requeued |
/// | connections to nsqds | 16 | more nsqds take turns |
/// | nsqds given, listed, and nsqlookupds | 255, 64 and 8 | [`StartError`]; listed ones: kept for the next lookup |
#[derive(Clone)]
pub struct Consumer {
    handle: Handle<Consuming>,
}

/// The settings of a [`Consumer`].
#[derive(Debug, Clone)]
#[must_use = "`start` starts the consumer"]
pub struct ConsumerBuilder {
    settings: Settings,
    names: Option<(TopicName, ChannelName)>,
    nsqds: Vec<Address>,
    lookupds: Vec<Address>,
    memory: usize,
    client_id: String,
    hostname: String,
    auth_secret: Option<Vec<u8>>,
    max_in_flight: u16,
    max_attempts: u16,
    exhausted: Exhausted,
    msg_timeout: Option<Span>,
    auto_touch: bool,
    requeue_base: Span,
    lookup_interval: Span,
}

impl Consumer {
    /// Begins the settings of a consumer of a channel. Give nsqds, nsqlookupds, or both.
    pub fn builder<T, C>(topic: T, channel: C) -> ConsumerBuilder
    where
        T: TryInto<TopicName, Error: fmt::Display>,
        C: TryInto<ChannelName, Error: fmt::Display>,
    {
        let mut settings = Settings::default();
        let topic = topic.try_into().map_err(|why| settings.wrong(format!("topic: {why}")));
        let channel = channel.try_into().map_err(|why| settings.wrong(format!("channel: {why}")));
        ConsumerBuilder {
            settings,
            names: topic.ok().zip(channel.ok()),
            nsqds: Vec::new(),
            lookupds: Vec::new(),
            memory: 8 << 20,
            client_id: "nanonsq".to_owned(),
            hostname: "nanonsq".to_owned(),
            auth_secret: None,
            max_in_flight: 32,
            max_attempts: 5,
            exhausted: Exhausted::Finish,
            msg_timeout: None,
            auto_touch: false,
            requeue_base: Span::from_secs(90),
            lookup_interval: Span::from_secs(60),
        }
    }

    /// Waits for the next message; `None` when the consumer was shut down. Cancel-safe: if the
    /// future is dropped before it is ready, no message is taken.
    pub async fn next(&self) -> Option<Message> {
        poll_fn(|cx| self.poll_take(cx)).await
    }

    /// Returns the next message, if there is one now.
    pub fn try_next(&self) -> Option<Message> {
        let taken = self.handle.client().with(|state| {
            if state.is_closing() { None } else { state.call(|_| (), TAKE, |it| it.taken.take()) }
        });
        taken.flatten().map(|taken| self.message(taken))
    }

    /// Requests no messages until [`resume`](Self::resume); those in flight are still delivered.
    pub fn pause(&self) {
        self.handle.client().call(|_| (), |locals, _| locals.handle.pause(), |_| ());
    }

    /// Requests messages again.
    pub fn resume(&self) {
        self.handle.client().call(|_| (), |locals, _| locals.handle.resume(), |_| ());
    }

    /// Returns the counters since the start.
    pub fn counters(&self) -> Counters {
        let count: Call<Consuming> =
            |locals, exchange| exchange.counters = locals.handle.counters();
        self.handle.client().call(|_| (), count, |exchange| exchange.counters).unwrap_or_default()
    }

    /// Requeues the messages that were not taken, waits until those that were are answered, at most
    /// `timeout`, requeues the others, and closes the connections, which takes at most 1.5 s more.
    /// All clones get no more messages.
    ///
    /// Dropping the future does not cancel the shutdown.
    pub async fn shutdown(&self, timeout: Duration) {
        // What nsqd has is not undelivered.
        let _ = self.handle.shutdown(timeout).await;
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let taken = self.handle.client().poll_with(cx, |state, cx| {
            if state.is_closing() {
                return Poll::Ready(None);
            }
            let taken = state.call(|_| (), TAKE, |exchange| exchange.taken.take());
            if taken.is_none() {
                wait(&mut state.waits, cx);
                return Poll::Pending;
            }
            Poll::Ready(taken)
        });
        taken.map(|taken| taken.map(|taken| self.message(taken)))
    }

    fn message(&self, (slot, taken): (usize, Taken)) -> Message {
        Message { client: self.handle.client().clone(), slot, taken, answered: false }
    }
}

impl Stream for Consumer {
    type Item = Message;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.poll_take(cx)
    }
}

impl ConsumerBuilder {
    /// Adds an nsqd: `host:port` of its TCP port.
    pub fn nsqd<A>(mut self, nsqd: A) -> Self
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.settings.address("nsqd", nsqd, &mut self.nsqds);
        self
    }

    /// Adds an nsqlookupd, whose nsqds are consumed from: `host:port` of its HTTP port.
    pub fn lookupd<A>(mut self, lookupd: A) -> Self
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.settings.address("nsqlookupd", lookupd, &mut self.lookupds);
        self
    }

    /// Sets the most messages in flight, over all nsqds: 1 to 1,024. Default 32. More than there
    /// are nsqds keeps each of them at work.
    pub fn max_in_flight(mut self, messages: u16) -> Self {
        if messages == 0 || usize::from(messages) > MESSAGES {
            self.settings.wrong(format!("{messages} messages in flight; give 1 to {MESSAGES}"));
        }
        self.max_in_flight = messages;
        self
    }

    /// Sets the bytes for messages that are not answered, also the longest message. Default 8 MiB.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets how often a message is delivered before it is given up; 0 for no limit. Default 5.
    pub fn max_attempts(mut self, attempts: u16) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Sets what happens to a message after that. Default: it is finished and counted.
    pub fn when_exhausted(mut self, exhausted: Exhausted) -> Self {
        self.exhausted = exhausted;
        self
    }

    /// Sets after which time nsqd delivers an unanswered message again, 1 s or more. Default:
    /// nsqd's own `--msg-timeout` (60 s).
    pub fn msg_timeout(mut self, timeout: Duration) -> Self {
        self.msg_timeout = Some(span(timeout));
        self
    }

    /// Touches messages automatically while they are not answered, as long as nsqd allows.
    pub fn auto_touch(mut self, touch: bool) -> Self {
        self.auto_touch = touch;
        self
    }

    /// Sets the delay of a requeued message, times the number of attempts. Default 90 s.
    pub fn requeue_delay(mut self, delay: Duration) -> Self {
        self.requeue_base = span(delay);
        self
    }

    /// Sets the time between lookups. Default 60 s.
    pub fn lookup_interval(mut self, interval: Duration) -> Self {
        self.lookup_interval = span(interval);
        self
    }

    /// Sets the name of this client in nsqadmin. Default `nanonsq`.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = client_id.into();
        self
    }

    /// Sets the name of this host in nsqadmin. Default `nanonsq`.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// Sets the secret for AUTH, sent only to an nsqd that requires it.
    pub fn auth_secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.auth_secret = Some(secret.into());
        self
    }

    /// Starts the consumer, in a task on the current tokio runtime, which must have I/O and time.
    ///
    /// # Errors
    ///
    /// A setting is wrong, neither an nsqd nor an nsqlookupd is given, or there is no runtime.
    pub fn start(mut self) -> Result<Consumer, StartError> {
        if self.nsqds.is_empty() && self.lookupds.is_empty() {
            self.settings.wrong("no source; give an nsqd or an nsqlookupd".to_owned());
        }
        self.settings.check()?;
        Ok(Consumer { handle: Client::start(|calls| self.run(calls))? })
    }

    async fn run(self, calls: Calls<Consuming>) -> Result<Infallible, String> {
        let (topic, channel) = self.names.ok_or("no topic and channel")?;
        let config = Config {
            client_id: &self.client_id,
            hostname: &self.hostname,
            auth_secret: self.auth_secret.as_deref(),
            max_in_flight: self.max_in_flight,
            max_attempts: self.max_attempts,
            exhausted: self.exhausted,
            msg_timeout: self.msg_timeout,
            auto_touch: self.auto_touch,
            requeue_base: self.requeue_base,
            lookup_interval: self.lookup_interval,
            // The shutdown has a timeout of its own.
            drain_timeout: span(Duration::MAX),
            seed: random(),
            ..Config::new(topic, channel)
        };
        let mut ring = vec![0; self.memory];
        let mut resources = tables();
        let (handle, mut runner) = borrowed::new(
            &mut resources,
            &config,
            borrowed::Sources { nsqds: &self.nsqds, lookupds: &self.lookupds },
            &mut ring,
            borrowed::Dialers {
                nsqds: [Gathering::<_, TX>(TcpDialer::new()); CONNECTIONS],
                lookupds: [Gathering(TcpDialer::new()); LOOKUPDS_MAX],
            },
            TokioSleep::new(),
        )
        .map_err(|error| error.to_string())?;
        let locals = Locals {
            handle,
            lookupds: &self.lookupds,
            messages: Vec::new(),
            free: Vec::new(),
            known: vec![Known::default(); CONNECTIONS],
            lookups: vec![String::new(); LOOKUPDS_MAX],
        };
        Ok(calls.serve(locals, async move { runner.run_with::<RX>().await }).await)
    }
}

/// In a function of its own, so that they do not enlarge another stack frame.
#[inline(never)]
fn tables<'a>() -> Box<Tables<'a>> {
    Box::new(Tables::new())
}

type Tables<'a> =
    borrowed::Resources<'a, CriticalSectionRawMutex, CONNECTIONS, MESSAGES, LOOKUPDS_MAX, NSQDS>;

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").finish_non_exhaustive()
    }
}
