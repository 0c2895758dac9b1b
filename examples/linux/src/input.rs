//! The messages to publish: lines or records of a file or of standard input.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::sync::mpsc;

const CHUNK: usize = 64 * 1024;

/// How the input is split into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// At each newline; the newline and a carriage return before it are removed.
    Lines,
    /// Into records of this number of bytes; the last one may be shorter.
    Records(usize),
}

/// Messages of an input. A thread reads the input, so that a slow input does not block the program.
#[derive(Debug)]
pub(crate) struct Input {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    splitter: Splitter,
    is_file: bool,
    is_stdin: bool,
}

impl Input {
    /// Opens a file, or standard input if there is none.
    pub(crate) fn open(file: Option<&Path>, framing: Framing, longest: usize) -> io::Result<Self> {
        let (source, is_file): (Box<dyn Read + Send>, bool) = match file {
            Some(path) => {
                let file = File::open(path)?;
                let is_file = is_file(&file);
                (Box::new(file), is_file)
            }
            None => (Box::new(io::stdin()), is_file(io::stdin())),
        };
        // The thread reads at most two chunks ahead, to bound memory.
        let (sender, chunks) = mpsc::channel(2);
        thread::spawn(move || read_chunks(source, &sender));
        let splitter = Splitter::new(framing, longest);
        Ok(Self { chunks, splitter, is_file, is_stdin: file.is_none() })
    }

    /// Returns whether no more input can come: a file, or a pipe whose writers have closed it.
    pub(crate) fn is_at_its_end(&self) -> bool {
        if self.is_file || self.chunks.is_closed() {
            return true;
        }
        let stdin = io::stdin();
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.is_stdin
            && rustix::event::poll(&mut polled, Some(&at_once)).is_ok()
            && polled[0].revents().contains(PollFlags::HUP)
    }

    /// Returns whether the input is a file, which has an end.
    pub(crate) fn is_file(&self) -> bool {
        self.is_file
    }

    /// Waits for the next record; `None` at the end.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(record) = self.splitter.next() {
                return Ok(Some(record));
            }
            match self.chunks.recv().await {
                Some(chunk) => self.splitter.push(&chunk?),
                None => return Ok(self.splitter.finish()),
            }
        }
    }
}

fn is_file(input: impl AsFd) -> bool {
    rustix::fs::fstat(input)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file())
}

fn read_chunks(mut source: impl Read, sender: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = match source.read(&mut chunk) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(n) => {
                chunk.truncate(n);
                Ok(chunk)
            }
            Err(error) => Err(error),
        };
        let failed = read.is_err();
        if sender.blocking_send(read).is_err() || failed {
            return;
        }
    }
}

/// One line or record of the input.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The bytes; may be empty.
    Message(Vec<u8>),
    /// The length of a record that was longer than allowed and was dropped.
    TooLong(usize),
}

/// Splits chunks into records, with memory for one chunk and the longest record.
#[derive(Debug)]
struct Splitter {
    framing: Framing,
    longest: usize,
    buf: Vec<u8>,
    /// Start of the next record in `buf`.
    start: usize,
    /// Position in `buf` up to which there is no newline after `start`.
    scanned: usize,
    /// Bytes of a record that is too long that were dropped already.
    dropped: usize,
}

impl Splitter {
    fn new(framing: Framing, longest: usize) -> Self {
        Self { framing, longest, buf: Vec::new(), start: 0, scanned: 0, dropped: 0 }
    }

    fn push(&mut self, chunk: &[u8]) {
        self.buf.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        self.buf.extend_from_slice(chunk);
    }

    fn next(&mut self) -> Option<Record> {
        let end = match self.framing {
            Framing::Records(size) => {
                (self.buf.len() - self.start >= size).then_some(self.start + size)
            }
            Framing::Lines => {
                let rest = &self.buf[self.scanned..];
                rest.iter().position(|&b| b == b'\n').map(|at| self.scanned + at)
            }
        };
        let Some(end) = end else {
            self.scanned = self.buf.len();
            // Allow one byte more, for a carriage return.
            if self.framing == Framing::Lines && self.buf.len() - self.start > self.longest + 1 {
                self.dropped += self.buf.len() - self.start;
                self.start = self.buf.len();
            }
            return None;
        };
        let record = self.cut(end);
        self.start = if self.framing == Framing::Lines { end + 1 } else { end };
        self.scanned = self.start;
        Some(record)
    }

    /// Returns the last record, which no newline ends.
    fn finish(&mut self) -> Option<Record> {
        let rest = self.buf.len() - self.start + self.dropped;
        (rest > 0).then(|| {
            let record = self.cut(self.buf.len());
            self.start = self.buf.len();
            self.scanned = self.start;
            record
        })
    }

    fn cut(&mut self, end: usize) -> Record {
        let mut bytes = &self.buf[self.start..end];
        if self.framing == Framing::Lines {
            bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        }
        let len = bytes.len() + std::mem::take(&mut self.dropped);
        if len > self.longest { Record::TooLong(len) } else { Record::Message(bytes.to_vec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the records, which must not depend on the size of the chunks.
    #[track_caller]
    fn split(framing: Framing, longest: usize, input: &[u8]) -> Vec<Record> {
        let mut results = (1..=input.len().max(1)).map(|size| {
            let mut splitter = Splitter::new(framing, longest);
            let mut records = Vec::new();
            for chunk in input.chunks(size) {
                splitter.push(chunk);
                records.extend(std::iter::from_fn(|| splitter.next()));
            }
            records.extend(splitter.finish());
            records
        });
        let first = results.next().unwrap();
        for other in results {
            assert_eq!(other, first);
        }
        first
    }

    fn message(text: &str) -> Record {
        Record::Message(text.into())
    }

    #[test]
    fn lines() {
        let lines = |input: &str| split(Framing::Lines, 5, input.as_bytes());
        assert_eq!(lines(""), []);
        assert_eq!(lines("a\nb"), [message("a"), message("b")]);
        assert_eq!(lines("a\r\n\n\nb\n"), [message("a"), message(""), message(""), message("b")]);
        assert_eq!(
            lines("12345\n12345\r\n12345"),
            [message("12345"), message("12345"), message("12345")]
        );
        assert_eq!(
            lines("123456\nok\n12345678901234567890\nok\n123456789"),
            [
                Record::TooLong(6),
                message("ok"),
                Record::TooLong(20),
                message("ok"),
                Record::TooLong(9)
            ]
        );
    }

    #[test]
    fn records() {
        assert_eq!(
            split(Framing::Records(3), 100, b"abc\ndefg"),
            [message("abc"), message("\nde"), message("fg")]
        );
        assert_eq!(split(Framing::Records(3), 100, b""), []);
    }
}
