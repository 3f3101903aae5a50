//! OCI image layouts: `index.json` and `blobs/sha256/…`, as a directory or in a tar file.

use std::collections::BTreeSet;

use super::{
    contents::{Contents, OCI},
    files::Files,
    names::{self, Named},
};
use crate::{
    Digest, ImageError, ImageStoreConfig, Limits,
    layer::inflate::Source,
    manifest::{self, Config, Descriptor, Document, Manifest, parse_config, verify},
    search::{Search, Step},
};

/// Annotation that holds the tag (OCI image specification, "annotations.md").
const NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd and docker put the whole reference into.
const FULL_NAME: &str = "io.containerd.image.name";

impl Named for Descriptor {
    const ARE_BUILDS: bool = true;

    fn content(&self) -> &str {
        &self.digest
    }

    fn names(&self) -> Vec<&str> {
        // The whole reference first, since a tag alone is no name for machines.
        [FULL_NAME, NAME].iter().filter_map(|key| self.annotation(key)).collect()
    }
}

pub(super) fn read(
    files: &Files,
    wanted: Option<&str>,
    store: &ImageStoreConfig,
) -> Result<Contents, ImageError> {
    let what = "index.json of the OCI layout";
    let bytes = files.read(OCI, store.limits.manifest_bytes)?;
    let Document::Index(mut entries) = manifest::parse(what, &bytes, &store.limits)? else {
        return Err(ImageError::corrupt(what, "it is a manifest, not an index"));
    };
    entries.retain(|entry| !entry.is_attestation());
    let picked: Vec<Descriptor> = names::pick(&entries, wanted)?.into_iter().cloned().collect();
    let names: BTreeSet<&str> =
        picked.iter().flat_map(Named::names).filter(|name| name.contains([':', '/'])).collect();
    let names = names.into_iter().map(str::to_owned).collect();

    let library = Library { files, limits: &store.limits };
    let (digest, manifest, config) = library.choose(&picked, store.amd64_level)?;
    let layers =
        manifest.layers.iter().map(|layer| library.layer(layer)).collect::<Result<_, _>>()?;
    Ok(Contents { digest, config, layers, names })
}

/// The blobs of a layout.
struct Library<'a> {
    files: &'a Files,
    limits: &'a Limits,
}

impl Library<'_> {
    fn choose(
        &self,
        entries: &[Descriptor],
        level: u8,
    ) -> Result<(Digest, Manifest, Config), ImageError> {
        let mut search = Search::new("of this OCI layout", level);
        search.add(entries)?;
        loop {
            match search.next()? {
                Step::Take(digest) => match self.document(&digest)? {
                    Document::Index(entries) => search.add(&entries)?,
                    Document::Manifest(manifest) => {
                        let config = self.config(&manifest)?.runs_with(digest.as_str(), level)?;
                        return Ok((digest, manifest, config));
                    }
                },
                Step::Open(digest) => match self.document(&digest) {
                    Ok(Document::Index(entries)) => search.add(&entries)?,
                    Ok(Document::Manifest(manifest)) => {
                        search.decide(self.config(&manifest).map(|config| config.platform))?;
                    }
                    Err(error) => search.decide(Err(error))?,
                },
            }
        }
    }

    fn document(&self, digest: &Digest) -> Result<Document, ImageError> {
        let bytes = self.verified(digest, self.limits.manifest_bytes)?;
        manifest::parse(digest.as_str(), &bytes, self.limits)
    }

    fn config(&self, manifest: &Manifest) -> Result<Config, ImageError> {
        let digest = &manifest.config.digest;
        let bytes = self.verified(digest, self.limits.config_bytes)?;
        parse_config(digest.as_str(), &bytes, manifest.layers.len())
    }

    fn layer(&self, layer: &manifest::BlobDescriptor) -> Result<Source, ImageError> {
        let mut source = self.files.find(&blob(&layer.digest))?;
        if source.length != layer.size {
            let reason =
                format!("it has {} bytes, the manifest says {}", source.length, layer.size);
            return Err(ImageError::corrupt(source.what, reason));
        }
        source.digest = Some(layer.digest.clone());
        Ok(source)
    }

    fn verified(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let bytes = self.files.read(&blob(digest), limit)?;
        verify(&format!("blob {digest} of the OCI layout"), &bytes, digest)?;
        Ok(bytes)
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
