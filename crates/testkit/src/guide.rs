//! The pages of README and guide as scripts: each runs as it stands there, so that what is printed
//! works.
//!
//! A page is one script of its blocks marked `sh`. Those marked `sh vm` need a real VM. A block
//! marked `text` or `json` right after one of them is what it prints, see [`Block::shows`]. Blocks
//! marked `console` are not run.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Longest that a page may take, for coreutils' `timeout`.
const LONGEST: &str = "300";

/// A page of the guide, or README.
#[derive(Debug, Clone)]
pub struct Page {
    /// Its path below the repository, such as `docs/guide/api.md`.
    pub name: String,
    /// Its fenced blocks, from top to bottom.
    pub blocks: Vec<Block>,
}

/// A fenced block of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What follows the fence, such as `sh vm`.
    pub mark: String,
    /// Line of the page on which its first line is, from 1.
    pub line: usize,
    /// Its lines.
    pub text: String,
    /// What it prints according to the page, with its mark. Numbers, times and IDs may differ; of
    /// JSON the keys and types count, and further keys are allowed.
    pub shows: Option<(String, String)>,
}

/// Where a page runs.
#[derive(Debug)]
pub struct Place<'a> {
    /// Directory for what the script makes, its home and the current directory.
    pub directory: &'a Path,
    /// The binary.
    pub caddis: &'a Path,
    /// Variables that lead to the server.
    pub environment: BTreeMap<&'a str, String>,
    /// Whether its machines are real VMs. Otherwise blocks that need one are left out.
    pub has_vms: bool,
}

impl Page {
    /// All of them.
    ///
    /// # Errors
    /// When a page can't be read or ends within a block.
    pub fn all() -> Result<Vec<Self>> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut names = vec!["README.md".to_owned()];
        for entry in fs::read_dir(root.join("docs/guide")).context("listing the guide")? {
            let name = entry?.file_name();
            names.push(format!("docs/guide/{}", name.to_string_lossy()));
        }
        names.sort();
        let read = |name: String| {
            let text =
                fs::read_to_string(root.join(&name)).with_context(|| format!("reading {name}"))?;
            let blocks = blocks(&text).with_context(|| format!("in {name}"))?;
            Ok(Self { name, blocks })
        };
        names.into_iter().map(read).collect()
    }

    /// Whether a block of it needs a real VM.
    pub fn needs_vm(&self) -> bool {
        self.blocks.iter().any(Block::needs_vm)
    }

    /// Runs its blocks, and compares what they print with what the page shows.
    ///
    /// # Errors
    /// When a command fails or the page takes too long, with what was printed; when a block prints
    /// something else than the page shows.
    pub fn run(&self, place: &Place<'_>) -> Result<()> {
        let path = path_with(place.caddis, place.directory)?;
        let runs = |block: &&Block| block.is_run() && (place.has_vms || !block.needs_vm());
        let output = |block: &Block| place.directory.join(format!("line-{}", block.line));
        let mut script = "set -euo pipefail\n".to_owned();
        for block in self.blocks.iter().filter(runs) {
            let (file, line) = (output(block), block.line);
            // Its standard output is kept apart; what is on standard error says how far it came.
            script += &format!("exec >'{}'\necho '--- line {line}' >&2\n", file.display());
            script += &block.text;
        }
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", LONGEST, "bash", "-c", &script]);
        command.env_clear().env("PATH", path).env("HOME", place.directory).env("NO_COLOR", "1");
        command.env("TMPDIR", place.directory).envs(&place.environment);
        command.current_dir(place.directory).stdin(Stdio::null());
        let outcome = command.output().context("running a page")?;
        if !outcome.status.success() {
            bail!("{}: {}\n{}", self.name, outcome.status, self.told(&outcome.stderr, output)?);
        }
        for block in self.blocks.iter().filter(runs) {
            let printed = fs::read_to_string(output(block))?;
            let Some((mark, shown)) = &block.shows else { continue };
            let compared = if mark == "json" { same_shape } else { same_lines };
            compared(shown, &printed).with_context(|| {
                let place = format!("{}, line {}", self.name, block.line);
                format!("{place} shows\n{shown}\nbut it prints\n{printed}")
            })?;
        }
        Ok(())
    }

    /// What a script that failed has printed.
    fn told(&self, errors: &[u8], output: impl Fn(&Block) -> PathBuf) -> Result<String> {
        let mut told = String::from_utf8_lossy(errors).into_owned();
        let last = self.blocks.iter().map(output).rfind(|file| file.exists());
        if let Some(last) = last {
            told += &format!("--- its standard output\n{}", fs::read_to_string(last)?);
        }
        Ok(told)
    }
}

