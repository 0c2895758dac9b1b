//! The scenarios of a board, and their checks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nanonsq_tests::{Nsqd, Nsqlookupd, Peers, ServerOptions, Until, consume_all};
use serde_json::Value;
use tokio::time::sleep;

use super::LIMIT;
use super::device::{Device, LED_FIVE_FLASHES, LED_ON, LED_ONE_FLASH, LED_TWO_FLASHES};
use crate::judge::{at_least_once, exactly_once, expect};

pub(super) const READINGS: &str = "readings";
pub(super) const REPORTS: &str = "reports";
const REPLIES: &str = "replies";
const COMMANDS: &str = "pico-commands";
/// This machine's address in the board's network.
pub(super) const HOST: &str = "10.0.2.2";
/// The device's default name, with the number of the emulated flash chip.
pub(super) const NAME: &str = "pico-12345678";
/// Time limit for publishing: twice the time on an idle machine.
pub(super) const PUBLISHING: Duration = Duration::from_secs(150);
/// Time limit for a node to be listed again after a restart of its nsqlookupd: its longest backoff
/// and a dial.
const LISTED: Duration = Duration::from_secs(10);
/// Bytes that the emulator's `cut` counts for the erase of a sector.
const SECTOR: u64 = 4096;

/// The servers, the emulator and the image of a scenario.
pub(crate) struct Stage<'s> {
    pub(super) emulator: &'s Path,
    pub(super) image: &'s Path,
    pub(super) lookupds: [Nsqlookupd; 2],
    nsqd: Nsqd,
    pub(super) seed: u64,
    pub(super) started: Instant,
    /// Crash reports that were consumed.
    seen: RefCell<Vec<Value>>,
}

