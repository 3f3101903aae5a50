//! `caddis auth token`.

use crate::{CliError, session::Session};

pub fn run(session: &Session) -> Result<(), CliError> {
    let token = session.connection()?.token;
    let token = token.ok_or_else(|| CliError::new("no access token available"))?;
    Ok(session.printer.out(token)?)
}
