// An RP2040 with flash and USB, on rp2040js: the parts around the core, so that an image for the
// real chip runs unchanged.
//
// The chip's ROM is not used. A replacement has a stub for each function that embassy-rp looks up; a
// breakpoint in the stub calls `romCall`. Gaps and errors of rp2040js 1.4.1 are patched from outside,
// each with the reason.
import { randomFillSync } from 'node:crypto';
import { BasePeripheral, ConsoleLogger, LogLevel, RP2040, USBCDC } from 'rp2040js';

export const FLASH_BASE = 0x10000000;
export const FLASH_SIZE = 2 * 1024 * 1024;
const SRAM_BASE = 0x20000000;
/** Where the ROM copies the second-stage boot loader, and where its stack begins. */
const BOOT2 = 0x20041f00;
const SECTOR = 4096;
/** A W25Q16JV's typical times, in nanoseconds. */
const ERASE_NS = 45e6;
const PROGRAM_NS = 0.4e6;
/** How far the board may be behind real time. */
const LAG_MAX_NS = 20e6;
const WATCHDOG = 0x40058;
const WATCHDOG_REASON_TIMER = 1;
/** The chip's temperature sensor as the ADC reads 0.706 V: 27 degrees. */
const TEMPERATURE = Math.round((0.706 / 3.3) * 4096);
const TEMPERATURE_CHANNEL = 4;

/** The checksum of the second-stage boot loader, as the ROM computes it. */
export function crc32mpeg(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte << 24;
    for (let bit = 0; bit < 8; bit++) crc = crc & 0x80000000 ? (crc << 1) ^ 0x04c11db7 : crc << 1;
  }
  return crc >>> 0;
}

/** The chip's functions in ROM, by their codes (RP2040 datasheet, 2.8.3). */
const ROM_FUNCTIONS = [
  'lookup', 'IF', 'EX', 'RE', 'RP', 'FC', 'CX', 'UB',
  'MC', 'C4', 'MS', 'S4', 'P3', 'R3', 'L3', 'T3', 'WV',
];
const ROM_STUBS = 0x100;
const BKPT = 0xbe00;
const BX_LR = 0x4770;

function installRom(mcu) {
  const view = new DataView(mcu.bootrom.buffer);
  const bytes = new Uint8Array(mcu.bootrom.buffer);
  view.setUint32(0, BOOT2, true);
  view.setUint32(4, ROM_STUBS | 1, true);
  bytes.set([0x4d, 0x75, 0x01, 0x02], 0x10); // 'Mu', 1, the ROM's version
  view.setUint16(0x14, 0x40, true); // the table of functions, which `lookup` does not need
  view.setUint16(0x16, 0xf0, true); // the table of data
  view.setUint16(0x18, ROM_STUBS | 1, true);
  ROM_FUNCTIONS.forEach((_, index) => {
    view.setUint16(ROM_STUBS + index * 4, BKPT | index, true);
    view.setUint16(ROM_STUBS + index * 4 + 2, BX_LR, true);
  });
}

/** Control of the flash cache, which does not exist here: always idle. */
class XipControl extends BasePeripheral {
  readUint32(offset) {
    return offset === 0 || offset === 8 ? 3 : 0;
  }
  writeUint32() {}
}

/** The ring oscillator, for its random bit: rp2040js has a constant one. */
class RingOscillator extends BasePeripheral {
  readUint32(offset) {
    if (offset === 0x1c) return randomFillSync(new Uint8Array(1))[0] & 1;
    return offset === 0x18 ? 0x81001000 : 0;
  }
  writeUint32() {}
}

/** Lets the flash chip answer commands other than a read: its unique number and its JEDEC id. */
function installFlashCommands(mcu, unique) {
  const ssi = mcu.peripherals[0x18000];
  const [read, write] = [ssi.readUint32.bind(ssi), ssi.writeUint32.bind(ssi)];
  const DR0 = 0x60;
  let answer = [];
  ssi.writeUint32 = (offset, value) => {
    if (offset === DR0 && (value & 0xff) === 0x4b) answer = [0, 0, 0, 0, ...unique];
    else if (offset === DR0 && (value & 0xff) === 0x9f) answer = [0xef, 0x70, 0x15];
    else write(offset, value);
  };
  ssi.readUint32 = (offset) => {
    if (offset === DR0 && answer.length) return answer.shift();
    return read(offset);
  };
}

/** Thrown when the power fails during a write to flash. */
class PowerCut extends Error {}

