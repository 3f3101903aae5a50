//! Commands in one argument.

use crate::CliError;

/// Splits a command into words as a shell does. `what` it is goes into the error.
pub fn split(what: &str, text: &str) -> Result<Vec<String>, CliError> {
    shell_words::split(text)
        .map_err(|e| CliError::new(format!("invalid {what}: it can't be split into words, {e}")))
}
