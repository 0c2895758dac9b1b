//! nanonsq with real nsqds and nsqlookupds. Without them (`cargo xtask peers`) each test prints
//! that it is skipped.

mod consumer;
mod publisher;
mod registration;
mod support;
