//! Changes of a running node's nsqlookupds over HTTP.

use nanonsq_tests::{Nsqlookupd, ServerOptions, eventually, http};

use crate::pair::{SOON, Setting, tests_with};

tests_with!([Real, OurNode, OurLookupd, Ours]: a_node_moves_to_another_nsqlookupd);

async fn a_node_moves_to_another_nsqlookupd(setting: Setting) {
    const PATH: &str = "/config/nsqlookupd_tcp_addresses";
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["c"]).await;
    let other = Nsqlookupd::start(&setting.peers, ServerOptions::new()).await;
    let (node, first) = (pair.node.tcp_address(), pair.lookupd.tcp_address().to_string());
    assert_eq!(pair.node.get_json(PATH).await, serde_json::json!([first]));

    let wanted = serde_json::json!([other.tcp_address().to_string()]);
    let http = pair.node.http_address();
    let answer = http::request(http, "PUT", PATH, wanted.to_string().as_bytes()).await.unwrap();
    assert_eq!((answer.status, answer.json().unwrap()), (200, wanted.clone()));
    other.wait_listed("t", node, SOON).await;
    assert_eq!(other.channels("t").await, ["c"]);
    eventually("the first one forgets it", SOON, async || {
        pair.lookupd.nodes().await.is_empty() && pair.lookupd.lookup("t").await.is_empty()
    })
    .await;
    assert_eq!(pair.node.get_json(PATH).await, wanted);

    // A new topic is registered with the new nsqlookupd only.
    pair.node.create_topic("new").await;
    other.wait_listed("new", node, SOON).await;
    assert_eq!(pair.lookupd.lookup("new").await, Vec::<String>::new());
}
