//! Where flags come from: the command line, then variables `NANONSQ_<FLAG>`, then a file.
//!
//! What a variable or the file sets becomes an argument after those of the command line, unless the
//! flag is given there. So values, ranges and conflicts are checked in one place, by clap.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, Parser};
use log::LevelFilter;
use toml::de::{DeTable, DeValue};

use crate::not_here::{is_not_here, not_here};

/// Flags of all commands.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// TOML file with more flags, named as here; those of one command in a section of its name.
    /// NANONSQ_FLAG, with the flag's name, in the environment outranks the file, and a flag given
    /// here outranks both.
    #[arg(long, global = true, value_name = "PATH")]
    config: Option<PathBuf>,

    /// What to log: off, error, warn, info, debug or trace. Without it and -q and -v, the variable
    /// RUST_LOG counts [default: info].
    #[arg(long, global = true, value_name = "LEVEL", value_parser = level)]
    log_level: Option<LevelFilter>,

    /// Log errors only, and print no progress and no summary.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Log more: -v as --log-level debug, -vv as trace.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

impl Common {
    /// Returns what to log, if that is given.
    pub(crate) fn level(&self) -> Option<LevelFilter> {
        match (self.quiet, self.verbose) {
            (true, _) => Some(LevelFilter::Error),
            (false, 0) => self.log_level,
            (false, 1) => Some(LevelFilter::Debug),
            (false, _) => Some(LevelFilter::Trace),
        }
    }
}

fn level(text: &str) -> Result<LevelFilter, String> {
    // nsqd's level for what ends it. The line of an error that ends this program is always printed.
    let text = if text.eq_ignore_ascii_case("fatal") { "off" } else { text };
    text.parse().map_err(|_| "write off, error, warn, info, debug or trace".to_owned())
}

/// The commands with flags of NSQ's servers.
const SERVERS: [&str; 2] = ["node", "lookupd"];

