//! A client that owns what it borrows from, in safe code: memory, client and runner are locals of
//! one async block, which the client's task polls to run it, and which handles poll to call it.
//!
//! A handle leaves a call in the slot and polls the block, which then makes the call and does not
//! run. So a call is made at once, on the caller's thread, under the client's lock, as a call of
//! the borrowed form is.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use std::{fmt, mem};

use tokio::runtime;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::lock;
use crate::role::{Lines, poll_once};
use crate::setting::StartError;

/// How long a client runs after its last handle is dropped, to deliver what it has.
const LINGER: Duration = Duration::from_secs(5);

/// How long closing the connections may take, at least. The core closes them within a second.
const CLOSE: Duration = Duration::from_millis(1500);

/// A timeout that a clock cannot have.
const FAR: Duration = Duration::from_secs(86_400 * 365);

/// What is particular to a client: publisher, consumer, nsqd or nsqlookupd.
pub(crate) trait Role: Sized + Send + 'static {
    /// For the log.
    const NAME: &'static str;

    /// What the async block lends to a call.
    type Locals<'a>;

    /// What goes into calls and comes out of them.
    type Exchange: AsMut<Report> + Default + Send;

    /// The tasks that wait on handles.
    type Waits: Default + Send;

    /// Fills the report. Made after each poll of the runner.
    const REPORT: Call<Self>;

    /// Made when the client is asked to end.
    const CLOSE: Call<Self> = |_, _| ();

    /// Begins to stop: nothing is left, or the time for it is over.
    const STOP: Call<Self>;

    /// Takes the tasks that may go on after a report. `over`: all of them, since the client closes
    /// or has ended.
    fn wake(
        waits: &mut Self::Waits,
        exchange: &mut Self::Exchange,
        over: bool,
        to_wake: &mut Vec<Waker>,
    );
}

pub(crate) type Call<R> = for<'a> fn(&mut <R as Role>::Locals<'a>, &mut <R as Role>::Exchange);

/// What each client's task must know.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What is not delivered, or not answered.
    pub(crate) left: u64,
    pub(crate) is_stopped: bool,
    pub(crate) lines: Lines,
    /// Why the last connection was lost, until there is one again.
    pub(crate) why: Option<String>,
}

/// Messages that a client had when it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Undelivered {
    /// How many messages.
    pub messages: u64,
    /// Why the connection was lost or did not come up, if there was none at the end.
    pub why: Option<String>,
}

