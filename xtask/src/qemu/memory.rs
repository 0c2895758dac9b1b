//! Checks how much of an RP2040's RAM the image leaves free.
//!
//! The image has everything: a publisher, a consumer, the network stack, and a node with larger
//! tables than for two topics with two channels each, four clients and a store of 16 KiB. So such a
//! node leaves more RAM free than the image.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::boards;
use crate::sizes::image::Image;

/// Bytes of RAM of an RP2040.
const ALL: u64 = 264 * 1024;

/// The fewest bytes to leave for the stack and an application.
const LEFT: u64 = 96 * 1024;

/// Prefix of the variables of the module that makes the device an nsqd.
const NODE: &str = "nanonsq_qemu::serve::";

/// Checks the image; returns a short summary.
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
