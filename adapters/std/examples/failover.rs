//! Publishes to the first of several nsqds that is there: `cargo run -p nanonsq-std --example
//! failover -- 127.0.0.1:4150 127.0.0.1:5150`. Stop one of them meanwhile.

use std::error::Error;
use std::time::Duration;

use nanonsq_std::Publisher;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let first = args.next().ok_or("usage: failover HOST:PORT HOST:PORT ...")?;
    let mut builder = Publisher::builder(first.as_str());
    for other in args {
        builder = builder.nsqd(other.as_str());
    }
    // A peer that is gone without a word is noticed after two heartbeats.
    let nsq = builder.heartbeat(Duration::from_secs(1)).start()?;
    for number in 0..50 {
        // Kept, and sent again to the next nsqd, until one has acknowledged it.
        nsq.publish("readings", number.to_string()).await?.acknowledged().await?;
        println!("{number} is acknowledged");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(nsq.shutdown(Duration::from_secs(5)).await?)
}
