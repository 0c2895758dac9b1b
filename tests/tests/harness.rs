//! Tests of the harness, with real NSQ.

use std::time::{Duration, Instant};

use nanonsq_tests::{
    Cut, Nsqd, Nsqlookupd, Proxy, ServerOptions, Tool, Until, consume_all, eventually, oracle,
    require_peers, tap,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn nsqd_registers_and_is_listed() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let nsqd = Nsqd::start(&peers, ServerOptions::new().lookupd(lookupd.tcp_address())).await;
    assert!(lookupd.lookup("t").await.is_empty());

    nsqd.create_topic("t").await;
    nsqd.create_channel("t", "c").await;
    lookupd.wait_listed("t", nsqd.tcp_address(), SOON).await;
    eventually("channel c listed", SOON, async || lookupd.channels("t").await == ["c"]).await;
    assert_eq!(lookupd.topics().await, ["t"]);
    assert_eq!(lookupd.nodes().await, [nsqd.tcp_address().to_string()]);

    nsqd.publish("t", b"hello").await;
    assert_eq!(nsqd.message_count("t").await, 1);
    eventually("the message is in the channel", SOON, async || {
        nsqd.channel_stats("t", "c").await["depth"] == 1
    })
    .await;
    assert_eq!(nsqd.depth("t").await, 0);
}

#[tokio::test]
async fn servers_start_again_on_the_same_ports_with_their_data() {
    let peers = require_peers!();
    let mut lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let mut nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let (tcp, http) = (nsqd.tcp_address(), nsqd.http_address());
    nsqd.publish("t", b"survives").await;

    let begin = Instant::now();
    assert!(nsqd.stop_sigterm().await.success());
    nsqd.start_again().await;
    assert!(nsqd.listening_since() >= begin);
    assert_eq!((nsqd.tcp_address(), nsqd.http_address()), (tcp, http));
    assert_eq!(nsqd.depth("t").await, 1);

    assert!(!lookupd.kill().await.success());
    lookupd.start_again().await;
    assert!(lookupd.nodes().await.is_empty());
}

#[tokio::test]
async fn a_frozen_server_accepts_but_does_not_answer() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    lookupd.freeze();
    let mut stream = TcpStream::connect(lookupd.tcp_address()).await.unwrap();
    stream.write_all(b"  V1PING\n").await.unwrap();
    let short = Duration::from_millis(60);
    assert!(timeout(short, stream.read_u8()).await.is_err());
    lookupd.thaw();
    let mut answer = [0; 6];
    timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"\0\0\0\x02OK");
}

#[tokio::test]
async fn the_oracle_reads_what_was_published() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    for text in ["one", "two", "two", "three"] {
        nsqd.publish("t", text.as_bytes()).await;
    }
    let consumed = consume_all(nsqd.tcp_address(), "t", "c", Until::distinct(3)).await.unwrap();
    assert!(matches!(consumed.ended, oracle::Ended::Reached), "{:?}", consumed.ended);
    let mut texts = consumed.texts();
    texts.sort();
    assert_eq!(texts, ["one", "three", "two", "two"]);
    assert_eq!((consumed.distinct().len(), consumed.duplicates()), (3, 1));
    eventually("all messages are finished", SOON, async || {
        nsqd.channel_stats("t", "c").await["in_flight_count"] == 0
    })
    .await;
    assert_eq!(nsqd.channel_stats("t", "c").await["depth"], 0);

    let quiet = Until::quiet_for(Duration::from_millis(100));
    let consumed = consume_all(nsqd.tcp_address(), "t", "c", quiet).await.unwrap();
    assert!(matches!(consumed.ended, oracle::Ended::Idle) && consumed.messages.is_empty());
}

#[tokio::test]
async fn nsqd_behind_a_proxy_is_recorded_and_cut() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let proxy = Proxy::start(lookupd.tcp_address()).await;
    proxy.set_recording(true);
    let nsqd = Nsqd::start(&peers, ServerOptions::new().lookupd(proxy.address())).await;
    nsqd.create_topic("t").await;
    lookupd.wait_listed("t", nsqd.tcp_address(), SOON).await;

    let sent = tap::nsqlookupd(&proxy.client_bytes()[0]).unwrap();
    assert!(matches!(sent.commands[0], tap::V1::Identify(_)));
    assert!(sent.commands.contains(&tap::V1::Register("t".into(), None)));

    let cut = proxy.totals().accepted;
    proxy.cut_all(Cut::Reset);
    eventually("the node is forgotten", SOON, async || lookupd.lookup("t").await.is_empty()).await;
    // nsqd may have dialed again, if it had something to send.
    let closed = || {
        let totals = proxy.totals();
        totals.open <= totals.accepted - cut
    };
    eventually("all connections are closed", SOON, async || closed()).await;
}

#[tokio::test]
async fn the_other_programs_run() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let address = format!("--nsqd-tcp-address={}", nsqd.tcp_address());

    let mut to_nsq = Tool::start(peers.program("to_nsq"), [&address, "--topic=t"]);
    std::io::Write::write_all(&mut to_nsq.stdin(), b"first\nsecond\n").unwrap();
    assert!(to_nsq.wait(SOON).await.success());

    let mut tail =
        Tool::start(peers.program("nsq_tail"), [&address, "--topic=t", "--channel=c", "-n=2"]);
    assert!(tail.wait(SOON).await.success());
    let out = tail.stdout();
    let mut lines: Vec<_> = out.lines().collect();
    lines.sort();
    assert_eq!(lines, ["first", "second"]);
}
