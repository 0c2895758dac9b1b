//! Asks and answers over NSQ: `cargo run -p nanonsq-std --example request_reply -- 127.0.0.1:4150`
//!
//! A request names the topic for its reply, which is ephemeral: it goes with its last client.

use std::error::Error;
use std::time::Duration;

use nanonsq_std::{Consumer, Publisher};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let nsqd = std::env::args().nth(1).ok_or("usage: request_reply HOST:PORT")?;
    let nsq = Publisher::builder(nsqd.as_str()).start()?;

    let requests = Consumer::builder("double", "workers").nsqd(nsqd.as_str()).start()?;
    tokio::spawn(answer(requests, nsq.clone()));

    let topic = format!("replies-{}#ephemeral", std::process::id());
    let replies = Consumer::builder(topic.as_str(), "it#ephemeral").nsqd(nsqd.as_str()).start()?;
    nsq.publish("double", format!("{topic} 21")).await?.acknowledged().await?;
    let reply = timeout(LIMIT, replies.next()).await?.ok_or("shut down")?;
    println!("twice 21 is {}", String::from_utf8_lossy(reply.body()));
    let _ = reply.finish();
    replies.shutdown(LIMIT).await;
    Ok(nsq.shutdown(LIMIT).await?)
}

async fn answer(requests: Consumer, nsq: Publisher) {
    while let Some(request) = requests.next().await {
        let reply = async {
            let (topic, number) =
                std::str::from_utf8(request.body())?.split_once(' ').ok_or("?")?;
            let number: u32 = number.parse()?;
            nsq.publish(topic, (number * 2).to_string()).await?.acknowledged().await?;
            Ok::<_, Box<dyn Error + Send + Sync>>(())
        };
        if let Err(why) = reply.await {
            println!("not a request: {why}");
        }
        // Only now: if this program ends before, another one answers.
        let _ = request.finish();
    }
}
