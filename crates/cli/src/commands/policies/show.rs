//! `caddis network-policies show`.

use clap::Args;

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis network-policies show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis network-policies show web -a hello\n  caddis \
                  network-policies show np_4l2k8s0d7fj3n1qz -a hello --json")]
pub struct Show {
    /// ID or name of the policy.
    #[arg(value_name = "POLICY")]
    policy: String,
    #[command(flatten)]
    app: AppArgs,
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(show: Show, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&show.app)?;
    let policy = super::find(&client, &app, &show.policy).await?;
    if show.json {
        return Ok(session.printer.json(&policy)?);
    }
    super::table(session, &[policy])
}
