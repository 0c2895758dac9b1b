//! A server that nsqd asks whether a secret is valid (`--auth-http-address`).

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// The only valid secret.
pub const SECRET: &str = "open-sesame";

/// Starts the server and returns its address. [`SECRET`] grants `permissions` on `topic` and on the
/// channels that `channels` matches; everything else is forbidden.
pub async fn start(topic: &str, channels: &str, permissions: &[&str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let permissions = permissions.join("\",\"");
    let granted = format!(
        r#"{{"ttl":60,"identity":"i","identity_url":"","authorizations":[{{"topic":"{topic}","channels":["{channels}"],"permissions":["{permissions}"]}}]}}"#
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..n]);
            let good = request.contains(&format!("secret={SECRET}"));
            let (status, body) = if good { ("200 OK", &*granted) } else { ("403 Forbidden", "{}") };
            let reply = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(reply.as_bytes()).await;
        }
    });
    address
}
