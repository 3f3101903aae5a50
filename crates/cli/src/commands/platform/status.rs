//! `caddis platform status`.

use caddis_api::platform::HostStatus;

use crate::{CliError, render::size, session::Session};

pub async fn run(json: bool, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let client = session.client()?;
    let status = client.platform_status().await?;
    if json {
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
            "Volumes",
            "Free Volume Disk",
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
        host.region.to_string(),
        host.state.as_str().to_owned(),
        host.machines.to_string(),
        host.started.to_string(),
        host.free_cpus.to_string(),
        format!("{} MB", host.free_memory_mb),
        format!("{} GB", host.free_disk_gb),
        host.volumes.to_string(),
        host.free_volume_gb.map(|free| format!("{free} GB")).unwrap_or_default(),
        host.images.map(|images| images.to_string()).unwrap_or_default(),
        host.images_bytes.map(size::decimal).unwrap_or_default(),
    ]
}
