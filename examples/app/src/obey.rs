//! Runs commands and replies to them.

use core::convert::Infallible;
use core::fmt::Write as _;

use embassy_futures::join::join3;
use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::raw::RawMutex;
use heapless::String;
use nanonsq_core::channel;
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
use crate::reported::Reported;
use crate::{NSQDS_REPORTED, Network, Node, millis};

/// The channel on which a device consumes its commands.
const CHANNEL: ChannelName = channel!("device");

/// The longest text of a reply, in bytes.
const TEXT_MAX: usize = 160;

/// Time that a reboot waits for pending messages. A device that cannot reach nsqd must reboot too:
/// the lost nsqd may be the reason for the command.
const REBOOT_LIMIT: Span = Span::from_secs(10);

/// Uptime below which a device has just started: longer than nsqd's default `--msg-timeout` of
/// 60 s, after which nsqd redelivers a command without an answer.
const JUST_STARTED: Span = Span::from_secs(120);

/// Actions of commands on the board.
pub trait Board {
    /// Shows a user which device this is.
    fn blink(&mut self) -> impl Future<Output = ()>;

    /// Reboots the device. The node calls it once all messages are final, or after 10 s.
    fn reboot(&mut self) -> impl Future<Output = Infallible>;
}

/// A source of commands. Implemented by a consumer's handle.
pub trait Commands {
    /// A command in flight.
    type Request: Request;

    /// Waits for the next command.
    fn next(&self) -> impl Future<Output = Self::Request>;

    /// Waits for the next event.
    fn event(&self) -> impl Future<Output = Event>;

    /// Stops consuming; ready once nsqd has processed all FINs.
    fn stop(&self) -> impl Future<Output = ()>;
}

/// A command in flight. Dropped without `finish`, it is redelivered.
pub trait Request {
    /// Returns the id and the number of deliveries; `None` if the command is no longer in flight.
    fn head(&self) -> Option<MessageHead>;

    /// Reads the text; `None` if the command is no longer in flight.
    fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R>;

    /// Finishes the command.
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

/// Returns the configuration of a consumer of commands.
pub const fn commands(topic: TopicName, device: &str) -> Config<'_> {
    Config {
        client_id: device,
        hostname: device,
        // A reply may wait long for room in the outbox.
        auto_touch: true,
        // A requeued command was not done, and its sender waits for the reply.
        requeue_base: Span::from_secs(1),
        // A valid command is short, and no other consumer of the channel has more room.
        too_large: TooLarge::Finish,
        ..Config::new(topic, CHANNEL)
    }
}

impl<N: Network, S: Sleep> Node<'_, N, S> {
    /// Runs commands and replies to them until the board reboots. Poll it beside
    /// [`run`](Self::run), in the same task or in another. If the future is dropped, the command in
    /// progress is redelivered.
    pub async fn obey<C: Commands, B: Board>(&self, commands: &C, board: &mut B) -> Infallible {
        let done = match select(self.serve(commands, board), watch(commands)).await {
            Either::First(reply) => reply,
            Either::Second(never) => match never {},
        };
        // nsqd runs FIN before CLS, so `stop` ensures that the reboot is not redelivered.
        let all = join3(commands.stop(), self.network.outcome(done), self.network.settle());
        let limit = self.wait_until(self.sleep.now().after(REBOOT_LIMIT));
        if let Either::Second(()) = select(all, limit).await {
            note!(warn, "rebooting with messages pending");
        }
        board.reboot().await
    }

    /// Runs commands up to the first `reboot`; returns the ticket of its reply.
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
            // All texts are shorter than `TEXT_MAX`.
            let _ = match &command {
                Ok(Command::SetInterval(period)) => {
                    self.period.set(*period);
                    self.period_changed.signal(());
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
                Ok(Command::Reboot) if was_done(&head, now) => {
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
            // Finish the command once its reply is in the outbox. Finished earlier, it would have
            // no reply if the device failed here. Finished only when nsqd has acknowledged the
            // reply, it would run twice whenever the nsqd for replies is lost.
            let Some(ticket) = self.reply(&reply).await else { continue };
            self.commands.set(self.commands.get().saturating_add(1));
            if request.finish().is_err() {
                note!(warn, "command {} will be redelivered", id.as_str());
            }
            if reboots {
                // Publish nothing more, so that all messages become final.
                self.rebooting.set(true);
                return ticket;
            }
        }
    }

    /// Publishes a reply; `None` if that fails: then the command is redelivered.
    async fn reply(&self, reply: &Reply<'_>) -> Option<N::Ticket> {
        let mut buf = [0; REPLY_MAX];
        let Some(body) = message::json(reply, &mut buf) else {
            note!(error, "the reply has more than {} bytes as JSON", REPLY_MAX);
            return None;
        };
        match self.network.publish(&self.settings.replies, body).await {
            Ok(ticket) => Some(ticket),
            Err(why) => {
                note!(error, "reply not published, the command will be redelivered: {}", why);
                None
            }
        }
    }
}

/// Returns whether the device has just done this reboot: the command was delivered before, and the
/// device has just started.
fn was_done(head: &MessageHead, now: Instant) -> bool {
    head.attempts > 1 && now.since(Instant::ZERO) < JUST_STARTED
}

/// Logs connections to nsqds, failed lookups and commands given up.
async fn watch<C: Commands>(commands: &C) -> Infallible {
    let mut nsqds = Reported::<NSQDS_REPORTED>::new();
    let mut lookupds = Reported::<NSQDS_REPORTED>::new();
    loop {
        match commands.event().await {
            Event::Connection { index, event: ConnectionEvent::Connected } => {
                nsqds.forget(index);
                note!(info, "commands {}: subscribed", index);
            }
            Event::Connection { index, event: ConnectionEvent::Disconnected(Closed::Local) } => {
                note!(info, "commands {}: {}", index, Closed::Local);
            }
            Event::Connection { index, event: ConnectionEvent::Disconnected(why) }
                if nsqds.is_new(index, why) =>
            {
                note!(warn, "commands {}: {}", index, why);
            }
            Event::Connection { index, event: ConnectionEvent::LeftOut(why) }
                if nsqds.is_new(index, Closed::Fault(why)) =>
            {
                note!(warn, "commands {}: left out, retried in 5 minutes: {}", index, why);
            }
            Event::Lookupd { index, event: LookupdEvent::Answered { .. } } => {
                lookupds.forget(index);
            }
            Event::Lookupd { index, event: LookupdEvent::Failed(why) }
                if lookupds.is_new(index, why) =>
            {
                note!(warn, "nsqlookupd {}: lookup of the command topic: {}", index, why);
            }
            Event::GivenUp { id, attempts } => {
                note!(warn, "command {} given up after {} deliveries", id, attempts);
            }
            _ => {}
        }
    }
}
