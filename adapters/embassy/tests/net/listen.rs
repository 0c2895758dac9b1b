//! Accepting: an nsqlookupd on the device, callers on the host.

use std::future::poll_fn;
use std::net::SocketAddr;

use embassy_futures::join::join;
use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use embassy_net::tcp::{State, TcpSocket};
use embassy_time::Timer;
use nanonsq_core::drive::nsqlookupd::{self, Resources};
use nanonsq_core::drive::{AcceptError, Dialer, Listener, Port, Ports, Transport};
use nanonsq_core::nsqlookupd::Config;
use nanonsq_core::session::reject::Protocol;
use nanonsq_core::session::{Transmit, TransportError};
use nanonsq_core::time::Span;
use nanonsq_embassy::{EmbassySleep, NoopRawMutex, TcpListener, TcpStorage};

use crate::world::{DEVICE, Faults, HOST, World};
use crate::{dialer, leak};

const PORT: u16 = 4150;

fn listener(stack: Stack<'static>) -> TcpListener<'static> {
    TcpListener::new(stack, PORT, leak(TcpStorage::<256, 256>::new()))
}

fn socket(host: Stack<'static>) -> TcpSocket<'static> {
    TcpSocket::new(host, vec![0; 512].leak(), vec![0; 512].leak())
}

/// Waits for the next caller.
async fn accept(slot: &mut TcpListener<'_>) -> Result<SocketAddr, AcceptError> {
    poll_fn(|cx| slot.poll_accept(cx)).await
}

#[test]
fn callers_are_served_one_after_the_other() {
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let handle = serve::<1>(&world, device, false);
    world.run(async {
        Timer::after_millis(1).await;
        for (n, address) in ["10.0.0.1", "fd00::1"].iter().cycle().take(20).enumerate() {
            let mut caller = socket(host);
            let address: std::net::IpAddr = address.parse().unwrap();
            caller.connect((address, PORT)).await.unwrap();
            assert!(identifies(&mut caller).await.unwrap(), "caller {n}");
            leave(caller, LEAVES[n % 3]).await;
            Timer::after_millis(30).await;
        }
    });
    assert_eq!(nodes(&handle), 0);
    assert_eq!(handle.counters().identified, 20);
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
            // The caller vanishes: its RST is lost as well.
            world.wire.set_faults_from(HOST, Faults::CUT);
            drop(caller);
            Timer::after_secs(5).await;
            world.wire.set_faults(Faults::NONE);
            let mut caller = socket(host);
            caller.connect(("10.0.0.1".parse::<std::net::IpAddr>().unwrap(), PORT)).await.unwrap();
            Timer::after_secs(100).await;
            caller
        };
        match select(accept(&mut slot), lost).await {
            Either::First(accepted) => assert!(accepted.is_ok()),
            Either::Second(_) => panic!("the lost caller still occupies the slot"),
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
        let (accepted, mut caller) = join(accept(&mut slot), call).await;
        let from = accepted.unwrap();
        assert_eq!(from.ip(), "10.0.0.2".parse::<std::net::IpAddr>().unwrap());
        Timer::after_secs(60).await;
        caller.write(b"hello").await.unwrap();
        let mut buf = [0; 8];
        assert_eq!(poll_fn(|cx| slot.poll_read(cx, &mut buf)).await, Ok(5));
    });
}

#[test]
fn a_released_slot_stops_listening() {
    let world = World::new(3);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut slot = listener(device);
        select(accept(&mut slot), Timer::after_secs(1)).await;
        slot.release();
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
        assert_eq!(accept(&mut slot).await, Err(AcceptError::Other));
    });
}

// --- several slots, and a spare one ---

type Handle = nsqlookupd::Handle<'static, NoopRawMutex, EmbassySleep>;

/// The session closes a connection after 10 s without commands.
const CONFIG: &Config<'static> = &Config { idle_timeout: Span::from_secs(10), ..Config::new() };

/// The first bytes of a node. An identified connection is not closed in favour of another caller.
const IDENTIFY: &[u8] = b"  V1IDENTIFY\n\0\0\0\x51{\"broadcast_address\":\"a\",\"hostname\":\"h\",\
    \"http_port\":1,\"tcp_port\":2,\"version\":\"v\"}";

/// Starts an nsqlookupd on the device with `SLOTS` slots and, if `spare`, a spare one.
fn serve<const SLOTS: usize>(world: &World, device: Stack<'static>, spare: bool) -> Handle {
    let resources = leak(Resources::<NoopRawMutex, SLOTS, 4, 4, 0, 64>::new());
    let slots = std::array::from_fn(|_| listener(device));
    let spare = spare.then(|| listener(device));
    let ports = Ports { tcp: Port { slots, spare }, http: Port::NONE };
    let (handle, mut runner) = nsqlookupd::new(resources, CONFIG, ports, EmbassySleep);
    world.spawn(async move { runner.run().await });
    handle
}

