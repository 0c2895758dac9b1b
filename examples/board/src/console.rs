//! The console: lines of text from a serial port, and what is answered.
//!
//! Settings are changed in memory, one by one, each checked as it is typed. `save` keeps them all
//! at once; the device goes on with what it started with until it is rebooted.

use core::fmt::{self, Write};

use embedded_storage::nor_flash::NorFlash;
use heapless::String;

use crate::settings::{Identity, Key, Settings, TEXT_MAX, Wrong};
use crate::store::{Store, StoreError};

/// The longest line, in bytes.
pub const LINE_MAX: usize = 384;
/// Room for the longest answer.
pub const ANSWER_MAX: usize = 3072;

/// Makes lines of what is typed.
///
/// Echoes it, too: a terminal on a serial port does not. Lines end with a line feed here; whoever
/// sends them makes `\r\n` of it. Backspace, Ctrl-C (forget the line) and
/// Ctrl-U (the same) do what they do elsewhere; all three ends of lines are understood.
#[derive(Debug, Default)]
pub struct Input {
    line: String<LINE_MAX>,
    is_too_long: bool,
    /// The last byte was a carriage return: a line feed after it is the same end of line.
    ended_by_return: bool,
    /// Within an escape sequence, such as an arrow key's.
    escape: Escape,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

/// A line that was ended.
pub type Line = Result<String<LINE_MAX>, TooLong>;

/// It had more than [`LINE_MAX`] bytes, and was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

impl Input {
    /// Nothing typed yet.
    pub const fn new() -> Self {
        Self {
            line: String::new(),
            is_too_long: false,
            ended_by_return: false,
            escape: Escape::None,
        }
    }

    /// Takes a byte; writes its echo.
    pub fn push(&mut self, byte: u8, echo: &mut impl Write) -> Option<Line> {
        let ended_by_return = core::mem::replace(&mut self.ended_by_return, byte == b'\r');
        match self.escape {
            Escape::None => {}
            Escape::Begun => {
                let goes_on = byte == b'[' || byte == b'O';
                self.escape = if goes_on { Escape::Sequence } else { Escape::None };
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
                // An echo that finds no room is missing on the screen, nothing else.
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
            // Nothing that can be set has others.
            _ => None,
        }
    }

    /// Writes the prompt, and what is typed so far.
    pub fn prompt(&self, out: &mut impl Write) {
        let _ = write!(out, "> {}", self.line);
    }
}

/// What the board is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Write what it is doing.
    Stats,
    /// Leave the servers, and start anew.
    Reboot,
    /// Start what takes a new image over USB.
    Bootloader,
    /// Panic, to see what comes of it.
    Panic,
    /// Do nothing for ever, likewise.
    Stall,
    /// Let the network's driver do nothing for ever, likewise.
    StallNetwork,
    /// Let what carries to nsqd do nothing for ever, likewise.
    StallPublisher,
}

/// What an end of the conversation knows.
#[derive(Debug)]
pub struct Session<F> {
    identity: Identity,
    edited: Settings,
    saved: Settings,
    store: Store<F>,
    /// What became of the settings in flash, if not all of them were taken.
    found: Found,
}

/// How the settings in flash were found.
#[derive(Debug, Clone, Copy)]
enum Found {
    Good,
    /// So many are not for this firmware.
    Ignored(usize),
    Unreadable(StoreError),
}

impl<F: NorFlash> Session<F> {
    /// Over the settings that are in `store`.
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

    /// The settings in flash.
    pub fn saved(&self) -> &Settings {
        &self.saved
    }

    /// What the device is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Does what a line says, and writes the answer, which ends with a line feed. What is left to
    /// do is for the board.
    pub fn run(&mut self, line: &str, out: &mut impl Write) -> Option<Action> {
        let line = line.trim();
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        // The answer fits: a test has the longest.
        let (action, _) = match command {
            "" => (None, Ok(())),
            "help" | "?" => (None, self.help(out)),
            "set" => (None, self.set(rest, out)),
            "unset" => (None, self.unset(rest, out)),
            "show" => (None, self.show(rest, out)),
            "save" => (None, self.save(out)),
            "revert" => {
                self.edited = self.saved.clone();
                (None, writeln!(out, "as saved"))
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
                (None, writeln!(out, "unknown command '{other}'; `help` has them all"))
            }
        };
        action
    }

    fn help(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str(
            "show             all settings, or `show KEY`\n\
             set KEY VALUE    changes one; nothing is kept before `save`\n\
             unset KEY        makes it what it is by default\n\
             save             keeps all settings in flash\n\
             revert           forgets what is not saved\n\
             reboot           starts anew, with what is saved\n\
             stats            what the device is doing\n\
             bootloader       restarts for a new image over USB\n\
             panic, stall, stall network, stall publisher   break it, to see that it comes back\n\n",
        )?;
        for key in Key::ALL.into_iter().filter(|key| key.exists(self.identity.medium)) {
            writeln!(out, "{:<16} {}", key.word(), key.help())?;
        }
        Ok(())
    }

    fn set(&mut self, rest: &str, out: &mut impl Write) -> fmt::Result {
        let (word, value) = rest.split_once(' ').unwrap_or((rest, ""));
        if word.is_empty() {
            return writeln!(out, "set what? `show` has all settings");
        }
        let set = Key::parse(word, self.identity.medium)
            .and_then(|key| self.edited.set(key, value.trim()).map(|()| key));
        self.say_changed(set, out)
    }

    fn unset(&mut self, word: &str, out: &mut impl Write) -> fmt::Result {
        let key = Key::parse(word, self.identity.medium);
        if let Ok(key) = key {
            self.edited.unset(key, &self.identity);
        }
        self.say_changed(key, out)
    }

    fn say_changed(&self, changed: Result<Key, Wrong>, out: &mut impl Write) -> fmt::Result {
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
        writeln!(out, "what was not saved is forgotten")
    }

    fn advise(&self, settings: &Settings, out: &mut impl Write) -> fmt::Result {
        match settings.advice(self.identity.medium) {
            Some(advice) => writeln!(out, "{advice}"),
            None => Ok(()),
        }
    }
}
