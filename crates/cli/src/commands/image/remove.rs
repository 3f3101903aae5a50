//! `caddis image rm`.

use clap::Args;

use crate::{CliError, session::Session};

/// `caddis image rm`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis image rm docker.io/library/nginx:1.26")]
pub struct Remove {
    /// Names or digests of the images.
    #[arg(required = true)]
    names: Vec<String>,
}

pub async fn run(remove: Remove, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    for name in remove.names {
        client
            .remove_image(&name)
            .await
            .map_err(|e| CliError::attempted(format!("could not remove {name}"), e))?;
        printer.out(format_args!("Removed {name}"))?;
    }
    Ok(())
}
