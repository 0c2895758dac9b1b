//! Test clients on go-nsq, pynsq and tokio-nsq: ordinary programs that use a library as its users
//! do, and report in lines of JSON what they did. See `tests/peers/cmd/go-nsq-client`.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::peers::{self, Peers};
use crate::tool::Tool;

/// The most time for a client to end after SIGTERM. go-nsq waits 30 s for a missing `CLOSE_WAIT`,
/// which would exceed this.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A client library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are theirs.
pub enum Library {
    GoNsq,
    Pynsq,
    TokioNsq,
}

/// The program of a library.
#[derive(Debug, Clone)]
pub struct Client {
    /// The library that the program uses.
    pub library: Library,
    program: PathBuf,
    script: Option<PathBuf>,
}

impl Client {
    /// Finds the program; if it was left out, prints that `test` is skipped.
    pub fn find_or_skip(library: Library, peers: &Peers, test: &str) -> Option<Client> {
        let (name, script) = match library {
            Library::GoNsq => ("go-nsq-client", None),
            Library::Pynsq => {
                ("pynsq/bin/python", Some(peers::root().join("tests/peers/pynsq/client.py")))
            }
            Library::TokioNsq => ("tokio-nsq-client", None),
        };
        let program = peers.program_or_skip(name, test)?;
        Some(Client { library, program, script })
    }

    /// Starts a consumer that finds its nsqds through an nsqlookupd, given by its HTTP address.
    pub fn consume(
        &self,
        lookupd: SocketAddr,
        topic: &str,
        channel: &str,
        options: &[(&str, u64)],
    ) -> ClientConsumer {
        let mut flags =
            vec![flag("lookupd", lookupd), flag("topic", topic), flag("channel", channel)];
        flags.extend(options.iter().map(|(name, value)| flag(name, value)));
        let tool = self.start("consume", flags);
        ClientConsumer { tool, read: 0, deliveries: Vec::new() }
    }

    /// Starts a producer that publishes to one nsqd with a command: `pub`, `mpub` or `dpub`. The
    /// producer prints `acknowledged` and exits successfully when everything is acknowledged.
    pub fn publish(
        &self,
        nsqd: SocketAddr,
        topic: &str,
        command: &str,
        options: &[(&str, u64)],
    ) -> Tool {
        let mut flags = vec![flag("nsqd", nsqd), flag("topic", topic), flag("command", command)];
        flags.extend(options.iter().map(|(name, value)| flag(name, value)));
        self.start("publish", flags)
    }

    fn start(&self, mode: &str, flags: Vec<String>) -> Tool {
        let script = self.script.iter().map(|script| script.display().to_string());
        // Go's flags end at the first argument that is no flag.
        Tool::start(&self.program, script.chain(flags).chain([mode.to_owned()]))
    }
}

fn flag(name: &str, value: impl Display) -> String {
    format!("--{name}={value}")
}

/// A consumer's reaction to a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Finished it.
    Fin,
    /// Requeued it.
    Req,
    /// Did not answer in time.
    Timeout,
    /// Kept it for two message timeouts, with TOUCH, and finished it.
    Touch,
}

/// A message as a client received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// nsqd's id of the message.
    pub id: String,
    /// The number at the start of the body.
    pub number: usize,
    /// The number of deliveries, including this one.
    pub attempts: u16,
    /// The client's reaction.
    pub action: Action,
}

/// A running consumer and the deliveries that it has reported.
#[derive(Debug)]
pub struct ClientConsumer {
    tool: Tool,
    read: u64,
    deliveries: Vec<Delivery>,
}

impl ClientConsumer {
    /// Returns all deliveries so far, in order.
    ///
    /// # Panics
    ///
    /// If the client prints anything else, or a body has no number.
    pub fn deliveries(&mut self) -> &[Delivery] {
        let new = self.tool.stdout_from(self.read);
        let complete = new.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        self.read += complete as u64;
        let lines = new[..complete].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        self.deliveries.extend(lines.map(|line| {
            Delivery::parse(line)
                .unwrap_or_else(|| panic!("not a delivery: {}", String::from_utf8_lossy(line)))
        }));
        &self.deliveries
    }

    /// Returns what the client has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.tool.stderr()
    }

    /// Ends the client with SIGTERM and returns all deliveries.
    ///
    /// # Panics
    ///
    /// If the client fails or does not end within 20 s.
    pub async fn stop(mut self) -> Vec<Delivery> {
        self.tool.terminate();
        let status = self.tool.wait(STOP_LIMIT).await;
        assert!(status.success(), "{status}: {}", self.tool.stderr());
        self.deliveries();
        self.deliveries
    }

    /// Waits until the client has killed itself (`die-after`) and returns all deliveries.
    pub async fn killed(mut self, limit: Duration) -> Vec<Delivery> {
        let status = self.tool.wait(limit).await;
        assert!(!status.success(), "the client exited regularly");
        self.deliveries();
        self.deliveries
    }
}

impl Delivery {
    fn parse(line: &[u8]) -> Option<Delivery> {
        let line: Value = serde_json::from_slice(line).ok()?;
        let body = line["body"].as_str()?;
        let digits = body.bytes().take_while(u8::is_ascii_digit).count();
        Some(Delivery {
            id: line["id"].as_str()?.to_owned(),
            number: body[..digits].parse().ok()?,
            attempts: line["attempts"].as_u64()?.try_into().ok()?,
            action: match line["action"].as_str()? {
                "fin" => Action::Fin,
                "req" => Action::Req,
                "timeout" => Action::Timeout,
                "touch" => Action::Touch,
                _ => return None,
            },
        })
    }
}
