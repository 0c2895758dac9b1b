//! Queries to nsqlookupds, and the use of the listed nsqds.

use super::*;

#[test]
fn finds_nsqds_through_nsqlookupd() {
    looking_up(&config(), 1, |bench| {
        let request = bench.ask(0);
        assert!(
            request.starts_with("GET /lookup?topic=t HTTP/1.1\r\nHost: one:4161\r\n")
                && request.ends_with("\r\nConnection: close\r\n\r\n"),
            "{request}"
        );
        let bytes = http("200 OK", &lookup_body(&["a", "b"]));
        let now = bench.now();
        for byte in &bytes {
            bench.poll(0).receive(now, &[*byte]).unwrap();
        }
        assert_eq!(bench.poll(0).link(), Link::Close);
        bench.poll(0).closed(now, Closed::Local);
        let event = bench.poll(0).poll_event();
        assert_eq!(event, Some(LookupdEvent::Answered { producers: 2 }));
        assert_eq!(bench.hosts(), ["a", "b"]);
        assert_eq!(bench.dial(1), "b:4150");
        let next = bench.poll(0).deadline().as_micros() / 1000;
        assert!((45_000..=60_000).contains(&next), "{next}");
    });
}

/// All connections whose dial is due dial and are refused. Returns the dialed addresses.
fn dial_all_in_vain(bench: &mut Bench<'_>) -> Vec<String> {
    bench.tick();
    let now = bench.now();
    let mut dialed = Vec::new();
    for index in 0..bench.consumer.connections() {
        if let Some(address) = bench.session(index).dial(now).map(Address::to_string) {
            dialed.push(address);
            bench.closed(index, Closed::Dial(DialError::Refused));
        }
    }
    dialed
}

#[test]
fn while_nsqds_fail_and_others_wait_queries_are_soon_and_become_less_frequent() {
    let hosts: Vec<String> = (0..9).map(|n| format!("nsqd{n}")).collect();
    let body = http("200 OK", &lookup_body(&hosts.iter().map(String::as_str).collect::<Vec<_>>()));
    looking_up(&config(), 1, |bench| {
        let (mut asked, mut first) = (Vec::new(), Vec::new());
        bench.answer(0, &body).unwrap();
        while bench.now < 300_000 {
            let dialed = dial_all_in_vain(bench);
            if asked.len() < 3 {
                first.extend(dialed);
            }
            bench.answer(0, &body).unwrap();
            asked.push(bench.now);
        }
        first.sort();
        first.dedup();
        assert!(first.len() >= 8, "in three rounds: {first:?}");
        let gaps: Vec<u64> = asked.windows(2).map(|two| two[1] - two[0]).collect();
        assert!((437..=563).contains(&asked[0]) && asked[2] < 2000, "{asked:?}");
        assert!(gaps.iter().all(|&gap| gap >= 437), "twice a second at most: {gaps:?}");
        let last = &gaps[gaps.len() - 5..];
        assert!(last.iter().all(|gap| (13_000..=17_000).contains(gap)), "a quarter: {gaps:?}");
        // A new nsqd: the next query is soon again.
        let others = lookup_body(&["nsqd0", "a", "b", "c", "d", "e"]);
        bench.answer(0, &http("200 OK", &others)).unwrap();
        let before = bench.now;
        dial_all_in_vain(bench);
        bench.answer(0, &http("200 OK", &others)).unwrap();
        assert!(bench.now - before <= 563, "{}", bench.now - before);
    });
    // No nsqd waits, or none fails: the usual interval.
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b", "c"]))).unwrap();
        dial_all_in_vain(bench);
        let next = bench.poll(0).deadline();
        assert!(next >= at(45_000), "{next:?}");
        bench.answer(0, &body).unwrap();
        let next = bench.poll(0).deadline();
        assert!(next > bench.now().after(Span::from_secs(45)), "{next:?}");
    });
}

