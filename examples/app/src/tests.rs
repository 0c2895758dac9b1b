//! The node on a desktop, with a network that is played and time that jumps.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use nanonsq_core::drive::lookup;
use nanonsq_core::drive::publisher::Publish;
use nanonsq_core::name::TopicName;
use nanonsq_core::publish::{Config, Counters, Event, Outcome, PublishError, Publisher, Ticket};
use nanonsq_core::session::{Closed, DialError};
use nanonsq_core::time::Span;
use nanonsq_core::wire::v2::ErrorCode;
use nanonsq_std::{TcpDialer, TokioSleep};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::*;

/// Keeps what is published; has room for so many messages until it is emptied.
#[derive(Default)]
struct Stage {
    published: RefCell<Vec<(String, Value)>>,
    room: Cell<usize>,
    refuse: Cell<Option<PublishError>>,
    events: RefCell<VecDeque<Event>>,
}

impl Stage {
    fn with_room(room: usize) -> Self {
        let stage = Self::default();
        stage.room.set(room);
        stage
    }

    fn on(&self, topic: &str) -> Vec<Value> {
        let published = self.published.borrow();
        published.iter().filter(|(on, _)| on == topic).map(|(_, body)| body.clone()).collect()
    }
}

impl Publish for &Stage {
    async fn publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        while self.room.get() == 0 && self.refuse.get().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.try_publish(topic, body)
    }

    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        if let Some(why) = self.refuse.get() {
            return Err(why);
        }
        let room = self.room.get().checked_sub(1).ok_or(PublishError::Full)?;
        self.room.set(room);
        let body = serde_json::from_slice(body).expect("JSON");
        self.published.borrow_mut().push((topic.to_string(), body));
        Ok(ticket())
    }

    async fn outcome(&self, _: Ticket) -> Outcome {
        Outcome::Acknowledged
    }
}

impl Network for &Stage {
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        counters.accepted = self.published.borrow().len() as u64;
        counters
    }

    async fn event(&self) -> Event {
        let next = self.events.borrow_mut().pop_front();
        match next {
            Some(event) => event,
            None => core::future::pending().await,
        }
    }

    async fn settle(&self) {}
}

/// There is no way to make one but to publish.
fn ticket() -> Ticket {
    const CONFIG: Config<'static> = Config::new();
    let mut ring = [0; 256];
    let nsqds = ["nsqd:4150".parse().unwrap()];
    let mut publisher = Publisher::new(&CONFIG, &nsqds, &mut ring).unwrap();
    publisher.publish(&topic("t"), b"x").unwrap()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn settings() -> Settings<'static> {
    Settings {
        device: "greenhouse",
        readings: topic("readings"),
        reports: topic("reports"),
        period: Span::from_secs(1),
        report_period: Span::from_secs(60),
        count: None,
        duration: None,
    }
}

#[tokio::test(start_paused = true)]
async fn readings_come_at_their_times_and_reports_once_a_minute() {
    let stage = Stage::with_room(usize::MAX);
    let settings = settings();
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let _ = timeout(Duration::from_millis(125_500), node.run(&mut Simulated::new())).await;

    let readings = stage.on("readings");
    assert_eq!(readings.len(), 126);
    for (number, reading) in readings.iter().enumerate() {
        assert_eq!(reading["device"], "greenhouse");
        assert_eq!(reading["number"], number);
        let uptime = reading["uptime_ms"].as_u64().unwrap();
        assert!((number as u64 * 1000..number as u64 * 1000 + 10).contains(&uptime), "{reading}");
        assert!(reading["values"]["temperature_mc"].is_i64());
    }
    let reports = stage.on("reports");
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert_eq!((&reports[0]["uptime_s"], &reports[1]["uptime_s"]), (&60.into(), &120.into()));
    let readings = reports[1]["readings"].as_u64().unwrap();
    assert!((120..=121).contains(&readings), "{readings}");
    assert_eq!(reports[1]["device"], "greenhouse");
}