impl<'s> Stage<'s> {
    pub(crate) async fn set(peers: &Peers, emulator: &'s Path, image: &'s Path) -> Self {
        let lookupds = [
            Nsqlookupd::start(peers, ServerOptions::new()).await,
            Nsqlookupd::start(peers, ServerOptions::new()).await,
        ];
        // Only nsqd's file queue keeps the order of arrival.
        let options = ServerOptions::new().flag("--mem-queue-size=0");
        let nsqd = Nsqd::start(peers, options).await;
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |at| at.subsec_nanos());
        println!(
            "nsqlookupds on {} and {}, nsqd on {}; seed {nanos}",
            lookupds[0].tcp_address(),
            lookupds[1].tcp_address(),
            nsqd.tcp_address()
        );
        Self {
            emulator,
            image,
            lookupds,
            nsqd,
            seed: u64::from(nanos),
            started: Instant::now(),
            seen: RefCell::default(),
        }
    }

    /// Boots a board without settings, with a terminal.
    async fn boot(&self) -> Result<Device> {
        let started = Instant::now();
        let device = Device::boot(self.emulator, self.image, self.seed, &[])?;
        device.ready(started).await?;
        Ok(device)
    }

    /// Boots a board, sets it up on its console for these servers, and reboots it.
    async fn boot_for(&self, settings: &[(&str, &str)]) -> Result<Device> {
        let mut device = self.boot().await?;
        let shown = device.ask("show").await?;
        ensure!(shown.contains("no nsqd is set") && shown.contains(NAME), "{shown}");
        let at_host = |port: u16| format!("{HOST}:{port}");
        let lookupds =
            self.lookupds.each_ref().map(|lookupd| at_host(lookupd.tcp_address().port()));
        for (key, value) in [
            ("nsqd", &*at_host(self.nsqd.tcp_address().port())),
            ("lookupd", &lookupds.join(",")),
            ("broadcast", &self.nsqd.tcp_address().to_string()),
            ("heartbeat", "1s"),
        ]
        .iter()
        .chain(settings)
        {
            let answer = device.ask(&format!("set {key} {value}")).await?;
            ensure!(answer.contains("not saved yet"), "{answer}");
        }
        let answer = device.ask("save").await?;
        ensure!(answer.contains("saved; `reboot` to use it"), "{answer}");
        self.reboot(&mut device).await?;
        Ok(device)
    }

    pub(super) async fn reboot(&self, device: &mut Device) -> Result<()> {
        let since = Instant::now();
        device.type_line("reboot")?;
        device.ready(since).await
    }

    /// Boots a board that publishes `readings` readings, and waits until it is connected.
    async fn publishing(&self, readings: u32) -> Result<Device> {
        let count = readings.to_string();
        let device = self.boot_for(&[("interval", "10ms"), ("count", &count)]).await?;
        device.wait_for("nsqd 0: connected", self.started).await?;
        Ok(device)
    }

    pub(crate) async fn clean(&mut self, readings: u32) -> Result<String> {
        let mut device = self.publishing(readings).await?;
        let stats = device.ask("stats").await?;
        ensure!(stats.contains("network    10.0.2.15/24, gateway 10.0.2.2"), "{stats}");
        ensure!(device.counts().await?["hostname"] == NAME, "DHCP knows no host name");
        for lookupd in &self.lookupds {
            for topic in [READINGS, REPORTS, REPLIES] {
                let producer = self.nsqd.tcp_address().to_string();
                listed(lookupd, topic, &producer, LIMIT).await?;
            }
        }
        // Frames that are too long for the driver, and frames with an invalid length.
        for frame in
            ["frame 1518", "frame 4000", "garble 1", "frame 60", "garble 40000", "frame 60"]
        {
            device.control(frame)?;
        }
        device.led(LED_ON).await?;
        let numbers = self.finish(&mut device, readings).await?;
        ensure!(device.stops() == ["reset: asked for"], "it has stopped: {:?}", device.stops());
        let arrived = self.arrived(readings).await?;
        exactly_once(&arrived, readings)?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "possible_duplicates", 0..=0)?;
        Ok(format!("{readings} readings, each once; set up on the console, address by DHCP"))
    }

    pub(crate) async fn unplugged(&mut self, readings: u32) -> Result<String> {
        let mut device = self.publishing(readings).await?;
        sleep(Duration::from_secs(2)).await;
        println!("pulling the cable");
        let pulled = Instant::now();
        device.control("cable out")?;
        let (noticed, _) = device.wait_for("nsqd 0: ", pulled).await?;
        device.led(LED_FIVE_FLASHES).await?;
        // At least longer than two heartbeats.
        sleep(Duration::from_secs(4).saturating_sub(pulled.elapsed())).await;
        let stats = device.ask("stats").await?;
        ensure!(stats.contains("network    no link"), "{stats}");
        println!("plugging in the cable");
        let back = Instant::now();
        device.control("cable in")?;
        let (connected, _) = device.wait_for("nsqd 0: connected", back).await?;
        let (noticed, connected) = (noticed - pulled, connected - back);
        let duplicates = self.at_least_once(&mut device, readings, 2..=3).await?;
        Ok(format!(
            "noticed after {} ms, connected {} ms after the end, {readings} readings and \
             {duplicates} duplicates",
            noticed.as_millis(),
            connected.as_millis()
        ))
    }

    pub(crate) async fn restarts(&mut self, readings: u32) -> Result<String> {
        let mut device = self.publishing(readings).await?;
        let mut took = Duration::ZERO;
        for round in 1..=3 {
            sleep(Duration::from_secs(2)).await;
            println!("stopping and starting nsqd, {round} of 3");
            self.nsqd.stop_sigterm().await;
            sleep(Duration::from_millis(300)).await;
            let since = Instant::now();
            self.nsqd.start_again().await;
            device.wait_for("nsqd 0: connected", since).await?;
            if round == 2 {
                println!("killing and starting an nsqlookupd");
                self.lookupds[1].kill().await;
                sleep(Duration::from_secs(1)).await;
                self.lookupds[1].start_again().await;
                let producer = self.nsqd.tcp_address().to_string();
                let since = self.lookupds[1].listening_since();
                listed(&self.lookupds[1], READINGS, &producer, LISTED).await?;
                took = since.elapsed();
            }
        }
        let duplicates = self.at_least_once(&mut device, readings, 4..=7).await?;
        Ok(format!(
            "{readings} readings and {duplicates} duplicates across 3 restarts of nsqd; listed \
             again {} ms after nsqlookupd's",
            took.as_millis()
        ))
    }

    pub(crate) async fn loss(&mut self, readings: u32) -> Result<String> {
        let mut device = self.publishing(readings).await?;
        device.control("loss 0.02")?;
        let duplicates = self.at_least_once(&mut device, readings, 1..=u64::MAX).await?;
        let counts = device.counts().await?;
        let lost = counts["lost"].as_u64().context("no count of frames")?;
        ensure!(lost > 0, "nothing was lost: {counts}");
        let frames = counts["out"].as_u64().unwrap_or(0) + counts["in"].as_u64().unwrap_or(0);
        Ok(format!(
            "{readings} readings and {duplicates} duplicates; {lost} of {frames} frames lost"
        ))
    }

    pub(crate) async fn power(&mut self, cuts: u32) -> Result<String> {
        let mut device = self.boot().await?;
        device.led(LED_TWO_FLASHES).await?;
        device.ask("set name device-0").await?;
        device.ask("set count 0").await?;
        device.ask("set nsqd 10.0.2.2:4000").await?;
        let answer = device.ask("save").await?;
        ensure!(answer.contains("saved"), "{answer}");
        let (mut current, mut olds, mut news) = (0, 0, 0);
        let mut random = self.seed | 1;
        for number in 1..=cuts {
            device.ask(&format!("set name device-{number}")).await?;
            device.ask(&format!("set nsqd 10.0.2.2:{}", 4000 + number)).await?;
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // During the erase, during the write of the record, or just after.
            let cut = match number % 3 {
                0 => random % SECTOR,
                1 => SECTOR + random % 64,
                _ => SECTOR + 80 + random % 4,
            };
            println!("power is cut after {cut} bytes of flash");
            let (since, stops) = (Instant::now(), device.stops().len());
            device.control(&format!("cut {cut}"))?;
            device.type_line("save")?;
            // Either the power is cut first, or the save is done first.
            let saved = device.wait_for("saved; `reboot`", since);
            let was_saved = tokio::select! {
                saved = saved => saved.is_ok(),
                cut = stopped(&device, stops) => {
                    cut?;
                    false
                }
            };
            if was_saved {
                device.control("power")?;
                stopped(&device, stops).await?;
            }
            device.ready(since).await?;
            let shown = device.ask("show").await?;
            let is = |number: u32| {
                let name = format!("  name             device-{number}\n");
                let nsqd = format!("  nsqd             10.0.2.2:{}\n", 4000 + number);
                shown.contains(&name) && shown.contains(&nsqd)
            };
            match (is(current), is(number)) {
                (true, false) if !was_saved => olds += 1,
                (false, true) => {
                    news += 1;
                    current = number;
                }
                _ => bail!("neither the old settings nor the new: {shown}"),
            }
        }
        // No nsqd listens at the address of the settings.
        device.led(LED_ONE_FLASH).await?;
        ensure!(olds > 0 && news > 0, "{olds} and {news}: cut too early or too late each time");
        Ok(format!("{cuts} cuts: the old settings {olds} times, the new ones {news} times"))
    }

    pub(crate) async fn crash(&mut self) -> Result<String> {
        let mut device = self.boot_for(&[]).await?;
        let mut times = Vec::new();
        for (number, command, reason, text) in [
            (1u32, "panic", "panic", "asked for on the console"),
            (2, "stall", "watchdog", "the watchdog was not fed"),
            (3, "stall network", "stall", "the network's driver makes no progress"),
            (4, "stall publisher", "stall", "the connection to nsqd makes no progress"),
        ] {
            let (since, stops) = (Instant::now(), device.stops().len());
            device.type_line(command)?;
            let stopped = stopped(&device, stops).await?;
            times.push(since.elapsed().as_secs());
            ensure!((stopped == "reset: watchdog") == (command == "stall"), "{stopped}");
            device.ready(since).await?;
            device.wait_for("nsqd 0: connected", since).await?;
            let report = self.crash_report(number).await?;
            ensure!(report["device"] == NAME && report["crash"] == reason, "{report}");
            ensure!(report["text"].as_str().unwrap_or_default().ends_with(text), "{report}");
            ensure!(report["crash_uptime_s"].is_u64(), "{report}");
            let stats = device.ask("stats").await?;
            ensure!(stats.contains(&format!("crashed    {reason} after ")), "{stats}");
        }
        println!("pushing the reset button");
        let since = Instant::now();
        device.control("reset")?;
        device.ready(since).await?;
        device.wait_for("nsqd 0: connected", since).await?;
        let stats = device.ask("stats").await?;
        ensure!(stats.contains("crashed    not before this start"), "{stats}");
        ensure!(self.crash_reports().await?.len() == 4, "a reset is no crash");
        Ok(format!(
            "a panic, a hang, a network and a publisher that hang, each reported; back after {} s, \
             {} s, {} s, {} s",
            times[0], times[1], times[2], times[3]
        ))
    }

    /// Returns the crash reports that have arrived in nsqd so far.
    async fn crash_reports(&self) -> Result<Vec<Value>> {
        let until = Until::quiet_for(Duration::from_millis(300));
        let consumed = consume_all(self.nsqd.tcp_address(), REPORTS, "crashes", until).await?;
        for text in consumed.texts() {
            println!("    > {text}");
            let report: Value = serde_json::from_str(&text)?;
            if report["crash"].is_string() {
                self.seen.borrow_mut().push(report);
            }
        }
        Ok(self.seen.borrow().clone())
    }

    /// Waits for the crash report with this number.
    async fn crash_report(&self, number: u32) -> Result<Value> {
        let since = Instant::now();
        loop {
            let reports = self.crash_reports().await?;
            if let Some(report) = reports.iter().find(|report| report["crashes"] == number) {
                return Ok(report.clone());
            }
            ensure!(since.elapsed() < LIMIT, "no crash report number {number}");
        }
    }

    pub(crate) async fn command(&mut self) -> Result<String> {
        self.nsqd.create_topic(COMMANDS).await;
        let mut device = self.boot_for(&[("commands", COMMANDS), ("interval", "1h")]).await?;
        device.wait_for("commands 0: subscribed", self.started).await?;
        let reply = self.ask("#1 set interval 50ms").await?;
        ensure!(reply["ok"] == true && reply["text"] == "interval is 50 ms", "{reply}");
        let (before, at) = (self.nsqd.message_count(READINGS).await, uptime(&mut device).await?);
        sleep(Duration::from_secs(2)).await;
        let came = self.nsqd.message_count(READINGS).await - before;
        // Measured with the board's clock, which may be slower, with some readings in transit.
        let took = uptime(&mut device).await? - at;
        let expected = took / 50;
        ensure!((expected * 3 / 4..=expected + 5).contains(&came), "{came} readings in {took} ms");
        let reply = self.ask("#2 dance").await?;
        ensure!(reply["ok"] == false, "{reply}");
        let (since, stops) = (Instant::now(), device.stops().len());
        let reply = self.ask("#3 reboot").await?;
        ensure!(reply["ok"] == true && reply["text"] == "rebooting", "{reply}");
        ensure!(stopped(&device, stops).await? == "reset: asked for", "not rebooted on request");
        device.ready(since).await?;
        device.wait_for("commands 0: subscribed", since).await?;
        let stats = device.ask("stats").await?;
        ensure!(stats.contains("crashed    not before this start"), "{stats}");
        let reply = self.ask("#4 stats").await?;
        ensure!(reply["ok"] == true && reply["stats"]["readings"].is_u64(), "{reply}");
        ensure!(device.stops().len() == stops + 1, "it rebooted again");
        Ok(format!("4 commands answered, {came} readings in {took} ms after `set interval 50ms`"))
    }

    /// Sends a command; returns its reply.
    async fn ask(&self, command: &str) -> Result<Value> {
        let (number, _) = command.split_once(' ').context("a command has a number")?;
        println!("    < {command}");
        self.nsqd.publish(COMMANDS, command.as_bytes()).await;
        let since = Instant::now();
        loop {
            let until = Until::distinct(1).idle(Duration::from_millis(500));
            let consumed = consume_all(self.nsqd.tcp_address(), REPLIES, "checker", until).await?;
            for text in consumed.texts() {
                println!("    > {text}");
                let reply: Value = serde_json::from_str(&text)?;
                if reply["id"] == number.trim_start_matches('#') {
                    return Ok(reply);
                }
            }
            ensure!(since.elapsed() < LIMIT, "no reply to {command:?}");
        }
    }

    /// Waits until all readings are published; returns the numbers of the device.
    async fn finish(&self, device: &mut Device, readings: u32) -> Result<BTreeMap<String, u64>> {
        let waiting = Instant::now();
        loop {
            let numbers = device.numbers().await?;
            let number = |name: &str| numbers.get(name).copied();
            if number("readings") == Some(readings.into()) && number("pending") == Some(0) {
                for name in ["rejected", "dropped", "expired"] {
                    expect(&numbers, name, 0..=0)?;
                }
                ensure!(number("accepted") == number("acknowledged"), "{numbers:?}");
                return Ok(numbers);
            }
            ensure!(waiting.elapsed() < PUBLISHING, "not published in {PUBLISHING:?}: {numbers:?}");
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Waits until all readings are published, and checks that each has arrived, in order. Returns
    /// the number of duplicates.
    async fn at_least_once(
        &self,
        device: &mut Device,
        readings: u32,
        connections: std::ops::RangeInclusive<u64>,
    ) -> Result<u64> {
        let numbers = self.finish(device, readings).await?;
        expect(&numbers, "connections", connections)?;
        let arrived = self.arrived(readings).await?;
        at_least_once(&arrived, readings, &numbers)
    }

    /// See [`readings_in`].
    async fn arrived(&self, readings: u32) -> Result<Vec<u32>> {
        readings_in(&self.nsqd, readings).await
    }
}

/// Returns the numbers of the readings in an nsqd, in the order of their arrival.
pub(super) async fn readings_in(nsqd: &Nsqd, readings: u32) -> Result<Vec<u32>> {
    let until = Until::distinct(readings as usize).linger(Duration::from_millis(500)).limit(LIMIT);
    let consumed = consume_all(nsqd.tcp_address(), READINGS, "checker", until).await?;
    let numbers = consumed.bodies().map(|body| -> Result<u32> {
        let reading: Value = serde_json::from_slice(body)?;
        let temperature = reading["values"]["temperature_mc"].as_i64().unwrap_or_default();
        // The temperature of the emulated chip is 27 degrees Celsius.
        let is_good = reading["device"] == NAME && (26_000..28_000).contains(&temperature);
        ensure!(is_good, "{reading}");
        Ok(serde_json::from_value(reading["number"].clone())?)
    });
    let numbers: Vec<u32> = numbers.collect::<Result<_>>()?;
    let texts = consumed.texts();
    if let [first, .., last] = &*texts {
        println!("in nsqd:\n    > {first}\n    > ... {} more ...\n    > {last}", texts.len() - 2);
    }
    Ok(numbers)
}

/// Returns the milliseconds since the board was started, by its own clock.
async fn uptime(device: &mut Device) -> Result<u64> {
    let counts = device.counts().await?;
    Ok(counts["milliseconds"].as_f64().context("no count of milliseconds")? as u64)
}

/// Waits until the board has stopped more than `before` times; returns the reason.
async fn stopped(device: &Device, before: usize) -> Result<String> {
    let since = Instant::now();
    loop {
        if let Some(stop) = device.stops().get(before) {
            return Ok(stop.clone());
        }
        ensure!(since.elapsed() < PUBLISHING, "the board still runs after {PUBLISHING:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until an nsqlookupd lists the producer.
pub(super) async fn listed(
    lookupd: &Nsqlookupd,
    topic: &str,
    producer: &str,
    limit: Duration,
) -> Result<()> {
    let since = Instant::now();
    while !lookupd.lookup(topic).await.iter().any(|other| other == producer) {
        ensure!(since.elapsed() < limit, "{topic} is not listed in {limit:?}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
