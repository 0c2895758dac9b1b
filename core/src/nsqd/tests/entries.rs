//! A channel's entries for messages in flight are written before they are read.

use super::*;

/// What an earlier use of the memory left: a message of client 0.
const OLD: Entry =
    Entry { deadline: Instant::ZERO, delivered: Instant::ZERO, sequence: 7, message: 0, owner: 0 };

impl World {
    /// Fills all entries that no message has with what an earlier use left.
    fn soil(&mut self) -> &mut Self {
        let free = |entry: &&mut Entry| entry.message == Entry::FREE.message;
        self.nsqd.shared.entries.iter_mut().filter(free).for_each(|entry| *entry = OLD);
        self
    }

    /// Fills all entries so, of a new nsqd.
    fn soiled() -> Self {
        let world = Self::new();
        world.nsqd.shared.entries.fill(OLD);
        world
    }

    /// Which entries were written since, of all channels.
    fn written(&self) -> Vec<usize> {
        let is_written = |at: &usize| {
            let Entry { sequence, message, owner, .. } = self.nsqd.shared.entries[*at];
            (sequence, message, owner) != (OLD.sequence, OLD.message, OLD.owner)
        };
        (0..self.nsqd.shared.entries.len()).filter(is_written).collect()
    }
}

/// Memory that a platform gives page by page is taken as far as it is used.
#[test]
fn a_new_nsqd_writes_no_entry() {
    let storage = Box::leak(Box::new(Storage::<2, 4, 3, 4>::new()));
    storage.entries.as_flattened_mut().fill(OLD);
    let nsqd = Nsqd::new(&CONFIG, storage, vec![0; 4096].leak()).unwrap();
    let mut world = World { nsqd, now: Instant::ZERO, frames: Vec::new() };
    assert!(world.written().is_empty());
    world.frames.resize_with(3, || FrameDecoder::new(1 << 20));
    world.open(0);
    world.subscribe(0, 4).put("t", "a").put("t", "b");
    assert_eq!((world.bodies(0).len(), world.written()), (2, vec![0, 1]));
}

#[test]
fn what_lies_in_entries_that_were_not_used_is_no_message() {
    let mut world = World::soiled();
    world.subscribe(0, 4);
    let refused =
        |verb: &str| error(&format!("E_{verb}_FAILED {verb} {} failed ID not in flight", id(7)));
    for (line, verb) in [("FIN", "FIN"), ("TOUCH", "TOUCH")] {
        world.send(0, format!("{line} {}\n", id(7))).expect(0, &[refused(verb)]);
    }
    world.send(0, format!("REQ {} 0\n", id(7))).expect(0, &[refused("REQ")]);
    // Neither does its time come, nor does its client leave it behind.
    world.at(1000).expect(0, &[]);
    let now = world.now;
    world.client(0).closed(now, Closed::Peer);
    let (counters, status) = (world.nsqd.counters(), world.channel_status("c"));
    assert_eq!((counters.timed_out, counters.returned), (0, 0));
    assert_eq!((status.depth, status.in_flight), (0, 0));
    world.expect_empty();
}

#[test]
fn a_channel_uses_its_own_entries_to_the_last_and_no_others() {
    let mut world = World::soiled();
    world.send(1, "SUB t d\nRDY 4\n").expect(1, &[response("OK")]);
    world.subscribe(0, 4);
    for _ in 0..5 {
        world.put("t", "x");
    }
    // The second channel has entries 4 to 7 of 16; a fifth message waits.
    assert_eq!((world.bodies(0).len(), world.written()), (4, vec![4, 5, 6, 7]));
    assert_eq!(world.channel_status("c").in_flight, 4);
    assert_eq!((world.bodies(1).len(), world.written()), (4, (0..8).collect()));
    // The first that is free is used again.
    world.send(0, format!("FIN {}\nFIN {}\n", id(2), id(1)));
    assert_eq!(world.bodies(0).len(), 1);
    let of = |world: &World, at: usize| world.nsqd.shared.entries[at].sequence;
    assert_eq!((of(&world, 5), world.channel_status("c").in_flight), (4, 3));
    world.send(0, format!("FIN {}\nFIN {}\nFIN {}\n", id(0), id(3), id(4))).expect(0, &[]);
    assert_eq!(world.channel_status("c").in_flight, 0);
}

/// As when it was made: once nothing is in flight, no more entries are looked through than are
/// needed then.
#[test]
fn entries_count_from_nothing_in_flight() {
    let mut world = World::soiled();
    world.subscribe(0, 4);
    for round in 0..3 {
        for _ in 0..4 {
            world.put("t", "x");
        }
        assert_eq!(world.bodies(0).len(), 4);
        for n in 0..4 {
            world.send(0, format!("FIN {}\n", id(round * 4 + n))).expect(0, &[]);
        }
        assert_eq!(world.nsqd.shared.channels[0].entries, 0);
        world.soil();
    }
    world.expect_empty();
}

#[test]
fn a_channel_in_the_place_of_another_has_nothing_of_it_in_flight() {
    let mut world = World::soiled();
    world.subscribe(0, 4);
    for _ in 0..3 {
        world.put("t", "x");
    }
    assert_eq!(world.bodies(0).len(), 3);
    let now = world.now;
    world.nsqd.delete(now, &topic("t"), Some(&channel("c"))).unwrap();
    world.client(0).closed(now, Closed::Local);
    world.expect_empty();
    world.soil().open(0);
    world.send(0, "SUB t e\nRDY 4\n").expect(0, &[response("OK")]);
    assert_eq!(
        (world.nsqd.shared.channels[0].entries, world.channel_status("e").in_flight),
        (0, 0)
    );
    for n in [0, 1, 2, OLD.sequence] {
        let refused = format!("E_FIN_FAILED FIN {} failed ID not in flight", id(n));
        world.send(0, format!("FIN {}\n", id(n))).expect(0, &[error(&refused)]);
    }
    world.put("t", "new").expect(0, &[message(3, 1, "new")]);
    assert_eq!((world.written(), world.channel_status("e").in_flight), (vec![0], 1));
    // With its client its messages come back, and nothing else.
    world.client(0).closed(now, Closed::Peer);
    let (counters, status) = (world.nsqd.counters(), world.channel_status("e"));
    assert_eq!((counters.returned, status.depth, status.in_flight), (1, 1, 0));
}
