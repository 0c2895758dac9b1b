//! A program that is an nsqd: `cargo run -p nanonsq-std --example nsqd -- 127.0.0.1:4150
//! 127.0.0.1:4151`. Consumers take its messages there.

use std::error::Error;
use std::time::Duration;

use nanonsq_std::Nsqd;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: nsqd TCP-HOST:PORT HTTP-HOST:PORT [NSQLOOKUPD-HOST:PORT ...]";
    let (tcp, http) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    // What comes before the first consumer waits in the channel.
    let mut builder = Nsqd::builder(tcp, http).channel("readings", "archive");
    for lookupd in args {
        builder = builder.lookupd(lookupd.as_str());
    }
    let nsqd = builder.start().await?;
    println!("listening on {}", nsqd.tcp_addr());
    for number in 0..10 {
        nsqd.publish("readings", number.to_string()).await?;
    }
    nsqd.idle().await;
    println!("all is consumed");
    Ok(nsqd.shutdown(Duration::from_secs(5)).await?)
}
