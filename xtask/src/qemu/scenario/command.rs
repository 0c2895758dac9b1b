//! The scenario of a device that consumes commands.

use super::*;

const COMMANDS: &str = "qemu-commands";
/// Time over which a rate is measured.
const SAMPLED: Duration = Duration::from_secs(3);

impl Stage<'_> {
    pub(crate) async fn command(&mut self) -> Result<String> {
        // The device finds its nsqd only through nsqlookupd, once the command topic exists.
        self.nsqd.create_topic(COMMANDS).await;
        let lookupds = self
            .lookupds
            .each_ref()
            .map(|lookupd| format!("{HOST}:{}", lookupd.http_address().port()))
            .join(",");
        let mut device = self.boot(
            &[("lookup-ms", 1000)],
            &[("commands", COMMANDS), ("command-nsqds", ""), ("command-lookupds", &lookupds)],
        )?;
        let found = device.wait_for("commands 0: subscribed", device.booted(), LIMIT).await?;
        let found = found.at - device.booted();

        let slow = self.rate().await;
        let reply = self.ask("#1 set interval 50ms").await?;
        ensure!(reply["ok"] == true && reply["text"] == "interval is 50 ms", "{reply}");
        let fast = self.rate().await;
        println!("{slow} readings in {SAMPLED:?}, after `set interval 50ms` {fast}");
        ensure!((2..=4).contains(&slow) && (40..=61).contains(&fast), "{slow}, then {fast}");

        let asked = Instant::now();
        let reply = self.ask("blink").await?;
        let id = reply["id"].as_str().unwrap_or_default();
        ensure!(id.len() == 16 && reply["text"] == "blinked", "{reply}");
        device.wait_for("the LED is off", asked, LIMIT).await?;

        for (command, wrong) in [
            ("#2 dance", "unknown command 'dance'"),
            ("#2 set interval soon", "'soon' is not a duration"),
            ("#2 set interval 5ms", "'5ms' is not between"),
            ("#2 reboot now", "'now' is too much"),
            ("#2", "no command"),
        ] {
            let reply = self.ask(command).await?;
            let text = reply["text"].as_str().unwrap_or_default();
            let is_right = text.starts_with(wrong) && text.contains("set interval 5s | blink");
            ensure!(reply["ok"] == false && is_right, "{command}: {reply}");
        }
        // A command longer than the device's ring is finished without a reply.
        self.nsqd.publish(COMMANDS, &[b'x'; 4096]).await;

        let before = self.nsqd.message_count(READINGS).await;
        let stats = self.stats().await?;
        let after = self.nsqd.message_count(READINGS).await;
        let number = |name: &str| stats[name].as_u64().unwrap_or(u64::MAX);
        let readings = number("readings");
        // One or two readings may not have arrived yet.
        ensure!((before..=after + 2).contains(&readings), "{before} to {after}: {stats}");
        ensure!(number("period_ms") == 50 && number("commands") == 7, "{stats}");
        ensure!(number("acknowledged") <= number("accepted") && number("failures") == 0, "{stats}");

        let (answered, twice) = self.restart_while_asking().await?;
        let found_again = device.wait_for("commands 0: subscribed", asked, LIMIT).await?;
        ensure!(found_again.at > asked, "the connection was not lost");

        let uptime = number("uptime_s");
        let asked = Instant::now();
        let reply = self.ask("#again reboot").await?;
        ensure!(reply["ok"] == true && reply["text"] == "rebooting", "{reply}");
        let booted = device.wait_for("address ", asked, LIMIT).await?;
        let rebooted = booted.at - asked;
        device.wait_for("commands 0: subscribed", booted.at, LIMIT).await?;
        // Without a FIN, nsqd would have delivered the command again at once.
        sleep(Duration::from_secs(1)).await;
        let stats = self.stats().await?;
        ensure!(stats["commands"] == 0, "a command was delivered again: {stats}");
        ensure!(stats["uptime_s"].as_u64() < Some(uptime), "{stats}");
        ensure!(stats["period_ms"] == 1000, "a new start: {stats}");
        for index in [0, 1] {
            self.listed(index, Instant::now()).await?;
        }
        let channel = self.nsqd.channel_stats(COMMANDS, "device").await;
        ensure!(channel["depth"] == 0 && channel["in_flight_count"] == 0, "{channel}");
        ensure!(channel["client_count"] == 1, "the old connection was not closed: {channel}");
        ensure!(device.runs()?, "the device has ended");
        drop(device);

        // Commands from a configured nsqd, without nsqlookupds.
        let nsqd = format!("{HOST}:{}", self.nsqd.tcp_address().port());
        let device = self.boot(&[], &[("commands", COMMANDS), ("command-nsqds", &nsqd)])?;
        device.wait_for("commands 0: subscribed", device.booted(), LIMIT).await?;
        let reply = self.ask("blink").await?;
        ensure!(reply["text"] == "blinked", "{reply}");
        Ok(format!(
            "found in {} ms; {slow} readings became {fast}; {answered} commands across 3 restarts \
             of nsqd answered, {twice} of them twice; rebooted in {} ms",
            found.as_millis(),
            rebooted.as_millis()
        ))
    }

    /// Returns the number of readings that arrive in [`SAMPLED`].
    async fn rate(&self) -> u64 {
        let before = self.nsqd.message_count(READINGS).await;
        sleep(SAMPLED).await;
        self.nsqd.message_count(READINGS).await - before
    }

    /// Sends a command; returns its reply, which must be the only one.
    async fn ask(&self, command: &str) -> Result<Value> {
        println!("command: {command}");
        self.nsqd.publish(COMMANDS, command.as_bytes()).await;
        let until = Until::distinct(1).idle(LIMIT).linger(Duration::from_millis(100));
        let replies = self.replies(until).await?;
        let [reply] = &*replies else { bail!("{} replies: {replies:?}", replies.len()) };
        if let Some(id) = command.strip_prefix('#').and_then(|rest| rest.split(' ').next()) {
            ensure!(reply["id"] == id, "{reply}");
        }
        Ok(reply.clone())
    }

    async fn stats(&self) -> Result<Value> {
        let mut reply = self.ask("#stats stats").await?;
        ensure!(reply["ok"] == true && reply["stats"]["device"] == "qemu", "{reply}");
        Ok(reply["stats"].take())
    }

    async fn replies(&self, until: Until) -> Result<Vec<Value>> {
        let consumed = consume_all(self.nsqd.tcp_address(), REPLIES, "checker", until).await?;
        let reply = |body: &[u8]| -> Result<Value> {
            println!("    > {}", String::from_utf8_lossy(body));
            Ok(serde_json::from_slice(body)?)
        };
        consumed.bodies().map(reply).collect()
    }

    /// Sends commands while nsqd is stopped and restarted three times. All must be answered.
    /// Returns the number of commands and of repeated answers.
    async fn restart_while_asking(&mut self) -> Result<(usize, usize)> {
        const ASKED: usize = 60;
        let http = self.nsqd.http_address();
        let send = async {
            for number in 0..ASKED {
                let command = format!("#{number} set interval 50ms");
                let path = format!("/pub?topic={COMMANDS}");
                let sent = async || {
                    let response = http::post(http, &path, command.as_bytes()).await;
                    response.is_ok_and(|response| response.status == 200)
                };
                eventually("nsqd takes a command", LIMIT, sent).await;
                sleep(Duration::from_millis(40)).await;
            }
        };
        let restart = async {
            for round in 1..=3 {
                sleep(Duration::from_millis(500)).await;
                println!("stopping and restarting nsqd, {round} of 3");
                self.nsqd.stop_sigterm().await;
                sleep(Duration::from_millis(100)).await;
                self.nsqd.start_again().await;
            }
        };
        tokio::join!(send, restart);
        let mut ids = BTreeMap::new();
        let waiting = Instant::now();
        while ids.len() < ASKED {
            ensure!(waiting.elapsed() < LIMIT, "{} of {ASKED} answered", ids.len());
            for reply in self.replies(Until::quiet_for(Duration::from_millis(500))).await? {
                ensure!(reply["ok"] == true, "{reply}");
                *ids.entry(reply["id"].to_string()).or_insert(0) += 1;
            }
        }
        ensure!(ids.len() == ASKED, "{ids:?}");
        Ok((ASKED, ids.values().sum::<usize>() - ASKED))
    }
}
