//! The scenario of the examples for application programmers: one publishes, waits until nsqd has
//! the message, and sleeps; one publishes, and obeys commands.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nanonsq_tests::{Nsqd, Peers, ServerOptions};
use tokio::time::sleep;

use super::device::Device;
use super::scenario::{HOST, LIMIT, READINGS};

pub(super) async fn play(peers: &Peers, kernel: &Path, defmt: bool) -> Result<String> {
    let nsqd = Nsqd::start(peers, ServerOptions::new()).await;
    let args = [("nsqd", format!("{HOST}:{}", nsqd.tcp_address().port()))];
    let boot = |name| Device::boot(&kernel.with_file_name(name), &args, defmt);

    let device = boot("publish")?;
    for line in ["publisher: connected to", "publisher: closed", "3 acknowledged, 0 pending"] {
        device.wait_for(line, device.booted(), LIMIT).await?;
    }
    drop(device);
    let slept = nsqd.message_count(READINGS).await;
    ensure!(slept >= 3, "nsqd has {slept} readings");

    let device = boot("obey")?;
    device.wait_for("consumer: connected to", device.booted(), LIMIT).await?;
    for (command, answer) in [("soon", "not a command"), ("1", "a reading every 1 s")] {
        nsqd.publish("commands", command.as_bytes()).await;
        device.wait_for(answer, device.booted(), LIMIT).await?;
    }
    let (begun, waiting) = (nsqd.message_count(READINGS).await, Instant::now());
    while nsqd.message_count(READINGS).await < begun + 3 {
        ensure!(waiting.elapsed() < LIMIT, "the command has no effect");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(format!("{slept} readings between sleeps, and a command obeyed"))
}
