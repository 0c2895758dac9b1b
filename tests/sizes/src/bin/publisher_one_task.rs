//! As `publisher`, held by one task.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{clients, tasks};

tasks!(clients::publish_from_one_task);
