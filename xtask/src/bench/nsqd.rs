//! The nsqd of one measurement.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Mode;
use super::server::{self, Server};

/// Ephemeral, so that nsqd writes nothing to disk.
pub(crate) const TOPIC: &str = "bench#ephemeral";

/// A running nsqd; dropping it kills it.
pub(crate) struct Nsqd(pub(crate) Server);

impl Nsqd {
    /// Starts nsqd on free ports, and returns when it listens.
    pub(crate) fn start(mode: Mode) -> Result<Self> {
        let mut command = mode.command(&server::peer("nsqd")?);
        // Published messages are dropped; messages to consume are kept in memory.
        let queue = if mode == Mode::Consume { 10_000_000 } else { 0 };
        command.arg(format!("--mem-queue-size={queue}"));
        Ok(Self(Server::start(command, true)?))
    }

    /// Publishes `count` messages to the channel that clients consume.
    pub(crate) fn fill(&self, count: u64, size: usize) -> Result<()> {
        const BATCH: u64 = 1000;
        let topic = TOPIC.replace('#', "%23");
        self.0.request("POST", &format!("/topic/create?topic={topic}"), &[])?;
        self.0.request("POST", &format!("/channel/create?topic={topic}&channel=bench"), &[])?;
        let body = vec![b'x'; size];
        let mut left = count;
        while left > 0 {
            let some = left.min(BATCH);
            let mut batch = Vec::with_capacity(4 + some as usize * (4 + size));
            batch.extend((some as u32).to_be_bytes());
            for _ in 0..some {
                batch.extend((size as u32).to_be_bytes());
                batch.extend(&body);
            }
            self.0.request("POST", &format!("/mpub?topic={topic}&binary=true"), &batch)?;
            left -= some;
        }
        // Wait until all messages are in the channel.
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.channel()?["depth"].as_u64() != Some(count) {
            ensure!(Instant::now() < deadline, "{}", self.stats()?);
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until all messages are finished; fails if one was delivered more than once.
    pub(crate) fn expect_consumed(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let channel = self.channel()?;
            let left =
                ["depth", "in_flight_count", "deferred_count", "requeue_count", "timeout_count"]
                    .map(|key| channel[key].as_u64());
            if left == [Some(0); 5] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not consumed: {channel}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the number of messages that nsqd has accepted.
    pub(crate) fn message_count(&self) -> Result<u64> {
        let stats = self.stats()?;
        stats["topics"][0]["message_count"]
            .as_u64()
            .with_context(|| format!("no message_count in {stats}"))
    }

    fn channel(&self) -> Result<Value> {
        Ok(self.stats()?["topics"][0]["channels"][0].take())
    }

    fn stats(&self) -> Result<Value> {
        let topic = TOPIC.replace('#', "%23");
        let path = format!("/stats?format=json&include_mem=false&topic={topic}");
        self.0.json(&path)
    }
}
