//! `/metrics`.

use nanonsq_models::prometheus;

use super::*;

#[test]
fn metrics_count_what_is_listed() {
    let mut world = small();
    for (at, name) in ["a", "b", "c"].into_iter().enumerate() {
        world.arrive(at, name);
        world.ok(at, "REGISTER t c\n");
    }
    world.ok(0, "REGISTER u\n");
    world.after(200);
    world.ok(0, "PING\n");
    world.ok(1, "PING\n");
    // The third one is silent for too long, and the second one is tombstoned.
    world.after(101);
    assert_eq!(world.ask("POST /topic/tombstone?topic=t&node=b:2"), "");
    let series = prometheus::parse(&world.ask("GET /metrics"));
    for (name, value) in [
        ("nsqlookupd_nodes", 2.0),
        ("nsqlookupd_topics", 2.0),
        ("nsqlookupd_channels", 1.0),
        (r#"nsqlookupd_topic_nodes{topic="t"}"#, 1.0),
        (r#"nsqlookupd_topic_nodes{topic="u"}"#, 1.0),
        ("nsqlookupd_identified_total", 3.0),
        ("nsqlookupd_requests_total", 1.0),
    ] {
        assert_eq!(series.get(name), Some(&value), "{name}: {series:?}");
    }
    assert_eq!(series.len(), 3 + 2 + 6);
}
