//! Slices of a ring.

use super::RING_MAX;

/// As much of a ring as positions reach.
pub(super) const fn longest(ring: &mut [u8]) -> &mut [u8] {
    let len = if ring.len() < RING_MAX { ring.len() } else { RING_MAX };
    match ring.split_at_mut_checked(len) {
        Some((ring, _)) => ring,
        None => &mut [],
    }
}

/// Copies as much as fits. Lengths are made equal first, so there is no panic in it.
pub(super) fn copy(to: &mut [u8], from: &[u8]) {
    let len = to.len().min(from.len());
    if let (Some(to), Some(from)) = (to.get_mut(..len), from.get(..len)) {
        to.copy_from_slice(from);
    }
}
