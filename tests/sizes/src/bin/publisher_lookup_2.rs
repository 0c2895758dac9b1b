//! A publisher that is registered with two nsqlookupds.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

async fn publisher() {
    clients::publish().await;
}

async fn lookup() {
    clients::register::<2>().await;
}

tasks!(publisher, lookup);
