//! Registration with real nsqlookupds.

use std::time::{Duration, Instant};

use nanonsq_std::TcpDialer;
use nanonsq_std::core::time::Span;
use nanonsq_tests::{Mode, Nsqlookupd, Proxy, ServerOptions, eventually, require_peers};

use crate::support::{Node, addresses, channel, local, topic};

const SOON: Duration = Duration::from_secs(2);

fn node_name() -> Vec<String> {
    vec![Node::ANNOUNCED.to_string()]
}

/// Waits until no node is listed: the node, unlike its topics, is removed with the connection,
/// which nsqlookupd may notice a moment later.
async fn unlisted(lookupd: &Nsqlookupd) {
    eventually("no node is listed", SOON, async || lookupd.nodes().await.is_empty()).await;
}

#[tokio::test]
async fn listings_follow_every_change() {
    let peers = require_peers!();
    let one = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let two = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    local(async {
        let node = Node::start(&[one.tcp_address()]);
        node.register(&["bare", "t/a", "t/b", "e#ephemeral/c#ephemeral"]);
        node.handle.settled().await;
        assert_eq!(one.nodes().await, node_name());
        assert_eq!(one.topics().await, ["bare", "e#ephemeral", "t"]);
        assert_eq!(one.channels("t").await, ["a", "b"]);
        assert_eq!(one.channels("e#ephemeral").await, ["c#ephemeral"]);
        for name in ["bare", "t", "e#ephemeral"] {
            assert_eq!(one.lookup(name).await, node_name(), "{name}");
        }

        // Adding and removing topics and channels.
        node.register(&["late"]);
        assert!(node.handle.unregister(&topic("t"), Some(&channel("a"))));
        assert!(node.handle.unregister(&topic("bare"), None));
        assert!(node.handle.unregister(&topic("e#ephemeral"), None));
        node.handle.settled().await;
        assert_eq!(one.lookup("late").await, node_name());
        assert_eq!(one.lookup("bare").await, [""; 0]);
        assert_eq!(one.lookup("t").await, node_name());
        assert_eq!(one.topics().await, ["bare", "late", "t"], "ephemeral topics are removed");
        let debug = one.get_json("/debug").await;
        assert_eq!(debug["channel:t:a"].as_array().map_or(0, Vec::len), 0, "{debug}");

        // Adding and removing nsqlookupds.
        let both = addresses(&[one.tcp_address(), two.tcp_address()]);
        node.handle.configure(&both).unwrap();
        node.handle.settled().await;
        assert_eq!(two.topics().await, ["late", "t"]);
        assert_eq!(two.lookup("late").await, node_name());
        node.handle.configure(&both[1..]).unwrap();
        eventually("the node is gone from the first nsqlookupd", SOON, async || {
            one.nodes().await.is_empty()
        })
        .await;
        assert_eq!(one.lookup("late").await, [""; 0]);
        assert_eq!(two.lookup("late").await, node_name());
        node.handle.configure(&both).unwrap();
        one.wait_listed("late", Node::ANNOUNCED, SOON).await;

        // Leaving.
        node.handle.stop().await;
        for lookupd in [&one, &two] {
            unlisted(lookupd).await;
            for name in ["late", "t"] {
                assert_eq!(lookupd.lookup(name).await, [""; 0], "{name}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn listed_within_a_second_of_a_restart() {
    let peers = require_peers!();
    let mut lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    local(async {
        let node = Node::start(&[lookupd.tcp_address()]);
        node.register(&["t/c"]);
        node.handle.settled().await;
        for down in [0, 50, 300, 1500, 3000] {
            // An nsqlookupd that exits within a second of listing the node counts as unusable.
            tokio::time::sleep(Duration::from_millis(1200)).await;
            lookupd.kill().await;
            tokio::time::sleep(Duration::from_millis(down)).await;
            lookupd.start_again().await;
            let limit = Duration::from_secs(1).saturating_sub(lookupd.listening_since().elapsed());
            lookupd.wait_listed("t", Node::ANNOUNCED, limit).await;
            let took = lookupd.listening_since().elapsed();
            println!("down for {down} ms: listed {took:?} after it listened again");
        }
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_never_answers_delays_no_other() {
    let peers = require_peers!();
    let healthy = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let silent = Proxy::start(healthy.tcp_address()).await;
    silent.set_mode(Mode::Blackhole).await;
    local(async {
        let node = Node::start(&[silent.address(), healthy.tcp_address()]);
        node.register(&["first"]);
        healthy.wait_listed("first", Node::ANNOUNCED, SOON).await;
        let mut delays = Vec::new();
        for n in 0..20 {
            let name = format!("t{n}");
            let start = Instant::now();
            node.register(&[&name]);
            healthy.wait_listed(&name, Node::ANNOUNCED, SOON).await;
            delays.push(start.elapsed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        delays.sort();
        println!("listed after {:?} in the median, {:?} at most", delays[10], delays[19]);
        assert!(delays[10] < Duration::from_millis(50), "{delays:?}");
    })
    .await;
}

#[tokio::test]
async fn four_hundred_channels_over_a_slow_link_take_half_a_second() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let link = Proxy::start(lookupd.tcp_address()).await;
    link.set_delay(Duration::from_millis(25));
    local(async {
        let node = Node::start(&[]);
        for n in 0..200 {
            node.register(&[&format!("t{n}/a"), &format!("t{n}/b")]);
        }
        let start = Instant::now();
        node.handle.configure(&addresses(&[link.address()])).unwrap();
        node.handle.settled().await;
        let took = start.elapsed();
        println!("200 topics with 2 channels each, 50 ms round trip: {took:?}");
        assert!(took < Duration::from_millis(500), "{took:?}");
        assert_eq!(lookupd.topics().await.len(), 200);
        for n in [0, 99, 199] {
            assert_eq!(lookupd.channels(&format!("t{n}")).await, ["a", "b"]);
            assert_eq!(lookupd.lookup(&format!("t{n}")).await, node_name());
        }
    })
    .await;
}

#[tokio::test]
async fn names_that_an_administrator_deletes_are_listed_again() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    local(async {
        let mut config = Node::config();
        config.reassert = Span::from_secs(1);
        let node = Node::start_with(config, TcpDialer::new(), &[lookupd.tcp_address()]);
        node.register(&["t/c", "bare"]);
        node.handle.settled().await;
        lookupd.post("/topic/delete?topic=t", b"").await;
        lookupd.post("/topic/delete?topic=bare", b"").await;
        assert_eq!(lookupd.lookup("t").await, [""; 0]);
        lookupd.wait_listed("t", Node::ANNOUNCED, SOON).await;
        lookupd.wait_listed("bare", Node::ANNOUNCED, SOON).await;
        assert_eq!(lookupd.channels("t").await, ["c"]);
    })
    .await;
}

/// Weakness 14 of nsqd: no TLS to nsqlookupd. A transport is any byte stream, so a dialer with TLS
/// registers through any TLS tunnel in front of an nsqlookupd.
mod weakness_14 {
    use std::sync::Arc;

    use nanonsq_std::TokioTransport;
    use nanonsq_std::core::address::Address;
    use nanonsq_std::core::drive::Dialer;
    use nanonsq_std::core::session::DialError;
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::pki_types::{PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    #[derive(Clone)]
    struct TlsDialer(TlsConnector);

    impl Dialer for TlsDialer {
        type Transport<'d> = TokioTransport<TlsStream<TcpStream>>;

        async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
            let plain = TcpDialer::new().dial(address).await?.0;
            let name = ServerName::try_from("lookupd.test").unwrap();
            let stream = self.0.connect(name, plain).await.map_err(|_| DialError::Other)?;
            Ok(TokioTransport(stream))
        }
    }

    #[tokio::test]
    async fn registration_goes_through_tls() {
        let peers = require_peers!();
        let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;

        let made = rcgen::generate_simple_self_signed(["lookupd.test".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let server = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tunnel = listener.local_addr().unwrap();
        let target = lookupd.tcp_address();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut inside = acceptor.accept(stream).await.unwrap();
                    let mut outside = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                });
            }
        });

        local(async {
            let dialer = TlsDialer(TlsConnector::from(Arc::new(client)));
            let node = Node::start_with(Node::config(), dialer, &[tunnel]);
            node.register(&["t/c"]);
            node.handle.settled().await;
            assert_eq!(lookupd.lookup("t").await, node_name());
            node.handle.stop().await;
            assert_eq!(lookupd.lookup("t").await, [""; 0]);
            unlisted(&lookupd).await;
        })
        .await;
        serving.abort();
    }
}
