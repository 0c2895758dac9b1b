//! Registers a topic and a channel at an nsqlookupd: `cargo run -p nanonsq-std --example register
//! -- 127.0.0.1:4160`. Consumers that ask it then find this host at port 4150.

use std::error::Error;

use nanonsq_std::core::drive::registration;
use nanonsq_std::core::name::{ChannelName, TopicName};
use nanonsq_std::core::registration::{Config, NodeInfo};
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let lookupd = std::env::args().nth(1).ok_or("usage: register HOST:PORT")?;
    let info = NodeInfo {
        broadcast_address: "127.0.0.1",
        tcp_port: 4150,
        http_port: 4151,
        version: "1.3.0",
        ..NodeInfo::default()
    };
    let config = Config::new(info);
    // One nsqlookupd, 4 topics, 4 channels.
    let mut resources = registration::Resources::<NoopRawMutex, 1, 4, 4>::new();
    let dialers = [TcpDialer::new()];
    let (lookup, mut runner) =
        registration::new(&mut resources, &config, dialers, TokioSleep::new())?;
    lookup.configure(&[lookupd.parse()?])?;
    let (topic, channel) = (TopicName::new("readings")?, ChannelName::new("archive")?);
    lookup.register(&topic, Some(&channel))?;
    let work = async {
        lookup.settled().await;
        println!("registered; Enter ends");
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
        // Unregisters.
        lookup.stop().await;
        Ok(())
    };
    tokio::select! {
        never = runner.run() => never,
        done = work => done,
    }
}
