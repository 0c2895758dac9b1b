//! The sensor node on a testtop, with a test network and paused time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

use nanonsq_core::consumer::{self, AnswerError};
use nanonsq_core::consumer::{MessageHead, MessageId};
use nanonsq_core::drive::publisher::Publish;
use nanonsq_core::drive::registration;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Counters, Event, Outcome, PublishError, Publisher, Ticket};
use nanonsq_core::session::ErrorCode;
use nanonsq_core::session::{Closed, DialError};
use nanonsq_core::time::Span;
use nanonsq_std::{TcpDialer, TokioSleep};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::*;
use crate::command::{Command, Refusal};

/// Records published messages; `room` is the number of messages that it still accepts.
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
    type Ticket = Ticket;
    type Error = PublishError;

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

/// Makes a ticket; only `publish` can.
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
        replies: topic("replies"),
        period: Span::from_secs(1),
        report_period: Span::from_secs(60),
        count: None,
        duration: None,
    }
}

#[tokio::test(start_paused = true)]
async fn readings_are_periodic_and_reports_come_once_a_minute() {
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
async fn run_ends_with_a_report_after_count_readings() {
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
async fn run_ends_after_duration() {
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
    // The fourth reading was taken in time, and waited for room.
    assert_eq!(uptimes, [0, 1, 2, 3, 100, 101, 102, 103]);
    assert!(start.elapsed() >= Duration::from_secs(103));
    // There was no room for the report at 60 s: only the last one is published.
    assert_eq!(stage.on("reports").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permanent_publish_error_does_not_stop_the_node() {
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
    assert_eq!(numbers, [6, 7, 8], "the gap in the numbers shows the lost readings");
}

#[tokio::test(start_paused = true)]
async fn events_are_taken_while_the_node_reads() {
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
fn only_new_reasons_of_a_server_are_logged() {
    let (refused, lost) = (Closed::Dial(DialError::Refused), Closed::Peer);
    let mut reported = Reported::<2>::new();
    assert!(reported.is_new(0, lost));
    assert!(reported.is_new(0, refused));
    assert!(!reported.is_new(0, refused));
    assert!(reported.is_new(1, refused), "another server");
    assert!(!reported.is_new(0, refused), "still the same");
    reported.forget(0);
    assert!(reported.is_new(0, refused), "it was connected meanwhile");
    assert!(!reported.is_new(0, refused));
    // A third server takes the entry of the oldest.
    assert!(reported.is_new(2, lost));
    assert!(!reported.is_new(2, lost));
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
        period_ms: u32::MAX,
        commands: u32::MAX,
        counters,
    };
    let mut buf = [0; REPORT_MAX];
    let json = message::json(&report, &mut buf).map(|json| json.len());
    assert!(json.is_some(), "the largest report fits");
    assert!(message::json(&reading, &mut [0; 20]).is_none());

    let reply = Reply { device: "greenhouse", id: "7", ok: true, text: "blinked", stats: None };
    let mut buf = [0; REPLY_MAX];
    assert_eq!(
        message::json(&reply, &mut buf).unwrap(),
        br#"{"device":"greenhouse","id":"7","ok":true,"text":"blinked"}"#
    );
    let id = "x".repeat(32);
    let reply = Reply { device: message::short(&device), id: &id, stats: Some(report), ..reply };
    assert!(message::json(&reply, &mut buf).is_some(), "the largest reply fits");
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
    use nanonsq_core::registration::{Config, NodeInfo};
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

    let mut resources = registration::Resources::<NoopRawMutex, 2, 3, 0>::new();
    let dialers = [TcpDialer::new(); 2];
    let (handle, _runner) =
        registration::new(&mut resources, &config, dialers, TokioSleep::new()).unwrap();
    assert_eq!(register(&handle, &settings, &lookupds), Ok(()));

    let mut resources = registration::Resources::<NoopRawMutex, 1, 2, 0>::new();
    let (handle, _runner) =
        registration::new(&mut resources, &config, [TcpDialer::new()], TokioSleep::new()).unwrap();
    assert!(matches!(register(&handle, &settings, &lookupds), Err(RegisterError::Peers(_))));
    assert!(matches!(register(&handle, &settings, &lookupds[..1]), Err(RegisterError::Topics(_))));
}

/// Delivers commands, redelivers those that are dropped without `finish`, and records all actions,
/// including those of the board, in order.
#[derive(Default)]
struct TestNetwork {
    queue: RefCell<VecDeque<(MessageHead, Vec<u8>)>>,
    done: RefCell<Vec<String>>,
    /// Time that a stop takes.
    stop: Cell<Duration>,
}

impl TestNetwork {
    fn with(commands: &[&str]) -> Self {
        let test = Self::default();
        for command in commands {
            test.send(command);
        }
        test
    }

    fn send(&self, command: impl AsRef<[u8]>) {
        let number = self.queue.borrow().len() as u8;
        let head = MessageHead { timestamp: 0, attempts: 1, id: MessageId([b'a' + number; 16]) };
        self.queue.borrow_mut().push_back((head, command.as_ref().to_vec()));
    }

    fn note(&self, what: impl Into<String>) {
        self.done.borrow_mut().push(what.into());
    }

    fn done(&self) -> Vec<String> {
        self.done.borrow().clone()
    }
}

struct TestRequest<'d> {
    test: &'d TestNetwork,
    head: MessageHead,
    text: Option<Vec<u8>>,
}

impl Request for TestRequest<'_> {
    fn head(&self) -> Option<MessageHead> {
        Some(self.head)
    }

    fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.text.as_deref().map(f)
    }

    fn finish(mut self) -> Result<(), AnswerError> {
        self.text = None;
        self.test.note("finish");
        Ok(())
    }
}

impl Drop for TestRequest<'_> {
    fn drop(&mut self) {
        if let Some(text) = self.text.take() {
            self.test.note("release");
            self.head.attempts += 1;
            self.test.queue.borrow_mut().push_back((self.head, text));
        }
    }
}

