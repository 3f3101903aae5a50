//! `caddis platform`.

use std::collections::BTreeMap;

use caddis_api::platform::{HostStatus, Region};
use clap::{Args, Subcommand};
use serde_json::{Map, json};

use crate::{CliError, render::size, session::Session, spec};

/// `caddis platform …`.
#[derive(Debug, Args)]
pub struct Platform {
    #[command(subcommand)]
    command: PlatformCommand,
}

#[derive(Debug, Args)]
struct Format {
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum PlatformCommand {
    /// List regions.
    #[command(after_help = "Example:\n  caddis platform regions --json")]
    Regions(Format),
    /// List named machine sizes.
    #[command(after_help = "Example:\n  caddis platform vm-sizes --json")]
    VmSizes(Format),
    /// Show server health and free capacity of hosts; exits with 1 if unhealthy.
    #[command(after_help = "Example:\n  caddis platform status --json")]
    Status(Format),
}

pub async fn run(platform: Platform, session: &Session) -> Result<(), CliError> {
    match platform.command {
        PlatformCommand::Regions(format) => regions(&format, session).await,
        PlatformCommand::VmSizes(format) => vm_sizes(&format, session),
        PlatformCommand::Status(format) => status(&format, session).await,
    }
}

async fn regions(format: &Format, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let regions = session.client()?.regions().await?.regions;
    if format.json {
        printer.json(&regions)?;
        return Ok(());
    }
    let mut by_part: BTreeMap<&str, Vec<&Region>> = BTreeMap::new();
    for region in &regions {
        by_part.entry(&region.geo_region).or_default().push(region);
    }
    for (part, regions) in by_part {
        let rows: Vec<_> = regions
            .iter()
            .map(|r| vec![r.name.clone(), r.code.clone(), r.capacity.to_string()])
            .collect();
        printer.table(&title(part), &["Name", "Code", "Capacity"], &rows)?;
    }
    Ok(())
}

/// `north_america` as `North America`.
fn title(part: &str) -> String {
    let words = part.split('_').map(|word| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    });
    words.collect::<Vec<_>>().join(" ")
}

fn vm_sizes(format: &Format, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let presets = spec::presets();
    if format.json {
        let sizes: Map<_, _> = presets
            .into_iter()
            .map(|p| {
                (p.name, json!({ "cpu_kind": p.kind, "cpus": p.cpus, "memory_mb": p.memory_mb }))
            })
            .collect();
        printer.json(&sizes)?;
        return Ok(());
    }
    for (title, kind) in [("Machines platform", "shared"), ("", "performance")] {
        let of_kind = presets.iter().filter(|preset| preset.kind == kind);
        let rows: Vec<_> = of_kind
            .map(|p| vec![p.name.clone(), p.cpus.to_string(), format!("{} MB", p.memory_mb)])
            .collect();
        printer.table(title, &["Name", "CPU Cores", "Memory"], &rows)?;
    }
    Ok(())
}

async fn status(format: &Format, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let client = session.client()?;
    let status = client.platform_status().await?;
    if format.json {
        printer.json(&status)?;
    } else {
        let health = if status.ok { "ok" } else { "unhealthy" };
        let facts = [
            ("Address", client.base_url().to_owned()),
            ("Version", status.version.clone()),
            ("Health", health.to_owned()),
        ];
        printer.facts("Server", &facts)?;
        let rows: Vec<_> = status.hosts.iter().map(host_row).collect();
        let headers = [
            "ID",
            "Region",
            "State",
            "Machines",
            "Started",
            "Free CPUs",
            "Free Memory",
            "Free Disk",
            "Images",
            "Images' Disk",
        ];
        printer.table("Hosts", &headers, &rows)?;
    }
    for warning in &status.warnings {
        printer.note(format_args!("Warning: {warning}"))?;
    }
    if status.ok {
        Ok(())
    } else {
        Err(CliError::new(format!("the server is unhealthy: {}", status.problems.join("; "))))
    }
}

fn host_row(host: &HostStatus) -> Vec<String> {
    vec![
        host.id.clone(),
        host.region.clone(),
        host.state.as_str().to_owned(),
        host.machines.to_string(),
        host.started.to_string(),
        host.free_cpus.to_string(),
        format!("{} MB", host.free_memory_mb),
        format!("{} GB", host.free_disk_gb),
        host.images.map(|images| images.to_string()).unwrap_or_default(),
        host.images_bytes.map(size::decimal).unwrap_or_default(),
    ]
}
