"""An ordinary program on pynsq, for tests: the counterpart of go-nsq-client.

The program consumes a channel or publishes to a topic, and reports what it did in lines of JSON on standard output. The
bodies begin with a number, which decides what the consumer does with the first delivery of a message.
"""

import argparse
import json
import os
import re
import signal
import sys

import nsq
import tornado.ioloop

OUTSTANDING = 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["consume", "publish"])
    parser.add_argument("--nsqd")
    parser.add_argument("--lookupd")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--channel")
    parser.add_argument("--max-in-flight", type=int, default=100)
    parser.add_argument("--msg-timeout-ms", type=int)
    parser.add_argument("--requeue-every", type=int, default=0)
    parser.add_argument("--requeue-delay-ms", type=int, default=0)
    parser.add_argument("--timeout-every", type=int, default=0)
    parser.add_argument("--touch-every", type=int, default=0)
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--command", choices=["pub", "mpub", "dpub"], default="pub")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--delay-ms", type=int, default=0)
    options = parser.parse_args()
    if options.mode == "consume":
        Consumer(options)
    else:
        Producer(options)
    tornado.ioloop.IOLoop.current().start()


class Consumer:
    """Runs until SIGTERM."""

    def __init__(self, options):
        self.options = options
        self.late = {}
        self.finished = 0
        where = (
            {"lookupd_http_addresses": ["http://" + options.lookupd]}
            if options.lookupd
            else {"nsqd_tcp_addresses": [options.nsqd]}
        )
        if options.msg_timeout_ms:
            where["msg_timeout"] = options.msg_timeout_ms / 1000
        self.reader = nsq.Reader(
            topic=options.topic,
            channel=options.channel,
            message_handler=self.handle,
            max_tries=0,
            max_in_flight=options.max_in_flight,
            lookupd_poll_interval=1,
            user_agent="pynsq/client.py",
            **where,
        )
        self.loop = tornado.ioloop.IOLoop.current()
        # Flush often: tests read the output.
        tornado.ioloop.PeriodicCallback(sys.stdout.flush, 20).start()
        signal.signal(signal.SIGTERM, lambda *_: self.loop.add_callback_from_signal(self.stop))

    def stop(self):
        # pynsq has no CLS; answers have been written.
        self.reader.close()
        self.loop.call_later(0.1, self.loop.stop)

    def handle(self, message):
        message.enable_async()
        options = self.options
        n = int(re.match(rb"\d+", message.body).group())
        if message.attempts == 1:
            if is_(n, 1, options.requeue_every):
                report(message, "req")
                message.requeue(backoff=False, time_ms=options.requeue_delay_ms)
                return
            if is_(n, 2, options.timeout_every):
                report(message, "timeout")
                self.late[n] = message
                return
            if is_(n, 3, options.touch_every):
                report(message, "touch")
                self.hold(message, 6)
                return
        report(message, "fin")
        message.finish()
        if n in self.late:
            # Too late and harmless; pynsq itself still counts this delivery as in flight until it is finished.
            self.late.pop(n).finish()
        self.finished += 1
        if self.finished == options.die_after:
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def hold(self, message, touches):
        if touches == 0:
            message.finish()
            return

        def touch():
            message.touch()
            self.hold(message, touches - 1)

        self.loop.call_later(self.options.msg_timeout_ms / 3000, touch)


class Producer:
    """Ends when all messages are acknowledged."""

    def __init__(self, options):
        self.options = options
        self.loop = tornado.ioloop.IOLoop.current()
        self.next = 0
        self.acknowledged = 0
        self.writer = nsq.Writer([options.nsqd])
        self.loop.call_later(0.01, self.publish)

    def publish(self):
        options = self.options
        if not any(connection.connected() for connection in self.writer.conns.values()):
            self.loop.call_later(0.01, self.publish)
            return
        while self.next < options.count and self.next - self.acknowledged < OUTSTANDING:
            if options.command == "mpub":
                batch = range(self.next, min(self.next + 100, options.count))
                self.next = batch.stop
                self.writer.mpub(options.topic, [self.body(n) for n in batch], self.answer(len(batch)))
                continue
            body = self.body(self.next)
            self.next += 1
            if options.command == "pub":
                self.writer.pub(options.topic, body, self.answer(1))
            else:
                self.writer.dpub(options.topic, options.delay_ms, body, self.answer(1))

    def body(self, n):
        return str(self.options.first + n).ljust(self.options.size, ".").encode()

    def answer(self, messages):
        def on_answer(_connection, data):
            if data != b"OK":
                print("pynsq client:", data, file=sys.stderr)
                os._exit(1)
            self.acknowledged += messages
            if self.acknowledged == self.options.count:
                print(json.dumps({"acknowledged": self.options.count}), flush=True)
                self.loop.stop()
            else:
                self.publish()

        return on_answer


def is_(n, remainder, every):
    return every > 0 and n % every == remainder


def report(message, action):
    line = {
        "id": message.id.decode(),
        "body": message.body.decode(),
        "attempts": message.attempts,
        "action": action,
    }
    print(json.dumps(line))


main()