impl<'d> Commands for &'d TestNetwork {
    type Request = TestRequest<'d>;

    async fn next(&self) -> TestRequest<'d> {
        loop {
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let Some((head, text)) = self.queue.borrow_mut().pop_front() {
                return TestRequest { test: self, head, text: Some(text) };
            }
        }
    }

    async fn event(&self) -> consumer::Event {
        core::future::pending().await
    }

    async fn stop(&self) {
        self.note("stopping");
        tokio::time::sleep(self.stop.get()).await;
        self.note("stopped");
    }
}

impl Board for &TestNetwork {
    async fn blink(&mut self) {
        self.note("blink");
    }

    async fn reboot(&mut self) -> core::convert::Infallible {
        self.note("reboot");
        core::future::pending().await
    }
}

/// Runs a node with commands for `ms` milliseconds and returns its replies.
async fn command(
    stage: &Stage,
    test: &TestNetwork,
    settings: &Settings<'_>,
    ms: u64,
) -> Vec<Value> {
    let node = Node::new(settings, stage, TokioSleep::new());
    let (mut sensor, mut board) = (Simulated::new(), test);
    let _ = timeout(Duration::from_millis(ms), async {
        tokio::join!(node.run(&mut sensor), node.obey(&test, &mut board))
    })
    .await;
    stage.on("replies")
}

#[tokio::test(start_paused = true)]
async fn commands_are_done_and_replied_to() {
    let stage = Stage::with_room(usize::MAX);
    let test = TestNetwork::with(&["#7 blink", "stats", "#a.b-c_d:1 set interval 2s\n", "blink"]);
    let replies = command(&stage, &test, &settings(), 500).await;
    let found: Vec<_> = replies.iter().map(|reply| (&reply["id"], &reply["text"])).collect();
    let ids = ["7", "bbbbbbbbbbbbbbbb", "a.b-c_d:1", "dddddddddddddddd"];
    let texts = ["blinked", "stats", "interval is 2000 ms", "blinked"];
    assert_eq!(found.len(), 4);
    for ((id, text), found) in ids.iter().zip(texts).zip(found) {
        assert_eq!((found.0, found.1), (&(*id).into(), &text.into()));
    }
    assert!(replies.iter().all(|reply| reply["device"] == "greenhouse" && reply["ok"] == true));
    let stats = &replies[1]["stats"];
    assert_eq!((&stats["readings"], &stats["commands"]), (&1.into(), &1.into()));
    assert_eq!(stats["period_ms"], 1000);
    assert!(replies[0].get("stats").is_none());
    assert_eq!(test.done(), ["blink", "finish", "finish", "finish", "blink", "finish"]);
}

