//! A publisher that publishes one message at a time and waits for its acknowledgement.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish);
