//! A publisher for application programs: it owns its memory and runs in a task of its own.

mod receipt;
mod role;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nanonsq_core::address::Address;
use nanonsq_core::drive::publisher as borrowed;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Counters, Full, PublishError as Refusal, RING_MAX, Ticket};
use nanonsq_core::time::Span;

use crate::client::{Calls, Client, Handle, Undelivered, wait};
use crate::role::Peer;
use crate::setting::{Settings, StartError, random, span};
use crate::{CriticalSectionRawMutex, TcpDialer, TokioSleep};

pub use receipt::{NotAcknowledged, PublishError, Receipt};

use role::{COUNT, Exchange, Locals, OFFER, Publishing, TRY};

/// Publishes messages to an nsqd, and to others if it fails.
///
/// It owns its memory, is cheap to clone, and can be used from any task and thread. Its connection
/// is run by a task that [`start`](PublisherBuilder::start) spawns on the current tokio runtime.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nanonsq_std::Publisher;
///
/// let nsq = Publisher::builder("127.0.0.1:4150").start()?;
/// nsq.publish("readings", b"21.5").await?.acknowledged().await?;
/// # Ok(())
/// # }
/// ```
///
/// Messages wait in the outbox until nsqd has acknowledged them, connected or not, and are sent
/// again after a lost connection. When the last clone is dropped, the task goes on until they are
/// delivered, for at most 5 s, and logs how many were not; [`shutdown`](Self::shutdown) returns
/// that. When the runtime shuts down, the task ends at once.
///
/// # Bounds
///
/// | what | bound | when full |
/// |---|---|---|
/// | the outbox | [`outbox`](PublisherBuilder::outbox), 1 MiB | `publish` waits, `try_publish` returns an error, or the oldest messages are dropped: [`when_full`](PublisherBuilder::when_full) |
/// | nsqds | 255 | [`StartError`] |
/// | tasks that wait | none | they wait for room in the order in which they came |
/// | remembered failures | 4 ranges of messages | a receipt returns [`NotAcknowledged::Forgotten`] |
#[derive(Clone)]
pub struct Publisher {
    handle: Handle<Publishing>,
    /// Those that wait for room, in turn.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The settings of a [`Publisher`].
#[derive(Debug, Clone)]
#[must_use = "`start` starts the publisher"]
pub struct PublisherBuilder {
    settings: Settings,
    nsqds: Vec<Address>,
    outbox: usize,
    client_id: String,
    hostname: String,
    auth_secret: Option<Vec<u8>>,
    full: Full,
    heartbeat: Span,
    reply_timeout: Span,
}

/// How to publish one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// How long nsqd holds the message back: at most one hour.
    pub defer: Option<Duration>,
    /// Give the message up if nsqd has not acknowledged it after this time, or up to 131 ms later.
    /// It is final only when all earlier messages are.
    pub expire: Option<Duration>,
}

