// WIZnet's W5500 as a driver sees it that sends and receives whole Ethernet frames on socket 0
// (MACRAW): the registers, the SPI frames and the interrupts of the datasheet (version 1.1.0). The
// chip's own TCP and UDP are missing: sockets in other modes stay closed.
import { GPIOPinState } from 'rp2040js';

/** Common registers (datasheet, 3.1, 4.1). */
export const COMMON = {
  MR: 0x00, GAR: 0x01, SUBR: 0x05, SHAR: 0x09, SIPR: 0x0f, INTLEVEL: 0x13, IR: 0x15, IMR: 0x16,
  SIR: 0x17, SIMR: 0x18, RTR: 0x19, RCR: 0x1b, PTIMER: 0x1c, PMAGIC: 0x1d, PHAR: 0x1e, PSID: 0x24,
  PMRU: 0x26, UIPR: 0x28, UPORTR: 0x2c, PHYCFGR: 0x2e, VERSIONR: 0x39,
};
/** A socket's registers (3.2, 4.2). */
export const SOCKET = {
  MR: 0x00, CR: 0x01, IR: 0x02, SR: 0x03, PORT: 0x04, DHAR: 0x06, DIPR: 0x0c, DPORT: 0x10,
  MSSR: 0x12, TOS: 0x15, TTL: 0x16, RXBUF_SIZE: 0x1e, TXBUF_SIZE: 0x1f, TX_FSR: 0x20, TX_RD: 0x22,
  TX_WR: 0x24, RX_RSR: 0x26, RX_RD: 0x28, RX_WR: 0x2a, IMR: 0x2c, FRAG: 0x2d, KPALVTR: 0x2f,
};
export const COMMAND = { OPEN: 0x01, CLOSE: 0x10, SEND: 0x20, RECV: 0x40 };
export const INTERRUPT = { SEND_OK: 0x10, RECV: 0x04 };
export const STATUS = { CLOSED: 0x00, MACRAW: 0x42 };
const MODE_MACRAW = 0x04;
const MODE_MASK = 0x0f;
/** Bits of MR in MACRAW mode. */
const FILTER = { OWN: 0x80, NO_BROADCAST: 0x40, NO_MULTICAST: 0x20, NO_IPV6: 0x10 };
const SOCKETS = 8;
const KIB = 1024;
/** The size of all sockets' buffers of one direction together. */
const BUFFERS_KIB = 16;
const MR_RESET = 0x80;
const PHY_RESET = 0x80;
/** OPMD and OPMDC; after a reset: all modes, negotiated. */
const PHY_SETTINGS = 0x78;
const PHY_SETTINGS_RESET = 0x38;
/** With a link: full duplex, 100 Mbit/s. */
const PHY_LINK = 0x07;
/** How long INTn stays high per step of INTLEVEL in nanoseconds: 4 cycles of the chip's clock of 150 MHz. */
const WAIT_NS = 4 / 0.15;
/** Read-only registers (4.1, 4.2: R) and reserved ones: writing changes nothing. */
const COMMON_READ_ONLY = [COMMON.SIR, ...span(COMMON.UIPR, 4), ...span(COMMON.UPORTR, 2), ...span(0x2f, 10), COMMON.VERSIONR, ...span(0x3a, 6)];
const SOCKET_READ_ONLY = [
  SOCKET.SR, 0x14, ...span(0x17, 7), ...span(SOCKET.TX_FSR, 2), ...span(SOCKET.TX_RD, 2), ...span(SOCKET.RX_RSR, 2), ...span(SOCKET.RX_WR, 2),
];
/** Preamble, checksum and gap around a frame, in bytes; nanoseconds per byte. */
const WIRE = { extra: 24, byte: 80 };
const SHORTEST = 60;

function span(from, length) {
  return Array.from({ length }, (_, n) => from + n);
}

export class W5500 {
  /**
   * @param schedule `schedule(nanoseconds, action)` of the chip's clock
   * @param options `onInterrupt(isLow)`, `onSend(frame)`, `negotiateNs`: the time from plugging in to link
   */
  constructor(schedule, options = {}) {
    this.schedule = schedule;
    this.options = { onInterrupt: () => {}, onSend: () => {}, negotiateNs: 30e6, ...options };
    this.stats = { sent: 0, received: 0, dropped: 0, filtered: 0, spiBytes: 0, mostQueued: 0 };
    this.isPlugged = true;
    this.isSelected = false;
    this.isHeld = false;
    this.reset();
  }

