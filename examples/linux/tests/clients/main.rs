//! The clients and tools that people use, against `nanonsq node` and `nanonsq lookupd`: consumers and
//! producers on go-nsq, pynsq and tokio-nsq, NSQ's own tools, nsqadmin in a browser, clients that are
//! killed, and clients that mean harm.
//!
//! Every test runs with the real nsqd and nsqlookupd first, which shows that the test is right, then
//! with ours, and with one of each.

mod addresses;
mod admin;
mod channels;
mod config;
mod consumer;
mod full;
mod harm;
mod hostile;
mod hostile_directory;
mod http;
mod kill;
mod ledger;
mod pair;
mod raw;
mod tools;
