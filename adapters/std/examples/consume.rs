//! Prints messages: `cargo run -p nanonsq-std --example consume -- 127.0.0.1:4150 10` takes ten,
//! without the number all.

use std::error::Error;
use std::time::Duration;

use nanonsq_std::Consumer;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let nsqd = args.next().ok_or("usage: consume HOST:PORT [COUNT]")?;
    let count = args.next().map_or(Ok(usize::MAX), |count| count.parse())?;
    let consumer = Consumer::builder("readings", "archive").nsqd(nsqd.as_str()).start()?;
    for _ in 0..count {
        let Some(message) = consumer.next().await else { break };
        println!("{}", String::from_utf8_lossy(message.body()));
        // If it is too late, nsqd delivers the message again.
        let _ = message.finish();
    }
    consumer.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
