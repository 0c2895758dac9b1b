//! The scanners against serde-json-core, on generated objects.

use nanonsq_core::wire::nsqd::{AuthResponse, IdentifyRequest, IdentifyResponse};
use nanonsq_core::wire::nsqlookupd::NodeInfo;

use crate::support::{
    Random, authorized, granted, identification, negotiated, node, peer_info, requires_auth,
};

/// A JSON object of some of `fields`, in any order, with unknown keys, nulls and white space.
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
fn negotiated_reads_what_serde_reads() {
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
    let mut random = Random(1);
    for _ in 0..2000 {
        let json = object(&mut random, &fields, false);
        let (serde, _) = serde_json_core::from_str::<IdentifyResponse<'_>>(&json).expect(&json);
        let ours = negotiated(&[json.as_bytes()]).expect(&json);
        assert_eq!(requires_auth(&[json.as_bytes()]), Ok(serde.auth_required), "{json}");
        let granted = granted(&[json.as_bytes()]).expect(&json);
        assert_eq!(
            [granted.max_rdy_count, granted.msg_timeout_ms, granted.max_msg_timeout_ms],
            [serde.max_rdy_count, serde.msg_timeout, serde.max_msg_timeout],
            "{json}"
        );
        assert_eq!(granted.auth_required, serde.auth_required, "{json}");
        assert_eq!(ours.max_rdy_count, serde.max_rdy_count, "{json}");
        assert_eq!(ours.msg_timeout_ms, serde.msg_timeout, "{json}");
        assert_eq!(ours.max_msg_timeout_ms, serde.max_msg_timeout, "{json}");
        assert_eq!(u32::from(ours.sample_rate), serde.sample_rate, "{json}");
        assert_eq!(
            [ours.auth_required, ours.tls_v1, ours.snappy, ours.deflate],
            [serde.auth_required, serde.tls_v1, serde.snappy, serde.deflate],
            "{json}"
        );
    }
}

/// What a consumer reads, against the scanner that reads all: the same numbers, or both refuse.
#[test]
fn granted_reads_what_negotiated_reads() {
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
    let mut random = Random(5);
    let mut taken = 0;
    for _ in 0..20_000 {
        let json = {
            let nulls = random.below(2) == 0;
            object(&mut random, &fields, nulls)
        };
        let (ours, all) = (granted(&[json.as_bytes()]), negotiated(&[json.as_bytes()]));
        assert_eq!(ours.is_ok(), all.is_ok(), "{json}");
        let (Ok(ours), Ok(all)) = (ours, all) else { continue };
        taken += 1;
        assert_eq!(ours.auth_required, all.auth_required, "{json}");
        assert_eq!(
            [ours.max_rdy_count, ours.msg_timeout_ms, ours.max_msg_timeout_ms],
            [all.max_rdy_count, all.msg_timeout_ms, all.max_msg_timeout_ms],
            "{json}"
        );
    }
    assert!((1000..19_000).contains(&taken), "{taken}");
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
    let mut random = Random(2);
    for _ in 0..2000 {
        let json = object(&mut random, &fields, true);
        let (serde, _) = serde_json_core::from_str::<IdentifyRequest<'_>>(&json).expect(&json);
        let ours = identification(&[json.as_bytes()]).expect(&json);
        assert_eq!(ours.client_id, serde.client_id.unwrap_or_default(), "{json}");
        assert_eq!(ours.hostname, serde.hostname.unwrap_or_default(), "{json}");
        assert_eq!(ours.user_agent, serde.user_agent.unwrap_or_default(), "{json}");
        assert_eq!(ours.topology_region, serde.topology_region.unwrap_or_default(), "{json}");
        assert_eq!(ours.topology_zone, serde.topology_zone.unwrap_or_default(), "{json}");
        assert_eq!(ours.settings, serde.settings(), "{json}");
    }
}

#[test]
fn nodes_and_peers_read_what_serde_reads() {
    let fields: [(&str, &[&str]); 7] = [
        ("broadcast_address", TEXT),
        ("hostname", TEXT),
        ("http_port", PORT),
        ("tcp_port", PORT),
        ("topology_region", TEXT),
        ("topology_zone", TEXT),
        ("version", TEXT),
    ];
    let mut random = Random(3);
    let mut taken = 0;
    for _ in 0..2000 {
        let json = object(&mut random, &fields, true);
        let (serde, _) = serde_json_core::from_str::<NodeInfo<'_>>(&json).expect(&json);
        match node(&[json.as_bytes()]) {
            Ok(ours) => {
                taken += 1;
                assert_eq!(ours.info(), serde, "{json}");
            }
            Err(refusal) => assert_eq!(serde.check(), Err(refusal), "{json}"),
        }
        let peer = peer_info(&[json.as_bytes()]).expect(&json);
        // ASCII only.
        let ascii = |text| if str::is_ascii(text) { text } else { "" };
        assert_eq!(peer.broadcast_address, ascii(serde.broadcast_address), "{json}");
        assert_eq!(peer.version, ascii(serde.version), "{json}");
        assert_eq!((peer.http_port, peer.tcp_port), (serde.http_port, serde.tcp_port), "{json}");
    }
    assert!((100..1900).contains(&taken), "{taken}");
}

#[test]
fn authorized_reads_what_serde_reads() {
    let fields: [(&str, &[&str]); 3] =
        [("identity", TEXT), ("identity_url", TEXT), ("permission_count", &["0", "7"])];
    let mut random = Random(4);
    for _ in 0..500 {
        let json = object(&mut random, &fields, false);
        let (serde, _) = serde_json_core::from_str::<AuthResponse<'_>>(&json).expect(&json);
        let ours = authorized(&[json.as_bytes()]).expect(&json);
        assert_eq!(ours.identity, serde.identity, "{json}");
        assert_eq!(ours.permission_count, serde.permission_count, "{json}");
    }
}
