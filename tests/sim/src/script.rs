//! A scripted connection: what is sent and when, how slowly it is read, and how it ends.

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

/// One step of a script.
pub(crate) enum Part {
    Send(Vec<u8>),
    /// Sends byte by byte, with this span between them.
    Trickle(VecDeque<u8>, Span),
    Pause(Span),
    /// Reads nothing for this span.
    DeafFor(Span),
    /// Limits the receive window to this many bytes.
    Narrow(usize),
    /// Closes the stream.
    Close,
    /// Drops the connection.
    Cut,
}

/// Waits for `span`.
pub(crate) async fn pause(clock: &mut Clock, span: Span) {
    let until = clock.now().after(span);
    poll_fn(|cx| clock.poll_until(cx, until)).await;
}

/// Plays a script until the other side ends the connection or `patience` is over. Bytes that are
/// read are passed to `receive`; the bytes that it returns are sent while the script has nothing to
/// send. Returns `None` if the dial failed, else whether the connection was with `host`.
pub(crate) async fn play(
    world: &World,
    session: Session,
    host: &str,
    mut script: VecDeque<Part>,
    patience: Span,
    mut receive: impl FnMut(&[u8]) -> Vec<u8>,
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
    let (mut read_from, mut pause) = (Instant::from_micros(0), None);
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
                Some(Part::Send(bytes)) => {
                    match pipe.poll_write(cx, Transmit { head: bytes, body: &[] }) {
                        Poll::Ready(Ok(n)) => {
                            bytes.drain(..n);
                            moved = true;
                            if bytes.is_empty() {
                                script.pop_front();
                            }
                        }
                        Poll::Ready(Err(_)) => {
                            // Responses to what was sent before may still arrive.
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
                Some(Part::DeafFor(span)) => {
                    read_from = now.after(*span);
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
            if read_from <= now {
                match pipe.poll_read(cx, &mut buf) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(n)) => {
                        answers.extend(receive(&buf[..n]));
                        moved = true;
                    }
                    Poll::Pending => {}
                }
            } else {
                alarm = alarm.min(read_from);
            }
            if end <= now {
                return Poll::Ready(());
            }
            if !moved {
                let due = clock.poll_until(cx, alarm);
                // At the largest instant the clock no longer reaches `end`; the alarm still fires.
                if due.is_pending() || alarm == end {
                    return due;
                }
            }
        }
    })
    .await;
    Some(pipe.is_of(host))
}
