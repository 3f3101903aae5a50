//! `caddis context remove`.

use clap::Args;

use crate::{CliError, session::Session, settings::Settings};

/// `caddis context remove`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis context remove lab")]
pub struct Remove {
    /// Name of the context.
    name: String,
}

pub fn run(remove: &Remove, session: &Session) -> Result<(), CliError> {
    let (path, name) = (session.settings_path()?, &remove.name);
    let mut settings = Settings::load(Some(&path))?;
    settings.context(name)?;
    settings.contexts.remove(name);
    settings.current_context.take_if(|current| current == name);
    settings.save(&path)?;
    Ok(session.printer.out(format_args!("Removed context {name}"))?)
}