  /** The effect of RSTn and of the bit RST: all registers get the datasheet's reset values. */
  reset() {
    this.epoch = (this.epoch ?? 0) + 1;
    const common = (this.common = new Uint8Array(0x40));
    common.set([0x07, 0xd0, 0x08, 0x28], COMMON.RTR);
    common.set([0xff, 0xff], COMMON.PMRU);
    common[COMMON.VERSIONR] = 0x04;
    this.sockets = Array.from({ length: SOCKETS }, () => {
      const registers = new Uint8Array(0x30);
      registers.fill(0xff, SOCKET.DHAR, SOCKET.DHAR + 6);
      registers[SOCKET.TTL] = 0x80;
      registers[SOCKET.RXBUF_SIZE] = registers[SOCKET.TXBUF_SIZE] = 2;
      registers[SOCKET.IMR] = 0xff;
      registers[SOCKET.FRAG] = 0x40;
      return registers;
    });
    this.memory = { tx: new Uint8Array(BUFFERS_KIB * KIB), rx: new Uint8Array(BUFFERS_KIB * KIB) };
    // Socket 0's pointers: the written values, and those in effect since the last command.
    this.pointers = { txRead: 0, txWrite: 0, rxRead: 0, rxReadInEffect: 0, rxWrite: 0 };
    this.sentUpTo = 0;
    this.garbled = undefined;
    this.phySettings = PHY_SETTINGS_RESET;
    this.resetPhy();
    this.isWaiting = false;
    this.updateInterrupt();
  }

  resetPhy() {
    this.hasLink = false;
    if (this.isPlugged) this.negotiate();
  }

  negotiate() {
    const epoch = (this.phyEpoch = (this.phyEpoch ?? 0) + 1);
    this.schedule(this.options.negotiateNs, () => {
      if (epoch === this.phyEpoch) this.hasLink = this.isPlugged;
    });
  }

  /** Plugs or unplugs the network cable. */
  plug(isPlugged) {
    this.isPlugged = isPlugged;
    this.hasLink = false;
    this.phyEpoch = (this.phyEpoch ?? 0) + 1;
    if (isPlugged) this.negotiate();
  }

  /** RSTn: low holds the chip in reset. */
  hold(isHeld) {
    if (isHeld || this.isHeld) this.reset();
    this.isHeld = isHeld;
  }

  /** SCSn: low begins an SPI frame, high ends it. */
  select(isSelected) {
    if (isSelected && !this.isSelected) this.phase = 0;
    this.isSelected = isSelected;
  }

  /** Transfers one byte of SPI each way (2.2). */
  transfer(byte) {
    if (!this.isSelected || this.isHeld) return 0xff;
    this.stats.spiBytes++;
    switch (this.phase) {
      case 0: this.address = byte << 8; this.phase = 1; return 0x01;
      case 1: this.address |= byte; this.phase = 2; return 0x02;
      case 2: {
        this.block = byte >> 3;
        this.isWrite = (byte & 0x04) !== 0;
        // Variable length, or 1, 2, 4 bytes.
        this.left = [Infinity, 1, 2, 4][byte & 0x03];
        this.phase = 3;
        return 0x03;
      }
      default: {
        if (this.left-- <= 0) return 0x00;
        const address = this.address;
        this.address = (address + 1) & 0xffff;
        if (!this.isWrite) return this.read(this.block, address);
        this.write(this.block, address, byte);
        return 0x00;
      }
    }
  }

  read(block, address) {
    if (block === 0) return this.readCommon(address);
    const [socket, kind] = [block >> 2, block & 3];
    if (kind === 1) return this.readSocket(socket, address);
    if (kind === 0) return 0; // reserved
    const [memory, base, size] = this.buffer(socket, kind === 2 ? 'tx' : 'rx');
    return size ? memory[base + (address % size)] : 0;
  }

  write(block, address, value) {
    if (block === 0) return this.writeCommon(address, value);
    const [socket, kind] = [block >> 2, block & 3];
    if (kind === 1) return this.writeSocket(socket, address, value);
    if (kind === 0) return;
    const [memory, base, size] = this.buffer(socket, kind === 2 ? 'tx' : 'rx');
    if (size) memory[base + (address % size)] = value;
  }

  /** Returns a socket's part of the memory, which begins where the previous socket's ends. */
  buffer(socket, direction) {
    const register = direction === 'tx' ? SOCKET.TXBUF_SIZE : SOCKET.RXBUF_SIZE;
    const sizes = this.sockets.map((registers) => {
      const size = registers[register];
      return [0, 1, 2, 4, 8, 16].includes(size) ? size : 0;
    });
    const base = sizes.slice(0, socket).reduce((sum, size) => sum + size, 0);
    const size = Math.min(sizes[socket], Math.max(0, BUFFERS_KIB - base));
    return [this.memory[direction], base * KIB, size * KIB];
  }

