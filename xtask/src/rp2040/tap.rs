//! The scenario of a board on a TAP interface, with Linux's network instead of the emulator's.
//!
//! Board and servers run in a separate network namespace, in which this program starts itself, so
//! that other processes do not see them and no interface of this machine is changed.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use nanonsq_tests::{Nsqd, Peers, ServerOptions};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::device::Device;
use super::scenario::{NAME, readings_in};
use crate::judge::exactly_once;
use crate::project;

const INTERFACE: &str = "nanonsq0";
/// The addresses of this machine and of the board.
const HOST: &str = "10.0.3.2";
const BOARD: &str = "10.0.3.15";
const COUNT: u32 = 200;

pub(super) async fn play(peers: &Peers, emulator: &Path, image: &Path) -> Result<String> {
    for line in [
        "link set lo up".to_owned(),
        format!("tuntap add dev {INTERFACE} mode tap"),
        format!("addr add {HOST}/24 dev {INTERFACE}"),
        format!("link set {INTERFACE} up"),
    ] {
        project::run(Command::new("ip").args(line.split(' ')))?;
    }
    let nsqd = Nsqd::start(peers, ServerOptions::new().flag("--mem-queue-size=0")).await;
    let port = forward(nsqd.tcp_address()).await?;
    let started = Instant::now();
    let args = [format!("--tap={INTERFACE}")];
    let mut device = Device::boot(emulator, image, 1, &args)?;
    device.ready(started).await?;
    for (key, value) in [
        ("ip", format!("{BOARD}/24")),
        ("gateway", HOST.to_owned()),
        ("nsqd", format!("{HOST}:{port}")),
        ("interval", "10ms".to_owned()),
        ("count", COUNT.to_string()),
    ] {
        let answer = device.ask(&format!("set {key} {value}")).await?;
        ensure!(answer.contains("not saved yet"), "{answer}");
    }
    device.ask("save").await?;
    let since = Instant::now();
    device.type_line("reboot")?;
    device.ready(since).await?;
    device.wait_for(&format!("all {COUNT} readings are published"), since).await?;
    let stats = device.ask("stats").await?;
    ensure!(stats.contains(&format!("network    {BOARD}/24, gateway {HOST}")), "{stats}");
    exactly_once(&readings_in(&nsqd, COUNT).await?, COUNT)?;
    Ok(format!("{COUNT} readings of {NAME}, each once, over Linux's own TCP"))
}

/// Returns a command that runs this program in a new network namespace.
pub(super) fn in_namespace(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net"]).arg(program);
    command
}

/// Forwards a port on [`HOST`] to a server on loopback; returns the port.
async fn forward(server: SocketAddr) -> Result<u16> {
    let listener = TcpListener::bind((HOST, 0)).await?;
    let port = listener.local_addr()?.port();
    tokio::spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(server).await {
                    let _ = copy_bidirectional(&mut caller, &mut server).await;
                }
            });
        }
    });
    Ok(port)
}
