//! Which organisation something new belongs to.

use caddis_api::app::Organization;
use caddis_client::Client;

use crate::{CliError, prompt, session::Session};

/// The slug that means the caller's own.
pub const PERSONAL: &str = "personal";

/// The slug of the organisation that is named, else the only one there is, else one chosen from a
/// menu.
pub async fn choose(
    session: &Session,
    client: &Client,
    wanted: Option<&str>,
) -> Result<String, CliError> {
    let printer = &session.printer;
    if wanted == Some(PERSONAL) {
        return Ok(PERSONAL.to_owned());
    }
    let all = client.organizations().await;
    let mut all = all.map_err(|e| CliError::attempted("could not list organizations", e))?;
    if let Some(wanted) = wanted {
        return match all.iter().any(|organization| organization.slug == wanted) {
            true => Ok(wanted.to_owned()),
            false => Err(CliError::with_hint(
                format!("organization {wanted} not found"),
                "'caddis orgs list' lists the organizations the access token has access to.",
            )),
        };
    }
    let at = match all.as_slice() {
        [only] => {
            let personal = if only.slug == PERSONAL { "personal " } else { "" };
            printer.note(format_args!(
                "automatically selected {personal}organization: {}",
                only.name
            ))?;
            0
        }
        [] => return Err(CliError::new("the access token has access to no organization")),
        several => {
            let option = |organization: &Organization| {
                format!("{} ({})", organization.name, organization.slug)
            };
            let options: Vec<_> = several.iter().map(option).collect();
            let unasked = "org slug must be specified when not running interactively";
            prompt::choose(printer, "Select Organization:", &options, unasked).await?
        }
    };
    Ok(all.swap_remove(at).slug)
}
