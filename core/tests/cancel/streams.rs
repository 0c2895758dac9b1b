//! Byte streams of `embedded-io-async`: those whose futures may be dropped, and those that lose
//! bytes then.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::{Future, pending, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use embassy_futures::join::join;
use embassy_futures::yield_now;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embedded_io_async::{ErrorKind, ErrorType, Read, Write};
use embedded_nal_async::{AddrType, Dns, TcpConnect};
use nanonsq_core::drive::{Dialer, NalDialer, NoDns, Stream, Transport, publisher, pump};
use nanonsq_core::publisher::Config;
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_models::Wakes;

use crate::servers::Server;
use crate::world::{Pipe, Task, World, at_every_await, runner_is_gone, topic};

const NSQD: u16 = 4150;

type Resources = pump::Resources<NoopRawMutex, 32, 48>;
type Carrier<'a> = pump::Carrier<'a, NoopRawMutex, 32, 48>;

/// A stream that sends nothing before it is flushed. `lossy`: a future that is dropped before it
/// is ready loses the bytes that it has.
#[derive(Clone)]
pub(crate) struct Io {
    pipe: Rc<RefCell<Pipe>>,
    unsent: Vec<u8>,
    lossy: bool,
}

impl Io {
    fn new(world: &World, lossy: bool) -> Self {
        Self { pipe: Rc::new(RefCell::new(world.pipe(NSQD))), unsent: Vec::new(), lossy }
    }
}

impl ErrorType for Io {
    type Error = ErrorKind;
}

impl Read for Io {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        let n = poll_fn(|cx| self.pipe.borrow_mut().poll_read(cx, buf)).await.unwrap();
        if self.lossy {
            yield_now().await;
        }
        Ok(n)
    }
}

impl Write for Io {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, ErrorKind> {
        if self.lossy {
            yield_now().await;
        }
        self.unsent.extend(bytes);
        Ok(bytes.len())
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        while !self.unsent.is_empty() {
            let all = Transmit { head: &self.unsent, body: &[] };
            let n = poll_fn(|cx| self.pipe.borrow_mut().poll_write(cx, all)).await.unwrap();
            self.unsent.drain(..n);
            if self.lossy {
                let rest = std::mem::take(&mut self.unsent);
                yield_now().await;
                self.unsent = rest;
            }
        }
        Ok(())
    }
}

impl TcpConnect for World {
    type Error = ErrorKind;
    type Connection<'a> = Io;

    async fn connect(&self, remote: SocketAddr) -> Result<Io, ErrorKind> {
        if remote != ([10, 0, 0, 1], NSQD).into() {
            return Err(ErrorKind::ConnectionRefused);
        }
        Ok(Io::new(self, false))
    }
}

impl Dns for World {
    type Error = ();

    async fn get_host_by_name(&self, host: &str, _: AddrType) -> Result<IpAddr, ()> {
        if host == "nsqd" { Ok([10, 0, 0, 1].into()) } else { Err(()) }
    }

    async fn get_host_by_address(&self, _: IpAddr, _: &mut [u8]) -> Result<usize, ()> {
        Err(())
    }
}

/// Runs `test` with a publisher, and checks that all `count` messages arrived.
fn with_publisher<D: Dialer>(
    world: &World,
    dialer: D,
    count: usize,
    test: impl FnOnce(
        publisher::Handle<'_, NoopRawMutex>,
        publisher::Runner<'_, NoopRawMutex, D, World>,
    ),
) {
    let server = world.serve(NSQD, Server::nsqd(0));
    let (config, nsqds, mut ring) = (Config::new(), ["nsqd:4150".parse().unwrap()], [0; 4096]);
    let mut resources = publisher::Resources::new();
    let (handle, runner) =
        publisher::new(&mut resources, &config, &nsqds, &mut ring, dialer, world.clone()).unwrap();
    test(handle, runner);
    runner_is_gone(world);
    let Server::Nsqd(nsqd) = &*server.borrow() else { unreachable!() };
    let stored: BTreeSet<_> = nsqd.stored.iter().map(|(_, body)| body.clone()).collect();
    assert_eq!(stored, (0..count).map(|n| n.to_string()).collect());
    assert_eq!(handle.counters().acknowledged, count as u64);
}

async fn publish(handle: publisher::Handle<'_, NoopRawMutex>, count: usize) {
    for number in 0..count {
        let _ = handle.publish(&topic("t"), number.to_string().as_bytes()).await.unwrap();
    }
    handle.idle().await;
}

async fn serve(world: &World, carrier: Carrier<'_>) -> Result<(), DialError> {
    yield_now().await;
    let io = Io::new(world, true);
    carrier.carry(io.clone(), io).await;
    Ok(())
}

