//! Which server, with which token.
//!
//! Each is taken from the first of: flag, the context that a flag names, `CADDIS_…` variable,
//! `FLY_…` variable, the context that a variable or the settings file names, the settings file, the
//! local server's data directory. A stored token is only used for the server it was stored with,
//! never sent to another.

use std::{fs, net::SocketAddr, path::Path};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{CliError, Environment, settings::Settings};

/// Name of the file in which `caddis serve` leaves its address, in its data directory.
pub const SERVER_FILE: &str = "server.json";
/// Name of the file with the first token, in the same place.
const ROOT_TOKEN_FILE: &str = "root.token";

/// Content of [`SERVER_FILE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFile {
    /// E.g. `http://127.0.0.1:4280`.
    pub url: String,
    /// Id of the host it runs on; servers of earlier releases do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Addresses of the listeners that all apps share; none where it has none, or is of an earlier
    /// release.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<SocketAddr>,
    /// Prefixes of egress addresses; absent where it is of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_addresses: Option<Vec<IpNet>>,
    /// Address that it listens on for WireGuard; absent where it does not, or is of an earlier
    /// release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<SocketAddr>,
    /// Where it keeps snapshots of volumes, a directory or a URL without credentials; absent where
    /// it is of an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_store: Option<String>,
    /// Space for volumes that it was given, GiB; absent where that is for it to choose, or it is of
    /// an earlier release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_gb: Option<u64>,
}

/// A server and the token for it.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    pub url: String,
    /// Where the address was found, for messages.
    pub url_source: String,
    pub token: Option<String>,
    /// Where the token was found, for messages.
    pub token_source: String,
}

/// What flags say of the server.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServerFlags<'a> {
    pub access_token: Option<&'a str>,
    pub api_url: Option<&'a str>,
    /// Name of a context.
    pub context: Option<&'a str>,
}

impl Connection {
    /// Finds the server and its token, each from the first place that names one.
    pub fn find(flags: ServerFlags<'_>, environment: &Environment) -> Result<Self, CliError> {
        let settings = Settings::load(environment.settings_path().as_deref())?;
        let data_directory = environment.data_directory();
        let named = flags.context.or_else(|| environment.get("CADDIS_CONTEXT"));
        let (stored_url, stored_token, stored_source) =
            match named.or(settings.current_context.as_deref()) {
                Some(name) => {
                    let context = settings.context(name)?;
                    (
                        Some(context.api_url.clone()),
                        context.access_token.clone(),
                        format!("context {name}"),
                    )
                }
                None => (
                    settings.api_url.clone(),
                    settings.access_token.clone(),
                    "the settings file".to_owned(),
                ),
            };
        let by_flag = flags.context.is_some();
        let local_url = || read_server_file(&data_directory);
        let (url, url_source) = if let Some(url) = flags.api_url {
            (url.to_owned(), "--api-url".to_owned())
        } else if let Some(url) = stored_url.as_ref().filter(|_| by_flag) {
            (url.clone(), stored_source.clone())
        } else if let Some((url, name)) =
            variable(environment, &["CADDIS_API_URL", "FLY_FLAPS_BASE_URL"])
        {
            (url, name)
        } else if let Some(url) = &stored_url {
            (url.clone(), stored_source.clone())
        } else if let Some(url) = local_url()? {
            (url, data_directory.join(SERVER_FILE).display().to_string())
        } else {
            return Err(CliError::with_hint(
                "no server is known",
                format!(
                    "Start one here with 'caddis serve' (nothing is running with data directory \
                     {}), or name one with --api-url, CADDIS_API_URL or 'caddis auth login \
                     --api-url URL --access-token TOKEN'.",
                    data_directory.display()
                ),
            ));
        };
        let names = ["CADDIS_API_TOKEN", "FLY_API_TOKEN", "FLY_ACCESS_TOKEN"];
        let is_for_it =
            stored_token.is_some() && stored_url.as_deref().is_none_or(|known| same(known, &url));
        let (token, token_source) = if let Some(token) = flags.access_token {
            (Some(token.to_owned()), "--access-token".to_owned())
        } else if by_flag && is_for_it {
            (stored_token, stored_source)
        } else if let Some((token, name)) = variable(environment, &names) {
            (Some(token), name)
        } else if is_for_it {
            (stored_token, stored_source)
        } else if local_url().ok().flatten().is_some_and(|local| same(&local, &url)) {
            let path = data_directory.join(ROOT_TOKEN_FILE);
            (read_token(&path)?, path.display().to_string())
        } else {
            (None, String::new())
        };
        Ok(Self {
            url,
            url_source,
            token: token.map(|token| token.trim().to_owned()),
            token_source,
        })
    }
}

