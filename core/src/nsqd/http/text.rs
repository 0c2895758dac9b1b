//! `/stats` as text, in nsqd's columns.

use core::convert::Infallible;

use super::Shared;
use super::service::start_time;
use crate::http::Piece;
use crate::http::emit::{emit_i64, emit_ip, emit_u64};
use crate::name::TopicName;
use crate::nsqd::status::ClientStatus;
use crate::nsqd::table::{Channel, Topic};
use crate::time::Instant;
use crate::wire::{Decimal, Write};

type Written = Result<(), Infallible>;

/// Writes the lines before the topics.
pub(super) fn emit_head(w: &mut Piece<'_>, now: Instant, shared: &Shared<'_>) -> Written {
    w.write_all(b"nsqd v")?;
    w.write_all(shared.config.version.as_bytes())?;
    w.write_all(b" (nanonsq ")?;
    w.write_all(env!("CARGO_PKG_VERSION").as_bytes())?;
    w.write_all(b")\nstart_time ")?;
    emit_date(w, start_time(shared))?;
    w.write_all(b"\nuptime ")?;
    emit_duration(w, now.as_micros() / 1_000_000)?;
    w.write_all(b"\n\nHealth: OK\n")
}

pub(super) fn emit_topic(w: &mut Piece<'_>, topic: &Topic) -> Written {
    w.write_all(if topic.paused { b"\n*P [" } else { b"\n   [" })?;
    padded(w, 15, |w| w.write_all(topic.name.as_bytes()))?;
    w.write_all(b"] depth: ")?;
    number(w, 5, topic.held.len.into())?;
    w.write_all(b" be-depth: 0     msgs: ")?;
    number(w, 8, topic.messages)?;
    w.write_all(b" e2e%: \n")
}

pub(super) fn emit_channel(w: &mut Piece<'_>, channel: &Channel) -> Written {
    w.write_all(if channel.paused { b"   *P [" } else { b"      [" })?;
    padded(w, 25, |w| w.write_all(channel.name.as_bytes()))?;
    w.write_all(b"] depth: ")?;
    number(w, 5, channel.depth().into())?;
    w.write_all(b" be-depth: 0     inflt: ")?;
    number(w, 4, channel.in_flight.into())?;
    w.write_all(b" def: ")?;
    number(w, 4, channel.deferred.len.into())?;
    w.write_all(b" re-q: ")?;
    number(w, 5, channel.requeues)?;
    w.write_all(b" timeout: ")?;
    number(w, 5, channel.timeouts)?;
    w.write_all(b" msgs: ")?;
    number(w, 8, channel.messages)?;
    w.write_all(b" e2e%: \n")
}

/// Writes a client's line. As in nsqd, a client that published shows its published topics instead
/// of its subscription, in both lists.
pub(super) fn emit_client<'t>(
    w: &mut Piece<'_>,
    unix: i64,
    client: &ClientStatus<'_>,
    is_producer: bool,
    topics: impl Iterator<Item = (&'t TopicName, u32)>,
) -> Written {
    w.write_all(if is_producer { b"   [V2 " } else { b"        [V2 " })?;
    padded(w, 21, |w| {
        match client.from {
            Some(from) if !client.identified => emit_ip(w, from.ip())?,
            Some(_) | None => clean(w, client.hostname)?,
        }
        w.write_all(b":")?;
        let port = client.from.map_or(0, |from| from.port());
        w.write_all(Decimal::unsigned(port.into()).as_bytes())?;
        w.write_all(b" ")?;
        clean(w, client.user_agent)
    })?;
    w.write_all(b"] ")?;
    let mut topics = topics.peekable();
    if topics.peek().is_some() {
        // `LISTED` bytes hold the longest list that the client's table of topics can give.
        let mut total = 0u64;
        let mut listed = [0; LISTED];
        let mut list = Piece::new(&mut listed);
        for (topic, count) in topics {
            total = total.saturating_add(count.into());
            let is_first = list.is_empty();
            list.put(|w| {
                w.write_all(if is_first { b"" } else { b"," })?;
                w.write_all(topic.as_bytes())?;
                w.write_all(b"=")?;
                emit_u64(w, count.into())
            });
        }
        let len = list.len();
        w.write_all(b"msgs: ")?;
        number(w, 8, total)?;
        w.write_all(b" topics: ")?;
        w.write_all(listed.get(..len).unwrap_or_default())?;
    } else {
        w.write_all(b"state: ")?;
        w.write_all(Decimal::unsigned(client.state.number().into()).as_bytes())?;
        w.write_all(b" inflt: ")?;
        number(w, 4, client.in_flight.into())?;
        w.write_all(b" rdy: ")?;
        number(w, 4, client.ready.into())?;
        w.write_all(b" fin: ")?;
        number(w, 8, client.finished)?;
        w.write_all(b" re-q: ")?;
        number(w, 8, client.requeued)?;
        w.write_all(b" msgs: ")?;
        number(w, 8, client.messages)?;
    }
    w.write_all(b" connected: ")?;
    emit_duration(w, u64::try_from(unix.saturating_sub(client.since)).unwrap_or(0))?;
    w.write_all(b"\n")
}

