//! What happens to a device, and what must come of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nanonsq_tests::{Nsqd, Nsqlookupd, Peers, ServerOptions, Until, consume_all};
use tokio::time::sleep;

use super::Scenario;
use super::device::Device;

const READINGS: &str = "readings";
const REPORTS: &str = "reports";
/// nsqd keeps none of their messages, only counts them.
const FLOOD: &str = "flood#ephemeral";
const FLOOD_2: &str = "flood-2#ephemeral";
/// The host as the device sees it.
const HOST: &str = "10.0.2.2";
/// For what takes no time, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);
/// A device that takes 15 s, and has a heartbeat each second.
const SLOW: [(&str, u64); 4] = [
    ("readings", SLOW_READINGS as u64),
    ("period-ms", 10),
    ("report-ms", 1000),
    ("heartbeat-ms", 1000),
];
const SLOW_READINGS: u32 = 1500;
/// A node is listed again so soon after its nsqlookupd is back.
const LISTED: Duration = Duration::from_secs(2);

/// The servers, and what they play with.
pub(crate) struct Stage<'s> {
    kernel: &'s Path,
    defmt: bool,
    lookupds: [Nsqlookupd; 2],
    nsqd: Nsqd,
}

impl<'s> Stage<'s> {
    pub(crate) async fn set(
        peers: &Peers,
        kernel: &'s Path,
        defmt: bool,
        scenario: Scenario,
    ) -> Self {
        let mut options = ServerOptions::new();
        if matches!(
            scenario,
            Scenario::Restarts | Scenario::Hurry | Scenario::Unplugged | Scenario::Silence
        ) {
            // Through files alone the order of arrival is kept.
            options = options.flag("--mem-queue-size=0");
        }
        let lookupds = [
            Nsqlookupd::start(peers, ServerOptions::new()).await,
            Nsqlookupd::start(peers, ServerOptions::new()).await,
        ];
        let nsqd = Nsqd::start(peers, options).await;
        println!(
            "nsqlookupds on {} and {}, nsqd on {}",
            lookupds[0].tcp_address(),
            lookupds[1].tcp_address(),
            nsqd.tcp_address()
        );
        Self { kernel, defmt, lookupds, nsqd }
    }

