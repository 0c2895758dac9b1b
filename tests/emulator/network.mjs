// A network for one board in plain Node, without privileges: answers ARP, DHCP, ping and DNS, and
// connects the board's TCP connections to sockets of this machine. The board sees 127.0.0.1 as
// 10.0.2.2.
import dgram from 'node:dgram';
import dns from 'node:dns';
import net from 'node:net';

const MAC = Buffer.from([0x52, 0x55, 10, 0, 2, 2]);
const BROADCAST = Buffer.alloc(6, 0xff);
const TYPE = { IPV4: 0x0800, ARP: 0x0806 };
const PROTOCOL = { ICMP: 1, TCP: 6, UDP: 17 };
const FLAG = { FIN: 1, SYN: 2, RST: 4, PSH: 8, ACK: 16 };
const DHCP = { MAGIC: 0x63825363, TYPE: 53, SERVER: 54, LEASE: 51, MASK: 1, ROUTER: 3, DNS: 6, HOSTNAME: 12, END: 255 };
const DHCP_TYPE = { DISCOVER: 1, OFFER: 2, REQUEST: 3, ACK: 5 };
const LEASE_S = 86_400;
const MSS = 1460;
const OUR_WINDOW = 32_768;
/** More bytes than this from the host wait in the host's socket. */
const QUEUE_MAX = 256 * 1024;
const RETRANSMIT_MS = 300;
const RETRANSMIT_TRIES = 12;

const sum = (bytes, start = 0) => {
  let all = start;
  for (let i = 0; i < bytes.length; i += 2) all += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
  return all;
};
/** The Internet checksum (RFC 1071). */
export const checksum = (bytes, start = 0) => {
  let all = sum(bytes, start);
  while (all >>> 16) all = (all & 0xffff) + (all >>> 16);
  return ~all & 0xffff;
};
const text = (address) => [...address].join('.');
const bytes = (address) => Buffer.from(address.split('.').map(Number));
const word = (value) => Buffer.from([(value >>> 24) & 255, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]);
/** Sequence numbers wrap. */
const before = (a, b) => ((a - b) | 0) < 0;
const upTo = (a, b) => ((a - b) | 0) <= 0;

export class Network {
  /** `send(frame)` receives frames for the board. */
  constructor(send, { gateway = '10.0.2.2', guest = '10.0.2.15', host = '127.0.0.1' } = {}) {
    this.send = send;
    this.gateway = bytes(gateway);
    this.guest = bytes(guest);
    this.host = host;
    this.tcp = new Map();
    this.udp = new Map();
    this.packet = 1;
    this.guestMac = BROADCAST;
    this.port = 40_000;
    this.hostname = undefined;
    this.stats = { connections: 0, retransmitted: 0, bad: 0 };
  }

  /** Returns the address on this machine for one that the board uses. */
  resolve(address) {
    return address === text(this.gateway) ? this.host : address;
  }

  /** Handles a frame of the board. */
  receive(frame) {
    if (frame.length < 34) return void this.stats.bad++;
    const type = frame.readUInt16BE(12);
    if (type === TYPE.ARP) return this.arp(frame);
    if (type !== TYPE.IPV4) return;
    const packet = frame.subarray(14);
    const [header, length] = [(packet[0] & 15) * 4, packet.readUInt16BE(2)];
    if (packet[0] >> 4 !== 4 || header < 20 || length > packet.length || checksum(packet.subarray(0, header)) !== 0) {
      return void this.stats.bad++;
    }
    this.guestMac = Buffer.from(frame.subarray(6, 12));
    const [source, destination] = [Buffer.from(packet.subarray(12, 16)), Buffer.from(packet.subarray(16, 20))];
    const payload = packet.subarray(header, length);
    if (packet[9] === PROTOCOL.TCP) this.receiveTcp(source, destination, payload);
    else if (packet[9] === PROTOCOL.UDP) this.receiveUdp(source, destination, payload);
    else if (packet[9] === PROTOCOL.ICMP) this.receiveIcmp(source, destination, payload);
  }

  frame(type, body, to = this.guestMac) {
    const frame = Buffer.concat([to, MAC, Buffer.from([type >> 8, type & 255]), body]);
    this.send(frame.length < 60 ? Buffer.concat([frame, Buffer.alloc(60 - frame.length)]) : frame);
  }

