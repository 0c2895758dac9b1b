//! A headless Chromium, driven through WebDriver as a user would: visible text and clicks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::ports::{self, Reserved};
use crate::tool::Tool;
use crate::{eventually, http, peers};

const START_LIMIT: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(30);
/// The last five keep Chromium from contacting its maker's services.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1400,1200",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// A browser with one window. Dropping it ends it.
#[derive(Debug)]
pub struct Browser {
    driver: Tool,
    port: Reserved,
    session: String,
    process: Option<Pid>,
}

impl Browser {
    /// Starts Chromium; if it is not installed, prints that `test` is skipped.
    ///
    /// # Panics
    ///
    /// If Chromium does not start within a minute.
    pub async fn start_or_skip(test: &str) -> Option<Browser> {
        let chromium = peers::installed_or_skip("chromium", "chromium", test)?;
        let driver = peers::installed_or_skip("chromedriver", "chromium-driver", test)?;
        Some(Browser::start(&chromium, driver).await)
    }

    async fn start(chromium: &Path, driver: PathBuf) -> Browser {
        let port = ports::reserve();
        let driver = Tool::start(driver, [format!("--port={}", port.address().port())]);
        let address = port.address();
        eventually("chromedriver is ready", START_LIMIT, async || {
            let status = http::get_json(address, "/status").await;
            status.is_ok_and(|status| status["value"]["ready"] == true)
        })
        .await;
        // Chromium outlives chromedriver: remember its process id at once.
        let profile = driver.dir().join("profile");
        let flags: Vec<_> = FLAGS.iter().map(|&flag| flag.to_owned()).collect();
        let args = [flags, vec![format!("--user-data-dir={}", profile.display())]].concat();
        let options = json!({"binary": chromium, "args": args});
        let wanted = json!({"alwaysMatch": {"goog:chromeOptions": options}});
        let made = call(START_LIMIT, address, "POST", "/session", json!({"capabilities": wanted}));
        let made = made.await.unwrap_or_else(|why| panic!("no browser: {why}"));
        let id = made["capabilities"]["goog:processID"].as_i64();
        let process = id.and_then(|id| Pid::from_raw(id.try_into().ok()?));
        let session = made["sessionId"].as_str().expect("a session has an id").to_owned();
        Browser { driver, port, session, process }
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        self.must("POST", "/url", json!({"url": url})).await;
    }

    /// Returns the visible text of the first element that a CSS selector matches, if any.
    pub async fn text(&self, selector: &str) -> Option<String> {
        let element = self.find(selector).await?;
        let text = self.call("GET", &format!("/element/{element}/text"), Value::Null).await.ok()?;
        text.as_str().map(str::to_owned)
    }

    /// Waits until `condition` accepts the element's visible text, and returns the text.
    ///
    /// # Panics
    ///
    /// If that takes more than 30 s; the message contains the page's text.
    pub async fn wait_text(&self, selector: &str, condition: impl Fn(&str) -> bool) -> String {
        let mut found = None;
        let all = async {
            loop {
                found = self.text(selector).await;
                if found.as_deref().is_some_and(&condition) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        if tokio::time::timeout(LIMIT, all).await.is_err() {
            let page = self.text("body").await.unwrap_or_default();
            panic!("{selector} contains {found:?} after {LIMIT:?}, on this page:\n{page}");
        }
        found.expect("just found")
    }

    /// Clicks the first element that a CSS selector matches, as soon as it can be clicked.
    ///
    /// # Panics
    ///
    /// If it cannot be clicked within 30 s.
    pub async fn click(&self, selector: &str) {
        eventually(&format!("{selector} clicked"), LIMIT, async || {
            let Some(element) = self.find(selector).await else { return false };
            self.call("POST", &format!("/element/{element}/click"), json!({})).await.is_ok()
        })
        .await;
    }

    /// Runs an action that makes the browser load a page, and waits until the current one is gone.
    ///
    /// # Panics
    ///
    /// If the page stays for 30 s.
    pub async fn leaving(&self, action: impl Future<Output = ()>) {
        let page = self.find("html").await.expect("every page has one");
        action.await;
        eventually("another page", LIMIT, async || {
            self.call("GET", &format!("/element/{page}/name"), Value::Null).await.is_err()
        })
        .await;
    }

    /// Types into the first element that a CSS selector matches.
    pub async fn write(&self, selector: &str, text: &str) {
        self.wait_text(selector, |_| true).await;
        let element = self.find(selector).await.expect("just found");
        self.must("POST", &format!("/element/{element}/value"), json!({"text": text})).await;
    }

    /// Returns a picture of the window, as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let picture = self.must("GET", "/screenshot", Value::Null).await;
        decode_base64(picture.as_str().expect("a string"))
    }

    async fn find(&self, selector: &str) -> Option<String> {
        let query = json!({"using": "css selector", "value": selector});
        let found = self.call("POST", "/element", query).await.ok()?;
        found.as_object()?.values().next()?.as_str().map(str::to_owned)
    }

    async fn must(&self, method: &str, path: &str, body: Value) -> Value {
        let done = self.call(method, path, body).await;
        done.unwrap_or_else(|why| panic!("browser: {method} {path}: {why}"))
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let path = format!("/session/{}{path}", self.session);
        call(LIMIT, self.port.address(), method, &path, body).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(process) = self.process {
            // Chromium may have ended by itself.
            let _ = kill_process(process, Signal::KILL);
        }
        self.driver.kill();
    }
}

async fn call(
    limit: Duration,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Value,
) -> Result<Value, String> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let response = http::request_within(limit, address, method, path, &body).await;
    let response = response.map_err(|error| error.to_string())?;
    let mut answer = response.json().map_err(|error| error.to_string())?;
    match response.status {
        200 => Ok(answer["value"].take()),
        status => Err(format!("{status} {}", answer["value"]["message"])),
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let digit = |byte| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> =
        text.bytes().filter(|&byte| byte != b'=').map(|byte| u32::from(digit(byte))).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits =
            four.iter().enumerate().fold(0, |bits, (at, digit)| bits | digit << (18 - 6 * at));
        bits.to_be_bytes().into_iter().skip(1).take(four.len() * 6 / 8)
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_is_decoded() {
        assert_eq!(decode_base64("bmFub25zcQ=="), b"nanonsq");
        assert_eq!(decode_base64("bmFub25zcTE="), b"nanonsq1");
        assert_eq!(decode_base64("+/+/"), [0xfb, 0xff, 0xbf]);
    }
}
