//! `caddis network-policies delete`.

use caddis_api::policies::NetworkPolicy;
use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis network-policies delete`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis network-policies delete web -a hello")]
pub struct Delete {
    /// IDs or names of the policies.
    #[arg(value_name = "POLICY", required = true)]
    policies: Vec<String>,
    #[command(flatten)]
    app: AppArgs,
}

pub async fn run(delete: Delete, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&delete.app)?;
    let mut found: Vec<NetworkPolicy> = Vec::new();
    for wanted in &delete.policies {
        // A name that is mistyped is told before anything is done.
        let policy = super::find(&client, &app, wanted).await?;
        // Named twice is meant once.
        if found.iter().all(|other| other.id != policy.id) {
            found.push(policy);
        }
    }
    for policy in &found {
        client.delete_policy(&app, policy.id.as_str()).await.map_err(|error| {
            CliError::attempted(format!("could not delete network policy {}", policy.id), error)
        })?;
        let (id, name) = (&policy.id, &policy.name);
        session.printer.out(format_args!("Deleted network policy {id} ({name}) of {app}"))?;
    }
    Ok(())
}
