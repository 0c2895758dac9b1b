//! Simulated peers: an nsqd and nsqlookupds that check what they receive, a clock that advances
//! when nothing else happens, and a scenario.
//!
//! The scenario: [`STEADY`] messages that are answered at once; as many whose answers come one wake
//! later, as on any network; as many at odd addresses; a heartbeat with the next message; a heartbeat
//! while there is nothing to publish; the link to nsqd lost during a message; a few more messages;
//! then, where an nsqlookupd is connected, some minutes with only PINGs and heartbeats. On a
//! desktop: as many messages as the first argument gives, answered later if the second one is
//! `late`, and nothing else.

use core::cell::UnsafeCell;

use crate::MESSAGE;
use crate::platform::PENDING;

/// Messages of each way to be measured.
const STEADY: u32 = 12;
/// Messages before anything special.
const MEASURED: u32 = 3 * STEADY;
/// The message that is acknowledged together with a heartbeat.
const BUSY_HEARTBEAT: u32 = MEASURED + 1;
/// The message that is given out only after a heartbeat was answered.
const IDLE_HEARTBEAT: u32 = MEASURED + 3;
/// The message during which the link is cut.
const CUT: u32 = MEASURED + 5;
/// The last message.
const LAST: u32 = MEASURED + 8;
/// PINGs before the end.
const PINGS: u32 = 4;

const PORT_PIPE: u32 = 7;
const PORT_NSQD: u32 = 4150;
const PORT_LOOKUPD: u32 = 4160;
/// The first of two ports from which commands come.
const PORT_COMMANDS: u32 = 4250;
const PORT_COMMAND_LOOKUPD: u32 = 4261;
/// nsqd, two nsqlookupds, a consumer's two nsqds and nsqlookupd, the pipe.
const LINKS: usize = 7;
const COMMANDS: [usize; 2] = [3, 4];
const COMMAND_LOOKUPD: usize = 5;
const PIPE: usize = LINKS - 1;
const TIMERS: usize = 12;
const HEARTBEAT_MICROS: u64 = 30_000_000;

const IDENTIFIED: &[u8] = br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"deflate":false,"deflate_level":6,"max_deflate_level":6,"snappy":false,"sample_rate":0,"auth_required":false,"output_buffer_size":16384,"output_buffer_timeout":250}"#;
const WELCOME: &[u8] = br#"{"broadcast_address":"lookup-1","hostname":"lookup-1","http_port":4161,"tcp_port":4160,"version":"1.3.0"}"#;

/// A message with the id `0123456789abcdef`.
const COMMAND: &[u8] = b"\0\0\0\0\0\0\0\0\0\x010123456789abcdefset interval 5s";
const COMMAND_BODY: &[u8] = b"set interval 5s";
const PRODUCERS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 152\r\n\r\n{\"channels\":[\"device\"],\"producers\":[{\"broadcast_address\":\"10.0.0.1\",\"tcp_port\":4250},{\"tcp_port\":4251,\"http_port\":4151,\"broadcast_address\":\"10.0.0.1\"}]}";

struct World {
    time: u64,
    timers: [u64; TIMERS],
    timers_taken: u32,
    links: [Link; LINKS],
    message: Aligned,
    /// True if all answers come one wake later.
    late: bool,
    /// Messages given out, received and done.
    given: u32,
    received: u32,
    done: u32,
    /// Heartbeats sent and answered.
    heartbeats: u32,
    nops: u32,
    next_heartbeat: u64,
    cut: bool,
    pings: u32,
    last: u32,
    /// Commands delivered, seen by the application, and finished.
    commands: u32,
    consumed: u32,
    finished: u32,
}

/// Room for a message at an even address, or one byte behind it.
#[repr(align(8))]
struct Aligned([u8; MESSAGE + 1]);

#[derive(Clone, Copy)]
struct Link {
    state: State,
    /// Bytes to be read, in a buffer.
    out: [u8; 320],
    out_from: usize,
    out_to: usize,
    /// The line of the current command so far.
    line: [u8; 96],
    line_len: usize,
    /// The state of a command's body: the bytes left, and the position in it.
    body: Body,
    left: u32,
    at: u32,
    /// The device has waited since it wrote last.
    waited: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Closed,
    Opening,
    Open,
    Lost,
}

#[derive(Clone, Copy, PartialEq)]
enum Body {
    None,
    Length,
    Identify,
    Message,
}

struct Global(UnsafeCell<World>);

// SAFETY: there is only one thread.
unsafe impl Sync for Global {}

static WORLD: Global = Global(UnsafeCell::new(World {
    time: 1_000_000,
    timers: [u64::MAX; TIMERS],
    timers_taken: 0,
    links: [Link::NEW; LINKS],
    message: Aligned([0; MESSAGE + 1]),
    late: false,
    given: 0,
    received: 0,
    done: 0,
    heartbeats: 0,
    nops: 0,
    next_heartbeat: HEARTBEAT_MICROS,
    cut: false,
    pings: 0,
    last: 0,
    commands: 0,
    consumed: 0,
    finished: 0,
}));

fn world() -> &'static mut World {
    // SAFETY: there is only one thread, and no `bl` function calls another.
    unsafe { &mut *WORLD.0.get() }
}

