//! The console: lines of text from a serial port, and their answers.
//!
//! `set` checks and changes one setting in memory; `save` writes all to flash. The device uses
//! saved settings after the next reboot.

use core::fmt::{self, Write};

use embedded_storage::nor_flash::NorFlash;
use heapless::String;

use crate::settings::{Identity, Key, Settings, TEXT_MAX, Wrong};
use crate::store::{Store, StoreError};

/// The longest line, in bytes.
pub const LINE_MAX: usize = 384;
/// The longest answer, in bytes.
pub const ANSWER_MAX: usize = 3072;

/// Assembles lines from typed bytes and echoes them, as a terminal on a serial port expects.
///
/// A line ends with CR, LF or CR LF. Backspace deletes a character; Ctrl-C and Ctrl-U discard the
/// line. In the echo a line ends with a line feed; the sender converts it to CR LF.
#[derive(Debug, Default)]
pub struct Input {
    line: String<LINE_MAX>,
    is_too_long: bool,
    /// True if the last byte was a CR: an LF after it belongs to the same end of line.
    ended_by_return: bool,
    /// Position in an escape sequence, such as that of an arrow key.
    escape: Escape,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

/// A complete line.
pub type Line = Result<String<LINE_MAX>, TooLong>;

/// The line had more than [`LINE_MAX`] bytes and was discarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl Input {
    /// Creates an empty line.
    pub const fn new() -> Self {
        Self {
            line: String::new(),
            is_too_long: false,
            ended_by_return: false,
            escape: Escape::None,
        }
    }

    /// Adds a typed byte and writes its echo. Returns the line if the byte ends it.
    pub fn push(&mut self, byte: u8, echo: &mut impl Write) -> Option<Line> {
        let ended_by_return = core::mem::replace(&mut self.ended_by_return, byte == b'\r');
        match self.escape {
            Escape::None => {}
            Escape::Begun => {
                let continues = byte == b'[' || byte == b'O';
                self.escape = if continues { Escape::Sequence } else { Escape::None };
                return None;
            }
            Escape::Sequence => {
                if (0x40..=0x7E).contains(&byte) {
                    self.escape = Escape::None;
                }
                return None;
            }
        }
        match byte {
            b'\n' if ended_by_return => None,
            b'\r' | b'\n' => {
                // An echo without room is only missing on the screen.
                let _ = echo.write_char('\n');
                let line = core::mem::take(&mut self.line);
                let is_too_long = core::mem::take(&mut self.is_too_long);
                Some(if is_too_long { Err(TooLong) } else { Ok(line) })
            }
            0x08 | 0x7F => {
                if self.line.pop().is_some() {
                    let _ = echo.write_str("\x08 \x08");
                }
                None
            }
            // Ctrl-C, Ctrl-U.
            0x03 | 0x15 => {
                self.line.clear();
                self.is_too_long = false;
                let _ = echo.write_char('\n');
                self.prompt(echo);
                None
            }
            0x1B => {
                self.escape = Escape::Begun;
                None
            }
            b' '..=b'~' => {
                if self.line.push(char::from(byte)).is_err() {
                    self.is_too_long = true;
                } else {
                    let _ = echo.write_char(char::from(byte));
                }
                None
            }
            // No setting has other characters.
            _ => None,
        }
    }

    /// Writes the prompt and the unfinished line.
    pub fn prompt(&self, out: &mut impl Write) {
        let _ = write!(out, "> {}", self.line);
    }
}

/// An action that the board must do after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write state and counters of the device.
    Stats,
    /// Disconnect from all servers and reboot.
    Reboot,
    /// Start the bootloader, which accepts a new image over USB.
    Bootloader,
    /// Panic, to test the recovery.
    Panic,
    /// Hang for ever, to test the watchdog.
    Stall,
    /// Let the network driver hang for ever, to test its supervision.
    StallNetwork,
    /// Let the publisher's runner hang for ever, to test its supervision.
    StallPublisher,
}

/// The state of the console: edited and saved settings.
#[derive(Debug)]
pub struct Session<F> {
    identity: Identity,
    edited: Settings,
    saved: Settings,
    store: Store<F>,
    /// The result of reading the settings from flash.
    found: Found,
}

/// The result of reading the settings from flash.
#[derive(Debug, Clone, Copy)]
enum Found {
    Good,
    /// The number of settings that this firmware does not know.
    Ignored(usize),
    Unreadable(StoreError),
}

impl<F: NorFlash> Session<F> {
    /// Loads the settings from `store`, or the defaults.
    pub fn load(identity: Identity, mut store: Store<F>) -> Self {
        let mut buf = [0; TEXT_MAX];
        let (saved, found) = match store.load(&mut buf) {
            Ok(Some(text)) => {
                let (settings, ignored) = Settings::decode(text, &identity);
                (settings, if ignored > 0 { Found::Ignored(ignored) } else { Found::Good })
            }
            Ok(None) => (Settings::defaults(&identity), Found::Good),
            Err(why) => (Settings::defaults(&identity), Found::Unreadable(why)),
        };
        Self { identity, edited: saved.clone(), saved, store, found }
    }

    /// Returns the settings in flash.
    pub fn saved(&self) -> &Settings {
        &self.saved
    }

