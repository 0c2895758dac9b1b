//! Doing what comes as a command.

use core::convert::Infallible;
use core::fmt::Write as _;

use embassy_futures::join::join3;
use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::raw::RawMutex;
use heapless::String;
use nanonsq_core::consumer::{
    AnswerError, Config, ConnectionEvent, Event, LookupdEvent, MessageHead, TooLarge,
};
use nanonsq_core::drive::Sleep;
use nanonsq_core::drive::consumer;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::Closed;
use nanonsq_core::time::{Instant, Span};

use crate::command::{self, Command, UNDERSTOOD};
use crate::message::{self, REPLY_MAX, Reply};
use crate::note::note;
use crate::said::Said;
use crate::{NSQDS_SAID, Network, Node, millis};

/// The channel that a device consumes its commands on.
const CHANNEL: ChannelName = match ChannelName::new("device") {
    Ok(channel) => channel,
    Err(_) => panic!("a channel's name"),
};

/// Room for what a reply says.
const TEXT_MAX: usize = 160;

/// How long a reboot waits for what is pending. A device that cannot reach nsqd reboots, too: that
/// may be why it was told to.
const REBOOT_LIMIT: Span = Span::from_secs(10);

/// A device that started more recently has just started: nsqd redelivers what it never got an
/// answer to after its `--msg-timeout`, of 60 s.
const JUST_STARTED: Span = Span::from_secs(120);

/// What commands are for beside the node itself.
pub trait Board {
    /// Shows a human being which device this is.
    fn blink(&mut self) -> impl Future<Output = ()>;

    /// Starts the device anew. Replies are acknowledged by then, or the time for that is up.
    fn reboot(&mut self) -> impl Future<Output = Infallible>;
}

/// Where commands come from. A consumer's handle; in tests, a stand-in.
pub trait Commands {
    /// A command that waits for its answer.
    type Request: Request;

    /// The next command.
    fn next(&self) -> impl Future<Output = Self::Request>;

    /// The next event.
    fn event(&self) -> impl Future<Output = Event>;

    /// Takes no more commands; ready when nsqd has what was finished.
    fn stop(&self) -> impl Future<Output = ()>;
}

/// A command that waits for its answer. Dropped, it comes again.
pub trait Request {
    /// Its id, and how often it was delivered.
    fn head(&self) -> Option<MessageHead>;

    /// Reads its text.
    fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R>;

    /// It is done.
    fn finish(self) -> Result<(), AnswerError>;
}

impl<'a, M: RawMutex, S: Sleep> Commands for consumer::Handle<'a, M, S> {
    type Request = consumer::Message<'a, M, S>;

    async fn next(&self) -> Self::Request {
        consumer::Handle::next(self).await
    }

    async fn event(&self) -> Event {
        consumer::Handle::event(self).await
    }

    async fn stop(&self) {
        consumer::Handle::stop(self).await;
    }
}

impl<M: RawMutex, S: Sleep> Request for consumer::Message<'_, M, S> {
    fn head(&self) -> Option<MessageHead> {
        consumer::Message::head(self)
    }

    fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        consumer::Message::read(self, f)
    }

    fn finish(self) -> Result<(), AnswerError> {
        consumer::Message::finish(self)
    }
}

/// How a device consumes its commands.
pub const fn commands(topic: TopicName, device: &str) -> Config<'_> {
    Config {
        client_id: device,
        hostname: device,
        // While the outbox has no room for a reply.
        auto_touch: true,
        // What was given back was not done; the one who sent it waits.
        requeue_base: Span::from_secs(1),
        // It is no command, and no other consumer of this channel has more room.
        too_large: TooLarge::Finish,
        ..Config::new(topic, CHANNEL)
    }
}

