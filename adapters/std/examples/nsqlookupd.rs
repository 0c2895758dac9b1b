//! A program that is an nsqlookupd: `cargo run -p nanonsq-std --example nsqlookupd --
//! 127.0.0.1:4160 127.0.0.1:4161`

use std::error::Error;

use nanonsq_std::Nsqlookupd;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: nsqlookupd TCP-HOST:PORT HTTP-HOST:PORT";
    let (tcp, http) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);
    let lookupd = Nsqlookupd::builder(tcp, http).start().await?;
    println!("listening on {} and {}; Enter ends", lookupd.tcp_addr(), lookupd.http_addr());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await??;
    lookupd.shutdown().await;
    Ok(())
}
