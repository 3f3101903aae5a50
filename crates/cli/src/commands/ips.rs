//! `caddis ips`.

use caddis_api::addresses::IpAssignment;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use crate::{CliError, render::time, session::Session};

mod allocate;
mod list;
mod private;
mod release;

/// `caddis ips …`.
#[derive(Debug, Args)]
pub struct Ips {
    #[command(subcommand)]
    command: IpsCommand,
}

#[derive(Debug, Subcommand)]
enum IpsCommand {
    /// List the addresses of an app.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Allocate an IPv4 address.
    AllocateV4(allocate::AllocateV4),
    /// Allocate an IPv6 address.
    AllocateV6(allocate::AllocateV6),
    /// Allocate static egress addresses, IPv4 and IPv6, that an app's machines share.
    AllocateEgress(allocate::AllocateEgress),
    /// List the private addresses of an app's machines.
    Private(private::Private),
    /// Release addresses of an app.
    Release(release::Release),
    /// Release egress addresses of an app.
    ReleaseEgress(release::ReleaseEgress),
}

pub async fn run(ips: Ips, session: &Session) -> Result<(), CliError> {
    match ips.command {
        IpsCommand::List(list) => list::run(list, session).await,
        IpsCommand::AllocateV4(allocate) => allocate::v4(allocate, session).await,
        IpsCommand::AllocateV6(allocate) => allocate::v6(allocate, session).await,
        IpsCommand::AllocateEgress(allocate) => allocate::egress(allocate, session).await,
        IpsCommand::Private(private) => private::run(private, session).await,
        IpsCommand::Release(release) => release::run(release, session).await,
        IpsCommand::ReleaseEgress(release) => release::egress(release, session).await,
    }
}

fn table(session: &Session, addresses: &[IpAssignment]) -> Result<(), CliError> {
    let now = Timestamp::now();
    let row = |address: &IpAssignment| {
        let version = if address.ip.contains(':') { "v6" } else { "v4" };
        let kind = match (&address.network, address.shared) {
            _ if address.egress => "egress",
            (Some(_), _) => "private",
            (None, true) => "public (shared)",
            (None, false) => "public (dedicated)",
        };
        vec![
            version.to_owned(),
            address.ip.clone(),
            kind.to_owned(),
            address.region.clone(),
            time::relative(&address.created_at, now),
        ]
    };
    let rows: Vec<_> = addresses.iter().map(row).collect();
    let headers = ["Version", "IP", "Type", "Region", "Created At"];
    Ok(session.printer.table("", &headers, &rows)?)
}
