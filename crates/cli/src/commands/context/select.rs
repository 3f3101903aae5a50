//! `caddis context use`.

use clap::Args;

use crate::{CliError, session::Session, settings::Settings};

/// `caddis context use`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis context use lab\n  caddis machine list -a hello --context lab"
)]
pub struct Use {
    /// Name of the context.
    name: String,
}

pub fn run(choice: Use, session: &Session) -> Result<(), CliError> {
    let path = session.settings_path()?;
    let mut settings = Settings::load(Some(&path))?;
    settings.context(&choice.name)?;
    settings.current_context = Some(choice.name.clone());
    settings.save(&path)?;
    Ok(session.printer.out(format_args!("Using context {}", choice.name))?)
}
