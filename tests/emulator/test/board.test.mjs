// The replacement of the ROM, resets and flash.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Board, FLASH_BASE, FLASH_SIZE, crc32mpeg, keepOver } from '../board.mjs';
import { loadUf2 } from '../uf2.mjs';

/** Flash with a boot loader that runs these halfwords. */
function flashWith(...code) {
  const kept = Board.blank();
  const boot2 = kept.flash.subarray(0, 256);
  boot2.fill(0);
  const view = new DataView(kept.flash.buffer);
  code.forEach((halfword, index) => view.setUint16(index * 2, halfword, true));
  view.setUint32(252, crc32mpeg(boot2.subarray(0, 252)), true);
  return kept;
}

test('the checksum is that of published boot loaders', () => {
  // "123456789": the check value of CRC-32/MPEG-2.
  assert.equal(crc32mpeg(Buffer.from('123456789')), 0x0376e6e7);
});

test('a boot loader is run from RAM', async () => {
  const board = new Board(flashWith(0xbf00, 0xbe07));
  board.boot();
  // The program counter is one instruction ahead.
  assert.deepEqual(await board.run(), { what: 'breakpoint 7 at 0x20041f04', why: '' });
});

test('a flipped bit of the boot loader is noticed', () => {
  for (let bit = 0; bit < 2048; bit += 61) {
    const kept = flashWith(0xbe07);
    kept.flash[bit >> 3] ^= 1 << (bit & 7);
    assert.throws(() => new Board(kept).boot(), /checksum/);
  }
});

test('a requested reset keeps RAM and flash', async () => {
  // ldr r0, =0xe000ed0c; ldr r1, =0x05fa0004; str r1, [r0]; b .
  const kept = flashWith(0x4802, 0x4903, 0x6001, 0xe7fe, 0xbf00, 0xbf00, 0xed0c, 0xe000, 0x0004, 0x05fa);
  const board = new Board(kept);
  board.mcu.sram[100] = 0x5a;
  board.boot();
  const ended = await board.run();
  assert.deepEqual(ended, { what: 'reset', why: 'asked for' });
  const next = new Board(keepOver(kept, ended));
  assert.equal(next.mcu.sram[100], 0x5a);
  assert.deepEqual(next.mcu.flash.slice(0, 256), kept.flash.slice(0, 256));
});

test('a loop that does nothing is ended by the watchdog, which is reported', async () => {
  // LOAD = 2000 (1 ms), CTRL = ENABLE; b .
  const kept = flashWith(0x4803, 0x4904, 0x6041, 0x4904, 0x6001, 0xe7fe, 0xbf00, 0xbf00, 0x8000, 0x4005, 2000, 0, 0, 0x4000);
  const board = new Board(kept);
  board.boot();
  const ended = await board.run();
  assert.deepEqual(ended, { what: 'reset', why: 'watchdog' });
  const next = new Board(keepOver(kept, ended));
  assert.equal(next.mcu.readUint32(0x40058008), 1, 'REASON.TIMER');
  assert.equal(new Board(keepOver(kept, { what: 'button' })).mcu.readUint32(0x40058008), 0);
});

test('RAM is lost without power', () => {
  const kept = flashWith(0xbe07);
  kept.sram.fill(0x5a);
  keepOver(kept, { what: 'power' });
  assert.ok(kept.sram.slice(0, 1000).some((byte) => byte !== 0x5a));
});

/** Calls a flash function of the ROM with registers set. */
function flashCall(board, change) {
  board.flash(() => change(board));
}

test('flash: erasing sets bits, programming only clears them', () => {
  const board = new Board(flashWith(0xbe07));
  const at = FLASH_SIZE - 4096;
  board.mcu.sram.set([0xf0, 0x0f, 0x00], 0);
  flashCall(board, (b) => b.erase(at, 4096));
  assert.ok(board.mcu.flash.slice(at, at + 4096).every((byte) => byte === 0xff));
  flashCall(board, (b) => b.program(at, 0x20000000, 3));
  flashCall(board, (b) => b.program(at, 0x20000001, 1));
  assert.deepEqual([...board.mcu.flash.slice(at, at + 4)], [0x00, 0x0f, 0x00, 0xff]);
});

test('flash: a power cut leaves the finished part and random bits after it', () => {
  const at = FLASH_SIZE - 4096;
  for (const budget of [0, 1, 4095, 4096, 4097]) {
    const kept = flashWith(0xbe07);
    kept.flash.fill(0x00, at);
    const board = new Board(kept);
    board.mcu.sram.fill(0x11, 0, 16);
    board.cutAfter(budget);
    flashCall(board, (b) => {
      b.erase(at, 4096);
      b.program(at, 0x20000000, 16);
    });
    assert.deepEqual(board.ended, { what: 'power', why: 'within a write to flash' });
    const erased = Math.min(budget, 4096);
    const after = kept.flash.slice(at, at + 4096);
    if (erased < 4096) assert.ok(after.slice(0, erased).every((byte) => byte === 0xff));
    else assert.deepEqual([...after.slice(0, budget - 4096)], new Array(budget - 4096).fill(0x11));
  }
});

/** A UF2 file of so many pages. */
function uf2(pages, change = () => {}) {
  const file = Buffer.alloc(512 * pages);
  for (let n = 0; n < pages; n++) {
    const block = file.subarray(n * 512);
    [0x0a324655, 0x9e5d5157, 0x2000, FLASH_BASE + n * 256, 256, n, pages, 0xe48bff56].forEach((word, index) => block.writeUInt32LE(word, index * 4));
    block.fill(n + 1, 32, 288);
    block.writeUInt32LE(0x0ab16f30, 508);
  }
  change(file);
  return file;
}

test('UF2: pages are written to their addresses', () => {
  const flash = new Uint8Array(FLASH_SIZE).fill(0xff);
  loadUf2(uf2(3), flash);
  assert.deepEqual([flash[0], flash[255], flash[256], flash[767], flash[768]], [1, 1, 2, 3, 0xff]);
});

test('UF2: an image that the boot loader would refuse is refused', () => {
  const write = (at, value) => (file) => file.writeUInt32LE(value, at);
  for (const [why, file] of [
    [/not made of blocks/, Buffer.alloc(0)],
    [/not made of blocks/, Buffer.alloc(511)],
    [/not UF2/, uf2(2, write(0, 0))],
    [/not UF2/, uf2(2, write(508, 0))],
    [/not for an RP2040/, uf2(2, write(28, 0xe48bff57))],
    [/not for an RP2040/, uf2(2, write(8, 0))],
    [/not one page/, uf2(2, write(16, 255))],
    [/not one page/, uf2(2, write(12, FLASH_BASE + 1))],
    [/not in flash/, uf2(2, write(12, FLASH_BASE + FLASH_SIZE))],
    [/numbered/, uf2(2, write(20, 2))],
    [/1 of 2/, uf2(2, (f) => f.copy(f, 512, 0, 512))],
  ]) {
    assert.throws(() => loadUf2(file, new Uint8Array(FLASH_SIZE)), why);
  }
});
