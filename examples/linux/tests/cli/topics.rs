//! `nanonsq sub` with several topics.

use rustix::process::Signal;

use crate::numbers;
use crate::run::Run;
use crate::servers::Server;

/// Publishes 2000 lines to a topic.
async fn publish(node: &Server, topic: &str) {
    let address = node.tcp.to_string();
    let mut run = Run::start(&["pub", "--topic", topic, "--nsqd-tcp-address", &address]);
    run.write(numbers(2000).0).await;
    run.finish().await.expect(0, &["2000 acknowledged"]);
}

#[tokio::test]
async fn several_topics_are_printed_in_turn() {
    let node = Server::start("node", &[]).await;
    publish(&node, "t").await;
    publish(&node, "u").await;
    let address = node.tcp.to_string();
    let sub = ["sub", "--topic=t", "--topic=u", "--topic=t", "--channel=c", "--print-topic"];
    let sub = [&sub[..], &["--nsqd-tcp-address", &address]].concat();
    // The rest goes back.
    let ended = Run::start(&[&sub[..], &["-n", "1000"]].concat()).end().await;
    ended.expect(0, &["1000 finished"]);
    let of = |printed: &[String], topic: &str| -> Vec<String> {
        let begin = format!("{topic} | ");
        printed.iter().filter_map(|line| Some(line.strip_prefix(&begin)?.to_owned())).collect()
    };
    let lines = numbers(2000).1;
    let before = ["t", "u"].map(|topic| of(&ended.printed, topic));
    assert_eq!(before[0].len() + before[1].len(), 1000);
    assert!(before.iter().all(|of| of.len() >= 100), "{:?}", before.map(|of| of.len()));
    assert!(before.iter().all(|of| *of == lines[..of.len()]), "in the order of publishing");
    let run = Run::start(&sub);
    run.until_it_prints(3000).await;
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(0, &["3000 received, 3000 finished"]);
    for (topic, before) in ["t", "u"].into_iter().zip(before) {
        let mut all = [before, of(&ended.printed, topic)].concat();
        all.sort_unstable();
        let mut lines = lines.clone();
        lines.sort_unstable();
        assert_eq!(all, lines, "{topic}");
    }
}
