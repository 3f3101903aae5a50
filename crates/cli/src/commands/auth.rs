//! `caddis auth`.

use caddis_client::Client;
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{CliError, session::Session, settings::Settings};

/// `caddis auth …`.
#[derive(Debug, Args)]
pub struct Auth {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, Subcommand)]
enum AuthCommand {
    /// Check and store a server's address and access token.
    #[command(
        after_help = "Example:\n  caddis auth login --api-url http://127.0.0.1:4280 --access-token \"$TOKEN\""
    )]
    Login,
    /// Remove the stored server and token, and all contexts.
    #[command(after_help = "Example:\n  caddis auth logout")]
    Logout,
    /// Show which server and token are used, and where they come from.
    #[command(visible_alias = "status", after_help = "Example:\n  caddis auth whoami")]
    Whoami {
        /// Print as JSON, without the token.
        #[arg(short, long)]
        json: bool,
    },
    /// Print the access token.
    #[command(after_help = "Example:\n  curl -H \"Authorization: Bearer $(caddis auth token)\" \
                            http://127.0.0.1:4280/v1/platform/regions")]
    Token,
}

pub async fn run(auth: Auth, session: &Session) -> Result<(), CliError> {
    let printer = &session.printer;
    let path = || {
        let missing = "can't locate the settings file: neither XDG_CONFIG_HOME nor HOME is set";
        session.environment.settings_path().ok_or_else(|| CliError::new(missing))
    };
    match auth.command {
        AuthCommand::Login => {
            let connection = session.connection()?;
            let token = connection.token.ok_or_else(|| {
                CliError::with_hint(
                    "no access token given",
                    "Give one with --access-token or CADDIS_API_TOKEN.",
                )
            })?;
            Client::new(&connection.url, Some(&token))?.list_apps(Some("personal")).await?;
            let path = path()?;
            let mut settings = Settings::load(Some(&path))?;
            let context =
                session.globals.context.as_ref().or(settings.current_context.as_ref()).cloned();
            match context.and_then(|name| settings.contexts.get_mut(&name)) {
                Some(context) => {
                    context.api_url.clone_from(&connection.url);
                    context.access_token = Some(token);
                }
                None => {
                    (settings.api_url, settings.access_token) =
                        (Some(connection.url.clone()), Some(token))
                }
            }
            settings.save(&path)?;
            printer.out(format_args!(
                "Logged in to {}; stored in {}",
                connection.url,
                path.display()
            ))?;
        }
        AuthCommand::Logout => {
            let path = path()?;
            match std::fs::remove_file(&path) {
                Ok(()) => printer.out(format_args!("Removed {}", path.display()))?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    printer.out("Not logged in")?
                }
                Err(error) => {
                    return Err(CliError::new(format!(
                        "could not remove {}: {error}",
                        path.display()
                    )));
                }
            }
        }
        AuthCommand::Whoami { json } => {
            let connection = session.connection()?;
            session.client()?.list_apps(Some("personal")).await?;
            if json {
                let (server, server_from) = (&connection.url, &connection.url_source);
                let token_from = &connection.token_source;
                printer.json(&json!({ "server": server, "server_from": server_from, "token_from": token_from }))?;
                return Ok(());
            }
            printer
                .out(format_args!("Server: {} (from {})", connection.url, connection.url_source))?;
            printer
                .out(format_args!("Access token: accepted (from {})", connection.token_source))?;
        }
        AuthCommand::Token => {
            let token = session
                .connection()?
                .token
                .ok_or_else(|| CliError::new("no access token available"))?;
            printer.out(token)?;
        }
    }
    Ok(())
}
