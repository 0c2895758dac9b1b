//! Dialing addresses and names, causes of failed dials, closing and resets.

use embassy_futures::select::{Either, select};
use embassy_net::driver::{HardwareAddress, LinkState};
use embassy_net::tcp::TcpSocket;
use embassy_net::{Config, ConfigV4, IpEndpoint, Stack};
use embassy_time::{Duration, Instant, Timer};
use nanonsq_core::drive::{Dialer, Transport};
use nanonsq_core::publisher::{Config as PublishConfig, State};
use nanonsq_core::session::{Closed, DialError, Transmit};
use nanonsq_core::time::Span;
use nanonsq_embassy::{EmbassySleep, Sockets, TcpListener, TcpStorage};

use crate::peers::{self, NSQD, Nsqd};
use crate::world::{DEVICE, Faults, HOST, World, both, ipv4};
use crate::{LIVELY, dialer, leak, next_loss, publisher, topic};

/// Dials from the device; returns the result and the time taken.
async fn dial(stack: Stack<'static>, address: &str) -> (Result<(), DialError>, Duration) {
    let start = Instant::now();
    let mut dialer = dialer(stack);
    let result = dialer.dial(&address.parse().unwrap()).await.map(drop);
    let took = start.elapsed();
    // The FIN must leave before the socket is dropped. smoltcp also sends only one neighbour
    // request a second.
    Timer::after_secs(1).await;
    (result, took)
}

#[test]
fn names_and_literals_of_both_families() {
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    world.spawn(peers::dns_server(host));
    Nsqd::start(&world, host);
    world.run(async {
        for address in
            ["10.0.0.2:4150", "[fd00::2]:4150", "v4.test:4150", "v6.test:4150", "both.test:4150"]
        {
            let (result, took) = dial(device, address).await;
            assert_eq!(result, Ok(()), "{address}");
            assert!(took < Duration::from_millis(30), "{address} took {took}");
        }
        // No host has the first of its addresses.
        let (result, took) = dial(device, "stale.test:4150").await;
        assert_eq!(result, Ok(()));
        assert!(took > Duration::from_secs(1) && took < Duration::from_millis(1100), "{took}");
    });
}

#[test]
fn each_failure_keeps_its_cause() {
    let mut world = World::new(2);
    // Only on Ethernet can an address have no route.
    world.medium = HardwareAddress::Ethernet([0; 6]);
    let (device, host) = (world.device(), world.host());
    world.spawn(peers::dns_server(host));
    world.run(async {
        for (address, error) in [
            ("10.0.0.2:4151", DialError::Refused),
            ("[fd00::2]:4151", DialError::Refused),
            ("v4.test:4151", DialError::Refused),
            ("192.168.1.1:4150", DialError::Unreachable),
            ("[fd01::1]:4150", DialError::Unreachable),
            ("0.0.0.0:4150", DialError::Unreachable),
            ("unknown.test:4150", DialError::NameNotFound),
            ("not..a.name:4150", DialError::NameNotFound),
        ] {
            let (result, took) = dial(device, address).await;
            assert_eq!(result, Err(error), "{address}");
            assert!(took < Duration::from_millis(50), "{address} took {took}");
        }
        // Without an address of the family.
        device.set_config_v4(ConfigV4::None);
        assert_eq!(dial(device, "10.0.0.2:4150").await.0, Err(DialError::Unreachable));
        device.set_config_v6(Default::default());
        assert_eq!(dial(device, "[fd00::2]:4150").await.0, Err(DialError::Unreachable));
        assert_eq!(dial(device, "v4.test:4150").await.0, Err(DialError::Unreachable));
        device.set_config_v4(ConfigV4::Static(ipv4(DEVICE)));
        // Without a link.
        world.wire.set_link(LinkState::Down);
        Timer::after_millis(1).await;
        assert_eq!(dial(device, "10.0.0.2:4150").await.0, Err(DialError::Unreachable));
        assert_eq!(dial(device, "v4.test:4150").await.0, Err(DialError::Unreachable));
    });
}

#[test]
fn losing_the_address_while_dialing_is_not_a_refusal() {
    let world = World::new(3);
    let device = world.device();
    world.run(async {
        let lose = async {
            Timer::after_millis(300).await;
            device.set_config_v4(ConfigV4::None);
            std::future::pending::<()>().await;
        };
        match select(dial(device, "10.0.0.2:4150"), lose).await {
            Either::First((result, _)) => assert_eq!(result, Err(DialError::Unreachable)),
            Either::Second(()) => unreachable!(),
        }
    });
}

