//! Heaps beside sorted maps, and the cost of their operations.

use super::*;
use crate::nsqd::arena::{DELAY_MAX_MS, Layout};
use crate::nsqd::tests::blocks;
use crate::time::{Jitter, Span};
use std::collections::BTreeMap;

const LANES: u8 = 2;

fn arena(messages: usize) -> Arena<'static> {
    let store = vec![0x55; blocks(messages)].leak();
    let layout = Layout::new(store.len(), LANES).unwrap();
    assert_eq!(layout.count as usize, messages);
    Arena::new(store, layout)
}

fn below(dice: &mut Jitter, n: usize) -> usize {
    dice.between(Span::ZERO, Span::from_millis(n as u32 - 1)).as_millis() as usize
}

/// Returns a store of messages with the sequence numbers from `first` on.
fn filled(messages: Block, first: u32) -> Arena<'static> {
    let mut store = arena(messages as usize);
    for number in 0..messages {
        let (message, _) = store.take(1, &mut 0, 0).unwrap();
        assert_eq!(message, number);
        store.label(message, 0, first.wrapping_add(number.into()), 0, false);
    }
    store
}

/// Returns all messages of a heap, checked to come after their parents.
fn walked(heap: &Heap, store: &Arena<'_>, lane: u8) -> Vec<Block> {
    let (mut all, mut walk) = (Vec::new(), heap.walk());
    while let Some(message) = walk.message() {
        let parent = heap.parent(store, message, lane);
        assert_eq!(parent == NIL, all.is_empty(), "only the first has no parent");
        if parent != NIL {
            assert!(all.contains(&parent) && is_before(store, lane, parent, message));
        }
        all.push(message);
        walk.go_on(store, lane, true);
    }
    all
}

/// Returns the number of children of a message.
fn children(store: &Arena<'_>, lane: u8, message: Block) -> u32 {
    let (mut at, mut count) = (store.child(message, lane), 0);
    while at != NIL {
        count += 1;
        let (next, is_last) = store.sibling(at, lane);
        at = if is_last { NIL } else { next };
    }
    count
}

/// Two heaps in one store. Due times and sequence numbers wrap around.
#[test]
fn heaps_do_what_sorted_maps_do() {
    for seed in 0..12 {
        let mut dice = Jitter::new(seed);
        let (mut store, mut heaps) = (arena(60), [Heap::EMPTY; 2]);
        let mut models = [BTreeMap::new(), BTreeMap::new()];
        let (mut now, mut sequence) = (Instant::from_millis(u64::from(dice.next_u32())), 0u64);
        let spread = [3, 5000, DELAY_MAX_MS][seed as usize % 3];
        for _ in 0..2000 {
            let at = below(&mut dice, 2);
            let (lane, heap, model) = (at as u8, &mut heaps[at], &mut models[at]);
            let some = model.values().nth(below(&mut dice, model.len().max(1))).copied();
            match below(&mut dice, 6) {
                0..3 => {
                    let delay = dice.between(Span::from_millis(1), Span::from_millis(spread));
                    let due = now.after(delay);
                    if !store.reaches(due) {
                        for (lane, (heap, model)) in heaps.iter_mut().zip(&mut models).enumerate() {
                            while heap.len > 0 && store.due(heap.top, lane as u8) <= now {
                                let message = heap.pop(&mut store, lane as u8);
                                assert_eq!(message, model.pop_first().map(|(_, it)| it));
                                store.give(message.unwrap());
                            }
                        }
                        store.set_base(now);
                        assert!(store.reaches(due));
                    }
                    let Some((message, _)) = store.take(1, &mut 0, 0) else { continue };
                    let number = u32::MAX.wrapping_sub(500).wrapping_add(sequence as u32);
                    store.label(message, 0, number, 0, false);
                    heaps[at].insert(&mut store, message, lane, due);
                    models[at].insert((due.as_micros().div_ceil(1000), sequence), message);
                    sequence += 1;
                }
                3 => {
                    let message = heap.pop(&mut store, lane);
                    assert_eq!(message, model.pop_first().map(|(_, message)| message));
                    message.into_iter().for_each(|message| store.give(message));
                }
                4 => {
                    let Some(message) = some else { continue };
                    model.retain(|_, other| *other != message);
                    heap.remove(&mut store, message, lane);
                    store.give(message);
                }
                _ => {
                    let few = below(&mut dice, 4) == 0;
                    let may_go = |message: Block| match few {
                        true => Some(message) == some,
                        false => !message.is_multiple_of(3),
                    };
                    let first = model.values().copied().find(|message| may_go(*message));
                    assert_eq!(heap.first(&store, lane, may_go), first);
                }
            }
            for (lane, (heap, model)) in heaps.iter().zip(&models).enumerate() {
                let mut all = walked(heap, &store, lane as u8);
                all.sort_unstable();
                let mut expected: Vec<Block> = model.values().copied().collect();
                expected.sort_unstable();
                assert_eq!((heap.len as usize, all), (model.len(), expected));
                if let Some(((due, _), message)) = model.first_key_value() {
                    assert_eq!(heap.top, *message);
                    assert_eq!(store.due(*message, lane as u8), Instant::from_millis(*due));
                }
            }
            now = now.after(dice.between(Span::ZERO, Span::from_millis(spread / 20)));
        }
    }
}

