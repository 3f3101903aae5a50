//! `caddis config`.

use std::fs;

use caddis_client::{Client, ListMachines};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::{CliError, globals::AppArgs, session::Session};

/// `caddis config …`.
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show the configuration of an app's machines, or with --local that of the local file.
    #[command(visible_alias = "display")]
    Show(Show),
}

/// `caddis config show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  caddis config show -a hello\n  caddis config show -a hello \
                  --toml\n  \
                        caddis config show --local")]
struct Show {
    #[command(flatten)]
    app: AppArgs,
    /// Show caddis.toml or fly.toml, without asking the server.
    #[arg(long)]
    local: bool,
    /// Print as TOML instead of JSON.
    #[arg(long, conflicts_with = "yaml")]
    toml: bool,
    /// Print as YAML instead of JSON.
    #[arg(long)]
    yaml: bool,
}

pub async fn run(config: Config, session: &Session) -> Result<(), CliError> {
    let ConfigCommand::Show(show) = config.command;
    let value = if show.local {
        local(&show.app, session)?
    } else {
        let app = session.app(&show.app)?;
        of_machines(&session.client()?, &app, session).await?
    };
    let printer = &session.printer;
    if show.toml {
        let text = toml::to_string_pretty(&without_nulls(value)).map_err(|e| {
            CliError::new(format!("could not write the configuration as TOML: {e}"))
        })?;
        printer.raw_out(&text)?;
    } else if show.yaml {
        let text = serde_yaml_ng::to_string(&value).map_err(|e| {
            CliError::new(format!("could not write the configuration as YAML: {e}"))
        })?;
        printer.raw_out(&text)?;
    } else {
        printer.json(&value)?;
    }
    Ok(())
}

fn local(app: &AppArgs, session: &Session) -> Result<Value, CliError> {
    let path = app.file(&session.environment).ok_or_else(|| {
        CliError::with_hint(
            "there is no caddis.toml or fly.toml in this directory",
            "Name the file with --config, or write one with 'caddis apps create --save'.",
        )
    })?;
    let failed = |e: &dyn std::fmt::Display| {
        CliError::new(format!("could not read the app's config {}: {e}", path.display()))
    };
    let text = fs::read_to_string(&path).map_err(|e| failed(&e))?;
    toml::from_str(&text).map_err(|e| failed(&e))
}

/// The configuration that all machines of the app have, or else that of each.
async fn of_machines(client: &Client, app: &str, session: &Session) -> Result<Value, CliError> {
    let mut machines = client.list_machines(app, &ListMachines::default()).await?;
    machines.sort_by(|a, b| a.id.cmp(&b.id));
    let configs: Vec<_> = machines.iter().map(|machine| json!(machine.config)).collect();
    let Some(first) = configs.first() else {
        return Err(CliError::with_hint(
            format!("the app {app} has no machines"),
            "Use --local to show the local file.",
        ));
    };
    if configs.iter().all(|config| config == first) {
        return Ok(first.clone());
    }
    session.printer.note(format_args!(
        "The {} machines of app {app} have different configurations.",
        machines.len()
    ))?;
    let by_machine: Map<_, _> =
        machines.iter().map(|machine| machine.id.to_string()).zip(configs).collect();
    Ok(json!({ "machines": by_machine }))
}

/// TOML has nothing to say that there is nothing.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(k, v)| (k, without_nulls(v)))
            .collect(),
        Value::Array(items) => {
            items.into_iter().filter(|item| !item.is_null()).map(without_nulls).collect()
        }
        other => other,
    }
}
