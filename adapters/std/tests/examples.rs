//! The examples, run against real servers. Without them (`cargo xtask peers`) the tests print that
//! they are skipped.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use nanonsq_tests::{Nsqd, Nsqlookupd, ServerOptions, Tool, eventually, require_peers};

const LIMIT: Duration = Duration::from_secs(60);

/// Starts an example, which `cargo test` builds beside this test, and `--test examples` does not.
fn start(name: &str, args: &[SocketAddr], more: &[&str]) -> Tool {
    let mut program: PathBuf = std::env::current_exe().unwrap();
    program.pop();
    program.set_file_name("examples");
    program.push(name);
    let args = args.iter().map(SocketAddr::to_string);
    Tool::start(program, args.chain(more.iter().map(|&arg| arg.to_owned())))
}

/// Waits until an example has ended well, and returns what it printed.
async fn output(mut tool: Tool) -> String {
    let status = tool.wait(LIMIT).await;
    assert!(status.success(), "{status}");
    tool.stdout()
}

async fn printed(tool: &Tool, text: &str) {
    eventually(text, LIMIT, async || tool.stdout().contains(text)).await;
}

#[tokio::test]
async fn publish_and_consume() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let address = nsqd.tcp_address();
    for _ in 0..2 {
        let text = output(start("publish", &[address], &[])).await;
        assert_eq!(text, "message 0 is acknowledged\n");
    }
    assert_eq!(output(start("consume", &[address], &["2"])).await, "21.5\n21.5\n");
    let stats = nsqd.get_json("/stats?format=json&topic=readings").await;
    let channel = &stats["topics"][0]["channels"][0];
    assert_eq!((&channel["depth"], &channel["in_flight_count"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn publish_says_why_it_cannot() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut tool = start("publish", &[closed], &[]);
    assert_eq!(tool.wait(LIMIT).await.code(), Some(1));
    assert!(tool.stderr().contains("cannot connect to"), "{}", tool.stderr());
}

#[tokio::test]
async fn request_and_reply() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let text = output(start("request_reply", &[nsqd.tcp_address()], &[])).await;
    assert_eq!(text, "twice 21 is 42\n");
}

#[tokio::test]
async fn failover() {
    let peers = require_peers!();
    let mut first = Nsqd::start(&peers, ServerOptions::new()).await;
    let second = Nsqd::start(&peers, ServerOptions::new()).await;
    let tool = start("failover", &[first.tcp_address(), second.tcp_address()], &[]);
    printed(&tool, "3 is acknowledged").await;
    first.kill().await;
    let text = output(tool).await;
    assert_eq!(text.lines().count(), 50, "{text}");
    let stats = second.get_json("/stats?format=json&topic=readings").await;
    let there = stats["topics"][0]["message_count"].as_u64().unwrap();
    assert!((1..47).contains(&there), "{there}");
}

#[tokio::test]
async fn register() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let mut tool = start("register", &[lookupd.tcp_address()], &[]);
    printed(&tool, "registered").await;
    let found = lookupd.get_json("/lookup?topic=readings").await;
    assert_eq!(found["channels"], serde_json::json!(["archive"]));
    assert_eq!(found["producers"][0]["tcp_port"], 4150);
    // The end of the input is an end, too.
    drop(tool.stdin());
    output(tool).await;
    let found = lookupd.get_json("/lookup?topic=readings").await;
    assert_eq!(found["producers"], serde_json::json!([]));
}

#[tokio::test]
async fn nsqd() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let tool = start("nsqd", &[any, any, lookupd.tcp_address()], &[]);
    printed(&tool, "listening on ").await;
    let text = tool.stdout();
    let address = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
    let found =
        async || lookupd.get_json("/channels?topic=readings").await["channels"][0] == "archive";
    eventually("it is listed", LIMIT, found).await;
    assert_eq!(output(start("consume", &[address], &["10"])).await.lines().count(), 10);
    assert!(output(tool).await.ends_with("all is consumed\n"));
}

#[tokio::test]
async fn nsqlookupd() {
    let peers = require_peers!();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut tool = start("nsqlookupd", &[any, any], &[]);
    printed(&tool, "Enter ends").await;
    let text = tool.stdout();
    let address = |index| text.split(' ').nth(index).unwrap().trim_end_matches(';').parse();
    let (tcp, http): (SocketAddr, SocketAddr) = (address(2).unwrap(), address(4).unwrap());
    let _nsqd = Nsqd::start(&peers, ServerOptions::new().lookupd(tcp)).await;
    let listed = async || {
        let nodes = nanonsq_tests::http::get_json(http, "/nodes").await.unwrap();
        nodes["producers"].as_array().is_some_and(|producers| producers.len() == 1)
    };
    eventually("it is listed", LIMIT, listed).await;
    drop(tool.stdin());
    output(tool).await;
}
