//! `caddis ips release` and `release-egress`.

use std::{collections::BTreeSet, net::IpAddr};

use caddis_api::addresses::IpAssignment;
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
    let same =
        |text: &str, ip: &str| text.parse::<IpAddr>().is_ok_and(|text| ip.parse() == Ok(text));
    let is_egress =
        |text: &String| known.iter().any(|address| address.egress && same(text, &address.ip));
    if let Some(other) = release.addresses.iter().find(|address| !is_egress(address)) {
        let hint = format!("'caddis ips list -a {app}' lists those it has.");
        let text = format!("{other} is not an egress address of app {app}");
        return Err(CliError::with_hint(text, hint));
    }
    all(&release.app, &release.addresses, session).await?;
    let is_released =
        |address: &IpAssignment| release.addresses.iter().any(|text| same(text, &address.ip));
    let (released, left): (Vec<_>, Vec<_>) =
        known.into_iter().filter(|address| address.egress).partition(is_released);
    for text in one_sided(&app, &released, &left) {
        session.printer.note(format_args!("Warning: {text}"))?;
    }
    Ok(())
}

/// What is to be said of an app that, after some of its egress addresses were released, has some of
/// one family only left in their regions.
fn one_sided(app: &str, released: &[IpAssignment], left: &[IpAssignment]) -> Vec<String> {
    let regions: BTreeSet<_> = released.iter().map(|address| &address.region).collect();
    let warning = |region: &String| {
        let has = |is_v6: bool| {
            let mut there = left.iter().filter(|address| address.region == *region);
            there.any(|address| address.ip.contains(':') == is_v6)
        };
        let missing = match (has(false), has(true)) {
            (true, false) => "IPv6",
            (false, true) => "IPv4",
            _ => return None,
        };
        Some(format!(
            "the app has no {missing} egress address in {region} any more: connections over \
             {missing} come from an address of the host; 'caddis ips allocate-egress -a {app}' \
             completes the pair"
        ))
    };
    regions.into_iter().filter_map(warning).collect()
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
