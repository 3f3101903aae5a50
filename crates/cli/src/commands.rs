//! One file per command.

mod apps;
mod auth;
mod checks;
mod config;
mod context;
mod demo;
mod explain;
mod image;
mod ips;
mod logs;
mod machine;
mod orgs;
mod platform;
mod policies;
mod sftp;
mod ssh;
mod status;
mod target;
mod volumes;
mod wireguard;

use clap::Subcommand;

use crate::{CliError, session::Session};

/// A command that talks to a server.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, list and destroy apps, which group machines under a name.
    #[command(visible_alias = "app")]
    Apps(apps::Apps),
    /// Run and manage machines, VMs created from images.
    #[command(visible_aliases = ["machines", "m"])]
    Machine(Box<machine::Machine>),
    /// List organizations, the owners of apps.
    #[command(visible_aliases = ["org", "organizations"])]
    Orgs(orgs::Orgs),
    /// Show an app's logs.
    Logs(logs::Logs),
    /// Import, list and remove images on the server.
    #[command(visible_alias = "images")]
    Image(image::Image),
    /// List, allocate and release addresses of apps.
    #[command(visible_alias = "ip")]
    Ips(ips::Ips),
    /// Say which connections the machines of an app may have.
    #[command(visible_aliases = ["network-policy", "netpol"])]
    NetworkPolicies(policies::Policies),
    /// Manage the stored server address and access token.
    Auth(auth::Auth),
    /// Open a shell in a machine, or run a program there.
    Ssh(Box<ssh::Ssh>),
    /// Copy files in and out of machines.
    Sftp(Box<sftp::Sftp>),
    /// Manage contexts: servers stored by name, to switch between.
    #[command(visible_alias = "contexts")]
    Context(context::ContextArguments),
    /// Run a demo machine from a tiny built-in image.
    Demo(demo::Demo),
    /// Create, list and change volumes, disks that outlive their machines.
    #[command(visible_aliases = ["volume", "vol"])]
    Volumes(volumes::Volumes),
    /// Let computers into private networks over WireGuard.
    #[command(visible_alias = "wg")]
    Wireguard(wireguard::WireGuard),
    /// Explain an error code or an exit code.
    Explain(explain::Explain),
    /// Show an app's health checks.
    Checks(checks::Checks),
    /// Show an app's configuration.
    Config(config::Config),
    /// Show an app and its machines.
    Status(status::Status),
    /// Regions, machine sizes and server status.
    Platform(platform::Platform),
}

/// Runs a command.
pub async fn dispatch(command: Command, session: &Session) -> Result<(), CliError> {
    match command {
        Command::Apps(apps) => apps::run(apps, session).await,
        Command::Machine(machine) => machine::run(*machine, session).await,
        Command::Orgs(orgs) => orgs::run(orgs, session).await,
        Command::Logs(logs) => logs::run(logs, session).await,
        Command::Image(image) => image::run(image, session).await,
        Command::Ips(ips) => ips::run(ips, session).await,
        Command::NetworkPolicies(policies) => policies::run(policies, session).await,
        Command::Auth(auth) => auth::run(auth, session).await,
        Command::Ssh(ssh) => ssh::run(*ssh, session).await,
        Command::Sftp(sftp) => sftp::run(*sftp, session).await,
        Command::Context(context) => context::run(context, session),
        Command::Demo(demo) => demo::run(&demo, session).await,
        Command::Volumes(volumes) => volumes::run(volumes, session).await,
        Command::Wireguard(wireguard) => wireguard::run(wireguard, session).await,
        Command::Explain(explain) => explain::run(&explain, session),
        Command::Checks(checks) => checks::run(checks, session).await,
        Command::Config(config) => config::run(config, session).await,
        Command::Status(status) => status::run(status, session).await,
        Command::Platform(platform) => platform::run(platform, session).await,
    }
}