#[tokio::test(start_paused = true)]
async fn ends_with_a_report_when_enough_was_read() {
    let stage = Stage::with_room(usize::MAX);
    let settings = Settings { count: Some(10), period: Span::ZERO, ..settings() };
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let counters = node.run(&mut Simulated::new()).await;
    assert_eq!((node.readings(), counters.accepted), (10, 11));
    assert_eq!(stage.on("readings").len(), 10);
    let reports = stage.on("reports");
    assert_eq!((reports.len(), &reports[0]["readings"]), (1, &10.into()));
}

#[tokio::test(start_paused = true)]
async fn ends_when_its_time_is_over() {
    let stage = Stage::with_room(usize::MAX);
    let settings = Settings { duration: Some(Span::from_millis(2_500)), ..settings() };
    let start = Instant::now();
    Node::new(&settings, &stage, TokioSleep::new()).run(&mut Simulated::new()).await;
    assert_eq!(stage.on("readings").len(), 3);
    assert!((2_500..2_510).contains(&start.elapsed().as_millis()));
}

#[tokio::test(start_paused = true)]
async fn a_sensor_that_fails_is_counted_and_read_again() {
    let stage = Stage::with_room(usize::MAX);
    let settings = Settings { count: Some(9), ..settings() };
    let node = Node::new(&settings, &stage, TokioSleep::new());
    node.run(&mut Simulated::failing_every(4)).await;
    let numbers: Vec<_> =
        stage.on("readings").iter().map(|reading| reading["number"].clone()).collect();
    assert_eq!(numbers, (0..9).collect::<Vec<_>>(), "no gaps");
    assert_eq!(stage.on("reports")[0]["sensor_faults"], 2);
}

