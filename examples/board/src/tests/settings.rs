use super::{ethernet, wifi};
use crate::settings::{Ip, Key, Medium, NAME_MAX, Settings, TEXT_MAX, Wrong};

fn shown(settings: &Settings, key: Key) -> String {
    let mut text = String::new();
    settings.write(key, &mut text).expect("a String takes it");
    text
}

/// Settings, valid values, and how `show` writes them.
const GOOD: [(Key, &str, &str); 25] = [
    (Key::Name, "greenhouse-7", "greenhouse-7"),
    (Key::Name, "abcdefghijklmnopqrstuvwxyz012345", "abcdefghijklmnopqrstuvwxyz012345"),
    (Key::WifiSsid, "my network, 2.4 GHz", "my network, 2.4 GHz"),
    (Key::WifiPassword, "12345678", "12345678"),
    (Key::Ip, "dhcp", "dhcp"),
    (Key::Ip, "192.168.1.50/24", "192.168.1.50/24"),
    (Key::Ip, "10.1.2.3/30", "10.1.2.3/30"),
    (Key::Gateway, "192.168.1.1", "192.168.1.1"),
    (Key::Dns, "9.9.9.9", "9.9.9.9"),
    (Key::Mode, "publish", "publish"),
    (Key::Mode, "node", "node"),
    (Key::Nsqd, "nsqd.example:4150", "nsqd.example:4150"),
    (Key::Nsqd, "a:1,b:2, c:3", "a:1,b:2,c:3"),
    (Key::Lookupd, "10.0.0.1:4160", "10.0.0.1:4160"),
    (Key::Broadcast, "gate:4150", "gate:4150"),
    (Key::Topic, "readings#ephemeral", "readings#ephemeral"),
    (Key::Reports, "status", "status"),
    (Key::Replies, "said", "said"),
    (Key::Commands, "pico-commands", "pico-commands"),
    (Key::Interval, "10ms", "10ms"),
    (Key::Interval, "1500ms", "1500ms"),
    (Key::Interval, "24h", "24h"),
    (Key::ReportInterval, "90s", "90s"),
    (Key::Count, "4294967295", "4294967295"),
    (Key::Heartbeat, "60s", "1m"),
];

/// Settings and invalid values.
const BAD: [(Key, &str); 40] = [
    (Key::Name, ""),
    (Key::Name, "abcdefghijklmnopqrstuvwxyz0123456"),
    (Key::Name, "two words"),
    (Key::Name, "b\u{fc}ro"),
    (Key::WifiSsid, "123456789012345678901234567890123"),
    (Key::WifiSsid, "a\tb"),
    (Key::WifiPassword, "1234567"),
    (Key::WifiPassword, "1234567890123456789012345678901234567890123456789012345678901234"),
    (Key::Ip, "DHCP"),
    (Key::Ip, "192.168.1.50"),
    (Key::Ip, "192.168.1.50/0"),
    (Key::Ip, "192.168.1.50/31"),
    (Key::Ip, "192.168.1.256/24"),
    (Key::Ip, "0.0.0.0/24"),
    (Key::Ip, "224.0.0.1/24"),
    (Key::Ip, "255.255.255.255/24"),
    (Key::Ip, "::1/64"),
    (Key::Gateway, "0.0.0.0"),
    (Key::Gateway, "router"),
    (Key::Dns, "9.9.9"),
    (Key::Mode, "NODE"),
    (Key::Mode, "nsqd"),
    (Key::Nsqd, "10.0.0.1"),
    (Key::Nsqd, ","),
    (Key::Nsqd, "a:1,b:2,c:3,d:4"),
    (Key::Nsqd, "a:1,b:99999"),
    (Key::Lookupd, "http://10.0.0.1:4160"),
    (Key::Broadcast, ":4150"),
    (Key::Topic, "no spaces"),
    (Key::Topic, "x23456789012345678901234567890123456789012345678901234567890123456"),
    (Key::Commands, "caf\u{e9}"),
    (Key::Interval, "9ms"),
    (Key::Interval, "25h"),
    (Key::Interval, "5"),
    (Key::Interval, "s"),
    (Key::Interval, "99999999999h"),
    (Key::ReportInterval, "999ms"),
    (Key::Count, "-1"),
    (Key::Count, "4294967296"),
    (Key::Heartbeat, "61s"),
];

#[test]
fn good_values_are_set_and_shown() {
    for (key, value, expected) in GOOD {
        let mut settings = Settings::defaults(&wifi());
        assert_eq!(settings.set(key, value), Ok(()), "{} {value}", key.word());
        assert_eq!(shown(&settings, key), expected);
    }
}

#[test]
fn bad_values_change_nothing_and_return_the_reason() {
    for (key, value) in BAD {
        let mut settings = Settings::defaults(&wifi());
        for (key, value, _) in GOOD {
            settings.set(key, value).expect("it is good");
        }
        let before = settings.clone();
        let wrong = settings.set(key, value).expect_err(value);
        assert_eq!(settings, before, "{} {value}", key.word());
        let error = wrong.to_string();
        assert!(error.len() > 20 && error.is_ascii() == value.is_ascii(), "{error}");
    }
}

#[test]
fn errors_name_the_invalid_value() {
    let mut settings = Settings::defaults(&ethernet());
    let mut error = |key, value| settings.set(key, value).unwrap_err().to_string();
    assert_eq!(
        error(Key::Ip, "10.0.0.1"),
        "'10.0.0.1' is neither dhcp nor an address such as 192.168.1.50/24"
    );
    assert_eq!(error(Key::Interval, "1ms"), "'1ms' is not between 10ms and 24h");
    assert_eq!(error(Key::ReportInterval, "1ms"), "'1ms' is not between 1s and 24h");
    assert_eq!(error(Key::Nsqd, "a:1,b:2,c:3,d:4"), "nsqd takes at most 3 addresses");
    assert!(error(Key::Nsqd, "10.0.0.1").starts_with("'10.0.0.1' is not host:port such as"));
    assert_eq!(error(Key::Topic, ""), "topic needs a value; `unset topic` restores the default");
}

