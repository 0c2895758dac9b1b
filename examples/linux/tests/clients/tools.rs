//! NSQ's tools and curl: publishing, consuming and nsq_stat.

use std::io::Write;
use std::process::Command;

use nanonsq_tests::client::Library;
use nanonsq_tests::{Client, ServerOptions, Tool, eventually, peers};

use crate::pair::{Pair, SOON, Setting, tests_with};

tests_with!([Real, OurNode, OurLookupd, Ours]: messages_of_publishing_tools_reach_consuming_tools);

/// Lines published in each way.
const LINES: usize = 100;

async fn messages_of_publishing_tools_reach_consuming_tools(setting: Setting) {
    let Some(curl) = peers::installed_or_skip("curl", "curl", setting.test) else { return };
    let Some(client) = Client::find_or_skip(Library::GoNsq, &setting.peers, setting.test) else {
        return;
    };
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &[]).await;
    let (nsqd, http) = (pair.node.tcp_address(), pair.node.http_address());
    let lookupd = format!("--lookupd-http-address={}", pair.lookupd.http_address());

    let mut tail = Tool::start(setting.peers.program("nsq_tail"), ["--topic=t", &lookupd]);
    let output = tempfile::tempdir().unwrap();
    let directory = format!("--output-dir={}", output.path().display());
    let flags = ["--topic=t", &lookupd, &directory, "--sync-interval=100ms"];
    let mut to_file = Tool::start(setting.peers.program("nsq_to_file"), flags);
    eventually("both have subscribed", SOON, async || subscribed(&pair).await == [1, 1]).await;
    let tail_channel = channels(&pair).await.into_iter().find(|name| name.starts_with("tail"));
    let tail_channel = tail_channel.expect("nsq_tail has a channel of its own");
    assert!(tail_channel.ends_with("#ephemeral"), "{tail_channel}");

    // to_nsq, one message per line.
    let mut expected: Vec<String> = (0..LINES).map(|n| format!("to_nsq {n}")).collect();
    let flags = ["--topic=t".to_owned(), format!("--nsqd-tcp-address={nsqd}")];
    let mut to_nsq = Tool::start(setting.peers.program("to_nsq"), flags);
    to_nsq.stdin().write_all((expected.join("\n") + "\n").as_bytes()).unwrap();
    assert!(to_nsq.wait(SOON).await.success(), "{}", to_nsq.stderr());
    // curl, with one message per request, then with many.
    let curl = |path: &str, body: &str| {
        let url = format!("http://{http}{path}");
        let args = ["--silent", "--fail", "--max-time", "10", "--data-binary", body, &url];
        let output = Command::new(&curl).args(args).output().unwrap();
        assert!(output.status.success(), "curl {url}: {}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "OK", "{url}");
    };
    for n in 0..10 {
        let body = format!("curl pub {n}");
        curl("/pub?topic=t", &body);
        expected.push(body);
    }
    let many: Vec<_> = (0..LINES).map(|n| format!("curl mpub {n}")).collect();
    curl("/mpub?topic=t", &many.join("\n"));
    expected.extend(many);
    // A producer on go-nsq.
    let options = [("count", LINES as u64), ("size", 1)];
    let mut producer = client.publish(nsqd, "t", "pub", &options);
    assert!(producer.wait(SOON).await.success(), "{}", producer.stderr());
    expected.extend((0..LINES).map(|n| n.to_string()));

    expected.sort();
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    eventually("nsq_tail has them all", SOON, async || {
        tail.stdout().lines().count() >= expected.len()
    })
    .await;
    let written = || {
        let files = std::fs::read_dir(output.path()).unwrap().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap()).collect::<String>()
    };
    eventually("nsq_to_file has them all", SOON, async || {
        written().lines().count() >= expected.len()
    })
    .await;

    // nsq_stat prints the channel twice, the second time with the difference.
    let flags = ["--topic=t", "--channel=nsq_to_file", &lookupd, "--interval=1s", "--count=2"];
    let mut stat = Tool::start(setting.peers.program("nsq_stat"), flags);
    assert!(stat.wait(SOON).await.success(), "{}", stat.stderr());
    let received = stat.stdout();
    let row: Vec<_> = received.lines().last().unwrap_or_default().split_whitespace().collect();
    let messages = expected.len().to_string();
    // ingress egress | total mem disk in-flight deferred | requeued timed-out messages clients
    let wanted = ["0", "0", "|", "0", "0", "0", "0", "0", "|", "0", "0", &messages, "1"];
    assert_eq!(row, wanted, "{received}");

    tail.terminate();
    to_file.terminate();
    tail.wait(SOON).await;
    to_file.wait(SOON).await;
    assert_eq!(sorted(tail.stdout()), expected);
    assert_eq!(sorted(written()), expected);
    // The ephemeral channel is deleted with its last client, and unregistered; the other one stays.
    eventually("nsq_tail's channel is gone", SOON, async || {
        channels(&pair).await == ["nsq_to_file"]
            && pair.lookupd.channels("t").await == ["nsq_to_file"]
    })
    .await;
}

async fn subscribed(pair: &Pair) -> Vec<u64> {
    let stats = pair.node.stats("t").await;
    let channels = stats["channels"].as_array().cloned().unwrap_or_default();
    channels.iter().map(|channel| channel["client_count"].as_u64().unwrap_or(0)).collect()
}

async fn channels(pair: &Pair) -> Vec<String> {
    let stats = pair.node.stats("t").await;
    let channels = stats["channels"].as_array().cloned().unwrap_or_default();
    channels.iter().filter_map(|is| Some(is["channel_name"].as_str()?.to_owned())).collect()
}
