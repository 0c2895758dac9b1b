//! Suppresses repeated log messages while a server is unreachable.

use nanonsq_core::session::Closed;

/// The last reported reason of each of up to `SERVERS` servers. A client redials several times a
/// second; the log reports a reason only when it changes.
pub(crate) struct Reported<const SERVERS: usize> {
    last: [Option<(usize, Closed)>; SERVERS],
    oldest: usize,
}

impl<const SERVERS: usize> Reported<SERVERS> {
    pub(crate) const fn new() -> Self {
        Self { last: [None; SERVERS], oldest: 0 }
    }

    /// Records the reason and returns whether it differs from the last one of the server. With more
    /// than `SERVERS` servers, the oldest entry is forgotten.
    pub(crate) fn is_new(&mut self, server: usize, why: Closed) -> bool {
        let known = self.last.iter_mut().flatten().find(|(of, _)| *of == server);
        if let Some((_, last)) = known {
            let is_new = *last != why;
            *last = why;
            return is_new;
        }
        if let Some(slot) = self.last.get_mut(self.oldest) {
            *slot = Some((server, why));
        }
        self.oldest = if self.oldest + 1 < SERVERS { self.oldest + 1 } else { 0 };
        true
    }

    /// Forgets the last reason of a server that is connected again.
    pub(crate) fn forget(&mut self, server: usize) {
        for slot in &mut self.last {
            if slot.is_some_and(|(of, _)| of == server) {
                *slot = None;
            }
        }
    }
}