/// The longest list of a client's published topics: a name, `=`, a number and a comma each.
const LISTED: usize = crate::nsqd::table::PUB_COUNTS_MAX * (crate::name::NAME_MAX + 12);

/// Writes left-aligned text, filled with spaces to at least `width` columns.
fn padded(
    w: &mut Piece<'_>,
    width: usize,
    emit: impl FnOnce(&mut Piece<'_>) -> Written,
) -> Written {
    let before = w.len();
    emit(w)?;
    let len = w.len().saturating_sub(before);
    for _ in len..width {
        w.write_all(b" ")?;
    }
    Ok(())
}

fn number(w: &mut Piece<'_>, width: usize, number: u64) -> Written {
    padded(w, width, |w| emit_u64(w, number))
}

/// Writes a text from IDENTIFY with control characters replaced, so that the line stays one line.
fn clean(w: &mut Piece<'_>, text: &str) -> Written {
    text.bytes().try_for_each(|byte| w.write_all(&[if byte < b' ' { b'?' } else { byte }]))
}

/// Writes whole seconds as Go does: `1h2m3s`.
fn emit_duration(w: &mut Piece<'_>, seconds: u64) -> Written {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    if hours > 0 {
        emit_u64(w, hours)?;
        w.write_all(b"h")?;
    }
    if minutes > 0 {
        emit_u64(w, minutes % 60)?;
        w.write_all(b"m")?;
    }
    emit_u64(w, seconds % 60)?;
    w.write_all(b"s")
}

/// Writes Unix time in seconds as an RFC 3339 date in UTC.
fn emit_date(w: &mut Piece<'_>, unix: i64) -> Written {
    let days = unix.div_euclid(86_400);
    let second = unix.rem_euclid(86_400).unsigned_abs();
    // Days since 1 March of year 0, in eras of 400 years, which all have the same length.
    let days = days.saturating_add(719_468);
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let leap_days = (day / 1460).saturating_sub(day / 36_524).saturating_add(day / 146_096);
    let year = day.saturating_sub(leap_days) / 365;
    let january = year.saturating_mul(365).saturating_add(year / 4).saturating_sub(year / 100);
    let day_of_year = day.saturating_sub(january);
    // Months count from March; each five months have 153 days.
    let month = day_of_year.saturating_mul(5).saturating_add(2) / 153;
    let day = day_of_year.saturating_sub(month.saturating_mul(153).saturating_add(2) / 5);
    let is_next_year = month >= 10;
    let month = if is_next_year { month.saturating_sub(9) } else { month.saturating_add(3) };
    let year = year.saturating_add(era.saturating_mul(400)).saturating_add(i64::from(is_next_year));
    emit_i64(w, year)?;
    for (before, part) in [
        (b"-", month.unsigned_abs()),
        (b"-", day.saturating_add(1).unsigned_abs()),
        (b"T", second / 3600),
        (b":", second / 60 % 60),
        (b":", second % 60),
    ] {
        w.write_all(before)?;
        w.write_all(if part < 10 { b"0" } else { b"" })?;
        emit_u64(w, part)?;
    }
    w.write_all(b"Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(emit: impl FnOnce(&mut Piece<'_>) -> Written) -> String {
        let mut buf = [0; 100];
        let mut piece = Piece::new(&mut buf);
        piece.put(emit);
        let len = piece.len();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    }

    #[test]
    fn dates() {
        for (unix, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_795_490_983, "2026-11-24T03:29:43Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(written(|w| emit_date(w, unix)), date);
        }
        let _ = written(|w| emit_date(w, i64::MAX)) + &written(|w| emit_date(w, i64::MIN));
    }

    #[test]
    fn durations() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (60, "1m0s"), (3600, "1h0m0s"), (90_061, "25h1m1s")]
        {
            assert_eq!(written(|w| emit_duration(w, seconds)), text);
        }
    }

    #[test]
    fn columns() {
        assert_eq!(written(|w| number(w, 5, 12)), "12   ");
        assert_eq!(written(|w| number(w, 5, 123_456)), "123456");
    }
}