/// Returns the number of identified nodes.
fn nodes(handle: &Handle) -> usize {
    let known = handle.look(|it| (0..it.clients()).filter(|n| it.producer(*n).is_some()).count());
    known.unwrap()
}

/// Starts an nsqlookupd with two slots and a spare one that rejects.
fn serve_two(world: &World, device: Stack<'static>) -> Handle {
    serve::<2>(world, device, true)
}

/// Connects a caller. It may yet be rejected: see [`identifies`].
async fn call(host: Stack<'static>) -> TcpSocket<'static> {
    let mut caller = socket(host);
    let address: std::net::IpAddr = "10.0.0.1".parse().unwrap();
    caller.connect((address, PORT)).await.unwrap();
    caller
}

/// Reads `n` bytes, or fewer if the other side closes.
async fn receive(caller: &mut TcpSocket<'_>, n: usize) -> Result<Vec<u8>, embassy_net::tcp::Error> {
    let mut received = Vec::new();
    let mut buf = [0; 64];
    while received.len() < n {
        let room = buf.len().min(n - received.len());
        match caller.read(&mut buf[..room]).await? {
            0 => break,
            read => received.extend(&buf[..read]),
        }
    }
    Ok(received)
}

/// Sends IDENTIFY and returns whether the caller is served rather than rejected.
async fn identifies(caller: &mut TcpSocket<'_>) -> Result<bool, embassy_net::tcp::Error> {
    caller.write(IDENTIFY).await?;
    let head = receive(caller, 5).await?;
    if head.get(4) != Some(&b'{') {
        assert!(Protocol::V1.refusal().starts_with(&head));
        return Ok(false);
    }
    let len = usize::from(head[3]) - 1;
    Ok(receive(caller, len).await?.len() == len)
}

async fn is_served(caller: &mut TcpSocket<'_>) -> bool {
    caller.write(b"PING\n").await.unwrap();
    receive(caller, 6).await.unwrap() == b"\0\0\0\x02OK"
}

/// Connects, sends a magic and more, and returns whether the caller is rejected.
async fn is_rejected(host: Stack<'static>) -> bool {
    let mut caller = call(host).await;
    caller.write(b"  V1").await.unwrap();
    caller.write(&[b'x'; 400]).await.unwrap();
    let received = receive(&mut caller, usize::MAX).await;
    caller.close();
    caller.flush().await.unwrap();
    received.unwrap() == Protocol::V1.refusal()
}

/// How the connection of a caller ends.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    Closes,
    Resets,
    /// The server closes first, after an invalid command.
    IsClosed,
}

const LEAVES: [Leaves; 3] = [Leaves::Closes, Leaves::Resets, Leaves::IsClosed];

async fn leave(mut caller: TcpSocket<'static>, how: Leaves) {
    match how {
        Leaves::Closes => caller.close(),
        Leaves::Resets => caller.abort(),
        Leaves::IsClosed => {
            caller.write(b"BYE\n").await.unwrap();
            assert!(receive(&mut caller, usize::MAX).await.unwrap()[4..].starts_with(b"E_INVALID"));
            caller.close();
        }
    }
    caller.flush().await.unwrap();
}

#[test]
fn two_are_served_the_third_is_rejected_and_a_freed_slot_serves_at_once() {
    let world = World::new(6);
    let (device, host) = (world.device(), world.host());
    let handle = serve_two(&world, device);
    world.run(async {
        Timer::after_millis(1).await;
        let mut callers = vec![call(host).await, call(host).await];
        for caller in &mut callers {
            assert!(identifies(caller).await.unwrap());
        }
        for how in LEAVES.into_iter().cycle().take(12) {
            for caller in &mut callers {
                assert!(is_served(caller).await, "{how:?}");
            }
            assert!(is_rejected(host).await, "{how:?}");
            leave(callers.remove(0), how).await;
            // The wire takes half a millisecond.
            Timer::after_millis(1).await;
            let start = embassy_time::Instant::now();
            callers.push(call(host).await);
            assert!(identifies(&mut callers[1]).await.unwrap());
            assert!(start.elapsed().as_millis() < 5, "{how:?}: {}", start.elapsed());
        }
    });
    assert_eq!((handle.counters().identified, handle.turned_away()), (14, 12));
}