    /// Boots a device that publishes here, with these settings beside.
    fn boot(
        &self,
        settings: &[(&'static str, u64)],
        topics: &[(&'static str, &str)],
    ) -> Result<Device> {
        let at_host = |port| format!("{HOST}:{port}");
        let lookupds =
            self.lookupds.each_ref().map(|lookupd| at_host(lookupd.tcp_address().port()));
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.subsec_nanos());
        let mut args = vec![
            ("nsqds", at_host(self.nsqd.tcp_address().port())),
            ("lookupds", lookupds.join(",")),
            // Where consumers find what it publishes.
            ("broadcast", self.nsqd.tcp_address().ip().to_string()),
            ("broadcast-tcp-port", self.nsqd.tcp_address().port().to_string()),
            ("broadcast-http-port", self.nsqd.http_address().port().to_string()),
            ("seed", nanos.to_string()),
        ];
        args.extend(settings.iter().map(|&(key, number)| (key, number.to_string())));
        args.extend(topics.iter().map(|&(key, topic)| (key, topic.to_owned())));
        Device::boot(self.kernel, &args, self.defmt)
    }

    pub(crate) async fn clean(&mut self, readings: u32) -> Result<()> {
        let mut device =
            self.boot(&[("readings", readings.into()), ("period-ms", 0), ("report-ms", 100)], &[])?;
        let numbers = finish(&mut device, LIMIT).await?;
        let arrived = self.arrived(READINGS, readings).await?;
        exactly_once(&arrived, readings)?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "possible_duplicates", 0..=0)?;
        self.check_last_report(readings).await?;
        self.check_registered().await
    }

    pub(crate) async fn restarts(&mut self, readings: u32) -> Result<()> {
        // A reading each millisecond leaves time for what happens.
        let pause = Duration::from_millis(u64::from(readings) / 8);
        let mut device = self
            .boot(&[("readings", readings.into()), ("period-ms", 1), ("report-ms", 1000)], &[])?;
        device.says("nsqd 0: connected", Instant::now() - LIMIT, LIMIT).await?;
        for round in 1..=5 {
            sleep(pause).await;
            println!("stopping and restarting nsqd, {round} of 5");
            self.nsqd.stop_sigterm().await;
            sleep(Duration::from_millis(100)).await;
            self.nsqd.start_again().await;
            if round == 3 {
                sleep(pause / 2).await;
                println!("killing and restarting an nsqlookupd");
                self.lookupds[1].kill().await;
                sleep(Duration::from_millis(500)).await;
                self.lookupds[1].start_again().await;
                let since = self.lookupds[1].listening_since();
                let took = self.listed(1, since).await?;
                println!("listed again after {took:?}");
            }
        }
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 6..=6 + 5)?;
        let arrived = self.arrived(READINGS, readings).await?;
        at_least_once(&arrived, readings, &numbers)?;
        self.check_last_report(readings).await
    }

    pub(crate) async fn hurry(&mut self) -> Result<()> {
        let mut device =
            self.boot(&[("duration-ms", 5000), ("period-ms", 0), ("report-ms", 1000)], &[])?;
        device.says("nsqd 0: connected", Instant::now() - LIMIT, LIMIT).await?;
        for round in 1..=5 {
            sleep(Duration::from_millis(700)).await;
            println!("stopping and restarting nsqd, {round} of 5");
            self.nsqd.restart().await;
        }
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 6..=6 + 5)?;
        let readings = u32::try_from(numbers["readings"])?;
        let arrived = self.arrived(READINGS, readings).await?;
        at_least_once(&arrived, readings, &numbers)?;
        self.check_last_report(readings).await
    }

