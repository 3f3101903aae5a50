//! Manifests, indexes and configs: what they must look like, and which platform is chosen.

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{ImageConfig, ImageError, Limits, reference::is_digest};

/// A blob as its parent describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobDescriptor {
    /// `sha256:…`.
    pub(crate) digest: String,
    /// Bytes.
    pub(crate) size: u64,
}

/// What a registry answers when asked for a manifest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Manifest),
}

/// An image's manifest, checked against the limits.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: BlobDescriptor,
    /// Lowest first.
    pub(crate) layers: Vec<BlobDescriptor>,
}

impl Manifest {
    /// Bytes of all layers as transferred.
    pub(crate) fn download_size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// An image's config, as far as it matters here.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) run: ImageConfig,
    pub(crate) labels: Option<std::collections::BTreeMap<String, String>>,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<String>,
}

/// The digest of some bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// Fails unless the bytes have this digest.
pub(crate) fn verify(what: &str, bytes: &[u8], digest: &str) -> Result<(), ImageError> {
    let actual = digest_of(bytes);
    if actual == digest { Ok(()) } else { Err(ImageError::corrupt(what, format!("its content has digest {actual}"))) }
}

/// Reads a manifest or an index, told apart by what they hold; one that could be read as either is refused
/// (it would mean different images to different tools, CVE-2021-41190).
pub(crate) fn parse(what: &str, bytes: &[u8], limits: &Limits) -> Result<Document, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u32,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<serde::de::IgnoredAny>,
    }
    let malformed =
        |error: &dyn std::fmt::Display| ImageError::corrupt(format!("manifest of {what}"), error.to_string());
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    if shape.schema_version != 2 {
        return Err(ImageError::unsupported(
            format!("manifest of {what}, schema version {}", shape.schema_version),
            "push the image again with a current tool (schema version 2)",
        ));
    }
    match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
        (true, false) => serde_json::from_slice(bytes)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(|error| malformed(&error)),
        (false, true) => {
            let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
            check(what, &manifest, limits).map(Document::Manifest)
        }
        _ => Err(malformed(&"it is neither a manifest nor an index, or both at once")),
    }
}

fn check(what: &str, manifest: &ImageManifest, limits: &Limits) -> Result<Manifest, ImageError> {
    let config_type = manifest.config().media_type().to_string();
    if !matches!(
        config_type.as_str(),
        "application/vnd.oci.image.config.v1+json" | "application/vnd.docker.container.image.v1+json"
    ) {
        let what = format!("{what}, with a config of type {config_type},");
        return Err(ImageError::unsupported(what, "only container images can be run"));
    }
    let config = descriptor(what, manifest.config())?;
    if config.size > limits.config_bytes {
        return Err(ImageError::too_large(
            format!("config of {what}"),
            format!("limits.config_bytes is {}", limits.config_bytes),
        ));
    }
    if manifest.layers().len() > limits.layers {
        let what = format!("{what}, with {} layers,", manifest.layers().len());
        return Err(ImageError::too_large(what, format!("limits.layers is {}; squash the image", limits.layers)));
    }
    let mut layers = Vec::with_capacity(manifest.layers().len());
    for layer in manifest.layers() {
        let kind = layer.media_type().to_string();
        let is_layer = kind.starts_with("application/vnd.oci.image.layer.v1.tar")
            || kind.starts_with("application/vnd.docker.image.rootfs.diff.tar");
        if !is_layer || kind.ends_with("encrypted") {
            let what = format!("a layer of {what} of type {kind}");
            return Err(ImageError::unsupported(what, "layers are tar, plain or with gzip or zstd"));
        }
        let layer = descriptor(what, layer)?;
        if layer.size > limits.layer_compressed_bytes {
            return Err(ImageError::too_large(
                format!("layer {} of {what}, {} bytes,", layer.digest, layer.size),
                format!("limits.layer_compressed_bytes is {}", limits.layer_compressed_bytes),
            ));
        }
        layers.push(layer);
    }
    Ok(Manifest { config, layers })
}

fn descriptor(what: &str, descriptor: &Descriptor) -> Result<BlobDescriptor, ImageError> {
    let digest = descriptor.digest().to_string();
    if !is_digest(&digest) {
        return Err(ImageError::unsupported(
            format!("digest {digest} in the manifest of {what}"),
            "only sha256 is known",
        ));
    }
    Ok(BlobDescriptor { digest, size: descriptor.size() })
}

/// The manifest for linux/amd64.
pub(crate) fn choose(what: &str, index: &ImageIndex) -> Result<BlobDescriptor, ImageError> {
    let candidates: Vec<&Descriptor> = index.manifests().iter().filter(|entry| !is_index(entry.media_type())).collect();
    let fits = candidates.iter().find(|entry| {
        entry
            .platform()
            .as_ref()
            .is_some_and(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::Amd64)
    });
    // Archives with a single image often leave the platform out; the config says it then.
    let only = match candidates.as_slice() {
        [only] if only.platform().is_none() => Some(only),
        _ => None,
    };
    let Some(entry) = fits.or(only) else {
        let platforms: Vec<String> = candidates
            .iter()
            .take(20)
            .filter_map(|entry| entry.platform().as_ref())
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            .collect();
        let reason = format!("it must have a build for linux/amd64, and has only: {}", platforms.join(", "));
        return Err(ImageError::unsupported(format!("image {what}"), reason));
    };
    descriptor(what, entry)
}

/// Whether a media type is that of an index, which has no layers itself.
pub(crate) fn is_index(kind: &MediaType) -> bool {
    matches!(
        kind.to_string().as_str(),
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// Reads an image's config; `layers` is how many the manifest has.
pub(crate) fn parse_config(what: &str, bytes: &[u8], layers: usize) -> Result<Config, ImageError> {
    let what = format!("config of {what}");
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| ImageError::corrupt(&what, error.to_string()))?;
    if *config.os() != Os::Linux || *config.architecture() != Arch::Amd64 {
        let reason = format!("it is for {}/{}; only linux/amd64 runs here", config.os(), config.architecture());
        return Err(ImageError::unsupported(what, reason));
    }
    let diff_ids = config.rootfs().diff_ids().clone();
    if diff_ids.len() != layers {
        let reason = format!("it lists {} layers, the manifest {layers}", diff_ids.len());
        return Err(ImageError::corrupt(what, reason));
    }
    if let Some(bad) = diff_ids.iter().find(|digest| !is_digest(digest)) {
        return Err(ImageError::unsupported(format!("digest {bad} in the {what}"), "only sha256 is known"));
    }
    let run = config.config().as_ref().map_or_else(ImageConfig::default, |run| ImageConfig {
        entrypoint: run.entrypoint().clone().unwrap_or_default(),
        cmd: run.cmd().clone().unwrap_or_default(),
        env: run.env().clone().unwrap_or_default(),
        user: run.user().clone().unwrap_or_default(),
        working_dir: run.working_dir().clone().unwrap_or_default(),
        stop_signal: run.stop_signal().clone().filter(|signal| !signal.is_empty()),
        exposed_ports: {
            let mut ports = run.exposed_ports().clone().unwrap_or_default();
            ports.sort();
            ports
        },
    });
    let labels = config.config().as_ref().and_then(|run| run.labels().clone());
    Ok(Config { run, labels: labels.map(|labels| labels.into_iter().collect()), diff_ids })
}
