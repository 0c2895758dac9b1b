use super::{Flash, ethernet, wifi};
use crate::console::{ANSWER_MAX, Action, Input, LINE_MAX, Line, Session, TooLong};
use crate::settings::{Identity, Key, TEXT_MAX};
use crate::store::Store;

struct Terminal {
    session: Session<Flash>,
}

impl Terminal {
    fn new(identity: Identity, flash: Flash) -> Self {
        Self { session: Session::load(identity, Store::new(flash, 0)) }
    }

    /// Runs a line and returns the answer.
    fn ask(&mut self, line: &str) -> String {
        self.act(line).1
    }

    fn act(&mut self, line: &str) -> (Option<Action>, String) {
        let mut answer = heapless::String::<ANSWER_MAX>::new();
        let action = self.session.run(line, &mut answer);
        assert!(answer.len() < ANSWER_MAX);
        assert!(answer.is_empty() || answer.ends_with('\n'), "{answer:?}");
        (action, answer.as_str().to_owned())
    }
}

fn typed(input: &mut Input, text: &str) -> (Vec<Line>, String) {
    let (mut lines, mut echo) = (Vec::new(), String::new());
    for byte in text.bytes() {
        lines.extend(input.push(byte, &mut echo));
    }
    (lines, echo)
}

fn whole(lines: &[&str]) -> Vec<Line> {
    lines.iter().map(|&line| Ok(heapless::String::try_from(line).expect("it fits"))).collect()
}

#[test]
fn a_session_sets_shows_saves_and_reboots() {
    let mut terminal = Terminal::new(ethernet(), Flash::new());
    assert!(terminal.ask("show").contains("no nsqd is set"));
    let answer = terminal.ask("set nsqd 192.168.1.10:4150");
    assert_eq!(
        answer,
        "* nsqd             192.168.1.10:4150\nnot saved yet: `save`, then `reboot`\n"
    );
    terminal.ask("set name  greenhouse ");
    let shown = terminal.ask("show");
    assert!(shown.contains("* name             greenhouse\n"), "{shown}");
    assert!(shown.contains("  interval         5s\n") && shown.contains("* not saved yet"));
    assert_eq!(terminal.ask("save"), "saved; `reboot` to use it\n");
    assert_eq!(terminal.ask("save"), "nothing to save: flash has these settings\n");
    assert!(!terminal.ask("show").contains('*'));
    assert_eq!(terminal.act("reboot"), (Some(Action::Reboot), String::new()));
}

#[test]
fn saved_settings_are_loaded_after_a_reboot() {
    let mut flash = Flash::new();
    let mut first = Terminal::new(ethernet(), flash.clone());
    first.ask("set topic temperatures");
    first.ask("save");
    first.ask("set topic forgotten");
    // The session owns its flash: write the same record to the other copy.
    let mut store = Store::new(&mut flash, 0);
    store.load(&mut [0; TEXT_MAX]).expect("flash can be read");
    store.save(&first.session.saved().encode(&ethernet()).expect("it fits")).expect("saved");
    let mut second = Terminal::new(ethernet(), flash);
    assert_eq!(second.ask("show topic"), "  topic            temperatures\n");
}

#[test]
fn a_failed_save_is_reported_and_keeps_the_edited_settings() {
    let mut flash = Flash::new();
    flash.budget = Some(5000);
    let mut terminal = Terminal::new(ethernet(), flash);
    terminal.ask("set count 1");
    assert_eq!(
        terminal.ask("save"),
        "saved; `reboot` to use it\nno nsqd is set: set nsqd HOST:4150, then save and reboot\n"
    );
    terminal.ask("set count 2");
    let answer = terminal.ask("save");
    assert!(answer.starts_with("not saved: flash: "), "{answer}");
    assert!(terminal.ask("show count").starts_with("* count            2"));
    assert_eq!(terminal.session.saved().count, 1);
}

#[test]
fn bad_input_changes_nothing() {
    let mut terminal = Terminal::new(ethernet(), Flash::new());
    let before = terminal.ask("show");
    for (line, start) in [
        ("set", "set what?"),
        ("set topic", "nothing changed: topic needs a value"),
        ("set colour red", "nothing changed: unknown setting 'colour'"),
        ("set wifi-ssid home", "nothing changed: this board has no wifi-ssid: it has no Wi-Fi"),
        ("set interval never", "nothing changed: 'never' is not a duration"),
        ("set nsqd 10.0.0.1", "nothing changed: '10.0.0.1' is not host:port"),
        ("unset colour", "nothing changed: unknown setting"),
        ("show colour", "unknown setting 'colour'"),
        ("dance", "unknown command 'dance'; `help` lists all"),
        ("SET topic x", "unknown command 'SET'"),
        ("stall nothing", "stall, stall network or stall publisher?"),
    ] {
        let (action, answer) = terminal.act(line);
        assert!(answer.starts_with(start), "{line}: {answer}");
        assert_eq!(action, None);
    }
    assert_eq!(terminal.ask("show"), before);
    for nothing in ["", "   "] {
        assert_eq!(terminal.act(nothing), (None, String::new()));
    }
}

