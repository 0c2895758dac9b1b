//! A publisher that is registered with one nsqlookupd.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

async fn publisher() {
    clients::publish().await;
}

async fn lookup() {
    clients::register::<1>().await;
}

tasks!(publisher, lookup);
