"""Carries frames between a TAP interface and stdin and stdout, each behind its length (4 bytes, big-endian).

A missing interface is created, which requires root; an existing interface of the user does not."""
import fcntl
import os
import select
import struct
import sys

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
NAME_MAX = 15

if len(sys.argv[1]) > NAME_MAX:
    sys.exit(f"TAP interface {sys.argv[1]}: a name has at most {NAME_MAX} characters")

try:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), IFF_TAP | IFF_NO_PI))
except OSError as why:
    sys.exit(f"TAP interface {sys.argv[1]}: {why}")
os.write(1, struct.pack(">I", 0))  # The interface is open.
pending = b""
while True:
    for ready in select.select([tap, 0], [], [])[0]:
        if ready == tap:
            frame = os.read(tap, 2048)
            os.write(1, struct.pack(">I", len(frame)) + frame)
            continue
        data = os.read(0, 65536)
        if not data:
            sys.exit(0)
        pending += data
        while len(pending) >= 4:
            length = struct.unpack(">I", pending[:4])[0]
            if len(pending) < 4 + length:
                break
            try:
                os.write(tap, pending[4 : 4 + length])
            except OSError:
                pass  # The interface is down: the frame is lost.
            pending = pending[4 + length :]
