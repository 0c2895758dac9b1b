//! What is measured of nsqlookupds.

use anyhow::{Result, ensure};

use super::raw::{Raw, command};
use super::table::{Row, Run};

/// Our directory has room for 256.
const NODES: u64 = 250;

/// The topics of each node; 1,000 of all.
const TOPICS: u64 = 4;

pub(super) const ROWS: [Row; 5] = [
    Row { name: "REGISTER", limit: 1.0, run: |run| register(run).map(drop) },
    Row { name: "PING", limit: 1.0, run: ping },
    Row { name: "/lookup", limit: 1.0, run: lookup },
    Row { name: "/nodes, 250 with 1,000 topics", limit: 1.0, run: nodes },
    Row { name: "memory with 1,000 topics, KiB", limit: 1.0, run: memory },
];

/// Sends a command and reads its answer.
fn ask(raw: &mut Raw, bytes: &[u8]) -> Result<()> {
    raw.send(bytes)?;
    let answer = raw.sized()?;
    ensure!(!answer.starts_with(b"E_"), "answered {}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn register(run: &mut Run) -> Result<Vec<Raw>> {
    let mut raws = Vec::new();
    for node in 0..NODES {
        let mut raw = Raw::connect(run.server.tcp, b"  V1")?;
        let info = format!(
            r#"{{"broadcast_address":"10.0.0.{node}","hostname":"node{node}","tcp_port":4150,"http_port":4151,"version":"1.3.0"}}"#
        );
        ask(&mut raw, &command("IDENTIFY", info.as_bytes()))?;
        raws.push(raw);
    }
    run.measure(NODES * TOPICS, |_| {
        for (node, raw) in raws.iter_mut().enumerate() {
            for topic in 0..TOPICS {
                ask(raw, format!("REGISTER topic{node}.{topic} channel\n").as_bytes())?;
            }
        }
        Ok(())
    })?;
    Ok(raws)
}

/// Registers, and forgets what that took.
fn registered(run: &mut Run) -> Result<Vec<Raw>> {
    let raws = register(run)?;
    run.reset();
    Ok(raws)
}

fn ping(run: &mut Run) -> Result<()> {
    let mut raws = registered(run)?;
    run.measure(NODES * 40, |_| {
        for _ in 0..40 {
            raws.iter_mut().try_for_each(|raw| ask(raw, b"PING\n"))?;
        }
        Ok(())
    })
}

fn lookup(run: &mut Run) -> Result<()> {
    let _raws = registered(run)?;
    let mut http = Raw::new(run.server.connect_http()?)?;
    run.measure(5_000, |_| {
        (0..5_000).try_for_each(|at| {
            let (node, topic) = (at % NODES, at % TOPICS);
            let path = format!("/lookup?topic=topic{node}.{topic}");
            http.request(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        })
    })
}

fn nodes(run: &mut Run) -> Result<()> {
    let _raws = registered(run)?;
    run.measure(50, |server| {
        for _ in 0..50 {
            let nodes = server.json("/nodes")?;
            ensure!(nodes["producers"].as_array().is_some_and(|all| all.len() as u64 == NODES));
        }
        Ok(())
    })
}

fn memory(run: &mut Run) -> Result<()> {
    let _raws = registered(run)?;
    run.set(run.server.memory()? as f64);
    Ok(())
}
