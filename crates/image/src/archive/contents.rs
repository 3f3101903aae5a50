//! What is in an archive.

use crate::{Digest, layer::inflate::Source, manifest::Config};

/// The file in which `docker save` says what there is.
pub(crate) const DOCKER: &str = "manifest.json";
/// The one of an OCI layout.
pub(crate) const OCI: &str = "index.json";

/// One image in an archive, its config checked.
pub(crate) struct Contents {
    /// Digest of its manifest.
    pub(crate) digest: Digest,
    pub(crate) config: Config,
    pub(crate) layers: Vec<Source>,
    /// What the archive calls it.
    pub(crate) names: Vec<String>,
}
