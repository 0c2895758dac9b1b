//! Edges that nothing else comes to by itself: what is exactly full, exactly due, half written, or
//! said at the wrong moment.

mod bounds;
mod consume;
mod http;
mod lookup;
mod node;
mod publish;
mod wire;

use nanonsq_core::session::Session;
use nanonsq_core::time::Instant;

/// What a session has to say.
fn said(session: &mut dyn Session, now: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    while !session.transmit(now).is_empty() {
        let bytes = session.transmit(now);
        let n = bytes.len();
        all.extend([bytes.head, bytes.body].concat());
        session.sent(now, n);
    }
    all
}

const fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}
