//! Flags of every command.

use std::path::PathBuf;

use clap::Args;

use crate::complete;

/// Flags of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Globals {
    /// Access token [env: CADDIS_API_TOKEN, FLY_API_TOKEN, FLY_ACCESS_TOKEN].
    #[arg(short = 't', long, global = true, value_name = "TOKEN", help_heading = "Global options")]
    pub access_token: Option<String>,
    /// Address of the server, e.g. http://127.0.0.1:4280 [env: CADDIS_API_URL, FLY_FLAPS_BASE_URL].
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    pub api_url: Option<String>,
    /// Which of the servers of 'caddis context list' [env: CADDIS_CONTEXT].
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options", add = complete::contexts())]
    pub context: Option<String>,
    /// Say more.
    #[arg(long, global = true, help_heading = "Global options")]
    pub verbose: bool,
    /// Say what went wrong in full detail.
    #[arg(long, global = true, help_heading = "Global options")]
    pub debug: bool,
}

/// Which app a command is about.
#[derive(Debug, Clone, Default, Args)]
pub struct AppArgs {
    /// Application name [env: CADDIS_APP, FLY_APP; then `app` of caddis.toml or fly.toml].
    #[arg(short, long, value_name = "NAME", add = complete::apps())]
    pub app: Option<String>,
    /// Path of the file that names the app, instead of caddis.toml or fly.toml in the current
    /// directory.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}
