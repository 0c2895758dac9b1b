//! `/metrics`, for Prometheus.

use super::View;
use crate::http::Piece;
use crate::http::metrics::{Family, Label, Progress, Sample};
use crate::nsqlookupd::status::Counters;

/// Of what a family has values.
enum Of {
    Directory(fn(&View<'_, '_>) -> usize),
    Counter(fn(&Counters) -> u32),
    /// The nsqds that `/lookup` lists for a topic.
    Topic,
}

const FAMILIES: &[Family<Of>] = &[
    Family::gauge("nsqlookupd_nodes", "Nodes that are listed.", Of::Directory(nodes)),
    Family::gauge(
        "nsqlookupd_topics",
        "Topics.",
        Of::Directory(|view| view.shared.tables.topics(0).count()),
    ),
    Family::gauge(
        "nsqlookupd_channels",
        "Channels.",
        Of::Directory(|view| view.shared.tables.channels(0).count()),
    ),
    Family::gauge("nsqlookupd_topic_nodes", "Nodes that /lookup lists for the topic.", Of::Topic),
    Family::counter(
        "nsqlookupd_identified_total",
        "Connections of nodes that sent IDENTIFY.",
        Of::Counter(|it| it.identified),
    ),
    Family::counter(
        "nsqlookupd_refused_total",
        "Connections of nodes closed because of an invalid command.",
        Of::Counter(|it| it.refused),
    ),
    Family::counter(
        "nsqlookupd_timed_out_total",
        "Connections of nodes closed because they were silent or did not read.",
        Of::Counter(|it| it.timed_out),
    ),
    Family::counter(
        "nsqlookupd_full_total",
        "Registrations and requests refused for want of room.",
        Of::Counter(|it| it.full),
    ),
    Family::counter(
        "nsqlookupd_requests_total",
        "HTTP requests answered, without refusals.",
        Of::Counter(|it| it.requests),
    ),
    Family::counter(
        "nsqlookupd_requests_refused_total",
        "HTTP requests refused.",
        Of::Counter(|it| it.requests_refused),
    ),
];

/// Writes as much as fits; returns whether the answer is complete.
pub(super) fn write(progress: &mut Progress, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
    progress.write(FAMILIES, piece, |of, from| find(of, from, view))
}

fn nodes(view: &View<'_, '_>) -> usize {
    let entries = view.entries(0, view.shared.tables.last_serial());
    entries.filter(|at| view.latest(*at, |id| view.is_active(id)).is_some()).count()
}

/// Returns the first sample from a slot on.
fn find<'s>(of: &Of, from: usize, view: &View<'s, '_>) -> Option<Sample<'s>> {
    let alone = |value| (from == 0).then_some(Sample { at: 0, labels: [None; 4], value });
    match of {
        Of::Directory(value) => alone(value(view) as u64),
        Of::Counter(value) => alone(value(&view.shared.counters).into()),
        Of::Topic => {
            let tables = &view.shared.tables;
            let (at, name) = tables.topics(from).next()?;
            let entries = view.entries(0, tables.last_serial());
            let is_listed =
                |node: &usize| view.having(at, *node).any(|id| !view.is_tombstoned(at, id));
            let value = entries.filter(is_listed).count() as u64;
            let labels = [Some(("topic", Label::Text(name.as_str()))), None, None, None];
            Some(Sample { at, labels, value })
        }
    }
}