#[test]
fn of_what_is_due_at_once_the_first_published_comes_first() {
    let mut store = filled(9, u32::MAX - 3);
    let mut heap = Heap::EMPTY;
    for message in [4, 1, 7, 0, 8, 2, 6, 3, 5] {
        heap.insert(&mut store, message, 1, Instant::from_micros(7001));
    }
    let order: Vec<Block> = core::iter::from_fn(|| heap.pop(&mut store, 1)).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn a_removal_costs_the_logarithm_in_the_long_run() {
    const COUNT: Block = 16_384;
    let orders: [fn(u32) -> u32; 3] =
        [|n| n, |n| u32::MAX / 2 - n, |n| n.wrapping_mul(0x9e37_79b1) >> 1];
    for order in orders {
        let mut store = filled(COUNT, 0);
        let mut heap = Heap::EMPTY;
        for message in 0..COUNT {
            heap.insert(&mut store, message, 0, Instant::from_millis(order(message.into()).into()));
        }
        let mut compared = 0;
        while heap.len > 0 {
            let count = children(&store, 0, heap.top);
            compared += count.saturating_sub(1);
            heap.pop(&mut store, 0).unwrap();
        }
        assert!(compared < u32::from(COUNT) * 14 * 3 / 2, "{compared}");
    }
}

/// As when messages make room for others, and the first may not go.
#[test]
fn what_stays_on_top_is_not_searched_again_and_again() {
    let mut store = filled(1000, 0);
    let mut heap = Heap::EMPTY;
    for message in 0..1000 {
        heap.insert(&mut store, message, 0, Instant::from_millis(message.into()));
    }
    assert_eq!(children(&store, 0, 0), 999);
    for message in 1..1000 {
        let looked = core::cell::Cell::new(0);
        let may_go = |message: Block| {
            looked.set(looked.get() + 1);
            message > 0
        };
        assert_eq!(heap.first(&store, 0, may_go), Some(message));
        assert!(looked.get() == 2 || message == 1, "{message}: {looked:?}");
        heap.remove(&mut store, message, 0);
        assert!(children(&store, 0, 0) <= 1);
    }
}

#[test]
fn wrong_links_are_not_followed_for_ever() {
    for seed in 0..500 {
        let mut dice = Jitter::new(seed);
        let mut store = filled(30, 0);
        let mut heap = Heap::EMPTY;
        for message in 0..20 {
            heap.insert(&mut store, message, 0, Instant::from_millis(dice.next_u32().into()));
        }
        for _ in 0..20 {
            let [message, to] = [32, 32].map(|n| below(&mut dice, n) as Block);
            let to = if to > 30 { NIL } else { to };
            match below(&mut dice, 3) {
                0 => store.set_child(message, 0, to),
                n => store.set_sibling(message, 0, to, n > 1),
            }
            let mut walk = heap.walk();
            let steps = core::iter::from_fn(|| {
                walk.go_on(&store, 0, true);
                walk.message()
            });
            assert!(steps.count() <= 2 * heap.len as usize);
            heap.first(&store, 0, |message| !message.is_multiple_of(2));
            heap.remove(&mut store, message, 0);
            heap.insert(&mut store, 20 + message % 10, 0, Instant::from_millis(9));
            heap.pop(&mut store, 0);
        }
    }
}
