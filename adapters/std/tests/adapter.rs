//! Dialing, transports and time, against real sockets of this machine.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use nanonsq_std::core::address::Address;
use nanonsq_std::core::drive::{Dialer, Sleep, Transport};
use nanonsq_std::core::session::{DialError, Transmit, TransportError};
use nanonsq_std::core::time::{Instant, Span};
use nanonsq_std::{TcpDialer, TokioSleep};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

async fn listen(host: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((host, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn dial_error(host: &str, port: u16) -> DialError {
    TcpDialer::new().dial(&Address::new(host, port).unwrap()).await.expect_err("no connection")
}

#[tokio::test]
async fn a_dial_tries_every_address_of_a_name_and_turns_nagle_off() {
    // Where `localhost` resolves to ::1 first, that address refuses.
    let (_listener, port) = listen("127.0.0.1").await;
    for host in ["localhost", "127.0.0.1"] {
        let address = Address::new(host, port).unwrap();
        let transport = TcpDialer::new().dial(&address).await.unwrap();
        assert!(transport.0.nodelay().unwrap());
    }
}

#[tokio::test]
async fn ipv6_literals_are_dialed() {
    let Ok(listener) = TcpListener::bind("[::1]:0").await else {
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), "SKIPPED ipv6_literals_are_dialed: no IPv6 here");
        return;
    };
    let address = Address::new("::1", listener.local_addr().unwrap().port()).unwrap();
    TcpDialer::new().dial(&address).await.unwrap();
}

#[tokio::test]
async fn failures_keep_their_cause() {
    let (listener, port) = listen("127.0.0.1").await;
    drop(listener);
    assert_eq!(dial_error("127.0.0.1", port).await, DialError::Refused);
    assert_eq!(dial_error("no-such-host.invalid", 1).await, DialError::NameNotFound);
}

#[tokio::test]
async fn head_and_body_are_written_in_order_and_the_end_is_seen() {
    let (listener, port) = listen("127.0.0.1").await;
    let address = Address::new("127.0.0.1", port).unwrap();
    let mut dialer = TcpDialer::new();
    let mut transport = dialer.dial(&address).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();

    for (head, body) in [("PUB t\n", "body"), ("NOP\n", ""), ("", "rest")] {
        let bytes = Transmit { head: head.as_bytes(), body: body.as_bytes() };
        let written = poll_fn(|cx| transport.poll_write(cx, bytes)).await.unwrap();
        assert_eq!(written, bytes.len(), "a small write is written whole");
        let mut received = vec![0; written];
        peer.read_exact(&mut received).await.unwrap();
        assert_eq!(received, [head, body].concat().as_bytes());
    }

    let mut buf = [0; 3];
    let pending = poll_fn(|cx| Poll::Ready(transport.poll_read(cx, &mut buf).is_pending())).await;
    assert!(pending, "the peer has sent nothing yet");
    peer.write_all(b"hello").await.unwrap();
    assert_eq!(poll_fn(|cx| transport.poll_read(cx, &mut buf)).await, Ok(3));
    assert_eq!(poll_fn(|cx| transport.poll_read(cx, &mut buf)).await, Ok(2));

    poll_fn(|cx| transport.poll_close(cx)).await.unwrap();
    assert_eq!(peer.read(&mut [0; 1]).await.unwrap(), 0, "the peer sees the end");
    drop(peer);
    assert_eq!(poll_fn(|cx| transport.poll_read(cx, &mut buf)).await, Ok(0));
}

#[tokio::test]
async fn a_reset_is_an_error_with_its_cause() {
    let (listener, port) = listen("127.0.0.1").await;
    let address = Address::new("127.0.0.1", port).unwrap();
    let mut dialer = TcpDialer::new();
    let mut transport = dialer.dial(&address).await.unwrap();
    let (peer, _) = listener.accept().await.unwrap();
    let unread = Transmit { head: b"never read", body: &[] };
    poll_fn(|cx| transport.poll_write(cx, unread)).await.unwrap();
    peer.readable().await.unwrap();
    // A close with unread bytes resets the connection.
    drop(peer);
    let read = poll_fn(|cx| transport.poll_read(cx, &mut [0; 8])).await;
    assert_eq!(read, Err(TransportError::Reset));
}

#[tokio::test(start_paused = true)]
async fn time_is_tokios_and_a_clone_is_another_timer() {
    let mut sleep = TokioSleep::new();
    assert_eq!(sleep.now(), Instant::ZERO);
    tokio::time::advance(Duration::from_millis(1500)).await;
    let mut other = sleep.clone();
    assert_eq!(other.now(), Instant::from_millis(1500), "clones share the clock");

    let soon = sleep.now().after(Span::from_millis(10));
    let later = sleep.now().after(Span::from_millis(500));
    let first = poll_fn(|cx| {
        // The last call replaces the deadline of earlier calls.
        let _ = other.poll_until(cx, later);
        let _ = sleep.poll_until(cx, later);
        sleep.poll_until(cx, soon)
    });
    first.await;
    assert_eq!(other.now(), soon);
    poll_fn(|cx| other.poll_until(cx, later)).await;
    assert_eq!(sleep.now(), later);
    // A deadline in the past is ready at once; `NEVER` never is.
    poll_fn(|cx| sleep.poll_until(cx, soon)).await;
    let never = poll_fn(|cx| Poll::Ready(sleep.poll_until(cx, Instant::NEVER).is_pending())).await;
    assert!(never);
}
