//! All nodes in this process, each with a connection to a real nsqlookupd that is killed and
//! restarted.

use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nanonsq_std::core::address::Address;
use nanonsq_std::core::drive::{Dialer, registration};
use nanonsq_std::core::name::TopicName;
use nanonsq_std::core::registration::Config;
use nanonsq_std::core::session::DialError;
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};
use nanonsq_tests::{Nsqlookupd, ServerOptions, http};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::LocalSet;

use crate::{NODE, Return};

/// The outage of nsqlookupd.
const DOWN: Duration = Duration::from_secs(5);
/// Open files besides connections.
const FILES: u64 = 200;
/// The time for which the idle fleet is measured.
const IDLE: Duration = Duration::from_secs(10);

/// The times at which connections came up.
type Opened = Rc<RefCell<Vec<Instant>>>;

/// A dialer that records when connections come up.
struct Counting(TcpDialer, Opened);

impl Dialer for Counting {
    type Transport<'d> = <TcpDialer as Dialer>::Transport<'d>;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        let transport = self.0.dial(address).await?;
        self.1.borrow_mut().push(Instant::now());
        Ok(transport)
    }
}

pub(crate) fn run(nodes: usize) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let need = nodes as u64 + FILES;
    if limit.maximum.is_some_and(|most| most < need) {
        bail!("{nodes} connections need `ulimit -n {need}`, and no more than {limit:?} is allowed");
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, fleet(nodes))
}

async fn fleet(nodes: usize) -> Result<()> {
    let peers = nanonsq_tests::peers::find()?;
    let mut server = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let addresses: &[Address] = vec![server.tcp_address().to_string().parse()?].leak();
    let topic = TopicName::new("fleet").expect("a name");
    let opened = Opened::default();
    let before = memory()?;
    let mut future = 0;
    for seed in 0..nodes {
        let config: &Config<'_> =
            Box::leak(Box::new(Config { seed: seed as u32, ..Config::fleet(NODE) }));
        let resources: &mut registration::Resources<'_, NoopRawMutex, 1, 1, 1> =
            Box::leak(Box::new(registration::Resources::new()));
        let dialer = Counting(TcpDialer::new(), opened.clone());
        let (handle, mut runner) =
            registration::new(resources, config, [dialer], TokioSleep::new())
                .expect("a good configuration");
        handle.register(&topic, None).expect("room for one");
        handle.configure(addresses).expect("room for one");
        let run = async move {
            runner.run().await;
        };
        future = size_of_val(&run);
        tokio::task::spawn_local(run);
    }
    println!("\n{nodes} real nodes and an nsqlookupd, Config::fleet:\n");
    let started = Instant::now();
    wait_listed(&server, nodes).await?;
    println!("all listed {:.1} s after the start", started.elapsed().as_secs_f64());
    let memory = memory()?.saturating_sub(before) / nodes as u64;
    println!("memory: {memory} bytes a node, of which {future} are its future");
    let cpu = cpu()?;
    tokio::time::sleep(IDLE).await;
    let idle = self::cpu()? - cpu;
    println!("idle: {:.1} % of a core", 100.0 * idle / IDLE.as_secs_f64());

    let cpu = self::cpu()?;
    server.kill().await;
    tokio::time::sleep(DOWN).await;
    opened.borrow_mut().clear();
    server.start_again().await;
    let up = server.listening_since();
    wait_listed(&server, nodes).await?;
    let listed = up.elapsed().as_secs_f64();
    let used = self::cpu()? - cpu;
    let mut tenths = vec![0; 10 * listed as usize + 20];
    for at in opened.borrow().iter() {
        // The first connection may come up before nsqlookupd's log was read.
        tenths[at.saturating_duration_since(up).as_millis() as usize / 100] += 1;
    }
    let result = Return { tenths, listed };
    println!(
        "down for {DOWN:?}: all listed after {listed:.1} s, {} connections within a second at \
        most, {used:.1} s of CPU time",
        result.peak()
    );
    result.check(nodes)
}

/// Waits until nsqlookupd lists `nodes` producers.
async fn wait_listed(server: &Nsqlookupd, nodes: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // 404 as long as there is no producer.
        let response = http::get(server.http_address(), "/lookup?topic=fleet").await;
        let list = response.ok().and_then(|response| response.json().ok()).unwrap_or_default();
        let listed = list["producers"].as_array().map_or(0, Vec::len);
        if listed == nodes {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{listed} of {nodes} are listed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Returns the resident memory of this process, in bytes.
fn memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/statm").context("this needs Linux")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.context("no pages")? * rustix::param::page_size() as u64)
}

/// Returns the CPU time that this process has used, in seconds.
fn cpu() -> Result<f64> {
    let text = fs::read_to_string("/proc/self/stat").context("this needs Linux")?;
    let fields: Vec<_> = text.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let sum = ticks(12).zip(ticks(13)).map(|(user, system)| user + system);
    Ok(sum.context("no times")? / rustix::param::clock_ticks_per_second() as f64)
}
