//! A deterministic simulator of nanonsq: the real state machines, handles, runners and driver, in
//! virtual time, on a network that fails in every way, with model servers.
//!
//! A *seed* gives a world: how many nodes and servers, how they are configured, what the
//! applications do, and which faults happen when. The same seed gives the same world on every
//! machine. A world lasts ten simulated minutes, the first seven with faults. Invariants are
//! checked after every step, the final state at the end.
//!
//! | module | contents |
//! |---|---|
//! | `world` | virtual time and the network |
//! | `schedule` | the steps of a world |
//! | `exec` | which futures are polled, and whether there was a reason |
//! | [`nsqd`](nanonsq_models::nsqd), [`nsqlookupd`](nanonsq_models::nsqlookupd), `web` | the model servers; `tests/differential.rs` compares the first two with the real ones |
//! | `actor` | the participants: `publisher`, `registrar`, `consumer`, `node`, `directory`, `visitor`, `board` and `hostile` |
//! | `script` | a connection of a visitor or of a hostile client |
//! | [`watch`] | which state met which event, and the trace |
//! | [`run`] | one world, and many |
//!
//! Start with `cargo xtask sim --help`.

mod actor;
mod board;
mod consumer;
mod directory;
mod exec;
mod hostile;
mod node;
mod process;
mod publisher;
mod registrar;
pub mod run;
mod schedule;
mod script;
mod session_table;
pub mod shrink;
pub mod table;
mod tap;
mod visitor;
pub mod watch;
mod web;
mod world;
