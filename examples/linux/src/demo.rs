//! `nanonsq demo`: a directory, two sensor nodes and a consumer on loopback.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use embassy_futures::join::{join, join3};
use embassy_futures::select::{Either, Either3, select, select3};
use log::warn;
use nanonsq_core::address::Address;
use nanonsq_core::consumer;
use nanonsq_core::drive::consumer::{Dialers, Sources};
use nanonsq_core::drive::nsqd::Settings;
use nanonsq_core::drive::{self, Gathered, Port, Ports};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{Config, Full, HttpConfig, Nsqd};
use nanonsq_core::nsqlookupd;
use nanonsq_core::nsqlookupd::IdentifyReply;
use nanonsq_core::registration::{self, NodeInfo};
use nanonsq_core::time::Span;
use nanonsq_std::{NoopRawMutex, TcpDialer, TcpListener, TokioSleep};

use crate::flags::SECONDS_MAX;
use crate::output::{self, cannot_print, has_output, plain};
use crate::signals::interrupts;
use crate::system::{seed, unix_time};
use crate::view::{Row, View};

const TOPIC: &str = "readings";
const CHANNEL: &str = "demo";

/// The nodes, and the time between readings of each.
const SENSORS: [(&str, Duration); 2] =
    [("greenhouse", Duration::from_millis(250)), ("cellar", Duration::from_millis(400))];

/// NSQ's default ports, and the next ones for the second node. [`bind`] replaces ports in use.
const DIRECTORY_PORTS: [u16; 2] = [4160, 4161];
const NODE_PORTS: [[u16; 2]; 2] = [[4150, 4151], [4152, 4153]];

/// Bytes of each node's store.
const STORE: usize = 64 * 1024;

/// Time limit for the last messages to arrive.
const LAST: Duration = Duration::from_secs(5);
/// Time before the demo prints that it waits for them.
const SOON: Duration = Duration::from_millis(500);

fn help() -> String {
    output::help(
        "0 if no reading was lost, else 1; 2 for invalid flags",
        &[("seconds of --for", SECONDS_MAX)],
        "nanonsq demo --for 10",
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = help(), allow_negative_numbers = true)]
pub(crate) struct Args {
    /// End the demo after this time.
    #[arg(long = "for", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: Option<u64>,
}

type NodeResources<'a> = drive::nsqd::Resources<'a, NoopRawMutex, 8, 16, 16, 64, 8, 1, 1024>;
type NodeHandle<'a> = drive::nsqd::Handle<'a, NoopRawMutex, TokioSleep>;
type Consumer<'a> = drive::consumer::Handle<'a, NoopRawMutex, TokioSleep>;

/// The two ports of a server.
struct Bound {
    tcp: TcpListener,
    http: TcpListener,
    tcp_address: SocketAddr,
    http_address: SocketAddr,
}

impl Bound {
    async fn new(ports: [u16; 2]) -> Result<Self, String> {
        let [tcp, http] = [bind(ports[0]).await?, bind(ports[1]).await?];
        let address = |listener: &TcpListener| listener.local_addr().map_err(|e| e.to_string());
        let (tcp_address, http_address) = (address(&tcp)?, address(&http)?);
        Ok(Self { tcp, http, tcp_address, http_address })
    }

    fn ports<const CLIENTS: usize, const HTTP: usize>(
        &self,
    ) -> Ports<Gathered<TcpListener, Vec<u8>>, CLIENTS, HTTP> {
        Ports {
            tcp: Port::new(|| Gathered::new(self.tcp.clone(), vec![0; 1024])),
            http: Port::new(|| Gathered::new(self.http.clone(), vec![0; 1024])),
        }
    }

    fn info<'a>(&self, name: &'a str) -> NodeInfo<'a> {
        NodeInfo {
            broadcast_address: "127.0.0.1",
            hostname: name,
            tcp_port: self.tcp_address.port(),
            http_port: self.http_address.port(),
            version: Config::new().version,
            ..NodeInfo::default()
        }
    }
}

