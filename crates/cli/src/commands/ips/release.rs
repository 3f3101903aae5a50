//! `caddis ips release` and `release-egress`.

use std::net::IpAddr;

use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis ips release`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis ips release -a hello 127.64.0.1")]
pub struct Release {
    /// Addresses to release.
    #[arg(value_name = "ADDRESS", required = true)]
    addresses: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
}

/// `caddis ips release-egress`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis ips release-egress -a hello 203.0.113.65")]
pub struct ReleaseEgress {
    /// Egress addresses to release.
    #[arg(value_name = "ADDRESS", required = true)]
    addresses: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
}

pub async fn run(release: Release, session: &Session) -> Result<(), CliError> {
    all(&release.app, &release.addresses, session).await
}

pub async fn egress(release: ReleaseEgress, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&release.app)?;
    let known = client.list_addresses(&app).await?;
    let is_egress = |text: &String| {
        let same = |ip: &str| {
            text == ip || text.parse::<IpAddr>().is_ok_and(|text| ip.parse() == Ok(text))
        };
        known.iter().any(|address| address.egress && same(&address.ip))
    };
    if let Some(other) = release.addresses.iter().find(|address| !is_egress(address)) {
        let hint = format!("'caddis ips list -a {app}' lists those it has.");
        let text = format!("{other} is not an egress address of app {app}");
        return Err(CliError::with_hint(text, hint));
    }
    all(&release.app, &release.addresses, session).await
}

async fn all(app: &AppArgs, addresses: &[String], session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(app)?;
    for address in addresses {
        let warnings = client
            .release_address(&app, address)
            .await
            .map_err(|error| CliError::attempted(format!("could not release {address}"), error))?;
        session.printer.out(format_args!("Released {address} from {app}"))?;
        for warning in warnings {
            session.printer.note(format_args!("Warning: {warning}"))?;
        }
    }
    Ok(())
}