impl Publisher {
    /// Begins the settings of a publisher to the nsqd at `nsqd`: `host:port` of its TCP port.
    pub fn builder<A>(nsqd: A) -> PublisherBuilder
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        let builder = PublisherBuilder {
            settings: Settings::default(),
            nsqds: Vec::new(),
            outbox: 1 << 20,
            client_id: "nanonsq".to_owned(),
            hostname: "nanonsq".to_owned(),
            auth_secret: None,
            full: Full::Refuse,
            heartbeat: Span::from_secs(30),
            reply_timeout: Span::from_secs(10),
        };
        builder.nsqd(nsqd)
    }

    /// Puts a message into the outbox; waits while that is full.
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the message is not accepted. Those
    /// that wait get room in the order in which they began to, so a future that waits and is not
    /// polled any more keeps the others waiting: drop it.
    ///
    /// # Errors
    ///
    /// The topic is not a name, the message is empty or never fits, or the publisher was shut down.
    pub async fn publish<T>(
        &self,
        topic: T,
        body: impl AsRef<[u8]>,
    ) -> Result<Receipt, PublishError>
    where
        T: TryInto<TopicName, Error: Into<PublishError>>,
    {
        self.publish_with(topic, body, Options::default()).await
    }

    /// As [`publish`](Self::publish), with a deferral or an expiry.
    pub async fn publish_with<T>(
        &self,
        topic: T,
        body: impl AsRef<[u8]>,
        options: Options,
    ) -> Result<Receipt, PublishError>
    where
        T: TryInto<TopicName, Error: Into<PublishError>>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.as_ref();
        let _turn = self.turn.lock().await;
        let accepted = poll_fn(|cx| {
            self.handle.client().poll_with(cx, |state, cx| {
                if state.is_closing() {
                    return Poll::Ready(Err(Refusal::Stopped));
                }
                let fill = |exchange: &mut Exchange| exchange.fill(topic, body, options);
                match state.call(fill, OFFER, |exchange| exchange.accepted.take()) {
                    Some(taken) => Poll::Ready(taken),
                    None => {
                        state.waits.room = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await;
        self.receipt(accepted)
    }

    /// Puts a message into the outbox now, or returns an error; [`Full`](Refusal::Full) also to a
    /// logger for what this crate logs under the publisher's lock, at level trace.
    pub fn try_publish<T>(
        &self,
        topic: T,
        body: impl AsRef<[u8]>,
        options: Options,
    ) -> Result<Receipt, PublishError>
    where
        T: TryInto<TopicName, Error: Into<PublishError>>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.as_ref();
        let taken = self.handle.client().with(|state| {
            if state.is_closing() {
                return Some(Err(Refusal::Stopped));
            }
            let fill = |exchange: &mut Exchange| exchange.fill(topic, body, options);
            state.call(fill, TRY, |exchange| exchange.accepted.take())
        });
        self.receipt(taken.flatten().unwrap_or(Err(Refusal::Full)))
    }

    /// Waits until no message is pending, or the publisher has ended. Cancel-safe.
    pub async fn flush(&self) {
        poll_fn(|cx| {
            self.handle.client().poll_with(cx, |state, cx| {
                let left = state.call(|_| (), COUNT, |exchange| exchange.counters.pending);
                if left == 0 || state.is_ended() {
                    return Poll::Ready(());
                }
                wait(&mut state.waits.flushed, cx);
                Poll::Pending
            })
        })
        .await;
    }

    /// Returns the counters since the start.
    pub fn counters(&self) -> Counters {
        let counters = self.handle.client().call(|_| (), COUNT, |exchange| exchange.counters);
        counters.unwrap_or_default()
    }

    /// Accepts no more messages from any clone, waits until those in the outbox are delivered, at
    /// most `timeout`, and closes the connection, which takes at most a second more.
    ///
    /// Dropping the future does not cancel the shutdown.
    ///
    /// # Errors
    ///
    /// How many messages were not delivered, and why the connection was lost or did not come up.
    pub async fn shutdown(&self, timeout: Duration) -> Result<(), Undelivered> {
        self.handle.shutdown(timeout).await
    }

    fn receipt(&self, accepted: Result<Ticket, Refusal>) -> Result<Receipt, PublishError> {
        let ticket = accepted.map_err(PublishError::Refused)?;
        Ok(Receipt { client: self.handle.client().clone(), ticket, waits: false })
    }
}

impl PublisherBuilder {
    /// Adds an nsqd to fail over to: `host:port`.
    pub fn nsqd<A>(mut self, nsqd: A) -> Self
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.settings.address("nsqd", nsqd, &mut self.nsqds);
        self
    }

    /// Sets the size of the outbox in bytes: 4 for each message, its body, and 16 and the topic for
    /// each change of topic. Default 1 MiB; at most 2 GiB.
    pub fn outbox(mut self, bytes: usize) -> Self {
        if bytes > RING_MAX {
            self.settings.wrong(format!("an outbox of {bytes} bytes; at most {RING_MAX}"));
        }
        self.outbox = bytes;
        self
    }

    /// Sets what to do with a message for which there is no room. Default: wait, or refuse it.
    pub fn when_full(mut self, full: Full) -> Self {
        self.full = full;
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

    /// Sets how often nsqd sends a heartbeat, 1 s to 60 s; after two intervals of silence the
    /// connection counts as lost. Default 30 s.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = span(interval);
        self
    }

    /// Sets how long nsqd may take to answer before the connection counts as lost. Default 10 s.
    pub fn reply_timeout(mut self, timeout: Duration) -> Self {
        self.reply_timeout = span(timeout);
        self
    }

    /// Starts the publisher, in a task on the current tokio runtime, which must have I/O and time.
    /// The connection is made meanwhile: messages are accepted at once.
    ///
    /// # Errors
    ///
    /// A setting is wrong, or there is no runtime.
    pub fn start(self) -> Result<Publisher, StartError> {
        self.settings.check()?;
        let handle = Client::start(|calls| self.run(calls))?;
        Ok(Publisher { handle, turn: Arc::default() })
    }

    async fn run(self, calls: Calls<Publishing>) -> Result<Infallible, String> {
        let config = Config {
            client_id: &self.client_id,
            hostname: &self.hostname,
            auth_secret: self.auth_secret.as_deref(),
            heartbeat: self.heartbeat,
            reply_timeout: self.reply_timeout,
            full: self.full,
            seed: random(),
            ..Config::new()
        };
        let mut outbox = vec![0; self.outbox];
        let sleep = TokioSleep::new();
        let mut resources = Box::new(borrowed::Resources::<CriticalSectionRawMutex>::new());
        let (handle, mut runner) = borrowed::new(
            &mut resources,
            &config,
            &self.nsqds,
            &mut outbox,
            TcpDialer::new(),
            sleep.clone(),
        )
        .map_err(|error| error.to_string())?;
        let locals = Locals { handle, sleep, nsqds: &self.nsqds, peer: Peer::default() };
        Ok(calls.serve(locals, async move { runner.run().await }).await)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::{Options, Publisher};

    /// Whichever is dropped last: a handle, a receipt, or the task with its runtime.
    #[test]
    fn all_memory_is_freed_at_the_end() {
        for last in ["handle", "receipt", "task"] {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let entered = runtime.enter();
            let nsq = Publisher::builder("127.0.0.1:1").start().expect("started");
            drop(entered);
            let client = Arc::downgrade(nsq.handle.client());
            let mut receipt = nsq.try_publish("t", b"1", Options::default()).expect("accepted");
            runtime.block_on(async {
                // Leaves a waker behind.
                let waits = receipt.acknowledged();
                let _ = tokio::time::timeout(Duration::from_millis(1), waits).await;
            });
            match last {
                "handle" => {
                    drop((runtime, receipt));
                    assert!(client.upgrade().is_some());
                    drop(nsq);
                }
                "receipt" => {
                    drop((runtime, nsq));
                    assert!(client.upgrade().is_some());
                    drop(receipt);
                }
                _ => {
                    drop((nsq, receipt));
                    assert!(client.upgrade().is_some(), "delivers for 5 s");
                    drop(runtime);
                }
            }
            assert!(client.upgrade().is_none(), "{last}");
        }
    }
}