impl Block {
    /// Whether it is run where there are VMs.
    pub fn is_run(&self) -> bool {
        self.mark == "sh" || self.needs_vm()
    }

    /// Whether it needs a real VM.
    pub fn needs_vm(&self) -> bool {
        self.mark == "sh vm"
    }
}

/// A `PATH` where `caddis` is this binary, by a link in `directory`.
fn path_with(caddis: &Path, directory: &Path) -> Result<OsString> {
    let programs = directory.join("bin");
    fs::create_dir(&programs)?;
    symlink(caddis, programs.join("caddis")).context("putting caddis in PATH")?;
    let mut path = programs.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    Ok(path)
}

fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = page.lines().enumerate();
    // Nothing but blank lines since the last block.
    let mut follows = false;
    while let Some((number, line)) = lines.next() {
        let Some(mark) = line.trim_start().strip_prefix("```") else {
            follows &= line.trim().is_empty();
            continue;
        };
        ensure!(line.starts_with("```"), "line {}: a block is indented", number + 1);
        let mut text = String::new();
        loop {
            let (_, line) = lines.next().context("the last block has no end")?;
            if line == "```" {
                break;
            }
            text += line;
            text.push('\n');
        }
        match blocks.last_mut().filter(|last| follows && last.is_run()) {
            Some(last) if matches!(mark, "text" | "json") => {
                last.shows = Some((mark.to_owned(), text));
                follows = false;
            }
            _ => {
                blocks.push(Block { mark: mark.to_owned(), line: number + 2, text, shows: None });
                follows = true;
            }
        }
    }
    Ok(blocks)
}

/// Whether all lines shown are printed, but for words with digits in them. In any order: what a
/// program says may come before the line that says that it was started.
fn same_lines(shown: &str, printed: &str) -> Result<()> {
    let mut printed: Vec<_> = printed.lines().map(steady).collect();
    for line in shown.lines().map(steady) {
        let found = printed.iter().position(|other| *other == line);
        printed.remove(found.with_context(|| format!("'{line}' is not printed"))?);
    }
    Ok(())
}

/// The line with `#` for what differs from run to run: numbers, times, IDs.
fn steady(line: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-');
    let mut steady = String::new();
    let mut rest = line.trim();
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        steady += if part.contains(|c: char| c.is_ascii_digit()) { "#" } else { part };
        rest = after;
    }
    steady
}

/// Whether two texts hold as many JSON values, and the second ones have what the first ones have.
fn same_shape(shown: &str, printed: &str) -> Result<()> {
    let values = |text: &str| -> Result<Vec<Value>> {
        let values = serde_json::Deserializer::from_str(text).into_iter();
        Ok(values.collect::<Result<_, _>>()?)
    };
    let (shown, printed) = (values(shown)?, values(printed)?);
    ensure!(shown.len() == printed.len(), "{} JSON values are printed", printed.len());
    shown.iter().zip(&printed).try_for_each(|(shown, printed)| has_shape(shown, printed, "it"))
}

