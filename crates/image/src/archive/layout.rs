//! OCI image layouts: `index.json` and `blobs/sha256/…`, as a directory or in a tar file.

use oci_spec::image::{Descriptor, ImageIndex};

use super::{Contents, files::Files};
use crate::{
    ImageError, Limits,
    manifest::{self, Document, choose, is_index, parse_config, verify},
    reference::is_digest,
};

/// Annotation that holds the tag (OCI image specification, "annotations.md").
const NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd and docker put the whole reference into.
const FULL_NAME: &str = "io.containerd.image.name";
/// Deepest nesting of an index in an index.
const DEEPEST_INDEX: usize = 3;

pub(super) fn read(files: Files, wanted: Option<&str>, limits: &Limits) -> Result<Contents, ImageError> {
    let bytes = files.read("index.json", limits.manifest_bytes)?;
    let index: ImageIndex = serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::corrupt("index.json of the OCI layout", error.to_string()))?;
    let entry = pick(&index, wanted)?;
    let name =
        annotation(entry, FULL_NAME).or_else(|| annotation(entry, NAME).filter(|name| name.contains([':', '/'])));

    let mut digest = entry.digest().to_string();
    for _ in 0..DEEPEST_INDEX {
        let bytes = verified(&files, &digest, limits.manifest_bytes)?;
        let manifest = match manifest::parse(&digest, &bytes, limits)? {
            Document::Index(index) => {
                digest = choose(&digest, &index)?.digest;
                continue;
            }
            Document::Manifest(manifest) => manifest,
        };
        let config = verified(&files, &manifest.config.digest, limits.config_bytes)?;
        let config = parse_config(&digest, &config, manifest.layers.len())?;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            let mut source = files.find(&blob(&layer.digest))?;
            if source.length != layer.size {
                let reason = format!("it has {} bytes, the manifest says {}", source.length, layer.size);
                return Err(ImageError::corrupt(source.what, reason));
            }
            source.digest = Some(layer.digest.clone());
            layers.push(source);
        }
        return Ok(Contents { digest, config, layers, name });
    }
    Err(ImageError::unsupported("this OCI layout", "its indexes are nested too deep"))
}

fn pick<'a>(index: &'a ImageIndex, wanted: Option<&str>) -> Result<&'a Descriptor, ImageError> {
    let entries = index.manifests();
    if let Some(wanted) = wanted {
        let called = |entry: &&Descriptor| {
            annotation(entry, NAME).as_deref() == Some(wanted)
                || annotation(entry, FULL_NAME).as_deref() == Some(wanted)
        };
        return entries.iter().find(called).ok_or_else(|| not_one(wanted, entries));
    }
    if let [only] = entries.as_slice() {
        return Ok(only);
    }
    // Several builds of one image, one per platform.
    let chosen = choose("of this OCI layout", index).ok().map(|chosen| chosen.digest);
    let same_name = entries.windows(2).all(|pair| annotation(&pair[0], NAME) == annotation(&pair[1], NAME));
    let found =
        entries.iter().find(|entry| !is_index(entry.media_type()) && chosen == Some(entry.digest().to_string()));
    found.filter(|_| same_name).ok_or_else(|| not_one("", entries))
}

fn verified(files: &Files, digest: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
    if !is_digest(digest) {
        return Err(ImageError::unsupported(format!("digest {digest}"), "only sha256 is known"));
    }
    let bytes = files.read(&blob(digest), limit)?;
    verify(&format!("blob {digest} of the OCI layout"), &bytes, digest)?;
    Ok(bytes)
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

fn annotation(entry: &Descriptor, key: &str) -> Option<String> {
    entry.annotations().as_ref()?.get(key).cloned()
}

fn not_one(wanted: &str, entries: &[Descriptor]) -> ImageError {
    let known: Vec<String> = entries.iter().filter_map(|entry| annotation(entry, NAME)).collect();
    ImageError::NotFound {
        what: format!("OCI layout image {wanted}"),
        hint: format!("name one of those in it as oci:DIRECTORY:TAG or oci-archive:FILE:TAG: {}", known.join(", ")),
    }
}
