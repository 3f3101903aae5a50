//! `caddis man`: the manual, a page per command, made from what the commands say of themselves in
//! `--help`.

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::Context as _;
use clap::{Arg, Args, Command};

use crate::print;

/// `caddis man`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis man --directory /usr/local/share/man/man1\n  caddis man \
                  --directory docs/cli --markdown"
)]
pub struct ManArguments {
    /// Directory for the pages; created if missing.
    #[arg(long, value_name = "DIRECTORY")]
    directory: PathBuf,
    /// Write Markdown instead of manual pages.
    #[arg(long)]
    markdown: bool,
}

/// Writes the pages of all commands that help shows.
pub fn write(arguments: &ManArguments, mut caddis: Command) -> anyhow::Result<()> {
    caddis.build();
    let directory = &arguments.directory;
    fs::create_dir_all(directory)
        .with_context(|| format!("could not create {}", directory.display()))?;
    let mut commands = vec![&caddis];
    let mut pages = 0;
    while let Some(command) = commands.pop() {
        commands.extend(shown(command));
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let (ending, text) = match arguments.markdown {
            true => ("md", markdown(command).into_bytes()),
            false => ("1", manual_page(command)?),
        };
        let path = directory.join(format!("{name}.{ending}"));
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        pages += 1;
    }
    Ok(print::line(format_args!("{pages} pages written to {}", directory.display()))?)
}

/// The commands within a command that help shows.
fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|command| !command.is_hide_set())
}

fn manual_page(command: &Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    Ok(page)
}

fn markdown(command: &Command) -> String {
    let called = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut page = format!("# {called}\n\n{}\n", about(command));
    // Without colours: nobody's terminal is meant.
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(page, "\n```\n{}\n```", usage.trim_start_matches("Usage: "));
    let aliases: Vec<_> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(page, "\nAlso called {}.", aliases.join(", "));
    }
    let commands: Vec<_> = shown(command).collect();
    if !commands.is_empty() {
        page.push_str("\n| command | |\n|---|---|\n");
        for command in commands {
            let file = command.get_display_name().unwrap_or_else(|| command.get_name());
            let _ = writeln!(
                page,
                "| [{}]({file}.md) | {} |",
                command.get_name(),
                cell(&about(command))
            );
        }
    }
    let arguments = || command.get_arguments().filter(|argument| !argument.is_hide_set());
    table(&mut page, "argument", arguments().filter(|argument| argument.is_positional()));
    let is_global = |argument: &&Arg| {
        argument.is_global_set() || argument.get_id() == "help" || argument.get_id() == "version"
    };
    table(
        &mut page,
        "option",
        arguments().filter(|argument| !argument.is_positional() && !is_global(argument)),
    );
    if command.get_bin_name() == Some("caddis") {
        table(&mut page, "option of every command", arguments().filter(is_global));
    }
    if let Some(examples) = command.get_after_help() {
        let examples = examples.to_string();
        let (title, lines) = examples.split_once('\n').unwrap_or(("", &examples));
        let lines: Vec<_> =
            lines.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect();
        let _ = writeln!(page, "\n{title}\n\n```sh\n{}\n```", lines.join("\n").trim_end());
    }
    page
}

fn about(command: &Command) -> String {
    command.get_about().map(|about| about.to_string()).unwrap_or_default()
}

fn table<'a>(page: &mut String, title: &str, arguments: impl Iterator<Item = &'a Arg>) {
    let mut head = format!("\n| {title} | |\n|---|---|\n");
    for argument in arguments {
        page.push_str(&std::mem::take(&mut head));
        let _ =
            writeln!(page, "| `{}` | {} |", cell(&spelling(argument)), cell(&meaning(argument)));
    }
}

/// Text that does not end its cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// How it is written: `-a, --app <NAME>`.
fn spelling(argument: &Arg) -> String {
    // As `--help` writes it, with every name it has.
    let mut names: Vec<_> =
        argument.get_short().map(|short| format!("-{short}")).into_iter().collect();
    names.extend(
        argument.get_visible_short_aliases().into_iter().flatten().map(|short| format!("-{short}")),
    );
    names.extend(argument.get_long().map(|long| format!("--{long}")));
    names.extend(
        argument.get_visible_aliases().into_iter().flatten().map(|long| format!("--{long}")),
    );
    if argument.is_positional() {
        return argument.to_string();
    }
    let value = argument.to_string();
    let value =
        value.find(['<', '[', '=', ' ']).map(|at| value[at..].to_owned()).unwrap_or_default();
    format!("{}{value}", names.join(", "))
}

fn meaning(argument: &Arg) -> String {
    let mut text = argument.get_help().map(|help| help.to_string()).unwrap_or_default();
    let defaults: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty()
        && argument.get_action().takes_values()
        && !argument.is_hide_default_value_set()
    {
        let _ = write!(text, " [default: {}]", defaults.join(" "));
    }
    if let Some(variable) = argument.get_env().filter(|_| !argument.is_hide_env_set()) {
        let _ = write!(text, " [env: {}]", variable.to_string_lossy());
    }
    let values: Vec<_> =
        argument.get_possible_values().into_iter().filter(|value| !value.is_hide_set()).collect();
    if !values.is_empty()
        && argument.get_action().takes_values()
        && !argument.is_hide_possible_values_set()
    {
        let names: Vec<_> = values.iter().map(|value| value.get_name().to_owned()).collect();
        let _ = write!(text, " [possible values: {}]", names.join(", "));
    }
    text
}