/**
 * One start of the chip, from reset to reset. `kept` survives a reset: flash, RAM, and the reason of
 * a watchdog reset.
 */
export class Board {
  /**
   * @param kept from `Board.blank` or from the previous start
   * @param options `logLevel`; `unique`: the flash chip's unique number, 8 bytes
   */
  constructor(kept, options = {}) {
    this.kept = kept;
    const mcu = new RP2040();
    this.mcu = mcu;
    mcu.logger = new ConsoleLogger(options.logLevel ?? LogLevel.Error, false);
    mcu.flash.set(kept.flash);
    mcu.sram.set(kept.sram);
    this.instructions = 0;
    installRom(mcu);
    // rp2040js lacks it; embassy-rp's flash driver waits for a bit in it.
    mcu.peripherals[0x14000] = new XipControl(mcu, 'XIP_CTRL');
    mcu.peripherals[0x40060] = new RingOscillator(mcu, 'ROSC');
    installFlashCommands(mcu, options.unique ?? [0xe6, 0x61, 0x40, 0x80, 0x12, 0x34, 0x56, 0x78]);
    mcu.onBreak = (code) => {
      if (mcu.core.PC < 0x4000) this.romCall(code);
      else this.stop(`breakpoint ${code} at 0x${mcu.core.PC.toString(16)}`);
    };
    this.patchInterrupts();
    this.patchResets();
    mcu.adc.channelValues[TEMPERATURE_CHANNEL] = TEMPERATURE;
  }

  /** The state of a chip that never had power: flash erased, random RAM. */
  static blank() {
    return {
      flash: new Uint8Array(FLASH_SIZE).fill(0xff),
      sram: randomFillSync(new Uint8Array(264 * 1024)),
      reason: 0,
    };
  }

  /** In rp2040js an interrupt of a peripheral that software pended stays pended for ever. */
  patchInterrupts() {
    const { mcu } = this;
    const { core } = mcu;
    let [fromLine, fromSoftware] = [0, 0];
    const setInterrupt = core.setInterrupt.bind(core);
    core.setInterrupt = (irq, on) => {
      const bit = 1 << irq;
      fromLine = on ? fromLine | bit : fromLine & ~bit;
      if (on || !(fromSoftware & bit)) setInterrupt(irq, on);
    };
    const exceptionEntry = core.exceptionEntry.bind(core);
    core.exceptionEntry = (number) => {
      const bit = 1 << (number - 16);
      if (number >= 16 && fromSoftware & bit) {
        fromSoftware &= ~bit;
        if (!(fromLine & bit)) core.pendingInterrupts &= ~bit;
      }
      exceptionEntry(number);
    };
    const ppb = mcu.ppb;
    const write = ppb.writeUint32.bind(ppb);
    ppb.writeUint32 = (offset, value) => {
      if (offset === 0x200) fromSoftware |= value;
      else if (offset === 0x280) fromSoftware &= ~value;
      // rp2040js does not know AIRCR's SYSRESETREQ.
      if (offset === 0xd0c && value >>> 16 === 0x05fa && value & 4) return this.stop('reset', 'asked for');
      write(offset, value);
    };
  }

  patchResets() {
    const watchdog = this.mcu.peripherals[WATCHDOG];
    watchdog.reason = this.kept.reason;
    watchdog.onWatchdogTrigger = () => {
      // Otherwise the watchdog fires repeatedly within one tick.
      watchdog.alarm.enable = false;
      watchdog.timer.enable = false;
      this.kept.reason = watchdog.reason || WATCHDOG_REASON_TIMER;
      this.stop('reset', 'watchdog');
    };
  }

  romCall(index) {
    const { mcu } = this;
    const { registers } = mcu.core;
    const [r0, r1, r2] = registers;
    const copy = () => {
      for (let i = 0; i < r2; i++) mcu.writeUint8(r0 + i, mcu.readUint8(r1 + i));
    };
    const fill = () => {
      for (let i = 0; i < r2; i++) mcu.writeUint8(r0 + i, r1 & 0xff);
    };
    switch (ROM_FUNCTIONS[index]) {
      case 'lookup': {
        const found = ROM_FUNCTIONS.indexOf(String.fromCharCode(r1 & 0xff, r1 >> 8));
        registers[0] = found > 0 ? (ROM_STUBS + found * 4) | 1 : 0;
        break;
      }
      case 'RE': this.flash(() => this.erase(r0, r1)); break;
      case 'RP': this.flash(() => this.program(r0, r1, r2)); break;
      case 'MC': case 'C4': copy(); break;
      case 'MS': case 'S4': fill(); break;
      // Flash can always be read here, however it is connected.
      case 'IF': case 'EX': case 'FC': case 'CX': break;
      case 'UB': this.stop('bootloader'); break;
      default: this.stop(`the ROM's function '${ROM_FUNCTIONS[index]}' is not there`);
    }
  }

