//! Transports that gather what is written, call by call.

#![cfg(feature = "async")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{AcceptError, Dialer, Gathering, Listener, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError, Upgrade};

/// What the transport below does next, and what was done with it.
#[derive(Debug, Default)]
struct Wire {
    /// Of each write how many bytes are taken; without an entry all of them.
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

    /// What was done since this was last asked.
    fn done(&self) -> Vec<String> {
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

impl Listener for Pipe {
    type Transport<'l> = Pipe;

    async fn accept(&mut self) -> Result<(Pipe, SocketAddr), AcceptError> {
        Ok((self.clone(), ([10, 0, 0, 2], 4000).into()))
    }
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut context = Context::from_waker(Waker::noop());
    let Poll::Ready(value) = pin!(future).poll(&mut context) else { panic!("it waits") };
    value
}

/// Up to 8 bytes at once.
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
fn what_fits_leaves_at_once_before_it_is_read_from() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "c")), ALL(3));
        assert_eq!(gathered.poll_write(cx, bytes("", "defgh")), ALL(5));
        assert_eq!(pipe.done(), [""; 0], "all eight are kept");
        pipe.0.borrow_mut().reads.push_back(b"xy");
        let mut buf = [0; 4];
        assert_eq!(gathered.poll_read(cx, &mut buf), ALL(2));
        assert_eq!(buf, *b"xy\0\0");
        assert_eq!(pipe.done(), ["write abcdefgh", "read"]);
        assert!(gathered.poll_read(cx, &mut buf).is_pending());
        assert_eq!(pipe.done(), ["read"], "written once");
    });
}

#[test]
fn what_does_not_fit_waits_for_what_is_kept() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("abcd", "")), ALL(4));
        pipe.takes(Poll::Ready(Ok(3)));
        pipe.takes(Poll::Pending);
        assert!(gathered.poll_write(cx, bytes("12345", "")).is_pending());
        assert_eq!(pipe.done(), ["write abc", "write Pending"]);
        assert_eq!(gathered.poll_write(cx, bytes("12345", "")), ALL(5));
        assert_eq!(pipe.done(), ["write d"]);
        assert_eq!(gathered.poll_write(cx, bytes("678", "")), ALL(3));
        assert_eq!(pipe.done(), [""; 0], "from the front again");
        // Exactly as many as it keeps, then one more than it ever could.
        assert_eq!(gathered.poll_write(cx, bytes("ABCD", "EFGH")), ALL(8));
        assert_eq!(pipe.done(), ["write 12345678"]);
        assert_eq!(gathered.poll_write(cx, bytes("nine", " byte")), ALL(9));
        assert_eq!(pipe.done(), ["write ABCDEFGH", "write nine byte"], "as it is");
    });
}

#[test]
fn what_is_kept_leaves_before_all_else_but_an_abort() {
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        let mut keep = |gathered: &mut dyn Transport| {
            assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        };
        keep(gathered);
        let cx = &mut Context::from_waker(Waker::noop());
        gathered.send_gathered(cx);
        assert_eq!(pipe.done(), ["write ab", "send"]);
        keep(gathered);
        assert_eq!(
            gathered.poll_upgrade(cx, Upgrade::Tls),
            Poll::Ready(Err(TransportError::Unsupported))
        );
        assert_eq!(pipe.done(), ["write ab", "upgrade"]);
        keep(gathered);
        assert_eq!(gathered.poll_close(cx), Poll::Ready(Err(TransportError::Reset)));
        assert_eq!(pipe.done(), ["write ab", "close"]);
        keep(gathered);
        gathered.abort();
        assert_eq!(pipe.done(), ["abort"]);
    });
}

#[test]
fn a_write_that_failed_is_told_at_the_next_one_and_at_the_end() {
    let reset = Poll::Ready(Err(TransportError::Reset));
    let pipe = Pipe::default();
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        pipe.takes(reset);
        pipe.0.borrow_mut().reads.extend([&b"why"[..], b""]);
        let mut buf = [0; 4];
        assert_eq!(gathered.poll_read(cx, &mut buf), ALL(3), "why it failed");
        assert_eq!(gathered.poll_write(cx, bytes("c", "")), reset);
        assert_eq!(gathered.poll_read(cx, &mut buf), reset, "not just the end");
        assert_eq!(
            gathered.poll_close(cx).map(Result::err),
            Poll::Ready(Some(TransportError::Reset))
        );
        assert_eq!(pipe.done().iter().filter(|it| it.starts_with("write")).count(), 1);
    });
    // One that takes nothing has failed, too, where it is the end.
    gathering(&pipe, |gathered, cx| {
        assert_eq!(gathered.poll_write(cx, bytes("ab", "")), ALL(2));
        pipe.takes(ALL(0));
        pipe.0.borrow_mut().reads.push_back(b"");
        let end = gathered.poll_read(cx, &mut [0; 4]);
        assert_eq!(end, Poll::Ready(Err(TransportError::Other)));
    });
    gathering(&pipe, |gathered, cx| {
        pipe.0.borrow_mut().reads.push_back(b"");
        assert_eq!(gathered.poll_read(cx, &mut [0; 4]), ALL(0), "an end in order");
    });
}

#[test]
fn who_calls_is_gathered_as_well() {
    let pipe = Pipe::default();
    let mut listener = Gathering::<_, 8>(pipe.clone());
    let (mut gathered, from) = ready(listener.accept()).unwrap();
    assert_eq!(from, SocketAddr::from(([10, 0, 0, 2], 4000)));
    let cx = &mut Context::from_waker(Waker::noop());
    assert_eq!(gathered.poll_write(cx, bytes("ab", "c")), ALL(3));
    gathered.send_gathered(cx);
    assert_eq!(pipe.done(), ["write abc", "send"]);
}

/// Only what it has to have: it writes at once, and cannot be wrapped.
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
fn a_transport_is_not_wrapped_unless_it_says_so() {
    let cx = &mut Context::from_waker(Waker::noop());
    assert_eq!(Plain.poll_upgrade(cx, Upgrade::Tls), Poll::Ready(Err(TransportError::Unsupported)));
}
