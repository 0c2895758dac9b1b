// Frames to and from the helper that opens a TAP interface.
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { Tap } from '../tap.mjs';

test('frames are complete, however their bytes arrive', () => {
  const frames = [];
  const tap = new Tap(new PassThrough(), (frame) => frames.push(frame));
  const one = Buffer.concat([Buffer.from([0, 0, 0, 70]), Buffer.alloc(70, 1)]);
  const short = Buffer.concat([Buffer.from([0, 0, 0, 42]), Buffer.alloc(42, 2)]);
  const bytes = Buffer.concat([Buffer.alloc(4), one, short, one]);
  let there = 0;
  for (let at = 0; at < bytes.length; at += 9) there += tap.take(bytes.subarray(at, at + 9));
  assert.equal(there, 1, 'the helper says once that it is there');
  assert.deepEqual(frames.map((frame) => [frame.length, frame[0]]), [[70, 1], [60, 2], [70, 1]]);
  assert.deepEqual(frames[1].subarray(42), Buffer.alloc(18), 'padded as on a cable');
});

test('frames are sent behind their length', () => {
  const output = new PassThrough();
  new Tap(output, () => {}).receive(Buffer.alloc(60, 7));
  assert.deepEqual(output.read(), Buffer.concat([Buffer.from([0, 0, 0, 60]), Buffer.alloc(60, 7)]));
});

test('an interface that cannot be opened is an error', async () => {
  await assert.rejects(Tap.open('a-name-that-is-longer-than-any', () => {}), /no TAP interface/);
});