impl fmt::Display for Undelivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.messages {
            1 => f.write_str("1 message was not delivered")?,
            messages => write!(f, "{messages} messages were not delivered")?,
        }
        match &self.why {
            Some(why) => write!(f, ": {why}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Undelivered {}

/// What the async block is polled for, and what goes into calls and comes out of them.
struct Slot<R: Role> {
    ask: Ask<R>,
    exchange: R::Exchange,
}

enum Ask<R: Role> {
    Run,
    Call(Call<R>),
    /// Drop the runner: its connections end. Calls can still be made.
    End,
}

/// The end of the slot in the async block.
pub(crate) struct Calls<R: Role>(Arc<Mutex<Slot<R>>>);

impl<R: Role> Calls<R> {
    /// Does what it is polled for. Never ends.
    pub(crate) async fn serve(
        &self,
        mut locals: R::Locals<'_>,
        runner: impl Future<Output = Infallible>,
    ) -> Infallible {
        let mut runner = Some(Box::pin(runner));
        poll_fn(|cx| {
            let mut slot = lock(&self.0);
            let slot = &mut *slot;
            match (mem::replace(&mut slot.ask, Ask::Run), &mut runner) {
                (Ask::Run, Some(runner)) => return runner.as_mut().poll(cx),
                (Ask::Run, None) => {}
                (Ask::Call(call), _) => call(&mut locals, &mut slot.exchange),
                (Ask::End, _) => runner = None,
            }
            Poll::Pending
        })
        .await
    }
}

type Block = Pin<Box<dyn Future<Output = Result<Infallible, String>> + Send>>;

/// The state behind a client's lock.
pub(crate) struct State<R: Role> {
    /// `None` after a panic, which a logger can cause: calls do nothing then.
    block: Option<Block>,
    slot: Arc<Mutex<Slot<R>>>,
    /// The tasks that wait on handles.
    pub(crate) waits: R::Waits,
    /// To wake when the lock is free.
    to_wake: Vec<Waker>,
    task: Option<Waker>,
    phase: Phase,
    /// What was not delivered at the last report.
    left: u64,
    at_end: Vec<Waker>,
}

enum Phase {
    Running,
    /// To stop as soon as everything is delivered, or at this time.
    Closing(Instant),
    /// Closing the connections, at most until this time.
    Stopping(Instant),
    Ended(Undelivered),
}

impl<R: Role> State<R> {
    /// Fills the exchange, makes the call, and reads the exchange.
    pub(crate) fn call<T>(
        &mut self,
        fill: impl FnOnce(&mut R::Exchange),
        call: Call<R>,
        read: impl FnOnce(&mut R::Exchange) -> T,
    ) -> T {
        fill(&mut lock(&self.slot).exchange);
        self.ask(Ask::Call(call));
        read(&mut lock(&self.slot).exchange)
    }

    /// Returns whether the client was asked to end.
    pub(crate) fn is_closing(&self) -> bool {
        !matches!(self.phase, Phase::Running)
    }

    /// Returns whether the client has ended.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    fn ask(&mut self, ask: Ask<R>) {
        lock(&self.slot).ask = ask;
        self.poll_block(&mut Context::from_waker(Waker::noop()));
    }

    fn poll_block(&mut self, cx: &mut Context<'_>) {
        let Some(mut block) = self.block.take() else { return };
        // Never ready once it is set up.
        match catch_unwind(AssertUnwindSafe(|| block.as_mut().poll(cx))) {
            Ok(_) => self.block = Some(block),
            Err(panic) => {
                // So that it ends the client.
                self.task.take().into_iter().for_each(Waker::wake);
                resume_unwind(panic);
            }
        }
    }

    /// Collects what the client's task must know, and the tasks that may go on: all with `over`.
    fn report(&mut self, over: bool) -> Report {
        let mut report = self.call(|_| (), R::REPORT, |exchange| mem::take(exchange.as_mut()));
        self.wake(over);
        if self.block.is_none() {
            (report.left, report.why) = (self.left, Some("its task panicked".to_owned()));
        }
        self.left = report.left;
        report
    }

    fn wake(&mut self, over: bool) {
        R::wake(&mut self.waits, &mut lock(&self.slot).exchange, over, &mut self.to_wake);
    }
}

/// Adds a task to those that wait.
pub(crate) fn wait(waiting: &mut Vec<Waker>, cx: &Context<'_>) {
    if !waiting.iter().any(|known| known.will_wake(cx.waker())) {
        waiting.push(cx.waker().clone());
    }
}

/// A client: its handles and its task share it.
pub(crate) struct Client<R: Role>(Mutex<State<R>>);

thread_local! {
    /// This thread holds a client's lock.
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}

/// What was asked for by a thread that held a client's lock, and whether there is any.
static LATER: Mutex<Vec<Box<dyn FnOnce() + Send>>> = Mutex::new(Vec::new());
static IS_LATER: AtomicBool = AtomicBool::new(false);

/// Marks that this thread holds a client's lock.
struct Locked;

impl Drop for Locked {
    fn drop(&mut self) {
        LOCKED.set(false);
    }
}

impl<R: Role> Client<R> {
    /// Makes a client's async block, sets it up, and spawns the client's task.
    ///
    /// `block` sets up the client, or returns what is wrong, and then [serves](Calls::serve).
    pub(crate) fn start<F>(block: impl FnOnce(Calls<R>) -> F) -> Result<Handle<R>, StartError>
    where
        F: Future<Output = Result<Infallible, String>> + Send + 'static,
    {
        let runtime = runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        let slot = Slot { ask: Ask::Call(|_, _| ()), exchange: R::Exchange::default() };
        let slot = Arc::new(Mutex::new(slot));
        let mut block: Block = Box::pin(block(Calls(slot.clone())));
        if let Poll::Ready(Err(what)) = poll_once(block.as_mut()) {
            return Err(StartError::Setting(what));
        }
        let client = Arc::new(Self(Mutex::new(State {
            block: Some(block),
            slot,
            waits: R::Waits::default(),
            to_wake: Vec::new(),
            task: None,
            phase: Phase::Running,
            left: 0,
            at_end: Vec::new(),
        })));
        let task = Task(client.clone());
        runtime.spawn(async move {
            let mut timer = None;
            poll_fn(|cx| task.0.poll(cx, &mut timer)).await;
        });
        Ok(Handle(Arc::new(Owner(client))))
    }

    /// Runs `f` under the lock, then wakes tasks. `None` within another `f`, where only a logger
    /// can come from, or a waker that drops a task with its last clone.
    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut State<R>) -> T) -> Option<T> {
        if LOCKED.replace(true) {
            return None;
        }
        let locked = Locked;
        let mut state = lock(&self.0);
        let result = f(&mut state);
        let to_wake = mem::take(&mut state.to_wake);
        drop(state);
        drop(locked);
        to_wake.into_iter().for_each(Waker::wake);
        if IS_LATER.swap(false, Ordering::AcqRel) {
            let later = mem::take(&mut *lock(&LATER));
            later.into_iter().for_each(|f| f());
        }
        Some(result)
    }

    /// As [`with`](Self::with), but within another `f` this one is run after it.
    pub(crate) fn with_soon(self: &Arc<Self>, f: impl FnOnce(&mut State<R>) + Send + 'static) {
        if LOCKED.get() {
            let client = self.clone();
            lock(&LATER).push(Box::new(move || client.with_soon(f)));
            IS_LATER.store(true, Ordering::Release);
        } else {
            self.with(f);
        }
    }

    /// As [`with`](Self::with) in a future, which is polled again if that was within another `f`.
    pub(crate) fn poll_with<T>(
        &self,
        cx: &mut Context<'_>,
        f: impl FnOnce(&mut State<R>, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let polled = self.with(|state| f(state, cx));
        polled.unwrap_or_else(|| {
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// As [`State::call`]; `None` as in [`with`](Self::with).
    pub(crate) fn call<T>(
        &self,
        fill: impl FnOnce(&mut R::Exchange),
        call: Call<R>,
        read: impl FnOnce(&mut R::Exchange) -> T,
    ) -> Option<T> {
        self.with(|state| state.call(fill, call, read))
    }

    /// Asks the client to end after `timeout`, or as soon as everything is delivered.
    fn close(self: &Arc<Self>, timeout: Duration) {
        let now = Instant::now();
        let at = now.checked_add(timeout).unwrap_or(now + FAR);
        self.with_soon(move |state| {
            match &mut state.phase {
                phase @ Phase::Running => *phase = Phase::Closing(at),
                Phase::Closing(earlier) => *earlier = at.min(*earlier),
                Phase::Stopping(_) | Phase::Ended(_) => return,
            }
            state.call(|_| (), R::CLOSE, |_| ());
            state.wake(true);
            state.to_wake.extend(state.task.take());
        });
    }

    /// Polls the runner; ready when the client is to end.
    fn poll(&self, cx: &mut Context<'_>, timer: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        let polled = self.poll_with(cx, |state, cx| {
            if !state.task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
                state.task = Some(cx.waker().clone());
            }
            state.poll_block(cx);
            let report = state.report(false);
            let is_over = match state.phase {
                Phase::Running => false,
                Phase::Closing(at) => {
                    if report.left == 0 || is_over(timer, at, cx) {
                        state.phase = Phase::Stopping(Instant::now() + CLOSE);
                        state.call(|_| (), R::STOP, |_| ());
                        cx.waker().wake_by_ref();
                    }
                    false
                }
                Phase::Stopping(at) => report.is_stopped || is_over(timer, at, cx),
                Phase::Ended(_) => true,
            };
            Poll::Ready((report.lines, is_over || state.block.is_none()))
        });
        let (lines, is_over) = ready!(polled);
        lines.iter().for_each(|(is_warning, line)| say::<R>(*is_warning, line));
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Ends the client's connections.
    fn end(self: &Arc<Self>) {
        self.with_soon(|state| {
            state.call(|_| (), R::CLOSE, |_| ());
            state.ask(Ask::End);
            let report = state.report(true);
            let left = Undelivered { messages: report.left, why: report.why };
            state.phase = Phase::Ended(left);
            state.to_wake.append(&mut state.at_end);
        });
        let left = self.with(|state| match &state.phase {
            Phase::Ended(left) if left.messages > 0 => Some(left.to_string()),
            _ => None,
        });
        // A logger that panics again would abort the process.
        if let Some(line) = left.flatten().filter(|_| !std::thread::panicking()) {
            say::<R>(true, &line);
        }
    }
}

/// A handle of a client. When the last one is dropped, the client closes.
pub(crate) struct Handle<R: Role>(Arc<Owner<R>>);

struct Owner<R: Role>(Arc<Client<R>>);

impl<R: Role> Handle<R> {
    /// Returns the client; holding it does not keep it running.
    pub(crate) fn client(&self) -> &Arc<Client<R>> {
        &self.0.0
    }

    /// Asks the client to end, waits until it has, and says what was not delivered.
    pub(crate) async fn shutdown(&self, timeout: Duration) -> Result<(), Undelivered> {
        let client = self.client();
        client.close(timeout);
        let left = poll_fn(|cx| {
            client.poll_with(cx, |state, cx| match &state.phase {
                Phase::Ended(left) => Poll::Ready(left.clone()),
                Phase::Running | Phase::Closing(_) | Phase::Stopping(_) => {
                    wait(&mut state.at_end, cx);
                    Poll::Pending
                }
            })
        })
        .await;
        if left.messages == 0 { Ok(()) } else { Err(left) }
    }
}

impl<R: Role> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: Role> Drop for Owner<R> {
    fn drop(&mut self) {
        self.0.close(LINGER);
    }
}

/// The client in its task, which ends it, also when the runtime shuts down.
struct Task<R: Role>(Arc<Client<R>>);

impl<R: Role> Drop for Task<R> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Polls the timer of a client's task.
fn is_over(timer: &mut Option<Pin<Box<Sleep>>>, at: Instant, cx: &mut Context<'_>) -> bool {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
    if timer.deadline() != at {
        timer.as_mut().reset(at);
    }
    timer.as_mut().poll(cx).is_ready()
}

/// Logs a line.
fn say<R: Role>(is_warning: bool, line: &str) {
    #[cfg(feature = "log")]
    if is_warning {
        log::warn!(target: "nanonsq", "{}: {line}", R::NAME);
    } else {
        log::info!(target: "nanonsq", "{}: {line}", R::NAME);
    }
    #[cfg(not(feature = "log"))]
    let _ = (R::NAME, is_warning, line);
}
