//! Where settings are kept: two sectors of flash that take turns.
//!
//! A record is whole or not there: it has a checksum, and the newest whole one counts. Saving
//! erases and writes only the sector that does *not* hold the newest, so that whenever power goes
//! away, what is loaded afterwards is the old record or the new one.
//!
//! ```text
//! "NSQ1" | sequence u32 | length u32 | CRC-32 of sequence, length and text | text
//! ```

use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};
use embedded_storage::nor_flash::{NorFlash, NorFlashError, NorFlashErrorKind};

use crate::settings::TEXT_MAX;

/// Bytes before the text.
const HEAD: usize = 16;
const MAGIC: [u8; 4] = *b"NSQ1";
/// The longest record, with what rounds it up to the words that flash is written in.
const RECORD_MAX: usize = (HEAD + TEXT_MAX).next_multiple_of(WORD_MAX);
/// The widest word that flash is written in.
const WORD_MAX: usize = 16;

const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// The settings' place in flash.
pub struct Store<F> {
    flash: F,
    /// Where the two sectors begin.
    sectors: [u32; 2],
    /// The sector with the newest whole record, and its number.
    newest: Option<(usize, u32)>,
}

/// Why nothing was saved, or not what should have been. What was there before is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// Longer than [`TEXT_MAX`] bytes.
    TooLong,
    /// Flash refused.
    Flash(NorFlashErrorKind),
    /// Flash has something else than what was written: it is worn out.
    Differs,
}

impl<F: NorFlash> Store<F> {
    /// Two neighbouring sectors of `flash`, the first at this offset.
    pub fn new(flash: F, offset: u32) -> Self {
        const { assert!(F::WRITE_SIZE <= WORD_MAX && RECORD_MAX <= F::ERASE_SIZE) };
        let sector = F::ERASE_SIZE as u32;
        Self { flash, sectors: [offset, offset.saturating_add(sector)], newest: None }
    }

    /// The newest whole record, if there is one. Called first.
    pub fn load<'b>(&mut self, buf: &'b mut [u8; TEXT_MAX]) -> Result<Option<&'b str>, StoreError> {
        self.newest = None;
        for sector in 0..self.sectors.len() {
            if let Some((sequence, _)) = self.read(sector, buf)?
                && self.newest.is_none_or(|(_, newest)| is_newer(sequence, newest))
            {
                self.newest = Some((sector, sequence));
            }
        }
        let Some((sector, _)) = self.newest else { return Ok(None) };
        let Some((_, length)) = self.read(sector, buf)? else { return Ok(None) };
        let text = buf.get(..length).unwrap_or_default();
        Ok(core::str::from_utf8(text).ok())
    }

    /// Makes this the newest record.
    pub fn save(&mut self, text: &str) -> Result<(), StoreError> {
        let bytes = text.as_bytes();
        if bytes.len() > TEXT_MAX {
            return Err(StoreError::TooLong);
        }
        let (sector, sequence) = match self.newest {
            Some((sector, sequence)) => (1 - sector, sequence.wrapping_add(1)),
            None => (0, 1),
        };
        let mut record = [0xFF; RECORD_MAX];
        let (head, rest) = record.split_at_mut(HEAD);
        rest[..bytes.len()].copy_from_slice(bytes);
        let length = bytes.len() as u32;
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&sequence.to_le_bytes());
        head[8..12].copy_from_slice(&length.to_le_bytes());
        head[12..].copy_from_slice(&checksum(sequence, length, bytes).to_le_bytes());

        let at = self.sectors[sector];
        let end = at.saturating_add(F::ERASE_SIZE as u32);
        self.flash.erase(at, end).map_err(failed)?;
        let written = (HEAD + bytes.len()).next_multiple_of(F::WRITE_SIZE);
        self.flash.write(at, &record[..written]).map_err(failed)?;

        let mut back = [0; TEXT_MAX];
        match self.read(sector, &mut back)? {
            Some((found, length)) if found == sequence && &back[..length] == bytes => {
                self.newest = Some((sector, sequence));
                Ok(())
            }
            _ => Err(StoreError::Differs),
        }
    }

    /// The record of a sector, if it is whole: its number and its length.
    fn read(
        &mut self,
        sector: usize,
        buf: &mut [u8; TEXT_MAX],
    ) -> Result<Option<(u32, usize)>, StoreError> {
        let at = self.sectors[sector];
        let mut head = [0; HEAD];
        self.flash.read(at, &mut head).map_err(failed)?;
        let word = |index: usize| {
            u32::from_le_bytes([head[index], head[index + 1], head[index + 2], head[index + 3]])
        };
        let (sequence, length, sum) = (word(4), word(8), word(12));
        if head[..4] != MAGIC || length as usize > TEXT_MAX {
            return Ok(None);
        }
        // As some flash wants it: whole words.
        let words = (length as usize).next_multiple_of(F::READ_SIZE).min(TEXT_MAX);
        self.flash.read(at.saturating_add(HEAD as u32), &mut buf[..words]).map_err(failed)?;
        let text = &buf[..length as usize];
        Ok((checksum(sequence, length, text) == sum).then_some((sequence, length as usize)))
    }
}

impl<F> fmt::Debug for Store<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("newest", &self.newest).finish_non_exhaustive()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the settings are longer than {TEXT_MAX} bytes"),
            Self::Flash(why) => write!(f, "flash: {why}"),
            Self::Differs => f.write_str("flash did not keep it: it may be worn out"),
        }
    }
}

impl core::error::Error for StoreError {}

fn failed(error: impl NorFlashError) -> StoreError {
    StoreError::Flash(error.kind())
}

fn checksum(sequence: u32, length: u32, text: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&sequence.to_le_bytes());
    digest.update(&length.to_le_bytes());
    digest.update(text);
    digest.finalize()
}

/// Of two that follow each other, also where the number wraps.
fn is_newer(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) < u32::MAX / 2
}
