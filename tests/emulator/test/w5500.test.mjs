// The W5500 compared with its datasheet (version 1.1.0), not with the behaviour of a driver.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COMMAND, COMMON, INTERRUPT, SOCKET, STATUS, W5500 } from '../w5500.mjs';

/** A chip in a world whose time passes when it is told to. */
function bench(options = {}) {
  const world = { now: 0, due: [], sent: [], interrupts: [] };
  world.schedule = (nanoseconds, action) => world.due.push({ at: world.now + nanoseconds, action });
  world.pass = (nanoseconds) => {
    const end = world.now + nanoseconds;
    for (;;) {
      world.due.sort((a, b) => a.at - b.at);
      if (!world.due.length || world.due[0].at > end) break;
      const { at, action } = world.due.shift();
      world.now = at;
      action();
    }
    world.now = end;
  };
  const chip = new W5500(world.schedule, {
    onSend: (frame) => world.sent.push(frame),
    onInterrupt: (isLow) => world.interrupts.push(isLow),
    ...options,
  });
  world.chip = chip;
  /** One frame of SPI; gives what came back in its data phase. */
  world.spi = (address, control, data) => {
    chip.select(true);
    [address >> 8, address & 0xff, control].forEach((byte) => chip.transfer(byte));
    const answer = data.map((byte) => chip.transfer(byte));
    chip.select(false);
    return answer;
  };
  world.read = (block, address, length = 1) => world.spi(address, block << 3, new Array(length).fill(0));
  world.write = (block, address, ...data) => world.spi(address, (block << 3) | 4, data);
  world.word = (block, address) => {
    const [high, low] = world.read(block, address, 2);
    return (high << 8) | low;
  };
  world.writeWord = (block, address, value) => world.write(block, address, value >> 8, value & 0xff);
  /** Socket 0 moves frames; all interrupts are on. */
  world.open = (mode = 0x04, kib = 16) => {
    world.pass(1e9);
    world.write(0, COMMON.SHAR, 2, 0, 0, 0, 0, 1);
    world.write(0, COMMON.SIMR, 1);
    world.write(1, SOCKET.RXBUF_SIZE, kib);
    world.write(1, SOCKET.TXBUF_SIZE, kib);
    world.write(1, SOCKET.MR, mode);
    world.write(1, SOCKET.CR, COMMAND.OPEN);
    assert.deepEqual(world.read(1, SOCKET.SR), [STATUS.MACRAW]);
    return world;
  };
  /** Takes the oldest frame, as the datasheet has it. */
  world.take = () => {
    const at = world.word(1, SOCKET.RX_RD);
    const [high, low] = world.read(3, at, 2);
    const length = (high << 8) | low;
    const frame = world.read(3, (at + 2) & 0xffff, length - 2);
    world.writeWord(1, SOCKET.RX_RD, (at + length) & 0xffff);
    world.write(1, SOCKET.CR, COMMAND.RECV);
    return Buffer.from(frame);
  };
  return world;
}

const OWN = [2, 0, 0, 0, 0, 1];
const frame = (to, length = 60, fill = 0x55) => {
  const bytes = Buffer.alloc(length, fill);
  bytes.set([...to, 2, 0, 0, 0, 0, 9, 0x08, 0x00]);
  return bytes;
};

