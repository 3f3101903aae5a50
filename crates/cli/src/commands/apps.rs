//! `caddis apps`.

use std::time::Duration;

use caddis_api::app::{App, CreateAppRequest};
use caddis_client::Client;
use clap::{Args, Subcommand};

use crate::{CliError, prompt, render::table, session::Session};

/// How long an app may take to go away with its machines.
const GONE_PATIENCE: Duration = Duration::from_secs(120);
const GONE_INTERVAL: Duration = Duration::from_millis(100);

/// `caddis apps …`.
#[derive(Debug, Args)]
pub struct Apps {
    #[command(subcommand)]
    command: AppsCommand,
}

#[derive(Debug, Subcommand)]
enum AppsCommand {
    /// Create an app.
    #[command(after_help = "Example:\n  caddis apps create hello")]
    Create {
        /// Its name.
        name: Option<String>,
        /// Its name, as a flag.
        #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
        name_flag: Option<String>,
        /// Let the server choose a name.
        #[arg(long)]
        generate_name: bool,
        /// Private network its machines are in; machines of different networks don't reach each other.
        #[arg(long, value_name = "NAME")]
        network: Option<String>,
        /// Organization that owns it.
        #[arg(short, long, value_name = "SLUG", default_value = "personal")]
        org: String,
        /// Print the app as JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// List apps.
    List {
        /// Only of this organization.
        #[arg(short, long, value_name = "SLUG", default_value = "personal")]
        org: String,
        /// Print them as JSON.
        #[arg(short, long)]
        json: bool,
        /// Names only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Destroy apps and all their machines.
    #[command(visible_aliases = ["delete", "remove", "rm"], after_help = "Example:\n  caddis apps destroy hello --yes")]
    Destroy {
        /// Their names.
        names: Vec<String>,
        /// Don't ask.
        #[arg(short, long, alias = "auto-confirm")]
        yes: bool,
    },
}

/// The server answers before the app's machines are gone; there is nothing that would tell when they are.
async fn until_gone(client: &Client, name: &str) -> Result<(), CliError> {
    let deadline = tokio::time::Instant::now() + GONE_PATIENCE;
    loop {
        match client.get_app(name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if !error.is_transient() => return Err(error.into()),
            _ if tokio::time::Instant::now() > deadline => {
                let text = format!("app {name} is still being destroyed after {GONE_PATIENCE:?}; it goes on by itself");
                return Err(CliError::DeadlineExceeded(text));
            }
            _ => tokio::time::sleep(GONE_INTERVAL).await,
        }
    }
}

/// Runs it.
pub async fn run(apps: Apps, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    match apps.command {
        AppsCommand::Create { name, name_flag, generate_name, network, org, json } => {
            let name = name.or(name_flag);
            if name.is_none() && !generate_name {
                return Err(CliError::with_hint(
                    "name argument or flag must be specified when not running interactively",
                    "Give a name, or --generate-name to get one.",
                ));
            }
            let request = CreateAppRequest { name, org_slug: Some(org), network, ..CreateAppRequest::default() };
            let created = client.create_app(&request).await?;
            if json {
                printer.json(&created.app)?;
            } else {
                printer.out(format_args!("New app created: {}", created.app.name))?;
            }
        }
        AppsCommand::List { org, json, quiet } => {
            let apps = client.list_apps(&org).await?;
            if json {
                printer.json(&apps)?;
            } else if quiet {
                apps.iter().try_for_each(|app| printer.out(&app.name))?;
            } else if apps.is_empty() {
                printer.out("No apps found")?;
            } else {
                let row = |app: &App| {
                    let machines = app.machine_count.to_string();
                    vec![
                        app.name.clone(),
                        app.organization.slug.clone(),
                        app.status.clone(),
                        app.network.clone(),
                        machines,
                    ]
                };
                let rows: Vec<_> = apps.iter().map(row).collect();
                printer.raw_out(&table::horizontal("", &["Name", "Owner", "Status", "Network", "Machines"], &rows))?;
            }
        }
        AppsCommand::Destroy { names, yes } => {
            if names.is_empty() {
                return Err(CliError::new("no app names provided"));
            }
            for name in names {
                if !yes {
                    printer.note(printer.paint_error("Destroying an app is not reversible."))?;
                    let unasked = "yes flag must be specified when not running interactively";
                    prompt::confirm(printer, &format!("Destroy app {name}?"), unasked).await?;
                }
                client.delete_app(&name).await?;
                until_gone(&client, &name).await?;
                printer.out(format_args!("Destroyed app {name}"))?;
            }
        }
    }
    Ok(())
}
