//! Channels of a topic that is new on a node: the node creates the topic's channels of other nodes
//! before it distributes the first message, so that no channel misses the message.

use nanonsq_tests::{Nsqd, ServerOptions, Until, consume_all, eventually};
use serde_json::Value;

use crate::pair::{Pair, SOON, Setting, tests_with};

tests_with!([Real, OurNode, OurLookupd, Ours]:
    a_new_topic_has_the_channels_that_it_has_elsewhere,
    a_restarted_node_has_its_channels_again,
    without_nsqlookupd_nothing_is_held,
);

const MESSAGES: usize = 50;

/// Starts the pair and another nsqd that has the topic with these channels.
async fn start_with_another(setting: &Setting, channels: &[&str]) -> (Pair, Nsqd) {
    let pair = setting.start(ServerOptions::new()).await;
    let options = ServerOptions::new().lookupd(pair.lookupd.tcp_address());
    let other = Nsqd::start(&setting.peers, options).await;
    other.create_topic("t").await;
    for channel in channels {
        other.create_channel("t", channel).await;
    }
    eventually("nsqlookupd knows both, and the channels", SOON, async || {
        pair.lookupd.nodes().await.len() == 2 && pair.lookupd.channels("t").await == channels
    })
    .await;
    (pair, other)
}

/// Consumes `messages` messages from each of these channels.
async fn assert_each_has(node: &Nsqd, channels: &[&str], messages: usize) {
    for channel in channels {
        let until = Until::distinct(messages);
        let consumed = consume_all(node.tcp_address(), "t", channel, until).await.unwrap();
        assert_eq!(consumed.distinct().len(), messages, "{channel}: {:?}", consumed.ended);
        assert_eq!(consumed.duplicates(), 0, "{channel}");
    }
}

async fn a_new_topic_has_the_channels_that_it_has_elsewhere(setting: Setting) {
    let (pair, _other) =
        start_with_another(&setting, &["alarms", "archive", "live#ephemeral"]).await;
    for n in 0..MESSAGES {
        pair.node.publish("t", n.to_string().as_bytes()).await;
    }
    for channel in ["alarms", "archive"] {
        eventually("each channel has all", SOON, async || {
            pair.node.channel_stats("t", channel).await["depth"] == MESSAGES
        })
        .await;
    }
    assert_eq!(pair.node.depth("t").await, 0);
    assert_eq!(pair.node.channel_stats("t", "live#ephemeral").await, Value::Null);
    assert_each_has(&pair.node, &["alarms", "archive"], MESSAGES).await;
    // nsqlookupd lists the node with the topic as well.
    pair.lookupd.wait_listed("t", pair.node.tcp_address(), SOON).await;
}

async fn a_restarted_node_has_its_channels_again(setting: Setting) {
    let mut pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["alarms", "archive"]).await;
    eventually("nsqlookupd knows the channels", SOON, async || {
        pair.lookupd.channels("t").await == ["alarms", "archive"]
    })
    .await;
    // A device that was reset has lost its topics and channels.
    pair.node.kill().await;
    eventually("nsqlookupd has seen that", SOON, async || pair.lookupd.nodes().await.is_empty())
        .await;
    if !setting.subject.is_our_node() {
        std::fs::remove_file(pair.node.dir().join("nsqd.dat")).expect("what nsqd knew");
    }
    pair.node.start_again().await;
    if !setting.subject.is_our_node() {
        // Our node waits for nsqlookupds. nsqd asks only those that its loop knows, which is a
        // moment after it has identified itself: its log shows that with the next new topic.
        let made = format!("LOOKUPD({}): topic REGISTER first", pair.lookupd.tcp_address());
        pair.node.create_topic("first").await;
        eventually("nsqd's loop has its nsqlookupd", SOON, async || {
            pair.node.log().contains(&made)
        })
        .await;
    }
    pair.node.publish("t", b"first").await;
    assert_each_has(&pair.node, &["alarms", "archive"], 1).await;
}

async fn without_nsqlookupd_nothing_is_held(setting: Setting) {
    let node = setting.subject.start_node(&setting.peers, ServerOptions::new()).await;
    node.create_topic("t").await;
    node.create_channel("t", "c").await;
    node.publish("t", b"x").await;
    // Our node must not wait: that would take five seconds.
    let ours = setting.subject.is_our_node();
    let soon = if ours { std::time::Duration::from_secs(3) } else { SOON };
    eventually("it is delivered", soon, async || node.channel_stats("t", "c").await["depth"] == 1)
        .await;
    // An nsqlookupd that is absent causes no delay, either.
    let nobody = "127.0.0.1:1".parse().unwrap();
    let options = ServerOptions::new().lookupd(nobody);
    let node = setting.subject.start_node(&setting.peers, options).await;
    node.create_topic("t").await;
    node.create_channel("t", "c").await;
    node.publish("t", b"x").await;
    eventually("it is delivered", soon, async || node.channel_stats("t", "c").await["depth"] == 1)
        .await;
}
