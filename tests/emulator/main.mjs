// An RP2040 board with a W5500 in this terminal:
//
//     node main.mjs IMAGE.uf2 [--flash FILE] [--seed N] [--forward PORT:PORT | --tap NAME]
//
// What the board says on its serial port comes out, and what is typed goes in; a line that begins
// with `~` is for the emulator: see `COMMANDS` below. With `--json` lines of JSON go out instead, and
// commands come in, one a line. `--flash` keeps what is in flash from one time to the next; `--forward`
// takes callers on a port of this machine to one of the board's; `--tap` puts the board on a TAP
// interface of this machine instead of a network of its own.
import fs from 'node:fs';
import readline from 'node:readline';
import { parseArgs } from 'node:util';
import { LogLevel } from 'rp2040js';
import { Board, keepOver } from './board.mjs';
import { Network } from './network.mjs';
import { Tap } from './tap.mjs';
import { loadUf2 } from './uf2.mjs';
import { W5500_EVB_PICO, wire } from './w5500.mjs';
import { Wire, seeded } from './wire.mjs';

const LED = 25;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'boolean' },
    flash: { type: 'string' },
    seed: { type: 'string', default: '1' },
    forward: { type: 'string', multiple: true, default: [] },
    tap: { type: 'string' },
    debug: { type: 'boolean' },
  },
});
if (positionals.length !== 1 || (options.tap && options.forward.length)) {
  console.error('usage: node main.mjs IMAGE.uf2 [--json] [--flash FILE] [--seed N] [--forward PORT:PORT | --tap NAME] [--debug]');
  process.exit(2);
}

const cable = new Wire(seeded(Number(options.seed)));
const toBoard = (frame) => cable.toBoard(frame);
const network = options.tap ? await Tap.open(options.tap, toBoard) : new Network(toBoard);
for (const ports of options.forward) {
  const [port, guestPort] = ports.split(':').map(Number);
  network.forward(port, guestPort);
}

let board, chip;
let isPlugged = true;
/** Nanoseconds of the board's clock at which its LED changed, since it started. */
let ledChanges = [];
/** So long a time of the LED is looked at: it repeats within each second. */
const LED_WINDOW_NS = 2e9;
const kept = Board.blank();
if (options.flash && fs.existsSync(options.flash)) kept.flash.set(fs.readFileSync(options.flash));
loadUf2(fs.readFileSync(positionals[0]), kept.flash);

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const decoder = new TextDecoder();

/** What the board is subjected to. */
const COMMANDS = {
  /** `type TEXT`: on the serial port, with an end of line. */
  type: (text) => board.type(Buffer.from(`${text}\r`)),
  /** `cable in|out` */
  cable: (how) => {
    isPlugged = how !== 'out';
    chip.plug(isPlugged);
    board.poke();
  },
  /** `hold on|off`: keeps all frames back, the link stays up. */
  hold: (how) => cable.hold(how === 'on'),
  /** `loss 0.02`: of all frames, each way. */
  loss: (share) => void (cable.loss = Number(share)),
  /** `delay 20`: milliseconds, each way. */
  delay: (ms) => void (cable.delayMs = Number(ms)),
  /** `frame 1518`: one of so many bytes for the board, of a protocol that it does not know. */
  frame: (length) => {
    const frame = Buffer.alloc(Number(length));
    chip.ownAddress.copy(frame);
    frame.writeUInt16BE(0x88b5, 12);
    cable.toBoard(frame);
  },
  /** `garble 40000`: the chip says that the next frame has this length. */
  garble: (length) => void (chip.garbled = Number(length)),
  /** `reset`: the button. */
  reset: () => board.stop('button'),
  /** `power`: cut now, and back. */
  power: () => board.stop('power', 'the plug'),
  /** `cut 100`: power is cut when 100 more bytes of flash were erased or programmed, and comes back. */
  cut: (bytes) => board.cutAfter(Number(bytes)),
  /** `stats` */
  stats: () => say({ stats: { ...chip.stats, ...cable.stats, ...network.stats, hostname: network.hostname, led: led(), instructions: board.instructions, milliseconds: board.mcu.clock.nanos / 1e6 } }),
  /** `flash FILE`: writes what is in flash. */
  flash: (file) => fs.writeFileSync(file, board.mcu.flash.subarray(0, kept.flash.length)),
};

/** Whether it is on, and how often it changed lately. */
function led() {
  const now = board.mcu.clock.nanos;
  ledChanges = ledChanges.filter((at) => at > now - LED_WINDOW_NS);
  return { isOn: board.mcu.gpio[LED].outputValue, changes: now > LED_WINDOW_NS ? ledChanges.length : null };
}

/** Has the emulator do something; says so if there is no such thing. */
function command(line) {
  const [name, ...rest] = line.trim().split(' ');
  if (!Object.hasOwn(COMMANDS, name)) return `unknown command ${name}; there are: ${Object.keys(COMMANDS).join(', ')}`;
  COMMANDS[name](rest.join(' '));
}

const lines = readline.createInterface({ input: process.stdin, terminal: false });
if (options.json) {
  lines.on('line', (line) => {
    const error = command(line);
    if (error) say({ error });
  });
} else {
  lines.on('line', (line) => {
    if (!line.startsWith('~')) return COMMANDS.type(line);
    const error = command(line.slice(1));
    if (error) console.error(error);
  });
}
// Whoever started it is gone.
lines.on('close', () => process.exit(0));
process.on('SIGINT', () => process.exit(0));
process.on('exit', () => {
  if (options.flash && board) fs.writeFileSync(options.flash, board.mcu.flash.subarray(0, kept.flash.length));
});

for (;;) {
  board = new Board(kept, { logLevel: options.debug ? LogLevel.Debug : LogLevel.Error });
  chip = wire(board.mcu, { onSend: (frame) => cable.toNetwork(frame) }, W5500_EVB_PICO);
  chip.plug(isPlugged);
  cable.connect((frame) => chip.receive(frame), (frame) => network.receive(frame));
  cable.onActivity = () => board.poke();
  board.plugUsb((bytes) => {
    const text = decoder.decode(bytes, { stream: true });
    if (options.json) say({ serial: text });
    else process.stdout.write(text);
  });
  ledChanges = [];
  board.mcu.gpio[LED].addListener(() => ledChanges.push(board.mcu.clock.nanos));
  board.boot();
  const { what, why } = await board.run();
  if (options.json) say({ stopped: what, why });
  else process.stdout.write(`\n[${what}${why && `: ${why}`}]\n`);
  if (!['reset', 'button', 'power'].includes(what)) process.exit(what === 'bootloader' ? 0 : 1);
  keepOver(kept, { what });
}
