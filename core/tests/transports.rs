//! [`Gathering`]: which calls reach the wrapped transport, and when.

#![cfg(feature = "async")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{
    Accept, AcceptError, AcceptSlot, Dialer, Gathered, Gathering, Listener, Transport,
};
use nanonsq_core::session::{DialError, Transmit, TransportError, Upgrade};

/// The next results of the wrapped transport, and the log of its calls.
#[derive(Debug, Default)]
struct Wire {
    /// The results of the next writes; without an entry a write takes all bytes.
    takes: VecDeque<Poll<Result<usize, TransportError>>>,
    reads: VecDeque<&'static [u8]>,
    log: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Pipe(Rc<RefCell<Wire>>);

impl Pipe {
    fn log(&self, text: impl ToString) {
        self.0.borrow_mut().log.push(text.to_string());
    }

    /// Takes the log since the last call.
    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.borrow_mut().log)
    }

    fn takes(&self, next: Poll<Result<usize, TransportError>>) {
        self.0.borrow_mut().takes.push_back(next);
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.log("read");
        let Some(bytes) = self.0.borrow_mut().reads.pop_front() else { return Poll::Pending };
        buf[..bytes.len()].copy_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let whole = [bytes.head, bytes.body].concat();
        let next = self.0.borrow_mut().takes.pop_front();
        let next = next.unwrap_or(Poll::Ready(Ok(whole.len())));
        match next {
            Poll::Ready(Ok(n)) => self.log(format!("write {}", whole[..n].escape_ascii())),
            other => self.log(format!("write {other:?}")),
        }
        next
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.log("close");
        Poll::Ready(Err(TransportError::Reset))
    }

    fn abort(&mut self) {
        self.log("abort");
    }

    fn send_gathered(&mut self, _: &mut Context<'_>) {
        self.log("send");
    }

    fn poll_upgrade(
        &mut self,
        _: &mut Context<'_>,
        _: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        self.log("upgrade");
        Poll::Ready(Err(TransportError::Unsupported))
    }
}

impl Dialer for Pipe {
    type Transport<'d> = Pipe;

    async fn dial(&mut self, _: &Address) -> Result<Pipe, DialError> {
        Ok(self.clone())
    }
}

impl Accept for Pipe {
    type Transport = Pipe;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<(Pipe, SocketAddr), AcceptError>> {
        Poll::Ready(Ok((self.clone(), ([10, 0, 0, 2], 4000).into())))
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(value) = pin!(future).poll(&mut context) else {
        panic!("the future is pending")
    };
    value
}

/// Runs `test` with a transport that gathers up to 8 bytes.
fn gathering(pipe: &Pipe, test: impl FnOnce(&mut dyn Transport, &mut Context<'_>)) {
    let address: Address = "h:1".parse().unwrap();
    let mut dialer = Gathering::<_, 8>(pipe.clone());
    let mut context = Context::from_waker(Waker::noop());
    test(&mut ready(dialer.dial(&address)).unwrap(), &mut context);
}

fn bytes<'b>(head: &'b str, body: &'b str) -> Transmit<'b> {
    Transmit { head: head.as_bytes(), body: body.as_bytes() }
}

const ALL: fn(usize) -> Poll<Result<usize, TransportError>> = |n| Poll::Ready(Ok(n));

#[test]
fn gathered_bytes_are_written_at_once_before_a_read() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "c")), ALL(3));
        assert_eq!(gathered.poll_write(cx, bytes("", "defgh")), ALL(5));
        assert_eq!(pipe.take_log(), [""; 0], "all eight bytes are kept");
        pipe.0.borrow_mut().reads.push_back(b"xy");
        let mut buf = [0; 4];
        assert_eq!(gathered.poll_read(cx, &mut buf), ALL(2));
        assert_eq!(buf, *b"xy\0\0");
        assert_eq!(pipe.take_log(), ["write abcdefgh", "read"]);
        assert!(gathered.poll_read(cx, &mut buf).is_pending());
        assert_eq!(pipe.take_log(), ["read"], "written once");
    });
}

#[test]
fn bytes_that_do_not_fit_wait_for_the_kept_bytes() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("abcd", "")), ALL(4));
        pipe.takes(Poll::Ready(Ok(3)));
        pipe.takes(Poll::Pending);
        assert!(gathered.poll_write(cx, bytes("12345", "")).is_pending());
        assert_eq!(pipe.take_log(), ["write abc", "write Pending"]);
        assert_eq!(gathered.poll_write(cx, bytes("12345", "")), ALL(5));
        assert_eq!(pipe.take_log(), ["write d"]);
        assert_eq!(gathered.poll_write(cx, bytes("678", "")), ALL(3));
        assert_eq!(pipe.take_log(), [""; 0], "the buffer is filled from its front again");
        // Exactly as many bytes as the buffer holds, then one more.
        assert_eq!(gathered.poll_write(cx, bytes("ABCD", "EFGH")), ALL(8));
        assert_eq!(pipe.take_log(), ["write 12345678"]);
        assert_eq!(gathered.poll_write(cx, bytes("nine", " byte")), ALL(9));
        assert_eq!(
            pipe.take_log(),
            ["write ABCDEFGH", "write nine byte"],
            "written without the buffer"
        );
    });
}

