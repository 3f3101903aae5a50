//! `caddis auth`.

use clap::{Args, Subcommand};

use crate::{CliError, session::Session};

mod login;
mod logout;
mod token;
mod whoami;

/// `caddis auth …`.
#[derive(Debug, Args)]
pub struct Auth {
    #[command(subcommand)]
    command: AuthCommand,
}

#[derive(Debug, Subcommand)]
enum AuthCommand {
    /// Check and store a server's address and access token.
    #[command(after_help = "Example:\n  caddis auth login --api-url http://127.0.0.1:4280 \
                      --access-token \"$TOKEN\"")]
    Login,
    /// Remove the stored server and token, and all contexts.
    #[command(after_help = "Example:\n  caddis auth logout")]
    Logout,
    /// Show which server and token are used, and where they come from.
    #[command(visible_alias = "status")]
    Whoami(whoami::Whoami),
    /// Print the access token.
    #[command(after_help = "Example:\n  curl -H \"Authorization: Bearer $(caddis auth token)\" \
                            http://127.0.0.1:4280/v1/platform/regions")]
    Token,
}

pub async fn run(auth: Auth, session: &Session) -> Result<(), CliError> {
    match auth.command {
        AuthCommand::Login => login::run(session).await,
        AuthCommand::Logout => logout::run(session),
        AuthCommand::Whoami(whoami) => whoami::run(whoami, session).await,
        AuthCommand::Token => token::run(session),
    }
}
