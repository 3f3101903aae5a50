//! Credentials from a docker `config.json` or a containers `auth.json`, as `docker login` and
//! `skopeo login` write it.
//!
//! Keys are hosts, or hosts with the beginning of a repository's path; the longest that covers a
//! repository counts (containers-auth.json(5)). Older clients wrote addresses, with scheme and the
//! API's path, and Docker Hub's still is one. Entries that say nothing stand for a login that a
//! credential helper keeps. Helpers are not run: they are programs of a user's desktop or cloud
//! account, and what they print may need a session that a server does not have.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use super::repository::Repository;
use crate::ImageError;

/// Clients differ about padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

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

/// What the file has for one repository.
#[derive(Debug, Default)]
pub(crate) struct Logins {
    /// What to use.
    pub(crate) credentials: Option<Credentials>,
    /// The key it was found under.
    key: String,
    /// The helper that keeps a login for it, or may.
    helper: Option<String>,
    file: Option<PathBuf>,
}

impl Logins {
    /// Why a registry that refuses this repository may do so, and what to do.
    pub(crate) fn advice(&self) -> String {
        let Some(file) = self.file.as_ref().map(|file| file.display()) else {
            return "no file with credentials is configured; set one with --registry-credentials"
                .to_owned();
        };
        match (&self.credentials, &self.helper) {
            (Some(_), _) => format!(
                "the login for `{}` in {file} was not accepted; log in again with `skopeo login` \
                 or similar",
                self.key
            ),
            (None, Some(helper)) => format!(
                "{file} uses the credential helper {helper}, which is not supported; write the \
                 login with `skopeo login --authfile FILE` and set that file with \
                 --registry-credentials"
            ),
            (None, None) => {
                format!("{file} has no login for it; add one with `skopeo login` or similar")
            }
        }
    }
}

/// What the file has for a repository. No file, no credentials.
pub(crate) fn look_up(file: Option<&Path>, repository: &Repository) -> Result<Logins, ImageError> {
    let Some(path) = file else { return Ok(Logins::default()) };
    let mut logins = Logins { file: Some(path.to_owned()), ..Logins::default() };
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(logins),
        Err(error) => return Err(ImageError::io("read the registry credentials", path, error)),
    };
    if text.trim_ascii().is_empty() {
        return Ok(logins);
    }
    // What serde says might quote the file, so it is not passed on.
    let malformed = |reason: String| ImageError::Io {
        what: format!("read the registry credentials {}", path.display()),
        source: Arc::new(io::Error::new(io::ErrorKind::InvalidData, reason)),
    };
    let no_config = || malformed("it is not a docker config.json".to_owned());
    let document: Map<String, Value> = serde_json::from_slice(&text).map_err(|_| no_config())?;
    let table = |name: &str| match field(&document, name) {
        None => Ok(None),
        Some(Value::Object(table)) => Ok(Some(table)),
        Some(_) => Err(no_config()),
    };
    for (key, entry) in covering(table("auths")?, repository) {
        let login = credentials(entry)
            .map_err(|reason| malformed(format!("its entry `{key}` {reason}; log in again")))?;
        if let Some(credentials) = login {
            (logins.credentials, logins.key) = (Some(credentials), key.to_owned());
            break;
        }
    }
    let own =
        covering(table("credHelpers")?, repository).into_iter().find_map(|(_, name)| filled(name));
    let helper = own.or_else(|| field(&document, "credsStore").and_then(filled));
    logins.helper = helper.map(|name| format!("docker-credential-{name}"));
    Ok(logins)
}

/// The entries that apply to a repository, the most particular first.
fn covering<'a>(
    table: Option<&'a Map<String, Value>>,
    repository: &Repository,
) -> Vec<(&'a str, &'a Value)> {
    let mut found: Vec<_> = table
        .into_iter()
        .flatten()
        .filter_map(|(key, entry)| {
            let scope = Scope::of(key);
            scope
                .covers(repository)
                .then_some(((std::cmp::Reverse(scope.path.len()), scope.is_address, key), entry))
        })
        .collect();
    found.sort_by_key(|(order, _)| *order);
    found.into_iter().map(|((_, _, key), entry)| (key.as_str(), entry)).collect()
}

