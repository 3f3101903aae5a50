//! "Did you mean": names that are there, close to one that is not.

use std::time::Duration;

use caddis_client::Client;
use tokio::time::timeout;

use crate::{CliError, session::Session};

/// How alike two names must be, of 1.
const CLOSE: f64 = 0.8;
/// So many names at most.
const MOST: usize = 3;

/// A hint that takes longer is not waited for.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The names most like `wanted`, the best first.
fn close<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut alike: Vec<_> = names
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wanted, name), name))
        .filter(|(by, _)| *by > CLOSE)
        .collect();
    alike.sort_by(|a, b| b.0.total_cmp(&a.0));
    alike.into_iter().take(MOST).map(|(_, name)| name).collect()
}

/// `Did you mean "a" or "b"?`, or nothing.
pub fn hint<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<_> =
        close(wanted, names).into_iter().map(|name| format!("\"{name}\"")).collect();
    (!names.is_empty()).then(|| format!("Did you mean {}?", names.join(" or ")))
}

/// The name in the server's word that there is no such app.
fn missing_app(message: &str) -> Option<&str> {
    let (_, name) = message.split_once("Could not find App \"")?;
    name.split_once('"').map(|(name, _)| name)
}

/// The error, with apps of a similar name when it says that there is none of this one.
pub async fn explain(error: CliError, session: &Session) -> CliError {
    let text = error.to_string();
    let Some(name) = missing_app(&text) else { return error };
    let (request_id, is_refusal) = match &error {
        CliError::Client(error) if error.is_not_found() => {
            (error.request_id().map(str::to_owned), true)
        }
        CliError::Failed { hint: None, request_id, is_refusal, .. } => {
            (request_id.clone(), *is_refusal)
        }
        _ => return error,
    };
    let hint = match session.client() {
        Ok(client) => similar_apps(&client, name).await,
        Err(_) => None,
    };
    let list = || "'caddis apps list' lists the apps.".to_owned();
    let hint = Some(hint.unwrap_or_else(list));
    CliError::Failed { hint, message: text, request_id, is_refusal }
}

async fn similar_apps(client: &Client, name: &str) -> Option<String> {
    // An error about a hint would only hide the one that counts.
    let apps = timeout(TIMEOUT, client.list_apps(None)).await.ok()?.ok()?;
    hint(name, apps.iter().map(|app| app.name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_told_and_others_not() {
        let names = ["hello", "help", "shop", "shop-staging"];
        assert_eq!(hint("helo", names).as_deref(), Some("Did you mean \"hello\" or \"help\"?"));
        assert_eq!(hint("shpo", names).as_deref(), Some("Did you mean \"shop\"?"));
        assert_eq!(hint("quite-other", names), None);
        assert_eq!(missing_app("could not: Could not find App \"a\" (x)"), Some("a"));
        assert_eq!(missing_app("machine not found"), None);
    }
}