  flash(change) {
    try {
      change();
    } catch (error) {
      if (!(error instanceof PowerCut)) throw error;
      this.stop('power', 'within a write to flash');
    }
  }

  /** Cuts the power after `bytes` more bytes of flash were erased or programmed. */
  cutAfter(bytes) {
    this.budget = bytes;
  }

  spend() {
    if (this.budget === undefined) return;
    if (this.budget-- <= 0) throw new PowerCut();
  }

  erase(at, length) {
    const { flash, clock } = this.mcu;
    for (let i = at; i < at + length; i++) {
      try {
        this.spend();
      } catch (cut) {
        // All cells of a sector are erased together: the rest has some bits of both states.
        const noise = randomFillSync(new Uint8Array(at + length - i));
        for (let k = i; k < at + length; k++) flash[k] |= noise[k - i];
        throw cut;
      }
      flash[i] = 0xff;
    }
    clock.tick(ERASE_NS * Math.ceil(length / SECTOR));
  }

  program(at, from, length) {
    const { mcu } = this;
    for (let i = 0; i < length; i++) {
      const value = mcu.readUint8(from + i);
      try {
        this.spend();
      } catch (cut) {
        mcu.flash[at + i] &= value | randomFillSync(new Uint8Array(1))[0];
        throw cut;
      }
      mcu.flash[at + i] &= value;
    }
    mcu.clock.tick(PROGRAM_NS * Math.ceil(length / 256));
  }

  /**
   * What the ROM does with an image in flash: copies its first 256 bytes to RAM, checks their
   * checksum, and runs them.
   */
  boot() {
    const { core, flash, sram } = this.mcu;
    const boot2 = flash.slice(0, 256);
    const expected = new DataView(boot2.buffer).getUint32(252, true);
    const is = crc32mpeg(boot2.subarray(0, 252));
    if (expected !== is) {
      const hex = (value) => value.toString(16).padStart(8, '0');
      throw new Error(`the boot loader's checksum is ${hex(expected)}, it should be ${hex(is)}: the ROM would not run it`);
    }
    sram.set(boot2, BOOT2 - SRAM_BASE);
    core.VTOR = 0;
    core.SP = BOOT2;
    core.LR = 0;
    core.PC = BOOT2;
  }

  /** Connects a USB host, which opens the serial port. `receive` gets the board's output. */
  plugUsb(receive) {
    const usb = this.mcu.usbCtrl;
    this.patchUsb(usb);
    const serial = new USBCDC(usb);
    serial.onSerialData = (bytes) => receive(bytes);
    // rp2040js sends this to the device; a host sends it to the interface: DTR and RTS on (CDC PSTN 6.3.12).
    serial.cdcSetControlLineState = () => {
      usb.sendSetupPacket(Uint8Array.of(0x21, 0x22, 3, 0, 0, 0, 0, 0));
      serial.initialized = true;
    };
    // rp2040js answers with the typed bytes, even if there are none. A host then sends nothing, and the
    // board waits.
    usb.onEndpointRead = (endpoint, size) => {
      if (endpoint === 0) usb.endpointReadDone(0, new Uint8Array());
      else if (endpoint === serial.outEndpoint) {
        this.roomForTyping = size;
        this.feedSerial();
      }
    };
    this.serial = serial;
    this.typing = [];
    this.roomForTyping = 0;
  }

