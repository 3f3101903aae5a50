//! `caddis auth login`.

use caddis_client::Client;

use crate::{CliError, session::Session, settings::Settings};

pub async fn run(session: &Session) -> Result<(), CliError> {
    let connection = session.connection()?;
    let token = connection.token.ok_or_else(|| {
        CliError::with_hint(
            "no access token given",
            "Give one with --access-token or CADDIS_API_TOKEN.",
        )
    })?;
    Client::new(&connection.url, Some(&token))?.list_apps(Some("personal")).await?;
    let path = session.settings_path()?;
    let mut settings = Settings::load(Some(&path))?;
    let context = session.globals.context.as_ref().or(settings.current_context.as_ref()).cloned();
    match context.and_then(|name| settings.contexts.get_mut(&name)) {
        Some(context) => {
            context.api_url.clone_from(&connection.url);
            context.access_token = Some(token);
        }
        None => {
            (settings.api_url, settings.access_token) = (Some(connection.url.clone()), Some(token))
        }
    }
    settings.save(&path)?;
    let (url, path) = (connection.url, path.display());
    Ok(session.printer.out(format_args!("Logged in to {url}; stored in {path}"))?)
}