const fn byte_of(message: u32, at: u32) -> u8 {
    (message.wrapping_mul(31).wrapping_add(at.wrapping_mul(7)) & 0xff) as u8
}

impl Link {
    const NEW: Self = Self {
        state: State::Closed,
        out: [0; 320],
        out_from: 0,
        out_to: 0,
        line: [0; 96],
        line_len: 0,
        body: Body::None,
        left: 0,
        at: 0,
        waited: false,
    };

    fn send(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match self.out.get_mut(self.out_to) {
                Some(slot) => *slot = byte,
                None => fail("too much to read"),
            }
            self.out_to += 1;
        }
    }

    fn frame(&mut self, data: &[u8]) {
        self.frame_of(0, data);
    }

    fn frame_of(&mut self, kind: u8, data: &[u8]) {
        self.send(&(data.len() as u32 + 4).to_be_bytes());
        self.send(&[0, 0, 0, kind]);
        self.send(data);
    }

    fn reply(&mut self, data: &[u8]) {
        self.send(&(data.len() as u32).to_be_bytes());
        self.send(data);
    }

    fn is_magic(&self) -> bool {
        self.line_len == 4 && matches!(self.line.first_chunk(), Some(b"  V1" | b"  V2"))
    }

    fn line(&self) -> &[u8] {
        self.line.get(..self.line_len).unwrap_or_default()
    }
}

impl World {
    /// Handles one byte that the other side receives.
    fn take(&mut self, index: usize, byte: u8) {
        let is_nsqd = index == 0;
        let is_source = COMMANDS.contains(&index);
        let Some(link) = self.links.get_mut(index) else { return };
        if index == PIPE {
            link.at += 1;
            if link.at.is_multiple_of(MESSAGE as u32) {
                link.frame(b"OK");
            }
            return;
        }
        if index == COMMAND_LOOKUPD {
            // The number of bytes of the empty line so far.
            link.at = match (link.at, byte) {
                (0 | 2, b'\r') | (1 | 3, b'\n') => link.at + 1,
                (_, b'\r') => 1,
                _ => 0,
            };
            if link.at == 4 {
                link.send(PRODUCERS);
            }
            return;
        }
        match link.body {
            Body::None if byte == b'\n' => {
                match link.line() {
                    b"IDENTIFY" => (link.body, link.left) = (Body::Length, 4),
                    b"PUB sensors-temp" if is_nsqd => (link.body, link.left) = (Body::Length, 4),
                    b"NOP" if is_nsqd => {
                        self.nops += 1;
                        link.line_len = 0;
                    }
                    b"NOP" if is_source => link.line_len = 0,
                    b"SUB commands device" if is_source => {
                        link.frame(b"OK");
                        link.line_len = 0;
                    }
                    // RDY 2 is its share of four, RDY 4 everything while it is alone.
                    b"RDY 2" | b"RDY 4" if is_source => {
                        self.commands += 1;
                        link.frame_of(2, COMMAND);
                        link.line_len = 0;
                    }
                    b"FIN 0123456789abcdef" if is_source => {
                        self.finished += 1;
                        link.line_len = 0;
                    }
                    b"REGISTER sensors-temp" if !is_nsqd => {
                        link.reply(b"OK");
                        link.line_len = 0;
                    }
                    b"PING" if !is_nsqd => {
                        self.pings += 1;
                        link.reply(b"OK");
                        link.line_len = 0;
                    }
                    _ => fail("unknown command"),
                }
                link.at = 0;
            }
            Body::None => {
                match link.line.get_mut(link.line_len) {
                    Some(slot) => *slot = byte,
                    None => fail("long line"),
                }
                link.line_len += 1;
                if link.is_magic() {
                    link.line_len = 0;
                }
            }
            Body::Length => {
                link.at = link.at << 8 | u32::from(byte);
                link.left -= 1;
                if link.left == 0 {
                    link.left = link.at;
                    link.at = 0;
                    link.body =
                        if link.line() == b"IDENTIFY" { Body::Identify } else { Body::Message };
                    if link.body == Body::Message && link.left != MESSAGE as u32 {
                        fail("length of a message");
                    }
                }
            }
            Body::Identify | Body::Message => {
                if link.body == Body::Message && byte != byte_of(self.received, link.at) {
                    fail("content of a message");
                }
                link.at += 1;
                link.left -= 1;
                if link.left > 0 {
                    return;
                }
                match (link.body, is_nsqd || is_source) {
                    (Body::Identify, true) => link.frame(IDENTIFIED),
                    (Body::Identify, false) => link.reply(WELCOME),
                    _ if self.received == CUT && !self.cut && self.last == LAST => {
                        self.cut = true;
                        link.state = State::Lost;
                    }
                    _ => {
                        if self.received == BUSY_HEARTBEAT && self.last == LAST {
                            self.heartbeats += 1;
                            link.frame(b"_heartbeat_");
                        }
                        link.frame(b"OK");
                        self.received += 1;
                    }
                }
                link.body = Body::None;
                link.line_len = 0;
            }
        }
    }

