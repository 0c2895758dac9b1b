//! Serving an accept slot.

use std::cell::RefCell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::Waker;

use nanonsq_core::drive::{Listener, SessionCell, serve};
use nanonsq_core::session::{Closed, DialError, Fault, Link, Session, Transmit};
use nanonsq_core::time::Instant;

use crate::servers::Server;
use crate::world::{Pipe, Slow, Task, World, at_every_await, runner_is_gone};

/// Sends everything back, and hangs up after a full stop.
#[derive(Default)]
struct Echo {
    up: bool,
    closing: bool,
    back: Vec<u8>,
    lives: usize,
    ended: usize,
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
        assert!(!self.up, "two lives at a time");
        self.lives += 1;
        self.back.clear();
        (self.up, self.closing) = (true, false);
    }

    fn receive(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.back.extend(bytes);
        self.closing |= bytes.contains(&b'.');
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

    fn closed(&mut self, _: Instant, _: Closed) {
        (self.up, self.closing) = (false, false);
        self.ended += 1;
    }
}

struct EchoCell(RefCell<Echo>);

impl SessionCell for EchoCell {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut *self.0.borrow_mut());
    }

    fn register(&self, _: &Waker) {}
}

/// Calls `hello.` again and again.
impl Listener for World {
    type Transport<'l> = Pipe;

    async fn accept(&mut self) -> Result<(Pipe, SocketAddr), DialError> {
        // Nobody is always there already.
        let mut slow = Slow { times: 0, left: self.0.pending.max(1) };
        poll_fn(|cx| slow.poll(cx)).await;
        let mut pipe = self.pipe(0);
        pipe.incoming.extend(b"hello.");
        Ok((pipe, SocketAddr::from(([127, 0, 0, 1], 1))))
    }
}

#[test]
fn serving() {
    at_every_await(|world, k| {
        let heard = |world: &World| match &*world.0.servers.borrow()[&0].borrow() {
            Server::Caller(heard) => heard.clone(),
            _ => unreachable!(),
        };
        world.serve(0, Server::Caller(Vec::new()));
        let cell = EchoCell(RefCell::default());
        let run =
            async |sleep: &mut World| serve(&cell, &mut world.clone(), sleep, &mut [0; 16]).await;
        let mut sleep = world.clone();
        {
            let mut run = pin!(run(&mut sleep));
            let mut run = Task::new(run.as_mut());
            for _ in 0..k {
                run.poll();
            }
        }
        runner_is_gone(world);
        let completed = cell.0.borrow().ended > 2;
        world.serve(0, Server::Caller(Vec::new()));
        let mut run = pin!(run(&mut sleep));
        let mut run = Task::new(run.as_mut());
        while heard(world).len() < 12 {
            assert!(run.poll(), "stuck");
        }
        assert_eq!(&heard(world)[..12], b"hello.hello.");
        // Every life ends but the one that is.
        let Echo { lives, ended, up, .. } = &*cell.0.borrow();
        assert_eq!(*lives, ended + usize::from(*up));
        completed
    });
}
