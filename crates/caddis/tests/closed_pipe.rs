//! Output that nobody reads to its end, as with `caddis doctor | head -1`.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::pipe,
    path::Path,
    process::{Command, ExitStatus},
};

/// How a command ends whose output has no reader, and what it says of that.
fn unread(data_dir: &Path, arguments: &[&str]) -> (ExitStatus, String) {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_caddis"));
    command.args(arguments).env("CADDIS_DATA_DIR", data_dir).stdout(writer);
    let output = command.output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// How it ends where somebody reads.
fn read(data_dir: &Path, arguments: &[&str]) -> ExitStatus {
    let mut command = Command::new(env!("CARGO_BIN_EXE_caddis"));
    command.args(arguments).env("CADDIS_DATA_DIR", data_dir).output().unwrap().status
}

/// The commands that print by themselves and need no server. That no command uses what panics is a
/// lint of both crates that have some.
#[test]
fn a_command_whose_output_nobody_reads_ends_as_it_does_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    let pages = directory.path().join("pages").display().to_string();
    let man = ["man", "--directory", &pages];
    for arguments in [
        &["doctor"][..],
        &["doctor", "--json"],
        &["version"],
        &["help", "machine"],
        &["--help"],
        &["completion", "bash"],
        &man,
        &["explain"],
    ] {
        let (status, stderr) = unread(&data_dir, arguments);
        assert_eq!(status.code(), read(&data_dir, arguments).code(), "{arguments:?}: {stderr}");
        assert!(!stderr.to_lowercase().contains("pipe"), "{arguments:?}: {stderr}");
    }
}

/// The same of an error, which goes to standard error.
#[test]
fn an_error_that_nobody_reads_is_an_error_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_caddis"));
    command.args(["host", "drain"]).env("CADDIS_DATA_DIR", directory.path()).stderr(writer);
    assert_eq!(command.output().unwrap().status.code(), Some(1));
}
