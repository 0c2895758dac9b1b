// The cable between the board and its network, and its faults.

export class Wire {
  /** `random()` returns numbers from 0 to 1. */
  constructor(random = Math.random) {
    this.random = random;
    this.loss = 0;
    this.delayMs = 0;
    this.isHeld = false;
    this.stats = { out: 0, in: 0, lost: 0 };
    this.waiting = [];
    this.onActivity = () => {};
  }

  /** `board(frame)` and `network(frame)` receive the frames at the two ends. */
  connect(board, network) {
    this.ends = { board, network };
  }

  toNetwork(frame) {
    this.stats.out++;
    this.carry(() => this.ends.network(frame));
  }

  toBoard(frame) {
    this.stats.in++;
    this.carry(() => {
      this.ends.board(frame);
      this.onActivity();
    });
  }

  /** Holds all frames back, as a switch that hangs: the link stays up. */
  hold(isHeld) {
    this.isHeld = isHeld;
    if (!isHeld) for (const arrive of this.waiting.splice(0)) arrive();
  }

  carry(arrive) {
    if (this.loss > 0 && this.random() < this.loss) return void this.stats.lost++;
    if (this.isHeld) this.waiting.push(arrive);
    else if (this.delayMs > 0) setTimeout(arrive, this.delayMs);
    else arrive();
  }
}

/** A generator of numbers from 0 to 1, the same for the same seed (xorshift). */
export function seeded(seed) {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}
