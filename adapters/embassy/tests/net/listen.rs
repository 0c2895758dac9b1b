//! Accepting: the other way round, by a session of the test's own.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Waker;

use embassy_futures::join::join;
use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use embassy_net::tcp::{State, TcpSocket};
use embassy_time::Timer;
use nanonsq_core::drive::{Listener, SessionCell, Transport, serve};
use nanonsq_core::session::{Closed, DialError, Fault, Link, Session, Transmit};
use nanonsq_core::time::Instant;
use nanonsq_embassy::{EmbassySleep, TcpListener, TcpStorage};

use crate::leak;
use crate::world::{DEVICE, Faults, HOST, World};

/// Sends everything back, and hangs up after a full stop.
#[derive(Default)]
struct Echo {
    up: bool,
    closing: bool,
    back: Vec<u8>,
    ended: Vec<Closed>,
}

impl Session for Echo {
    fn link(&self) -> Link {
        match (self.up, self.closing) {
            (_, true) => Link::Close,
            (true, false) => Link::Up,
            (false, false) => Link::Down,
        }
    }

    fn open(&mut self, _: Instant) {
        self.back.clear();
        (self.up, self.closing) = (true, false);
    }

    fn receive(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.back.extend(bytes);
        self.closing = bytes.contains(&b'.');
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: &self.back, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.back.drain(..n);
    }

    fn deadline(&self) -> Instant {
        Instant::NEVER
    }

    fn tick(&mut self, _: Instant) {}

    fn closed(&mut self, _: Instant, why: Closed) {
        (self.up, self.closing) = (false, false);
        self.ended.push(why);
    }
}

#[derive(Clone, Default)]
struct Cell(Rc<RefCell<Echo>>);

impl SessionCell for Cell {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut *self.0.borrow_mut());
    }

    fn register(&self, _: &Waker) {}
}

const PORT: u16 = 4150;

fn listener(stack: Stack<'static>) -> TcpListener<'static> {
    TcpListener::new(stack, PORT, leak(TcpStorage::<256, 256>::new()))
}

fn socket(host: Stack<'static>) -> TcpSocket<'static> {
    TcpSocket::new(host, vec![0; 512].leak(), vec![0; 512].leak())
}

#[test]
fn callers_are_served_one_after_the_other() {
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let cell = Cell::default();
    let (served, mut slot) = (cell.clone(), listener(device));
    world.spawn(async move { serve(&served, &mut slot, &mut EmbassySleep, &mut [0; 64]).await });
    world.run(async {
        Timer::after_millis(1).await;
        for (n, address) in ["10.0.0.1", "fd00::1"].iter().cycle().take(20).enumerate() {
            let mut socket = socket(host);
            let address: std::net::IpAddr = address.parse().unwrap();
            socket.connect((address, PORT)).await.unwrap();
            let mut buf = [0; 16];
            // The session hangs up, the caller hangs up, the caller resets.
            let text: &[u8] = if n % 3 == 0 { b"hello." } else { b"hello" };
            socket.write(text).await.unwrap();
            assert_eq!(socket.read(&mut buf).await, Ok(text.len()));
            match n % 3 {
                0 => assert_eq!(socket.read(&mut buf).await, Ok(0)),
                1 => socket.close(),
                _ => socket.abort(),
            }
            if n % 3 == 0 {
                socket.close();
            }
            socket.flush().await.unwrap();
            Timer::after_millis(30).await;
        }
    });
    assert_eq!(cell.0.borrow().ended.len(), 20);
    assert_eq!(cell.0.borrow().ended[..2], [Closed::Local, Closed::Peer]);
}

#[test]
fn a_caller_lost_in_the_handshake_does_not_keep_the_slot() {
    let world = World::new(2);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut slot = listener(device);
        let lost = async {
            let mut caller = socket(host);
            world.wire.set_faults_from(DEVICE, Faults::CUT);
            let _ = select(
                caller.connect(("10.0.0.1".parse::<std::net::IpAddr>().unwrap(), PORT)),
                Timer::after_secs(1),
            )
            .await;
            // It vanishes without a word.
            world.wire.set_faults_from(HOST, Faults::CUT);
            drop(caller);
            Timer::after_secs(5).await;
            world.wire.set_faults(Faults::NONE);
            let mut caller = socket(host);
            caller.connect(("10.0.0.1".parse::<std::net::IpAddr>().unwrap(), PORT)).await.unwrap();
            Timer::after_secs(100).await;
            caller
        };
        match select(slot.accept(), lost).await {
            Either::First(accepted) => assert!(accepted.is_ok()),
            Either::Second(_) => panic!("the slot was kept"),
        };
    });
}

#[test]
fn a_caller_gone_at_once_is_not_served_and_a_silent_one_is_kept() {
    let world = World::new(5);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut slot = listener(device);
        let call = async {
            let address: std::net::IpAddr = "10.0.0.1".parse().unwrap();
            let mut gone = socket(host);
            gone.connect((address, PORT)).await.unwrap();
            gone.abort();
            Timer::after_millis(50).await;
            let mut caller = socket(host);
            caller.connect((address, PORT)).await.unwrap();
            caller
        };
        let (accepted, mut caller) = join(slot.accept(), call).await;
        let (mut transport, from) = accepted.unwrap();
        assert_eq!(from.ip(), "10.0.0.2".parse::<std::net::IpAddr>().unwrap());
        Timer::after_secs(60).await;
        caller.write(b"hello").await.unwrap();
        let mut buf = [0; 8];
        assert_eq!(poll_fn(|cx| transport.poll_read(cx, &mut buf)).await, Ok(5));
    });
}

#[test]
fn a_dropped_accept_stops_listening() {
    let world = World::new(3);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut slot = listener(device);
        select(slot.accept(), Timer::after_secs(1)).await;
        let mut caller = socket(host);
        let refused = caller.connect(("10.0.0.1".parse::<std::net::IpAddr>().unwrap(), PORT)).await;
        assert_eq!(refused, Err(embassy_net::tcp::ConnectError::ConnectionReset));
        assert_eq!(caller.state(), State::Closed);
    });
}

#[test]
fn port_0_is_an_error() {
    let world = World::new(4);
    let device = world.device();
    world.run(async {
        let mut slot = TcpListener::new(device, 0, leak(TcpStorage::<64, 64>::new()));
        assert_eq!(slot.accept().await.map(drop), Err(DialError::Other));
    });
}
