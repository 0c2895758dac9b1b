//! Tests of the hardware-independent parts, on the host.

mod console;
mod crash;
mod life;
mod settings;
mod store;

use crate::settings::{Identity, Medium};

fn ethernet() -> Identity {
    Identity::new("Test Board", Medium::Ethernet, "test", &[1, 2, 3, 4, 0xAB, 0xCD, 0xEF, 9])
}

fn wifi() -> Identity {
    Identity::new("Test Board", Medium::Wifi, "test", &[1, 2, 3, 4, 0xAB, 0xCD, 0xEF, 9])
}

/// Flash that loses power after `budget` more erased or written bytes. As in real flash, a cut
/// leaves bytes that are neither old nor new.
#[derive(Debug, Clone)]
struct Flash {
    bytes: Vec<u8>,
    budget: Option<usize>,
    noise: u32,
    writes: usize,
    erases: usize,
}

const SECTOR: usize = 4096;

#[derive(Debug)]
struct NoPower;

impl embedded_storage::nor_flash::NorFlashError for NoPower {
    fn kind(&self) -> embedded_storage::nor_flash::NorFlashErrorKind {
        embedded_storage::nor_flash::NorFlashErrorKind::Other
    }
}

impl Flash {
    fn new() -> Self {
        Self { bytes: vec![0xFF; 2 * SECTOR], budget: None, noise: 1, writes: 0, erases: 0 }
    }

    /// Flash with random contents.
    fn with_garbage(seed: u32) -> Self {
        let mut flash = Self { noise: seed, ..Self::new() };
        for at in 0..flash.bytes.len() {
            flash.bytes[at] = flash.random();
        }
        flash
    }

    fn random(&mut self) -> u8 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 17;
        self.noise ^= self.noise << 5;
        self.noise as u8
    }

    fn spend(&mut self) -> Result<(), NoPower> {
        match &mut self.budget {
            Some(0) => Err(NoPower),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl embedded_storage::nor_flash::ErrorType for Flash {
    type Error = NoPower;
}

impl embedded_storage::nor_flash::ReadNorFlash for Flash {
    const READ_SIZE: usize = 4;

    fn read(&mut self, offset: u32, bytes: &mut [u8]) -> Result<(), NoPower> {
        let at = offset as usize;
        assert!(at.is_multiple_of(Self::READ_SIZE) && bytes.len().is_multiple_of(Self::READ_SIZE));
        bytes.copy_from_slice(&self.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

impl embedded_storage::nor_flash::NorFlash for Flash {
    const WRITE_SIZE: usize = 4;
    const ERASE_SIZE: usize = SECTOR;

    fn erase(&mut self, from: u32, to: u32) -> Result<(), NoPower> {
        assert!((from as usize).is_multiple_of(SECTOR) && (to as usize).is_multiple_of(SECTOR));
        self.erases += 1;
        for at in from as usize..to as usize {
            if let Err(cut) = self.spend() {
                // All cells of a sector are erased together.
                for rest in at..to as usize {
                    self.bytes[rest] |= self.random();
                }
                return Err(cut);
            }
            self.bytes[at] = 0xFF;
        }
        Ok(())
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) -> Result<(), NoPower> {
        let at = offset as usize;
        assert!(
            at.is_multiple_of(Self::WRITE_SIZE) && bytes.len().is_multiple_of(Self::WRITE_SIZE)
        );
        self.writes += 1;
        for (at, byte) in (at..).zip(bytes) {
            if let Err(cut) = self.spend() {
                self.bytes[at] &= byte | self.random();
                return Err(cut);
            }
            // Bits only become 0.
            self.bytes[at] &= byte;
        }
        Ok(())
    }
}
