//! The flags of the reference's commands, as `flags.tsv` lists them, against ours.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::any::TypeId;

use caddis_cli::Usage;
use clap::{Arg, ArgAction, Args as _, Command, Parser, Subcommand as _};

#[derive(Parser)]
#[command(name = "caddis")]
struct Cli {
    #[command(flatten)]
    _globals: caddis_cli::Globals,
    #[command(subcommand)]
    _command: caddis_cli::Command,
}

struct Row {
    command: &'static str,
    flag: &'static str,
    short: &'static str,
    kind: &'static str,
    default: &'static str,
    note: &'static str,
}

fn rows() -> Vec<Row> {
    let lines = include_str!("flags.tsv").lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let mut cells = line.split('\t');
        let mut cell = || cells.next().unwrap_or_default();
        let row = Row {
            command: cell(),
            flag: cell(),
            short: cell(),
            kind: cell(),
            default: cell(),
            note: cell(),
        };
        assert_eq!(cells.next(), None, "{line}");
        row
    };
    lines.map(row).collect()
}

fn caddis() -> Command {
    let command = caddis_cli::Globals::augment_args(Command::new("caddis"));
    let mut command = caddis_cli::Command::augment_subcommands(command);
    command.build();
    command
}

fn find<'a>(caddis: &'a Command, path: &str) -> Option<&'a Command> {
    let words = path.split(' ').filter(|word| *word != "*");
    words.into_iter().try_fold(caddis, |command, word| command.find_subcommand(word))
}

/// The argument of this long name, or with this other name.
fn argument<'a>(command: &'a Command, flag: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|argument| {
        argument.get_long() == Some(flag)
            || argument.get_all_aliases().is_some_and(|names| names.contains(&flag))
    })
}

fn kind(argument: &Arg) -> &'static str {
    let parses = |kind: TypeId| argument.get_value_parser().type_id() == kind;
    let is_int =
        parses(TypeId::of::<u64>()) || parses(TypeId::of::<i64>()) || parses(TypeId::of::<u32>());
    match argument.get_action() {
        ArgAction::SetTrue => "bool",
        ArgAction::Set if parses(TypeId::of::<bool>()) => "bool",
        ArgAction::Append if argument.get_value_delimiter() == Some(',') => "slice",
        ArgAction::Append => "array",
        ArgAction::Set if is_int => "int",
        ArgAction::Set
            if argument.get_num_args().is_some_and(|number| number.min_values() == 0) =>
        {
            "optional"
        }
        ArgAction::Set => "string",
        other => panic!("{argument}: {other:?}"),
    }
}

/// What is not as the row says; nothing when all is.
fn differences(command: &Command, row: &Row) -> Vec<String> {
    let Some(argument) = argument(command, row.flag) else {
        return vec!["is not there".to_owned()];
    };
    let mut found = Vec::new();
    let mut compare = |what: &str, ours: String, theirs: &str| {
        if ours != theirs {
            found.push(format!("{what} is {ours:?}, not {theirs:?}"));
        }
    };
    if row.kind == "alias" {
        compare("the flag", argument.get_long().unwrap_or_default().to_owned(), row.default);
        let short = row.short.chars().next();
        let shorts = argument.get_all_short_aliases().unwrap_or_default();
        if short.is_some_and(|short| !shorts.contains(&short)) {
            found.push(format!("-{} is not there", row.short));
        }
        return found;
    }
    compare("the long name", argument.get_long().unwrap_or_default().to_owned(), row.flag);
    compare(
        "the short name",
        argument.get_short().map(String::from).unwrap_or_default(),
        row.short,
    );
    // A duration is read by the command.
    compare(
        "the type",
        kind(argument).to_owned(),
        if row.kind == "duration" { "string" } else { row.kind },
    );
    let default =
        argument.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let none = |value: &String| argument.get_action().takes_values() && value != "false";
    compare("the default", default.filter(none).unwrap_or_default(), row.default);
    found
}