/// What a key stands for.
struct Scope<'a> {
    host: &'a str,
    /// Beginning of the repositories' names; empty for all of the host.
    path: &'a str,
    /// Written with a scheme.
    is_address: bool,
}

impl<'a> Scope<'a> {
    fn of(key: &'a str) -> Self {
        let scheme = ["https://", "http://"].into_iter().find_map(|scheme| {
            key.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme)).map(str::len)
        });
        let rest = &key[scheme.unwrap_or(0)..];
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let is_address = scheme.is_some();
        // The path of the registry's API, not of repositories.
        let of_api = (is_address || path.ends_with('/'))
            && matches!(path.trim_end_matches('/'), "v1" | "v2");
        let path = if of_api { "" } else { path.trim_matches('/') };
        Self { host: registry_of(host), path, is_address }
    }

    fn covers(&self, repository: &Repository) -> bool {
        let rest = repository.name.strip_prefix(self.path);
        registry_of(&repository.registry).eq_ignore_ascii_case(self.host)
            && (self.path.is_empty()
                || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    }
}

/// Docker Hub goes by several names.
fn registry_of(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// What an entry says, nothing where a helper keeps it; or what is wrong with it.
fn credentials(entry: &Value) -> Result<Option<Credentials>, &'static str> {
    let fields = match entry {
        Value::Null => return Ok(None),
        Value::Object(fields) => fields,
        _ => return Err("is no object"),
    };
    let text = |name| match field(fields, name) {
        None => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err("has a field that should be a text"),
    };
    let (token, auth) = (text("identitytoken")?, text("auth")?);
    if !token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(token.to_owned())));
    }
    let auth: String = auth.split_ascii_whitespace().collect();
    let (user, password) = if auth.is_empty() {
        (text("username")?.to_owned(), text("password")?.to_owned())
    } else {
        let wrong = "has an `auth` that is not user:password in base64";
        let decoded = BASE64
            .decode(auth)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(wrong)?;
        let (user, password) = decoded.split_once(':').ok_or(wrong)?;
        (user.to_owned(), password.trim_end_matches('\0').to_owned())
    };
    let empty = user.is_empty() && password.is_empty();
    Ok((!empty).then_some(Credentials::Password(user, password)))
}