fn has_shape(shown: &Value, printed: &Value, what: &str) -> Result<()> {
    match (shown, printed) {
        (Value::Object(fields), Value::Object(others)) => {
            for (name, field) in fields {
                let other = others.get(name).with_context(|| format!("{what} has no {name}"))?;
                has_shape(field, other, name)?;
            }
            Ok(())
        }
        (Value::Array(items), Value::Array(others)) => {
            let Some(item) = items.first() else { return Ok(()) };
            ensure!(!others.is_empty(), "{what} is empty");
            others.iter().try_for_each(|other| has_shape(item, other, what))
        }
        _ => {
            let same = std::mem::discriminant(shown) == std::mem::discriminant(printed);
            ensure!(same, "{what} is {printed}, not like {shown}");
            Ok(())
        }
    }
}

/// Whether the arguments of a command line are ones that the binary knows. Nothing is run.
///
/// # Errors
/// When they are not, with what it said.
pub fn is_understood(caddis: &Path, line: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = path_with(caddis, directory.path())?;
    // A comment, as in `… # one of several`, is the shell's.
    let line = line.split(" # ").next().unwrap_or(line).trim();
    let mut command = Command::new("bash");
    command.args(["-c", &format!("{line} --help")]);
    command.env_clear().env("PATH", path).stdin(Stdio::null());
    let outcome = command.output().with_context(|| format!("running {line}"))?;
    let told = String::from_utf8_lossy(&outcome.stderr);
    ensure!(outcome.status.success(), "'{line}' is not understood: {told}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_apart() {
        let page =
            "a\n```sh\nls\n```\n\n```json\n{}\n```\nb\n```sh vm\nb\n```\nc\n```text\nx\n```\n";
        let found = blocks(page).unwrap();
        let marks: Vec<_> = found.iter().map(|block| (&*block.mark, block.line)).collect();
        assert_eq!(marks, [("sh", 3), ("sh vm", 11), ("text", 15)]);
        assert_eq!(found[0].shows, Some(("json".to_owned(), "{}\n".to_owned())));
        assert_eq!(found[1].shows, None, "there is text between");
        assert!(blocks("```sh\nls\n").is_err());
    }

    #[test]
    fn what_is_shown_is_compared_but_for_what_differs_from_run_to_run() {
        let shown = "2026-08-21T10:00:00Z app[148ed193b95389] local [info]started in 84ms\n";
        let printed = shown.replace("84", "1.5").replace("148ed193b95389", "2e");
        same_lines(shown, &format!("before\n{printed}after\n")).unwrap();
        assert!(same_lines(shown, &printed.replace("info", "error")).is_err());
        same_lines("b\na\n", "a\nb\n").unwrap();
        assert!(same_lines("a\na\n", "a\nb\n").is_err(), "each once");

        same_shape("{\"a\": [{\"b\": 1}]} 1", "{\"a\": [{\"b\": 2, \"c\": 0}], \"d\": 0} 2")
            .unwrap();
        for other in
            ["{\"a\": []} 1", "{\"a\": [{\"b\": \"2\"}]} 1", "{\"a\": [{\"b\": 2}]}", "{} 1"]
        {
            assert!(same_shape("{\"a\": [{\"b\": 1}]} 1", other).is_err(), "{other}");
        }
    }

    /// A page with this script, run without a server.
    fn run(text: &str, has_vms: bool) -> Result<()> {
        let page = Page { name: "page".to_owned(), blocks: blocks(text)? };
        let directory = tempfile::tempdir()?;
        let environment = BTreeMap::new();
        let caddis = Path::new("/bin/true");
        page.run(&Place { directory: directory.path(), caddis, environment, has_vms })
    }

    #[test]
    fn a_page_runs_as_one_script_and_a_command_that_fails_is_told() {
        run("```sh\nA=1; caddis\n```\n\n```sh\necho $A\n```\n\n```text\n1\n```\n", false).unwrap();
        let told = run("```sh\necho said; false | cat\necho not\n```\n", false).unwrap_err();
        assert!(told.to_string().ends_with("--- its standard output\nsaid\n"), "{told}");
        assert!(run("```sh\necho a\n```\n\n```text\nb\n```\n", false).is_err());
        let vm = "```sh vm\nfalse\n```\n";
        run(vm, false).unwrap();
        assert!(run(vm, true).is_err());
    }
}