#[test]
fn a_publisher_reports_why_it_does_not_connect() {
    let world = World::new(4);
    let (device, host) = (world.device(), world.host());
    world.spawn(peers::dns_server(host));
    for (address, error, within) in [
        ("10.0.0.2:4151", DialError::Refused, 10),
        ("unknown.test:4150", DialError::NameNotFound, 10),
        // Without an answer, the session's connect timeout is the bound.
        ("10.0.0.77:4150", DialError::TimedOut, 5010),
        ("mute.test:4150", DialError::TimedOut, 5010),
    ] {
        let (publisher, mut runner) = publisher(device, LIVELY, &[address], 1000);
        world.run(async {
            let start = Instant::now();
            match select(runner.run(), next_loss(publisher)).await {
                Either::First(never) => never,
                Either::Second(why) => assert_eq!(why, Closed::Dial(error), "{address}"),
            }
            assert!(start.elapsed() < Duration::from_millis(within), "{address}");
        });
    }
}

#[test]
fn a_dialer_dials_for_ever_with_one_socket() {
    const SOCKETS: usize = Sockets { publishers: 1, ..Sockets::NONE }.count();
    assert_eq!(SOCKETS, 2);
    let world = World::new(5);
    let device = world.stack::<SOCKETS>(DEVICE, both(DEVICE));
    let host = world.host();
    Nsqd::start(&world, host);
    world.run(async {
        let mut dialer = dialer(device);
        for round in 0..200 {
            let address = ["10.0.0.2:4150", "10.0.0.77:4150", "10.0.0.2:4151"][round % 3];
            let address = address.parse().unwrap();
            let wait = Timer::after_millis(round as u64 / 10);
            match select(dialer.dial(&address), wait).await {
                Either::First(Ok(mut transport)) => match round % 4 {
                    0 => transport.abort(),
                    1 => {
                        let close = std::future::poll_fn(|cx| transport.poll_close(cx));
                        let _ = select(close, Timer::after_millis(round as u64 / 20)).await;
                    }
                    _ => {}
                },
                Either::First(Err(error)) => assert_eq!(error, DialError::Refused),
                Either::Second(()) => {}
            }
        }
    });
}

#[test]
#[should_panic(expected = "adding a socket to a full SocketSet")]
fn one_socket_less_is_too_few() {
    const SOCKETS: Sockets = Sockets { publishers: 1, listeners: 1, ..Sockets::NONE };
    let world = World::new(6);
    let device = world.stack::<{ SOCKETS.count() - 1 }>(DEVICE, both(DEVICE));
    let _dialer = dialer(device);
    let _listener = TcpListener::new(device, 80, leak(TcpStorage::<64, 64>::new()));
}

#[test]
fn dhcp_takes_a_socket() {
    const SOCKETS: Sockets = Sockets { dhcp: true, publishers: 1, ..Sockets::NONE };
    let mut world = World::new(7);
    world.medium = HardwareAddress::Ethernet([0; 6]);
    let device = world.stack::<{ SOCKETS.count() }>(DEVICE, Config::dhcpv4(Default::default()));
    world.run(async {
        // There is no DHCP server.
        assert_eq!(dial(device, "10.0.0.2:4150").await.0, Err(DialError::Unreachable));
    });
}

/// Connects the device to a socket of the host; returns both ends.
async fn connection<'d>(
    dialer: &'d mut nanonsq_embassy::TcpDialer<'static>,
    host: Stack<'static>,
) -> (nanonsq_embassy::TcpTransport<'d, 'static>, TcpSocket<'static>) {
    let mut socket = TcpSocket::new(host, vec![0; 512].leak(), vec![0; 512].leak());
    let address = "10.0.0.2:4150".parse().unwrap();
    let (accepted, dialed) =
        embassy_futures::join::join(socket.accept(NSQD), dialer.dial(&address)).await;
    accepted.unwrap();
    (dialed.unwrap(), socket)
}

#[test]
fn head_and_body_leave_in_one_segment_and_arrive_whole() {
    let world = World::new(8);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut dialer = dialer(device);
        let (mut transport, mut socket) = connection(&mut dialer, host).await;
        Timer::after_millis(100).await;
        let before = world.wire.sent(DEVICE).packets;
        let bytes = Transmit { head: b"PUB t\n", body: &[7; 300] };
        let written = std::future::poll_fn(|cx| transport.poll_write(cx, bytes)).await;
        assert_eq!(written, Ok(306));
        let mut buf = [0; 512];
        assert_eq!(socket.read(&mut buf).await, Ok(306));
        assert_eq!(&buf[..7], b"PUB t\n\x07");
        assert_eq!(world.wire.sent(DEVICE).packets - before, 1);
        // Small writes do not wait for the ACK of earlier writes, which takes 10 ms.
        for _ in 0..3 {
            let start = Instant::now();
            let bytes = Transmit { head: b"NOP\n", body: &[] };
            std::future::poll_fn(|cx| transport.poll_write(cx, bytes)).await.unwrap();
            assert_eq!(socket.read(&mut buf).await, Ok(4));
            assert!(start.elapsed() < Duration::from_millis(1), "{}", start.elapsed());
        }
        // A write fills the buffer; the next one waits.
        Timer::after_millis(100).await;
        let all = Transmit { head: &[1; 1000], body: &[2; 1000] };
        let written = std::future::poll_fn(|cx| transport.poll_write(cx, all)).await;
        assert_eq!(written, Ok(1500));
        let more = select(std::future::poll_fn(|cx| transport.poll_write(cx, all)), async {});
        assert!(matches!(more.await, Either::Second(())));
    });
}

