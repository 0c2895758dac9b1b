//! A publisher, and a consumer of the nsqds that an nsqlookupd lists.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

async fn publisher() {
    clients::publish().await;
}

async fn consumer() {
    clients::consume::<1, { clients::FOUND }>().await;
}

tasks!(publisher, consumer);
