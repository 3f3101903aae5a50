//! Flags of every command.

use std::path::PathBuf;

use clap::Args;

use crate::{
    CliError, Environment,
    app_name::{self, AppFlags},
    complete,
    connection::ServerFlags,
};

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Globals {
    /// Access token [env: CADDIS_API_TOKEN, FLY_API_TOKEN, FLY_ACCESS_TOKEN].
    #[arg(short = 't', long, global = true, value_name = "TOKEN", help_heading = "Global options")]
    pub access_token: Option<String>,
    /// Address of the server, e.g. http://127.0.0.1:4280 [env: CADDIS_API_URL, FLY_FLAPS_BASE_URL].
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub api_url: Option<String>,
    /// Context to use, see 'caddis context list' [env: CADDIS_CONTEXT].
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        help_heading = "Global options",
        add = complete::contexts()
    )]
    pub context: Option<String>,
    /// Verbose output.
    #[arg(long, global = true, help_heading = "Global options")]
    pub verbose: bool,
    /// Print full error details.
    #[arg(long, global = true, help_heading = "Global options")]
    pub debug: bool,
}

impl Globals {
    /// What they say of the server.
    pub(crate) fn server(&self) -> ServerFlags<'_> {
        ServerFlags {
            access_token: self.access_token.as_deref(),
            api_url: self.api_url.as_deref(),
            context: self.context.as_deref(),
        }
    }
}

/// Which app a command is about.
#[derive(Debug, Clone, Default, Args)]
pub struct AppArgs {
    /// Application name [env: CADDIS_APP, FLY_APP; then `app` of caddis.toml or fly.toml].
    #[arg(short, long, value_name = "NAME", add = complete::apps())]
    pub app: Option<String>,
    /// Configuration file that names the app [default: caddis.toml or fly.toml in the current
    /// directory].
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl AppArgs {
    fn flags(&self) -> AppFlags<'_> {
        AppFlags { app: self.app.as_deref(), config: self.config.as_deref() }
    }

    /// The app's name, if anything names one.
    pub fn find(&self, environment: &Environment) -> Result<Option<String>, CliError> {
        app_name::find(self.flags(), environment)
    }

    /// The app's configuration file, if there is one, or one is named.
    pub fn file(&self, environment: &Environment) -> Option<PathBuf> {
        app_name::file(self.flags(), environment)
    }

    /// The app's name, or the error that says how to give one.
    pub fn require(&self, environment: &Environment) -> Result<String, CliError> {
        app_name::require(self.flags(), environment)
    }
}
