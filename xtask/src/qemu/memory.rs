//! What the image leaves of an RP2040's RAM.
//!
//! It has all that there is in one: a publisher, a consumer, the network stack, and a node with more
//! of everything than two topics with two channels each, four clients and a store of 16 KiB. So what it
//! leaves is more than such a node leaves.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::boards;
use crate::sizes::image::Image;

/// What an RP2040 has, in bytes.
const ALL: u64 = 264 * 1024;

/// What is to be left at least, for the stack and for an application.
const LEFT: u64 = 96 * 1024;

/// What the variables of the module are called that makes the device an nsqd.
const NODE: &str = "nanonsq_qemu::serve::";

/// Gives what came of it in a few words.
pub(super) fn check(kernel: &Path) -> Result<String> {
    let (variables, _) = boards::ram(kernel)?;
    let image = Image::read(kernel)?;
    let of_node = image.variables().filter(|is| is.name.contains(NODE)).map(|is| is.size);
    let node: u64 = of_node.sum();
    ensure!(node > 0, "no variable of {NODE} in {}", kernel.display());
    let left = ALL.saturating_sub(variables);
    ensure!(left >= LEFT, "{left} bytes of RAM are left, less than {LEFT}");
    Ok(format!(
        "{variables} bytes of variables, the node's {node} among them; {left} of {ALL} left"
    ))
}
