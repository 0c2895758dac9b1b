//! Publishes a message: `cargo run -p nanonsq-std --example publish -- 127.0.0.1:4150`

use std::error::Error;
use std::time::Duration;

use nanonsq_std::Publisher;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let nsqd = std::env::args().nth(1).ok_or("usage: publish HOST:PORT")?;
    let nsq = Publisher::builder(nsqd.as_str()).start()?;
    let mut receipt = nsq.publish("readings", b"21.5").await?;
    // Otherwise the error says why.
    nsq.shutdown(Duration::from_secs(10)).await?;
    receipt.acknowledged().await?;
    println!("message {} is acknowledged", receipt.number());
    Ok(())
}