#[test]
fn the_timeout_of_connecting_is_short_while_others_wait() {
    let four = http("200 OK", &lookup_body(&["a", "b", "c", "d"]));
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &four).unwrap();
        bench.dial(0);
        assert_eq!(bench.session(0).deadline(), at(1000));
        bench.dial(1);
        bench.at(900).open(1).written(1);
        assert_eq!(bench.session(1).deadline(), at(1900));
        bench.at(1000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local).answer(0, &four).unwrap();
        assert_eq!(bench.hosts()[0], "d");
        assert_eq!(bench.dial(0), "d:4150");
    });
    // No nsqd waits.
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b", "c"]))).unwrap();
        bench.dial(0);
        assert_eq!(bench.session(0).deadline(), at(5000));
    });
    // The timeout grows with the laps, for nsqds that need longer.
    with::<1, 2>(&config(), 3, |bench| {
        let mut longest = 0;
        for round in 0..40 {
            if round > 0 {
                let next = bench.session(0).deadline().as_micros().div_ceil(1000);
                bench.now = next.max(bench.now);
            }
            bench.tick();
            let now = bench.now();
            if bench.session(0).dial(now).is_some() {
                let due = bench.session(0).deadline();
                longest = longest.max(due.since(now).as_millis());
                bench.now = due.as_micros() / 1000;
                bench.tick().closed(0, Closed::Local);
            }
        }
        assert_eq!(longest, 5000);
    });
}

