//! Compares the scanners with serde-json-core, on generated objects.

use nanonsq_core::wire::json::Fields;
use nanonsq_core::wire::nsqd::{IdentifyResponse, Settings};
use nanonsq_core::wire::nsqlookupd::NodeInfo;
use serde::{Deserialize, Deserializer};

use crate::emitted;
use crate::support::{Random, granted, identification, node};

/// The body of IDENTIFY (`nsqd/client_v2.go`, `identifyDataV2`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Request<'a> {
    client_id: Option<&'a str>,
    hostname: Option<&'a str>,
    user_agent: Option<&'a str>,
    feature_negotiation: Option<bool>,
    heartbeat_interval: Option<i32>,
    output_buffer_size: Option<i32>,
    output_buffer_timeout: Option<i32>,
    msg_timeout: Option<i32>,
    sample_rate: Option<i32>,
    tls_v1: Option<bool>,
    snappy: Option<bool>,
    deflate: Option<bool>,
    deflate_level: Option<i32>,
    topology_region: Option<&'a str>,
    topology_zone: Option<&'a str>,
}

/// The fields of the response that a client uses.
#[derive(Deserialize)]
#[serde(default)]
struct Response {
    max_rdy_count: u32,
    msg_timeout: u32,
    max_msg_timeout: u32,
    auth_required: bool,
}

impl Default for Response {
    fn default() -> Self {
        let IdentifyResponse { max_rdy_count, msg_timeout, max_msg_timeout, auth_required, .. } =
            IdentifyResponse::default();
        Self { max_rdy_count, msg_timeout, max_msg_timeout, auth_required }
    }
}

/// The body with which nsqd registers itself (`nsqd/lookup.go`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Node<'a> {
    #[serde(borrow, deserialize_with = "nullable")]
    broadcast_address: &'a str,
    #[serde(borrow, deserialize_with = "nullable")]
    hostname: &'a str,
    #[serde(deserialize_with = "nullable")]
    http_port: u16,
    #[serde(deserialize_with = "nullable")]
    tcp_port: u16,
    #[serde(borrow, deserialize_with = "nullable")]
    topology_region: &'a str,
    #[serde(borrow, deserialize_with = "nullable")]
    topology_zone: &'a str,
    #[serde(borrow, deserialize_with = "nullable")]
    version: &'a str,
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Returns a JSON object of some of `fields`, in any order, with unknown keys, nulls and white
/// space.
fn object(random: &mut Random, fields: &[(&str, &[&str])], nulls: bool) -> String {
    let mut fields: Vec<_> = fields.iter().filter(|_| random.below(8) != 0).collect();
    for at in (1..fields.len()).rev() {
        fields.swap(at, random.below(at + 1));
    }
    let space = |random: &mut Random| *random.pick(&["", "", "", " ", "\n\t"]);
    let mut json = String::from("{");
    for (at, (key, values)) in fields.into_iter().enumerate() {
        if at > 0 {
            json.push(',');
        }
        if random.below(6) == 0 {
            let unknown = ["true", "[1,{\"a\":[]}]", "{\"version\":7}", "\"x\"", "1", "null"];
            json.push_str(&format!("\"unknown{at}\":{},", random.pick(&unknown)));
        }
        let value = if nulls && random.below(8) == 0 { "null" } else { random.pick(values) };
        json.push_str(space(random));
        json.push_str(&format!("\"{key}\"{}:{}{value}", space(random), space(random)));
        json.push_str(space(random));
    }
    json.push('}');
    json
}

const BOOL: &[&str] = &["true", "false"];
const TEXT: &[&str] = &["\"\"", "\"1.3.0\"", "\"host.example\"", "\"\u{e9}\u{1f600}\""];
const PORT: &[&str] = &["1", "4150", "65535"];