  /**
   * A buffer belongs to the controller from AVAILABLE until the transfer is done (datasheet,
   * 4.1.2.5.1). rp2040js returns it at once.
   */
  patchUsb(usb) {
    const { usbDPRAMView: memory, usbDPRAM: bytes, clock } = this.mcu;
    const [FIRST, LAST] = [0x80, 0xfc];
    const [AVAILABLE, FULL, LENGTH] = [1 << 10, 1 << 15, 0x3ff];
    const update = (offset, clear, set = 0) => memory.setUint32(offset, (memory.getUint32(offset, true) & ~clear) | set, true);
    usb.DPRAMUpdated = (offset, value) => {
      if (offset < FIRST || offset > LAST || !(value & AVAILABLE)) return;
      const [endpoint, isOut, length] = [(offset - FIRST) >> 3, (offset & 4) !== 0, value & LENGTH];
      if (isOut) return usb.onEndpointRead(endpoint, length);
      const at = usb.getEndpointBufferOffset(endpoint, false);
      const sent = bytes.slice(at, at + length);
      const done = () => {
        update(offset, AVAILABLE | FULL);
        usb.indicateBufferReady(endpoint, false);
        usb.onEndpointWrite?.(endpoint, sent);
      };
      clock.createAlarm(done).schedule(usb.writeDelayMicroseconds * 1000);
    };
    usb.finishRead = (endpoint, received) => {
      const offset = FIRST + 4 + endpoint * 8;
      const length = Math.min(received.length, memory.getUint32(offset, true) & LENGTH);
      bytes.set(received.subarray(0, length), usb.getEndpointBufferOffset(endpoint, true));
      update(offset, AVAILABLE | LENGTH, FULL | length);
      usb.indicateBufferReady(endpoint, true);
    };
  }

  /** Types on the serial port, as fast as the board reads. */
  type(text) {
    this.typing.push(...text);
    this.feedSerial();
    this.poke();
  }

  feedSerial() {
    if (!this.roomForTyping || !this.typing.length) return;
    const packet = Uint8Array.from(this.typing.splice(0, this.roomForTyping));
    this.roomForTyping = 0;
    this.mcu.usbCtrl.endpointReadDone(this.serial.outEndpoint, packet);
  }

  /** Runs until something stops the board and returns the reason. Idle time passes in real time. */
  run() {
    this.began = process.hrtime.bigint();
    this.beganAt = this.mcu.clock.nanos;
    return new Promise((resolve, reject) => {
      this.finish = resolve;
      this.fail = reject;
      setImmediate(() => this.slice());
    });
  }

  /** Ends `run`. The first reason counts. */
  stop(what, why = '') {
    if (this.ended) return;
    this.ended = { what, why };
    this.kept.flash.set(this.mcu.flash.subarray(0, FLASH_SIZE));
    this.kept.sram.set(this.mcu.sram);
    if (this.sleeping) this.poke();
  }

  /**
   * Nanoseconds that the board is behind real time. A longer lag, because the board or this machine
   * computes a lot, is never made up for: for the board, its peers would stand still
   * meanwhile.
   */
  lag() {
    const lag = Number(process.hrtime.bigint() - this.began) - (this.mcu.clock.nanos - this.beganAt);
    if (lag <= LAG_MAX_NS) return lag;
    this.beganAt -= lag - LAG_MAX_NS;
    return LAG_MAX_NS;
  }

  /** Must be called when an input changed: ends an idle sleep. */
  poke() {
    if (!this.sleeping) return;
    clearTimeout(this.sleeping);
    this.sleeping = undefined;
    this.catchUp();
    setImmediate(() => this.slice());
  }

  /** Advances the clock by the idle time that has passed, up to the next alarm. */
  catchUp() {
    const { clock } = this.mcu;
    const lag = this.lag();
    if (lag > 0) clock.tick(Math.min(lag, clock.nanosToNextAlarm || lag));
  }

  sleep(ms) {
    this.sleeping = setTimeout(() => {
      this.sleeping = undefined;
      this.catchUp();
      this.slice();
    }, ms);
  }

  slice() {
    const { mcu } = this;
    const { core, clock } = mcu;
    const cycle = 1e9 / mcu.clkSys;
    try {
      for (let left = 50_000; left > 0 && !this.ended; ) {
        if (!core.waiting) {
          const { PC } = core;
          clock.tick(core.executeInstruction() * cycle);
          this.instructions++;
          left--;
          // A loop that only an interrupt can end counts as sleep.
          if (core.PC !== PC) continue;
        }
        const next = clock.nextAlarm ? clock.nanosToNextAlarm : Infinity;
        const ahead = next - this.lag();
        if (ahead > 2e6) return this.sleep(Math.max(1, Math.min(ahead / 1e6, 20)));
        clock.tick(next);
        left -= 20;
      }
    } catch (error) {
      return this.fail(error);
    }
    if (this.ended) return this.finish(this.ended);
    setImmediate(() => this.slice());
  }
}

/** Changes the state that the next start of a chip finds. */
export function keepOver(kept, { what }) {
  if (what === 'power') {
    randomFillSync(kept.sram);
    kept.reason = 0;
  } else if (what === 'button') {
    kept.reason = 0;
  }
  return kept;
}