#[test]
fn every_flag_of_the_reference_is_there_or_the_table_says_why_not() {
    let caddis = caddis();
    let mut wrong = Vec::new();
    let rows = rows();
    assert!(rows.len() > 300, "{}", rows.len());
    for row in &rows {
        let name = format!("{} --{}", row.command, row.flag);
        let command = find(&caddis, row.command);
        let found = match command {
            Some(command) => differences(command, row),
            None => vec!["is of a command that is not there".to_owned()],
        };
        match row.note.split_once(": ") {
            None if row.note.is_empty() => {
                wrong.extend(found.iter().map(|text| format!("{name}: {text}")))
            }
            Some(("differs", why)) if !why.is_empty() => {
                if found.is_empty() {
                    wrong.push(format!("{name} does not differ any more"));
                }
                if command.and_then(|command| argument(command, row.flag)).is_none() {
                    wrong.push(format!("{name} is missing"));
                }
            }
            Some(("missing", why)) if !why.is_empty() => {
                if command.and_then(|command| argument(command, row.flag)).is_some() {
                    wrong.push(format!("{name} is not missing any more"));
                }
            }
            _ => wrong.push(format!("{name}: the note {:?} says nothing", row.note)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_in_the_table_twice() {
    let mut seen = std::collections::BTreeSet::new();
    for row in rows() {
        assert!(seen.insert((row.command, row.flag)), "{} --{}", row.command, row.flag);
    }
}

/// What help calls values that are no numbers. Whatever has another name is one.
const TEXTS: &[&str] = &[
    "ACTION",
    "ADDRESS",
    "ARGUMENT",
    "BOOL",
    "CHOICE",
    "CIDR",
    "CODE",
    "COMMAND",
    "DIR",
    "FILE",
    "GROUP",
    "ID",
    "IDS",
    "IMAGE",
    "INTERVAL",
    "JSON",
    "KEY=VALUE",
    "KIND",
    "LABEL",
    "MACHINE",
    "NAME",
    "NAME=VALUE",
    "ORG",
    "PATH",
    "PATH=FILE",
    "PATH=SECRET",
    "PATH=TEXT",
    "POLICY",
    "PORT",
    "PRESET",
    "PROGRAM",
    "REGION",
    "REGIONS",
    "RULE",
    "SLUG",
    "SNAPSHOT",
    "TARGET",
    "TEXT",
    "TOKEN",
    "TYPE",
    "URL",
    "VOLUME",
    "VOLUME:PATH",
    "VOLUME[:PATH]",
    "WEIGHTS",
    "WHEN",
];

/// Calls `each` with all commands that do something, and their words.
fn walk(command: &Command, words: &[String], each: &mut impl FnMut(&Command, &[String])) {
    if !command.has_subcommands() {
        each(command, words);
    }
    for below in command.get_subcommands() {
        walk(below, &[words, &[below.get_name().to_owned()]].concat(), each);
    }
}

#[test]
fn a_negative_value_of_any_flag_that_takes_a_number_is_told_as_negative() {
    let (mut tried, mut wrong) = (0, Vec::new());
    walk(&caddis(), &["caddis".to_owned()], &mut |command, words| {
        for argument in command.get_arguments().filter(|one| one.get_action().takes_values()) {
            let name = argument.get_value_names().unwrap_or_default().first();
            let (Some(long), Some(name)) = (argument.get_long(), name) else { continue };
            let is_named_after_the_flag = name.eq_ignore_ascii_case(&long.replace('-', "_"));
            let is_number = kind(argument) == "int"
                || (!is_named_after_the_flag && !TEXTS.contains(&name.as_str()));
            // The command itself says what is wrong with it.
            if !is_number || long == "vm-cpus" {
                continue;
            }
            let short = argument.get_short().map(|short| format!("-{short}"));
            for flag in short.into_iter().chain([format!("--{long}")]) {
                tried += 1;
                let line = words.iter().cloned().chain([flag.clone(), "-5".to_owned()]);
                let said = match caddis_cli::parse::<Cli>(line) {
                    Ok(_) => "nothing".to_owned(),
                    Err(error) => Usage::of(&error).text.to_string(),
                };
                if !said.starts_with(&format!("error: --{long} must not be negative, got: -5")) {
                    wrong.push(format!("{} {flag} <{name}>: {said}", words.join(" ")));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 30, "{tried}");
}