#[test]
fn granted_reads_what_serde_reads() {
    let numbers: &[&str] = &["0", "1", "2500", "900000", "2147483647"];
    let fields: [(&str, &[&str]); 15] = [
        ("max_rdy_count", numbers),
        ("version", TEXT),
        ("max_msg_timeout", numbers),
        ("msg_timeout", numbers),
        ("tls_v1", BOOL),
        ("deflate", BOOL),
        ("deflate_level", numbers),
        ("max_deflate_level", numbers),
        ("snappy", BOOL),
        ("sample_rate", &["0", "99"]),
        ("auth_required", BOOL),
        ("output_buffer_size", numbers),
        ("output_buffer_timeout", numbers),
        ("topology_region", TEXT),
        ("topology_zone", TEXT),
    ];
    let mut random = Random::new(1);
    for _ in 0..2000 {
        let json = object(&mut random, &fields, false);
        let (serde, _) = serde_json_core::from_str::<Response>(&json).expect(&json);
        let granted = granted(&[json.as_bytes()]).expect(&json);
        assert_eq!(
            [granted.max_rdy_count, granted.msg_timeout_ms, granted.max_msg_timeout_ms],
            [serde.max_rdy_count, serde.msg_timeout, serde.max_msg_timeout],
            "{json}"
        );
        assert_eq!(granted.auth_required, serde.auth_required, "{json}");
    }
}

/// Reads the response with the JSON scanner; `None` if a value has another type.
fn scanned(json: &str) -> Option<([u32; 3], bool)> {
    const KEYS: [&str; 4] = ["max_rdy_count", "msg_timeout", "max_msg_timeout", "auth_required"];
    let (mut numbers, mut auth_required) = ([2500, 60_000, 900_000], false);
    let mut fields = Fields::<24>::new();
    let mut input = json.as_bytes();
    while let Some((key, value)) = fields.next(&KEYS, &mut input).ok()? {
        match numbers.get_mut(usize::from(key)) {
            Some(number) => *number = value.as_i32()?.max(0).unsigned_abs(),
            None => auth_required = value.as_bool()?,
        }
    }
    fields.finish().ok()?;
    Some((numbers, auth_required))
}

/// The reader without a JSON parser reads the same numbers as one with it, or both refuse.
#[test]
fn granted_reads_what_a_json_scanner_reads() {
    let numbers: &[&str] = &[
        "0",
        "-0",
        "-7",
        "2500",
        "2147483647",
        "null",
        "1.5",
        "1e3",
        "true",
        "\"7\"",
        "[]",
        "{}",
        "-2147483648",
    ];
    let fields: [(&str, &[&str]); 6] = [
        ("max_rdy_count", numbers),
        ("max_msg_timeout", numbers),
        ("msg_timeout", numbers),
        ("xmsg_timeout", numbers),
        ("version", &["\"\"", "\"\\\"msg_timeout\\\":5\"", "\"msg_timeout\"", "null"]),
        ("auth_required", BOOL),
    ];
    let mut random = Random::new(5);
    let mut taken = 0;
    for _ in 0..20_000 {
        let json = {
            let nulls = random.below(2) == 0;
            object(&mut random, &fields, nulls)
        };
        let granted = granted(&[json.as_bytes()]).ok().map(|granted| {
            let numbers =
                [granted.max_rdy_count, granted.msg_timeout_ms, granted.max_msg_timeout_ms];
            (numbers, granted.auth_required)
        });
        assert_eq!(granted, scanned(&json), "{json}");
        taken += u32::from(granted.is_some());
    }
    assert!((1000..19_000).contains(&taken), "{taken}");
}

#[test]
fn granted_takes_the_last_of_each_field() {
    let response = IdentifyResponse {
        max_rdy_count: 7,
        msg_timeout: 1,
        max_msg_timeout: 2,
        auth_required: true,
        version: "\"\\\u{1}",
        ..IdentifyResponse::default()
    };
    let text = emitted!(response);
    let granted = granted(&[&text]).unwrap();
    assert_eq!(
        (granted.max_rdy_count, granted.msg_timeout_ms, granted.max_msg_timeout_ms),
        (7, 1, 2)
    );
    assert!(granted.auth_required);
}

