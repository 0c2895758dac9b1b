//! An nsqd that publishes to itself, without HTTP and nsqlookupds.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes::{server, tasks};

tasks!(server::serve::<0, 0>);
