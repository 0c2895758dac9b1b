//! Answers over HTTP, written in pieces while the tables may change.
//!
//! A list identifies its topic or nsqd by slot and serial number: if the slot has another content
//! meanwhile, the list ends. Each element is written completely in one piece.

#[cfg(feature = "metrics")]
mod metrics;
mod view;

use crate::http::emit::emit_text;
#[cfg(feature = "metrics")]
use crate::http::metrics::Progress;
use crate::http::{Content, Piece};
use crate::wire::Write;

pub(super) use view::View;

use view::Listed;

/// The rest of an answer that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Task {
    step: Step,
    /// The next slot of the outer list.
    at: u16,
    /// The next slot of the inner list.
    inner: u16,
    /// The number of elements written of the outer list.
    count: u16,
    /// The number of elements written of the inner list.
    inner_count: u16,
    /// The number of tombstones written of the inner list.
    flags: u16,
    /// The slot of the topic or nsqd of an inner list.
    slot: u16,
    /// The serial number of that topic or nsqd.
    serial: u32,
    /// The last serial number issued when the list began.
    since: u32,
    #[cfg(feature = "metrics")]
    metrics: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// An answer without content.
    Nothing,
    Ping,
    Info,
    Topics,
    Topic,
    /// `/channels`
    Channels,
    Channel,
    /// `/lookup`
    Lookup,
    LookupChannel,
    LookupProducer,
    Nodes,
    NodeEntry,
    NodeTopic,
    NodeTombstone,
    Debug,
    DebugProducer,
    #[cfg(feature = "metrics")]
    Metrics,
    Done,
}

impl Task {
    pub(super) const fn new(step: Step) -> Self {
        Self {
            step,
            at: 0,
            inner: 0,
            count: 0,
            inner_count: 0,
            flags: 0,
            slot: 0,
            serial: 0,
            since: 0,
            #[cfg(feature = "metrics")]
            metrics: Progress::NEW,
        }
    }

    /// Makes a task that lists a topic; without a topic the list is empty.
    pub(super) fn about(step: Step, topic: Option<usize>, view: &View<'_, '_>) -> Self {
        let mut task = Self::new(step);
        if let Some(topic) = topic {
            task.slot = topic as u16;
            task.serial = view.shared.tables.serial(topic);
        }
        task
    }

    /// Returns the content type of the answer. Call this before the first write.
    pub(super) fn content(&self) -> Content {
        match self.step {
            Step::Nothing | Step::Done => Content::Nothing,
            Step::Ping => Content::Plain,
            #[cfg(feature = "metrics")]
            Step::Metrics => Content::Plain,
            Step::Info
            | Step::Topics
            | Step::Topic
            | Step::Channels
            | Step::Channel
            | Step::Lookup
            | Step::LookupChannel
            | Step::LookupProducer
            | Step::Nodes
            | Step::NodeEntry
            | Step::NodeTopic
            | Step::NodeTombstone
            | Step::Debug
            | Step::DebugProducer => Content::Json,
        }
    }

    /// Writes as much as fits. Returns whether the answer is complete.
    pub(super) fn write(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        while self.step != Step::Done {
            if !self.advance(view, piece) {
                return false;
            }
        }
        true
    }

    /// Writes the next element. Returns false if there is no room for it.
    fn advance(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let tables = &view.shared.tables;
        match self.step {
            Step::Nothing | Step::Done => {
                self.step = Step::Done;
                true
            }
            Step::Ping => self.text(piece, "OK", Step::Done),
            Step::Info => {
                self.step = Step::Done;
                piece.put(|w| {
                    w.write_all(b"{\"version\":")?;
                    emit_text(w, view.shared.config.info.version)?;
                    w.write_all(b"}")
                })
            }
            Step::Topics => self.text(piece, "{\"topics\":[", Step::Topic),
            Step::Topic => match tables.topics(self.at.into()).next() {
                Some((at, name)) => self.item(piece, at, name.as_str()),
                None => self.text(piece, "]}", Step::Done),
            },
            Step::Channels => self.text(piece, "{\"channels\":[", Step::Channel),
            Step::Lookup => self.text(piece, "{\"channels\":[", Step::LookupChannel),
            Step::Channel | Step::LookupChannel => match self.next_channel(view) {
                Some((at, name)) => self.item(piece, at, name),
                None if self.step == Step::Channel => self.text(piece, "]}", Step::Done),
                None => {
                    let fits = self.text(piece, "],\"producers\":[", Step::LookupProducer);
                    if fits {
                        self.at = 0;
                        self.count = 0;
                        self.since = tables.last_serial();
                    }
                    fits
                }
            },
            Step::LookupProducer => match self.next_listed(view) {
                Some((at, producer)) => {
                    let fits = producer.emit(piece, self.count, "}");
                    self.wrote(fits, at);
                    fits
                }
                None => self.text(piece, "]}", Step::Done),
            },
            Step::Nodes => {
                self.since = tables.last_serial();
                self.text(piece, "{\"producers\":[", Step::NodeEntry)
            }
            Step::NodeEntry => self.node(view, piece),
            Step::NodeTopic => match self.next_topic_of_node(view) {
                Some((at, name)) => {
                    let fits = put_item(piece, self.inner_count, name);
                    if fits {
                        self.inner = (at as u16).saturating_add(1);
                        self.inner_count = self.inner_count.saturating_add(1);
                    }
                    fits
                }
                None => {
                    let fits = self.text(piece, "],\"tombstones\":[", Step::NodeTombstone);
                    if fits {
                        self.inner = 0;
                        self.flags = 0;
                    }
                    fits
                }
            },
            Step::NodeTombstone => self.tombstone(view, piece),
            Step::Debug => {
                self.since = tables.last_serial();
                self.text(piece, "{", Step::DebugProducer)
            }
            Step::DebugProducer => self.debug(view, piece),
            #[cfg(feature = "metrics")]
            Step::Metrics => {
                let is_all = metrics::write(&mut self.metrics, view, piece);
                self.step = if is_all { Step::Done } else { Step::Metrics };
                is_all
            }
        }
    }

