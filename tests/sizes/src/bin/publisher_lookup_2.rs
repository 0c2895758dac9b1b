//! A publisher that is registered with two nsqlookupds.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish, clients::register::<2>);
