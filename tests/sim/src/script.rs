//! A connection by a script: what is said and when, how slowly it is read, and how it ends.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer as _, Sleep as _, Transport as _};
use nanonsq_core::session::Transmit;
use nanonsq_core::time::{Instant, Span};

use crate::watch::Session;
use crate::world::{Clock, Dials, World};

/// One part of it.
pub(crate) enum Part {
    Say(Vec<u8>),
    /// A byte at a time, each so much later than the one before.
    Trickle(VecDeque<u8>, Span),
    Pause(Span),
    /// Nothing is read until so much later.
    Deaf(Span),
    /// So many bytes are taken before they are read.
    Narrow(usize),
    /// Ends its stream.
    Close,
    /// Is gone.
    Cut,
}

/// How long something takes.
pub(crate) async fn pause(clock: &mut Clock, span: Span) {
    let until = clock.now().after(span);
    poll_fn(|cx| clock.poll_until(cx, until)).await;
}

/// Lives a connection, until the other side ends it or `patience` is over. What is read is shown to
/// `hear`; what that gives is said when the script has nothing to say. Whether the connection was
/// with that host, if there was one.
pub(crate) async fn play(
    world: &World,
    session: Session,
    host: &str,
    mut script: VecDeque<Part>,
    patience: Span,
    mut hear: impl FnMut(&[u8]) -> Vec<u8>,
) -> Option<bool> {
    let mut clock = Clock::of_session(world, session);
    let end = clock.now().after(patience);
    let address: Address = format!("{host}:80").parse().expect("an address");
    let mut dials = Dials(world.clone(), session);
    let mut pipe = {
        let mut dial = pin!(dials.dial(&address));
        let dialed = poll_fn(|cx| match dial.as_mut().poll(cx) {
            Poll::Ready(dialed) => Poll::Ready(dialed.ok()),
            Poll::Pending => clock.poll_until(cx, end).map(|()| None),
        });
        dialed.await?
    };
    let (mut hears, mut pause) = (Instant::from_micros(0), None);
    let (mut answers, mut ended) = (Vec::new(), false);
    poll_fn(|cx| {
        let mut buf = [0; 200];
        loop {
            let now = clock.now();
            let (mut moved, mut alarm) = (false, end);
            let quiet = matches!(script.front(), None | Some(Part::Pause(_)));
            if quiet && !ended && !answers.is_empty() {
                match pipe.poll_write(cx, Transmit { head: &answers, body: &[] }) {
                    Poll::Ready(Ok(n)) => {
                        answers.drain(..n);
                        moved = true;
                    }
                    Poll::Ready(Err(_)) => {
                        answers.clear();
                        moved = true;
                    }
                    Poll::Pending => {}
                }
            }
            match script.front_mut() {
                Some(Part::Say(bytes)) => {
                    match pipe.poll_write(cx, Transmit { head: bytes, body: &[] }) {
                        Poll::Ready(Ok(n)) => {
                            bytes.drain(..n);
                            moved = true;
                            if bytes.is_empty() {
                                script.pop_front();
                            }
                        }
                        Poll::Ready(Err(_)) => {
                            // What was said before may still come.
                            script.clear();
                            moved = true;
                        }
                        Poll::Pending => {}
                    }
                }
                Some(Part::Trickle(bytes, every)) => match (bytes.front().copied(), pause) {
                    (None, _) => {
                        pause = None;
                        script.pop_front();
                        moved = true;
                    }
                    (Some(_), Some(until)) if until > now => alarm = alarm.min(until),
                    (Some(byte), _) => {
                        match pipe.poll_write(cx, Transmit { head: &[byte], body: &[] }) {
                            Poll::Ready(Ok(_)) => {
                                bytes.pop_front();
                                pause = Some(now.after(*every));
                                moved = true;
                            }
                            Poll::Ready(Err(_)) => {
                                script.clear();
                                moved = true;
                            }
                            Poll::Pending => {}
                        }
                    }
                },
                Some(Part::Pause(span)) => {
                    let until = *pause.get_or_insert(now.after(*span));
                    if until <= now {
                        pause = None;
                        script.pop_front();
                        moved = true;
                    } else {
                        alarm = alarm.min(until);
                    }
                }
                Some(Part::Deaf(span)) => {
                    hears = now.after(*span);
                    script.pop_front();
                    moved = true;
                }
                Some(Part::Narrow(window)) => {
                    pipe.narrow(*window);
                    script.pop_front();
                    moved = true;
                }
                Some(Part::Close) => match pipe.poll_close(cx) {
                    Poll::Ready(_) => {
                        script.clear();
                        ended = true;
                        moved = true;
                    }
                    Poll::Pending => {}
                },
                Some(Part::Cut) => return Poll::Ready(()),
                None => {}
            }
            if hears <= now {
                match pipe.poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(n)) => {
                        answers.extend(hear(&buf[..n]));
                        moved = true;
                    }
                    Poll::Pending => {}
                }
            } else {
                alarm = alarm.min(hears);
            }
            if end <= now {
                return Poll::Ready(());
            }
            if !moved {
                let due = clock.poll_until(cx, alarm);
                // The end of time comes, and no clock shows it.
                if due.is_pending() || alarm == end {
                    return due;
                }
            }
        }
    })
    .await;
    Some(pipe.is_of(host))
}
