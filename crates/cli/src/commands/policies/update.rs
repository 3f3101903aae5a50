//! `caddis network-policies update`.

use caddis_api::{ErrorCode, policies::PutPolicyRequest};
use clap::Args;

use super::{rules::RuleFlags, selection::SelectionFlags};
use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis network-policies update`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis network-policies update web -a hello --egress \
                  tcp/443,udp/443\n  caddis network-policies update web -a hello --metadata \
                  role=web --dns deny\n\n--egress replaces all that the policy allows of egress, \
                  --ingress likewise; --all, --machine and --metadata together replace whom it \
                  selects. What is not given stays.")]
pub struct Update {
    /// ID or name of the policy.
    #[arg(value_name = "POLICY")]
    policy: String,
    #[command(flatten)]
    app: AppArgs,
    /// New name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    selection: SelectionFlags,
    #[command(flatten)]
    rules: RuleFlags,
    /// Print the policy as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(update: Update, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&update.app)?;
    let former = super::find(&client, &app, &update.policy).await?;
    let (rules, dns) = update.rules.apply(former.rules)?;
    let selector = update.selection.selector(&client, &app).await?;
    let request = PutPolicyRequest {
        id: Some(former.id.to_string()),
        name: update.name.unwrap_or(former.name),
        selector: Some(selector.unwrap_or(former.selector)),
        rules,
        dns: Some(dns.unwrap_or(former.dns)),
        ..PutPolicyRequest::default()
    };
    let changed = client.put_policy(&app, &request).await.map_err(|error| match error.code() {
        Some(ErrorCode::AlreadyExists) => CliError::new(format!(
            "could not change the network policy: app {app} has another one with the name '{}'",
            request.name
        )),
        _ => CliError::attempted("could not change the network policy", error),
    })?;
    if update.json {
        return Ok(session.printer.json(&changed)?);
    }
    super::table(session, &[changed])
}
