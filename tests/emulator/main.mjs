// An RP2040 board with a W5500 in this terminal:
//
//     node main.mjs IMAGE.uf2 [--flash FILE] [--seed N] [--forward PORT:PORT | --tap NAME]
//
// The board's serial output is printed, and typed lines are sent to it; a line that begins with `~`
// is for the emulator: see `COMMANDS` below. With `--json` the output is lines of JSON, and the
// input is commands, one per line. `--flash` keeps the flash in a file between runs; `--forward`
// forwards a port of this machine to one of the board's; `--tap` puts the board on a TAP interface of
// this machine instead of a network of its own.
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
/** The times at which the LED changed, in nanoseconds of the board's clock since its start. */
let ledChanges = [];
/** How long the LED is observed: its pattern repeats within each second. */
const LED_WINDOW_NS = 2e9;
const kept = Board.blank();
if (options.flash && fs.existsSync(options.flash)) kept.flash.set(fs.readFileSync(options.flash));
loadUf2(fs.readFileSync(positionals[0]), kept.flash);

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const decoder = new TextDecoder();

/** The emulator's commands. */
const COMMANDS = {
  /** `type TEXT`: types on the serial port, with an end of line. */
  type: (text) => board.type(Buffer.from(`${text}\r`)),
  /** `cable in|out` */
  cable: (how) => {
    isPlugged = how !== 'out';
    chip.plug(isPlugged);
    board.poke();
  },
  /** `hold on|off`: holds all frames back; the link stays up. */
  hold: (how) => cable.hold(how === 'on'),
  /** `loss 0.02`: the share of frames that are lost, each way. */
  loss: (share) => void (cable.loss = Number(share)),
  /** `delay 20`: milliseconds, each way. */
  delay: (ms) => void (cable.delayMs = Number(ms)),
  /** `frame 1518`: sends the board a frame of this length, of a protocol that it does not know. */
  frame: (length) => {
    const frame = Buffer.alloc(Number(length));
    chip.ownAddress.copy(frame);
    frame.writeUInt16BE(0x88b5, 12);
    cable.toBoard(frame);
  },
  /** `garble 40000`: the chip reports this length for the next frame. */
  garble: (length) => void (chip.garbled = Number(length)),
  /** `reset`: presses the button. */
  reset: () => board.stop('button'),
  /** `power`: cuts the power and restores it. */
  power: () => board.stop('power', 'the plug'),
  /** `cut 100`: cuts the power after 100 more bytes of flash were erased or programmed, and restores it. */
  cut: (bytes) => board.cutAfter(Number(bytes)),
  /** `stats` */
  stats: () => say({ stats: { ...chip.stats, ...cable.stats, ...network.stats, hostname: network.hostname, led: led(), instructions: board.instructions, milliseconds: board.mcu.clock.nanos / 1e6 } }),
  /** `flash FILE`: writes the flash to a file. */
  flash: (file) => fs.writeFileSync(file, board.mcu.flash.subarray(0, kept.flash.length)),
};

/** Returns whether the LED is on, and how often it changed lately. */
function led() {
  const now = board.mcu.clock.nanos;
  ledChanges = ledChanges.filter((at) => at > now - LED_WINDOW_NS);
  return { isOn: board.mcu.gpio[LED].outputValue, changes: now > LED_WINDOW_NS ? ledChanges.length : null };
}

/** Runs a command; returns an error message if there is no such command. */
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
// The parent process is gone.
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
