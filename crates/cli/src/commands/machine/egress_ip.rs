//! `caddis machine egress-ip`: the addresses that connections of one machine come from.

use caddis_api::addresses::{EgressIp as Address, EgressScope};
use clap::{Args, Subcommand};

use super::choice;
use crate::{CliError, globals::AppArgs, prompt, session::Session};

/// `caddis machine egress-ip …`.
#[derive(Debug, Args)]
pub struct EgressIp {
    #[command(subcommand)]
    command: EgressIpCommand,
}

#[derive(Debug, Subcommand)]
enum EgressIpCommand {
    /// Allocate static egress addresses to a machine, IPv4 and IPv6.
    #[command(
        hide = true,
        after_help = "Example:\n  caddis machine egress-ip allocate 148ed193b95389 -a hello"
    )]
    Allocate(Change),
    /// List the machines of an app that have egress addresses of their own.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  caddis machine egress-ip list -a hello"
    )]
    List(List),
    /// Release the egress addresses of a machine.
    #[command(
        after_help = "Example:\n  caddis machine egress-ip release 148ed193b95389 -a hello --yes"
    )]
    Release(Change),
    /// Make the egress addresses of a machine those of its app.
    #[command(after_help = "Example:\n  caddis machine egress-ip promote 148ed193b95389 -a hello")]
    Promote(Change),
}

#[derive(Debug, Args)]
struct List {
    #[command(flatten)]
    app: AppArgs,
    /// Print the addresses as JSON.
    #[arg(short, long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Change {
    #[command(flatten)]
    which: choice::One,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print the addresses as JSON.
    #[arg(short, long)]
    json: bool,
}

const DEPRECATED: &str = "Egress addresses of machines are deprecated in the reference; consider \
                          those of apps instead: caddis ips allocate-egress";

pub async fn run(egress: EgressIp, session: &Session) -> Result<(), CliError> {
    match egress.command {
        EgressIpCommand::Allocate(change) => allocate(change, session).await,
        EgressIpCommand::List(list) => self::list(&list, session).await,
        EgressIpCommand::Release(change) => release(change, session).await,
        EgressIpCommand::Promote(change) => promote(change, session).await,
    }
}

async fn allocate(change: Change, session: &Session) -> Result<(), CliError> {
    let (client, app, machine) = change.which.find(session).await?;
    let printer = &session.printer;
    printer.note(DEPRECATED)?;
    if !change.yes {
        printer.note(
            "Most apps need no static egress address. Those of a machine are its own: another \
             machine that takes its place, as after 'caddis machine clone', does not have them, \
             and they are released when it is destroyed.",
        )?;
        let question = format!("Allocate static egress addresses to machine {}?", machine.id);
        prompt::confirm(printer, &question, prompt::NO_YES).await?;
    }
    let allocated =
        client.allocate_egress_ips(&app, machine.id.as_str()).await.map_err(|error| {
            CliError::attempted(
                format!("could not allocate egress addresses to machine {}", machine.id),
                error,
            )
        })?;
    if change.json {
        return Ok(printer.json(&allocated)?);
    }
    printer.out(format_args!("Allocated egress IPs for machine {}:", machine.id))?;
    lines(session, &allocated)?;
    for (version, family) in [("v4", "IPv4"), ("v6", "IPv6")] {
        if !allocated.iter().any(|address| address.version == version) {
            printer.note(format_args!(
                "Warning: this server has no {family} egress addresses: connections over {family} \
                 come from an address of the host"
            ))?;
        }
    }
    Ok(())
}

async fn list(list: &List, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&list.app)?;
    let addresses = client.list_egress_ips(&app).await?;
    let own: Vec<_> = own(&addresses).collect();
    if list.json {
        return Ok(session.printer.json(&own)?);
    }
    table(session, &own)
}

async fn release(change: Change, session: &Session) -> Result<(), CliError> {
    let (client, app, machine) = change.which.find(session).await?;
    if !change.yes {
        prompt::confirm(&session.printer, "Are you sure?", prompt::NO_YES).await?;
    }
    let released = client.release_egress_ips(&app, machine.id.as_str()).await.map_err(|error| {
        CliError::attempted(
            format!("could not release the egress addresses of machine {}", machine.id),
            error,
        )
    })?;
    if change.json {
        return Ok(session.printer.json(&released)?);
    }
    session.printer.out(format_args!("Egress IP released for the machine {}", machine.id))?;
    lines(session, &released)
}

async fn promote(change: Change, session: &Session) -> Result<(), CliError> {
    let (client, app, machine) = change.which.find(session).await?;
    let id = &machine.id;
    let addresses = client.list_egress_ips(&app).await?;
    let own: Vec<_> =
        own(&addresses).filter(|address| address.machine_id.as_ref() == Some(id)).collect();
    if own.is_empty() {
        return Err(CliError::new(format!("no machine-scoped egress IPs found for machine {id}")));
    }
    if !change.yes {
        if !change.json {
            table(session, &own)?;
        }
        let question = format!(
            "Are you sure you want to promote these {} egress IP(s) for machine {id} to \
             app-scoped? They don't become the machine's own again.",
            own.len()
        );
        prompt::confirm(&session.printer, &question, prompt::NO_YES).await?;
    }
    let promoted = client.promote_egress_ips(&app, id.as_str()).await.map_err(|error| {
        CliError::attempted(
            format!("could not promote the egress addresses of machine {id}"),
            error,
        )
    })?;
    if change.json {
        return Ok(session.printer.json(&promoted)?);
    }
    Ok(session.printer.out(format_args!(
        "Promoted {} egress IP(s) for machine {id} to app-scoped egress IPs",
        promoted.len()
    ))?)
}

fn own(addresses: &[Address]) -> impl Iterator<Item = &Address> {
    addresses.iter().filter(|address| address.scope == EgressScope::Machine)
}

fn table(session: &Session, addresses: &[&Address]) -> Result<(), CliError> {
    let rows: Vec<_> = addresses
        .iter()
        .map(|address| {
            let machine = address.machine_id.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![machine, address.region.clone(), address.version.clone(), address.ip.clone()]
        })
        .collect();
    Ok(session.printer.table("", &["Machine ID", "Region", "Type", "Egress IP"], &rows)?)
}

fn lines(session: &Session, addresses: &[Address]) -> Result<(), CliError> {
    for address in addresses {
        let family = if address.version == "v4" { "IPv4" } else { "IPv6" };
        session.printer.out(format_args!("{family}: {}", address.ip))?;
    }
    Ok(())
}