#[test]
fn a_dropped_transport_closes_and_an_aborted_one_resets() {
    let world = World::new(9);
    let (device, host) = (world.device(), world.host());
    world.run(async {
        let mut dialer = dialer(device);
        // The written bytes arrive, then the end.
        let (mut transport, mut socket) = connection(&mut dialer, host).await;
        let bytes = Transmit { head: b"bye", body: &[] };
        std::future::poll_fn(|cx| transport.poll_write(cx, bytes)).await.unwrap();
        drop(transport);
        let mut buf = [0; 8];
        assert_eq!(socket.read(&mut buf).await, Ok(3));
        assert_eq!(socket.read(&mut buf).await, Ok(0));
        assert_eq!((world.wire.sent(DEVICE).fins, world.wire.sent(DEVICE).resets), (1, 0));
        drop(socket);
        // The RST leaves even if the transport is dropped right after the abort, as by the driver.
        let (mut transport, mut socket) = connection(&mut dialer, host).await;
        let resets = world.wire.sent(DEVICE).resets;
        transport.abort();
        drop(transport);
        assert_eq!(socket.read(&mut buf).await, Err(embassy_net::tcp::Error::ConnectionReset));
        assert_eq!(world.wire.sent(DEVICE).resets, resets + 1);
        drop(socket);
        // The RST leaves before the SYN of an immediate redial.
        let (mut transport, mut socket) = connection(&mut dialer, host).await;
        transport.abort();
        drop(transport);
        let (_transport, _socket) = connection(&mut dialer, host).await;
        assert_eq!(socket.read(&mut buf).await, Err(embassy_net::tcp::Error::ConnectionReset));
        assert_eq!(world.wire.sent(DEVICE).resets, resets + 2);
    });
}

#[test]
fn a_dial_given_up_leaves_nothing_listening_or_half_open() {
    let world = World::new(10);
    let (device, host) = (world.device(), world.host());
    world.wire.set_faults_from(HOST, Faults::CUT);
    world.run(async {
        let mut socket = TcpSocket::new(host, vec![0; 512].leak(), vec![0; 512].leak());
        let mut dialer = dialer(device);
        let address = "10.0.0.2:4150".parse().unwrap();
        {
            let dial = select(dialer.dial(&address), Timer::after_secs(2));
            let both = select(socket.accept(NSQD), dial).await;
            assert!(matches!(both, Either::Second(Either::Second(()))));
        }
        // The half-open end receives a RST and listens again.
        let fresh: Option<IpEndpoint> = None;
        Timer::after_millis(10).await;
        assert_eq!(world.wire.sent(DEVICE).resets, 1);
        assert_eq!(socket.remote_endpoint(), fresh);
    });
}

#[test]
fn closing_is_bounded_without_acknowledgements() {
    let world = World::new(11);
    let (device, host) = (world.device(), world.host());
    Nsqd::start(&world, host);
    let config = PublishConfig { close_timeout: Span::from_millis(700), ..PublishConfig::new() };
    let (publisher, mut runner) = publisher(device, config, &["10.0.0.2:4150"], 2000);
    world.run(async {
        let script = async {
            publisher.wait(|publisher| (publisher.state() == State::Ready).then_some(())).await;
            world.wire.set_faults_from(HOST, Faults::CUT);
            let _ = publisher.publish(&topic("t"), &[b'x'; 500]).await.unwrap();
            Timer::after_millis(100).await;
            let start = Instant::now();
            publisher.stop(&EmbassySleep).await;
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(700) && took < Duration::from_millis(710));
            // The RST leaves although the transport is dropped.
            Timer::after_millis(10).await;
            assert_eq!(world.wire.sent(DEVICE).resets, 1);
        };
        select(runner.run(), script).await;
    });
}

#[test]
fn closing_takes_a_round_trip_when_all_is_well() {
    let world = World::new(12);
    let (device, host) = (world.device(), world.host());
    Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, &["10.0.0.2:4150"], 2000);
    world.run(async {
        let script = async {
            let _ = publisher.publish(&topic("t"), b"x").await.unwrap();
            publisher.idle().await;
            let start = Instant::now();
            publisher.stop(&EmbassySleep).await;
            assert!(start.elapsed() < Duration::from_millis(15), "{}", start.elapsed());
            Timer::after_secs(1).await;
            assert_eq!((world.wire.sent(DEVICE).fins, world.wire.sent(DEVICE).resets), (1, 0));
        };
        select(runner.run(), script).await;
    });
}
