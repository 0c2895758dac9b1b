//! Accept slots, and callers for whom there is none, over real sockets of this machine.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, Instant as StdInstant};

use nanonsq_std::core::drive::{Dialer, Gate, Listener, SessionCell, refuse, serve};
use nanonsq_std::core::reject::{Protocol, Reject};
use nanonsq_std::core::session::{Closed, Fault, Link, Session, Transmit};
use nanonsq_std::core::time::{Instant, Span};
use nanonsq_std::{NoopRawMutex, TcpDialer, TcpListener, TokioSleep};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends everything back; hangs up after a full stop.
#[derive(Default)]
struct Echo {
    up: bool,
    closing: Option<Instant>,
    back: Vec<u8>,
    from: Vec<SocketAddr>,
    ended: Vec<Closed>,
}

impl Session for Echo {
    fn link(&self) -> Link {
        match (self.up, self.closing) {
            (false, _) => Link::Down,
            (true, None) => Link::Up,
            (true, Some(_)) => Link::Close,
        }
    }

    fn open(&mut self, _: Instant) {
        self.back.clear();
        (self.up, self.closing) = (true, None);
    }

    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        self.from.push(from);
        self.open(now);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if self.closing.is_none() {
            self.back.extend(bytes);
            self.closing = bytes.contains(&b'.').then(|| now.after(Span::from_secs(1)));
        }
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: &self.back, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.back.drain(..n);
    }

    fn deadline(&self) -> Instant {
        self.closing.unwrap_or(Instant::NEVER)
    }

    fn tick(&mut self, _: Instant) {}

    fn closed(&mut self, _: Instant, why: Closed) {
        self.up = false;
        self.ended.push(why);
    }
}

#[derive(Default)]
struct Cell<S>(RefCell<S>);

impl<S: Session> SessionCell for Cell<S> {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut *self.0.borrow_mut());
    }

    fn register(&self, _: &std::task::Waker) {}
}

/// Two slots and a spare one that refuses, while `callers` run.
async fn serving<T>(protocol: Protocol, callers: impl AsyncFnOnce(SocketAddr) -> T) -> T {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Gate::<NoopRawMutex>::new(2);
    let cells = [Cell::<Echo>::default(), Cell::default()];
    let slot = async |cell| {
        let (mut slot, mut sleep) = (gate.admit(listener.clone()), TokioSleep::new());
        serve(cell, &mut slot, &mut sleep, &mut [0; 64]).await
    };
    let busy = Cell(RefCell::new(Reject::new(protocol)));
    let spare = async {
        let (mut slot, mut sleep) = (listener.clone(), TokioSleep::new());
        refuse(&gate, &busy, &mut slot, &mut sleep, &mut [0; 64]).await
    };
    tokio::select! {
        biased;
        never = slot(&cells[0]) => never,
        never = slot(&cells[1]) => never,
        never = spare => never,
        done = tokio::time::timeout(Duration::from_secs(60), callers(address)) => {
            done.expect("in time")
        }
    }
}

/// A caller that is served.
async fn call(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    assert!(is_served(&mut stream).await);
    stream
}

async fn is_served(stream: &mut TcpStream) -> bool {
    stream.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    stream.read_exact(&mut heard).await.is_ok() && heard == *b"hello"
}