  readCommon(address) {
    if (address === COMMON.SIR) return this.socketInterrupts();
    if (address === COMMON.PHYCFGR) return PHY_RESET | this.phySettings | (this.hasLink ? PHY_LINK : 0);
    return this.common[address] ?? 0;
  }

  writeCommon(address, value) {
    if (COMMON_READ_ONLY.includes(address)) return;
    switch (address) {
      case COMMON.MR:
        if (value & MR_RESET) return this.reset();
        this.common[COMMON.MR] = value;
        return;
      case COMMON.IR: this.common[COMMON.IR] &= ~value; break;
      case COMMON.PHYCFGR:
        this.phySettings = value & PHY_SETTINGS;
        if (!(value & PHY_RESET)) this.resetPhy();
        return;
      default: if (address < this.common.length) this.common[address] = value;
    }
    this.updateInterrupt();
  }

  readSocket(socket, address) {
    const word = { [SOCKET.TX_FSR]: 'free', [SOCKET.TX_RD]: 'txRead', [SOCKET.TX_WR]: 'txWrite', [SOCKET.RX_RSR]: 'held', [SOCKET.RX_RD]: 'rxRead', [SOCKET.RX_WR]: 'rxWrite' }[address & ~1];
    if (word === undefined) return this.sockets[socket][address] ?? 0;
    const value = this.word(socket, word);
    return address & 1 ? value & 0xff : value >> 8;
  }

  word(socket, name) {
    const { pointers } = this;
    const isMain = socket === 0;
    if (name === 'free') {
      const [, , size] = this.buffer(socket, 'tx');
      return isMain ? size - ((this.sentUpTo - pointers.txRead) & 0xffff) : size;
    }
    if (name === 'held') return isMain ? this.held : 0;
    return isMain ? pointers[name] : 0;
  }

  /** The received bytes that the driver has not read. */
  get held() {
    return (this.pointers.rxWrite - this.pointers.rxReadInEffect) & 0xffff;
  }

  writeSocket(socket, address, value) {
    const registers = this.sockets[socket];
    const half = (name) => {
      if (socket !== 0) return;
      const { pointers } = this;
      pointers[name] = address & 1 ? (pointers[name] & 0xff00) | value : (pointers[name] & 0xff) | (value << 8);
    };
    if (SOCKET_READ_ONLY.includes(address)) return;
    switch (address) {
      case SOCKET.CR: return this.command(socket, value);
      case SOCKET.IR: registers[SOCKET.IR] &= ~value; break;
      case SOCKET.TX_WR: case SOCKET.TX_WR + 1: return half('txWrite');
      case SOCKET.RX_RD: case SOCKET.RX_RD + 1: return half('rxRead');
      default: if (address < registers.length) registers[address] = value;
    }
    this.updateInterrupt();
  }

  /** Executes a command at once, so that CR reads 0 (4.2). */
  command(socket, command) {
    const registers = this.sockets[socket];
    const isOpen = registers[SOCKET.SR] === STATUS.MACRAW;
    switch (command) {
      case COMMAND.OPEN: {
        // Only socket 0 has MACRAW.
        const canOpen = socket === 0 && (registers[SOCKET.MR] & MODE_MASK) === MODE_MACRAW;
        registers[SOCKET.SR] = canOpen ? STATUS.MACRAW : STATUS.CLOSED;
        this.pointers = { txRead: 0, txWrite: 0, rxRead: 0, rxReadInEffect: 0, rxWrite: 0 };
        this.sentUpTo = 0;
        return;
      }
      case COMMAND.CLOSE: registers[SOCKET.SR] = STATUS.CLOSED; return;
      case COMMAND.SEND: if (isOpen) this.send(); return;
      case COMMAND.RECV: if (isOpen) this.pointers.rxReadInEffect = this.pointers.rxRead; return;
      default: return;
    }
  }

  send() {
    const { pointers, epoch } = this;
    const from = this.sentUpTo;
    const length = (pointers.txWrite - from) & 0xffff;
    const [memory, base, size] = this.buffer(0, 'tx');
    this.sentUpTo = pointers.txWrite;
    const frame = Buffer.alloc(Math.max(length, SHORTEST));
    for (let i = 0; i < length; i++) frame[i] = memory[base + ((from + i) % size)];
    const end = pointers.txWrite;
    this.schedule((frame.length + WIRE.extra) * WIRE.byte, () => {
      if (epoch !== this.epoch) return;
      pointers.txRead = end;
      if (this.hasLink && length <= size) {
        this.stats.sent++;
        this.options.onSend(frame);
      }
      this.sockets[0][SOCKET.IR] |= INTERRUPT.SEND_OK;
      this.updateInterrupt();
    });
  }

