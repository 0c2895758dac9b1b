//! A publisher, and a consumer of the nsqds that an nsqlookupd lists.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish, clients::consume::<1, { clients::FOUND }>);
