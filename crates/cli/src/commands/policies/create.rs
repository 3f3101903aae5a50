//! `caddis network-policies create`.

use caddis_api::{ErrorCode, policies::PutPolicyRequest};
use clap::Args;

use super::{rules::RuleFlags, selection::SelectionFlags};
use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis network-policies create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis network-policies create web -a hello --all --egress \
                  tcp/443\n  caddis network-policies create db -a hello --metadata role=db \
                  --ingress tcp/5432@app:hello --dns deny\n  caddis network-policies create \
                  internal -a hello --all --egress all@network:default --egress \
                  all@192.0.2.0/24\n\nAs soon as a policy that selects a machine allows some \
                  egress, or ingress, all other egress, or ingress, of the machine is refused, at \
                  once and for existing connections too.")]
pub struct Create {
    /// Name: letters, digits, '-', '_' and '.'; unique in the app.
    name: String,
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    selection: SelectionFlags,
    #[command(flatten)]
    rules: RuleFlags,
    /// Print the policy as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(&create.app)?;
    let selector = create.selection.selector(&client, &app).await?.ok_or_else(|| {
        CliError::with_hint(
            "no machines are selected",
            "Use --all, or choose some by --machine and --metadata.",
        )
    })?;
    let (rules, dns) = create.rules.apply(Vec::new())?;
    if rules.is_empty() {
        return Err(CliError::with_hint(
            "nothing is allowed",
            "Say by --egress and --ingress what is, for example --egress tcp/443. To refuse all, \
             allow only an address that nobody has: --egress all@192.0.2.1.",
        ));
    }
    let request = PutPolicyRequest {
        name: create.name,
        selector: Some(selector),
        rules,
        dns,
        ..PutPolicyRequest::default()
    };
    let made = client.put_policy(&app, &request).await.map_err(|error| match error.code() {
        // The server's advice is for those who use the API.
        Some(ErrorCode::AlreadyExists) => CliError::with_hint(
            format!("app {app} has a network policy '{}' already", request.name),
            format!("'caddis network-policies update {} -a {app}' changes it.", request.name),
        ),
        _ => CliError::attempted("could not create the network policy", error),
    })?;
    if create.json {
        return Ok(session.printer.json(&made)?);
    }
    super::table(session, &[made])
}
