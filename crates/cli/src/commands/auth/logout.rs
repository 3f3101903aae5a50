//! `caddis auth logout`.

use std::io::ErrorKind;

use crate::{CliError, session::Session};

pub fn run(session: &Session) -> Result<(), CliError> {
    let path = session.settings_path()?;
    match std::fs::remove_file(&path) {
        Ok(()) => session.printer.out(format_args!("Removed {}", path.display()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            session.printer.out("Not logged in")?
        }
        Err(error) => {
            return Err(CliError::new(format!("could not remove {}: {error}", path.display())));
        }
    }
    Ok(())
}
