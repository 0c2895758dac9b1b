//! nanonsq against real nsqds and nsqlookupds. Without them (`cargo xtask peers`) each test says
//! that it is skipped.

mod consume;
mod lookup;
mod publish;
mod support;
