use embedded_storage::nor_flash::{ErrorType, NorFlash, ReadNorFlash};

use super::{Flash, SECTOR};
use crate::settings::TEXT_MAX;
use crate::store::{Store, StoreError};

fn load(flash: &Flash) -> Option<String> {
    let mut buf = [0; TEXT_MAX];
    let mut store = Store::new(flash.clone(), 0);
    store.load(&mut buf).expect("flash can be read").map(str::to_owned)
}

/// Saves with a budget of erased and written bytes; returns whether the save succeeded.
fn save(flash: &mut Flash, text: &str, budget: Option<usize>) -> bool {
    flash.budget = budget;
    let mut store = Store::new(&mut *flash, 0);
    let saved = store.load(&mut [0; TEXT_MAX]).and_then(|_| store.save(text)).is_ok();
    flash.budget = None;
    saved
}

#[test]
fn an_unused_flash_has_no_record() {
    assert_eq!(load(&Flash::new()), None);
    for seed in 1..50 {
        assert_eq!(load(&Flash::with_garbage(seed)), None);
    }
}

#[test]
fn the_last_saved_text_is_loaded() {
    let mut flash = Flash::with_garbage(7);
    for number in 0..20 {
        let text = format!("name device-{number}\n");
        assert!(save(&mut flash, &text, None));
        assert_eq!(load(&flash).as_deref(), Some(&*text));
    }
    assert_eq!((flash.erases, flash.writes), (20, 20));
}

#[test]
fn the_longest_text_fits_and_a_longer_one_is_an_error() {
    let mut flash = Flash::new();
    let longest = "x".repeat(TEXT_MAX);
    assert!(save(&mut flash, &longest, None));
    assert_eq!(load(&flash), Some(longest));
    let mut store = Store::new(flash.clone(), 0);
    assert!(matches!(store.save(&"x".repeat(TEXT_MAX + 1)), Err(StoreError::TooLong)));
    assert!(save(&mut flash, "", None), "an empty text is a record");
    assert_eq!(load(&flash).as_deref(), Some(""));
}

/// Cuts at every byte of erases and writes, for either sector.
#[test]
fn a_cut_leaves_the_old_or_the_new_record() {
    let (old, new) = ("name old\nnsqd 10.0.2.2:4150\n", "name new\nnsqd 10.0.2.3:4150\ncount 3\n");
    for saves_before in 1..=2 {
        let mut before = Flash::with_garbage(3);
        for _ in 0..saves_before {
            assert!(save(&mut before, old, None));
        }
        let (mut olds, mut news) = (0, 0);
        for budget in 0.. {
            let mut flash = before.clone();
            flash.noise = 77 + budget as u32;
            let was_done = save(&mut flash, new, Some(budget));
            let found = load(&flash).expect("the old or the new record");
            assert!(found == old || found == new, "after {budget} bytes: {found:?}");
            assert!(!was_done || found == new, "reported as saved after {budget} bytes");
            (olds, news) = (olds + usize::from(found == old), news + usize::from(found == new));
            // The next save works.
            assert!(save(&mut flash, "name next\n", None));
            assert_eq!(load(&flash).as_deref(), Some("name next\n"));
            if was_done {
                break;
            }
        }
        assert!(olds > SECTOR && news >= 1, "{olds} and {news}");
    }
}

/// The very first save has no old record to fall back to.
#[test]
fn a_cut_of_the_first_save_leaves_no_record_or_the_new_one() {
    let new = "name new\n";
    for budget in 0.. {
        let mut flash = Flash::new();
        let was_done = save(&mut flash, new, Some(budget));
        let found = load(&flash);
        assert!(found.is_none() || found.as_deref() == Some(new), "after {budget}: {found:?}");
        if was_done {
            break;
        }
    }
}

/// Each round cuts a save at a pseudo-random place.
#[test]
fn many_cuts_in_a_row() {
    let mut flash = Flash::new();
    let mut last = String::new();
    assert!(save(&mut flash, &last, None));
    for round in 0u32..500 {
        let next = format!("name n{round}\n");
        let budget = (round.wrapping_mul(2_654_435_761) >> 8) as usize % (SECTOR + 64);
        let was_done = save(&mut flash, &next, Some(budget));
        let found = load(&flash).expect("the old or the new record");
        assert!(found == last || found == next, "round {round}: {found:?}");
        assert!(!was_done || found == next);
        last = found;
    }
}

#[test]
fn any_flipped_bit_invalidates_a_record() {
    let text = "name old\n";
    let mut flash = Flash::new();
    assert!(save(&mut flash, text, None));
    for bit in 0..(16 + text.len()) * 8 {
        let mut broken = flash.clone();
        broken.bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(load(&broken), None, "bit {bit}");
    }
}

/// The number wraps after 4 billion saves, more than any flash endures.
#[test]
fn the_sequence_number_may_wrap() {
    let mut flash = Flash::new();
    assert!(save(&mut flash, "a", None));
    // Set the last number, with its checksum.
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);
    let mut digest = crc.digest();
    digest.update(&u32::MAX.to_le_bytes());
    digest.update(&1u32.to_le_bytes());
    digest.update(b"a");
    flash.bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    flash.bytes[12..16].copy_from_slice(&digest.finalize().to_le_bytes());
    assert_eq!(load(&flash).as_deref(), Some("a"));
    assert!(save(&mut flash, "b", None));
    assert_eq!(load(&flash).as_deref(), Some("b"));
}

#[test]
fn flash_that_keeps_nothing_is_an_error() {
    struct Worn(Flash);
    impl ErrorType for Worn {
        type Error = super::NoPower;
    }
    impl ReadNorFlash for Worn {
        const READ_SIZE: usize = 4;
        fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), super::NoPower> {
            self.0.read(offset, bytes)
        }
        fn capacity(&self) -> usize {
            2 * SECTOR
        }
    }
    impl NorFlash for Worn {
        const WRITE_SIZE: usize = 4;
        const ERASE_SIZE: usize = SECTOR;
        fn erase(&mut self, from: u32, to: u32) -> Result<(), super::NoPower> {
            self.0.erase(from, to)
        }
        fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), super::NoPower> {
            self.0.write(offset, &bytes[..bytes.len() - 4])
        }
    }
    let mut store = Store::new(Worn(Flash::new()), 0);
    assert_eq!(store.load(&mut [0; TEXT_MAX]), Ok(None));
    assert_eq!(store.save("name x\n"), Err(StoreError::Differs));
}