/** Offset, length, value after reset: the tables of 3.1 and 3.2. */
const COMMON_RESET = [
  ['MR', 0x00, [0]], ['GAR', 0x01, [0, 0, 0, 0]], ['SUBR', 0x05, [0, 0, 0, 0]], ['SHAR', 0x09, [0, 0, 0, 0, 0, 0]],
  ['SIPR', 0x0f, [0, 0, 0, 0]], ['INTLEVEL', 0x13, [0, 0]], ['IR', 0x15, [0]], ['IMR', 0x16, [0]], ['SIR', 0x17, [0]],
  ['SIMR', 0x18, [0]], ['RTR', 0x19, [0x07, 0xd0]], ['RCR', 0x1b, [0x08]], ['PTIMER', 0x1c, [0x28]], ['PMAGIC', 0x1d, [0]],
  ['PHAR', 0x1e, [0, 0, 0, 0, 0, 0]], ['PSID', 0x24, [0, 0]], ['PMRU', 0x26, [0xff, 0xff]], ['UIPR', 0x28, [0, 0, 0, 0]],
  ['UPORTR', 0x2c, [0, 0]], ['PHYCFGR', 0x2e, [0b10111000]], ['VERSIONR', 0x39, [0x04]],
];
const SOCKET_RESET = [
  ['MR', 0x00, [0]], ['CR', 0x01, [0]], ['IR', 0x02, [0]], ['SR', 0x03, [0]], ['PORT', 0x04, [0, 0]],
  ['DHAR', 0x06, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff]], ['DIPR', 0x0c, [0, 0, 0, 0]], ['DPORT', 0x10, [0, 0]],
  ['MSSR', 0x12, [0, 0]], ['TOS', 0x15, [0]], ['TTL', 0x16, [0x80]], ['RXBUF_SIZE', 0x1e, [2]], ['TXBUF_SIZE', 0x1f, [2]],
  ['TX_FSR', 0x20, [0x08, 0x00]], ['TX_RD', 0x22, [0, 0]], ['TX_WR', 0x24, [0, 0]], ['RX_RSR', 0x26, [0, 0]],
  ['RX_RD', 0x28, [0, 0]], ['RX_WR', 0x2a, [0, 0]], ['IMR', 0x2c, [0xff]], ['FRAG', 0x2d, [0x40, 0x00]], ['KPALVTR', 0x2f, [0]],
];

for (const [how, reset] of [['at power-on', () => {}], ['after MR.RST', (w) => w.write(0, 0, 0x80)], ['after RSTn', (w) => { w.chip.hold(true); w.chip.hold(false); }]]) {
  test(`every register has its reset value ${how}`, () => {
    const world = bench();
    if (how !== 'at power-on') {
      for (let address = 1; address < 0x39; address++) world.write(0, address, 0xa5);
      for (let n = 0; n < 8; n++) for (let address = 4; address < 0x30; address++) world.write(n * 4 + 1, address, 0xa5);
    }
    reset(world);
    for (const [name, address, value] of COMMON_RESET) assert.deepEqual(world.read(0, address, value.length), value, name);
    for (let n = 0; n < 8; n++) {
      for (const [name, address, value] of SOCKET_RESET) assert.deepEqual(world.read(n * 4 + 1, address, value.length), value, `S${n}_${name}`);
    }
  });
}

test('the register names have the addresses of the tables', () => {
  assert.deepEqual(COMMON, Object.fromEntries(COMMON_RESET));
  assert.deepEqual(SOCKET, Object.fromEntries(SOCKET_RESET));
});

/** Those that are to be read only, and those of which a bit is cleared by writing 1 (4.1, 4.2). */
const COMMON_OTHERS = ['MR', 'IR', 'SIR', 'UIPR', 'UPORTR', 'PHYCFGR', 'VERSIONR'];
const SOCKET_OTHERS = ['CR', 'IR', 'SR', 'TX_FSR', 'TX_RD', 'RX_RSR', 'RX_WR'];

test('all others keep what is written', () => {
  const world = bench();
  const kept = (block, registers, others) => {
    for (const [name, address, reset] of registers) {
      if (others.includes(name)) continue;
      for (const value of [reset.map((_, n) => 0x5a + n), reset.map(() => 0xff), reset]) {
        world.write(block, address, ...value);
        assert.deepEqual(world.read(block, address, value.length), value, name);
      }
    }
  };
  kept(0, COMMON_RESET, COMMON_OTHERS);
  kept(1, SOCKET_RESET, SOCKET_OTHERS);
  for (const value of [0x02, 0x08, 0x10, 0x20]) {
    world.write(0, COMMON.MR, value);
    assert.deepEqual(world.read(0, COMMON.MR), [value]);
  }
});

