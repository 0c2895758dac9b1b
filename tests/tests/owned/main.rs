//! The clients of `nanonsq-std` that own their memory, with real servers. Without them
//! (`cargo xtask peers`) a test that needs them prints that it is skipped.

mod consumer;
mod nsqd;
mod nsqlookupd;
mod publisher;

use std::sync::Mutex;
use std::time::Duration;

/// The lines that were logged at level info or above, by all tests.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Lines;

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

/// Begins to collect the lines of the log.
fn collect_log() {
    // Another test may have done that.
    let _ = log::set_logger(&Lines);
    log::set_max_level(log::LevelFilter::Info);
}

/// Returns the lines that contain `text`: each test looks for its own ports.
fn logged(text: &str) -> Vec<String> {
    LINES.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
}

/// Waits until a line contains `text`.
async fn until_logged(text: &str) {
    let found = async {
        while logged(text).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    assert!(found.is_ok(), "no line with {text:?}: {:#?}", LINES.lock().unwrap());
}
