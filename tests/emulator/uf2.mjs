// Reads UF2 as the RP2040's boot loader does when such a file is copied to it.
import { FLASH_BASE, FLASH_SIZE } from './board.mjs';

const RP2040 = 0xe48bff56;
const BLOCK = 512;
const PAYLOAD = 256;
const FLAG_NOT_FLASH = 0x1;
const FLAG_FAMILY = 0x2000;

/** Writes the image to flash. Throws if the boot loader would refuse it. */
export function loadUf2(file, flash) {
  if (file.length === 0 || file.length % BLOCK) throw new Error('not UF2: it is not made of blocks of 512 bytes');
  const seen = new Set();
  let expected;
  for (let at = 0; at < file.length; at += BLOCK) {
    const word = (offset) => file.readUInt32LE(at + offset);
    const number = at / BLOCK;
    if (word(0) !== 0x0a324655 || word(4) !== 0x9e5d5157 || word(508) !== 0x0ab16f30) {
      throw new Error(`block ${number} is not UF2`);
    }
    const flags = word(8);
    if (flags & FLAG_NOT_FLASH) continue;
    if (!(flags & FLAG_FAMILY) || word(28) !== RP2040) throw new Error(`block ${number} is not for an RP2040`);
    const [address, length, index, count] = [word(12), word(16), word(20), word(24)];
    // The boot loader accepts only whole pages.
    if (length !== PAYLOAD || address % PAYLOAD) throw new Error(`block ${number} is not one page of flash`);
    const offset = address - FLASH_BASE;
    if (offset < 0 || offset + length > FLASH_SIZE) throw new Error(`block ${number} is not in flash`);
    expected ??= count;
    if (count !== expected || index >= count) throw new Error(`block ${number} is numbered ${index} of ${count}`);
    seen.add(index);
    flash.set(file.subarray(at + 32, at + 32 + length), offset);
  }
  if (seen.size !== expected) throw new Error(`${seen.size} of ${expected} blocks are there: the boot loader would wait for the rest`);
}
