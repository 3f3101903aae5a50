//! The sessions of *An introduction to Fly Machines* with our command line, line by line. Where a
//! line is another, the reason is a row of docs/differences.md.

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::Terminal;
use regex::Regex;
use serde_json::json;

use crate::stand::Stand;

const DIFFERENCES: &str = include_str!("../../../../docs/differences.md");

/// A line of a session. What differs from run to run is in braces: `{id}`, `{name}`, `{number}`,
/// `{address}`, `{image}`. How many blanks there are does not count.
enum Line<'a> {
    /// The article's.
    Same(&'a str),
    /// What there is in place of a line of the article, or beside its lines, and the row that says
    /// why.
    Ours(&'a [&'a str], &'a str),
}
use Line::{Ours, Same};

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn pattern(line: &str) -> Result<Regex> {
    let mut pattern = regex::escape(&words(line));
    for (name, text) in [
        ("id", "[0-9a-f]{14}"),
        ("name", "[a-z0-9-]+"),
        ("number", "[0-9]+"),
        ("address", "fdaa:[0-9a-f:]+"),
        ("image", "[^ ]+@sha256:[0-9a-f]{64}"),
    ] {
        pattern = pattern.replace(&format!(r"\{{{name}\}}"), text);
    }
    Regex::new(&format!("^{pattern}$")).context("a line of the session")
}

/// Compares a whole session.
fn compare(terminal: &Terminal, lines: &[Line<'_>]) -> Result<()> {
    let shown = terminal.lines();
    let expected = lines.iter().flat_map(|line| match line {
        Same(line) => vec![(*line, None)],
        Ours(lines, row) => lines.iter().map(|line| (*line, Some(*row))).collect(),
    });
    let expected: Vec<_> = expected.collect();
    for (at, (line, row)) in expected.iter().enumerate() {
        let found = shown.get(at).map_or("", String::as_str);
        ensure!(
            pattern(line)?.is_match(&words(found)),
            "line {at} is {found:?} and not {line:?}:\n{}",
            shown.join("\n")
        );
        if let Some(row) = row {
            let told = DIFFERENCES.lines().any(|line| line.starts_with('|') && line.contains(row));
            ensure!(told, "docs/differences.md has no row with {row:?}, which tells of {line:?}");
        }
    }
    ensure!(shown.len() == expected.len(), "there is more:\n{}", shown.join("\n"));
    Ok(())
}

#[tokio::test]
async fn a_shell_without_any_configuration() -> Result<()> {
    let stand = Stand::new().await?;
    let mut terminal = stand.terminal(&["machine", "run", "--shell"])?;
    // The shell of a pretended machine; one of a real machine is in the end-to-end tests.
    terminal.expect("session of root on ").await?;
    terminal.send("\u{4}").await?;
    ensure!(terminal.end().await?.code() == Some(0), "{}", terminal.screen());
    compare(
        &terminal,
        &[
            Ours(
                &["automatically selected personal organization: Personal"],
                "Select Organization",
            ),
            Same("Searching for image 'ubuntu' remotely..."),
            Same("Image size: 30 MB"),
            Same(""),
            Ours(
                &["Success! A Machine has been successfully launched in app \
                   interactive-shells-personal-{number}"],
                "flyctl-interactive-shells-",
            ),
            Same(" Machine ID: {id}"),
            Same("Connecting to {address}... complete"),
            Ours(&["session of root on {number}x{number}"], "a shell of its own"),
        ],
    )
}

#[tokio::test]
async fn a_machine_is_cloned() -> Result<()> {
    let stand = Stand::new().await?;
    let id = stand.machine("twilight-field-6033").await?;
    let mut terminal =
        stand.terminal(&["machine", "clone", "-a", "shop", "--region", "local", &id])?;
    ensure!(terminal.end().await?.code() == Some(0), "{}", terminal.screen());
    compare(
        &terminal,
        &[
            Ours(&["Cloning Machine {id} into region local"], "`Machine` with a capital"),
            Ours(&["Provisioning a new Machine with image web..."], "`Machine` with a capital"),
            Same("  Machine {id} has been created..."),
            Ours(&["  Waiting for Machine {id} to start..."], "`Machine` with a capital"),
            Ours(&["No health checks found"], "`No health checks found`"),
            Same("Machine has been successfully cloned!"),
            Ours(
                &["  Name: {name}", "  Private IP: {address}"],
                "name and address of the new machine",
            ),
        ],
    )
}

#[tokio::test]
async fn a_machine_gets_more_memory() -> Result<()> {
    let stand = Stand::new().await?;
    // As the reference's client writes it.
    let config = json!({
        "env": { "A": "1" }, "init": {}, "image": "web", "restart": { "policy": "no" },
        "guest": { "cpu_kind": "shared", "cpus": 1, "memory_mb": 256 }, "dns": {},
    });
    let body = json!({ "name": "twilight-field-6033", "config": config });
    let machine = stand.server.api()?.create_machine_from("shop", body).await?;
    machine.wait("started").await?;
    let mut terminal = stand.terminal(&[
        "machine",
        "update",
        "-a",
        "shop",
        "--vm-memory",
        "512M",
        machine.id(),
    ])?;
    terminal.expect("Apply changes?").await?;
    terminal.send("y\r").await?;
    ensure!(terminal.end().await?.code() == Some(0), "{}", terminal.screen());
    compare(
        &terminal,
        &[
            Same("Configuration changes to be applied to machine: {id} (twilight-field-6033)"),
            Same(""),
            Same("    ... // {number} identical lines"),
            Same("      \"cpu_kind\": \"shared\","),
            Same("      \"cpus\": 1,"),
            Same("-     \"memory_mb\": 256"),
            Same("+     \"memory_mb\": 512"),
            Same("    },"),
            Same("    \"dns\": {}"),
            Same("  }"),
            Same(""),
            Ours(&["Apply changes? (y/N) y"], "`? Apply changes? Yes`"),
            Same("Updating machine {id}"),
            Same("No health checks found"),
            Same("Machine {id} updated successfully!"),
            Ours(
                &["", "Monitor machine status here:", "  caddis machine status {id} -a shop"],
                "ends with the command that shows the machine",
            ),
        ],
    )
}
