//! Accept slots, and callers for which no slot is free, over real sockets of this machine.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::{Duration, Instant as StdInstant};

use nanonsq_std::core::drive::nsqlookupd::{self, Resources};
use nanonsq_std::core::drive::{AcceptError, Dialer, Listener, Port, Ports};
use nanonsq_std::core::nsqlookupd::Config;
use nanonsq_std::core::session::reject::Protocol;
use nanonsq_std::{NoopRawMutex, TcpDialer, TcpListener, TokioSleep};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The first bytes of a node. An identified connection is not closed in favour of another caller.
const IDENTIFY: &[u8] = b"  V1IDENTIFY\n\0\0\0\x51{\"broadcast_address\":\"a\",\"hostname\":\"h\",\
    \"http_port\":1,\"tcp_port\":2,\"version\":\"v\"}";

/// Runs an nsqlookupd with two slots and a spare one until `callers` is done.
async fn serving<T>(callers: impl AsyncFnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut resources = Resources::<NoopRawMutex, 2, 4, 4, 0, 64>::new();
    let config = Config::new();
    let ports = Ports { tcp: Port::new(|| listener.clone()), http: Port::NONE };
    let (_, mut runner) = nsqlookupd::new(&mut resources, &config, ports, TokioSleep::new());
    tokio::select! {
        biased;
        never = runner.run() => never,
        done = tokio::time::timeout(Duration::from_secs(60), callers(address)) => {
            done.expect("in time")
        }
    }
}

/// Connects and identifies: a caller that is served.
async fn call(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(IDENTIFY).await.unwrap();
    let len = stream.read_u32().await.unwrap();
    let mut answer = vec![0; len as usize];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"{"), "{}", answer.escape_ascii());
    assert!(is_served(&mut stream).await);
    stream
}

async fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(b"PING\n").await.unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).await.is_ok() && answer == *b"\0\0\0\x02OK"
}

async fn accept(listener: &mut TcpListener) -> Result<SocketAddr, AcceptError> {
    poll_fn(|cx| listener.poll_accept(cx)).await
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    stream.read_to_end(&mut received).await.unwrap();
    received
}

#[tokio::test]
async fn slots_of_one_port_return_the_callers_address_and_turn_nagle_off() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut other = listener.clone();
    assert_eq!(other.local_addr().unwrap(), address);
    let caller = TcpStream::connect(address).await.unwrap();
    let from = accept(&mut listener).await.unwrap();
    assert!(listener.stream().unwrap().nodelay().unwrap());
    assert_eq!(from, caller.local_addr().unwrap());
    let caller = TcpStream::connect(address).await.unwrap();
    let from = accept(&mut other).await.unwrap();
    assert_eq!(from, caller.local_addr().unwrap());
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = TcpListener::bind(listener.local_addr().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn callers_beyond_the_slots_are_rejected_and_a_freed_slot_serves_at_once() {
    serving(async |address| {
        let mut callers = vec![call(address).await, call(address).await];
        for round in 0..20 {
            let mut rejected = TcpStream::connect(address).await.unwrap();
            rejected.write_all(IDENTIFY).await.unwrap();
            assert_eq!(read_all(&mut rejected).await, Protocol::V1.refusal(), "round {round}");
            drop(rejected);
            // In turn, the oldest closes or is closed by the server for an invalid command.
            let mut left = callers.remove(0);
            if round % 2 == 1 {
                left.write_all(b"BYE\n").await.unwrap();
                assert!(read_all(&mut left).await[4..].starts_with(b"E_INVALID"));
            }
            drop(left);
            callers.push(call(address).await);
            for caller in &mut callers {
                assert!(is_served(caller).await);
            }
        }
    })
    .await;
}

/// A rejected caller that first writes a megabyte receives the answer, not a reset.
#[tokio::test]
async fn a_rejected_caller_that_writes_much_before_it_reads_receives_the_answer() {
    serving(async |address| {
        let _callers = [call(address).await, call(address).await];
        for _ in 0..5 {
            let mut rejected = TcpStream::connect(address).await.unwrap();
            rejected.write_all(b"  V1").await.unwrap();
            for _ in 0..1000 {
                rejected.write_all(&[b'x'; 1000]).await.unwrap();
            }
            assert_eq!(read_all(&mut rejected).await, Protocol::V1.refusal());
        }
    })
    .await;
}

#[tokio::test]
async fn a_silent_rejected_caller_delays_the_next_one_for_a_bounded_time() {
    serving(async |address| {
        let _callers = [call(address).await, call(address).await];
        let start = StdInstant::now();
        // Neither sends anything or closes.
        let silent = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        for mut caller in silent {
            let mut received = Vec::new();
            caller.read_buf(&mut received).await.unwrap();
            assert_eq!(received, Protocol::V1.refusal());
            // Kept open: the server must wait out the second that a caller has to close.
            std::mem::forget(caller);
        }
        assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    })
    .await;
}

/// As in Go (`*` in netstat). The address of a caller over IPv4 is not `::ffff:127.0.0.1`.
#[tokio::test]
async fn the_unspecified_ipv6_address_accepts_both_families() {
    let mut listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(host.parse().unwrap(), port);
        let (accepted, caller) = tokio::join!(accept(&mut listener), TcpStream::connect(address));
        assert_eq!(accepted.unwrap(), caller.unwrap().local_addr().unwrap());
    }
}

#[tokio::test]
async fn bind_uses_the_first_available_address() {
    // The first is not an address of this machine.
    let addresses: [SocketAddr; 2] =
        ["192.0.2.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
    let listener = TcpListener::bind(&addresses[..]).await.unwrap();
    assert_eq!(listener.local_addr().unwrap().ip(), addresses[1].ip());
    let again = TcpListener::bind(listener.local_addr().unwrap()).await;
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

/// A peer that vanishes frees its slot, even without heartbeats.
#[tokio::test]
async fn dialed_and_accepted_connections_have_keepalive() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let mut dialer = TcpDialer::new();
    let (accepted, dialed) = tokio::join!(accept(&mut listener), dialer.dial(&address));
    accepted.unwrap();
    for stream in [listener.stream().unwrap(), &dialed.unwrap().0] {
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        let second = Duration::from_secs(1);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), 15 * second);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), 15 * second);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
    }
}
