//! An nsqd with HTTP, one nsqlookupd and its channel lookups.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{server, tasks};

tasks!(server::serve::<1, 1>);