/// A field that is not null. Docker reads names without regard to case.
fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let found = fields.get(name).or_else(|| {
        fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

fn filled(value: &Value) -> Option<&str> {
    value.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Config {
        path: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Config {
        fn new(text: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.json");
            fs::write(&path, text).unwrap();
            Self { path, _directory: directory }
        }

        fn logins(&self, reference: &str) -> Result<Logins, ImageError> {
            let (registry, name) = reference.split_once('/').unwrap();
            look_up(
                Some(&self.path),
                &Repository { registry: registry.to_owned(), name: name.to_owned() },
            )
        }

        /// The user whose login goes to this repository, or `token`.
        #[track_caller]
        fn user(&self, reference: &str) -> Option<String> {
            self.logins(reference).unwrap().credentials.map(|credentials| match credentials {
                Credentials::Password(user, _) => user,
                Credentials::IdentityToken(token) => token,
            })
        }
    }

    fn auth(text: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    /// `auths` with a user per key.
    fn users(entries: &[(&str, &str)]) -> Config {
        let auths: Map<String, Value> = entries
            .iter()
            .map(|(key, user)| {
                ((*key).to_owned(), serde_json::json!({ "auth": auth(&format!("{user}:p")) }))
            })
            .collect();
        Config::new(&serde_json::json!({ "auths": auths }).to_string())
    }

    #[test]
    fn the_longest_key_that_covers_a_repository_counts_in_any_order_and_no_other_path() {
        let mut entries = [
            ("reg.example.com/team", "team"),
            ("reg.example.com", "host"),
            ("reg.example.com/team/app", "app"),
            ("reg.example.com/other", "other"),
            ("reg.example.com:5000/team", "port"),
            ("https://scheme.example.com/team/", "scheme"),
            ("only.example.com/team", "only"),
        ];
        for _ in 0..entries.len() {
            entries.rotate_left(1);
            let config = users(&entries);
            for (reference, user) in [
                ("reg.example.com/team/app", Some("app")),
                ("reg.example.com/team/app/part", Some("app")),
                ("reg.example.com/team/application", Some("team")),
                ("reg.example.com/team", Some("team")),
                ("reg.example.com/teams/app", Some("host")),
                ("REG.example.com/app", Some("host")),
                ("reg.example.com:5000/team/app", Some("port")),
                ("reg.example.com:5000/app", None),
                ("scheme.example.com/team/app", Some("scheme")),
                ("scheme.example.com/app", None),
                ("only.example.com/team/app", Some("only")),
                ("only.example.com/teams", None),
                ("only.example.com/app/team", None),
                ("example.com/team/app", None),
            ] {
                assert_eq!(config.user(reference).as_deref(), user, "{reference}");
            }
        }
    }

    #[test]
    fn hosts_are_found_in_all_spellings_that_clients_have_written() {
        for key in [
            "r.io",
            "r.io/",
            "https://r.io",
            "http://r.io/",
            "HTTPS://r.io/v1/",
            "https://r.io/v2",
            "r.io/v2/",
        ] {
            assert_eq!(users(&[(key, "u")]).user("r.io/team/app").as_deref(), Some("u"), "{key}");
        }
        // A repository may begin with that.
        let config = users(&[("r.io/v2", "v2"), ("r.io/v1/app", "v1")]);
        assert_eq!(
            (config.user("r.io/v2/app").as_deref(), config.user("r.io/app")),
            (Some("v2"), None)
        );
        assert_eq!(config.user("r.io/v1/app").as_deref(), Some("v1"));
        for key in
            ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"]
        {
            assert_eq!(
                users(&[(key, "hub")]).user("docker.io/library/nginx").as_deref(),
                Some("hub"),
                "{key}"
            );
        }
        let config = users(&[
            ("https://index.docker.io/v1/", "old"),
            ("docker.io/mine", "mine"),
            ("docker.io", "new"),
        ]);
        assert_eq!(config.user("docker.io/mine/app").as_deref(), Some("mine"));
        assert_eq!(
            config.user("docker.io/library/nginx").as_deref(),
            Some("new"),
            "always the same of two"
        );
    }

    #[test]
    fn nulls_helpers_and_damaged_entries_harm_no_other() {
        let config = Config::new(&format!(
            r#"{{"auths": {{"null.io": null, "empty.io": {{}},
                "nulls.io": {{"auth": null, "username": null}}, "damaged.io": {{"auth": "hunter2"}},
                "odd.io": {{"auth": 7}}, "text.io": "hunter2", "": {{"auth": "x"}},
                "good.io": {{"auth": "{}", "email": null}}, "good.io/kept": {{}},
                "good.io/broken": {{"auth": "hunter2"}}}},
                "credHelpers": {{"ecr.io": "ecr-login", "nobody.io": null}},
                "credsStore": "desktop", "HttpHeaders": null}}"#,
            auth("good:p")
        ));
        for (reference, user) in [
            ("good.io/app", Some("good")),
            ("good.io/kept/app", Some("good")),
            ("null.io/app", None),
            ("empty.io/app", None),
            ("nulls.io/app", None),
            ("absent.io/app", None),
        ] {
            assert_eq!(config.user(reference).as_deref(), user, "{reference}");
        }
        for reference in ["damaged.io/app", "odd.io/app", "text.io/app", "good.io/broken/app"] {
            let error = config.logins(reference).unwrap_err().to_string();
            let (host, _) = reference.rsplit_once('/').unwrap();
            assert!(error.contains(&format!("`{host}`")) && !error.contains("hunter2"), "{error}");
        }
        for nothing in
            [r#"{"auths": null, "credHelpers": null, "credsStore": null}"#, "{}", "", " \n"]
        {
            let logins = Config::new(nothing).logins("good.io/app").unwrap();
            assert!(logins.credentials.is_none() && logins.helper.is_none(), "{nothing}");
        }
        for nonsense in [
            r#"{"auths": "hunter2"}"#,
            r#"["hunter2"]"#,
            "hunter2",
            r#"{"credHelpers": ["hunter2"]}"#,
        ] {
            let error = Config::new(nonsense).logins("good.io/app").unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("config.json") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn what_a_login_is_made_of_is_read_as_other_clients_do() {
        let (padded, colons) = (auth("user:password"), auth("user:p:a:s:s"));
        let unpadded = padded.trim_end_matches('=');
        assert_ne!(unpadded, padded, "it shows what is meant");
        let password = |user: &str, password: &str| {
            Credentials::Password(user.to_owned(), password.to_owned())
        };
        for (entry, expected) in [
            (format!(r#"{{"auth": "{padded}"}}"#), password("user", "password")),
            (format!(r#"{{"auth": "{unpadded}"}}"#), password("user", "password")),
            (
                format!(r#"{{"auth": " {}\n{}"}}"#, &padded[..4], &padded[4..]),
                password("user", "password"),
            ),
            (format!(r#"{{"auth": "{colons}"}}"#), password("user", "p:a:s:s")),
            (
                format!(r#"{{"auth": "{}"}}"#, auth("user:password\0\0")),
                password("user", "password"),
            ),
            (format!(r#"{{"Auth": "{padded}"}}"#), password("user", "password")),
            (
                format!(r#"{{"auth": "{padded}", "username": "x", "password": "y"}}"#),
                password("user", "password"),
            ),
            (
                r#"{"auth": "", "username": "u", "password": "p:w"}"#.to_owned(),
                password("u", "p:w"),
            ),
            (
                format!(r#"{{"auth": "{padded}", "identitytoken": ""}}"#),
                password("user", "password"),
            ),
            (
                format!(r#"{{"auth": "{padded}", "identitytoken": "secret"}}"#),
                Credentials::IdentityToken("secret".into()),
            ),
        ] {
            let config = Config::new(&format!(r#"{{"auths": {{"r.io": {entry}}}}}"#));
            let logins = config.logins("r.io/app").unwrap();
            assert_eq!(logins.credentials, Some(expected), "{entry}");
            assert!(format!("{logins:?}").contains("Credentials(..)"), "no secret in a log");
        }
        assert_eq!(
            Config::new(&format!(r#"{{"auths": {{"r.io": {{"auth": "{}"}}}}}}"#, auth(":")))
                .user("r.io/a"),
            None
        );
    }

    #[test]
    fn advice_names_the_login_or_the_helper_or_that_there_is_none() {
        let text = r#"{"auths": {"r.io": {"username": "u", "password": "hunter2"}, "docker.io": {}},
            "credHelpers": {"ecr.io/team": "ecr-login", "https://gcr.io": "gcloud"},
            "credsStore": "desktop"}"#;
        let config = Config::new(text);
        let advice = |reference: &str| config.logins(reference).unwrap().advice();
        assert!(advice("r.io/app").contains("`r.io`") && !advice("r.io/app").contains("hunter2"));
        for (reference, helper) in [
            ("ecr.io/team/app", "docker-credential-ecr-login"),
            ("gcr.io/app", "docker-credential-gcloud"),
            ("docker.io/library/nginx", "docker-credential-desktop"),
            ("ecr.io/other", "docker-credential-desktop"),
        ] {
            assert!(
                advice(reference).contains(&format!("helper {helper},")),
                "{}",
                advice(reference)
            );
        }
        assert!(users(&[]).logins("r.io/app").unwrap().advice().contains("no login"));
        let repository = Repository { registry: "r.io".to_owned(), name: "app".to_owned() };
        assert!(look_up(None, &repository).unwrap().advice().contains("--registry-credentials"));
        let gone = look_up(Some(Path::new("/nowhere/config.json")), &repository).unwrap();
        assert!(gone.credentials.is_none() && gone.advice().contains("/nowhere/config.json"));
        let directory = tempfile::tempdir().unwrap();
        let error = look_up(Some(directory.path()), &repository).unwrap_err();
        assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    }
}