  ip(protocol, source, destination, payload, to) {
    const header = Buffer.alloc(20);
    header[0] = 0x45;
    header.writeUInt16BE(20 + payload.length, 2);
    header.writeUInt16BE(this.packet++ & 0xffff, 4);
    header[6] = 0x40;
    header[8] = 64;
    header[9] = protocol;
    source.copy(header, 12);
    destination.copy(header, 16);
    header.writeUInt16BE(checksum(header), 10);
    this.frame(TYPE.IPV4, Buffer.concat([header, payload]), to);
  }

  /** Returns the checksum of a segment with its pseudo-header. */
  transportSum(protocol, source, destination, segment) {
    const pseudo = Buffer.concat([source, destination, Buffer.from([0, protocol, segment.length >> 8, segment.length & 255])]);
    return checksum(segment, sum(pseudo));
  }

  arp(frame) {
    const request = frame.subarray(14);
    if (request.readUInt16BE(6) !== 1) return;
    const [sender, target] = [request.subarray(14, 18), request.subarray(24, 28)];
    this.guestMac = Buffer.from(frame.subarray(6, 12));
    // A query for the board's own address only checks that no other host has it.
    if (target.equals(sender) || target.equals(this.guest) || text(sender) === '0.0.0.0') return;
    const reply = Buffer.alloc(28);
    reply.set([0, 1, 8, 0, 6, 4, 0, 2]);
    MAC.copy(reply, 8);
    target.copy(reply, 14);
    request.copy(reply, 18, 8, 18);
    this.frame(TYPE.ARP, reply);
  }

  receiveIcmp(source, destination, request) {
    if (request[0] !== 8) return;
    const reply = Buffer.from(request);
    reply[0] = 0;
    reply.writeUInt16BE(0, 2);
    reply.writeUInt16BE(checksum(reply), 2);
    this.ip(PROTOCOL.ICMP, destination, source, reply);
  }

  sendUdp(source, sourcePort, destination, destinationPort, data, to) {
    const segment = Buffer.alloc(8 + data.length);
    segment.writeUInt16BE(sourcePort, 0);
    segment.writeUInt16BE(destinationPort, 2);
    segment.writeUInt16BE(segment.length, 4);
    data.copy(segment, 8);
    const is = this.transportSum(PROTOCOL.UDP, source, destination, segment);
    segment.writeUInt16BE(is || 0xffff, 6);
    this.ip(PROTOCOL.UDP, source, destination, segment, to);
  }

  receiveUdp(source, destination, segment) {
    const [from, to, length] = [segment.readUInt16BE(0), segment.readUInt16BE(2), segment.readUInt16BE(4)];
    if (length < 8 || length > segment.length) return void this.stats.bad++;
    const data = Buffer.from(segment.subarray(8, length));
    if (to === 67) return this.dhcp(data);
    if (to === 53 && destination.equals(this.gateway)) return this.dns(source, from, data);
    const key = `${from}>${text(destination)}:${to}`;
    let socket = this.udp.get(key);
    if (!socket) {
      socket = dgram.createSocket('udp4');
      this.udp.set(key, socket);
      socket.unref();
      socket.on('message', (message) => this.sendUdp(destination, to, source, from, message));
      socket.on('error', () => {});
    }
    socket.send(data, to, this.resolve(text(destination)));
  }