/// Parses the command line, with what variables and the file add to it.
pub(crate) fn parse<T: Parser>(
    args: Vec<OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<T, clap::Error> {
    let mut command = T::command();
    // Gives each command the flags of all.
    command.build();
    let fail = |text| T::command().error(ErrorKind::ValueValidation, text);
    let mut args = double_dashes(&command, args);
    check_names(&command, &args).map_err(fail)?;
    // What is required may come from the others.
    let optional = |command: Command| {
        let groups: Vec<_> = command.get_groups().map(|group| group.get_id().clone()).collect();
        let command = command.mut_args(|arg| arg.required(false));
        groups
            .into_iter()
            .fold(command, |command, group| command.mut_group(group, |group| group.required(false)))
    };
    let matches = optional(T::command().mut_subcommands(optional)).try_get_matches_from(&args)?;
    if let Some((name, given)) = matches.subcommand()
        && let Some(of) = command.find_subcommand(name).filter(|of| !of.is_hide_set())
    {
        let more = Others { command: &command, of, given, variable: &variable };
        args.extend(more.arguments().map_err(fail)?);
    }
    T::from_arg_matches(&T::command().try_get_matches_from(args)?)
}

/// Writes the long flags of NSQ's programs, `-topic=t`, with two dashes.
fn double_dashes(command: &Command, args: Vec<OsString>) -> Vec<OsString> {
    let is_long = |name: &str| {
        let mut flags = command.get_subcommands().flat_map(Command::get_arguments);
        flags.any(|flag| flag.get_long() == Some(name)) || is_not_here(name)
    };
    let mut is_over = false;
    let double = |arg: OsString| {
        is_over |= arg == "--";
        match arg.to_str().and_then(|arg| arg.strip_prefix('-')) {
            Some(flag) if !is_over && is_long(flag.split('=').next().unwrap_or_default()) => {
                format!("--{flag}").into()
            }
            _ => arg,
        }
    };
    args.into_iter().map(double).collect()
}

/// Fails, for a server, if flags of NSQ's servers do not apply.
fn check_names(command: &Command, args: &[OsString]) -> Result<(), String> {
    let args = || args.iter().skip(1).filter_map(|arg| arg.to_str());
    let server = args().find_map(|arg| command.find_subcommand(arg));
    let Some(server) = server.filter(|server| SERVERS.contains(&server.get_name())) else {
        return Ok(());
    };
    let flags = args().filter_map(|arg| arg.strip_prefix("--")?.split('=').next());
    let named: Vec<_> = flags.map(|flag| (flag.to_owned(), format!("--{flag}"))).collect();
    not_here(server.get_name(), &named).map_or(Ok(()), Err)
}

/// What the file has for a flag.
struct Entry {
    /// File, line and key.
    place: String,
    values: Vec<String>,
}

/// What variables and the file have for a command.
struct Others<'a> {
    command: &'a Command,
    of: &'a Command,
    given: &'a ArgMatches,
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Others<'_> {
    /// Returns the arguments to add.
    fn arguments(&self) -> Result<Vec<OsString>, String> {
        let given = self.given.get_one::<PathBuf>("config").cloned();
        let file = given.or_else(|| self.variable("config").map(PathBuf::from));
        let mut entries = file.map_or(Ok(BTreeMap::new()), |path| self.read(&path))?;
        let mut arguments = Vec::new();
        for flag in self.of.get_arguments().filter(|flag| is_settable(flag)) {
            let Some(name) = flag.get_long() else { continue };
            let (place, values) = match (self.variable(name), entries.remove(name)) {
                _ if self.outranks(flag, |other| self.is_given(other)) => continue,
                // It is not for a command line: see `Secret`.
                (Some(_), _) if name == "auth-secret" => continue,
                (Some(value), _) => {
                    let place = variable_of(name);
                    let value = value.into_string().map_err(|_| format!("{place}: no UTF-8"))?;
                    let of_list = matches!(flag.get_action(), ArgAction::Append);
                    let values = match of_list {
                        true => value.split(',').map(|one| one.trim().to_owned()).collect(),
                        false => vec![value],
                    };
                    (place, values)
                }
                (None, Some(_)) if self.outranks(flag, |other| self.is_in_variable(other)) => {
                    continue;
                }
                (None, Some(entry)) => (entry.place, entry.values),
                (None, None) => continue,
            };
            for value in
                arguments_of(flag, name, values).map_err(|why| format!("{place}: {why}"))?
            {
                self.check(&value).map_err(|why| format!("{place}: {why}"))?;
                arguments.push(value);
            }
        }
        Ok(arguments)
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        (self.variable)(&variable_of(name)).filter(|value| !value.is_empty())
    }

    fn is_given(&self, flag: &Arg) -> bool {
        self.given.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine)
    }

    fn is_in_variable(&self, flag: &Arg) -> bool {
        flag.get_long().is_some_and(|name| self.variable(name).is_some())
    }

    /// Returns whether `is_set` holds for the flag, or for one that cannot be used with it.
    fn outranks(&self, flag: &Arg, is_set: impl Fn(&Arg) -> bool) -> bool {
        let conflict = |one: &Arg, other: &Arg| {
            self.of.get_arg_conflicts_with(one).iter().any(|with| with.get_id() == other.get_id())
        };
        let mut flags = self.of.get_arguments().filter(|other| {
            other.get_id() == flag.get_id() || conflict(flag, other) || conflict(other, flag)
        });
        flags.any(is_set)
    }

    /// Fails if the value is none for its flag.
    fn check(&self, argument: &OsString) -> Result<(), String> {
        let program = OsString::from(self.command.get_name());
        let args = [program, self.of.get_name().into(), argument.clone()];
        let Err(error) = self.command.clone().try_get_matches_from(args) else { return Ok(()) };
        if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
            return Ok(());
        }
        let text = error.to_string();
        let text = text.split("\n\n").next().unwrap_or_default();
        Err(text.trim_start_matches("error: ").replace('\n', " "))
    }

    /// Reads the file, whose keys must be flags.
    fn read(&self, path: &Path) -> Result<BTreeMap<String, Entry>, String> {
        let file = path.display();
        let text = fs::read_to_string(path).map_err(|why| format!("--config {file}: {why}"))?;
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let table = DeTable::parse(&text).map_err(|why| {
            let at = why.span().map_or(0, |span| span.start);
            format!("{file}:{}: {}", line(at), why.message().replace('\n', " "))
        })?;
        let (mut entries, mut not_applying) = (BTreeMap::new(), Vec::new());
        let mut read = |of: &Command, table: &DeTable<'_>| {
            for (key, value) in table.iter().filter(|(_, value)| !value.get_ref().is_table()) {
                let place = format!("{file}:{}: {}", line(key.span().start), key.get_ref());
                let name = name_of(key.get_ref());
                if flag_of(of, &name).is_none() {
                    if is_not_here(&name) {
                        let shown = format!("{} (line {})", key.get_ref(), line(key.span().start));
                        not_applying.push((name, shown));
                        continue;
                    }
                    return Err(format!("{place}: {}", self.unknown(of, &name)));
                }
                if of.get_name() == self.of.get_name() {
                    let values =
                        values(value.get_ref()).map_err(|why| format!("{place}: {why}"))?;
                    entries.insert(name, Entry { place, values });
                }
            }
            Ok(())
        };
        read(self.of, table.get_ref())?;
        // Later, to outrank what is there for all commands.
        for (key, value) in table.get_ref() {
            let DeValue::Table(section) = value.get_ref() else { continue };
            let Some(of) = self.command.find_subcommand(&**key.get_ref()) else {
                let line = line(key.span().start);
                return Err(format!("{file}:{line}: [{}]: no such command", key.get_ref()));
            };
            read(of, section)?;
        }
        let error = not_here(self.of.get_name(), &not_applying);
        error.map_or(Ok(entries), |text| Err(format!("{file}: {text}")))
    }

    /// Says why a key is none for a command.
    fn unknown(&self, of: &Command, name: &str) -> String {
        let others = self.command.get_subcommands().filter(|other| flag_of(other, name).is_some());
        let others: Vec<_> = others.map(|other| format!("[{}]", other.get_name())).collect();
        match &others[..] {
            [] => "no such flag".to_owned(),
            _ => format!(
                "no flag of nanonsq {}; put it under {}",
                of.get_name(),
                others.join(" or ")
            ),
        }
    }
}

