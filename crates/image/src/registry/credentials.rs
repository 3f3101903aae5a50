//! Credentials from a docker `config.json`, as `docker login` and `skopeo login` write it.

use std::{collections::HashMap, fmt, fs, io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;

use crate::ImageError;

/// How to identify ourselves to one registry.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// User and password.
    Password(String, String),
    /// A refresh token, to be exchanged.
    IdentityToken(String),
}

// Secrets stay out of logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(..)")
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// The credentials for a registry, if the file has any. No file, no credentials.
pub(crate) fn look_up(file: Option<&Path>, registry: &str) -> Result<Option<Credentials>, ImageError> {
    let Some(path) = file else { return Ok(None) };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("read the registry credentials", path, error)),
    };
    // What serde says might quote the file, so it is not passed on.
    let malformed = || ImageError::Io {
        what: format!("read the registry credentials {}", path.display()),
        source: std::sync::Arc::new(io::Error::new(io::ErrorKind::InvalidData, "it is no docker config.json")),
    };
    let file: File = serde_json::from_slice(&text).map_err(|_| malformed())?;
    let Some((_, entry)) = file.auths.iter().find(|(key, _)| same_registry(key, registry)) else { return Ok(None) };
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::IdentityToken(entry.identitytoken.clone())));
    }
    if !entry.auth.is_empty() {
        let decoded = STANDARD.decode(entry.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let decoded = decoded.ok_or_else(malformed)?;
        let (user, password) = decoded.split_once(':').ok_or_else(malformed)?;
        return Ok(Some(Credentials::Password(user.to_owned(), password.trim_end_matches('\0').to_owned())));
    }
    if !entry.username.is_empty() {
        return Ok(Some(Credentials::Password(entry.username.clone(), entry.password.clone())));
    }
    Ok(None) // in a credential helper's keeping: nothing we could run
}

/// Keys are hosts, or addresses with scheme and path; Docker Hub has a traditional one.
fn same_registry(key: &str, registry: &str) -> bool {
    let host = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    host.eq_ignore_ascii_case(registry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_host_in_all_spellings() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        fs::write(
            &path,
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpiOmM="}, "reg.example.com:5000": {"auth": "dTpw"},
                "token.example.com": {"auth": "dTpw", "identitytoken": "secret"}, "helper.example.com": {}},
                "credsStore": "x"}"#,
        )
        .unwrap();
        let find = |registry: &str| look_up(Some(&path), registry).unwrap();
        assert_eq!(find("docker.io"), Some(Credentials::Password("a".into(), "b:c".into())));
        assert_eq!(find("reg.example.com:5000"), Some(Credentials::Password("u".into(), "p".into())));
        assert_eq!(find("token.example.com"), Some(Credentials::IdentityToken("secret".into())));
        assert_eq!(find("reg.example.com"), None);
        assert_eq!(find("helper.example.com"), None);
        assert_eq!(look_up(Some(&directory.path().join("none")), "docker.io").unwrap(), None);
        assert_eq!(format!("{:?}", find("token.example.com")), "Some(Credentials(..))");
        fs::write(&path, r#"{"auths": "hunter2"}"#).unwrap();
        let error = look_up(Some(&path), "docker.io").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
