//! What can be set, one line of text each.

mod value;

use core::fmt::{self, Write};
use core::net::Ipv4Addr;

use heapless::{String, Vec};
use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::time::Span;

pub use value::Wrong;
use value::{
    address, addresses, cut, host, ip, mode, name, span, text, topic, write_list, write_some,
    write_span,
};

/// The longest device name, in bytes.
pub const NAME_MAX: usize = 32;
/// The longest name of a wireless network, in bytes (IEEE 802.11).
pub const SSID_MAX: usize = 32;
/// The longest password of a wireless network, in bytes (WPA2).
pub const PASSWORD_MAX: usize = 63;
/// The most nsqds to choose from.
pub const NSQDS_MAX: usize = 3;
/// The most nsqlookupds to register with.
pub const LOOKUPDS_MAX: usize = 3;
/// Room for all settings as text.
pub const TEXT_MAX: usize = 1536;

/// The interval of readings, at least and at most.
const INTERVAL: (Span, Span) = (Span::from_millis(10), Span::from_secs(24 * 60 * 60));
/// The interval of reports.
const REPORT_INTERVAL: (Span, Span) = (Span::from_secs(1), Span::from_secs(24 * 60 * 60));
/// What nsqd allows.
const HEARTBEAT: (Span, Span) = (Span::from_secs(1), Span::from_secs(60));

/// How a board gets onto the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// By cable.
    Ethernet,
    /// By radio: it needs a name and mostly a password.
    Wifi,
}

/// What is settled before anybody sets anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What the board is called in messages to people.
    pub board: &'static str,
    /// How it gets onto the network.
    pub medium: Medium,
    /// The device's name until another is set.
    pub name: String<NAME_MAX>,
}

impl Identity {
    /// A device that is called `prefix` and the last 4 bytes of the chip's unique number.
    pub fn new(board: &'static str, medium: Medium, prefix: &str, unique: &[u8]) -> Self {
        let mut name = String::new();
        // It fits, or is cut off.
        let _ = write!(name, "{prefix}-");
        for byte in unique.get(unique.len().saturating_sub(4)..).unwrap_or_default() {
            let _ = write!(name, "{byte:02x}");
        }
        Self { board, medium, name }
    }
}

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The device's name, in every message.
    Name,
    /// The wireless network.
    WifiSsid,
    /// Its password.
    WifiPassword,
    /// The device's address and subnet, or by DHCP.
    Ip,
    /// The router, with an address of its own.
    Gateway,
    /// The name server, with an address of its own.
    Dns,
    /// Whether it publishes to an nsqd or is one.
    Mode,
    /// Where to publish.
    Nsqd,
    /// Where to register.
    Lookupd,
    /// Where consumers find the topics.
    Broadcast,
    /// Where readings go.
    Topic,
    /// Where reports and crashes go.
    Reports,
    /// Where replies to commands go.
    Replies,
    /// Where commands come from.
    Commands,
    /// From one reading to the next.
    Interval,
    /// From one report to the next.
    ReportInterval,
    /// How many readings to publish.
    Count,
    /// How often nsqd says that it is alive.
    Heartbeat,
}

impl Key {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 18] = [
        Self::Name,
        Self::WifiSsid,
        Self::WifiPassword,
        Self::Ip,
        Self::Gateway,
        Self::Dns,
        Self::Mode,
        Self::Nsqd,
        Self::Lookupd,
        Self::Broadcast,
        Self::Topic,
        Self::Reports,
        Self::Replies,
        Self::Commands,
        Self::Interval,
        Self::ReportInterval,
        Self::Count,
        Self::Heartbeat,
    ];

    /// What it is called on the console and in flash.
    pub fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::WifiSsid => "wifi-ssid",
            Self::WifiPassword => "wifi-password",
            Self::Ip => "ip",
            Self::Gateway => "gateway",
            Self::Dns => "dns",
            Self::Mode => "mode",
            Self::Nsqd => "nsqd",
            Self::Lookupd => "lookupd",
            Self::Broadcast => "broadcast",
            Self::Topic => "topic",
            Self::Reports => "reports",
            Self::Replies => "replies",
            Self::Commands => "commands",
            Self::Interval => "interval",
            Self::ReportInterval => "report-interval",
            Self::Count => "count",
            Self::Heartbeat => "heartbeat",
        }
    }

    /// What it is for, in a few words.
    pub fn help(self) -> &'static str {
        match self {
            Self::Name => "in every message",
            Self::WifiSsid => "the wireless network",
            Self::WifiPassword => "8 to 63 characters; unset: an open network",
            Self::Ip => "dhcp, or such as 192.168.1.50/24",
            Self::Gateway => "the router, if ip is not dhcp",
            Self::Dns => "the name server, if ip is not dhcp",
            Self::Mode => "publish, to nsqd; or node: it is an nsqd itself, on 4150 and 4151",
            Self::Nsqd => "host:port of nsqd's TCP port; up to 3, with commas",
            Self::Lookupd => "host:port of nsqlookupd's TCP port; up to 3",
            Self::Broadcast => "host:port where consumers find the topics; unset: nsqd, or itself",
            Self::Topic => "where readings go",
            Self::Reports => "where counters and crashes go",
            Self::Replies => "where replies to commands go",
            Self::Commands => "where commands come from; unset: none",
            Self::Interval => "from reading to reading: 10ms to 24h",
            Self::ReportInterval => "from report to report: 1s to 24h",
            Self::Count => "stop after so many readings; 0: never",
            Self::Heartbeat => "how often nsqd says that it is alive: 1s to 60s",
        }
    }

    /// The setting of that name, if this kind of board has it.
    pub fn parse(word: &str, medium: Medium) -> Result<Self, Wrong> {
        let key = Self::ALL.into_iter().find(|key| key.word() == word);
        let key = key.ok_or_else(|| Wrong::UnknownKey(cut(word)))?;
        if key.exists(medium) { Ok(key) } else { Err(Wrong::NoWifi(key)) }
    }

    /// Whether this kind of board has it.
    pub fn exists(self, medium: Medium) -> bool {
        match self {
            Self::WifiSsid | Self::WifiPassword => medium == Medium::Wifi,
            _ => true,
        }
    }
}

