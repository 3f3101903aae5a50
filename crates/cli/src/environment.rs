//! What a command takes from its surroundings, in one place so that tests can give their own.

use std::{collections::HashMap, path::PathBuf};

/// Environment variables and directories.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Variables that are set and UTF-8.
    pub variables: HashMap<String, String>,
    /// Where relative paths begin.
    pub current_directory: PathBuf,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            current_directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
        }
    }

    /// A variable; empty counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of these that is set.
    pub fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// Where the settings file is: `$XDG_CONFIG_HOME/caddis` or `~/.config/caddis`.
    pub fn settings_path(&self) -> Option<PathBuf> {
        let base = match self.get("XDG_CONFIG_HOME") {
            Some(directory) => PathBuf::from(directory),
            None => PathBuf::from(self.get("HOME")?).join(".config"),
        };
        Some(base.join("caddis/config.toml"))
    }

    /// The local server's data directory.
    pub fn data_directory(&self) -> PathBuf {
        PathBuf::from(self.get("CADDIS_DATA_DIR").unwrap_or("/var/lib/caddis"))
    }
}
