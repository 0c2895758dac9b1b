//! Actions of hostile clients, for any protocol.

use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_tests::random::Random;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::raw::{Raw, Received};

/// Opens connections that send one of `openings`, then random bytes.
pub(crate) async fn random_after(server: SocketAddr, openings: &[&[u8]], connections: usize) {
    let mut random = Random::new(1);
    for round in 0..connections {
        let mut bytes = openings[round % openings.len()].to_vec();
        bytes.extend((0..random.below(2_000)).map(|_| match random.below(8) {
            0 => b'\n',
            1 => b' ',
            _ => random.next() as u8,
        }));
        send(server, &bytes, round).await;
    }
}

/// For each of `commands`, a prefix and a command, opens connections that send the prefix and stop
/// before each byte of the command.
pub(crate) async fn truncated(server: SocketAddr, commands: &[(&[u8], Vec<u8>)]) {
    let mut round = 0;
    for (before, command) in commands {
        for end in 0..command.len() {
            send(server, &[before, &command[..end]].concat(), round).await;
            round += 1;
        }
    }
}

/// Opens connections that send one of `openings`, and neither read nor close.
pub(crate) async fn silent_after(
    server: SocketAddr,
    openings: &[Vec<u8>],
    connections: usize,
) -> Vec<Raw> {
    let mut silent = Vec::new();
    for round in 0..connections {
        let mut raw = Raw::connect(server).await.unwrap();
        // The connection may be rejected before that.
        let _ = raw.send(&openings[round % openings.len()]).await;
        silent.push(raw);
    }
    silent
}

/// Pause between two bytes of a trickle, and between a connection and the next.
const TRICKLE: Duration = Duration::from_millis(200);

/// Keeps one connection open for each of `openings`, for the time `lasting`: it sends the opening,
/// then `trickle` byte by byte, then nothing, and requeues its messages if `requeues`. When the
/// server closes it, another one takes its place.
pub(crate) async fn again(
    server: SocketAddr,
    openings: &[Vec<u8>],
    trickle: &'static [u8],
    requeues: bool,
    lasting: Duration,
) {
    let end = Instant::now() + lasting;
    let mut all = JoinSet::new();
    for opening in openings {
        let opening = opening.clone();
        all.spawn(async move {
            let connection = async || -> std::io::Result<()> {
                let mut raw = Raw::connect(server).await?;
                raw.send(&opening).await?;
                for byte in trickle {
                    raw.send(&[*byte]).await?;
                    sleep(TRICKLE).await;
                }
                loop {
                    if let (Received::Message(message), true) = (raw.next().await?, requeues) {
                        raw.send(&[b"REQ ", &message.id[..], b" 0\n"].concat()).await?;
                    }
                }
            };
            while Instant::now() < end {
                let _ = timeout_at(end, connection()).await;
                let _ = timeout_at(end, sleep(TRICKLE)).await;
            }
        });
    }
    all.join_all().await;
}

/// Opens a connection that sends `bytes` and ends in one of three ways.
pub(crate) async fn send(server: SocketAddr, bytes: &[u8], round: usize) {
    let mut raw = Raw::connect(server).await.unwrap();
    // The connection may be rejected, or closed before it has sent all.
    let _ = raw.send(bytes).await;
    match round % 3 {
        0 => raw.reset(),
        1 => drop(raw),
        _ => {
            let _ = tokio::time::timeout(Duration::from_millis(10), raw.rest()).await;
        }
    }
}
