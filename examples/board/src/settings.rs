//! The settings, each with one line of text as its value.

mod value;

use core::fmt::{self, Write};
use core::net::Ipv4Addr;

use heapless::{String, Vec};
use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::time::Span;
use nanonsq_core::topic;

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
/// The most nsqds of a publisher.
pub const NSQDS_MAX: usize = 3;
/// The most nsqlookupds to register with.
pub const LOOKUPDS_MAX: usize = 3;
/// The longest text of all settings, in bytes.
pub const TEXT_MAX: usize = 1536;

/// The shortest and the longest interval of readings.
const INTERVAL: (Span, Span) = (Span::from_millis(10), Span::from_secs(24 * 60 * 60));
/// The shortest and the longest interval of reports.
const REPORT_INTERVAL: (Span, Span) = (Span::from_secs(1), Span::from_secs(24 * 60 * 60));
/// The shortest and the longest heartbeat interval that nsqd accepts by default.
const HEARTBEAT: (Span, Span) = (Span::from_secs(1), Span::from_secs(60));

/// The network of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A cable.
    Ethernet,
    /// Radio: needs the name of a network and usually a password.
    Wifi,
}

/// The properties of a device that are not settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of the board, for the console.
    pub board: &'static str,
    /// The network of the board.
    pub medium: Medium,
    /// The default name of the device.
    pub name: String<NAME_MAX>,
}

impl Identity {
    /// Creates an identity with the default name `prefix`, `-` and the last 4 bytes of the chip's
    /// unique number in hexadecimal.
    pub fn new(board: &'static str, medium: Medium, prefix: &str, unique: &[u8]) -> Self {
        let mut name = String::new();
        // A long name is cut.
        let _ = write!(name, "{prefix}-");
        for byte in unique.get(unique.len().saturating_sub(4)..).unwrap_or_default() {
            let _ = write!(name, "{byte:02x}");
        }
        Self { board, medium, name }
    }
}

/// The name of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// The device's name, in every message.
    Name,
    /// The name of the wireless network.
    WifiSsid,
    /// The password of the wireless network.
    WifiPassword,
    /// The device's address and subnet, or DHCP.
    Ip,
    /// The router, if the address is static.
    Gateway,
    /// The name server, if the address is static.
    Dns,
    /// Publishing to an nsqd, or being an nsqd.
    Mode,
    /// The nsqds to publish to and to consume commands from.
    Nsqd,
    /// The nsqlookupds to register with.
    Lookupd,
    /// The address at which consumers find the topics.
    Broadcast,
    /// The topic of readings.
    Topic,
    /// The topic of reports and crashes.
    Reports,
    /// The topic of replies to commands.
    Replies,
    /// The topic of commands.
    Commands,
    /// Time from one reading to the next.
    Interval,
    /// Time from one report to the next.
    ReportInterval,
    /// Number of readings after which the device stops; 0 is never.
    Count,
    /// The interval of nsqd's heartbeats.
    Heartbeat,
}

impl Key {
    /// All settings, in the order in which `show` lists them.
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

    /// Returns the name on the console and in flash.
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

    /// Returns a short description for `help`.
    pub fn help(self) -> &'static str {
        match self {
            Self::Name => "the device's name, in every message",
            Self::WifiSsid => "the name of the wireless network",
            Self::WifiPassword => "8 to 63 characters; unset: an open network",
            Self::Ip => "dhcp, or an address such as 192.168.1.50/24",
            Self::Gateway => "the router, if ip is not dhcp",
            Self::Dns => "the name server, if ip is not dhcp",
            Self::Mode => "publish (to nsqd) or node (is an nsqd itself, on ports 4150 and 4151)",
            Self::Nsqd => "host:port of nsqd's TCP port; up to 3, with commas",
            Self::Lookupd => "host:port of nsqlookupd's TCP port; up to 3",
            Self::Broadcast => "host:port where consumers find the topics; unset: nsqd, or itself",
            Self::Topic => "the topic of readings",
            Self::Reports => "the topic of counters and crashes",
            Self::Replies => "the topic of replies to commands",
            Self::Commands => "the topic of commands; unset: none",
            Self::Interval => "time between readings: 10ms to 24h",
            Self::ReportInterval => "time between reports: 1s to 24h",
            Self::Count => "number of readings before the device stops; 0: never",
            Self::Heartbeat => "time between heartbeats of nsqd: 1s to 60s",
        }
    }

    /// Returns the setting with the name `word`, if boards with this medium have it.
    pub fn parse(word: &str, medium: Medium) -> Result<Self, Wrong> {
        let key = Self::ALL.into_iter().find(|key| key.word() == word);
        let key = key.ok_or_else(|| Wrong::UnknownKey(cut(word)))?;
        if key.exists(medium) { Ok(key) } else { Err(Wrong::NoWifi(key)) }
    }

    /// Returns whether boards with this medium have the setting.
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
    /// The address comes from a DHCP server.
    Dhcp,
    /// The address is a setting.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Length of the subnet's prefix in bits: 1 to 30.
        prefix: u8,
    },
}

/// The destination of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The device publishes to an nsqd.
    Publish,
    /// The device is an nsqd itself and keeps messages until they are consumed.
    Node,
}

/// The values of all settings.
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
    /// Returns the default settings.
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

    /// Parses a value and sets it. After an error the setting is unchanged.
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

    /// Sets a setting to its default.
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

    /// Writes a value in the form that [`set`](Self::set) accepts; nothing if it is not set.
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

    /// Returns the settings that differ from the defaults, one line each, as kept in flash.
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

    /// Parses the text of [`encode`](Self::encode). Ignores lines that this firmware does not
    /// understand, because another one wrote them, and returns their number.
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

    /// Returns whether the value of a setting differs from that in `other`.
    pub fn differs(&self, other: &Self, key: Key) -> Result<bool, fmt::Error> {
        let (mut own, mut others) = (String::<VALUE_MAX>::new(), String::<VALUE_MAX>::new());
        self.write(key, &mut own)?;
        other.write(key, &mut others)?;
        Ok(own != others)
    }

    /// Returns the problem that keeps a device with these settings from publishing, and its remedy.
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
                    "the gateway is not in the subnet of ip: nothing outside the subnet is reachable",
                );
            }
        }
        None
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("Settings").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The longest value of a setting as text, in bytes.
const VALUE_MAX: usize = 320;

const READINGS: TopicName = topic!("readings");
const REPORTS: TopicName = topic!("reports");
const REPLIES: TopicName = topic!("replies");
