// The network that a board sees, frame by frame, and the cable to it.
import assert from 'node:assert/strict';
import net from 'node:net';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Network, checksum } from '../network.mjs';
import { Wire, seeded } from '../wire.mjs';

const GUEST = { mac: [2, 0, 0, 0, 0, 1], ip: [10, 0, 2, 15] };
const GATEWAY = [10, 0, 2, 2];
const [FIN, SYN, RST, ACK] = [1, 2, 4, 16];

/** A board of a few lines: what it is sent is collected, what it sends is made by hand. */
function guest() {
  const frames = [];
  const waiting = [];
  const network = new Network((frame) => {
    frames.push(frame);
    for (const wake of waiting.splice(0)) wake();
  });
  const next = async (matches = () => true) => {
    const deadline = Date.now() + 5000;
    for (;;) {
      const index = frames.findIndex(matches);
      if (index >= 0) return frames.splice(index, 1)[0];
      assert.ok(Date.now() < deadline, 'no such frame');
      await Promise.race([new Promise((wake) => waiting.push(wake)), sleep(50)]);
    }
  };
  const ip = (protocol, payload, to = GATEWAY) => {
    const header = Buffer.from([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, ...GUEST.ip, ...to]);
    header.writeUInt16BE(20 + payload.length, 2);
    header.writeUInt16BE(checksum(header), 10);
    network.receive(Buffer.concat([Buffer.from([0x52, 0x55, 10, 0, 2, 2, ...GUEST.mac, 0x08, 0x00]), header, payload]));
  };
  const pseudo = (protocol, segment) => Buffer.concat([Buffer.from([...GUEST.ip, ...GATEWAY, 0, protocol, segment.length >> 8, segment.length & 255]), segment]);
  const udp = (from, to, data) => {
    const segment = Buffer.concat([Buffer.alloc(8), data]);
    segment.writeUInt16BE(from, 0);
    segment.writeUInt16BE(to, 2);
    segment.writeUInt16BE(segment.length, 4);
    ip(17, segment);
  };
  const tcp = (port, { flags, seq = 0, ack = 0, data = Buffer.alloc(0), window = 4096, from = 5000 }) => {
    const segment = Buffer.concat([Buffer.alloc(20), data]);
    segment.writeUInt16BE(from, 0);
    segment.writeUInt16BE(port, 2);
    segment.writeUInt32BE(seq >>> 0, 4);
    segment.writeUInt32BE(ack >>> 0, 8);
    segment[12] = 0x50;
    segment[13] = flags;
    segment.writeUInt16BE(window, 14);
    segment.writeUInt16BE(checksum(pseudo(6, segment)), 16);
    ip(6, segment);
  };
  /** The next TCP segment. Its checksums must be right. */
  const segment = async () => {
    const frame = await next((f) => f.readUInt16BE(12) === 0x0800 && f[23] === 6);
    const packet = frame.subarray(14, 14 + frame.readUInt16BE(16));
    assert.equal(checksum(packet.subarray(0, 20)), 0);
    const s = packet.subarray(20);
    assert.equal(checksum(Buffer.concat([Buffer.from([...GATEWAY, ...GUEST.ip, 0, 6, s.length >> 8, s.length & 255]), s])), 0);
    return { flags: s[13], seq: s.readUInt32BE(4), ack: s.readUInt32BE(8), window: s.readUInt16BE(14), data: s.subarray((s[12] >> 4) * 4) };
  };
  return { network, frames, next, ip, udp, tcp, segment };
}

async function listen(handler) {
  // The tests close connections in any way.
  const server = net.createServer((socket) => handler(socket.on('error', () => {})));
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { server, port: server.address().port };
}

async function open(g, port, seq = 1000) {
  g.tcp(port, { flags: SYN, seq });
  const answer = await g.segment();
  assert.equal(answer.flags, SYN | ACK);
  assert.equal(answer.ack, seq + 1);
  g.tcp(port, { flags: ACK, seq: seq + 1, ack: answer.seq + 1 });
  return { seq: seq + 1, ack: answer.seq + 1 };
}