/// The device's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ip {
    /// Given by the network.
    Dhcp,
    /// This one.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Bits of it that are the subnet's: 1 to 30.
        prefix: u8,
    },
}

/// What becomes of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They go to an nsqd.
    Publish,
    /// They stay in the device, which is an nsqd itself, until they are consumed.
    Node,
}

/// Everything that can be set.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "`Key` has them")]
pub struct Settings {
    pub name: String<NAME_MAX>,
    pub wifi_ssid: String<SSID_MAX>,
    pub wifi_password: String<PASSWORD_MAX>,
    pub ip: Ip,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Option<Ipv4Addr>,
    pub mode: Mode,
    pub nsqds: Vec<Address, NSQDS_MAX>,
    pub lookupds: Vec<Address, LOOKUPDS_MAX>,
    pub broadcast: Option<Address>,
    pub topic: TopicName,
    pub reports: TopicName,
    pub replies: TopicName,
    pub commands: Option<TopicName>,
    pub interval: Span,
    pub report_interval: Span,
    pub count: u32,
    pub heartbeat: Span,
}

impl Settings {
    /// As they are until somebody sets them.
    pub fn defaults(identity: &Identity) -> Self {
        Self {
            name: identity.name.clone(),
            wifi_ssid: String::new(),
            wifi_password: String::new(),
            ip: Ip::Dhcp,
            gateway: None,
            dns: None,
            mode: Mode::Publish,
            nsqds: Vec::new(),
            lookupds: Vec::new(),
            broadcast: None,
            topic: READINGS,
            reports: REPORTS,
            replies: REPLIES,
            commands: None,
            interval: Span::from_secs(5),
            report_interval: Span::from_secs(60),
            count: 0,
            heartbeat: Span::from_secs(30),
        }
    }

    /// Sets one. An error leaves it as it was.
    pub fn set(&mut self, key: Key, value: &str) -> Result<(), Wrong> {
        if value.is_empty() {
            return Err(Wrong::Missing(key));
        }
        match key {
            Key::Name => self.name = name(value)?,
            Key::WifiSsid => self.wifi_ssid = text(key, value)?,
            Key::WifiPassword => {
                if value.len() < 8 {
                    return Err(Wrong::TooShort { key, min: 8 });
                }
                self.wifi_password = text(key, value)?;
            }
            Key::Ip => self.ip = ip(value)?,
            Key::Gateway => self.gateway = Some(host(value)?),
            Key::Dns => self.dns = Some(host(value)?),
            Key::Mode => self.mode = mode(value)?,
            Key::Nsqd => self.nsqds = addresses(key, value)?,
            Key::Lookupd => self.lookupds = addresses(key, value)?,
            Key::Broadcast => self.broadcast = Some(address(value)?),
            Key::Topic => self.topic = topic(value)?,
            Key::Reports => self.reports = topic(value)?,
            Key::Replies => self.replies = topic(value)?,
            Key::Commands => self.commands = Some(topic(value)?),
            Key::Interval => self.interval = span(key, value, INTERVAL)?,
            Key::ReportInterval => self.report_interval = span(key, value, REPORT_INTERVAL)?,
            Key::Count => {
                self.count = value.parse().map_err(|_| Wrong::NotANumber(cut(value)))?;
            }
            Key::Heartbeat => self.heartbeat = span(key, value, HEARTBEAT)?,
        }
        Ok(())
    }

