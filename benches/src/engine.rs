//! The parts of rows `engine` and `recovery` that run in processes of their own: the real worker,
//! with its database on the disk, over VMs, images and a network that cost nothing.

mod host;
mod operations;
mod recovery;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use serde::de::DeserializeOwned;
use tokio::process::Command;

pub use operations::Operations;
pub use recovery::Recovery;

/// What is to be measured.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Starts and stops of machines, and bare transactions of the same number and size.
    Operations {
        /// An empty directory on the disk.
        #[arg(long)]
        directory: PathBuf,
        /// How often.
        #[arg(long)]
        rounds: usize,
    },
    /// Starts of a worker that has machines.
    Recovery {
        /// An empty directory on the disk.
        #[arg(long)]
        directory: PathBuf,
        /// How many.
        #[arg(long)]
        machines: usize,
        /// How often.
        #[arg(long)]
        rounds: usize,
    },
}

/// Measures it and prints what was found as JSON.
///
/// # Errors
/// When it can't be measured.
pub fn run(role: &Role) -> Result<()> {
    // As `caddis serve` has it: a worker thread per processor.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let found = runtime.block_on(async {
        match role {
            Role::Operations { directory, rounds } => {
                serde_json::to_string(&operations::measure(directory, *rounds).await?)
            }
            Role::Recovery { directory, machines, rounds } => {
                serde_json::to_string(&recovery::measure(directory, *machines, *rounds).await?)
            }
        }
        .map_err(anyhow::Error::from)
    })?;
    println!("{found}");
    // Fake VMs outlive workers, and this function is not to wait for them.
    runtime.shutdown_background();
    Ok(())
}

/// Has a process of its own measure in `directory`, which is removed.
///
/// # Errors
/// When it fails.
pub async fn ourselves<T: DeserializeOwned>(directory: &Path, arguments: &[&str]) -> Result<T> {
    std::fs::create_dir(directory).with_context(|| format!("making {}", directory.display()))?;
    let output = Command::new(std::env::current_exe()?)
        .args(arguments)
        .arg("--directory")
        .arg(directory)
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await;
    std::fs::remove_dir_all(directory)
        .with_context(|| format!("removing {}", directory.display()))?;
    let output = output?;
    ensure!(output.status.success(), "bench {}: {}", arguments.join(" "), output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}