  dhcp(request) {
    if (request.length < 240 || request[0] !== 1 || request.readUInt32BE(236) !== DHCP.MAGIC) return;
    const options = new Map();
    for (let at = 240; at < request.length && request[at] !== DHCP.END; ) {
      if (request[at] === 0) at++;
      else {
        options.set(request[at], request.subarray(at + 2, at + 2 + request[at + 1]));
        at += 2 + request[at + 1];
      }
    }
    const type = options.get(DHCP.TYPE)?.[0];
    if (type !== DHCP_TYPE.DISCOVER && type !== DHCP_TYPE.REQUEST) return;
    this.hostname = options.get(DHCP.HOSTNAME)?.toString();
    const reply = Buffer.alloc(240);
    reply.set([2, 1, 6]);
    request.copy(reply, 4, 4, 8);
    this.guest.copy(reply, 16);
    this.gateway.copy(reply, 20);
    request.copy(reply, 28, 28, 44);
    reply.writeUInt32BE(DHCP.MAGIC, 236);
    const option = (code, ...value) => [code, value.length, ...value];
    const answer = type === DHCP_TYPE.DISCOVER ? DHCP_TYPE.OFFER : DHCP_TYPE.ACK;
    const all = [
      option(DHCP.TYPE, answer), option(DHCP.SERVER, ...this.gateway), option(DHCP.LEASE, ...word(LEASE_S)),
      option(DHCP.MASK, 255, 255, 255, 0), option(DHCP.ROUTER, ...this.gateway), option(DHCP.DNS, ...this.gateway), [DHCP.END],
    ];
    request.copy((this.guestMac = Buffer.alloc(6)), 0, 28, 34);
    this.sendUdp(this.gateway, 67, Buffer.from(BROADCAST.subarray(0, 4)), 68, Buffer.concat([reply, Buffer.from(all.flat())]), BROADCAST);
  }