test('ARP: every address but that of the board belongs to the gateway', async () => {
  const g = guest();
  const ask = (target, sender = GUEST.ip) => g.network.receive(Buffer.from([
    255, 255, 255, 255, 255, 255, ...GUEST.mac, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, ...GUEST.mac, ...sender, 0, 0, 0, 0, 0, 0, ...target,
  ]));
  ask(GUEST.ip);
  ask(GATEWAY, [0, 0, 0, 0]);
  assert.equal(g.frames.length, 0, 'a probe finds nobody');
  ask(GATEWAY);
  const reply = await g.next();
  assert.deepEqual([...reply.subarray(0, 6)], GUEST.mac);
  assert.deepEqual([...reply.subarray(28, 32)], GATEWAY);
  assert.equal(reply.length, 60);
});

test('DHCP: an offer, then an acknowledgement', async () => {
  const g = guest();
  for (const [type, answer] of [[1, 2], [3, 5]]) {
    const request = Buffer.alloc(240);
    request.set([1, 1, 6, 0, 1, 2, 3, 4]);
    request.set(GUEST.mac, 28);
    request.writeUInt32BE(0x63825363, 236);
    g.udp(68, 67, Buffer.concat([request, Buffer.from([53, 1, type, 12, 4, 0x70, 0x69, 0x63, 0x6f, 255])]));
    const reply = (await g.next()).subarray(42);
    assert.deepEqual([...reply.subarray(4, 8)], [1, 2, 3, 4], 'its number');
    assert.deepEqual([...reply.subarray(16, 20)], GUEST.ip);
    assert.deepEqual([...reply.subarray(240, 243)], [53, 1, answer]);
    assert.equal(g.network.hostname, 'pico');
  }
});

test('DNS: names of this machine, and names that do not exist', async () => {
  const g = guest();
  const query = (name, type = 1) => Buffer.from([0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, ...name.split('.').flatMap((label) => [label.length, ...Buffer.from(label)]), 0, 0, type, 0, 1]);
  const ask = async (name, type) => {
    g.udp(3000, 53, query(name, type));
    return (await g.next()).subarray(42);
  };
  const found = await ask('host.test');
  assert.deepEqual([...found.subarray(0, 4)], [0xab, 0xcd, 0x81, 0x80]);
  assert.deepEqual([...found.subarray(-4)], GATEWAY);
  assert.deepEqual([...(await ask('localhost')).subarray(-4)], [127, 0, 0, 1]);
  assert.equal((await ask('nobody.invalid'))[3] & 15, 3);
  assert.equal((await ask('host.test', 28)).readUInt16BE(6), 0, 'no IPv6');
});

test('ping', async () => {
  const g = guest();
  const request = Buffer.from([8, 0, 0, 0, 1, 2, 3, 4, 5, 6]);
  request.writeUInt16BE(checksum(request), 2);
  g.ip(1, request);
  const reply = (await g.next()).subarray(34, 44);
  assert.equal(reply[0], 0);
  assert.equal(checksum(reply), 0);
  assert.deepEqual([...reply.subarray(4)], [1, 2, 3, 4, 5, 6]);
});

test('TCP: bytes go both ways, and both ends can close', async () => {
  const { server, port } = await listen((socket) => socket.on('data', (data) => socket.write(data)).on('end', () => socket.end()));
  const g = guest();
  const c = await open(g, port);
  g.tcp(port, { flags: ACK, ...c, data: Buffer.from('hello') });
  assert.equal((await g.segment()).ack, c.seq + 5);
  const echo = await g.segment();
  assert.equal(echo.data.toString(), 'hello');
  g.tcp(port, { flags: ACK | FIN, seq: c.seq + 5, ack: echo.seq + 5 });
  assert.equal((await g.segment()).ack, c.seq + 6);
  const fin = await g.segment();
  assert.equal(fin.flags & FIN, FIN);
  g.tcp(port, { flags: ACK, seq: c.seq + 6, ack: fin.seq + 1 });
  await sleep(20);
  assert.equal(g.network.tcp.size, 0);
  server.close();
});

