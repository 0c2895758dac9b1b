//! A publisher: takes messages, one at a time, and waits for each to be acknowledged.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish);