test('the PHY can be configured and reset', () => {
  const world = bench();
  world.pass(1e9);
  world.write(0, COMMON.PHYCFGR, 0b11010000);
  assert.deepEqual(world.read(0, COMMON.PHYCFGR), [0b11010111], 'OPMD and OPMDC, with a link');
  world.write(0, COMMON.PHYCFGR, 0b01010000);
  assert.deepEqual(world.read(0, COMMON.PHYCFGR), [0b11010000], 'the link is gone for a while');
  world.pass(1e9);
  assert.deepEqual(world.read(0, COMMON.PHYCFGR), [0b11010111]);
});

test('read-only registers cannot be written', () => {
  const world = bench();
  for (const [address, length] of [[COMMON.SIR, 1], [COMMON.UIPR, 4], [COMMON.UPORTR, 2], [COMMON.VERSIONR, 1]]) {
    const before = world.read(0, address, length);
    world.write(0, address, ...new Array(length).fill(0xff));
    assert.deepEqual(world.read(0, address, length), before);
  }
  for (const [address, length] of [[SOCKET.SR, 1], [SOCKET.TX_FSR, 2], [SOCKET.TX_RD, 2], [SOCKET.RX_RSR, 2], [SOCKET.RX_WR, 2]]) {
    const before = world.read(1, address, length);
    world.write(1, address, ...new Array(length).fill(0xff));
    assert.deepEqual(world.read(1, address, length), before);
  }
});

test('reserved registers read 0, whatever was written', () => {
  const world = bench();
  const listed = (registers) => registers.flatMap(([, address, value]) => value.map((_, n) => address + n));
  for (const [block, registers, end] of [[0, COMMON_RESET, 0x50], [1, SOCKET_RESET, 0x40]]) {
    for (let address = 0; address < end; address++) {
      if (listed(registers).includes(address)) continue;
      world.write(block, address, 0xff);
      assert.deepEqual(world.read(block, address), [0], `block ${block}, ${address.toString(16)}`);
    }
  }
});

test('interrupts: a bit is cleared by writing 1 to it, and others stay', () => {
  const world = bench();
  // These interrupts never occur here.
  world.chip.common[COMMON.IR] = 0xf0;
  world.write(0, COMMON.IR, 0x50);
  assert.deepEqual(world.read(0, COMMON.IR), [0xa0]);
  world.write(0, COMMON.IMR, 0x50);
  assert.equal(world.chip.isLow, false, 'IMR lets through what it has');
  world.write(0, COMMON.IMR, 0x80);
  assert.equal(world.chip.isLow, true);
  world.open();
  world.chip.receive(frame(OWN));
  world.write(1, SOCKET.IR, 0xff & ~INTERRUPT.RECV);
  assert.deepEqual(world.read(1, SOCKET.IR), [INTERRUPT.RECV]);
  world.write(1, SOCKET.IR, INTERRUPT.RECV);
  assert.deepEqual(world.read(1, SOCKET.IR), [0]);
});

test('INTLEVEL sets how long INT is high between two interrupts', () => {
  for (const [level, wait] of [[0, 27], [999, 26_667], [0xffff, 1_747_627]]) {
    const world = bench().open();
    world.write(0, COMMON.INTLEVEL, level >> 8, level & 0xff);
    world.chip.receive(frame(OWN));
    world.write(1, SOCKET.IR, INTERRUPT.RECV);
    world.chip.receive(frame(OWN));
    world.pass(wait - 1);
    assert.equal(world.chip.isLow, false);
    world.pass(1);
    assert.equal(world.chip.isLow, true);
  }
});