    pub(crate) async fn unplugged(&mut self) -> Result<()> {
        let mut device = self.boot(&SLOW, &[])?;
        device.says("nsqd 0: connected", Instant::now() - LIMIT, LIMIT).await?;
        sleep(Duration::from_secs(3)).await;
        println!("pulling the cable");
        let pulled = Instant::now();
        device.set_cable(false)?;
        // Its Ethernet tells.
        let noticed = device.says("nsqd 0: ", pulled, Duration::from_secs(1)).await?;
        println!("noticed after {:?}: {}", noticed.at - pulled, noticed.text.trim());
        sleep(Duration::from_secs(5).saturating_sub(pulled.elapsed())).await;
        println!("plugging it in");
        let plugged = Instant::now();
        device.set_cable(true)?;
        let connected = device.says("nsqd 0: connected", plugged, Duration::from_secs(15)).await?;
        println!("connected after {:?}", connected.at - plugged);
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 2..=2)?;
        let arrived = self.arrived(READINGS, SLOW_READINGS).await?;
        at_least_once(&arrived, SLOW_READINGS, &numbers)?;
        self.check_last_report(SLOW_READINGS).await
    }

    pub(crate) async fn silence(&mut self) -> Result<()> {
        let mut device = self.boot(&SLOW, &[])?;
        device.says("nsqd 0: connected", Instant::now() - LIMIT, LIMIT).await?;
        sleep(Duration::from_secs(3)).await;
        println!("holding back all frames");
        let silent = Instant::now();
        device.hold_frames(true)?;
        // After two heartbeats; another second goes to closing.
        let noticed = device.says("nothing heard", silent, Duration::from_millis(3500)).await?;
        println!("noticed after {:?}: {}", noticed.at - silent, noticed.text.trim());
        sleep(Duration::from_secs(5).saturating_sub(silent.elapsed())).await;
        println!("letting them pass");
        let passing = Instant::now();
        device.hold_frames(false)?;
        let connected = device.says("nsqd 0: connected", passing, Duration::from_secs(15)).await?;
        println!("connected after {:?}", connected.at - passing);
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 2..=2)?;
        let arrived = self.arrived(READINGS, SLOW_READINGS).await?;
        at_least_once(&arrived, SLOW_READINGS, &numbers)?;
        self.check_last_report(SLOW_READINGS).await
    }

    pub(crate) async fn crowd(&mut self) -> Result<()> {
        let mut device = self.boot(
            &[("duration-ms", 5000), ("period-ms", 0), ("report-ms", 100), ("heartbeat-ms", 1000)],
            &[("topic", FLOOD), ("second", FLOOD_2)],
        )?;
        let numbers = finish(&mut device, LIMIT).await?;
        // The reports that found the outbox full.
        expect(&numbers, "refused", 1..=u64::MAX)?;
        expect(&numbers, "heartbeats", 3..=5)?;
        expect(&numbers, "connections", 1..=1)?;
        self.check_counts(&numbers, &[FLOOD, FLOOD_2, REPORTS]).await
    }

    pub(crate) async fn idle(&mut self, duration: Duration) -> Result<()> {
        let mut device = self.boot(
            &[("duration-ms", millis(duration)), ("period-ms", 3_600_000), ("report-ms", 60_000)],
            &[],
        )?;
        let numbers = finish(&mut device, duration + LIMIT).await?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "failures", 0..=0)?;
        // One every 30 s, and time for it to arrive.
        let heartbeats = (duration.as_secs() / 30).saturating_sub(1);
        expect(&numbers, "heartbeats", heartbeats..=heartbeats + 1)?;
        let per_minute = |name: &str| {
            let number = numbers.get(name).copied().unwrap_or_default();
            number as f64 * 60.0 / duration.as_secs_f64()
        };
        println!(
            "a minute of idling: {:.0} wakeups, {:.0} bytes in {:.0} frames received, \
             {:.0} bytes in {:.0} frames sent",
            per_minute("wakeups"),
            per_minute("bytes_in"),
            per_minute("frames_in"),
            per_minute("bytes_out"),
            per_minute("frames_out"),
        );
        ensure!(per_minute("wakeups") < 600.0, "it does not rest");
        self.check_counts(&numbers, &[READINGS, REPORTS]).await
    }

    pub(crate) async fn flood(&mut self, duration: Duration) -> Result<()> {
        let mut device =
            self.boot(&[("duration-ms", millis(duration)), ("period-ms", 0)], &[("topic", FLOOD)])?;
        let numbers = finish(&mut device, duration + LIMIT).await?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "possible_duplicates", 0..=0)?;
        let accepted = numbers.get("accepted").copied().unwrap_or_default();
        println!("{:.0} messages a second", accepted as f64 / duration.as_secs_f64());
        self.check_counts(&numbers, &[FLOOD, REPORTS]).await
    }

    /// The numbers of the readings in nsqd, in the order of their arrival.
    async fn arrived(&self, topic: &str, readings: u32) -> Result<Vec<u32>> {
        let until =
            Until::distinct(readings as usize).linger(Duration::from_millis(500)).limit(LIMIT);
        let consumed = consume_all(self.nsqd.tcp_address(), topic, "checker", until).await?;
        let numbers = consumed.bodies().map(|body| -> Result<u32> {
            let reading: serde_json::Value = serde_json::from_slice(body)?;
            ensure!(reading["device"] == "qemu" && reading["values"].is_object(), "{reading}");
            Ok(serde_json::from_value(reading["number"].clone())?)
        });
        let numbers: Vec<u32> = numbers.collect::<Result<_>>()?;
        let distinct = consumed.distinct().len();
        println!("{} readings arrived, {distinct} different ones", numbers.len());
        Ok(numbers)
    }

    async fn check_last_report(&self, readings: u32) -> Result<()> {
        let until = Until::quiet_for(Duration::from_millis(500));
        let consumed = consume_all(self.nsqd.tcp_address(), REPORTS, "checker", until).await?;
        let last = consumed.bodies().last().context("no report")?;
        let report: serde_json::Value = serde_json::from_slice(last)?;
        println!("the last of {} reports: {report}", consumed.messages.len());
        ensure!(report["readings"] == readings && report["pending"] == 0, "{report}");
        Ok(())
    }

    /// Both nsqlookupds were told of both topics, and then that they are gone.
    async fn check_registered(&self) -> Result<()> {
        for lookupd in &self.lookupds {
            let log = lookupd.log();
            for topic in [READINGS, REPORTS] {
                for command in ["REGISTER", "UNREGISTER"] {
                    let said = format!(" {command} category:topic key:{topic} ");
                    ensure!(log.contains(&said), "no{said}in the log of nsqlookupd:\n{log}");
                }
                let listed = lookupd.lookup(topic).await;
                ensure!(listed.is_empty(), "{topic} is still at {listed:?}");
            }
        }
        Ok(())
    }

    /// Waits until an nsqlookupd lists the device; how long after `since` that was.
    async fn listed(&self, index: usize, since: Instant) -> Result<Duration> {
        let producer = self.nsqd.tcp_address().to_string();
        loop {
            if self.lookupds[index].lookup(READINGS).await.contains(&producer) {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < LISTED, "not listed again within {LISTED:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// nsqd counted what the device says that it acknowledged.
    async fn check_counts(&self, numbers: &BTreeMap<String, u64>, topics: &[&str]) -> Result<()> {
        let mut counted = 0;
        for topic in topics {
            let count = self.nsqd.message_count(topic).await;
            println!("nsqd counted {count} messages of {topic}");
            ensure!(count > 0, "nothing of {topic} arrived");
            counted += count;
        }
        expect(numbers, "acknowledged", counted..=counted)
    }
}

/// Waits for the device's end, which must be a good one; gives its numbers.
async fn finish(device: &mut Device, limit: Duration) -> Result<BTreeMap<String, u64>> {
    let status = device.end(limit).await?;
    ensure!(status.success(), "the device ended with {status}");
    let numbers = device.numbers();
    for name in ["pending", "rejected", "dropped", "expired"] {
        expect(&numbers, name, 0..=0)?;
    }
    Ok(numbers)
}

fn expect(
    numbers: &BTreeMap<String, u64>,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<()> {
    let number = *numbers.get(name).with_context(|| format!("the device did not say {name}"))?;
    ensure!(range.contains(&number), "{name} is {number}, not in {range:?}");
    Ok(())
}

fn exactly_once(arrived: &[u32], readings: u32) -> Result<()> {
    let mut sorted = arrived.to_vec();
    sorted.sort_unstable();
    ensure!(sorted.iter().copied().eq(0..readings), "not each of {readings} readings once");
    Ok(())
}

/// Each arrived; in the order in which they were read, but that after a connection was lost the
/// next begins with the first that was not acknowledged.
fn at_least_once(arrived: &[u32], readings: u32, numbers: &BTreeMap<String, u64>) -> Result<()> {
    let mut next = 0;
    let mut steps_back = 0;
    for (at, &number) in arrived.iter().enumerate() {
        let expected = at.checked_sub(1).map_or(0, |before| arrived[before] + 1);
        if number != expected {
            ensure!(number < next, "{number} came after {expected}: {next} is missing or late");
            steps_back += 1;
        }
        next = next.max(number + 1);
    }
    ensure!(next == readings, "{next} of {readings} readings arrived");
    let number = |name| numbers.get(name).copied().unwrap_or_default();
    ensure!(
        steps_back < number("connections"),
        "{steps_back} repetitions in {} connections",
        number("connections")
    );
    let duplicates = arrived.len() as u64 - u64::from(readings);
    println!(
        "{duplicates} of at most {} duplicates, {steps_back} repetitions in {} connections",
        number("possible_duplicates"),
        number("connections")
    );
    ensure!(duplicates <= number("possible_duplicates"), "more duplicates than announced");
    Ok(())
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
