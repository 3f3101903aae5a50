//! `caddis host`: what a host needs beside its server.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use caddis_api::ErrorCode;
use caddis_cli::{SERVER_FILE, ServerFile};
use caddis_client::Client;
use caddis_network::Network;
use caddis_vmm::{SlotPool, slot::SlotPoolConfig};
use clap::{Args, Subcommand};

use crate::{
    instance::{self, Instance},
    print,
};

/// `caddis host …`.
#[derive(Debug, Args)]
pub struct HostArguments {
    #[command(subcommand)]
    command: HostCommand,
}

#[derive(Debug, Subcommand)]
enum HostCommand {
    /// Stop the machines of this host for a shutdown. They start again when the host is back.
    #[command(after_help = "Example:\n  caddis host drain --timeout 60")]
    Drain {
        /// Data directory of the server.
        #[arg(
            long,
            env = "CADDIS_DATA_DIR",
            value_name = "DIR",
            default_value = "/var/lib/caddis"
        )]
        data_dir: PathBuf,
        /// Seconds to wait; machines that are still running then go down with the host.
        #[arg(long, default_value_t = 60, value_name = "SECONDS",
              value_parser = clap::value_parser!(u64).range(1..=3600))]
        timeout: u64,
    },
    /// Remove what the server set up on this host: network namespace, packet filter, routing rules,
    /// routes of public and egress addresses, forwarding, cgroups. Other installations are left
    /// untouched.
    #[command(after_help = "Examples:\n  systemctl stop caddis; caddis host clean\n  \
                            caddis host clean --kill")]
    Clean {
        /// Kill running VMs; without it, the command fails if there are any.
        #[arg(long)]
        kill: bool,
        /// Data directory of the server.
        #[arg(
            long,
            env = "CADDIS_DATA_DIR",
            value_name = "DIR",
            default_value = "/var/lib/caddis"
        )]
        data_dir: PathBuf,
    },
}

/// Exit code of a command whose time ran out.
const TIMED_OUT: u8 = 126;

/// Runs it.
pub async fn run(arguments: HostArguments) -> Result<ExitCode> {
    match arguments.command {
        HostCommand::Drain { data_dir, timeout } => {
            drain(&data_dir, Duration::from_secs(timeout)).await
        }
        HostCommand::Clean { data_dir, kill } => {
            clean(&data_dir, kill).await.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// A client of the server that runs with this data directory, and the host that it runs on.
fn server(data_dir: &Path) -> Result<(Client, Option<String>)> {
    let file = data_dir.join(SERVER_FILE);
    let text = std::fs::read(&file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => anyhow!("no server runs with data directory {}", data_dir.display()),
        _ => anyhow!("can't read {}: {error}", file.display()),
    })?;
    let server: ServerFile =
        serde_json::from_slice(&text).with_context(|| format!("can't read {}", file.display()))?;
    let token = std::fs::read_to_string(data_dir.join(instance::ROOT_TOKEN))
        .context("can't read the root token")?;
    Ok((Client::new(&server.url, Some(token.trim()))?, server.host))
}

async fn drain(data_dir: &Path, deadline: Duration) -> Result<ExitCode> {
    let (client, host) = server(data_dir)?;
    match client.drain_host(host.as_deref(), deadline).await {
        Ok(stopped) => {
            print::line(format_args!("Machines stopped: {stopped}"))?;
            print::line("No machine starts on this host until its server is restarted")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.code() == Some(ErrorCode::DeadlineExceeded) => {
            print::error(error);
            Ok(ExitCode::from(TIMED_OUT))
        }
        Err(error) => Err(error.into()),
    }
}

async fn clean(data_dir: &Path, kill: bool) -> Result<()> {
    let instance = Instance::take(data_dir)?;
    let slots = SlotPool::open(SlotPoolConfig::default())?;
    caddis_vmm::qemu::end_unassigned(&instance.path(instance::TEMPLATES), &slots);
    let machines = instance.path(instance::MACHINES);
    let killed = kill.then(|| caddis_vmm::qemu::kill_machines(&machines, &slots)).transpose()?;
    let state = instance.path(instance::NETWORK_STATE);
    let cleaned =
        Network::clean(Path::new(caddis_network::RUN_DIRECTORY), instance.directory(), &state)
            .await?;
    let slots_of_others = slots.clean()?;
    // All is done before anything is printed, which may fail.
    if let Some(killed) = killed {
        print::line(format_args!("VMs killed: {killed}"))?;
    }
    print::line(format_args!(
        "Removed everything of this installation from the host except {}",
        instance.directory().display()
    ))?;
    for other in &cleaned.others {
        print::line(format_args!(
            "Left untouched, the network of another installation: {}",
            other.display()
        ))?;
    }
    match slots_of_others {
        0 if cleaned.others.is_empty() => {
            print::line("Nothing else of caddis is left on this host")?;
        }
        0 => {}
        count => {
            print::line(format_args!("VMs of other installations, left running: {count}"))?;
        }
    }
    Ok(())
}