#[tokio::test(start_paused = true)]
async fn a_new_interval_applies_at_once() {
    let (stage, test) = (Stage::with_room(usize::MAX), TestNetwork::default());
    let settings = Settings { period: Span::from_secs(3600), ..settings() };
    let later = async {
        tokio::time::sleep(Duration::from_millis(9_900)).await;
        test.send("set interval 500ms");
        // Between two readings.
        tokio::time::sleep(Duration::from_millis(2_250)).await;
        // Repeated commands do not delay the next reading.
        for _ in 0..20 {
            test.send("set interval 5s");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        core::future::pending::<()>().await;
    };
    tokio::select! {
        _ = command(&stage, &test, &settings, 21_000) => {}
        () = later => unreachable!(),
    }
    let times: Vec<_> = stage
        .on("readings")
        .iter()
        .map(|reading| (reading["uptime_ms"].as_u64().unwrap() + 50) / 100)
        .collect();
    assert_eq!(times, [0, 104, 109, 114, 119, 124, 174]);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_command_changes_nothing_and_the_reply_has_the_reason() {
    let stage = Stage::with_room(usize::MAX);
    let test = TestNetwork::with(&[
        "#1 dance",
        "#2 set interval soon",
        "#3 set interval 9ms",
        "#4 blink x",
    ]);
    test.send(b"\xff");
    test.send("x".repeat(129));
    let replies = command(&stage, &test, &settings(), 3_500).await;
    let texts: Vec<_> = replies.iter().map(|reply| reply["text"].as_str().unwrap()).collect();
    let wrong = [
        "unknown command 'dance'",
        "'soon' is not a duration; try 500ms, 5s, 2m or 1h",
        "'9ms' is not between 10ms and 24h",
        "'x' is too much",
        "not UTF-8",
        "longer than 128 bytes",
    ];
    let understood = "understood: [#id] set interval 5s | blink | stats | reboot";
    assert_eq!(texts, wrong.map(|wrong| format!("{wrong}; {understood}")));
    assert!(replies.iter().all(|reply| reply["ok"] == false));
    assert_eq!(test.done(), ["finish"; 6], "no blink, and no command is redelivered");
    assert_eq!(stage.on("readings").len(), 4, "the interval is unchanged");
}

#[test]
fn commands_are_read_as_documented() {
    let read = |line: &str| command::read(line.as_bytes(), MessageId(*b"0123456789abcdef"));
    let word = |text: &str| command::Word::try_from(text).unwrap();
    let ms = |ms| Ok(Command::SetInterval(Span::from_millis(ms)));
    for (line, expected) in [
        ("blink", Ok(Command::Blink)),
        ("  blink \r\n", Ok(Command::Blink)),
        ("stats", Ok(Command::Stats)),
        ("reboot", Ok(Command::Reboot)),
        ("set interval 10ms", ms(10)),
        ("set\tinterval 5s", ms(5_000)),
        ("set interval 2m", ms(120_000)),
        ("set interval 24h", ms(86_400_000)),
        ("", Err(Refusal::NoCommand)),
        ("#7", Err(Refusal::NoCommand)),
        ("# blink", Err(Refusal::Id)),
        ("#a\"b blink", Err(Refusal::Id)),
        ("#123456789012345678901234567890123 blink", Err(Refusal::Id)),
        ("Blink", Err(Refusal::Unknown(word("Blink")))),
        ("blink #7", Err(Refusal::TooMuch(word("#7")))),
        ("set", Err(Refusal::UnknownSetting(word("")))),
        ("set level 5", Err(Refusal::UnknownSetting(word("level")))),
        ("set interval", Err(Refusal::Interval(word("")))),
        ("set interval s", Err(Refusal::Interval(word("s")))),
        ("set interval 5", Err(Refusal::Interval(word("5")))),
        ("set interval -5s", Err(Refusal::Interval(word("-5s")))),
        ("set interval 5s!", Err(Refusal::Interval(word("5s!")))),
        ("set interval 5s 6s", Err(Refusal::TooMuch(word("6s")))),
        ("set interval 0s", Err(Refusal::IntervalRange(word("0s")))),
        ("set interval 25h", Err(Refusal::IntervalRange(word("25h")))),
        ("set interval 4294967296ms", Err(Refusal::IntervalRange(word("4294967296ms")))),
        ("set interval 1200h", Err(Refusal::IntervalRange(word("1200h")))),
        ("da\u{7}nce", Err(Refusal::Unknown(word("da?nce")))),
        (&"ä".repeat(20), Err(Refusal::Unknown(word(&"ä".repeat(12))))),
    ] {
        assert_eq!(read(line).1, expected, "{line:?}");
    }
    assert_eq!(read("#7 dance").0, "7", "an invalid command keeps its id");
    assert_eq!(read("#\" dance").0, "0123456789abcdef");
}

/// Quotes are the worst case: they take two bytes in JSON.
#[tokio::test(start_paused = true)]
async fn the_longest_replies_fit() {
    let stage = Stage::with_room(usize::MAX);
    let (quotes, device) = ("\"".repeat(30), "\"".repeat(40));
    let id = "#".to_owned() + &"x".repeat(32);
    let lines =
        ["", "set ", "set interval ", "set interval 99999999999999999999999999999999h", "blink "]
            .map(|line| format!("{id} {line}{quotes}"));
    let test = TestNetwork::default();
    let all = [lines.as_slice(), &["set interval 99999999999999999999999999999999h".to_owned()]];
    all.concat().iter().for_each(|line| test.send(line));
    let settings = Settings { device: &device, ..settings() };
    let replies = command(&stage, &test, &settings, 500).await;
    assert_eq!(replies.len(), 6);
    for reply in replies {
        let text = reply["text"].as_str().unwrap();
        assert!(text.ends_with("reboot"), "cut off: {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reboot_waits_until_nsqd_has_the_answers() {
    let (stage, test) =
        (Stage::with_room(usize::MAX), TestNetwork::with(&["reboot", "#late blink"]));
    test.stop.set(Duration::from_secs(3));
    let settings = Settings { period: Span::from_millis(100), ..settings() };
    let replies = command(&stage, &test, &settings, 5_000).await;
    assert_eq!(replies.len(), 1);
    assert_eq!(replies[0]["text"], "rebooting");
    assert_eq!(test.done(), ["finish", "stopping", "stopped", "reboot"]);
    assert_eq!(stage.on("readings").len(), 1, "nothing more is published");
}

#[tokio::test(start_paused = true)]
async fn a_reboot_does_not_wait_for_ever() {
    let (stage, test) = (Stage::with_room(usize::MAX), TestNetwork::with(&["reboot"]));
    test.stop.set(Duration::from_secs(3_600));
    let start = Instant::now();
    let settings = settings();
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let mut board = &test;
    let _ = timeout(Duration::from_millis(9_900), node.obey(&&test, &mut board)).await;
    assert_eq!(test.done(), ["finish", "stopping"]);

    let test = TestNetwork::with(&["reboot"]);
    test.stop.set(Duration::from_secs(3_600));
    let mut board = &test;
    let _ = timeout(Duration::from_millis(10_100), node.obey(&&test, &mut board)).await;
    assert_eq!(test.done(), ["finish", "stopping", "reboot"]);
    assert!(start.elapsed() < Duration::from_secs(21));
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_reboot_is_not_done_again() {
    let (stage, test) = (Stage::with_room(usize::MAX), TestNetwork::with(&["reboot"]));
    // The first delivery rebooted the device.
    test.queue.borrow_mut()[0].0.attempts = 2;
    let replies = command(&stage, &test, &settings(), 1_000).await;
    assert_eq!(replies[0]["ok"], true);
    assert!(replies[0]["text"].as_str().unwrap().starts_with("not again: started "));
    assert_eq!(test.done(), ["finish"]);

    // Long after the start, the first delivery did not lead to a reboot.
    let settings = settings();
    let (stage, test) = (Stage::with_room(usize::MAX), TestNetwork::default());
    let late = async {
        tokio::time::sleep(Duration::from_secs(121)).await;
        test.send("reboot");
        test.queue.borrow_mut()[0].0.attempts = 2;
        core::future::pending::<()>().await;
    };
    tokio::select! {
        _ = command(&stage, &test, &settings, 125_000) => {}
        () = late => unreachable!(),
    }
    assert_eq!(stage.on("replies")[0]["text"], "rebooting");
    assert_eq!(test.done(), ["finish", "stopping", "stopped", "reboot"]);
}

#[tokio::test(start_paused = true)]
async fn a_command_is_finished_only_when_its_reply_is_in_the_outbox() {
    let (stage, test) = (Stage::default(), TestNetwork::with(&["#1 blink"]));
    let settings = Settings { period: Span::from_secs(3600), ..settings() };
    let node = Node::new(&settings, &stage, TokioSleep::new());
    let mut board = &test;
    // Without room for the reply, the command is dropped at the timeout.
    let _ = timeout(Duration::from_secs(100), node.obey(&&test, &mut board)).await;
    assert_eq!(test.done(), ["blink", "release"]);
    // A permanent publish error drops the command as well.
    stage.refuse.set(Some(PublishError::TooLarge { max: 1 }));
    let _ = timeout(Duration::from_millis(15), node.obey(&&test, &mut board)).await;
    assert_eq!(test.done(), ["blink", "release", "blink", "release"]);
    stage.refuse.set(None);
    stage.room.set(9);
    let _ = timeout(Duration::from_millis(15), node.obey(&&test, &mut board)).await;
    assert_eq!(test.done()[4..], ["blink", "finish"]);
    assert_eq!((node.stats().commands, stage.on("replies").len()), (1, 1));
}
