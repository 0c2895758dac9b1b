//! The nsqlookupd.

use std::time::Duration;

use nanonsq_std::{Consumer, Nsqlookupd, Publisher, StartError};
use nanonsq_tests::{Nsqd, ServerOptions, require_peers};

use crate::{collect_log, until_logged};

const LIMIT: Duration = Duration::from_secs(60);
const ANY: &str = "127.0.0.1:0";

#[tokio::test]
async fn a_consumer_finds_an_nsqd_through_it() {
    collect_log();
    let peers = require_peers!();
    let lookupd = Nsqlookupd::builder(ANY, ANY).start().await.unwrap();
    let options = ServerOptions::new().lookupd(lookupd.tcp_addr());
    let mut nsqd = Nsqd::start(&peers, options).await;
    let port = nsqd.tcp_address().port();
    let nsq = Publisher::builder(nsqd.tcp_address().to_string().as_str()).start().unwrap();
    nsq.publish("t", b"1").await.unwrap().acknowledged().await.unwrap();

    let consumer = Consumer::builder("t", "c").lookupd(lookupd.http_addr().to_string().as_str());
    let consumer = consumer.lookup_interval(Duration::from_millis(100)).start().unwrap();
    let message = tokio::time::timeout(LIMIT, consumer.next()).await.unwrap().unwrap();
    assert_eq!(message.body(), b"1");
    message.finish().unwrap();
    consumer.shutdown(LIMIT).await;
    until_logged(&format!("INFO nsqlookupd: connected: nsqd 127.0.0.1:{port}")).await;
    nsqd.kill().await;
    until_logged(&format!("WARN nsqlookupd: lost nsqd 127.0.0.1:{port}: ")).await;
    assert_eq!(lookupd.counters().identified, 1);

    let taken = Nsqlookupd::builder(lookupd.tcp_addr().to_string(), ANY).start().await;
    assert!(matches!(taken, Err(StartError::Listen { .. })), "{taken:?}");
    let shutdown = tokio::time::timeout(Duration::from_secs(3), lookupd.shutdown()).await;
    assert!(shutdown.is_ok());
    assert!(std::net::TcpStream::connect(lookupd.tcp_addr()).is_err(), "the port is closed");
}
