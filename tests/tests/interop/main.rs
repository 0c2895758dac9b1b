//! nanonsq against real nsqds and nsqlookupds. Without them (`cargo xtask peers`) each test says
//! that it is skipped.

mod consumer;
mod publisher;
mod registration;
mod support;
