//! Common clients and tools against `nanonsq node` and `nanonsq lookupd`: consumers and producers
//! on go-nsq, pynsq and tokio-nsq, NSQ's tools, nsqadmin in a browser, killed and hostile clients.
//!
//! Most tests also run with the real nsqd and nsqlookupd, which shows that the test is right, and
//! with one of each.

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
