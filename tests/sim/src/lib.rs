//! A deterministic simulator of nanonsq: the real state machines, handles, runners and the driver,
//! in virtual time, on a network that fails in every way, with model servers.
//!
//! A *seed* gives a world: how many nodes and servers, how they are configured, what the
//! applications do and what goes wrong when. The same seed gives the same world on every machine.
//! For ten simulated minutes things happen, in the first seven of them faults too; what must
//! always be true is checked after every step, what must be true in the end at the end.
//!
//! | module | what it is |
//! |---|---|
//! | `world` | virtual time and the network |
//! | `schedule` | what is to happen |
//! | `exec` | who is polled, and whether there was a reason |
//! | [`nsqd`](nanonsq_models::nsqd), [`nsqlookupd`](nanonsq_models::nsqlookupd), `web` | the model servers, the first two held against the real ones by `tests/differential.rs` |
//! | `actor` | what takes part; `publisher`, `registrar`, `consumer`, `node`, `directory`, `visitor`, `board` and `hostile` are its kinds |
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