  /** A frame arrives on the cable. */
  receive(frame) {
    const registers = this.sockets[0];
    if (this.isHeld || !this.hasLink || registers[SOCKET.SR] !== STATUS.MACRAW) return void this.stats.dropped++;
    if (!this.wants(frame)) return void this.stats.filtered++;
    const [memory, base, size] = this.buffer(0, 'rx');
    const length = frame.length + 2;
    if (size - this.held < length) return void this.stats.dropped++;
    const put = (byte) => {
      memory[base + (this.pointers.rxWrite % size)] = byte;
      this.pointers.rxWrite = (this.pointers.rxWrite + 1) & 0xffff;
    };
    // The length includes itself.
    const said = this.garbled ?? length;
    this.garbled = undefined;
    put(said >> 8);
    put(said & 0xff);
    for (const byte of frame) put(byte);
    this.stats.received++;
    this.stats.mostQueued = Math.max(this.stats.mostQueued, this.held);
    // Only an arrival raises the interrupt: a frame that already waits does not after it was cleared.
    registers[SOCKET.IR] |= INTERRUPT.RECV;
    this.updateInterrupt();
  }

  wants(frame) {
    const mode = this.sockets[0][SOCKET.MR];
    const isBroadcast = frame.subarray(0, 6).every((byte) => byte === 0xff);
    const isMulticast = !isBroadcast && (frame[0] & 1) === 1;
    const isOwn = frame.subarray(0, 6).equals(this.common.subarray(COMMON.SHAR, COMMON.SHAR + 6));
    if (isBroadcast) return !(mode & FILTER.NO_BROADCAST);
    if (frame.readUInt16BE(12) === 0x86dd && mode & FILTER.NO_IPV6) return false;
    if (isMulticast) return !(mode & (FILTER.NO_MULTICAST | FILTER.OWN));
    return isOwn || !(mode & FILTER.OWN);
  }

  /** The board's own address, set by the driver. */
  get ownAddress() {
    return Buffer.from(this.common.subarray(COMMON.SHAR, COMMON.SHAR + 6));
  }

  socketInterrupts() {
    const bits = this.sockets.map((registers, n) => (registers[SOCKET.IR] & registers[SOCKET.IMR] ? 1 << n : 0));
    return bits.reduce((sum, bit) => sum | bit, 0);
  }

  updateInterrupt() {
    const { common } = this;
    const isLow = (this.socketInterrupts() & common[COMMON.SIMR]) !== 0 || (common[COMMON.IR] & common[COMMON.IMR]) !== 0;
    if (isLow === this.isLow || (isLow && this.isWaiting)) return;
    const wasLow = this.isLow;
    this.isLow = isLow;
    this.options.onInterrupt(isLow);
    if (!wasLow || isLow) return;
    // INTn stays high for a while before it is low again (4.1: INTLEVEL).
    const { epoch } = this;
    this.isWaiting = true;
    this.schedule((((common[COMMON.INTLEVEL] << 8) | common[COMMON.INTLEVEL + 1]) + 1) * WAIT_NS, () => {
      if (epoch !== this.epoch) return;
      this.isWaiting = false;
      this.updateInterrupt();
    });
  }
}

/** Connects the chip to an RP2040: its SPI and three of its pins. */
export function wire(mcu, options, pins) {
  const schedule = (nanoseconds, action) => mcu.clock.createAlarm(action).schedule(nanoseconds);
  const onInterrupt = (isLow) => mcu.gpio[pins.interrupt].setInputValue(!isLow);
  const chip = new W5500(schedule, { ...options, onInterrupt });
  onInterrupt(false);
  const spi = mcu.spi[pins.spi];
  let answer = 0xff;
  // Without the time of a word the receive FIFO would overrun, as it never does on the chip.
  const done = mcu.clock.createAlarm(() => spi.completeTransmit(answer));
  spi.onTransmit = (value) => {
    answer = chip.transfer(value & 0xff);
    done.schedule((spi.dataBits * 1e9) / (spi.clockFrequency || 1e6));
  };
  const isLow = (state) => state === GPIOPinState.Low;
  mcu.gpio[pins.select].addListener((state) => chip.select(isLow(state)));
  mcu.gpio[pins.reset].addListener((state) => chip.hold(isLow(state)));
  return chip;
}

/** The wiring of the W5500-EVB-Pico. */
export const W5500_EVB_PICO = { spi: 0, select: 17, reset: 20, interrupt: 21 };
