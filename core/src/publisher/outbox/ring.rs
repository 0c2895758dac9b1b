//! Slices of a ring.

use super::RING_MAX;

/// Returns the part of a ring that positions can address.
pub(super) const fn longest(ring: &mut [u8]) -> &mut [u8] {
    let len = if ring.len() < RING_MAX { ring.len() } else { RING_MAX };
    match ring.split_at_mut_checked(len) {
        Some((ring, _)) => ring,
        None => &mut [],
    }
}

/// Copies as many bytes as fit. The lengths are made equal first, so that nothing can panic.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    let len = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
        to.copy_from_slice(from);
    }
}
