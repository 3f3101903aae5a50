//! Arguments that several commands have.

use std::time::Duration;

use caddis_api::{ApiDuration, Signal};
use clap::Args;

use crate::CliError;

/// What scripts give that answer questions of all commands; there are none here.
#[derive(Debug, Args)]
pub struct Unasked {
    /// No effect: there is no confirmation.
    #[arg(short, long, alias = "auto-confirm", hide = true)]
    yes: bool,
}

/// A signal by name or number.
pub fn signal(text: &str) -> Result<Signal, CliError> {
    text.parse().map_err(|_| {
        CliError::new(format!("invalid signal '{text}': use a name such as SIGTERM, or a number"))
    })
}

/// A flag that takes seconds.
pub fn seconds(seconds: Option<u64>) -> Option<ApiDuration> {
    seconds.map(|seconds| ApiDuration(Duration::from_secs(seconds)))
}
