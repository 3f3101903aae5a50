//! `caddis ips release`.

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

pub async fn run(release: Release, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&release.app)?;
    for address in &release.addresses {
        client
            .release_address(&app, address)
            .await
            .map_err(|error| CliError::attempted(format!("could not release {address}"), error))?;
        session.printer.out(format_args!("Released {address} from {app}"))?;
    }
    Ok(())
}