#[test]
fn an_unusable_producer_is_reported_once_and_the_others_are_used() {
    let long = "h".repeat(HOST_MAX + 1);
    let longest = "h".repeat(HOST_MAX);
    let cases = [
        (r#""broadcast_address":"a","tcp_port":0"#, "a", Some(0), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":65536"#, "a", Some(65_536), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":-1"#, "a", Some(-1), BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":4150.5"#, "a", Some(4150), BadProducer::BadPort),
        (r#""tcp_port":"4150","broadcast_address":"a""#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":null"#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a","tcp_port":[1]"#, "a", None, BadProducer::BadPort),
        (r#""broadcast_address":"a""#, "a", None, BadProducer::NoPort),
        (r#""broadcast_address":"[::1]","tcp_port":1"#, "[::1]", Some(1), BadProducer::BadHost),
        (r#""broadcast_address":"a\u000ab","tcp_port":1"#, "a?b", Some(1), BadProducer::BadHost),
        (
            r#""broadcast_address":"http://a","tcp_port":1"#,
            "http://a",
            Some(1),
            BadProducer::BadHost,
        ),
        (r#""broadcast_address":"aü","tcp_port":1"#, "a", Some(1), BadProducer::BadHost),
        (r#""broadcast_address":"","tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        (r#""broadcast_address":7,"tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        (r#""tcp_port":1"#, "", Some(1), BadProducer::NoHost),
        ("", "", None, BadProducer::NoHost),
    ];
    let long = format!(r#""broadcast_address":"{long}","tcp_port":1"#);
    let too_long = (&*long, &longest[..unusable::HOST_SHOWN], Some(1), BadProducer::HostTooLong);
    for (fields, host, port, why) in cases.into_iter().chain([too_long]) {
        looking_up(&config(), 1, |bench| {
            let good = |host: &str| format!(r#"{{"broadcast_address":"{host}","tcp_port":4150}}"#);
            let body = format!(r#"{{"producers":[{},{{{fields}}},{}]}}"#, good("one"), good("two"));
            let answer = http("200 OK", &body);
            for poll in 0..3 {
                assert_eq!(bench.answer(0, &answer), Ok(()), "{body}");
                assert_eq!(bench.hosts(), ["one", "two"], "{fields}");
                let status = bench.consumer.lookupd_status(0).unwrap();
                assert_eq!((status.producers, status.unusable), (3, 1), "{fields}");
                let answered =
                    Event::Lookupd { index: 0, event: LookupdEvent::Answered { producers: 3 } };
                assert_eq!(bench.consumer.poll_event(), Some(answered));
                let event = (poll == 0).then_some(Event::Unusable { index: 0 });
                assert_eq!(bench.consumer.poll_event(), event, "{fields}, in poll {poll}");
                let known = bench.consumer.unusable(0).unwrap();
                assert_eq!(known, Unusable { lookupd: 0, host, port, why }, "{fields}");
            }
            // The producer is no longer listed, and then is listed again.
            bench.answer(0, &http("200 OK", &lookup_body(&["one"]))).unwrap();
            assert_eq!(bench.consumer.unusable(0), None);
            bench.answer(0, &answer).unwrap();
            let events = std::iter::from_fn(|| bench.consumer.poll_event());
            assert!(events.into_iter().any(|event| event == Event::Unusable { index: 0 }));
        });
    }
}

#[test]
fn as_many_unusable_producers_are_kept_as_nsqlookupds() {
    looking_up(&config(), 2, |bench| {
        let bad = |ports: &[u32]| {
            let each = |port| format!(r#"{{"broadcast_address":"a","tcp_port":{port}}}"#);
            let all: Vec<String> = ports.iter().map(each).collect();
            http("200 OK", &format!("{{\"producers\":[{}]}}", all.join(",")))
        };
        let polled = |bench: &mut Bench<'_>| {
            let events = std::iter::from_fn(|| bench.consumer.poll_event());
            events.filter(|event| matches!(event, Event::Unusable { .. })).count()
        };
        bench.answer(0, &bad(&[70_000, 70_001, 70_002])).unwrap();
        assert_eq!(polled(bench), 2);
        assert_eq!(bench.consumer.lookupd_status(0).unwrap().unusable, 3);
        assert_eq!(bench.consumer.unusable(1).unwrap().port, Some(70_001));
        assert_eq!(bench.consumer.unusable(2), None);
        bench.answer(1, &bad(&[70_000])).unwrap();
        assert_eq!(polled(bench), 0, "there is no room");
        // One is no longer listed; the next answer reports another one.
        bench.answer(0, &bad(&[70_001, 70_002])).unwrap();
        assert_eq!(polled(bench), 0);
        bench.answer(1, &bad(&[70_000])).unwrap();
        assert_eq!(polled(bench), 1);
        assert_eq!(bench.consumer.unusable(0).unwrap().lookupd, 1);
    });
}

#[test]
fn an_answer_longer_than_any_buffer() {
    looking_up(&config(), 1, |bench| {
        bench.ask(0);
        let hosts: Vec<String> = (0..20_000).map(|n| format!("nsqd{n}")).collect();
        let body = lookup_body(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
        let bytes = http("200 OK", &body);
        assert!(bytes.len() > 3_000_000);
        let now = bench.now();
        for piece in bytes.chunks(100) {
            bench.poll(0).receive(now, piece).unwrap();
        }
        bench.poll(0).closed(now, Closed::Peer);
        assert_eq!(bench.hosts(), ["nsqd0", "nsqd1", "nsqd2"]);
        assert_eq!(bench.consumer.unserved(), 19_997);
    });
}

#[test]
fn a_failing_or_empty_answer_withdraws_no_nsqd_and_reports_its_error() {
    use BadAnswer::*;
    let body = lookup_body(&["a"]);
    let bad = |why| Err(Fault::BadAnswer(why));
    let cases = [
        (http("200 OK", "{\"channels\":[],\"producers\":[]}"), Ok(())),
        (http("200 OK", "{\"channels\":null,\"producers\":null}"), Ok(())),
        // Other HTTP servers, such as nsqd's HTTP port or a web server.
        (http("404 Not Found", "{\"message\":\"NOT_FOUND\"}"), bad(Status(404))),
        (http("404 Not Found", "<html></html>"), bad(Status(404))),
        (http("404 Not Found", ""), bad(Status(404))),
        (http("404 Not Found", "{\"message\":\"TOPIC_NOT_FOUND\"}"), Ok(())),
        (http("500 Internal Server Error", "{}"), bad(Status(500))),
        (http("301 Moved Permanently", ""), bad(Status(301))),
        (http("200 OK", "{\"producers\":3}"), bad(NoProducers)),
        (http("200 OK", "{\"message\":\"OK\"}"), bad(NoProducers)),
        (b"\0\0\0\x0eE_BAD_PROTOCOL".to_vec(), bad(Http(HttpError::NotHttp))),
    ];
    looking_up(&Config { grace: Span::from_secs(1), ..config() }, 1, |bench| {
        bench.answer(0, &http("200 OK", &body)).unwrap();
        for (bytes, result) in cases {
            let failures = bench.consumer.counters().lookups_failed;
            assert_eq!(bench.answer(0, &bytes), result);
            let failed = bench.consumer.counters().lookups_failed - failures;
            assert_eq!(failed, u32::from(result.is_err()));
            let wait = bench.poll(0).deadline().since(bench.now()).as_millis();
            // The next query is sooner after a failure.
            assert!(if result.is_err() { wait <= 16_000 } else { wait >= 45_000 }, "{wait}");
            let later = bench.now + 5_000;
            bench.at(later);
            assert_eq!(bench.hosts(), ["a"]);
        }
        // Cut off, or with an error in the middle of the JSON.
        let whole = http("200 OK", &lookup_body(&["x", "y"]));
        assert_eq!(bench.answer(0, &whole[..whole.len() - 1]), Ok(()));
        let why = Closed::Fault(Fault::BadAnswer(Http(HttpError::Truncated)));
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(why)));
        let text = http("200 OK", &body.replace("4150", "4150,,"));
        let error = bench.answer(0, &text).unwrap_err().to_string();
        assert!(error.starts_with("nsqlookupd's answer is not JSON: a key in quotes"), "{error}");
        // The nsqds listed before the error are used.
        assert_eq!(bench.hosts(), ["a", "x", "y"]);
        // An answer that ends with its connection needs an orderly end.
        bench.ask_when_due(0);
        let now = bench.now();
        let text = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
        bench.poll(0).receive(now, text.as_bytes()).unwrap();
        let broken = Closed::Transport(TransportError::Reset);
        bench.poll(0).closed(now, broken);
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(broken)));
    });
}

#[test]
fn an_nsqlookupd_that_hangs_is_given_up_and_delays_no_other() {
    looking_up(&config(), 2, |bench| {
        bench.ask(0);
        bench.answer(1, &http("200 OK", &lookup_body(&["b"]))).unwrap();
        assert_eq!(bench.hosts(), ["b"]);
        // Single bytes do not extend the timeout.
        for (second, byte) in (1..10).zip(b"HTTP/1.1 ") {
            bench.at(second * 1000).tick();
            let now = bench.now();
            bench.poll(0).receive(now, &[*byte]).unwrap();
            if second == 1 {
                assert_eq!(bench.poll(0).link(), Link::Up);
            }
        }
        bench.at(10_000).tick();
        assert_eq!(bench.poll(0).link(), Link::Close);
        let now = bench.now();
        bench.poll(0).closed(now, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(why)));
    });
}

#[test]
fn an_nsqd_that_no_source_lists_is_left_after_the_grace_period() {
    let heartbeat = Span::from_secs(60);
    let config = Config { grace: Span::from_secs(90), heartbeat, ..config() };
    looking_up(&config, 2, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b"]))).unwrap();
        bench.answer(1, &http("200 OK", &lookup_body(&["b"]))).unwrap();
        bench.connect(0).written(0);
        // The first nsqlookupd no longer lists a and b, the second still lists b.
        bench.answer(0, &http("200 OK", &lookup_body(&["c"]))).unwrap();
        let since = bench.now;
        assert_eq!(bench.hosts(), ["a", "b", "c"]);
        bench.receive(0, &frame(0, b"_heartbeat_")).written(0);
        assert_eq!(
            bench.consumer.connection(0).unwrap().shared.nsqds.slot(0).unwrap().leaves,
            at(since + 90_000)
        );
        for second in (10..90).step_by(10) {
            bench.at(since + second * 1000).tick();
            bench.receive(0, &frame(0, b"_heartbeat_")).writes(0, "NOP\n");
        }
        bench.at(since + 90_000);
        assert_eq!(bench.hosts(), ["b", "c"]);
        bench.writes(0, "CLS\n").receive(0, &frame(0, b"CLOSE_WAIT"));
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert_eq!(bench.state(0), LinkState::Idle);
    });
}

#[test]
fn given_and_found_nsqds_all_have_their_turns() {
    let config = Config { lookup_interval: Span::from_secs(5), ..config() };
    let (mut storage, mut ring) = (Storage::<1, 1>::new(), [0; 64]);
    let mut discovery = Discovery::<1, 1>::new();
    let given = ["g1:1", "g2:1"].map(|host| host.parse().unwrap());
    let lookups = ["one:4161".parse().unwrap()];
    let mut consumer = Consumer::new(&config, &mut storage, &given, &mut ring).unwrap();
    consumer.discover(&mut discovery, &lookups).unwrap();
    let mut bench = Bench { consumer, now: 0 };
    let mut turns = std::collections::HashMap::new();
    while bench.now < 3_600_000 {
        bench.answer(0, &http("200 OK", &lookup_body(&["a", "b"]))).unwrap();
        let host = bench.hosts().remove(0);
        *turns.entry(host).or_insert(0) += 1;
    }
    assert!(turns.len() == 4 && turns.values().all(|&n| n > 80), "{turns:?}");
}

#[test]
fn invalid_producers_are_skipped() {
    let body = "{\"x\":[{\"broadcast_address\":\"no\",\"tcp_port\":1}],\"producers\":[\
        {\"tcp_port\":7,\"nested\":{\"broadcast_address\":\"no\",\"tcp_port\":1},\
        \"broadcast_address\":\"yes\"},{\"broadcast_address\":\"\",\"tcp_port\":1},\
        {\"broadcast_address\":\"no\"},{\"broadcast_address\":\"no\",\"tcp_port\":0},\
        {\"broadcast_address\":\"no\",\"tcp_port\":65536},{\"broadcast_address\":\"n o\",\
        \"tcp_port\":1},{\"broadcast_address\":3,\"tcp_port\":\"1\"},[],4,null]}";
    let long = format!("{{\"broadcast_address\":\"{}\",\"tcp_port\":1}},", "h".repeat(97));
    let wrapped = format!("{{\"status_code\":200,\"data\":{}}}", lookup_body(&["old"]));
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", body)).unwrap();
        assert_eq!(bench.hosts(), ["yes"]);
        let body = body.replace("[{\"tcp_port\":7", &format!("[{long}{{\"tcp_port\":7"));
        bench.answer(0, &http("200 OK", &body)).unwrap();
        assert_eq!(bench.hosts(), ["yes"]);
        // The format of nsqlookupds before 1.0.
        bench.answer(0, &http("200 OK", &wrapped)).unwrap();
        assert_eq!(bench.hosts(), ["yes", "old"]);
    });
}

#[test]
fn stopping_ends_the_queries_too() {
    looking_up(&config(), 2, |bench| {
        bench.ask(0);
        bench.consumer.stop();
        assert_eq!(bench.poll(0).deadline(), Instant::ZERO, "at once");
        assert_eq!(bench.tick().poll(0).link(), Link::Close);
        assert!(!bench.consumer.is_stopped());
        let now = bench.now();
        bench.poll(0).closed(now, Closed::Local);
        assert!(bench.consumer.is_stopped());
        bench.at(1_000_000);
        let now = bench.now();
        assert_eq!(bench.poll(0).dial(now), None);
        assert_eq!(bench.poll(1).dial(now), None);
    });
}