impl<N: Network, S: Sleep> Node<'_, N, S> {
    /// Does what comes as a command and replies, until the board reboots. Beside
    /// [`run`](Self::run), in the same task or in another. Dropped at any await, the command that
    /// it was at comes again.
    pub async fn obey<C: Commands, B: Board>(&self, commands: &C, board: &mut B) -> Infallible {
        let done = match select(self.serve(commands, board), watch(commands)).await {
            Either::First(reply) => reply,
            Either::Second(never) => match never {},
        };
        // FIN is out when nsqd has closed the connection on our word: it runs commands in order.
        // Before that a reboot would be told to reboot again.
        let all = join3(commands.stop(), self.network.outcome(done), self.network.settle());
        let limit = self.wait_until(self.sleep.now().after(REBOOT_LIMIT));
        if let Either::Second(()) = select(all, limit).await {
            note!(warn, "rebooting with something pending");
        }
        board.reboot().await
    }

    /// Up to the first reboot, with the ticket of the reply to that.
    async fn serve<C: Commands, B: Board>(&self, commands: &C, board: &mut B) -> N::Ticket {
        loop {
            let request = commands.next().await;
            let Some(head) = request.head() else { continue };
            let Some((id, command)) = request.read(|body| command::read(body, head.id)) else {
                continue;
            };
            let now = self.sleep.now();
            let mut text = String::<TEXT_MAX>::new();
            let (mut stats, mut reboots) = (None, false);
            // The texts fit.
            let _ = match &command {
                Ok(Command::SetInterval(period)) => {
                    self.period.set(*period);
                    self.retimed.signal(());
                    write!(text, "interval is {} ms", period.as_millis())
                }
                Ok(Command::Blink) => {
                    board.blink().await;
                    write!(text, "blinked")
                }
                Ok(Command::Stats) => {
                    stats = Some(self.stats());
                    write!(text, "stats")
                }
                Ok(Command::Reboot) if was_it(&head, now) => {
                    write!(text, "not again: started {} ms ago", millis(now))
                }
                Ok(Command::Reboot) => {
                    reboots = true;
                    write!(text, "rebooting")
                }
                Err(refusal) => write!(text, "{refusal}; understood: {UNDERSTOOD}"),
            };
            note!(info, "command {}: {}", id.as_str(), text.as_str());
            let device = message::short(self.settings.device);
            let reply = Reply { device, id: &id, ok: command.is_ok(), text: &text, stats };
            // At least once: until the reply is in the outbox, nsqd has the command. Finished
            // earlier, the command of a device that fails here would go without a reply; later, when
            // nsqd has acknowledged the reply, each nsqd that is gone would have commands done twice.
            let Some(ticket) = self.reply(&reply).await else { continue };
            self.commands.set(self.commands.get().saturating_add(1));
            if request.finish().is_err() {
                note!(warn, "command {} comes again", id.as_str());
            }
            if reboots {
                // What is pending now is the last.
                self.leaving.set(true);
                return ticket;
            }
        }
    }

    /// None if it is not published: then the command comes again.
    async fn reply(&self, reply: &Reply<'_>) -> Option<N::Ticket> {
        let mut buf = [0; REPLY_MAX];
        let Some(body) = message::json(reply, &mut buf) else {
            note!(error, "the reply has more than {} bytes as JSON", REPLY_MAX);
            return None;
        };
        match self.network.publish(&self.settings.replies, body).await {
            Ok(ticket) => Some(ticket),
            Err(why) => {
                note!(error, "reply not published, the command comes again: {}", why);
                None
            }
        }
    }
}

/// Whether this reboot was done by the start that was just now: it was delivered before, perhaps to
/// a device that did not get to say that it did it.
fn was_it(head: &MessageHead, now: Instant) -> bool {
    head.attempts > 1 && now.since(Instant::ZERO) < JUST_STARTED
}

/// Logs what happens to the connections.
async fn watch<C: Commands>(commands: &C) -> Infallible {
    let mut nsqds = Said::<NSQDS_SAID>::new();
    let mut lookupds = Said::<NSQDS_SAID>::new();
    loop {
        match commands.event().await {
            Event::Connection { index, event: ConnectionEvent::Connected } => {
                nsqds.is_back(index);
                note!(info, "commands {}: subscribed", index);
            }
            Event::Connection { index, event: ConnectionEvent::Disconnected(Closed::Local) } => {
                note!(info, "commands {}: {}", index, Closed::Local);
            }
            Event::Connection { index, event: ConnectionEvent::Disconnected(why) }
                if nsqds.is_news(index, why) =>
            {
                note!(warn, "commands {}: {}", index, why);
            }
            Event::Connection { index, event: ConnectionEvent::LeftOut(why) }
                if nsqds.is_news(index, Closed::Fault(why)) =>
            {
                note!(warn, "commands {}: left out, and asked again in 5 minutes: {}", index, why);
            }
            Event::Lookupd { index, event: LookupdEvent::Answered { .. } } => {
                lookupds.is_back(index);
            }
            Event::Lookupd { index, event: LookupdEvent::Failed(why) }
                if lookupds.is_news(index, why) =>
            {
                note!(warn, "asking nsqlookupd {} for commands: {}", index, why);
            }
            Event::GivenUp { id, attempts } => {
                note!(warn, "command {} given up after {} deliveries", id, attempts);
            }
            _ => {}
        }
    }
}