#[test]
fn identification_reads_what_serde_reads() {
    let fields: [(&str, &[&str]); 17] = [
        ("client_id", TEXT),
        ("hostname", TEXT),
        ("user_agent", TEXT),
        ("feature_negotiation", BOOL),
        ("heartbeat_interval", &["-1", "1000", "60000"]),
        ("output_buffer_size", &["-1", "64", "0"]),
        ("output_buffer_timeout", &["-1", "25"]),
        ("msg_timeout", &["0", "900000"]),
        ("sample_rate", &["0", "99"]),
        ("tls_v1", BOOL),
        ("snappy", &["false"]),
        ("deflate", BOOL),
        ("deflate_level", &["1", "-6"]),
        ("topology_region", TEXT),
        ("topology_zone", TEXT),
        ("short_id", TEXT),
        ("long_id", TEXT),
    ];
    let mut random = Random::new(2);
    for _ in 0..2000 {
        let json = object(&mut random, &fields, true);
        let (serde, _) = serde_json_core::from_str::<Request<'_>>(&json).expect(&json);
        let ours = identification(&[json.as_bytes()]).expect(&json);
        assert_eq!(ours.client_id, serde.client_id.unwrap_or_default(), "{json}");
        assert_eq!(ours.hostname, serde.hostname.unwrap_or_default(), "{json}");
        assert_eq!(ours.user_agent, serde.user_agent.unwrap_or_default(), "{json}");
        assert_eq!(ours.topology_region, serde.topology_region.unwrap_or_default(), "{json}");
        assert_eq!(ours.topology_zone, serde.topology_zone.unwrap_or_default(), "{json}");
        let settings = Settings {
            heartbeat_interval: serde.heartbeat_interval.unwrap_or(0),
            output_buffer_size: serde.output_buffer_size.unwrap_or(0),
            output_buffer_timeout: serde.output_buffer_timeout.unwrap_or(0),
            msg_timeout: serde.msg_timeout.unwrap_or(0),
            sample_rate: serde.sample_rate.unwrap_or(0),
            deflate_level: serde.deflate_level.unwrap_or(0),
            feature_negotiation: serde.feature_negotiation.unwrap_or(false),
            tls_v1: serde.tls_v1.unwrap_or(false),
            snappy: serde.snappy.unwrap_or(false),
            deflate: serde.deflate.unwrap_or(false),
        };
        assert_eq!(ours.settings, settings, "{json}");
    }
}

#[test]
fn nodes_read_what_serde_reads() {
    let fields: [(&str, &[&str]); 7] = [
        ("broadcast_address", TEXT),
        ("hostname", TEXT),
        ("http_port", PORT),
        ("tcp_port", PORT),
        ("topology_region", TEXT),
        ("topology_zone", TEXT),
        ("version", TEXT),
    ];
    let mut random = Random::new(3);
    let mut taken = 0;
    for _ in 0..2000 {
        let json = object(&mut random, &fields, true);
        let (serde, _) = serde_json_core::from_str::<Node<'_>>(&json).expect(&json);
        let serde = NodeInfo {
            broadcast_address: serde.broadcast_address,
            hostname: serde.hostname,
            http_port: serde.http_port,
            tcp_port: serde.tcp_port,
            topology_region: serde.topology_region,
            topology_zone: serde.topology_zone,
            version: serde.version,
        };
        match node(&[json.as_bytes()]) {
            Ok(ours) => {
                taken += 1;
                assert_eq!(ours.info(), serde, "{json}");
            }
            Err(refusal) => assert_eq!(serde.check(), Err(refusal), "{json}"),
        }
    }
    assert!((100..1900).contains(&taken), "{taken}");
}
