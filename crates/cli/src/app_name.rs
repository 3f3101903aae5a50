//! Which app a command is about: flag, then environment, then the configuration file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{CliError, Environment};

/// Looked for in the current directory, in this order.
const FILES: [&str; 2] = ["caddis.toml", "fly.toml"];

/// How apps are named that are made for `machine run --shell`.
pub const SHELLS: &str = "interactive-shells-";
/// How they were named by earlier versions.
const SHELLS_BEFORE: &str = "flyctl-interactive-shells-";

/// Whether an app was made for `machine run --shell`.
pub fn is_for_shells(app: &str) -> bool {
    app.starts_with(SHELLS) || app.starts_with(SHELLS_BEFORE)
}

const MISSING: &str = "the config for your app is missing an app name, add an app field to the \
                       fly.toml file or specify with the -a flag";

/// What flags say of the app.
#[derive(Debug, Clone, Copy, Default)]
pub struct AppFlags<'a> {
    pub app: Option<&'a str>,
    /// The file that names it, or the directory of that file.
    pub config: Option<&'a Path>,
}

/// The app's name, if anything names one.
pub fn find(flags: AppFlags<'_>, environment: &Environment) -> Result<Option<String>, CliError> {
    if let Some(name) = flags.app.filter(|name| !name.is_empty()) {
        return Ok(Some(name.to_owned()));
    }
    if let Some(name) = environment.first(&["CADDIS_APP", "FLY_APP"]) {
        return Ok(Some(name.to_owned()));
    }
    file(flags, environment).map_or(Ok(None), |path| read(&path))
}

/// The app's configuration file, if there is one, or one is named.
pub fn file(flags: AppFlags<'_>, environment: &Environment) -> Option<PathBuf> {
    let Some(path) = flags.config else { return in_directory(&environment.current_directory) };
    let path = environment.current_directory.join(path);
    // `-c` may name the directory that holds the file.
    if path.is_dir() { in_directory(&path) } else { Some(path) }
}

/// The app's name, or the error that says how to give one.
pub fn require(flags: AppFlags<'_>, environment: &Environment) -> Result<String, CliError> {
    find(flags, environment)?.ok_or_else(|| CliError::new(MISSING))
}

fn in_directory(directory: &Path) -> Option<PathBuf> {
    FILES.iter().map(|name| directory.join(name)).find(|path| path.is_file())
}

fn read(path: &Path) -> Result<Option<String>, CliError> {
    let text = fs::read_to_string(path).map_err(|e| {
        CliError::new(format!("could not read the app's config {}: {e}", path.display()))
    })?;
    let table: toml::Table = text.parse().map_err(|e| {
        CliError::new(format!("could not read the app's config {}: {e}", path.display()))
    })?;
    Ok(table
        .get("app")
        .and_then(toml::Value::as_str)
        .filter(|name| !name.is_empty())
        .map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_then_environment_then_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut environment = Environment {
            current_directory: directory.path().to_owned(),
            ..Environment::default()
        };
        let mut flags = AppFlags::default();
        assert!(
            require(flags, &environment).unwrap_err().to_string().contains("missing an app name")
        );
        fs::write(directory.path().join("fly.toml"), "app = 'file'\n").unwrap();
        assert_eq!(require(flags, &environment).unwrap(), "file");
        fs::write(directory.path().join("other.toml"), "app = 'other'\n").unwrap();
        flags.config = Some(Path::new("other.toml"));
        assert_eq!(require(flags, &environment).unwrap(), "other");
        environment.variables.insert("FLY_APP".into(), "variable".into());
        assert_eq!(require(flags, &environment).unwrap(), "variable");
        flags.app = Some("flag");
        assert_eq!(require(flags, &environment).unwrap(), "flag");
    }
}
