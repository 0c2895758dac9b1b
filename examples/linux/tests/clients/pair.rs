//! The servers under test: an nsqd and the nsqlookupd with which it registers.

use std::time::Duration;

use nanonsq_tests::{Nsqd, Nsqlookupd, Peers, ServerOptions, peers};

/// Time limit for events that should happen at once, on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The programs that serve as nsqd and nsqlookupd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// nsqd and nsqlookupd.
    Real,
    /// `nanonsq node` and nsqlookupd.
    OurNode,
    /// nsqd and `nanonsq lookupd`.
    OurLookupd,
    /// `nanonsq node` and `nanonsq lookupd`.
    Ours,
}

impl Subject {
    /// Returns whether nsqd is `nanonsq node`.
    pub(crate) fn is_our_node(self) -> bool {
        match self {
            Subject::Real | Subject::OurLookupd => false,
            Subject::OurNode | Subject::Ours => true,
        }
    }

    /// Returns whether nsqlookupd is `nanonsq lookupd`.
    pub(crate) fn is_our_lookupd(self) -> bool {
        match self {
            Subject::Real | Subject::OurNode => false,
            Subject::OurLookupd | Subject::Ours => true,
        }
    }

    /// Starts nsqd without an nsqlookupd.
    pub(crate) async fn start_node(self, peers: &Peers, options: ServerOptions) -> Nsqd {
        let node = Nsqd::start(peers, program(options, "node", self.is_our_node())).await;
        assert_ne!(node.log().starts_with("[nsqd] "), self.is_our_node(), "{}", node.log());
        node
    }
}

/// Our servers have tables that a test fills in a short time.
fn program(options: ServerOptions, command: &str, ours: bool) -> ServerOptions {
    if !ours {
        return options;
    }
    let limits = match command {
        "node" => ["--max-topics=250", "--max-channels=254", "--max-clients=250"],
        _ => ["--max-topics=1024", "--max-channels=4096", "--max-nodes=256"],
    };
    let options = options.program(env!("CARGO_BIN_EXE_nanonsq"), command);
    limits.into_iter().fold(options, ServerOptions::flag)
}

/// The peers, the subject and the name of a test.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) peers: Peers,
    pub(crate) subject: Subject,
    pub(crate) test: &'static str,
}

impl Setting {
    /// Finds the real NSQ programs; `None` if they are missing: the test is skipped.
    pub(crate) fn find_or_skip(subject: Subject, test: &'static str) -> Option<Self> {
        peers::find_or_skip(test).map(|peers| Setting { peers, subject, test })
    }

    /// Starts nsqlookupd and nsqd.
    pub(crate) async fn start(&self, options: ServerOptions) -> Pair {
        let lookupd = program(ServerOptions::new(), "lookupd", self.subject.is_our_lookupd());
        let lookupd = Nsqlookupd::start(&self.peers, lookupd).await;
        let is_real = lookupd.log().starts_with("[nsqlookupd] ");
        assert_ne!(is_real, self.subject.is_our_lookupd(), "{}", lookupd.log());
        let options = options.lookupd(lookupd.tcp_address());
        let node = self.subject.start_node(&self.peers, options).await;
        Pair { node, lookupd }
    }
}

/// A running nsqd and nsqlookupd.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) node: Nsqd,
    pub(crate) lookupd: Nsqlookupd,
}

impl Pair {
    /// Creates a topic with channels, so that no channel misses a message, and waits until the
    /// topic is listed.
    pub(crate) async fn create(&self, topic: &str, channels: &[&str]) {
        self.node.create_topic(topic).await;
        for channel in channels {
            self.node.create_channel(topic, channel).await;
        }
        self.lookupd.wait_listed(topic, self.node.tcp_address(), SOON).await;
    }

    /// Returns a number of a channel from `/stats`.
    pub(crate) async fn channel_stat(&self, topic: &str, channel: &str, key: &str) -> u64 {
        let stats = self.node.channel_stats(topic, channel).await;
        stats[key].as_u64().unwrap_or_else(|| panic!("no {key} in {stats}"))
    }
}

/// Makes a test for each subject from a function that takes a [`Setting`].
macro_rules! tests_with {
    ($subjects:tt: $($test:ident),+ $(,)?) => {
        $(mod $test {
            $crate::pair::test_of!($test: $subjects);
        })+
    };
}

macro_rules! test_of {
    ($test:ident: [$($subject:ident),+]) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[allow(non_snake_case)]
            async fn $subject() {
                let name = concat!(stringify!($test), "::", stringify!($subject));
                let subject = $crate::pair::Subject::$subject;
                if let Some(setting) = $crate::pair::Setting::find_or_skip(subject, name) {
                    super::$test(setting).await;
                }
            }
        )+
    };
}

pub(crate) use {test_of, tests_with};