#[test]
fn kept_bytes_are_written_before_every_call_but_abort() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        let mut keep = |gathered: &mut dyn Transport| {
            assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        };
        keep(gathered);
        let cx = &mut Context::from_waker(Waker::noop());
        gathered.send_gathered(cx);
        assert_eq!(pipe.take_log(), ["write ab", "send"]);
        keep(gathered);
        assert_eq!(
            gathered.poll_upgrade(cx, Upgrade::Tls),
            Poll::Ready(Err(TransportError::Unsupported))
        );
        assert_eq!(pipe.take_log(), ["write ab", "upgrade"]);
        keep(gathered);
        assert_eq!(gathered.poll_close(cx), Poll::Ready(Err(TransportError::Reset)));
        assert_eq!(pipe.take_log(), ["write ab", "close"]);
        keep(gathered);
        gathered.abort();
        assert_eq!(pipe.take_log(), ["abort"]);
    });
}

#[test]
fn a_failed_write_is_reported_by_the_next_write_and_at_the_end() {
    let reset = Poll::Ready(Err(TransportError::Reset));
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        pipe.takes(reset);
        pipe.0.borrow_mut().reads.extend([&b"why"[..], b""]);
        let mut buf = [0; 4];
        assert_eq!(gathered.poll_read(cx, &mut buf), ALL(3), "the peer's last bytes are read");
        assert_eq!(gathered.poll_write(cx, bytes("c", "")), reset);
        assert_eq!(gathered.poll_read(cx, &mut buf), reset, "an error, not a clean end");
        assert_eq!(
            gathered.poll_close(cx).map(Result::err),
            Poll::Ready(Some(TransportError::Reset))
        );
        assert_eq!(pipe.take_log().iter().filter(|it| it.starts_with("write")).count(), 1);
    });
    // A write that takes no byte is an error at the end as well.
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        pipe.takes(ALL(0));
        pipe.0.borrow_mut().reads.push_back(b"");
        let end = gathered.poll_read(cx, &mut [0; 4]);
        assert_eq!(end, Poll::Ready(Err(TransportError::Other)));
    });
    gathering(&pipe, |gathered, cx| {
        pipe.0.borrow_mut().reads.push_back(b"");
        assert_eq!(gathered.poll_read(cx, &mut [0; 4]), ALL(0), "a clean end");
    });
}

#[test]
fn accepted_connections_are_gathered_as_well() {
    let pipe = Pipe::default();
    let mut listener = Gathered::new(AcceptSlot::new(pipe.clone()), vec![0; 8]);
    let cx = &mut Context::from_waker(Waker::noop());
    let from = SocketAddr::from(([10, 0, 0, 2], 4000));
    assert_eq!(listener.poll_accept(cx), Poll::Ready(Ok(from)));
    assert_eq!(listener.poll_write(cx, bytes("ab", "c")), ALL(3));
    listener.send_gathered(cx);
    assert_eq!(pipe.take_log(), ["write abc", "send"]);
    // The next caller receives no bytes of the last one and none of its errors.
    pipe.0.borrow_mut().takes.push_back(Poll::Ready(Err(TransportError::Reset)));
    assert_eq!(listener.poll_write(cx, bytes("ab", "c")), ALL(3));
    listener.send_gathered(cx);
    listener.release();
    let nobody = Poll::Ready(Err(TransportError::Other));
    assert_eq!(listener.poll_read(cx, &mut [0; 4]), nobody);
    assert_eq!(listener.poll_accept(cx), Poll::Ready(Ok(from)));
    pipe.take_log();
    assert_eq!(listener.poll_write(cx, bytes("d", "")), ALL(1));
    listener.send_gathered(cx);
    assert_eq!(pipe.take_log(), ["write d", "send"]);
}

/// A transport with only the required methods.
struct Plain;

impl Transport for Plain {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        _: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        Poll::Pending
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        _: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        Poll::Pending
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Pending
    }

    fn abort(&mut self) {}
}

#[test]
fn upgrades_are_unsupported_by_default() {
    let cx = &mut Context::from_waker(Waker::noop());
    assert_eq!(Plain.poll_upgrade(cx, Upgrade::Tls), Poll::Ready(Err(TransportError::Unsupported)));
}
