//! nsqadmin in a browser.

use std::time::Duration;

use nanonsq_tests::client::Library;
use nanonsq_tests::{Browser, Client, ServerOptions, Tool, eventually, http, ports};

use crate::pair::{Pair, SOON, Setting, tests_with};

tests_with!([Real, OurNode, OurLookupd, Ours]: nsqadmin_shows_and_steers);

const START_LIMIT: Duration = Duration::from_secs(10);

async fn nsqadmin_shows_and_steers(setting: Setting) {
    let Some(client) = Client::find_or_skip(Library::GoNsq, &setting.peers, setting.test) else {
        return;
    };
    let Some(browser) = Browser::start_or_skip(setting.test).await else { return };
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("weather", &["archive", "alarm"]).await;
    let (mut nsqadmin, site) = nsqadmin(&setting, &pair).await;
    let open = async |path: &str| browser.open(&format!("{site}{path}")).await;

    let mut consumer =
        client.consume(pair.lookupd.http_address(), "weather", "archive", &[("max-in-flight", 7)]);
    for n in 0..5 {
        pair.node.publish("weather", format!("{n}").as_bytes()).await;
    }
    eventually("all deliveries", SOON, async || consumer.deliveries().len() == 5).await;
    // nsqd processes the answers a moment later.
    eventually("all finished", SOON, async || {
        let clients = pair.node.channel_stats("weather", "archive").await;
        clients["clients"][0]["finish_count"] == 5
    })
    .await;

    // The pages.
    open("/").await;
    browser.wait_text(".topics, body", |text| text.contains("weather")).await;
    let (tcp, http) = (pair.node.tcp_address(), pair.node.http_address());
    open("/nodes").await;
    let node = browser.wait_text("table tr:nth-child(2)", |text| text.contains("weather")).await;
    for wanted in ["127.0.0.1", &tcp.port().to_string(), &http.port().to_string(), "1.3.0"] {
        assert!(node.contains(wanted), "no {wanted} in {node}");
    }
    open(&format!("/nodes/{http}")).await;
    let page = browser.wait_text("body", |text| text.contains("go-nsq/")).await;
    for wanted in ["5 Messages", "1 Clients", "archive", "alarm"] {
        assert!(page.contains(wanted), "no {wanted} in {page}");
    }
    open("/counter").await;
    browser.wait_text(".processed", |text| text == "Messages Processed").await;

    open("/topics/weather").await;
    let page = browser.wait_text("body", |text| text.contains("Empty Queue")).await;
    assert!(page.contains("archive") && page.contains("alarm"), "{page}");
    open("/topics/weather/archive").await;
    let page = browser.wait_text("body", |text| text.contains("go-nsq/")).await;
    // in flight, ready count, finished, requeued, messages
    assert!(page.contains(&format!("{http} 0 7 5 0 5")), "{page}");
    let name = format!("nsqadmin-{:?}.png", setting.subject);
    keep(&name, &browser.screenshot().await);

    // The buttons of a channel.
    let stat =
        async |channel, key: &str| pair.node.channel_stats("weather", channel).await[key].clone();
    open("/topics/weather/alarm").await;
    assert_eq!(stat("alarm", "depth").await, 5);
    press(&browser, "channel", "empty").await;
    eventually("emptied", SOON, async || stat("alarm", "depth").await == 0).await;
    for (action, paused) in [("pause", true), ("unpause", false)] {
        open("/topics/weather/archive").await;
        press(&browser, "channel", action).await;
        eventually(action, SOON, async || stat("archive", "paused").await == paused).await;
        // A paused channel delivers nothing; waiting messages are delivered after that.
        pair.node.publish("weather", if paused { b"10" } else { b"11" }).await;
        if paused {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(consumer.deliveries().len(), 5);
            assert_eq!(stat("archive", "depth").await, 1);
        } else {
            eventually("delivered", SOON, async || consumer.deliveries().len() == 7).await;
        }
    }
    open("/topics/weather/alarm").await;
    press(&browser, "channel", "delete").await;
    eventually("deleted", SOON, async || {
        stat("alarm", "depth").await.is_null()
            && pair.lookupd.channels("weather").await == ["archive"]
    })
    .await;

    // The buttons of a topic.
    let topic = async |key: &str| pair.node.stats("weather").await[key].clone();
    for (action, paused) in [("pause", true), ("empty", true), ("unpause", false)] {
        open("/topics/weather").await;
        if action == "empty" {
            pair.node.publish("weather", b"12").await;
            assert_eq!(topic("depth").await, 1);
        }
        press(&browser, "topic", action).await;
        let done = async || topic("paused").await == paused && topic("depth").await == 0;
        eventually(action, SOON, done).await;
    }
    assert_eq!(consumer.deliveries().len(), 7, "deleted messages are not delivered");
    open("/topics/weather").await;
    press(&browser, "topic", "delete").await;
    eventually("deleted", SOON, async || {
        pair.node.stats("weather").await.is_null() && pair.lookupd.topics().await.is_empty()
    })
    .await;

    // A topic that no nsqd has is created at nsqlookupd.
    open("/lookup").await;
    browser.write("input[name=topic]", "planned").await;
    browser.write("input[name=channel]", "later").await;
    browser.click("form button[type=submit]").await;
    eventually("created", SOON, async || pair.lookupd.channels("planned").await == ["later"]).await;
    browser.wait_text("ul", |_| true).await;
    browser.wait_text("body", |text| text.contains("planned") && text.contains("later")).await;

    // A tombstone hides a topic of a node for a while.
    pair.create("hidden", &["c"]).await;
    open("/topics/hidden").await;
    browser.click(".tombstone-link").await;
    browser.click(".bootbox .btn-primary").await;
    eventually("hidden", SOON, async || pair.lookupd.lookup("hidden").await.is_empty()).await;

    assert!(nsqadmin.is_running(), "{}", nsqadmin.stderr());
}

/// Starts nsqadmin; returns the URL of its pages as well.
async fn nsqadmin(setting: &Setting, pair: &Pair) -> (Tool, String) {
    let port = ports::reserve();
    let flags = [
        format!("--http-address={}", port.address()),
        format!("--lookupd-http-address={}", pair.lookupd.http_address()),
    ];
    let nsqadmin = Tool::start(setting.peers.program("nsqadmin"), flags);
    eventually("nsqadmin answers", START_LIMIT, async || {
        http::get(port.address(), "/ping").await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    (nsqadmin, format!("http://{}", port.address()))
}

/// Clicks a button of the page of a topic or channel, and confirms it.
async fn press(browser: &Browser, of: &str, action: &str) {
    browser.click(&format!(".{of}-actions button[data-action={action}]")).await;
    let question = browser.wait_text(".bootbox .modal-body", |text| !text.is_empty()).await;
    assert!(question.contains(action), "{question}");
    browser.leaving(browser.click(".bootbox .btn-primary")).await;
}

/// Saves a picture in the directory from which CI keeps it.
fn keep(name: &str, picture: &[u8]) {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(directory.join(name), picture).unwrap();
}