test('TCP: a closed port is refused', async () => {
  const { server, port } = await listen(() => {});
  await new Promise((resolve) => server.close(resolve));
  const g = guest();
  g.tcp(port, { flags: SYN, seq: 7 });
  const answer = await g.segment();
  assert.equal(answer.flags, RST | ACK);
  assert.equal(answer.ack, 8);
});

test('TCP: unacknowledged segments are sent again, duplicates count once', async () => {
  const received = [];
  const { server, port } = await listen((socket) => socket.on('data', (data) => received.push(data.toString())).write('greeting'));
  const g = guest();
  const c = await open(g, port);
  const first = await g.segment();
  const again = await g.segment();
  assert.deepEqual([first.data.toString(), first.seq], [again.data.toString(), again.seq]);
  assert.ok(g.network.stats.retransmitted >= 1);
  for (const data of ['ab', 'ab', 'abcd']) g.tcp(port, { flags: ACK, seq: c.seq, ack: first.seq + 8, data: Buffer.from(data) });
  g.tcp(port, { flags: ACK, seq: c.seq + 9, ack: first.seq + 8, data: Buffer.from('late') });
  await sleep(50);
  assert.equal(received.join(''), 'abcd', 'and what came out of order is not taken');
  server.close();
  g.network.close();
});

test('TCP: the board\'s window is respected', async () => {
  const { server, port } = await listen((socket) => socket.write(Buffer.alloc(5000, 1)));
  const g = guest();
  g.tcp(port, { flags: SYN, seq: 1, window: 1000 });
  const answer = await g.segment();
  g.tcp(port, { flags: ACK, seq: 2, ack: answer.seq + 1, window: 1000 });
  await sleep(100);
  let got = 0;
  while (g.frames.length) got += (await g.segment()).data.length;
  assert.equal(got, 1000);
  server.close();
  g.network.close();
});

test('TCP: a restarted board gets a new connection on its old port', async () => {
  const closed = [];
  const { server, port } = await listen((socket) => socket.on('close', () => closed.push(1)));
  const g = guest();
  await open(g, port, 1000);
  await open(g, port, 777_000);
  await sleep(50);
  assert.equal(closed.length, 1);
  assert.equal(g.network.tcp.size, 1);
  server.close();
  g.network.close();
});

test('damaged packets are dropped', () => {
  const g = guest();
  g.tcp(80, { flags: SYN });
  const before = g.network.stats.bad;
  const frame = Buffer.alloc(60);
  frame.writeUInt16BE(0x0800, 12);
  frame[14] = 0x45;
  for (const bad of [Buffer.alloc(10), frame]) g.network.receive(bad);
  assert.equal(g.network.stats.bad, before + 2);
  g.network.close();
});

test('the cable loses, delays and holds back', async () => {
  const wire = new Wire(seeded(1));
  const arrived = [];
  wire.connect((frame) => arrived.push(frame), () => {});
  wire.loss = 0.1;
  for (let n = 0; n < 2000; n++) wire.toBoard(n);
  assert.ok(wire.stats.lost > 140 && wire.stats.lost < 260, `${wire.stats.lost} of 2000`);
  assert.equal(arrived.length, 2000 - wire.stats.lost);
  wire.loss = 0;
  wire.hold(true);
  wire.toBoard('held');
  assert.notEqual(arrived.at(-1), 'held');
  wire.hold(false);
  assert.equal(arrived.at(-1), 'held');
  wire.delayMs = 30;
  wire.toBoard('late');
  assert.equal(arrived.at(-1), 'held');
  await sleep(60);
  assert.equal(arrived.at(-1), 'late');
});