    /// Returns whether answers come one wake later.
    fn is_late(&self) -> bool {
        self.late || (self.last == LAST && (STEADY + 1..=2 * STEADY).contains(&self.given))
    }

    fn is_pipe(&self) -> bool {
        self.links.get(PIPE).is_some_and(|link| link.state == State::Open)
    }

    fn heartbeat(&mut self) {
        self.heartbeats += 1;
        if let Some(nsqd) = self.links.first_mut()
            && nsqd.state == State::Open
        {
            nsqd.frame(b"_heartbeat_");
        }
        for source in COMMANDS {
            if let Some(source) = self.links.get_mut(source)
                && source.state == State::Open
            {
                source.frame(b"_heartbeat_");
                self.commands += 1;
                source.frame_of(2, COMMAND);
            }
        }
    }
}

fn index(port: u32) -> usize {
    match port {
        PORT_PIPE => PIPE,
        PORT_NSQD => 0,
        PORT_COMMAND_LOOKUPD => COMMAND_LOOKUPD,
        PORT_COMMANDS.. => (port - PORT_COMMANDS) as usize + COMMANDS[0],
        port => (port - PORT_LOOKUPD) as usize + 1,
    }
}

fn link(port: u32) -> &'static mut Link {
    match world().links.get_mut(index(port)) {
        Some(link) => link,
        None => fail("no such link"),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_open(port: u32) -> u32 {
    let link = link(port);
    match link.state {
        State::Closed | State::Lost => {
            *link = Link::NEW;
            link.state = State::Opening;
            0
        }
        State::Opening | State::Open => {
            link.state = State::Open;
            1
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_close(port: u32) {
    link(port).state = State::Closed;
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_read(port: u32, to: *mut u8, len: usize) -> i32 {
    let is_late = world().is_late();
    let link = link(port);
    if link.state != State::Open {
        return 0;
    }
    if is_late && !link.waited {
        return PENDING;
    }
    let n = len.min(link.out_to - link.out_from);
    if n == 0 {
        return PENDING;
    }
    for i in 0..n {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        unsafe { to.add(i).write(link.out.get(link.out_from).copied().unwrap_or(0)) };
        link.out_from += 1;
    }
    if link.out_from == link.out_to {
        (link.out_from, link.out_to) = (0, 0);
    }
    n as i32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_write(port: u32, from: *const u8, len: usize) -> i32 {
    let world = world();
    if world.links.get(index(port)).is_none_or(|link| link.state != State::Open) {
        return PENDING - 1;
    }
    for i in 0..len {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        world.take(index(port), unsafe { from.add(i).read() });
    }
    if let Some(link) = world.links.get_mut(index(port)) {
        link.waited = false;
    }
    len as i32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_now() -> u64 {
    let world = world();
    world.time += 50;
    world.time
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_timer() -> u32 {
    let world = world();
    world.timers_taken += 1;
    world.timers_taken - 1
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_alarm(timer: u32, at: u64) -> bool {
    let world = world();
    match world.timers.get_mut(timer as usize) {
        Some(slot) => *slot = at,
        None => fail("too many timers"),
    }
    world.time >= at
}

/// Advances the time: a little if there are answers, to a heartbeat that is due, else to an alarm,
/// else by half a second.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_wait() {
    let world = world();
    let is_late = world.is_late();
    let mut answers = false;
    for link in &mut world.links {
        answers |= is_late && !link.waited && link.out_to > link.out_from;
        link.waited = true;
    }
    if answers {
        world.time += 500;
        return;
    }
    let alarm = world.timers.iter().copied().min().unwrap_or(u64::MAX);
    let next = alarm.min(world.next_heartbeat);
    if world.given == IDLE_HEARTBEAT && world.heartbeats == world.nops && world.last == LAST {
        world.heartbeat();
        return;
    }
    world.time = world.time.max(next.min(world.time + 500_000));
    if world.time >= world.next_heartbeat {
        world.next_heartbeat = world.time + HEARTBEAT_MICROS;
        world.heartbeat();
    }
    let time = world.time;
    for at in world.timers.iter_mut().filter(|at| **at <= time) {
        *at = u64::MAX;
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_message() -> Option<&'static [u8; MESSAGE]> {
    let world = world();
    if world.last == 0 {
        (world.last, world.late) = messages_to_give();
    }
    let with_lookupd = world.links.get(1).is_some_and(|link| link.state == State::Open);
    let is_consumed = world.links.get(COMMANDS[0]).is_some_and(|link| link.state == State::Open);
    if world.done == world.last {
        if with_lookupd && world.pings < PINGS && world.last == LAST {
            return None;
        }
        // With a consumer there are at least two commands from each nsqd.
        let all = [world.consumed, world.finished] == [world.commands; 2];
        if world.last == LAST && !(all && (world.commands >= 4 || !is_consumed)) {
            fail("commands");
        }
        end(&[]);
    }
    if world.given == IDLE_HEARTBEAT && world.last == LAST && world.nops < 2 && !world.is_pipe() {
        return None;
    }
    let is_odd = world.last == LAST && (2 * STEADY..3 * STEADY).contains(&world.given);
    let message = world.message.0.get_mut(usize::from(is_odd)..)?.first_chunk_mut()?;
    for (at, byte) in (0..).zip(message.iter_mut()) {
        *byte = byte_of(world.given, at);
    }
    world.given += 1;
    Some(message)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_done(acknowledged: bool) {
    let world = world();
    world.done += 1;
    if !acknowledged || world.done != world.given {
        fail("a message was not acknowledged");
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_consumed(from: *const u8, len: usize) {
    for i in 0..len {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        let byte = unsafe { from.add(i).read() };
        if COMMAND_BODY.get(i) != Some(&byte) {
            fail("content of a command");
        }
    }
    world().consumed += 1;
}

#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "Rust" fn bl_panic(file: &str) {
    fail(file)
}

fn fail(why: &str) -> ! {
    end(why.as_bytes())
}

/// Ends the program, with an error message unless it is empty.
#[cfg(target_os = "none")]
fn end(why: &[u8]) -> ! {
    fn call(operation: u32, argument: *const u32) {
        // SAFETY: a semihosting call; QEMU answers it.
        unsafe {
            core::arch::asm!("bkpt #0xab", inout("r0") operation => _, in("r1") argument);
        }
    }
    const SYS_WRITEC: u32 = 0x03;
    const SYS_EXIT_EXTENDED: u32 = 0x20;
    const EXITED: u32 = 0x20026;
    for &byte in why {
        call(SYS_WRITEC, (&raw const byte).cast());
    }
    call(SYS_EXIT_EXTENDED, [EXITED, (!why.is_empty()).into()].as_ptr());
    loop {}
}

#[cfg(not(target_os = "none"))]
fn end(why: &[u8]) -> ! {
    if why.is_empty() {
        std::process::exit(0);
    }
    eprintln!("{}", String::from_utf8_lossy(why));
    std::process::exit(1);
}

#[cfg(target_os = "none")]
fn messages_to_give() -> (u32, bool) {
    (LAST, false)
}

#[cfg(not(target_os = "none"))]
fn messages_to_give() -> (u32, bool) {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(LAST);
    (count, arguments.next().is_some_and(|text| text == "late"))
}