/// With lost, doubled and reordered packets a call may fail (in smoltcp a doubled SYN occupies
/// another slot and is reset), but no slot is lost.
#[test]
fn a_bad_network_costs_calls_but_no_slots() {
    for seed in 10..20 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let handle = serve_two(&world, device);
        let mut served = 0;
        world.run(async {
            for how in LEAVES.into_iter().cycle().take(30) {
                world.wire.set_faults(Faults::BAD);
                let mut caller = socket(host);
                caller.set_timeout(Some(embassy_time::Duration::from_secs(5)));
                let address: std::net::IpAddr = "10.0.0.1".parse().unwrap();
                // Fails if the slots of earlier callers are not free yet.
                if caller.connect((address, PORT)).await.is_ok()
                    && identifies(&mut caller).await == Ok(true)
                {
                    served += 1;
                }
                match how {
                    Leaves::Closes => caller.close(),
                    Leaves::Resets => caller.abort(),
                    Leaves::IsClosed => {
                        let _ = caller.write(b"BYE\n").await;
                        let _ = receive(&mut caller, usize::MAX).await;
                        caller.close();
                    }
                }
                let _ = caller.flush().await;
            }
            world.wire.set_faults(Faults::NONE);
            Timer::after_secs(15).await;
            let mut callers = [call(host).await, call(host).await];
            for caller in &mut callers {
                assert_eq!(identifies(caller).await, Ok(true), "seed {seed}");
            }
            assert!(is_rejected(host).await, "seed {seed}");
        });
        assert!(served >= 10, "seed {seed}: {served} of 30");
        assert!(handle.counters().identified >= served + 2, "seed {seed}");
    }
}

/// Checks that a long silence does no harm, then cuts the wire; returns the seconds to the reset.
async fn vanishing(world: &World, transport: &mut impl Transport, unacknowledged: bool) -> u64 {
    let mut buf = [0; 8];
    let read = poll_fn(|cx| transport.poll_read(cx, &mut buf));
    let silence = select(read, Timer::after_secs(1000)).await;
    assert!(matches!(silence, Either::Second(())), "{silence:?}");
    world.wire.set_faults(Faults::CUT);
    let start = embassy_time::Instant::now();
    if unacknowledged {
        let bytes = Transmit { head: b"hello", body: &[] };
        poll_fn(|cx| transport.poll_write(cx, bytes)).await.unwrap();
    }
    assert_eq!(poll_fn(|cx| transport.poll_read(cx, &mut buf)).await, Err(TransportError::Reset));
    start.elapsed().as_secs()
}

/// TCP keepalive ends accepted and dialed connections, idle or with bytes that are not
/// acknowledged. No session with a deadline is involved.
#[test]
fn a_peer_that_vanishes_is_detected_within_150_seconds() {
    for unacknowledged in [false, true] {
        let world = World::new(9);
        let (device, host) = (world.device(), world.host());
        world.run(async {
            let (mut slot, mut dialing) = (listener(device), dialer(host));
            let address = "10.0.0.1:4150".parse().unwrap();
            {
                let (accepted, dialed) = join(accept(&mut slot), dialing.dial(&address)).await;
                accepted.unwrap();
                let mut dialed = dialed.unwrap();
                let accepted = vanishing(&world, &mut slot, unacknowledged);
                let dialed = vanishing(&world, &mut dialed, unacknowledged);
                for took in <[u64; 2]>::from(join(accepted, dialed).await) {
                    assert!((130..=150).contains(&took), "{unacknowledged}: {took} s");
                }
            }
            world.wire.set_faults(Faults::NONE);
            slot.release();
            let (accepted, _caller) = join(accept(&mut slot), call(host)).await;
            assert!(accepted.is_ok(), "the slot is free again");
        });
    }
}

/// The session closes the connection at its deadline, and aborts it because the FIN is not
/// acknowledged.
#[test]
fn a_caller_that_vanishes_keeps_its_slot_until_the_session_times_out() {
    let world = World::new(7);
    let (device, host) = (world.device(), world.host());
    let handle = serve_two(&world, device);
    world.run(async {
        Timer::after_millis(1).await;
        let mut vanishing = call(host).await;
        assert!(identifies(&mut vanishing).await.unwrap());
        world.wire.set_faults(Faults::CUT);
        vanishing.abort();
        Timer::after_secs(12).await;
        world.wire.set_faults(Faults::NONE);
        let mut callers = [call(host).await, call(host).await];
        for caller in &mut callers {
            assert!(identifies(caller).await.unwrap());
        }
    });
    assert_eq!((handle.counters().identified, nodes(&handle)), (3, 2));
    assert!(world.wire.sent(DEVICE).resets > 0, "the session aborts the connection");
}

#[test]
fn a_rejected_caller_delays_the_next_one_for_a_bounded_time() {
    let world = World::new(8);
    let (device, host) = (world.device(), world.host());
    let _handle = serve_two(&world, device);
    world.run(async {
        Timer::after_millis(1).await;
        let mut callers = [call(host).await, call(host).await];
        for caller in &mut callers {
            assert!(identifies(caller).await.unwrap());
        }
        // The spare slot listens once the handshakes of the others are over.
        Timer::after_millis(1).await;
        // This caller sends nothing, receives the answer and does not close.
        let mut silent = call(host).await;
        let start = embassy_time::Instant::now();
        assert_eq!(receive(&mut silent, usize::MAX).await.unwrap(), Protocol::V1.refusal());
        // A silent caller is answered soon, so that the next caller does not wait behind it.
        let waited = start.elapsed().as_millis();
        assert!((200..400).contains(&waited), "{waited} ms");
        Timer::after_millis(1010).await;
        assert!(is_rejected(host).await);
        for caller in &mut callers {
            assert!(is_served(caller).await);
        }
    });
}