fn variable(environment: &Environment, names: &[&str]) -> Option<(String, String)> {
    names.iter().find_map(|name| Some((environment.get(name)?.to_owned(), (*name).to_owned())))
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

fn read_server_file(data_directory: &Path) -> Result<Option<String>, CliError> {
    let path = data_directory.join(SERVER_FILE);
    match fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice::<ServerFile>(&text).map(|file| Some(file.url)).map_err(|e| {
                CliError::new(format!("could not read {}: {e}; restart the server", path.display()))
            })
        }
        // A directory we may not enter is that of someone else's server.
        Err(_) => Ok(None),
    }
}

fn read_token(path: &Path) -> Result<Option<String>, CliError> {
    match fs::read_to_string(path) {
        Ok(token) => Ok(Some(token)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CliError::with_hint(
            format!("could not read the local server's token from {}: {e}", path.display()),
            "Run this as the user the server runs as, or give a token with --access-token or \
             CADDIS_API_TOKEN.",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(directory: &Path, variables: &[(&str, &str)]) -> Environment {
        let mut environment =
            Environment { current_directory: directory.to_owned(), ..Environment::default() };
        let home = directory.display().to_string();
        for (name, value) in
            [("HOME", home.as_str()), ("CADDIS_DATA_DIR", home.as_str())].iter().chain(variables)
        {
            environment.variables.insert((*name).to_owned(), (*value).to_owned());
        }
        environment
    }

    #[test]
    fn the_nearest_source_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let find = |flags: ServerFlags<'_>, variables: &[(&str, &str)]| {
            Connection::find(flags, &environment(path, variables))
                .map(|c| (c.url, c.token.unwrap_or_default()))
        };
        let none = ServerFlags::default();
        assert!(find(none, &[]).unwrap_err().to_string().contains("no server is known"));
        fs::write(path.join(SERVER_FILE), r#"{"url":"http://local"}"#).unwrap();
        fs::write(path.join(ROOT_TOKEN_FILE), "root\n").unwrap();
        assert_eq!(find(none, &[]).unwrap(), ("http://local".into(), "root".into()));
        let settings = Settings {
            api_url: Some("http://file".into()),
            access_token: Some("stored".into()),
            ..Settings::default()
        };
        settings.save(&path.join(".config/caddis/config.toml")).unwrap();
        assert_eq!(find(none, &[]).unwrap(), ("http://file".into(), "stored".into()));
        let fly = [("FLY_FLAPS_BASE_URL", "http://fly"), ("FLY_API_TOKEN", "fly")];
        assert_eq!(find(none, &fly).unwrap(), ("http://fly".into(), "fly".into()));
        let ours =
            [fly[0], fly[1], ("CADDIS_API_URL", "http://ours"), ("CADDIS_API_TOKEN", "ours")];
        assert_eq!(find(none, &ours).unwrap(), ("http://ours".into(), "ours".into()));
        let flags = ServerFlags {
            api_url: Some("http://flag"),
            access_token: Some("flag"),
            ..ServerFlags::default()
        };
        assert_eq!(find(flags, &ours).unwrap(), ("http://flag".into(), "flag".into()));
    }

    #[test]
    fn stored_tokens_are_not_sent_to_other_servers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join(SERVER_FILE), r#"{"url":"http://local"}"#).unwrap();
        fs::write(path.join(ROOT_TOKEN_FILE), "root").unwrap();
        let settings = Settings {
            api_url: Some("http://file".into()),
            access_token: Some("stored".into()),
            ..Settings::default()
        };
        settings.save(&path.join(".config/caddis/config.toml")).unwrap();
        let elsewhere = [("CADDIS_API_URL", "http://elsewhere")];
        let found =
            Connection::find(ServerFlags::default(), &environment(path, &elsewhere)).unwrap();
        assert_eq!(found.token, None);
        let local = [("CADDIS_API_URL", "http://local/")];
        let found = Connection::find(ServerFlags::default(), &environment(path, &local)).unwrap();
        assert_eq!(found.token.as_deref(), Some("root"));
    }
}