    /// Returns the identity of the device.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs a line and writes the answer, which ends with a line feed. Returns the action that is
    /// left to the board.
    pub fn run(&mut self, line: &str, out: &mut impl Write) -> Option<Action> {
        let line = line.trim();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        // Every answer fits: see the test of the longest one.
        let (action, _) = match command {
            "" => (None, Ok(())),
            "help" | "?" => (None, self.help(out)),
            "set" => (None, self.set(rest, out)),
            "unset" => (None, self.unset(rest, out)),
            "show" => (None, self.show(rest, out)),
            "save" => (None, self.save(out)),
            "revert" => {
                self.edited = self.saved.clone();
                (None, writeln!(out, "all settings are as saved"))
            }
            "stats" => (Some(Action::Stats), Ok(())),
            "reboot" => (Some(Action::Reboot), self.warn_unsaved(out)),
            "bootloader" => (Some(Action::Bootloader), Ok(())),
            "panic" => (Some(Action::Panic), Ok(())),
            "stall" => match rest {
                "" => (Some(Action::Stall), Ok(())),
                "network" => (Some(Action::StallNetwork), Ok(())),
                "publisher" => (Some(Action::StallPublisher), Ok(())),
                _ => (None, writeln!(out, "stall, stall network or stall publisher?")),
            },
            other => {
                let other = other.get(..24.min(other.len())).unwrap_or_default();
                (None, writeln!(out, "unknown command '{other}'; `help` lists all"))
            }
        };
        action
    }

    fn help(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str(
            "show             shows all settings, or `show KEY` one\n\
             set KEY VALUE    changes a setting; `save` keeps it\n\
             unset KEY        restores the default\n\
             save             writes all settings to flash\n\
             revert           discards all unsaved changes\n\
             reboot           restarts with the saved settings\n\
             stats            shows state and counters\n\
             bootloader       restarts for a new image over USB\n\
             panic, stall, stall network, stall publisher   make it fail, to test the recovery\n\n",
        )?;
        for key in Key::ALL.into_iter().filter(|key| key.exists(self.identity.medium)) {
            writeln!(out, "{:<16} {}", key.word(), key.help())?;
        }
        Ok(())
    }

    fn set(&mut self, rest: &str, out: &mut impl Write) -> fmt::Result {
        let (word, value) = rest.split_once(' ').unwrap_or((rest, ""));
        if word.is_empty() {
            return writeln!(out, "set what? `show` lists all settings");
        }
        let set = Key::parse(word, self.identity.medium)
            .and_then(|key| self.edited.set(key, value.trim()).map(|()| key));
        self.write_changed(set, out)
    }

    fn unset(&mut self, word: &str, out: &mut impl Write) -> fmt::Result {
        let key = Key::parse(word, self.identity.medium);
        if let Ok(key) = key {
            self.edited.unset(key, &self.identity);
        }
        self.write_changed(key, out)
    }

    fn write_changed(&self, changed: Result<Key, Wrong>, out: &mut impl Write) -> fmt::Result {
        match changed {
            Ok(key) => {
                self.show_one(key, out)?;
                if self.edited.differs(&self.saved, key)? {
                    writeln!(out, "not saved yet: `save`, then `reboot`")?;
                }
                Ok(())
            }
            Err(wrong) => writeln!(out, "nothing changed: {wrong}"),
        }
    }

    fn show(&self, word: &str, out: &mut impl Write) -> fmt::Result {
        if !word.is_empty() {
            return match Key::parse(word, self.identity.medium) {
                Ok(key) => self.show_one(key, out),
                Err(wrong) => writeln!(out, "{wrong}"),
            };
        }
        for key in Key::ALL.into_iter().filter(|key| key.exists(self.identity.medium)) {
            self.show_one(key, out)?;
        }
        if self.edited != self.saved {
            writeln!(out, "* not saved yet: `save`, then `reboot`")?;
        }
        match self.found {
            Found::Good => {}
            Found::Ignored(count) => {
                writeln!(out, "{count} saved settings are not for this firmware: ignored")?;
            }
            Found::Unreadable(why) => {
                writeln!(out, "settings not read, defaults used: {why}")?;
            }
        }
        self.advise(&self.edited, out)
    }

    fn show_one(&self, key: Key, out: &mut impl Write) -> fmt::Result {
        let mark = if self.edited.differs(&self.saved, key)? { '*' } else { ' ' };
        write!(out, "{mark} {:<16} ", key.word())?;
        if key == Key::WifiPassword && !self.edited.wifi_password.is_empty() {
            out.write_str("********")?;
        } else {
            self.edited.write(key, out)?;
        }
        writeln!(out)
    }

    fn save(&mut self, out: &mut impl Write) -> fmt::Result {
        if self.edited == self.saved {
            return writeln!(out, "nothing to save: flash has these settings");
        }
        match self.store.save(&self.edited.encode(&self.identity)?) {
            Ok(()) => {
                self.saved = self.edited.clone();
                self.found = Found::Good;
                writeln!(out, "saved; `reboot` to use it")?;
                self.advise(&self.saved, out)
            }
            Err(why) => writeln!(out, "not saved: {why}"),
        }
    }

    fn warn_unsaved(&self, out: &mut impl Write) -> fmt::Result {
        if self.edited == self.saved {
            return Ok(());
        }
        writeln!(out, "unsaved changes are discarded")
    }

    fn advise(&self, settings: &Settings, out: &mut impl Write) -> fmt::Result {
        match settings.advice(self.identity.medium) {
            Some(advice) => writeln!(out, "{advice}"),
            None => Ok(()),
        }
    }
}