    /// Sets one to what it is by default.
    pub fn unset(&mut self, key: Key, identity: &Identity) {
        let defaults = Self::defaults(identity);
        match key {
            Key::Name => self.name = defaults.name,
            Key::WifiSsid => self.wifi_ssid = defaults.wifi_ssid,
            Key::WifiPassword => self.wifi_password = defaults.wifi_password,
            Key::Ip => self.ip = defaults.ip,
            Key::Gateway => self.gateway = defaults.gateway,
            Key::Dns => self.dns = defaults.dns,
            Key::Mode => self.mode = defaults.mode,
            Key::Nsqd => self.nsqds = defaults.nsqds,
            Key::Lookupd => self.lookupds = defaults.lookupds,
            Key::Broadcast => self.broadcast = defaults.broadcast,
            Key::Topic => self.topic = defaults.topic,
            Key::Reports => self.reports = defaults.reports,
            Key::Replies => self.replies = defaults.replies,
            Key::Commands => self.commands = defaults.commands,
            Key::Interval => self.interval = defaults.interval,
            Key::ReportInterval => self.report_interval = defaults.report_interval,
            Key::Count => self.count = defaults.count,
            Key::Heartbeat => self.heartbeat = defaults.heartbeat,
        }
    }

    /// Writes one as [`set`](Self::set) reads it. Nothing: it is not set.
    pub fn write(&self, key: Key, out: &mut impl Write) -> fmt::Result {
        match key {
            Key::Name => out.write_str(&self.name),
            Key::WifiSsid => out.write_str(&self.wifi_ssid),
            Key::WifiPassword => out.write_str(&self.wifi_password),
            Key::Ip => match self.ip {
                Ip::Dhcp => out.write_str("dhcp"),
                Ip::Static { address, prefix } => write!(out, "{address}/{prefix}"),
            },
            Key::Gateway => write_some(&self.gateway, out),
            Key::Dns => write_some(&self.dns, out),
            Key::Mode => out.write_str(match self.mode {
                Mode::Publish => "publish",
                Mode::Node => "node",
            }),
            Key::Nsqd => write_list(&self.nsqds, out),
            Key::Lookupd => write_list(&self.lookupds, out),
            Key::Broadcast => write_some(&self.broadcast, out),
            Key::Topic => write!(out, "{}", self.topic),
            Key::Reports => write!(out, "{}", self.reports),
            Key::Replies => write!(out, "{}", self.replies),
            Key::Commands => write_some(&self.commands, out),
            Key::Interval => write_span(self.interval, out),
            Key::ReportInterval => write_span(self.report_interval, out),
            Key::Count => write!(out, "{}", self.count),
            Key::Heartbeat => write_span(self.heartbeat, out),
        }
    }

    /// All that differ from the defaults, a line each: what is kept in flash.
    pub fn encode(&self, identity: &Identity) -> Result<String<TEXT_MAX>, fmt::Error> {
        let defaults = Self::defaults(identity);
        let mut all = String::new();
        for key in Key::ALL {
            if self.differs(&defaults, key)? {
                write!(all, "{} ", key.word())?;
                self.write(key, &mut all)?;
                all.write_char('\n')?;
            }
        }
        Ok(all)
    }

    /// Reads what [`encode`](Self::encode) wrote. Lines that this firmware does not understand,
    /// because another one wrote them, count as not there; how many there were is returned.
    pub fn decode(text: &str, identity: &Identity) -> (Self, usize) {
        let mut settings = Self::defaults(identity);
        let mut ignored = 0;
        for line in text.lines() {
            let (word, value) = line.split_once(' ').unwrap_or((line, ""));
            let set = Key::parse(word, identity.medium).and_then(|key| settings.set(key, value));
            ignored += usize::from(set.is_err());
        }
        (settings, ignored)
    }

    /// Whether two have another value of this one.
    pub fn differs(&self, other: &Self, key: Key) -> Result<bool, fmt::Error> {
        let (mut own, mut others) = (String::<VALUE_MAX>::new(), String::<VALUE_MAX>::new());
        self.write(key, &mut own)?;
        other.write(key, &mut others)?;
        Ok(own != others)
    }

    /// What keeps a device with these settings from publishing, and what to do about it.
    pub fn advice(&self, medium: Medium) -> Option<&'static str> {
        if medium == Medium::Wifi && self.wifi_ssid.is_empty() {
            return Some(
                "no wireless network is set: set wifi-ssid NAME, set wifi-password PASSWORD",
            );
        }
        if self.mode == Mode::Publish && self.nsqds.is_empty() {
            return Some("no nsqd is set: set nsqd HOST:4150, then save and reboot");
        }
        if let Ip::Static { address, prefix } = self.ip {
            let mask = u32::MAX << 32u32.saturating_sub(u32::from(prefix)).min(31);
            let is_near = |other: Ipv4Addr| (other.to_bits() ^ address.to_bits()) & mask == 0;
            if self.gateway.is_some_and(|gateway| !is_near(gateway)) {
                return Some(
                    "the gateway is not in the subnet of ip: nothing outside of it is reached",
                );
            }
        }
        None
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the password.
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The longest value of a setting, as text.
const VALUE_MAX: usize = 320;

const READINGS: TopicName = constant("readings");
const REPORTS: TopicName = constant("reports");
const REPLIES: TopicName = constant("replies");

const fn constant(name: &str) -> TopicName {
    match TopicName::new(name) {
        Ok(topic) => topic,
        Err(_) => panic!("a topic's name"),
    }
}