test('every command is accepted, and those of TCP change nothing', () => {
  const world = bench().open();
  for (const command of [0x02, 0x04, 0x08, 0x21, 0x22, 0x00, 0xff]) {
    world.write(1, SOCKET.CR, command);
    assert.deepEqual(world.read(1, SOCKET.CR), [0]);
    assert.deepEqual(world.read(1, SOCKET.SR), [STATUS.MACRAW]);
  }
  world.pass(1e6);
  assert.equal(world.sent.length, 0);
  // Without OPEN no command has an effect.
  const closed = bench();
  for (const command of [COMMAND.SEND, COMMAND.RECV, COMMAND.CLOSE]) closed.write(1, SOCKET.CR, command);
  closed.pass(1e9);
  assert.deepEqual([closed.sent.length, closed.read(1, SOCKET.SR)[0], closed.read(1, SOCKET.IR)[0]], [0, STATUS.CLOSED, 0]);
});

test('OPEN makes all pointers 0', () => {
  const world = bench().open();
  world.chip.receive(frame(OWN));
  world.take();
  world.writeWord(1, SOCKET.TX_WR, 60);
  world.write(1, SOCKET.CR, COMMAND.SEND);
  world.pass(1e6);
  world.write(1, SOCKET.CR, COMMAND.CLOSE);
  world.write(1, SOCKET.CR, COMMAND.OPEN);
  for (const pointer of [SOCKET.TX_RD, SOCKET.TX_WR, SOCKET.RX_RSR, SOCKET.RX_RD, SOCKET.RX_WR]) assert.equal(world.word(1, pointer), 0);
  assert.equal(world.word(1, SOCKET.TX_FSR), 16384);
});

