//! Keeps the settings in two sectors of flash, used in turn.
//!
//! Each record has a checksum, and the newest valid record counts. A save erases and writes only
//! the sector that does *not* have the newest, so that after a loss of power at any time the old
//! or the new record is loaded.
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
/// The longest record in bytes, rounded up to whole flash words.
const RECORD_MAX: usize = (HEAD + TEXT_MAX).next_multiple_of(WORD_MAX);
/// The widest word of flash writes, in bytes.
const WORD_MAX: usize = 16;

const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// The two sectors of flash with the settings.
pub struct Store<F> {
    flash: F,
    /// The offsets of the two sectors.
    sectors: [u32; 2],
    /// The sector with the newest valid record, and its sequence number.
    newest: Option<(usize, u32)>,
}

/// Why a load or a save failed. The previous record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreError {
    /// The text is longer than [`TEXT_MAX`] bytes.
    TooLong,
    /// The flash driver failed.
    Flash(NorFlashErrorKind),
    /// The flash did not keep the written bytes: it may be worn out.
    Differs,
}

impl<F: NorFlash> Store<F> {
    /// Creates a store in two adjacent sectors of `flash`, the first at `offset`.
    pub fn new(flash: F, offset: u32) -> Self {
        const { assert!(F::WRITE_SIZE <= WORD_MAX && RECORD_MAX <= F::ERASE_SIZE) };
        let sector = F::ERASE_SIZE as u32;
        Self { flash, sectors: [offset, offset.saturating_add(sector)], newest: None }
    }

    /// Loads the newest valid record, if there is one. To be called before [`save`](Self::save).
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

    /// Saves `text` as the newest record.
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

    /// Reads the record of a sector into `buf`. Returns its sequence number and length if it is
    /// valid.
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
        // Some flash reads only whole words.
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
            Self::Differs => f.write_str("flash did not keep the settings: it may be worn out"),
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

/// Returns whether a sequence number is newer than another, even after a wrap.
fn is_newer(one: u32, other: u32) -> bool {
    one.wrapping_sub(other) < u32::MAX / 2
}
