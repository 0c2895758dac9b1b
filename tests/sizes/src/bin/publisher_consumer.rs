//! A publisher, and a consumer of two nsqds that it is given.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

async fn publisher() {
    clients::publish().await;
}

async fn consumer() {
    clients::consume::<0, 0>().await;
}

tasks!(publisher, consumer);
