//! The settings file: which servers, with which tokens. Written by `auth login` and `context`,
//! readable by its owner only.

use std::{
    collections::BTreeMap, fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path,
};

use serde::{Deserialize, Serialize};

use crate::CliError;

/// Content of `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Address of the server, without contexts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_url: Option<String>,
    /// Token for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// The context that is used unless another is asked for; without one, the two fields above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_context: Option<String>,
    /// Servers by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, Context>,
}

/// A server with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// Address of the server.
    pub api_url: String,
    /// Token for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
}

impl Settings {
    /// The context of this name.
    pub fn context(&self, name: &str) -> Result<&Context, CliError> {
        self.contexts.get(name).ok_or_else(|| {
            let known: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let hint = match known.as_slice() {
                [] => "There are none; add one with 'caddis context add NAME --api-url URL \
                     --access-token TOKEN'."
                    .to_owned(),
                known => format!("Known contexts: {}.", known.join(", ")),
            };
            CliError::with_hint(format!("there is no context '{name}'"), hint)
        })
    }

    /// Reads the file; empty settings when there is none.
    pub fn load(path: Option<&Path>) -> Result<Self, CliError> {
        let Some(path) = path else { return Ok(Self::default()) };
        match fs::read_to_string(path) {
            // The parser's own message would show the line, and with it perhaps the token.
            Ok(text) => toml::from_str(&text).map_err(|_| {
                CliError::with_hint(
                    format!("could not read {}: it is not valid TOML", path.display()),
                    "Fix it, or delete it and run 'caddis auth login' again.",
                )
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(CliError::new(format!("could not read {}: {e}", path.display()))),
        }
    }

    /// Writes the file with mode 0600, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), CliError> {
        let failed = |e: &dyn std::fmt::Display| {
            CliError::new(format!("could not write {}: {e}", path.display()))
        };
        let text = toml::to_string(self).map_err(|e| failed(&e))?;
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory).map_err(|e| failed(&e))?;
        let draft = path.with_extension(format!("toml.{}", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&draft, path));
        written.map_err(|e| {
            // The draft may not even exist; the error that counts is the first.
            let _ = fs::remove_file(&draft);
            failed(&e)
        })
    }
}