/// Listens on the port, or on any free one if the port is in use.
async fn bind(port: u16) -> Result<TcpListener, String> {
    match TcpListener::bind(("127.0.0.1", port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(("127.0.0.1", 0))
            .await
            .map_err(|error| format!("cannot listen on 127.0.0.1: {error}")),
    }
}

/// Runs until Ctrl-C or the end of `--for`. The status is a failure if a reading is lost.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, String> {
    has_output()?;
    let topic = TopicName::new(TOPIC).map_err(|error| error.to_string())?;
    let channel = ChannelName::new(CHANNEL).map_err(|error| error.to_string())?;
    let seed = seed();
    let sleep = TokioSleep::new();

    // The directory.
    let at = Bound::new(DIRECTORY_PORTS).await?;
    let mut config = nsqlookupd::Config::new();
    config.info = IdentifyReply {
        broadcast_address: "127.0.0.1",
        hostname: "demo",
        tcp_port: at.tcp_address.port(),
        http_port: at.http_address.port(),
        ..config.info
    };
    let mut resources =
        Box::new(drive::nsqlookupd::Resources::<NoopRawMutex, 16, 32, 64, 8, 512>::new());
    let (directory, mut directory_runner) =
        drive::nsqlookupd::new(&mut resources, &config, at.ports(), sleep.clone());
    directory.set_unix_time(unix_time());

    // The nodes.
    let lookupds = [address(at.tcp_address)?];
    let bound = [Bound::new(NODE_PORTS[0]).await?, Bound::new(NODE_PORTS[1]).await?];
    let mut configs = [Config::new(), Config::new()];
    for (index, config) in configs.iter_mut().enumerate() {
        // An abandoned channel must not block new readings.
        config.full = Full::DropOldest;
        config.boot = seed.wrapping_add(index as u32);
        config.seed = config.boot;
    }
    let lookup_configs: [_; 2] = std::array::from_fn(|index| registration::Config {
        seed,
        ..registration::Config::new(bound[index].info(SENSORS[index].0))
    });
    let http_configs: [_; 2] = std::array::from_fn(|index| HttpConfig {
        hostname: SENSORS[index].0,
        tcp_port: bound[index].tcp_address.port(),
        http_port: bound[index].http_address.port(),
        ..HttpConfig::new()
    });
    let settings = |index: usize| Settings {
        node: &configs[index],
        http: &http_configs[index],
        lookup: &lookup_configs[index],
        lookupds: &lookupds,
    };
    let mut stores = [vec![0; STORE], vec![0; STORE]];
    let [store_1, store_2] = &mut stores;
    let mut resources = [Box::new(NodeResources::new()), Box::new(NodeResources::new())];
    let [resources_1, resources_2] = &mut resources;
    let dialers =
        || drive::nsqd::Dialers { lookupds: [TcpDialer::new()], channels: Some(TcpDialer::new()) };
    let (node_1, mut node_runner_1) = drive::nsqd::new(
        resources_1,
        settings(0),
        store_1,
        bound[0].ports(),
        dialers(),
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;
    let (node_2, mut node_runner_2) = drive::nsqd::new(
        resources_2,
        settings(1),
        store_2,
        bound[1].ports(),
        dialers(),
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;
    let nodes = [node_1, node_2];
    for node in &nodes {
        node.set_unix_time(unix_time());
    }

    // The consumer, which is configured with the directory only.
    let config = consumer::Config {
        client_id: "demo",
        lookup_interval: Span::from_secs(1),
        max_in_flight: 16,
        max_attempts: 0,
        seed,
        ..consumer::Config::new(topic, channel)
    };
    let mut ring = vec![0; 64 * 1024];
    let mut resources = Box::new(drive::consumer::Resources::<NoopRawMutex, 8, 16, 1, 16>::new());
    let sources = [address(at.http_address)?];
    let (consumer, mut consumer_runner) = drive::consumer::new(
        &mut resources,
        &config,
        Sources { nsqds: &[], lookupds: &sources },
        &mut ring,
        Dialers { nsqds: [TcpDialer::new(); 8], lookupds: [TcpDialer::new()] },
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;

    let view = View::new(&introduction(&at, &bound), &hints(&at, &bound));
    let demo = Demo {
        nodes,
        view: RefCell::new(view),
        published: [const { Cell::new(0) }; 2],
        received: RefCell::new([Vec::new(), Vec::new()]),
        others: Cell::new(0),
        twice: Cell::new(0),
    };
    let start = Instant::now();
    let app = async {
        let sensors = join(demo.sense(&topic, 0), demo.sense(&topic, 1));
        let live = join(sensors, demo.draw());
        let consuming = demo.consume(&consumer);
        let end = select3(after(args.seconds), interrupts(1), demo.unread());
        let mut consuming = std::pin::pin!(consuming);
        match select3(live, consuming.as_mut(), end).await {
            Either3::First((_, never)) => match never {},
            Either3::Second(never) => match never {},
            Either3::Third(_) => {}
        }
        // Wait until all published readings have arrived.
        let mut last = std::pin::pin!(select(consuming, demo.all_arrived()));
        if tokio::time::timeout(SOON, last.as_mut()).await.is_err() {
            demo.view.borrow_mut().print("Waiting for readings that have not arrived ...");
            let _ = tokio::time::timeout(LAST, last).await;
        }
        demo.view.borrow_mut().finish(&demo.rows(), start.elapsed());
        consumer.stop().await;
        join(demo.nodes[0].stop(), demo.nodes[1].stop()).await;
        directory.stop().await;
    };
    let servers = join3(directory_runner.run(), node_runner_1.run(), node_runner_2.run());
    let background = Box::pin(select(servers, consumer_runner.run()));
    match select3(app, background, interrupts(2)).await {
        Either3::First(()) => {}
        Either3::Second(Either::First((never, ..)) | Either::Second(never)) => never,
        Either3::Third(()) => return Err("interrupted again: stopped at once".to_owned()),
    }
    let found = consumer.counters().connections;
    let status = demo.sum_up(start.elapsed(), found);
    match demo.view.borrow().failed() {
        Some(error) => Err(cannot_print(error)),
        None => Ok(status),
    }
}

fn address(of: SocketAddr) -> Result<Address, String> {
    Address::new(&of.ip().to_string(), of.port()).map_err(|error| error.to_string())
}

async fn after(seconds: Option<u64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
        None => std::future::pending().await,
    }
}

/// Returns the description of the demo with its addresses.
fn introduction(directory: &Bound, nodes: &[Bound; 2]) -> String {
    let mut text = format!(
        "A directory (nsqlookupd), two sensor nodes (nsqd) and a consumer, all of them nanonsq, in \
         this process:\n\n  {:<12}{:<18}http://{}\n",
        "directory", directory.tcp_address, directory.http_address
    );
    for ((name, _), bound) in SENSORS.iter().zip(nodes) {
        let _ =
            writeln!(text, "  {name:<12}{:<18}http://{}", bound.tcp_address, bound.http_address);
    }
    text
}

/// Returns commands to inspect the demo with.
fn hints(directory: &Bound, nodes: &[Bound; 2]) -> String {
    let (lookupd, node) = (directory.http_address, nodes[0].http_address);
    format!(
        "Inspect it with NSQ's tools or others; Ctrl-C ends it:\n\n  \
         curl 'http://{lookupd}/lookup?topic={TOPIC}'\n  \
         curl 'http://{node}/stats'\n  \
         curl -d 'hello' 'http://{node}/pub?topic={TOPIC}'\n  \
         nsq_tail --topic={TOPIC} --lookupd-http-address={lookupd}\n"
    )
}

struct Demo<'a> {
    nodes: [NodeHandle<'a>; 2],
    view: RefCell<View>,
    /// Number of readings that each node has accepted.
    published: [Cell<usize>; 2],
    /// For each node, whether the consumer has received the reading of each number.
    received: RefCell<[Vec<bool>; 2]>,
    /// Messages of other producers.
    others: Cell<usize>,
    /// Readings that were received again.
    twice: Cell<usize>,
}

impl Demo<'_> {
    /// Publishes the readings of a sensor.
    async fn sense(&self, topic: &TopicName, index: usize) -> Infallible {
        let (device, period) = SENSORS[index];
        let mut ticks = tokio::time::interval(period);
        loop {
            ticks.tick().await;
            let number = self.published[index].get();
            let celsius = 20.0 + (number as f64 / 20.0).sin() * 3.0 - index as f64 * 8.0;
            let body =
                format!("{{\"device\":\"{device}\",\"number\":{number},\"celsius\":{celsius:.2}}}");
            match self.nodes[index].try_publish(topic, body.as_bytes()) {
                Ok(_) => self.published[index].set(number + 1),
                Err(why) => warn!("{device}: {why}"),
            }
        }
    }

    /// Prints and counts received messages.
    async fn consume(&self, consumer: &Consumer<'_>) -> Infallible {
        loop {
            let message = consumer.next().await;
            let body = message.read(|body| String::from_utf8_lossy(body).into_owned());
            let body = body.unwrap_or_default();
            self.view.borrow_mut().print(&plain(&body));
            match number(&body) {
                Some((index, number)) if number < self.published[index].get() => {
                    let received = &mut self.received.borrow_mut()[index];
                    if received.len() <= number {
                        received.resize(number + 1, false);
                    }
                    if std::mem::replace(&mut received[number], true) {
                        self.twice.set(self.twice.get() + 1);
                    }
                }
                _ => self.others.set(self.others.get() + 1),
            }
            let _ = message.finish();
        }
    }

    fn count(&self, index: usize) -> usize {
        self.received.borrow()[index].iter().filter(|received| **received).count()
    }

    async fn all_arrived(&self) {
        while (0..2).any(|index| self.count(index) < self.published[index].get()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn draw(&self) -> Infallible {
        loop {
            let interval = self.view.borrow().interval();
            tokio::time::sleep(interval).await;
            self.view.borrow_mut().draw(self.rows());
        }
    }

    /// Waits until standard output fails, for example because its reader has closed it.
    async fn unread(&self) {
        while !self.view.borrow().is_closed() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((name, _), node) in SENSORS.iter().zip(&self.nodes) {
            rows.extend(node.look(|node| rows_of(name, node)).unwrap_or_default());
        }
        rows
    }

    /// Prints a summary. The status is a failure if a reading was lost or a node not found.
    fn sum_up(&self, took: Duration, found: u32) -> ExitCode {
        let published: usize = self.published.iter().map(Cell::get).sum();
        let received: usize = (0..2).map(|index| self.count(index)).sum();
        let mut text = format!(
            "\n{published} readings in {:.1} s: {received} received, {} lost, {} twice; {} messages of \
             others",
            took.as_secs_f64(),
            published - received,
            self.twice.get(),
            self.others.get(),
        );
        let nodes = SENSORS.len() as u32;
        if found < nodes {
            let _ = write!(text, "\nthe consumer found {found} of {nodes} nodes");
        }
        self.view.borrow_mut().print(&text);
        let good = received == published && published > 0 && found >= nodes;
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Returns the index of the node that published a reading, and the reading's number.
fn number(body: &str) -> Option<(usize, usize)> {
    let rest = body.strip_prefix("{\"device\":\"")?;
    let (device, rest) = rest.split_once("\",\"number\":")?;
    let (number, _) = rest.split_once(',')?;
    let index = SENSORS.iter().position(|(name, _)| *name == device)?;
    Some((index, number.parse().ok()?))
}

fn rows_of(name: &str, node: &Nsqd<'_>) -> Vec<Row> {
    let mut rows = Vec::new();
    for topic in node.topics() {
        let row = Row {
            node: name.to_owned(),
            topic: topic.name.to_string(),
            channel: None,
            depth: topic.depth,
            in_flight: 0,
            clients: 0,
            messages: topic.messages,
        };
        let of_topic = rows.len();
        rows.extend(node.channels(topic.name).map(|channel| Row {
            channel: Some(channel.name.to_string()),
            depth: channel.depth,
            in_flight: channel.in_flight,
            clients: channel.clients.into(),
            messages: channel.messages,
            ..row.clone()
        }));
        if rows.len() == of_topic {
            rows.push(row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_recognized() {
        assert_eq!(number(r#"{"device":"cellar","number":12,"celsius":1.00}"#), Some((1, 12)));
        for body in ["hello", "", r#"{"device":"attic","number":1,"celsius":1.00}"#] {
            assert_eq!(number(body), None, "{body}");
        }
    }
}
