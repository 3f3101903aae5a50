//! `caddis doctor`.
use anyhow::Result;
use clap::Args;
use std::process::ExitCode;
/// Flags of `caddis doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {}
/// Runs it.
pub async fn run(_arguments: DoctorArguments) -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
