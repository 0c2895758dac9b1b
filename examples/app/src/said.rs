//! Keeps the log readable while a server is away.

use nanonsq_core::session::Closed;

/// Why each of so many servers could not be reached when that was last said. A client tries again
/// several times a second; only another reason is news.
pub(crate) struct Said<const SERVERS: usize> {
    last: [Option<(usize, Closed)>; SERVERS],
    oldest: usize,
}

impl<const SERVERS: usize> Said<SERVERS> {
    pub(crate) const fn new() -> Self {
        Self { last: [None; SERVERS], oldest: 0 }
    }

    /// Whether this is news; it is none the next time. With more servers than there is room for,
    /// the oldest is forgotten, and becomes news again.
    pub(crate) fn is_news(&mut self, server: usize, why: Closed) -> bool {
        let known = self.last.iter_mut().flatten().find(|(of, _)| *of == server);
        if let Some((_, last)) = known {
            let is_news = *last != why;
            *last = why;
            return is_news;
        }
        if let Some(slot) = self.last.get_mut(self.oldest) {
            *slot = Some((server, why));
        }
        self.oldest = if self.oldest + 1 < SERVERS { self.oldest + 1 } else { 0 };
        true
    }

    /// The server is back: what happens to it next is news.
    pub(crate) fn is_back(&mut self, server: usize) {
        for slot in &mut self.last {
            if slot.is_some_and(|(of, _)| of == server) {
                *slot = None;
            }
        }
    }
}