/// Returns whether variables and the file may have it.
fn is_settable(flag: &Arg) -> bool {
    let (sets, named) = (flag.get_action(), flag.get_long());
    named != Some("config")
        && matches!(
            sets,
            ArgAction::Set | ArgAction::Append | ArgAction::SetTrue | ArgAction::Count
        )
}

fn flag_of<'a>(of: &'a Command, name: &str) -> Option<&'a Arg> {
    of.get_arguments().find(|flag| flag.get_long() == Some(name) && is_settable(flag))
}

fn variable_of(name: &str) -> String {
    format!("NANONSQ_{}", name.replace('-', "_").to_uppercase())
}

/// Returns the flag's name for a key of the file.
fn name_of(key: &str) -> String {
    match key.replace('_', "-").as_str() {
        // As in a file of nsqd's.
        "nsqlookupd-tcp-addresses" => "lookupd-tcp-address".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns the texts of a value of the file.
fn values(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    Ok(match value {
        DeValue::String(text) => vec![text.to_string()],
        DeValue::Integer(number) if number.radix() == 10 => vec![number.as_str().to_owned()],
        DeValue::Boolean(is) => vec![is.to_string()],
        DeValue::Array(all) => {
            let all = all.iter().map(|one| match one.get_ref() {
                DeValue::Array(_) => Err("a list in a list".to_owned()),
                one => values(one),
            });
            all.collect::<Result<Vec<_>, _>>()?.concat()
        }
        _ => return Err(format!("a {}; write a string or a number", value.type_str())),
    })
}

/// Returns values of a flag as arguments.
fn arguments_of(flag: &Arg, name: &str, values: Vec<String>) -> Result<Vec<OsString>, String> {
    match (flag.get_action(), &values[..]) {
        (ArgAction::SetTrue | ArgAction::Count, [value]) => match &**value {
            "true" | "1" => Ok(vec![format!("--{name}").into()]),
            "false" | "0" => Ok(Vec::new()),
            _ => Err(format!("\"{value}\" is neither true nor false")),
        },
        (ArgAction::Append, _) | (_, [_]) => {
            Ok(values.iter().map(|value| format!("--{name}={value}").into()).collect())
        }
        _ => Err(format!("{} values; give one", values.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;

    /// Parses a command line, with variables and, unless it is empty, a file.
    fn parse_with(args: &str, variables: &[(&str, &str)], toml: &str) -> Result<Cli, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, toml).unwrap();
        let path = file.path().to_str().unwrap();
        let mut args: Vec<OsString> =
            ["nanonsq"].into_iter().chain(args.split_whitespace()).map(OsString::from).collect();
        if !toml.is_empty() {
            args.extend(["--config".into(), path.into()]);
        }
        let variable = |name: &str| {
            let set = variables.iter().find(|(variable, _)| *variable == name);
            set.map(|(_, value)| OsString::from(value))
        };
        let parsed = parse(args, variable);
        parsed.map_err(|error| error.to_string().replace(path, "FILE"))
    }

    #[track_caller]
    fn shown(args: &str, variables: &[(&str, &str)], toml: &str) -> String {
        format!("{:?}", parse_with(args, variables, toml).unwrap().command)
    }

    const SUB: &str = "sub --topic t --nsqd-tcp-address h:1";

    #[test]
    fn a_file_is_what_its_flags_are() {
        let toml = "topic = 't'\nnsqd_tcp_address = ['a:1', 'b:2']\n\
                    [sub]\nmax-in-flight = 7\n[node]\nmem = 9\ndrop_oldest = true\n";
        let flags = "sub --topic=t --nsqd-tcp-address=a:1 --nsqd-tcp-address=b:2 --max-in-flight=7";
        let of_sub = toml.replace("topic =", "[sub]\ntopic =").replacen("[sub]\nmax", "max", 1);
        assert_eq!(shown("sub", &[], &of_sub), shown(flags, &[], ""));
        // As in a file of nsqd's. A section outranks what is for all.
        let toml = "mem = 1\nnsqlookupd_tcp_addresses = ['l:1']\nmsg_timeout = '5s'\n\
                    [nsqd]\nmem = 9\ndrop_oldest = true\n[lookupd]\ntcp_address = ':1'\n";
        let flags = "node --lookupd-tcp-address=l:1 --msg-timeout=5s --mem=9 --drop-oldest";
        assert_eq!(shown("node", &[], toml), shown(flags, &[], ""));
        assert_eq!(shown("node", &[], "drop_oldest = false"), shown("node", &[], ""));
    }

    #[test]
    fn variables_are_what_their_flags_are() {
        let set = [
            ("NANONSQ_TOPIC", "t"),
            ("NANONSQ_NSQD_TCP_ADDRESS", "a:1, b:2"),
            ("NANONSQ_MAX_IN_FLIGHT", "7"),
            ("NANONSQ_CHANNEL", ""),
        ];
        let flags = "sub --topic=t --nsqd-tcp-address=a:1 --nsqd-tcp-address=b:2 --max-in-flight=7";
        assert_eq!(shown("sub", &set, ""), shown(flags, &[], ""));
        assert_eq!(shown("sub", &set, "max_in_flight = 6\nchannel = 'c'"), {
            shown(&format!("{flags} --channel=c"), &[], "")
        });
        let common = |args, set: &[_], toml: &str| parse_with(args, set, toml).unwrap().common;
        assert_eq!(common("node", &[("NANONSQ_VERBOSE", "1")], "").verbose, 1);
        assert!(common("node", &[("NANONSQ_QUIET", "false")], "quiet = true").level().is_none());
    }

    #[test]
    fn an_error_names_its_place() {
        for (toml, says) in [
            ("\nmax_in_flight = 9999", "FILE:2: max_in_flight: invalid value '9999' for '--max-in"),
            ("a = 1", "FILE:1: a: no such flag"),
            ("config = 'x'", "FILE:1: config: no such flag"),
            ("help = true", "FILE:1: help: no such flag"),
            ("\n\nmem = 5", "FILE:3: mem: no flag of nanonsq sub; put it under [node]"),
            ("[node]\ntopic = 't'", "FILE:2: topic: no flag of nanonsq node; put it under [pub]"),
            ("[noode]\n", "FILE:1: [noode]: no such command"),
            ("channel = ['a', 'b']", "FILE:1: channel: 2 values; give one"),
            ("channel = 1.5", "FILE:1: channel: a float; write a string or a number"),
            ("quiet = 'yes'", "FILE:1: quiet: \"yes\" is neither true nor false"),
            ("channel = 'a'\nchannel = 'b'", "FILE:2: duplicate key"),
            ("channel", "FILE:1: "),
        ] {
            let error = parse_with(SUB, &[], toml).unwrap_err();
            assert!(error.starts_with(&format!("error: {says}")), "{error}");
        }
        let error = parse_with(SUB, &[("NANONSQ_MAX_IN_FLIGHT", "x")], "").unwrap_err();
        assert!(error.starts_with("error: NANONSQ_MAX_IN_FLIGHT: invalid value 'x'"), "{error}");
        let error = parse_with(&format!("{SUB} --config /no/file"), &[], "").unwrap_err();
        assert!(error.starts_with("error: --config /no/file: No such file"), "{error}");
        let error = parse_with("node", &[], "data_path = ''\nmem = 1\nsync_every = 2").unwrap_err();
        assert!(error.contains("data_path (line 1), sync_every (line 3): messages"), "{error}");
    }

    /// Of two flags that cannot be used together, the one of the higher rank counts.
    #[test]
    fn conflicts_are_a_matter_of_rank() {
        let secret = "auth_secret = 'a'";
        let set = [("NANONSQ_AUTH_SECRET_FILE", "b")];
        for (args, set, toml) in [
            (format!("{SUB} --auth-secret-file b"), &[][..], secret),
            (SUB.to_owned(), &set, secret),
            (format!("{SUB} --auth-secret a"), &set, ""),
            (SUB.to_owned(), &[("NANONSQ_AUTH_SECRET", "x")], "auth_secret_file = 'b'"),
        ] {
            parse_with(&args, set, toml).unwrap();
        }
        let both = parse_with(SUB, &[], "auth_secret = 'a'\nauth_secret_file = 'b'");
        assert!(both.unwrap_err().contains("cannot be used with"));
    }

    #[test]
    fn one_dash_is_enough_for_long_flags() {
        let flags = shown("node --tcp-address=:1 --msg-timeout 5s --drop-oldest", &[], "");
        assert_eq!(shown("node -tcp-address=:1 -msg-timeout 5s -drop-oldest", &[], ""), flags);
        for args in ["sub -topic=t -nsqd-tcp-address h:1 -n5", &format!("{SUB} -n 5")] {
            assert_eq!(shown(args, &[], ""), shown(&format!("{SUB} -n5"), &[], ""));
        }
        assert!(parse_with("node -no-such-flag", &[], "").is_err());
        assert!(parse_with("node -data-path=x", &[], "").unwrap_err().contains("in memory only"));
    }
}
