//! Tests of the fault-injecting proxy, with an echo server.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nanonsq_tests::{Cut, Fault, Faults, Mode, Proxy, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(60);

/// Starts a server that echoes every connection, until the test ends.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut rx, mut tx) = stream.split();
                let _ = tokio::io::copy(&mut rx, &mut tx).await;
                let _ = tx.shutdown().await;
            });
        }
    });
    address
}

async fn proxied_echo() -> Proxy {
    Proxy::start(echo_server().await).await
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

/// Sends `bytes` and reads them back.
async fn echo(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    let mut echoed = vec![0; bytes.len()];
    timeout(SOON, stream.read_exact(&mut echoed)).await.expect("an echo in time")?;
    assert_eq!(echoed, bytes);
    Ok(())
}

/// Reads to the end of the stream, or to its error.
async fn read_all(stream: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut all = Vec::new();
    let result = timeout(SOON, stream.read_to_end(&mut all)).await.expect("an end in time");
    (all, result.err().map(|error| error.kind()))
}

#[tokio::test]
async fn forwards_and_records_both_directions() {
    let proxy = proxied_echo().await;
    proxy.set_recording(true);
    let mut first = connect(&proxy).await;
    echo(&mut first, b"one").await.unwrap();
    let mut second = connect(&proxy).await;
    echo(&mut second, b"two").await.unwrap();
    echo(&mut first, b"three").await.unwrap();

    assert_eq!(proxy.client_bytes(), [&b"onethree"[..], b"two"]);
    assert_eq!(proxy.recordings()[0].from_server, b"onethree");
    let totals = proxy.totals();
    assert_eq!(
        (totals.accepted, totals.open, totals.from_client, totals.from_server),
        (2, 2, 11, 11)
    );
}

#[tokio::test]
async fn half_close_goes_through() {
    let proxy = proxied_echo().await;
    let mut stream = connect(&proxy).await;
    stream.write_all(b"last words").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(read_all(&mut stream).await, (b"last words".to_vec(), None));
    eventually("closed", SOON, async || proxy.totals().open == 0).await;
}

#[tokio::test]
async fn cut_all_resets_or_finishes() {
    let proxy = proxied_echo().await;
    for (how, end) in [(Cut::Reset, Some(ErrorKind::ConnectionReset)), (Cut::Fin, None)] {
        let mut stream = connect(&proxy).await;
        echo(&mut stream, b"x").await.unwrap();
        proxy.cut_all(how);
        assert_eq!(read_all(&mut stream).await, (Vec::new(), end), "{how:?}");
    }
    // Cutting is no lasting state.
    echo(&mut connect(&proxy).await, b"again").await.unwrap();
}

#[tokio::test]
async fn refuse_and_back() {
    let proxy = proxied_echo().await;
    let mut before = connect(&proxy).await;
    echo(&mut before, b"x").await.unwrap();
    proxy.set_mode(Mode::Refuse).await;
    let refused = TcpStream::connect(proxy.address()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    echo(&mut before, b"still open").await.unwrap();
    proxy.set_mode(Mode::Forward).await;
    echo(&mut connect(&proxy).await, b"x").await.unwrap();
}

#[tokio::test]
async fn a_blackhole_loses_nothing_and_ends() {
    let proxy = proxied_echo().await;
    let mut before = connect(&proxy).await;
    echo(&mut before, b"x").await.unwrap();
    proxy.set_mode(Mode::Blackhole).await;
    let mut during = connect(&proxy).await;
    for stream in [&mut before, &mut during] {
        stream.write_all(b"anyone there?").await.unwrap();
        assert!(timeout(SHORT, stream.read_u8()).await.is_err(), "nothing answers");
    }
    proxy.set_mode(Mode::Forward).await;
    for stream in [&mut before, &mut during] {
        let mut echoed = [0; 13];
        timeout(SOON, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
        assert_eq!(&echoed, b"anyone there?");
    }
}

#[tokio::test]
async fn a_stall_ends_by_itself() {
    let proxy = proxied_echo().await;
    let mut stream = connect(&proxy).await;
    echo(&mut stream, b"x").await.unwrap();
    let begin = Instant::now();
    proxy.stall(SHORT);
    echo(&mut stream, b"late").await.unwrap();
    assert!(begin.elapsed() >= SHORT);
}

#[tokio::test]
async fn a_server_that_is_down_resets_and_can_be_replaced() {
    let nobody = nanonsq_tests::ports::reserve();
    let proxy = Proxy::start(nobody.address()).await;
    assert_eq!(read_all(&mut connect(&proxy).await).await.1, Some(ErrorKind::ConnectionReset));
    proxy.set_target(echo_server().await);
    echo(&mut connect(&proxy).await, b"x").await.unwrap();
}

#[tokio::test]
async fn delay_adds_latency_but_keeps_throughput() {
    const ONE_WAY: Duration = Duration::from_millis(25);
    let proxy = proxied_echo().await;
    proxy.set_delay(ONE_WAY);
    let mut stream = connect(&proxy).await;
    let begin = Instant::now();
    echo(&mut stream, b"x").await.unwrap();
    let round_trip = begin.elapsed();
    assert!(round_trip >= 2 * ONE_WAY && round_trip < 4 * ONE_WAY, "{round_trip:?}");

    // 8 MB in one direction and back: hundreds of round trips if each chunk waited for the
    // previous one.
    let begin = Instant::now();
    let (mut rx, mut tx) = stream.split();
    let block = vec![7; 8_000_000];
    let mut echoed = vec![0; block.len()];
    let (sent, read) = tokio::join!(tx.write_all(&block), rx.read_exact(&mut echoed));
    sent.unwrap();
    read.unwrap();
    let elapsed = begin.elapsed();
    assert!(echoed == block && elapsed < Duration::from_secs(2), "{elapsed:?}");
}

/// Returns how many of 1000 bytes got through on each of several connections.
async fn lengths_under(faults: Faults, connections: usize) -> Vec<usize> {
    let proxy = proxied_echo().await;
    proxy.set_recording(true);
    proxy.set_faults(Some(faults));
    let mut lengths = Vec::new();
    for index in 0..connections {
        let mut stream = connect(&proxy).await;
        let _ = stream.write_all(&[0; 1000]).await;
        let _ = stream.shutdown().await;
        read_all(&mut stream).await;
        lengths.push(proxy.recordings()[index].from_client.len());
    }
    lengths
}

#[tokio::test]
async fn a_seed_cuts_at_the_same_bytes_each_time() {
    let faults = |seed| Faults::seeded(seed, 1..900, [Fault::Cut(Cut::Fin)]).at_most(6);
    let first = lengths_under(faults(1), 4).await;
    assert!(first.iter().all(|&length| (1..900).contains(&length)), "{first:?}");
    assert_eq!(lengths_under(faults(1), 4).await, first);
    assert_ne!(lengths_under(faults(2), 4).await, first);
}

#[tokio::test]
async fn faults_end_when_the_budget_is_used_up() {
    let faults = Faults::seeded(7, 10..20, [Fault::Cut(Cut::Reset)]).at_most(3);
    let lengths = lengths_under(faults, 8).await;
    assert_eq!(lengths.iter().filter(|&&length| length < 20).count(), 3, "{lengths:?}");
    assert_eq!(lengths[7], 1000);
}

#[tokio::test]
async fn stalls_and_half_closes_happen_at_byte_positions() {
    let proxy = proxied_echo().await;
    proxy.set_faults(Some(Faults::seeded(1, 100..101, [Fault::Stall(SHORT)]).at_most(1)));
    let mut stream = connect(&proxy).await;
    echo(&mut stream, &[0; 99]).await.unwrap();
    let begin = Instant::now();
    echo(&mut stream, &[0; 99]).await.unwrap();
    assert!(begin.elapsed() >= SHORT);

    proxy.set_faults(Some(Faults::seeded(1, 100..101, [Fault::HalfClose]).at_most(2)));
    let mut stream = connect(&proxy).await;
    stream.write_all(&[0; 150]).await.unwrap();
    // The server's direction ends after the same 100 bytes, by its own fault or because the server
    // closes.
    assert_eq!(read_all(&mut stream).await, (vec![0; 100], None));
}
