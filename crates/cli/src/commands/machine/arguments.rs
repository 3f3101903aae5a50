//! Arguments that several commands have.

use std::time::Duration;

use caddis_api::{ApiDuration, Signal};
use clap::Args;

use crate::CliError;

/// What scripts give that answer questions of all commands; there are none here.
#[derive(Debug, Args)]
pub struct Unasked {
    /// Without effect: nothing is asked.
    #[arg(short, long, alias = "auto-confirm", hide = true)]
    yes: bool,
}

/// A signal by name or number.
pub fn signal(text: &str) -> Result<Signal, CliError> {
    text.parse().map_err(|_| {
        CliError::new(format!("'{text}' is no signal: use a name such as SIGTERM, or a number"))
    })
}

/// A flag that takes seconds.
pub fn seconds(seconds: Option<u64>) -> Option<ApiDuration> {
    seconds.map(|seconds| ApiDuration(Duration::from_secs(seconds)))
}

/// A duration; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, CliError> {
    let wrong = || CliError::new(format!("'{text}' is no duration: write for example 90s or 5m"));
    match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => text.parse::<ApiDuration>().map(|duration| duration.0).map_err(|_| wrong()),
    }
}
