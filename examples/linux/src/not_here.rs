//! Flags of NSQ's servers that do not apply here.

/// Flags and keys of nsqd 1.3.0 and nsqlookupd that do not apply here, and what to do instead.
const NOT_HERE: [(&str, &[&str]); 10] = [
    (
        "messages are kept in memory only: --mem sets how much",
        &["data-path", "mem-queue-size", "max-bytes-per-file", "sync-every", "sync-timeout"],
    ),
    (
        "there is no TLS: put a tunnel before it (stunnel, socat)",
        &[
            "https-address",
            "tls-cert",
            "tls-key",
            "tls-client-auth-policy",
            "tls-root-ca-file",
            "tls-required",
            "tls-min-version",
        ],
    ),
    (
        "clients are not authenticated: let only trusted ones reach the port",
        &["auth-http-address", "auth-http-addresses", "auth-http-request-method"],
    ),
    (
        "there is no compression: clients are told so, and do without",
        &["deflate", "max-deflate-level", "snappy"],
    ),
    (
        "nothing is sent to statsd: let Prometheus read /metrics on the HTTP port",
        &[
            "statsd-address",
            "statsd-interval",
            "statsd-mem-stats",
            "statsd-prefix",
            "statsd-udp-packet-size",
            "statsd-exclude-ephemeral",
        ],
    ),
    (
        "latencies are not measured",
        &[
            "e2e-processing-latency-percentile",
            "e2e-processing-latency-percentiles",
            "e2e-processing-latency-window-time",
        ],
    ),
    (
        "the bounds of what clients may set are fixed",
        &[
            "max-channel-consumers",
            "max-output-buffer-size",
            "max-output-buffer-timeout",
            "min-output-buffer-timeout",
            "output-buffer-timeout",
        ],
    ),
    ("message IDs need no number of the node", &["node-id", "worker-id", "id"]),
    (
        "nsqlookupds have a fixed time to answer",
        &["http-client-connect-timeout", "http-client-request-timeout"],
    ),
    (
        "there is nothing to set",
        &[
            "queue-scan-selection-count",
            "queue-scan-worker-pool-max",
            "log-prefix",
            "topology-region",
            "topology-zone",
        ],
    ),
];

/// Returns the one error about flags or keys that do not apply; `None` if each of them does.
/// `named` has the name of each, and how to print it.
pub(crate) fn not_here(command: &str, named: &[(String, String)]) -> Option<String> {
    let mut text = String::new();
    for (instead, names) in NOT_HERE {
        let of = named.iter().filter(|(name, _)| names.contains(&&**name));
        let of: Vec<_> = of.map(|(_, shown)| &**shown).collect();
        if !of.is_empty() {
            text.push_str(&format!("\n  {}: {instead}", of.join(", ")));
        }
    }
    (!text.is_empty())
        .then(|| format!("these do not apply to nanonsq {command}; leave them out:{text}"))
}

/// Returns whether it is a flag or key of NSQ's servers that does not apply.
pub(crate) fn is_not_here(name: &str) -> bool {
    NOT_HERE.iter().any(|(_, names)| names.contains(&name))
}
