//! Publishes one message to an nsqd over a blocking socket: no executor, no `async`, no adapter.
//!
//! ```text
//! cargo run --package nanonsq-core --example blocking --features publisher -- 127.0.0.1:4150
//! ```
//!
//! The loop in [`publish`] does all that [`Session`] requires of a driver. A port to another stack
//! without `async` is this loop over its sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant as Clock};

use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Outcome, Publisher};
use nanonsq_core::session::{Closed, DialError, Link, Session, TransportError};
use nanonsq_core::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The longest time for which a read blocks, and so the longest delay of a deadline.
const PATIENCE: Duration = Duration::from_millis(10);

/// Publishes `body` and waits for its outcome. Reconnects until then.
pub(crate) fn publish(nsqd: Address, topic: &str, body: &[u8]) -> Result<Outcome> {
    let (config, nsqds) = (Config::new(), [nsqd]);
    let mut outbox = [0; 4096];
    let mut publisher = Publisher::new(&config, &nsqds, &mut outbox)?;
    let ticket = publisher.publish(&TopicName::new(topic)?, body)?;

    let start = Clock::now();
    let now = || Instant::from_micros(start.elapsed().as_micros() as u64);
    let mut stream: Option<TcpStream> = None;
    let mut received = [0; 512];
    loop {
        match publisher.link() {
            Link::Down => match publisher.dial(now()).map(|to| (to.host().to_owned(), to.port())) {
                Some(to) => match TcpStream::connect(to) {
                    Ok(connected) => {
                        connected.set_read_timeout(Some(PATIENCE))?;
                        stream = Some(connected);
                        publisher.open(now());
                    }
                    Err(_) => publisher.closed(now(), Closed::Dial(DialError::Other)),
                },
                None => std::thread::sleep(PATIENCE),
            },
            Link::Up => {
                let Some(stream) = &mut stream else { return Err("up without a stream".into()) };
                if let Err(error) = carry(stream, &mut publisher, now, &mut received) {
                    publisher.closed(now(), error);
                }
            }
            Link::Close => {
                stream = None;
                publisher.closed(now(), Closed::Local);
            }
            Link::Upgrade(_) => return Err("this example has no TLS".into()),
        }
        if publisher.deadline() <= now() {
            publisher.tick(now());
        }
        if let Some(outcome) = publisher.outcome(ticket) {
            return Ok(outcome);
        }
    }
}

/// Writes all bytes of the session, and passes on the bytes that arrive within [`PATIENCE`].
fn carry(
    stream: &mut TcpStream,
    session: &mut impl Session,
    now: impl Fn() -> Instant,
    received: &mut [u8],
) -> std::result::Result<(), Closed> {
    loop {
        let bytes = session.transmit(now());
        let part = if bytes.head.is_empty() { bytes.body } else { bytes.head };
        if part.is_empty() {
            break;
        }
        let written = stream.write(part).map_err(|_| Closed::Transport(TransportError::Other))?;
        session.sent(now(), written);
    }
    match stream.read(received) {
        Ok(0) => Err(Closed::Peer),
        Ok(len) => {
            // After a fault `link` returns `Link::Close`.
            let _ = session.receive(now(), received.get(..len).unwrap_or_default());
            Ok(())
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
        Err(_) => Err(Closed::Transport(TransportError::Other)),
    }
}

fn main() -> Result<()> {
    let nsqd = std::env::args().nth(1).ok_or("usage: blocking HOST:PORT")?;
    println!("{}", publish(nsqd.parse()?, "readings", b"21.5")?);
    Ok(())
}
