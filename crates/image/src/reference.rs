//! Image references: `[registry/]repository[:tag][@digest]`, with Docker's shorthands.

use crate::{Digest, ImageError};

/// A reference taken apart; the shorthands (`nginx`) spelled out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedReference {
    /// Host, and port where one was given.
    pub registry: String,
    /// E.g. `library/nginx`.
    pub repository: String,
    /// The tag; `latest` where neither tag nor digest was given.
    pub tag: Option<String>,
    /// When pinned; wins over the tag.
    pub digest: Option<Digest>,
}

impl ParsedReference {
    /// The name under which the store lists it: registry, repository, and tag or else digest.
    #[must_use]
    pub fn canonical(&self) -> String {
        let Self { registry, repository, tag, digest } = self;
        match (tag, digest) {
            (Some(tag), None) => format!("{registry}/{repository}:{tag}"),
            (_, Some(digest)) => format!("{registry}/{repository}@{digest}"),
            (None, None) => format!("{registry}/{repository}"),
        }
    }

    /// What the registry is asked for: the digest, else the tag.
    #[must_use]
    pub fn version(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or("latest")
    }
}

/// Takes a reference apart. `default_registry` is for those that name none; on `docker.io` a
/// repository of one component is below `library/`.
///
/// # Errors
/// [`ImageError::InvalidReference`], saying what is wrong.
pub fn parse_reference(
    reference: &str,
    default_registry: &str,
) -> Result<ParsedReference, ImageError> {
    let invalid = |reason: &str| ImageError::InvalidReference {
        reference: reference.chars().filter(|c| !c.is_control()).take(300).collect(),
        reason: reason.to_owned(),
    };
    if reference.is_empty() {
        return Err(invalid(
            "it is empty; write something like `nginx` or `registry.example.com/team/app:1.2`",
        ));
    }
    if reference.len() > 1024 {
        return Err(invalid("it is longer than 1024 characters"));
    }
    if reference.contains("://") {
        return Err(invalid(
            "leave the scheme out; plain HTTP is for registries configured as insecure",
        ));
    }
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => match digest.parse() {
            Ok(digest) => (name, Some(digest)),
            Err(_) => {
                return Err(invalid(
                    "what follows `@` must be `sha256:` and 64 lower-case hex digits",
                ));
            }
        },
        None => (reference, None),
    };
    let (registry, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (default_registry, name),
    };
    if !is_host(registry) {
        return Err(invalid(
            "the registry must be a host name or address, optionally with `:port`",
        ));
    }
    // Docker Hub goes by several names.
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let (repository, tag) = match rest.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(invalid(
            "a tag is up to 128 of letters, digits, `_`, `.` and `-`, not starting with `.` or `-`",
        ));
    }
    if repository.is_empty()
        || repository.len() > 255
        || !repository.split('/').all(is_path_component)
    {
        return Err(invalid(
            "a repository is lower-case letters and digits, separated by `.`, `_`, `-` or `/`",
        ));
    }
    let repository = if registry == "docker.io" && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, None) => Some("latest".to_owned()),
        (None, Some(_)) => None,
    };
    Ok(ParsedReference { registry: registry.to_owned(), repository, tag, digest })
}

/// The digest that a reference is pinned to, or is.
pub(crate) fn pinned_digest(reference: &str) -> Option<Digest> {
    reference.rsplit_once('@').map_or(reference, |(_, digest)| digest).parse().ok()
}

/// What [`crate::ImageReference::registry`] says of images that came from archives.
const ARCHIVES: [&str; 3] = ["docker-archive", "oci-archive", "local"];

/// Whether a registry stands for an archive.
pub(crate) fn is_archive(registry: &str) -> bool {
    ARCHIVES.contains(&registry)
}

/// Whether a reference is that of an image from an archive, as the API shows it and clients send it
/// back: its name may be anything, its digest says which it is.
pub(crate) fn is_of_archive(reference: &str) -> bool {
    let pinned = pinned_digest(reference).is_some();
    pinned && reference.split_once('/').is_some_and(|(registry, _)| is_archive(registry))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        // An IPv6 literal.
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => (address, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        },
    };
    let name_is_fine = if host.starts_with('[') {
        name.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
    };
    name_is_fine && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    component.bytes().next().is_some_and(alphanumeric)
        && component.bytes().last().is_some_and(alphanumeric)
        && component.bytes().all(|byte| alphanumeric(byte) || b"._-".contains(&byte))
        && !component.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn shorthands_are_spelled_out_as_docker_does() {
        for (given, canonical) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
            ("localhost/web", "localhost/web:latest"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("[::1]:5000/web:x", "[::1]:5000/web:x"),
            ("10.0.0.1:5000/web__x/a-b.c", "10.0.0.1:5000/web__x/a-b.c:latest"),
        ] {
            assert_eq!(
                parse_reference(given, "docker.io").unwrap().canonical(),
                canonical,
                "{given}"
            );
        }
        let pinned = parse_reference(&format!("nginx:1@{DIGEST}"), "docker.io").unwrap();
        assert_eq!(pinned.canonical(), format!("docker.io/library/nginx@{DIGEST}"));
        assert_eq!(pinned.version(), DIGEST);
        assert_eq!(pinned.tag.as_deref(), Some("1"));
        let elsewhere = parse_reference("app", "registry.example.com:5000").unwrap();
        assert_eq!(elsewhere.canonical(), "registry.example.com:5000/app:latest");
    }

    #[test]
    fn references_of_images_from_archives_are_told_from_those_of_registries() {
        for given in ["docker-archive/web:1", "oci-archive/Any Name", "local/a/b"] {
            assert!(is_of_archive(&format!("{given}@{DIGEST}")), "{given}");
            assert!(!is_of_archive(given), "{given}: a repository of the default registry");
        }
        for given in
            ["docker.io/local/web", "local", "localhost/web", "web", "docker-archive.io/web"]
        {
            assert!(!is_of_archive(&format!("{given}@{DIGEST}")), "{given}");
        }
        assert_eq!(pinned_digest(DIGEST), Some(DIGEST.parse().unwrap()));
        assert_eq!(pinned_digest("web@sha256:12"), None);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for given in [
            "",
            "Nginx",
            "https://ghcr.io/a",
            "a:b:c",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "ghcr.io/../../etc",
            "a:-x",
            "a@sha256:12",
            "a@md5:0123",
            "host:0/a",
            "host:99999/a",
            "host:80@evil/a",
            "-a.b/c",
            "a b",
            "a\n",
            "[::1/a",
            "a?x=1",
            "a.b/c%2e",
        ] {
            let error = parse_reference(given, "docker.io").unwrap_err();
            assert!(matches!(error, ImageError::InvalidReference { .. }), "{given}: {error}");
            assert!(error.is_client_fault());
        }
    }
}