#[test]
fn revert_and_unset() {
    let mut terminal = Terminal::new(ethernet(), Flash::new());
    terminal.ask("set count 1");
    terminal.ask("save");
    terminal.ask("set count 2");
    assert_eq!(terminal.ask("revert"), "all settings are as saved\n");
    assert_eq!(terminal.ask("show count"), "  count            1\n");
    assert!(terminal.ask("unset count").starts_with("* count            0\nnot saved yet"));
    terminal.ask("set name x");
    terminal.ask("unset name");
    assert_eq!(terminal.ask("show name"), "  name             test-abcdef09\n");
    assert!(terminal.act("reboot").1.contains("unsaved changes are discarded"));
}

#[test]
fn actions_are_returned_to_the_board() {
    let mut terminal = Terminal::new(ethernet(), Flash::new());
    for (line, action) in [
        ("stats", Action::Stats),
        ("reboot", Action::Reboot),
        ("bootloader", Action::Bootloader),
        ("panic", Action::Panic),
        ("stall", Action::Stall),
        ("stall network", Action::StallNetwork),
        ("stall publisher", Action::StallPublisher),
    ] {
        assert_eq!(terminal.act(line).0, Some(action));
    }
}

#[test]
fn help_has_every_setting_of_the_board_and_no_other() {
    let help = Terminal::new(ethernet(), Flash::new()).ask("help");
    for key in Key::ALL {
        assert_eq!(help.contains(key.word()), !key.word().starts_with("wifi"), "{}", key.word());
    }
    assert!(Terminal::new(wifi(), Flash::new()).ask("help").contains("wifi-password"));
}

#[test]
fn the_longest_answer_fits() {
    let mut terminal = Terminal::new(wifi(), Flash::new());
    let host = |c: &str| format!("{}:65535", c.repeat(96));
    terminal.ask(&format!("set nsqd {},{},{}", host("a"), host("b"), host("c")));
    terminal.ask(&format!("set lookupd {},{},{}", host("a"), host("b"), host("c")));
    terminal.ask(&format!("set broadcast {}", host("d")));
    for key in ["topic", "reports", "replies", "commands"] {
        terminal.ask(&format!("set {key} {}", "t".repeat(64)));
    }
    let shown = terminal.ask("show");
    assert!(shown.len() > 1000 && shown.ends_with("set wifi-password PASSWORD\n"), "{shown}");
    terminal.ask("help");
}

#[test]
fn the_password_is_not_shown() {
    let mut terminal = Terminal::new(wifi(), Flash::new());
    assert!(
        terminal
            .ask("set wifi-password secret-secret")
            .starts_with("* wifi-password    ********\n")
    );
    assert!(!terminal.ask("show").contains("secret"));
    assert_eq!(terminal.session.saved().wifi_password, "");
}

#[test]
fn lines_end_in_three_ways() {
    let mut input = Input::new();
    assert_eq!(typed(&mut input, "a\rb\r\nc\nd").0, whole(&["a", "b", "c"]));
    assert_eq!(typed(&mut input, "\r").0, whole(&["d"]));
    assert_eq!(typed(&mut input, "\n\n").0, whole(&[""]), "the first LF belongs to the CR before");
}

#[test]
fn typing_is_echoed_and_can_be_deleted() {
    let mut input = Input::new();
    let (lines, echo) = typed(&mut input, "shox\x08w\x7F\x7F\x7F\x7F\x7F\x7Fsave\r");
    assert_eq!(lines, whole(&["save"]));
    assert!(echo.starts_with("shox\x08 \x08w") && echo.ends_with("save\n"), "{echo:?}");
    let (lines, echo) = typed(&mut input, "panic\x03ok\r");
    assert_eq!((lines, &*echo), (whole(&["ok"]), "panic\n> ok\n"));
}

#[test]
fn arrow_keys_and_umlauts_are_ignored() {
    let mut input = Input::new();
    let (lines, echo) = typed(&mut input, "a\x1B[Ab\x1BOPc\x1B[1;5Dd\x1Bxe\u{e4}\0\r");
    assert_eq!((lines, &*echo), (whole(&["abcde"]), "abcde\n"));
}

#[test]
fn a_line_that_is_too_long_is_discarded_whole() {
    let mut input = Input::new();
    let fits = "x".repeat(LINE_MAX);
    assert_eq!(typed(&mut input, &format!("{fits}\r")).0, whole(&[&fits]));
    assert_eq!(typed(&mut input, &format!("{fits}y\r")).0, [Err(TooLong)]);
    assert_eq!(typed(&mut input, "show\r").0, whole(&["show"]), "the next line is unaffected");
    typed(&mut input, &format!("{fits}yyy\x15"));
    assert_eq!(typed(&mut input, "show\r").0, whole(&["show"]));
}

#[test]
fn settings_of_another_firmware_are_mentioned() {
    let mut flash = Flash::new();
    Store::new(&mut flash, 0).save("colour red\ncount 5\n").expect("saved");
    let mut terminal = Terminal::new(ethernet(), flash);
    assert_eq!(terminal.session.saved().count, 5);
    let line = "1 saved settings are not for this firmware: ignored\n";
    assert!(terminal.ask("show").contains(line));
    terminal.ask("set count 6");
    terminal.ask("save");
    assert!(!terminal.ask("show").contains(line), "a save removes them");
}
