//! The settings: from environment variables at build time, or from QEMU's command line at run time,
//! which has priority.
//!
//! | variable | argument | meaning | default |
//! |---|---|---|---|
//! | `NANONSQ_NSQDS` | `nsqds` | nsqds as `host:port,...`, tried in turn | `10.0.2.2:4150` |
//! | `NANONSQ_LOOKUPDS` | `lookupds` | nsqlookupds to register with, as `host:port,...`; may be empty | `10.0.2.2:4160` |
//! | `NANONSQ_BROADCAST` | `broadcast` | announced host | own address |
//! | `NANONSQ_BROADCAST_TCP_PORT` | `broadcast-tcp-port` | announced TCP port | 4150 |
//! | `NANONSQ_BROADCAST_HTTP_PORT` | `broadcast-http-port` | announced HTTP port | 4151 |
//! | `NANONSQ_DEVICE` | `device` | the device's name | `qemu` |
//! | `NANONSQ_TOPIC` | `topic` | topic of the readings | `readings` |
//! | `NANONSQ_REPORTS` | `reports` | topic of the reports | `reports` |
//! | `NANONSQ_COMMANDS` | `commands` | topic of the commands; empty is none | `qemu-commands` |
//! | `NANONSQ_REPLIES` | `replies` | topic of the replies | `replies` |
//! | `NANONSQ_COMMAND_NSQDS` | `command-nsqds` | nsqds to consume commands from; may be empty | `10.0.2.2:4150` |
//! | `NANONSQ_COMMAND_LOOKUPDS` | `command-lookupds` | nsqlookupds that list such nsqds, with their HTTP ports | |
//! | `NANONSQ_LOOKUP_MS` | `lookup-ms` | time between lookups of such nsqds | 60000 |
//! | `NANONSQ_PERIOD_MS` | `period-ms` | time between readings; 0 is as fast as possible | 1000 |
//! | `NANONSQ_REPORT_MS` | `report-ms` | time between reports | 60000 |
//! | `NANONSQ_HEARTBEAT_MS` | `heartbeat-ms` | time between heartbeats of nsqd | 30000 |
//! | `NANONSQ_READINGS` | `readings` | number of readings before the device stops; 0 is never | 0 |
//! | `NANONSQ_DURATION_MS` | `duration-ms` | time before the device stops; 0 is never | 0 |
//! | `NANONSQ_SECOND` | `second` | topic of a second sensor node on the same connection; empty is none | |
//! | `NANONSQ_NODE` | `node` | 1: the device is an nsqd itself, on ports 4150 and 4151; settings of nsqds and commands have no effect | 0 |
//! | `NANONSQ_SEED` | `seed` | seed of jitter and ports | 1 |

use heapless::Vec;
use nanonsq_app::Settings;
use nanonsq_embassy::core::address::Address;
use nanonsq_embassy::core::name::TopicName;
use nanonsq_embassy::core::time::Span;
use nanonsq_embassy::core::{consumer, nsqd, publisher, registration};

use nanonsq_qemu::{give_up, host};

/// The most nsqds of the publisher.
pub(crate) const NSQDS_MAX: usize = 4;
/// The most nsqlookupds to register with.
pub(crate) const LOOKUPDS_MAX: usize = 2;

/// The most nsqds in the settings to consume commands from.
const COMMAND_NSQDS_MAX: usize = 4;
/// The most nsqlookupds to find such nsqds.
pub(crate) const COMMAND_LOOKUPDS_MAX: usize = 2;

/// The settings of the firmware.
pub(crate) struct Firmware {
    pub(crate) nsqds: Vec<Address, NSQDS_MAX>,
    pub(crate) lookupds: Vec<Address, LOOKUPDS_MAX>,
    /// Empty: the address from DHCP.
    broadcast: &'static str,
    broadcast_tcp_port: u16,
    broadcast_http_port: u16,
    pub(crate) node: Settings<'static>,
    /// The topic of commands; `None`: no commands are consumed.
    commands: Option<TopicName>,
    pub(crate) command_nsqds: Vec<Address, COMMAND_NSQDS_MAX>,
    pub(crate) command_lookupds: Vec<Address, COMMAND_LOOKUPDS_MAX>,
    lookup_interval: Span,
    pub(crate) second: Option<Settings<'static>>,
    heartbeat: Span,
    /// True if the device is an nsqd itself.
    pub(crate) is_node: bool,
    pub(crate) seed: u32,
}

macro_rules! text {
    ($args:expr, $key:literal, $variable:literal, $default:literal) => {
        $args.iter().find(|(key, _)| *key == $key).map_or(
            const {
                match option_env!($variable) {
                    Some(value) => value,
                    None => $default,
                }
            },
            |(_, value)| *value,
        )
    };
}

macro_rules! number {
    ($args:expr, $key:literal, $variable:literal, $default:literal) => {{
        let text: &'static str = text!($args, $key, $variable, $default);
        match text.parse() {
            Ok(number) => number,
            Err(_) => give_up!("{} is not a number that fits: {}", $key, text),
        }
    }};
}

