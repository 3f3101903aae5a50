//! Gives the binary the commit it is built from and the day of that commit, for `--version`. In
//! this crate alone, so that a commit rebuilds nothing else.
//!
//! `CADDIS_COMMIT` and `SOURCE_DATE_EPOCH` go before what git says. What neither says is left out.

use std::{path::Path, process::Command};

use jiff::{Timestamp, tz::TimeZone};

/// Digits of a commit.
const DIGITS: usize = 9;

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for variable in ["CADDIS_COMMIT", "SOURCE_DATE_EPOCH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Where there is no such file, cargo would run this each time.
    println!("cargo:rerun-if-changed=build.rs");
    // It grows with each commit and each checkout.
    if let Some(log) =
        git(&root, &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let origin = origin(&root, variable("CADDIS_COMMIT"), variable("SOURCE_DATE_EPOCH"));
    println!("cargo:rustc-env=CADDIS_VERSION={}{origin}", env!("CARGO_PKG_VERSION"));
}

/// What follows the version: ` (0123456789 2026-11-29)`, or nothing where nothing is known.
pub fn origin(root: &Path, commit: Option<String>, seconds: Option<String>) -> String {
    let commit = commit.or_else(|| git(root, &["rev-parse", "HEAD"]));
    let seconds = seconds.or_else(|| git(root, &["log", "-1", "--format=%ct"]));
    let commit = commit.map(|commit| commit.chars().take(DIGITS).collect::<String>());
    let day = seconds
        .and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok())
        .map(|time| time.to_zoned(TimeZone::UTC).date().to_string());
    match commit.into_iter().chain(day).collect::<Vec<_>>() {
        known if known.is_empty() => String::new(),
        known => format!(" ({})", known.join(" ")),
    }
}

/// The answer of git about the repository of which `root` is the working tree; none where there is
/// no git, or where the sources were unpacked within another repository.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let ask = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let top = ask(&["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    ask(arguments)
}