/// Polls `dropped` `k` times, drops it, and runs it again, until `done` is ready; `kept` runs all
/// the time. Returns whether `k` polls were enough.
fn restarted<T, U>(
    world: &World,
    k: usize,
    mut done: Pin<&mut impl Future<Output = ()>>,
    kept: impl Future<Output = T>,
    mut dropped: impl AsyncFnMut() -> U,
) -> bool {
    let mut kept = pin!(kept);
    let mut kept = Task::new(kept.as_mut());
    let (_, waker) = Wakes::new();
    for (polls, enough) in [(k, true), (100_000, false)] {
        let mut run = pin!(dropped());
        let mut run = Task::new(run.as_mut());
        for _ in 0..polls {
            if done.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                return enough;
            }
            if !(run.poll() | kept.poll()) {
                world.advance();
            }
        }
    }
    panic!("the messages are never acknowledged");
}

#[test]
fn ten_thousand_messages_are_acknowledged() {
    for transport in [(0, 1000), (1, 20)] {
        let world = &World::new(transport);
        let dialer = NalDialer::new(world.clone(), world.clone());
        with_publisher(world, dialer, 10_000, |handle, mut runner| {
            let (mut all, mut run) = (pin!(publish(handle, 10_000)), pin!(runner.run()));
            world.run(&mut Task::new(all.as_mut()), &mut Task::new(run.as_mut()));
        });
        let mut pipes = Resources::new();
        let (dialer, mut pump) = pump::new(&mut pipes);
        with_publisher(world, dialer, 10_000, |handle, mut runner| {
            let pumping = pump.run(async |_, carrier| serve(world, carrier).await);
            let (mut all, mut run) =
                (pin!(publish(handle, 10_000)), pin!(join(runner.run(), pumping)));
            world.run(&mut Task::new(all.as_mut()), &mut Task::new(run.as_mut()));
        });
    }
}

#[test]
fn a_stream_can_be_dropped_at_any_poll() {
    at_every_await(|world, k| {
        let (mut enough, dialer) = (false, NalDialer::new(world.clone(), world.clone()));
        with_publisher(world, dialer, 5, |handle, mut runner| {
            let done = pin!(publish(handle, 5));
            enough = restarted(world, k, done, pending::<()>(), async || runner.run().await);
        });
        enough
    });
}

#[test]
fn either_side_of_a_pump_can_be_dropped_at_any_poll() {
    at_every_await(|world, k| {
        let mut enough = [false; 2];
        for driver_is_dropped in [true, false] {
            let mut pipes = Resources::new();
            let (dialer, mut pump) = pump::new(&mut pipes);
            let mut pumping =
                async || pump.run(async |_, carrier| serve(world, carrier).await).await;
            with_publisher(world, dialer, 5, |handle, mut runner| {
                let done = pin!(publish(handle, 5));
                enough[usize::from(driver_is_dropped)] = if driver_is_dropped {
                    restarted(world, k, done, pumping(), async || runner.run().await)
                } else {
                    restarted(world, k, done, runner.run(), pumping)
                };
            });
        }
        enough == [true; 2]
    });
}

#[test]
fn a_stream_that_loses_bytes_needs_a_pump() {
    let world = &World::new((0, 1000));
    world.serve(NSQD, Server::Talker { bytes: b"hello", received: Vec::new() });
    let cx = &mut Context::from_waker(Waker::noop());
    let mut stream = Stream::new(Io::new(world, true));
    assert!((0..9).all(|_| stream.poll_read(cx, &mut [0; 9]).is_pending()), "each read is dropped");

    let mut pipes = Resources::new();
    let (mut dialer, mut pump) = pump::new(&mut pipes);
    let mut pumping = pin!(pump.run(async |_, carrier| serve(world, carrier).await));
    let address = "nsqd:4150".parse().unwrap();
    let mut dial = pin!(dialer.dial(&address));
    let mut transport = loop {
        assert!(pumping.as_mut().poll(cx).is_pending());
        if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
            break dialed.unwrap();
        }
    };
    assert!(pumping.as_mut().poll(cx).is_pending());
    assert_eq!(transport.poll_read(cx, &mut [0; 9]), Poll::Ready(Ok(5)));
    // Closing waits until everything is flushed.
    let bytes = Transmit { head: b"he", body: b"llo" };
    assert_eq!(transport.poll_write(cx, bytes), Poll::Ready(Ok(5)));
    assert!((0..9).all(|_| transport.poll_close(cx).is_pending()));
    (0..9).for_each(|_| assert!(pumping.as_mut().poll(cx).is_pending()));
    assert_eq!(transport.poll_close(cx), Poll::Ready(Ok(())));
    let server = world.0.servers.borrow()[&NSQD].clone();
    assert!(matches!(&*server.borrow(), Server::Talker { received, .. } if received == b"hello"));
    drop(transport);
    assert!(pumping.as_mut().poll(cx).is_pending());
    assert_eq!(world.0.open.get(), 1, "only that of `Stream`");
}