  /** Answers one query for an IPv4 address with this machine's result. `host.test` is this machine. */
  dns(source, port, query) {
    const labels = [];
    let at = 12;
    while (at < query.length && query[at]) {
      labels.push(query.subarray(at + 1, at + 1 + query[at]).toString('latin1'));
      at += 1 + query[at];
    }
    if (query.length < 17 || at + 5 > query.length || query.readUInt16BE(4) !== 1) return;
    const name = labels.join('.').toLowerCase();
    const question = query.subarray(12, at + 5);
    const isAddress = query.readUInt16BE(at + 1) === 1;
    const answer = (code, addresses) => {
      const head = Buffer.alloc(12);
      query.copy(head, 0, 0, 2);
      head.writeUInt16BE(0x8180 | code, 2);
      head.writeUInt16BE(1, 4);
      head.writeUInt16BE(addresses.length, 6);
      const records = addresses.map((address) => Buffer.concat([Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]), bytes(address)]));
      this.sendUdp(this.gateway, 53, source, port, Buffer.concat([head, question, ...records]));
    };
    if (!isAddress) return answer(0, []);
    if (name === 'host.test') return answer(0, [text(this.gateway)]);
    if (name.endsWith('.invalid') || name.endsWith('.test')) return answer(3, []);
    dns.lookup(name, { family: 4 }, (error, address) => (error ? answer(3, []) : answer(0, [address])));
  }

  // TCP: a small endpoint for each of the board's connections.

  segment(c, flags, sequence, data = Buffer.alloc(0)) {
    const options = flags & FLAG.SYN ? Buffer.from([2, 4, MSS >> 8, MSS & 255]) : Buffer.alloc(0);
    const header = Buffer.alloc(20);
    header.writeUInt16BE(c.remotePort, 0);
    header.writeUInt16BE(c.guestPort, 2);
    header.writeUInt32BE(sequence >>> 0, 4);
    header.writeUInt32BE(flags & FLAG.ACK ? c.received >>> 0 : 0, 8);
    header[12] = ((20 + options.length) / 4) << 4;
    header[13] = flags;
    // If the host's program does not read, we do not either.
    header.writeUInt16BE(c.socket?.writableLength > 2 * OUR_WINDOW ? 0 : OUR_WINDOW, 14);
    const segment = Buffer.concat([header, options, data]);
    segment.writeUInt16BE(this.transportSum(PROTOCOL.TCP, c.remote, c.guest, segment), 16);
    this.ip(PROTOCOL.TCP, c.remote, c.guest, segment);
  }

  connection(guest, guestPort, remote, remotePort) {
    const start = (Math.random() * 2 ** 32) | 0;
    const c = {
      key: `${guestPort}:${text(remote)}:${remotePort}`, guest, guestPort, remote, remotePort,
      acked: start, next: start, received: 0, window: 0, mss: 536, queue: [], queued: 0, tries: 0,
      isOpen: false, isActive: false, wantsFin: false, finSent: false, finAcked: false, finReceived: false, isGone: false,
    };
    this.tcp.set(c.key, c);
    this.stats.connections++;
    return c;
  }

  splice(c, socket) {
    c.socket = socket;
    socket.setNoDelay(true);
    socket.on('data', (data) => {
      c.queue.push(data);
      c.queued += data.length;
      if (c.queued > QUEUE_MAX) socket.pause();
      this.pump(c);
    });
    socket.on('end', () => {
      c.wantsFin = true;
      this.pump(c);
    });
    socket.on('drain', () => c.isOpen && !c.isGone && this.segment(c, FLAG.ACK, c.next));
    const reset = () => {
      if (c.isGone) return;
      this.segment(c, FLAG.RST | FLAG.ACK, c.next);
      this.drop(c);
    };
    socket.on('error', reset);
    socket.on('close', () => !c.wantsFin && reset());
  }

  drop(c) {
    c.isGone = true;
    clearTimeout(c.timer);
    if (this.tcp.get(c.key) === c) this.tcp.delete(c.key);
    c.socket?.destroy();
  }

  /** The other side reset the connection. */
  abandon(c) {
    c.isGone = true;
    clearTimeout(c.timer);
    if (this.tcp.get(c.key) === c) this.tcp.delete(c.key);
    c.socket?.resetAndDestroy();
  }

  pending(c) {
    if (c.queue.length > 1) c.queue = [Buffer.concat(c.queue)];
    return c.queue[0] ?? Buffer.alloc(0);
  }

  /** Sends as much as the window allows. */
  pump(c) {
    if (!c.isOpen || c.isGone) return;
    const all = this.pending(c);
    for (;;) {
      const sent = (c.next - c.acked) | 0;
      const length = Math.min(c.mss, c.queued - sent, c.window - sent);
      if (length <= 0) break;
      const from = c.next;
      c.next = (c.next + length) | 0;
      const last = sent + length === c.queued ? FLAG.PSH : 0;
      this.segment(c, FLAG.ACK | last, from, all.subarray(sent, sent + length));
    }
    if (c.wantsFin && !c.finSent && ((c.next - c.acked) | 0) === c.queued) {
      c.finSent = true;
      this.segment(c, FLAG.FIN | FLAG.ACK, c.next);
      c.next = (c.next + 1) | 0;
    }
    this.arm(c);
  }

  /** Schedules a retransmission from the first unacknowledged byte, if there is one. */
  arm(c) {
    clearTimeout(c.timer);
    const isWaiting = c.acked !== c.next || (c.queued > 0 && c.window === 0);
    if (c.isGone || !isWaiting) return;
    const patience = RETRANSMIT_MS * Math.min(8, 2 ** c.tries);
    c.timer = setTimeout(() => {
      this.stats.retransmitted++;
      if (++c.tries > RETRANSMIT_TRIES) {
        this.segment(c, FLAG.RST | FLAG.ACK, c.next);
        return this.drop(c);
      }
      if (!c.isOpen) {
        this.segment(c, c.isActive ? FLAG.SYN : FLAG.SYN | FLAG.ACK, c.acked);
        return this.arm(c);
      }
      c.next = c.acked;
      c.finSent = false;
      if (c.window === 0 && c.queued > 0) {
        this.segment(c, FLAG.ACK, c.acked, this.pending(c).subarray(0, 1));
        return this.arm(c);
      }
      this.pump(c);
    }, patience);
  }

  receiveTcp(guest, remote, segment) {
    if (segment.length < 20 || this.transportSum(PROTOCOL.TCP, guest, remote, segment) !== 0) return void this.stats.bad++;
    const [guestPort, remotePort] = [segment.readUInt16BE(0), segment.readUInt16BE(2)];
    const [sequence, acked, window] = [segment.readInt32BE(4), segment.readInt32BE(8), segment.readUInt16BE(14)];
    const [header, flags] = [(segment[12] >> 4) * 4, segment[13]];
    const data = segment.subarray(header);
    let c = this.tcp.get(`${guestPort}:${text(remote)}:${remotePort}`);
    if (flags & FLAG.SYN && !(flags & FLAG.ACK)) {
      const isAgain = c && ((sequence + 1) | 0) === c.received;
      if (isAgain) {
        if (!c.isOpen && !c.isConnecting) this.segment(c, FLAG.SYN | FLAG.ACK, c.acked);
        return;
      }
      // A board that restarted does not know its old connection.
      if (c) this.abandon(c);
      c = this.connection(guest, guestPort, remote, remotePort);
      c.received = (sequence + 1) | 0;
      c.window = window;
      c.isConnecting = true;
      this.readOptions(c, segment, header);
      const socket = net.connect({ host: this.resolve(text(remote)), port: remotePort });
      socket.once('connect', () => {
        c.isConnecting = false;
        this.segment(c, FLAG.SYN | FLAG.ACK, c.acked);
        c.next = (c.acked + 1) | 0;
        this.arm(c);
      });
      // A refused connection is answered with RST.
      return this.splice(c, socket);
    }
    if (!c) {
      if (flags & FLAG.RST) return;
      const length = data.length + (flags & FLAG.FIN ? 1 : 0);
      const unknown = { guestPort, remotePort, guest, remote, received: (sequence + length) | 0 };
      return this.segment(unknown, FLAG.RST | FLAG.ACK, flags & FLAG.ACK ? acked : 0);
    }
    if (flags & FLAG.RST) return this.abandon(c);
    if (c.isActive && !c.isOpen) {
      if ((flags & (FLAG.SYN | FLAG.ACK)) !== (FLAG.SYN | FLAG.ACK)) return;
      c.received = (sequence + 1) | 0;
      this.readOptions(c, segment, header);
    }
    if (flags & FLAG.ACK && !this.receiveAck(c, acked, window)) return;
    const isNew = data.length > 0 || (flags & FLAG.FIN) !== 0;
    if (isNew) this.receiveData(c, sequence, data, flags);
    const next = c.next;
    this.pump(c);
    if (isNew && c.next === next && !c.isGone) this.segment(c, FLAG.ACK, c.next);
    if (c.finReceived && c.finAcked) this.drop(c);
  }

  readOptions(c, segment, header) {
    for (let at = 20; at < header && segment[at] !== 0; ) {
      if (segment[at] === 1) at++;
      else {
        if (segment[at] === 2) c.mss = Math.min(MSS, segment.readUInt16BE(at + 2));
        at += segment[at + 1] || 1;
      }
    }
  }

  receiveAck(c, acked, window) {
    if (!c.isOpen) {
      if (acked !== ((c.acked + 1) | 0)) return false;
      c.acked = c.next = acked;
      c.isOpen = true;
      c.tries = 0;
      c.window = window;
      if (c.isActive) this.segment(c, FLAG.ACK, c.next);
      return true;
    }
    if (before(c.acked, acked) && upTo(acked, (c.acked + c.queued + 1) | 0)) {
      let length = (acked - c.acked) | 0;
      if (length > c.queued) {
        length = c.queued;
        c.finAcked = true;
      }
      c.queue = [this.pending(c).subarray(length)];
      c.queued -= length;
      c.acked = acked;
      if (before(c.next, acked)) c.next = acked;
      c.tries = 0;
      if (c.queued < QUEUE_MAX / 2 && c.socket.isPaused()) c.socket.resume();
    }
    c.window = window;
    return true;
  }

  receiveData(c, sequence, data, flags) {
    const known = (c.received - sequence) | 0;
    // Segments out of order are dropped: the board sends them again.
    if (known < 0 || c.finReceived) return;
    const fresh = data.subarray(Math.min(known, data.length));
    if (fresh.length) {
      c.received = (c.received + fresh.length) | 0;
      c.socket.write(Buffer.from(fresh));
    }
    if (flags & FLAG.FIN && c.received === ((sequence + data.length) | 0)) {
      c.received = (c.received + 1) | 0;
      c.finReceived = true;
      c.socket.end();
    }
  }

  /** Forwards a port of this machine to a port of the board. */
  forward(port, guestPort) {
    const server = net.createServer((socket) => {
      const c = this.connection(this.guest, guestPort, this.gateway, ++this.port);
      c.isActive = true;
      this.splice(c, socket);
      this.segment(c, FLAG.SYN, c.acked);
      c.next = (c.acked + 1) | 0;
      this.arm(c);
    });
    return server.listen(port, '127.0.0.1');
  }

  close() {
    for (const c of [...this.tcp.values()]) this.abandon(c);
    for (const socket of this.udp.values()) socket.close();
    this.udp.clear();
  }
}
