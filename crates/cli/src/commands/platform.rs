//! `caddis platform`.

use clap::{Args, Subcommand};
use serde_json::{Map, json};

use crate::{CliError, render::table, session::Session, spec};

/// `caddis platform …`.
#[derive(Debug, Args)]
pub struct Platform {
    #[command(subcommand)]
    command: PlatformCommand,
}

#[derive(Debug, Subcommand)]
enum PlatformCommand {
    /// List regions.
    Regions {
        /// Print them as JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// List the sizes of machines that have names.
    VmSizes {
        /// Print them as JSON.
        #[arg(short, long)]
        json: bool,
    },
}

/// Runs it.
pub async fn run(platform: Platform, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    match platform.command {
        PlatformCommand::Regions { json } => {
            let regions = session.client()?.regions().await?.regions;
            if json {
                printer.json(&regions)?;
            } else {
                let rows: Vec<_> =
                    regions.iter().map(|r| vec![r.name.clone(), r.code.clone(), r.capacity.to_string()]).collect();
                printer.raw_out(&table::horizontal("", &["Name", "Code", "Capacity"], &rows))?;
            }
        }
        PlatformCommand::VmSizes { json } => {
            let presets = spec::presets();
            if json {
                let sizes: Map<_, _> = presets
                    .into_iter()
                    .map(|p| (p.name, json!({ "cpu_kind": p.kind, "cpus": p.cpus, "memory_mb": p.memory_mb })))
                    .collect();
                printer.json(&sizes)?;
                return Ok(());
            }
            for (title, kind) in [("Machines platform", "shared"), ("", "performance")] {
                let of_kind = presets.iter().filter(|preset| preset.kind == kind);
                let rows: Vec<_> =
                    of_kind.map(|p| vec![p.name.clone(), p.cpus.to_string(), format!("{} MB", p.memory_mb)]).collect();
                printer.raw_out(&table::horizontal(title, &["Name", "CPU Cores", "Memory"], &rows))?;
            }
        }
    }
    Ok(())
}
