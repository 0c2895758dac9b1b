//! What clients that mean harm do, whatever the protocol.

use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_tests::random::Random;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::raw::{Raw, Said};

/// Connections that begin as one of these does, and go on with random bytes.
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

/// Of each of these, connections that stop after its first, second, third byte behind what comes
/// before it.
pub(crate) async fn truncated(server: SocketAddr, commands: &[(&[u8], Vec<u8>)]) {
    let mut round = 0;
    for (before, command) in commands {
        for end in 0..command.len() {
            send(server, &[before, &command[..end]].concat(), round).await;
            round += 1;
        }
    }
}

/// Connections that say one of these, and neither read nor hang up.
pub(crate) async fn silent_after(
    server: SocketAddr,
    openings: &[Vec<u8>],
    connections: usize,
) -> Vec<Raw> {
    let mut silent = Vec::new();
    for round in 0..connections {
        let mut raw = Raw::connect(server).await.unwrap();
        // It may be refused before that.
        let _ = raw.send(&openings[round % openings.len()]).await;
        silent.push(raw);
    }
    silent
}

/// From one byte of what trickles to the next, and from a connection to the one after it.
const TRICKLE: Duration = Duration::from_millis(200);

/// For so long, as many connections at a time: each says one of these, then this, a byte at a time,
/// then nothing; what is delivered to it is delivered again, if it `requeues`. When it is hung up on,
/// another one comes in its place.
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
                    if let (Said::Message(message), true) = (raw.next().await?, requeues) {
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

/// One connection, which says this and hangs up in one of the ways there are.
pub(crate) async fn send(server: SocketAddr, bytes: &[u8], round: usize) {
    let mut raw = Raw::connect(server).await.unwrap();
    // It may be refused, or thrown out in the middle.
    let _ = raw.send(bytes).await;
    match round % 3 {
        0 => raw.reset(),
        1 => drop(raw),
        _ => {
            let _ = tokio::time::timeout(Duration::from_millis(10), raw.rest()).await;
        }
    }
}
