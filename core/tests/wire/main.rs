//! The wire layer's public interface: golden bytes of the real servers, round trips, every split,
//! every limit, and garbage.

mod differential;
mod garbage;
mod golden_v1;
mod golden_v2;
mod json;
mod limits;
mod refusals;
mod split;
mod support;
