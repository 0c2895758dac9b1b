// A TAP interface of this machine as the board's network. Node.js cannot open one: a short Python
// program does.
import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export class Tap {
  /** `send(frame)` receives frames for the board. Resolves when the interface is open. */
  static async open(name, send) {
    const helper = spawn('python3', [fileURLToPath(new URL('tap.py', import.meta.url)), name], { stdio: ['pipe', 'pipe', 'inherit'] });
    const tap = new Tap(helper.stdin, send);
    await new Promise((resolve, reject) => {
      helper.on('error', reject);
      helper.on('exit', () => reject(new Error(`no TAP interface ${name}`)));
      helper.stdout.on('data', (data) => {
        if (tap.take(data)) resolve();
      });
    });
    return tap;
  }

  constructor(output, send) {
    this.output = output;
    this.send = send;
    this.pending = Buffer.alloc(0);
    this.stats = {};
  }

  /** Handles bytes of the helper. Returns true after an empty frame: the interface is open. */
  take(data) {
    this.pending = Buffer.concat([this.pending, data]);
    let isThere = false;
    while (this.pending.length >= 4) {
      const end = 4 + this.pending.readUInt32BE(0);
      if (this.pending.length < end) break;
      const frame = Buffer.from(this.pending.subarray(4, end));
      this.pending = this.pending.subarray(end);
      if (!frame.length) isThere = true;
      // Frames have no checksum here; on a cable the shortest has 60 bytes.
      else this.send(frame.length < 60 ? Buffer.concat([frame, Buffer.alloc(60 - frame.length)]) : frame);
    }
    return isThere;
  }

  /** Sends a frame of the board. */
  receive(frame) {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(frame.length);
    this.output.write(Buffer.concat([length, frame]));
  }
}
