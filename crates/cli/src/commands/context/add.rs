//! `caddis context add`.

use clap::Args;

use crate::{
    CliError,
    session::Session,
    settings::{Context, Settings},
};

/// `caddis context add`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis context add lab --api-url http://10.0.0.5:4280 \
                  --access-token \"$TOKEN\"")]
pub struct Add {
    /// Name of the context; an existing one is replaced.
    name: String,
}

pub fn run(add: Add, session: &Session) -> Result<(), CliError> {
    let path = session.settings_path()?;
    let mut settings = Settings::load(Some(&path))?;
    let Some(api_url) = session.globals.api_url.clone() else {
        let hint = "Give the server's address with --api-url.";
        return Err(CliError::with_hint("no server address given", hint));
    };
    let access_token = session.globals.access_token.clone();
    session.printer.out(format_args!("Added context {} for {api_url}", add.name))?;
    settings.contexts.insert(add.name, Context { api_url, access_token });
    settings.save(&path)
}