#[tokio::test(start_paused = true)]
async fn waits_while_the_outbox_is_full_and_does_not_catch_up() {
    let stage = Stage::with_room(3);
    let settings = Settings { count: Some(8), ..settings() };
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let start = Instant::now();
    let relief = async {
        tokio::time::sleep(Duration::from_secs(100)).await;
        stage.room.set(100);
        core::future::pending::<()>().await;
    };
    let mut sensor = Simulated::new();
    tokio::select! {
        _ = node.run(&mut sensor) => {}
        () = relief => unreachable!(),
    }
    let uptimes: Vec<_> = stage
        .on("readings")
        .iter()
        .map(|reading| reading["uptime_ms"].as_u64().unwrap() / 1000)
        .collect();
    // The fourth was taken, and waited.
    assert_eq!(uptimes, [0, 1, 2, 3, 100, 101, 102, 103]);
    assert!(start.elapsed() >= Duration::from_secs(103));
    // The report due at 60 s found no room; only the last is there.
    assert_eq!(stage.on("reports").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_does_not_stop_it() {
    let stage = Stage::with_room(usize::MAX);
    stage.refuse.set(Some(PublishError::TooLarge { max: 1 }));
    let settings = settings();
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let relief = async {
        tokio::time::sleep(Duration::from_millis(5_500)).await;
        stage.refuse.set(None);
        tokio::time::sleep(Duration::from_secs(3)).await;
    };
    let mut sensor = Simulated::new();
    tokio::select! {
        _ = node.run(&mut sensor) => unreachable!(),
        () = relief => {}
    }
    let numbers: Vec<_> =
        stage.on("readings").iter().map(|reading| reading["number"].clone()).collect();
    assert_eq!(numbers, [6, 7, 8], "a gap says that some are missing");
}

#[tokio::test(start_paused = true)]
async fn events_are_taken_while_it_reads() {
    let stage = Stage::with_room(usize::MAX);
    stage.events.borrow_mut().extend([
        Event::Failed {
            first: ticket(),
            count: 3,
            outcome: Outcome::Rejected(ErrorCode::BadMessage),
        },
        Event::Resolved { below: ticket() },
    ]);
    let settings = Settings { count: Some(3), ..settings() };
    Node::new(&settings, &stage, TokioSleep::new()).run(&mut Simulated::new()).await;
    assert!(stage.events.borrow().is_empty());
}

#[test]
fn only_news_of_a_server_is_logged() {
    let (refused, lost) = (Closed::Dial(DialError::Refused), Closed::Peer);
    let mut said = Said::<2>::new();
    assert!(said.is_news(0, lost));
    assert!(said.is_news(0, refused));
    assert!(!said.is_news(0, refused));
    assert!(said.is_news(1, refused), "another server");
    assert!(!said.is_news(0, refused), "still the same");
    said.is_back(0);
    assert!(said.is_news(0, refused), "it was back meanwhile");
    assert!(!said.is_news(0, refused));
    // One more than there is room for.
    assert!(said.is_news(2, lost));
    assert!(!said.is_news(2, lost));
}

#[test]
fn messages_fit_and_look_as_documented() {
    let mut buf = [0; READING_MAX];
    #[derive(serde::Serialize)]
    struct Values {
        temperature_mc: i32,
    }
    let values = Values { temperature_mc: 21_500 };
    let reading = Reading { device: "greenhouse", number: 7, uptime_ms: 7031, values };
    assert_eq!(
        message::json(&reading, &mut buf).unwrap(),
        br#"{"device":"greenhouse","number":7,"uptime_ms":7031,"values":{"temperature_mc":21500}}"#
    );

    let device = "x".repeat(40);
    let mut counters = Counters::default();
    counters.accepted = u64::MAX;
    counters.acknowledged = u64::MAX;
    counters.rejected = u64::MAX;
    counters.expired = u64::MAX;
    counters.dropped = u64::MAX;
    counters.pending = u64::MAX;
    counters.refused = u64::MAX;
    counters.possible_duplicates = u64::MAX;
    counters.connections = u32::MAX;
    counters.failures = u32::MAX;
    counters.heartbeats = u32::MAX;
    let report = Report {
        device: message::short(&device),
        uptime_s: u32::MAX,
        readings: u32::MAX,
        sensor_faults: u32::MAX,
        counters,
    };
    let mut buf = [0; REPORT_MAX];
    let json = message::json(&report, &mut buf).map(|json| json.len());
    assert!(json.is_some(), "the largest report fits");
    assert!(message::json(&reading, &mut [0; 20]).is_none());
}

#[test]
fn names_are_cut_between_characters() {
    assert_eq!(message::short("greenhouse"), "greenhouse");
    assert_eq!(message::short(""), "");
    assert_eq!(message::short(&"x".repeat(40)).len(), 32);
    assert_eq!(message::short(&"ä".repeat(40)).len(), 32);
    assert_eq!(message::short(&format!("x{}", "ä".repeat(40))).len(), 31);
}

#[tokio::test]
async fn topics_are_registered_if_there_is_room() {
    use nanonsq_core::lookup::{Config, NodeInfo};
    use nanonsq_std::NoopRawMutex;
    let config = Config::new(NodeInfo {
        broadcast_address: "b",
        tcp_port: 1,
        http_port: 1,
        version: "v",
        ..Default::default()
    });
    let settings = settings();
    let lookupds = ["l:4160".parse().unwrap(), "l:4161".parse().unwrap()];

    let mut resources = lookup::Resources::<NoopRawMutex, 2, 2, 0>::new();
    let dialers = [TcpDialer::new(); 2];
    let (handle, _runner) =
        lookup::new(&mut resources, &config, dialers, TokioSleep::new()).unwrap();
    assert_eq!(register(&handle, &settings, &lookupds), Ok(()));

    let mut resources = lookup::Resources::<NoopRawMutex, 1, 1, 0>::new();
    let (handle, _runner) =
        lookup::new(&mut resources, &config, [TcpDialer::new()], TokioSleep::new()).unwrap();
    assert!(matches!(register(&handle, &settings, &lookupds), Err(RegisterError::Peers(_))));
    assert!(matches!(register(&handle, &settings, &lookupds[..1]), Err(RegisterError::Topics(_))));
}
