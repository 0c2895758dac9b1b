//! `/metrics`: Prometheus's text format, a sample at a time while the tables may change.
//!
//! The samples of a family follow each other, so the tables are walked once for each family, in the
//! order of their slots. What moves to another slot meanwhile may be missing, or there twice.

use core::net::SocketAddr;

use super::Piece;
use super::emit::{emit_remote, emit_text, emit_u64};
use crate::wire::Write;

/// Metrics of one name.
#[derive(Debug)]
pub(crate) struct Family<F> {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// Counters only grow, and their names end with `_total`.
    pub(crate) is_counter: bool,
    /// How its values are found.
    pub(crate) of: F,
}

impl<F> Family<F> {
    pub(crate) const fn counter(name: &'static str, help: &'static str, of: F) -> Self {
        Self { name, help, is_counter: true, of }
    }

    pub(crate) const fn gauge(name: &'static str, help: &'static str, of: F) -> Self {
        Self { name, help, is_counter: false, of }
    }
}

/// The value of a label.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Label<'s> {
    Text(&'s str),
    Remote(SocketAddr),
}

/// The most labels of a sample.
const LABELS: usize = 4;

/// A value of a family.
#[derive(Debug)]
pub(crate) struct Sample<'s> {
    /// The slot from which it is.
    pub(crate) at: usize,
    pub(crate) labels: [Option<(&'static str, Label<'s>)>; LABELS],
    pub(crate) value: u64,
}

/// How much of an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    family: u8,
    /// The next slot to try.
    at: u16,
    /// The family's head is written.
    has_head: bool,
}

impl Progress {
    pub(crate) const NEW: Self = Self { family: 0, at: 0, has_head: false };

    /// Writes as much as fits; returns whether the answer is complete. `find` returns the first
    /// sample of a family from a slot on.
    pub(crate) fn write<'s, F>(
        &mut self,
        families: &[Family<F>],
        piece: &mut Piece<'_>,
        find: impl Fn(&F, usize) -> Option<Sample<'s>>,
    ) -> bool {
        while let Some(family) = families.get(usize::from(self.family)) {
            let Some(sample) = find(&family.of, self.at.into()) else {
                *self = Self { family: self.family.saturating_add(1), ..Self::NEW };
                continue;
            };
            let has_head = self.has_head;
            let fits = piece.put(|w| {
                if !has_head {
                    emit_head(w, family)?;
                }
                emit_sample(w, family.name, &sample)
            });
            if !fits {
                return false;
            }
            self.has_head = true;
            self.at = (sample.at as u16).saturating_add(1);
        }
        true
    }
}

fn emit_head<W: Write, F>(w: &mut W, family: &Family<F>) -> Result<(), W::Error> {
    for text in ["# HELP ", family.name, " ", family.help, "\n# TYPE ", family.name] {
        w.write_all(text.as_bytes())?;
    }
    w.write_all(if family.is_counter { b" counter\n" } else { b" gauge\n" })
}

/// Writes a line of at most 400 bytes: the longest texts are a topic, a channel and a client's name.
fn emit_sample<W: Write>(w: &mut W, name: &str, sample: &Sample<'_>) -> Result<(), W::Error> {
    w.write_all(name.as_bytes())?;
    let mut before: &[u8] = b"{";
    for (key, label) in sample.labels.iter().flatten() {
        w.write_all(before)?;
        w.write_all(key.as_bytes())?;
        w.write_all(b"=")?;
        match label {
            Label::Text(text) => emit_text(w, text)?,
            Label::Remote(from) => {
                w.write_all(b"\"")?;
                emit_remote(w, *from)?;
                w.write_all(b"\"")?;
            }
        }
        before = b",";
    }
    w.write_all(if before == b"," { b"} " } else { b" " })?;
    emit_u64(w, sample.value)?;
    w.write_all(b"\n")
}
