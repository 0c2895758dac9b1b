//! Trees beside sorted sets, at the edges of their levels.

use super::*;
use crate::time::{Jitter, Span};
use std::collections::BTreeSet;

#[test]
fn trees_do_what_sorted_sets_do() {
    let mut dice = Jitter::new(1);
    for count in [1, 2, 31, 32, 33, 1023, 1024, 1025, 32_768, 32_769] {
        let mut words = vec![[0x55; 4]; len(count) + 1];
        let mut tree = Tree::new(&mut words, count);
        let mut model: BTreeSet<_> = (0..count).collect();
        assert_eq!((tree.first(0), tree.first(count)), (Some(0), None));
        // Mostly empty, then mostly full, then both.
        for may_go in [1, 9, 5] {
            for _ in 0..3 * count.min(2000) {
                let mut below = |n| dice.between(Span::ZERO, Span::from_millis(n - 1)).as_millis();
                let from = below(count);
                assert_eq!(tree.first(from), model.range(from..).next().copied());
                assert_eq!(tree.has(from), model.contains(&from));
                if below(10) >= may_go {
                    let block = tree.first(from).unwrap_or(from);
                    tree.remove(block);
                    model.remove(&block);
                } else {
                    tree.insert(from);
                    model.insert(from);
                }
            }
        }
        assert_eq!(words.last(), Some(&[0x55; 4]), "nothing behind the tree is written");
    }
}
