//! `caddis network-policies`.

use caddis_api::policies::{NetworkPolicy, PolicyDns};
use caddis_client::Client;
use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod create;
mod delete;
mod list;
mod rules;
mod selection;
mod show;
mod update;

/// `caddis network-policies …`.
#[derive(Debug, Args)]
pub struct Policies {
    #[command(subcommand)]
    command: PoliciesCommand,
}

#[derive(Debug, Subcommand)]
enum PoliciesCommand {
    /// List the network policies of an app.
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show a network policy.
    Show(show::Show),
    /// Create a network policy.
    Create(create::Create),
    /// Change a network policy.
    Update(update::Update),
    /// Delete network policies.
    #[command(visible_aliases = ["destroy", "rm"])]
    Delete(delete::Delete),
}

pub async fn run(policies: Policies, session: &Session) -> Result<(), CliError> {
    match policies.command {
        PoliciesCommand::List(list) => list::run(list, session).await,
        PoliciesCommand::Show(show) => show::run(show, session).await,
        PoliciesCommand::Create(create) => create::run(create, session).await,
        PoliciesCommand::Update(update) => update::run(update, session).await,
        PoliciesCommand::Delete(delete) => delete::run(delete, session).await,
    }
}

/// The policy of this id or name.
async fn find(client: &Client, app: &str, wanted: &str) -> Result<NetworkPolicy, CliError> {
    let policies = client.list_policies(app).await?;
    let found = policies
        .iter()
        .find(|policy| policy.id.as_str() == wanted)
        .or_else(|| policies.iter().find(|policy| policy.name == wanted));
    found.cloned().ok_or_else(|| {
        CliError::with_hint(
            format!("app {app} has no network policy '{wanted}'"),
            format!("'caddis network-policies list -a {app}' lists them."),
        )
    })
}

fn table(session: &Session, policies: &[NetworkPolicy]) -> Result<(), CliError> {
    let row = |policy: &NetworkPolicy| {
        let dns = match policy.dns {
            PolicyDns::Allow => "allow",
            PolicyDns::Deny => "deny",
        };
        let rules: Vec<_> = policy.rules.iter().map(rules::text).collect();
        vec![
            policy.id.to_string(),
            policy.name.clone(),
            selection::text(&policy.selector),
            rules.join("\n"),
            dns.to_owned(),
        ]
    };
    let rows: Vec<_> = policies.iter().map(row).collect();
    Ok(session.printer.table("", &["ID", "Name", "Machines", "Allows", "DNS"], &rows)?)
}
