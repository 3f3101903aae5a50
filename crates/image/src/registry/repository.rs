//! A repository of a registry.

/// Where blobs and manifests of an image are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Repository {
    /// Host and port.
    pub(crate) registry: String,
    /// E.g. `library/nginx`.
    pub(crate) name: String,
}

impl Repository {
    /// The whole name of something in it, by tag or digest.
    pub(crate) fn place(&self, version: &str) -> String {
        format!("{}/{}", self.registry, self.inside(version))
    }

    /// The same without the registry.
    pub(crate) fn inside(&self, version: &str) -> String {
        format!("{}{}{version}", self.name, if version.starts_with("sha256:") { '@' } else { ':' })
    }
}