#[tokio::test]
async fn slots_of_one_port_are_told_who_calls_and_turn_nagle_off() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut other = listener.clone();
    assert_eq!(other.local_addr().unwrap(), address);
    let caller = TcpStream::connect(address).await.unwrap();
    let (transport, from) = listener.accept().await.unwrap();
    assert!(transport.0.nodelay().unwrap());
    assert_eq!(from, caller.local_addr().unwrap());
    let caller = TcpStream::connect(address).await.unwrap();
    let (_transport, from) = other.accept().await.unwrap();
    assert_eq!(from, caller.local_addr().unwrap());
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = TcpListener::bind(listener.local_addr().unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn callers_beyond_the_slots_hear_why_and_a_slot_that_is_left_serves_at_once() {
    const ASKED: [(Protocol, &[u8]); 3] = [
        (Protocol::V1, b"  V1IDENTIFY\n\0\0\0\x02{}"),
        (Protocol::V2, b"  V2IDENTIFY\n\0\0\0\x02{}"),
        (Protocol::Http, b"GET /lookup?topic=t HTTP/1.1\r\nHost: x\r\n\r\n"),
    ];
    for (protocol, asked) in ASKED {
        serving(protocol, async |address| {
            let mut callers = vec![call(address).await, call(address).await];
            for round in 0..20 {
                let mut refused = TcpStream::connect(address).await.unwrap();
                refused.write_all(asked).await.unwrap();
                let mut heard = Vec::new();
                refused.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard, protocol.refusal(), "round {round}");
                drop(refused);
                // One leaves, or is left.
                if round % 2 == 0 {
                    drop(callers.remove(0));
                } else {
                    let mut left = callers.remove(0);
                    left.write_all(b"bye.").await.unwrap();
                    let mut heard = Vec::new();
                    left.read_to_end(&mut heard).await.unwrap();
                    assert_eq!(heard, b"bye.");
                }
                callers.push(call(address).await);
                for caller in &mut callers {
                    assert!(is_served(caller).await);
                }
            }
        })
        .await;
    }
}

/// Who still writes a megabyte hears the answer, and not a reset.
#[tokio::test]
async fn a_caller_that_writes_much_before_it_reads_hears_why() {
    serving(Protocol::Http, async |address| {
        let _callers = [call(address).await, call(address).await];
        for _ in 0..5 {
            let mut refused = TcpStream::connect(address).await.unwrap();
            refused.write_all(b"POST /pub?topic=t HTTP/1.1\r\nHost: x\r\n").await.unwrap();
            for _ in 0..1000 {
                refused.write_all(&[b'x'; 1000]).await.unwrap();
            }
            let mut heard = Vec::new();
            refused.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, Protocol::Http.refusal());
        }
    })
    .await;
}

#[tokio::test]
async fn a_refused_caller_that_does_nothing_keeps_nobody_waiting_for_long() {
    serving(Protocol::V2, async |address| {
        let _callers = [call(address).await, call(address).await];
        let start = StdInstant::now();
        // Neither says anything, nor hangs up.
        let silent = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        for mut caller in silent {
            let mut heard = Vec::new();
            caller.read_buf(&mut heard).await.unwrap();
            assert_eq!(heard, Protocol::V2.refusal());
            // Kept open: its second to hang up has to pass.
            std::mem::forget(caller);
        }
        assert!(start.elapsed() < Duration::from_secs(7), "{:?}", start.elapsed());
    })
    .await;
}

/// As Go's: `*` in netstat. A caller over IPv4 is not shown as `::ffff:127.0.0.1`.
#[tokio::test]
async fn all_addresses_are_those_of_both_families() {
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "::1"] {
        let address = SocketAddr::new(host.parse().unwrap(), port);
        let (accepted, caller) =
            tokio::join!(async { listener.clone().accept().await.map(|(_, from)| from) }, async {
                TcpStream::connect(address).await
            });
        assert_eq!(accepted.unwrap(), caller.unwrap().local_addr().unwrap());
    }
}

#[tokio::test]
async fn the_first_address_that_is_to_be_had() {
    // Not one of this machine's.
    let addresses: [SocketAddr; 2] =
        ["192.0.2.1:0".parse().unwrap(), "127.0.0.1:0".parse().unwrap()];
    let listener = TcpListener::bind(&addresses[..]).await.unwrap();
    assert_eq!(listener.local_addr().unwrap().ip(), addresses[1].ip());
    let again = TcpListener::bind(listener.local_addr().unwrap()).await;
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
}

/// Whoever vanishes without a word, and has no heartbeats, gives its slot back.
#[tokio::test]
async fn dialed_and_accepted_connections_have_keepalive() {
    let mut listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let mut dialer = TcpDialer::new();
    let (accepted, dialed) = tokio::join!(listener.accept(), dialer.dial(&address));
    for stream in [&accepted.unwrap().0.0, &dialed.unwrap().0] {
        let socket = SockRef::from(stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        let second = Duration::from_secs(1);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), 15 * second);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), 15 * second);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
    }
}
