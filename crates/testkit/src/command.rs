//! Running a program and keeping all that it said.

use std::{ffi::OsStr, process::Command};

use anyhow::{Context as _, Result, bail};

/// What a program left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl From<std::process::Output> for Output {
    fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs a program in the calling thread's namespaces and returns its standard output.
///
/// # Errors
/// When it is missing or fails; the error holds what it wrote to standard error.
pub fn run<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Result<String> {
    let mut words = words.into_iter();
    let program = words.next().context("no program given")?;
    let mut command = Command::new(&program);
    command.args(words);
    run_command(&mut command)
}

pub(crate) fn run_command(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.stdin(std::process::Stdio::null()).output();
    let output = output
        .with_context(|| format!("running {shown}; scripts/setup.sh installs what tests need"))?;
    if !output.status.success() {
        bail!("{shown}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