#[test]
fn all_settings_are_encoded_and_decoded() {
    for identity in [ethernet(), wifi()] {
        let mut settings = Settings::defaults(&identity);
        for (key, value, _) in GOOD {
            if key.exists(identity.medium) {
                settings.set(key, value).expect("it is good");
            }
        }
        let text = settings.encode(&identity).expect("it fits");
        let (read, ignored) = Settings::decode(&text, &identity);
        assert_eq!((&read, ignored), (&settings, 0));
        for key in Key::ALL {
            settings.unset(key, &identity);
        }
        assert_eq!(settings, Settings::defaults(&identity));
        assert_eq!(settings.encode(&identity).as_deref(), Ok(""), "defaults take no room");
    }
}

#[test]
fn the_longest_settings_fit() {
    let identity = wifi();
    let mut settings = Settings::defaults(&identity);
    let host = |c: &str| format!("{}:65535", c.repeat(nanonsq_core::address::HOST_MAX));
    let three = [host("a"), host("b"), host("c")].join(",");
    let topic = "t".repeat(nanonsq_core::name::NAME_MAX);
    for (key, value) in [
        (Key::Name, "n".repeat(NAME_MAX)),
        (Key::WifiSsid, "s".repeat(32)),
        (Key::WifiPassword, "p".repeat(63)),
        (Key::Ip, "192.168.100.100/24".to_owned()),
        (Key::Gateway, "192.168.100.101".to_owned()),
        (Key::Dns, "192.168.100.102".to_owned()),
        (Key::Mode, "node".to_owned()),
        (Key::Nsqd, three.clone()),
        (Key::Lookupd, three),
        (Key::Broadcast, host("d")),
        (Key::Topic, topic.clone()),
        (Key::Reports, topic.clone()),
        (Key::Replies, topic.clone()),
        (Key::Commands, topic),
        (Key::Interval, "86399999ms".to_owned()),
        (Key::ReportInterval, "86399999ms".to_owned()),
        (Key::Count, u32::MAX.to_string()),
        (Key::Heartbeat, "59999ms".to_owned()),
    ] {
        settings.set(key, &value).unwrap_or_else(|wrong| panic!("{}: {wrong}", key.word()));
    }
    let text = settings.encode(&identity).expect("it fits");
    assert!(text.len() <= TEXT_MAX);
    assert_eq!(Settings::decode(&text, &identity), (settings, 0));
}

#[test]
fn unknown_and_invalid_lines_are_ignored() {
    let text = "name old\ncolour red\ninterval soon\nnsqd a:1\n\nwifi-ssid home\n";
    let (settings, ignored) = Settings::decode(text, &ethernet());
    assert_eq!(ignored, 4, "an unknown one, a bad one, an empty one, one for Wi-Fi");
    assert_eq!((&*settings.name, settings.nsqds.len()), ("old", 1));
    assert_eq!(settings.interval, Settings::defaults(&ethernet()).interval);
}

#[test]
fn the_default_name_has_the_chips_number() {
    assert_eq!(ethernet().name, "test-abcdef09");
    assert_eq!(ethernet().medium, Medium::Ethernet);
}

#[test]
fn a_setting_of_other_boards_has_its_own_error() {
    assert_eq!(Key::parse("wifi-ssid", Medium::Wifi), Ok(Key::WifiSsid));
    assert_eq!(Key::parse("wifi-ssid", Medium::Ethernet), Err(Wrong::NoWifi(Key::WifiSsid)));
    for key in Key::ALL {
        assert_eq!(Key::parse(key.word(), Medium::Wifi), Ok(key));
    }
}

#[test]
fn advice_names_the_first_problem() {
    let advice = |medium, set: &[(Key, &str)]| {
        let mut settings = Settings::defaults(&wifi());
        for (key, value) in set {
            settings.set(*key, value).expect("it is good");
        }
        settings.advice(medium).unwrap_or_default()
    };
    assert!(advice(Medium::Wifi, &[]).contains("wireless"));
    assert!(advice(Medium::Ethernet, &[]).contains("nsqd"));
    let nsqd = (Key::Nsqd, "a:1");
    assert_eq!(advice(Medium::Ethernet, &[nsqd]), "");
    assert_eq!(advice(Medium::Ethernet, &[(Key::Mode, "node")]), "", "it needs none");
    let net = |gateway| [nsqd, (Key::Ip, "192.168.1.50/24"), (Key::Gateway, gateway)];
    assert!(advice(Medium::Ethernet, &net("192.168.2.1")).contains("subnet"));
    assert_eq!(advice(Medium::Ethernet, &net("192.168.1.1")), "");
}

#[test]
fn a_static_address_has_its_parts() {
    let mut settings = Settings::defaults(&ethernet());
    settings.set(Key::Ip, "10.20.30.40/16").expect("it is good");
    assert_eq!(settings.ip, Ip::Static { address: [10, 20, 30, 40].into(), prefix: 16 });
}

#[test]
fn the_password_is_in_no_log() {
    let mut settings = Settings::defaults(&wifi());
    settings.set(Key::WifiPassword, "secret-secret").expect("it is good");
    assert!(!format!("{settings:?}").contains("secret"));
}