impl Firmware {
    /// Reads the settings. Ends QEMU, with the reason, if a value is invalid.
    pub(crate) fn read() -> Self {
        let args: Vec<_, 24> = host::args().collect();
        let device = text!(args, "device", "NANONSQ_DEVICE", "qemu");
        let readings = text!(args, "topic", "NANONSQ_TOPIC", "readings");
        let reports = text!(args, "reports", "NANONSQ_REPORTS", "reports");
        let count = number!(args, "readings", "NANONSQ_READINGS", "0");
        let duration = number!(args, "duration-ms", "NANONSQ_DURATION_MS", "0");
        let second = text!(args, "second", "NANONSQ_SECOND", "");
        let period = number!(args, "period-ms", "NANONSQ_PERIOD_MS", "1000");
        let report_period = number!(args, "report-ms", "NANONSQ_REPORT_MS", "60000");
        let commands = text!(args, "commands", "NANONSQ_COMMANDS", "qemu-commands");
        let command_nsqds = text!(args, "command-nsqds", "NANONSQ_COMMAND_NSQDS", "10.0.2.2:4150");
        let command_lookupds = text!(args, "command-lookupds", "NANONSQ_COMMAND_LOOKUPDS", "");
        let lookup_interval = number!(args, "lookup-ms", "NANONSQ_LOOKUP_MS", "60000");
        let heartbeat = number!(args, "heartbeat-ms", "NANONSQ_HEARTBEAT_MS", "30000");
        let node = Settings {
            device,
            readings: topic(readings),
            reports: topic(reports),
            replies: topic(text!(args, "replies", "NANONSQ_REPLIES", "replies")),
            period: Span::from_millis(period),
            report_period: Span::from_millis(report_period),
            count: (count > 0).then_some(count),
            duration: (duration > 0).then_some(Span::from_millis(duration)),
        };
        Self {
            nsqds: addresses(text!(args, "nsqds", "NANONSQ_NSQDS", "10.0.2.2:4150")),
            lookupds: addresses(text!(args, "lookupds", "NANONSQ_LOOKUPDS", "10.0.2.2:4160")),
            broadcast: text!(args, "broadcast", "NANONSQ_BROADCAST", ""),
            broadcast_tcp_port: number!(
                args,
                "broadcast-tcp-port",
                "NANONSQ_BROADCAST_TCP_PORT",
                "4150"
            ),
            broadcast_http_port: number!(
                args,
                "broadcast-http-port",
                "NANONSQ_BROADCAST_HTTP_PORT",
                "4151"
            ),
            commands: (!commands.is_empty()).then(|| topic(commands)),
            command_nsqds: addresses(command_nsqds),
            command_lookupds: addresses(command_lookupds),
            lookup_interval: Span::from_millis(lookup_interval),
            second: (!second.is_empty()).then(|| Settings { readings: topic(second), ..node }),
            node,
            heartbeat: Span::from_millis(heartbeat),
            is_node: text!(args, "node", "NANONSQ_NODE", "0") == "1",
            seed: number!(args, "seed", "NANONSQ_SEED", "1"),
        }
    }

    pub(crate) fn publish_config(&self) -> publisher::Config<'static> {
        publisher::Config {
            client_id: self.node.device,
            hostname: self.node.device,
            heartbeat: self.heartbeat,
            seed: self.seed,
            ..publisher::Config::new()
        }
    }

    /// Returns the consumer's configuration if commands are consumed.
    pub(crate) fn command_config(&self) -> Option<consumer::Config<'static>> {
        Some(consumer::Config {
            heartbeat: self.heartbeat,
            lookup_interval: self.lookup_interval,
            seed: self.seed,
            ..nanonsq_app::commands(self.commands?, self.node.device)
        })
    }

    /// Returns the configuration of registration. `own` is the device's address.
    pub(crate) fn lookup_config(&self, own: &'static str) -> registration::Config<'static> {
        let node = registration::NodeInfo {
            broadcast_address: if self.broadcast.is_empty() { own } else { self.broadcast },
            hostname: self.node.device,
            tcp_port: self.broadcast_tcp_port,
            http_port: self.broadcast_http_port,
            version: env!("CARGO_PKG_VERSION"),
            ..Default::default()
        };
        registration::Config { seed: self.seed, ..registration::Config::new(node) }
    }

    /// Returns the HTTP configuration of an nsqd, with the announced address.
    pub(crate) fn http_config(&self, own: &'static str) -> nsqd::HttpConfig<'static> {
        let info = self.lookup_config(own).node;
        nsqd::HttpConfig {
            broadcast_address: info.broadcast_address,
            hostname: info.hostname,
            tcp_port: info.tcp_port,
            http_port: info.http_port,
            ..nsqd::HttpConfig::new()
        }
    }
}

fn topic(name: &str) -> TopicName {
    match TopicName::new(name) {
        Ok(topic) => topic,
        Err(why) => give_up!("topic {}: {}", name, why),
    }
}

fn addresses<const N: usize>(list: &str) -> Vec<Address, N> {
    let mut addresses = Vec::new();
    for text in list.split(',').filter(|text| !text.is_empty()) {
        match text.parse() {
            Ok(address) => {
                if addresses.push(address).is_err() {
                    give_up!("more than {} addresses: {}", N, list);
                }
            }
            Err(why) => give_up!("address {}: {}", text, why),
        }
    }
    addresses
}
