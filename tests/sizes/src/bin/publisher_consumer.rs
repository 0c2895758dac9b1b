//! A publisher, and a consumer of two configured nsqds.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish, clients::consume::<0, 0>);