test('SPI: addresses count up, and fixed lengths end', () => {
  const world = bench();
  world.write(0, COMMON.GAR, 1, 2, 3, 4, 5, 6, 7, 8);
  assert.deepEqual(world.read(0, COMMON.GAR, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
  for (const [mode, length] of [[1, 1], [2, 2], [3, 4]]) {
    world.write(0, COMMON.SHAR, 0, 0, 0, 0, 0, 0);
    world.spi(COMMON.SHAR, 4 | mode, [9, 9, 9, 9, 9, 9]);
    assert.deepEqual(world.read(0, COMMON.SHAR, 6), [9, 9, 9, 9, 9, 9].map((v, i) => (i < length ? v : 0)));
  }
});

test('SPI: the first three bytes are answered with 1, 2, 3, and nothing is answered without select', () => {
  const { chip } = bench();
  chip.select(true);
  assert.deepEqual([0, 0x39, 0].map((byte) => chip.transfer(byte)), [1, 2, 3]);
  assert.equal(chip.transfer(0), 4);
  chip.select(false);
  assert.equal(chip.transfer(0), 0xff);
});

test('the link comes up some time after the cable is plugged in, and is lost with it', () => {
  const world = bench();
  assert.equal(world.read(0, COMMON.PHYCFGR)[0] & 1, 0);
  world.pass(1e9);
  assert.equal(world.read(0, COMMON.PHYCFGR)[0] & 7, 7, 'full duplex, 100 Mbit/s, link');
  world.chip.plug(false);
  assert.equal(world.read(0, COMMON.PHYCFGR)[0] & 1, 0);
  world.chip.plug(true);
  world.chip.plug(false);
  world.pass(1e9);
  assert.equal(world.read(0, COMMON.PHYCFGR)[0] & 1, 0, 'a plug that was pulled again makes no link');
});

test('only socket 0 supports MACRAW, and no socket anything else', () => {
  const world = bench();
  for (let n = 0; n < 8; n++) {
    for (const mode of [0, 1, 2, 4]) {
      world.write(n * 4 + 1, SOCKET.MR, mode);
      world.write(n * 4 + 1, SOCKET.CR, COMMAND.OPEN);
      const expected = n === 0 && mode === 4 ? STATUS.MACRAW : STATUS.CLOSED;
      assert.deepEqual(world.read(n * 4 + 1, SOCKET.SR), [expected]);
    }
  }
  world.write(1, SOCKET.CR, COMMAND.CLOSE);
  assert.deepEqual(world.read(1, SOCKET.SR), [STATUS.CLOSED]);
});

test('a frame is in the buffer behind its length, which includes itself', () => {
  const world = bench().open();
  const sent = frame(OWN, 77);
  world.chip.receive(sent);
  assert.equal(world.word(1, SOCKET.RX_RSR), 79);
  assert.equal(world.word(1, SOCKET.RX_WR), 79);
  assert.deepEqual(world.read(3, 0, 2), [0, 79]);
  assert.deepEqual(world.take(), sent);
  assert.equal(world.word(1, SOCKET.RX_RSR), 0);
});

test('RX_RSR changes with RECV, not with RX_RD', () => {
  const world = bench().open();
  world.chip.receive(frame(OWN, 60));
  world.writeWord(1, SOCKET.RX_RD, 62);
  assert.equal(world.word(1, SOCKET.RX_RSR), 62);
  world.write(1, SOCKET.CR, COMMAND.RECV);
  assert.equal(world.word(1, SOCKET.RX_RSR), 0);
});

test('INT is low from a frame until its bit is cleared, and not again for frames that wait', () => {
  const world = bench().open();
  world.chip.receive(frame(OWN));
  world.chip.receive(frame(OWN));
  assert.equal(world.chip.isLow, true);
  assert.deepEqual(world.read(0, COMMON.SIR), [1]);
  assert.deepEqual(world.read(1, SOCKET.IR), [INTERRUPT.RECV]);
  world.write(1, SOCKET.IR, INTERRUPT.RECV);
  assert.equal(world.chip.isLow, false);
  world.take();
  assert.equal(world.word(1, SOCKET.RX_RSR), 62, 'one is left');
  assert.equal(world.chip.isLow, false);
  world.pass(100);
  world.chip.receive(frame(OWN));
  assert.equal(world.chip.isLow, true);
});

test('INT obeys the masks of the socket and of the chip', () => {
  const world = bench().open();
  world.write(1, SOCKET.IMR, 0xff & ~INTERRUPT.RECV);
  world.chip.receive(frame(OWN));
  assert.equal(world.chip.isLow, false);
  world.write(1, SOCKET.IMR, 0xff);
  assert.equal(world.chip.isLow, true);
  world.write(0, COMMON.SIMR, 0);
  assert.equal(world.chip.isLow, false);
});

test('frames for others are left out if the filter is on, and let in if not', () => {
  const [other, broadcast, multicast] = [[2, 0, 0, 0, 0, 2], [255, 255, 255, 255, 255, 255], [1, 0, 0x5e, 0, 0, 1]];
  for (const [mode, to, isTaken] of [
    [0x84, OWN, true], [0x84, broadcast, true], [0x84, other, false], [0x84, multicast, false],
    [0x04, other, true], [0x04, multicast, true], [0x24, multicast, false], [0x44, broadcast, false], [0x44, OWN, true],
  ]) {
    const world = bench().open(mode);
    world.chip.receive(frame(to));
    assert.equal(world.word(1, SOCKET.RX_RSR) > 0, isTaken, `mode ${mode.toString(16)} to ${to}`);
  }
  const world = bench().open(0x14);
  const ipv6 = frame(OWN);
  ipv6.writeUInt16BE(0x86dd, 12);
  world.chip.receive(ipv6);
  assert.equal(world.word(1, SOCKET.RX_RSR), 0);
});

test('the buffer wraps, and a frame without room is dropped completely', () => {
  for (const kib of [1, 2, 4, 8, 16]) {
    const world = bench().open(0x04, kib);
    for (let round = 0; round < 300; round++) {
      const sent = frame(OWN, 60 + (round * 37) % 900, round & 0xff);
      world.chip.receive(sent);
      assert.deepEqual(world.take(), sent, `${kib} KiB, round ${round}`);
    }
    const fits = Math.floor((kib * 1024) / 102);
    for (let n = 0; n < fits + 3; n++) world.chip.receive(frame(OWN, 100, n));
    assert.equal(world.word(1, SOCKET.RX_RSR), fits * 102);
    assert.equal(world.chip.stats.dropped, 3);
    for (let n = 0; n < fits; n++) assert.equal(world.take()[50], n & 0xff);
  }
});

test('a length can be garbled, once', () => {
  const world = bench().open();
  world.chip.garbled = 40_000;
  for (const length of [40_000, 62]) {
    world.chip.receive(frame(OWN));
    const at = world.word(1, SOCKET.RX_WR) - 62;
    assert.deepEqual(world.read(3, at, 2), [length >> 8, length & 0xff]);
  }
});

test('pointers run through all 16 bits', () => {
  const world = bench().open();
  for (let sent = 0; sent < 200_000; sent += 1016) {
    world.chip.receive(frame(OWN, 1014));
    world.take();
  }
  assert.equal(world.word(1, SOCKET.RX_RD), world.word(1, SOCKET.RX_WR));
});

test('SEND sends the bytes between the pointers, padded, and signals when it is done', () => {
  const world = bench().open();
  const small = frame([9, 9, 9, 9, 9, 9], 42);
  world.write(2, 0, ...small);
  world.writeWord(1, SOCKET.TX_WR, 42);
  assert.equal(world.word(1, SOCKET.TX_FSR), 16384);
  world.write(1, SOCKET.CR, COMMAND.SEND);
  assert.deepEqual(world.read(1, SOCKET.CR), [0]);
  assert.equal(world.word(1, SOCKET.TX_FSR), 16384 - 42);
  assert.deepEqual(world.read(1, SOCKET.IR), [0]);
  world.pass(84 * 80 - 1);
  assert.equal(world.sent.length, 0);
  world.pass(1);
  assert.deepEqual(world.sent, [Buffer.concat([small, Buffer.alloc(18)])]);
  assert.deepEqual(world.read(1, SOCKET.IR), [INTERRUPT.SEND_OK]);
  assert.equal(world.word(1, SOCKET.TX_RD), 42);
  assert.equal(world.word(1, SOCKET.TX_FSR), 16384);
});

test('two frames can be under way', () => {
  const world = bench().open();
  for (const [at, fill] of [[0, 1], [100, 2]]) {
    world.write(2, at, ...frame(OWN, 100, fill));
    world.writeWord(1, SOCKET.TX_WR, at + 100);
    world.write(1, SOCKET.CR, COMMAND.SEND);
  }
  assert.equal(world.word(1, SOCKET.TX_FSR), 16384 - 200);
  world.pass(1e6);
  assert.deepEqual(world.sent.map((sent) => sent[50]), [1, 2]);
});

test('nothing leaves without a cable, and the driver still goes on', () => {
  const world = bench().open();
  world.chip.plug(false);
  world.writeWord(1, SOCKET.TX_WR, 60);
  world.write(1, SOCKET.CR, COMMAND.SEND);
  world.pass(1e6);
  assert.equal(world.sent.length, 0);
  assert.deepEqual(world.read(1, SOCKET.IR), [INTERRUPT.SEND_OK]);
  world.chip.receive(frame(OWN));
  assert.equal(world.word(1, SOCKET.RX_RSR), 0);
});

test('a reset cancels frames under way', () => {
  const world = bench().open();
  world.writeWord(1, SOCKET.TX_WR, 60);
  world.write(1, SOCKET.CR, COMMAND.SEND);
  world.write(0, COMMON.MR, 0x80);
  world.pass(1e9);
  assert.equal(world.sent.length, 0);
  assert.deepEqual(world.read(1, SOCKET.IR), [0]);
});

test('each socket has its own part of the memory', () => {
  const world = bench();
  for (let n = 0; n < 8; n++) for (let at = 0; at < 2048; at += 512) world.write(n * 4 + 2, at, n + 1);
  for (let n = 0; n < 8; n++) for (let at = 0; at < 2048; at += 512) assert.deepEqual(world.read(n * 4 + 2, at), [n + 1]);
  assert.deepEqual(world.read(2, 2048 + 512), [1], 'addresses wrap in the part');
});