    fn text(&mut self, piece: &mut Piece<'_>, text: &str, next: Step) -> bool {
        let fits = piece.put(|w| w.write_all(text.as_bytes()));
        if fits {
            self.step = next;
        }
        fits
    }

    /// Writes a name of the outer list.
    fn item(&mut self, piece: &mut Piece<'_>, at: usize, name: &str) -> bool {
        let fits = put_item(piece, self.count, name);
        self.wrote(fits, at);
        fits
    }

    /// Moves the outer list behind slot `at`, if its element did fit.
    fn wrote(&mut self, fits: bool, at: usize) {
        if fits {
            self.at = (at as u16).saturating_add(1);
            self.count = self.count.saturating_add(1);
        }
    }

    /// Returns the next channel of the topic.
    fn next_channel<'v>(&self, view: &View<'v, '_>) -> Option<(usize, &'v str)> {
        let tables = &view.shared.tables;
        if self.serial == 0 || tables.serial(self.slot.into()) != self.serial {
            return None;
        }
        let (at, name) = tables.channels_of(self.slot.into(), self.at.into()).next()?;
        Some((at, name.as_str()))
    }

    /// Returns the next producer of the topic that is not hidden from consumers.
    fn next_listed<'v>(&self, view: &View<'v, '_>) -> Option<(usize, Listed<'v>)> {
        let tables = &view.shared.tables;
        let topic = self.slot.into();
        if tables.serial(topic) != self.serial {
            return None;
        }
        view.entries(self.at.into(), self.since).find_map(|at| {
            let is_listed = |id| tables.has_topic(topic, id) && !view.is_tombstoned(topic, id);
            Some((at, view.latest(at, |id| view.is_active(id) && is_listed(id))?))
        })
    }

    /// Writes the next nsqd, up to the list of its topics.
    fn node(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let mut entries = view.entries(self.at.into(), self.since);
        let next = entries.find_map(|at| Some((at, view.latest(at, |id| view.is_active(id))?)));
        let Some((at, producer)) = next else {
            return self.text(piece, "]}", Step::Done);
        };
        let fits = producer.emit(piece, self.count, ",\"topics\":[");
        if fits {
            self.slot = at as u16;
            self.serial = view.serial(at);
            self.inner = 0;
            self.inner_count = 0;
            self.step = Step::NodeTopic;
        }
        self.wrote(fits, at);
        fits
    }

    fn next_topic_of_node<'v>(&self, view: &View<'v, '_>) -> Option<(usize, &'v str)> {
        let node = usize::from(self.slot);
        if view.serial(node) != self.serial {
            return None;
        }
        let tables = &view.shared.tables;
        let mut topics = tables.topics(self.inner.into());
        let (at, name) = topics.find(|(topic, _)| view.having(*topic, node).next().is_some())?;
        Some((at, name.as_str()))
    }

    /// Writes one tombstone of an nsqd. Their number is that of the topics written, even if the
    /// tables changed meanwhile.
    fn tombstone(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        if self.flags >= self.inner_count {
            return self.text(piece, "]}", Step::NodeEntry);
        }
        let next = self.next_topic_of_node(view).map(|(topic, _)| topic);
        let is_tombstoned = next.is_some_and(|topic| {
            view.having(topic, self.slot.into()).all(|id| view.is_tombstoned(topic, id))
        });
        let fits = piece.put(|w| {
            w.write_all(if self.flags == 0 { b"" } else { b"," })?;
            w.write_all(if is_tombstoned { b"true" } else { b"false" })
        });
        if fits {
            self.flags = self.flags.saturating_add(1);
            self.inner = next.map_or(self.inner, |topic| (topic as u16).saturating_add(1));
        }
        fits
    }

    /// Writes the next producer of a key. The keys are `client`, the topics and the channels.
    fn debug(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let Some((key, serial)) = view.key(self.at.into()) else {
            return self.text(piece, "}", Step::Done);
        };
        let is_same = self.inner_count == 0 || serial == self.serial;
        let next = view.entries(self.inner.into(), self.since).find_map(|at| {
            let has = |id| is_same && view.has(key, id);
            let listed = view.latest(at, |id| has(id) && !view.is_hidden(key, id));
            Some((at, listed.or_else(|| view.latest(at, has))?))
        });
        let Some((at, producer)) = next else {
            let fits = self.inner_count == 0 || piece.put(|w| w.write_all(b"]"));
            if fits {
                self.at = self.at.saturating_add(1);
                self.count = self.count.saturating_add(u16::from(self.inner_count > 0));
                self.inner = 0;
                self.inner_count = 0;
            }
            return fits;
        };
        let fits = piece.put(|w| {
            if self.inner_count > 0 {
                w.write_all(b",")?;
            } else {
                w.write_all(if self.count > 0 { b",\"" } else { b"\"" })?;
                key.emit(w)?;
                w.write_all(b"\":[")?;
            }
            view.emit_debug(w, key, &producer)
        });
        if fits {
            self.inner = (at as u16).saturating_add(1);
            self.inner_count = self.inner_count.saturating_add(1);
            self.serial = serial;
        }
        fits
    }
}

/// Writes a name of a list. Returns false if there is no room for it.
fn put_item(piece: &mut Piece<'_>, count: u16, name: &str) -> bool {
    piece.put(|w| {
        w.write_all(if count == 0 { b"" } else { b"," })?;
        emit_text(w, name)
    })
}