#[test]
fn a_dial_fails_with_the_reason() {
    fn dial(dialer: &mut impl Dialer, address: &str, run: impl Future) -> Option<DialError> {
        let (address, mut run) = (address.parse().unwrap(), pin!(run));
        let mut dial = pin!(dialer.dial(&address));
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..9 {
            let _ = run.as_mut().poll(cx);
            if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
                return dialed.err();
            }
        }
        panic!("the dial never ends");
    }
    let world = &World::new((0, 1000));
    world.serve(NSQD, Server::nsqd(0));
    let nal = &mut NalDialer::new(world.clone(), world.clone());
    assert_eq!(dial(nal, "nsqd:4150", pending::<()>()), None);
    assert_eq!(dial(nal, "nobody:4150", pending::<()>()), Some(DialError::NameNotFound));
    assert_eq!(dial(nal, "nsqd:1", pending::<()>()), Some(DialError::Refused));
    let nal = &mut NalDialer::new(world.clone(), NoDns);
    assert_eq!(dial(nal, "10.0.0.1:4150", pending::<()>()), None);
    assert_eq!(dial(nal, "nsqd:4150", pending::<()>()), Some(DialError::NameNotFound));

    for (served, error) in
        [(Err(DialError::Refused), DialError::Refused), (Ok(()), DialError::Other)]
    {
        let mut pipes = Resources::new();
        let (mut dialer, mut pump) = pump::new(&mut pipes);
        let pumping = pump.run(async |_, _| served);
        assert_eq!(dial(&mut dialer, "nsqd:4150", pumping), Some(error));
    }
}

/// Has some bytes to read, after a poll if `slow`. Cannot be written to.
struct Broken {
    bytes: &'static [u8],
    slow: bool,
}

impl ErrorType for Broken {
    type Error = ErrorKind;
}

impl Read for Broken {
    async fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        if self.slow {
            yield_now().await;
        }
        Ok(self.bytes.read(buf).await.unwrap())
    }
}

impl Write for Broken {
    async fn write(&mut self, _: &[u8]) -> Result<usize, ErrorKind> {
        Err(ErrorKind::BrokenPipe)
    }

    async fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

#[test]
fn after_a_failed_write_the_last_bytes_of_the_peer_are_read() {
    let reset = Poll::Ready(Err(TransportError::Reset));
    let bytes = Transmit { head: b"x", body: &[] };
    let cx = &mut Context::from_waker(Waker::noop());
    let mut stream = Stream::new(Broken { bytes: b"why", slow: false });
    assert_eq!(stream.poll_write(cx, bytes), reset);
    assert_eq!(stream.poll_read(cx, &mut [0; 9]), Poll::Ready(Ok(3)));

    let mut pipes = Resources::new();
    let (mut dialer, mut pump) = pump::new(&mut pipes);
    let mut pumping = pin!(pump.run(async |_, carrier| {
        let stream = || Broken { bytes: b"why", slow: true };
        carrier.carry(stream(), stream()).await;
        Ok(())
    }));
    let address = "nsqd:4150".parse().unwrap();
    let mut dial = pin!(dialer.dial(&address));
    assert!(dial.as_mut().poll(cx).is_pending());
    assert!(pumping.as_mut().poll(cx).is_pending());
    let Poll::Ready(Ok(mut transport)) = dial.as_mut().poll(cx) else { panic!("not connected") };
    assert_eq!(transport.poll_write(cx, bytes), Poll::Ready(Ok(1)), "the pipe takes it");
    assert!(pumping.as_mut().poll(cx).is_pending());
    assert_eq!(transport.poll_write(cx, bytes), reset);
    assert_eq!(transport.poll_close(cx), Poll::Ready(Err(TransportError::Reset)));
    assert_eq!(transport.poll_read(cx, &mut [0; 9]), Poll::Ready(Ok(3)));
    assert!(transport.poll_read(cx, &mut [0; 9]).is_pending(), "the peer may send more");
    assert!(pumping.as_mut().poll(cx).is_pending());
    assert_eq!(transport.poll_read(cx, &mut [0; 9]), reset, "an error, not a clean end");
}
