//! What `caddis --version` says of where the binary comes from.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{path::Path, process::Command};

#[expect(dead_code, reason = "only what is made of it is tried")]
#[path = "../build.rs"]
mod build;

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs git as an author of its own, since whoever runs the tests may have none.
fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut git = Command::new("git");
    git.arg("-C").arg(directory).args(["-c", "user.name=a", "-c", "user.email=a@example.org"]);
    // At 23:30 in a zone where it is a day earlier than in UTC.
    git.env("GIT_COMMITTER_DATE", "2026-02-28T23:30:00-0500").args(arguments);
    output(&mut git)
}

#[test]
fn the_version_is_that_of_the_package_with_its_origin() {
    let version = output(Command::new(env!("CARGO_BIN_EXE_caddis")).arg("--version"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let variable = |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_owned);
    // What this was built with is what the binary was built with.
    let (commit, seconds) = (option_env!("CADDIS_COMMIT"), option_env!("SOURCE_DATE_EPOCH"));
    let origin = build::origin(&root, variable(commit), variable(seconds));
    assert_eq!(version, format!("caddis {}{origin}", env!("CARGO_PKG_VERSION")));
    assert!(!version.contains("unknown"), "{version}");
}

#[test]
fn commit_and_day_are_those_of_the_repository_unless_they_are_given() {
    let repository = tempfile::tempdir().unwrap();
    let root = repository.path();
    git(root, &["init", "--quiet"]);
    git(root, &["commit", "--quiet", "--allow-empty", "--message", "first"]);
    let commit = git(root, &["rev-parse", "HEAD"]);
    let commit = &commit[..9];
    assert_eq!(build::origin(root, None, None), format!(" ({commit} 2026-03-01)"));
    let given = |text: &str| Some(text.to_owned());
    assert_eq!(build::origin(root, None, given("86400")), format!(" ({commit} 1970-01-02)"));
    assert_eq!(build::origin(root, given("0123456789ab"), given("0")), " (012345678 1970-01-01)");
}

#[test]
fn sources_that_are_no_repository_say_what_they_are_told_and_no_more() {
    let outer = tempfile::tempdir().unwrap();
    git(outer.path(), &["init", "--quiet"]);
    git(outer.path(), &["commit", "--quiet", "--allow-empty", "--message", "of something else"]);
    let root = outer.path().join("caddis-0.1.0");
    std::fs::create_dir(&root).unwrap();
    assert_eq!(build::origin(&root, None, None), "");
    assert_eq!(build::origin(&root, None, Some("0".to_owned())), " (1970-01-01)");
    assert_eq!(build::origin(&root, Some("0123".to_owned()), None), " (0123)");
}
