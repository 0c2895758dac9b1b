//! The cost without nanonsq: sends the payload and reads a reply.

#![cfg_attr(target_os = "none", no_std, no_main)]

use core::future::poll_fn;

use nanonsq_core::drive::Sleep;
use nanonsq_sizes::platform::{Clock, Link};
use nanonsq_sizes::{done, next_message, tasks};

async fn pipe() {
    let mut clock = Clock::new();
    let now = clock.now();
    poll_fn(|cx| clock.poll_until(cx, now)).await;
    loop {
        let Some(mut link) = poll_fn(|_| Link::poll_open(7)).await else { continue };
        let mut reply = [0; 16];
        loop {
            let mut left = &next_message().await[..];
            while !left.is_empty() {
                let Some(n) = poll_fn(|_| link.poll_write(left)).await else { break };
                left = left.get(n..).unwrap_or_default();
            }
            match poll_fn(|_| link.poll_read(&mut reply)).await {
                None | Some(0) => break,
                Some(_) => done(true),
            }
        }
    }
}

tasks!(pipe);
