//! `cargo xtask uf2`: converts an image to a file for an RP2040's USB drive.
//!
//! The format (github.com/microsoft/uf2) has blocks of 512 bytes, each with the address of its 256
//! bytes of flash, so that they may arrive in any order.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use object::read::elf::{ElfFile32, ProgramHeader as _};
use object::{Endianness, elf};

const BLOCK: usize = 512;
/// Bytes of the pages in which the boot loader writes flash.
const PAGE: usize = 256;
const HEADER: usize = 32;
const MAGIC_START: [u32; 2] = [0x0A32_4655, 0x9E5D_5157];
const MAGIC_END: u32 = 0x0AB1_6F30;
/// Flag: the header has the chip's family.
const FLAG_FAMILY: u32 = 0x2000;
const RP2040: u32 = 0xE48B_FF56;
/// The addresses of flash.
const FLASH: std::ops::Range<u64> = 0x1000_0000..0x1100_0000;

#[derive(Args)]
pub(crate) struct Options {
    /// The linked image, such as target/thumbv6m-none-eabi/release/w5500-evb-pico
    elf: PathBuf,
    /// The file to write [default: the image's path with the extension .uf2]
    output: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let output = options.output.clone().unwrap_or_else(|| options.elf.with_extension("uf2"));
    let pages = convert(&options.elf, &output)?;
    println!("{}: {} bytes of flash", output.display(), pages * PAGE);
    Ok(())
}

/// Converts an image; returns the number of pages.
pub(crate) fn convert(elf: &Path, output: &Path) -> Result<usize> {
    let bytes = fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let pages = pages(&bytes).with_context(|| elf.display().to_string())?;
    fs::write(output, uf2(&pages)).with_context(|| format!("cannot write {}", output.display()))?;
    Ok(pages.len())
}

/// Returns the flash contents of an ELF file by pages; bytes without contents are 0.
fn pages(bytes: &[u8]) -> Result<BTreeMap<u32, [u8; PAGE]>> {
    let file = ElfFile32::<Endianness>::parse(bytes)?;
    let endian = file.endian();
    let mut pages = BTreeMap::new();
    for segment in file.elf_program_headers() {
        let length = u64::from(segment.p_filesz(endian));
        if segment.p_type(endian) != elf::PT_LOAD || length == 0 {
            continue;
        }
        // The load address, not the address at run time.
        let start = u64::from(segment.p_paddr(endian));
        ensure!(
            FLASH.contains(&start) && start + length <= FLASH.end,
            "{length} bytes at {start:#x} are not in flash"
        );
        let data = segment.data(endian, bytes).ok().context("a segment is not in the file")?;
        for (address, &byte) in (start as u32..).zip(data) {
            let page = address - address % PAGE as u32;
            pages.entry(page).or_insert([0; PAGE])[(address - page) as usize] = byte;
        }
    }
    ensure!(!pages.is_empty(), "nothing in it goes to flash");
    Ok(pages)
}

fn uf2(pages: &BTreeMap<u32, [u8; PAGE]>) -> Vec<u8> {
    let mut file = Vec::with_capacity(pages.len() * BLOCK);
    for (number, (address, page)) in pages.iter().enumerate() {
        let header = [
            MAGIC_START[0],
            MAGIC_START[1],
            FLAG_FAMILY,
            *address,
            PAGE as u32,
            number as u32,
            pages.len() as u32,
            RP2040,
        ];
        let start = file.len();
        file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
        file.extend(page);
        file.resize(start + BLOCK - 4, 0);
        file.extend(MAGIC_END.to_le_bytes());
    }
    file
}

const _: () = assert!(HEADER + PAGE <= BLOCK - 4);

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest ELF file with these segments: address in flash, address at run time, bytes.
    fn elf(segments: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let (header, entry) = (52u32, 32u32);
        let mut at = header + entry * segments.len() as u32;
        let mut file = b"\x7FELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
        half(&mut file, 2);
        half(&mut file, 40);
        for word in [1, 0, header, 0, 0] {
            file.extend(u32::to_le_bytes(word));
        }
        for value in [header as u16, entry as u16, segments.len() as u16, 0, 0, 0] {
            half(&mut file, value);
        }
        for (load, run, bytes) in segments {
            let length = bytes.len() as u32;
            for word in [1, at, *run, *load, length, length + 8, 5, 4] {
                file.extend(word.to_le_bytes());
            }
            at += length;
        }
        for (_, _, bytes) in segments {
            file.extend(*bytes);
        }
        file
    }

    #[test]
    fn a_page_is_a_block() {
        let pages = pages(&elf(&[(0x1000_0000, 0x1000_0000, &[7; 300])])).unwrap();
        let file = uf2(&pages);
        assert_eq!(file.len(), 2 * BLOCK);
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(4), word(508)], [0x0A32_4655, 0x9E5D_5157, 0x0AB1_6F30]);
        assert_eq!([word(8), word(12), word(16)], [0x2000, 0x1000_0000, 256]);
        assert_eq!([word(20), word(24), word(28)], [0, 2, 0xE48B_FF56]);
        assert_eq!([word(512 + 12), word(512 + 20)], [0x1000_0100, 1]);
        assert_eq!(file[32..32 + 256], [7; 256]);
        assert_eq!(file[512 + 32..512 + 32 + 45], [[7; 44].as_slice(), &[0]].concat());
        assert!(file[288..508].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn variables_are_at_their_load_address() {
        let file = elf(&[
            (0x1000_0100, 0x1000_0100, &[1; 16]),
            (0x1000_0110, 0x2000_0000, &[2; 16]),
            (0x1000_0300, 0x1000_0300, &[3]),
        ]);
        let pages = pages(&file).unwrap();
        assert_eq!(pages.keys().copied().collect::<Vec<_>>(), [0x1000_0100, 0x1000_0300]);
        let first = &pages[&0x1000_0100];
        assert_eq!((first[15], first[16], first[31], first[32]), (1, 2, 2, 0));
    }

    #[test]
    fn segments_outside_flash_are_errors() {
        for segments in [
            &[(0x2000_0000, 0x2000_0000, &[1u8; 4] as &[u8])][..],
            &[(0x10FF_FFFE, 0x10FF_FFFE, &[1; 4])],
            &[],
        ] {
            assert!(pages(&elf(segments)).is_err());
        }
        assert!(pages(b"not an ELF file").is_err());
    }
}
