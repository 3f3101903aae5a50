//! Images from files: `docker-archive:FILE[:NAME]`, `oci-archive:FILE[:NAME]`,
//! `oci:DIRECTORY[:NAME]`, with `@INDEX` for NAME where images have none (as in
//! containers-transports(5)).
//!
//! Nothing is copied: layers are unpacked straight out of the archive, verified on the way.

mod contents;
mod docker;
mod files;
mod layout;
mod names;

use std::{path::PathBuf, sync::Arc};

use futures::FutureExt;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use self::{
    contents::{Contents, DOCKER, OCI},
    files::Files,
};
use crate::{
    ImageError, ImageReference, ImageSummary, ProgressSender, ResolvedImage, RootDisk,
    build::{Ingredients, PendingLayer, interrupted},
    inner::Inner,
    meter::Meter,
    reference::{ParsedReference, parse_reference},
};

/// Names of one image that are kept.
const MOST_NAMES: usize = 100;

/// The kinds of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    DockerArchive,
    OciArchive,
    OciDirectory,
}

/// What an import is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ArchiveSource {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    /// Which image of the archive.
    pub(crate) wanted: Option<String>,
}

impl ArchiveSource {
    /// Takes `KIND:PATH[:WANTED]` apart. The path may hold colons itself: the longest that exists
    /// is taken.
    pub(crate) fn parse(source: &str) -> Result<Self, ImageError> {
        let invalid = |reason: &str| ImageError::InvalidReference {
            reference: source.to_owned(),
            reason: reason.to_owned(),
        };
        let usage =
            "use docker-archive:FILE[:NAME], oci-archive:FILE[:NAME] or oci:DIRECTORY[:NAME]";
        let (kind, rest) = source.split_once(':').ok_or_else(|| invalid(usage))?;
        let kind = match kind {
            "docker-archive" => Kind::DockerArchive,
            "oci-archive" => Kind::OciArchive,
            "oci" => Kind::OciDirectory,
            _ => return Err(invalid(usage)),
        };
        if rest.is_empty() {
            return Err(invalid(usage));
        }
        let cuts = rest.match_indices(':').map(|(at, _)| at).chain([rest.len()]);
        let found = cuts.filter(|at| PathBuf::from(&rest[..*at]).exists()).max();
        let Some(at) = found else {
            return Err(ImageError::NotFound {
                what: source.to_owned(),
                hint: "no such file or directory".to_owned(),
            });
        };
        let wanted =
            rest[at..].strip_prefix(':').filter(|wanted| !wanted.is_empty()).map(str::to_owned);
        Ok(Self { kind, path: PathBuf::from(&rest[..at]), wanted })
    }
}

impl Inner {
    /// See [`crate::ImageStore::import`].
    pub(crate) async fn import(
        self: &Arc<Self>,
        source: &str,
        name: Option<&str>,
        progress: &ProgressSender,
    ) -> Result<ImageSummary, ImageError> {
        let archive = ArchiveSource::parse(source)?;
        let parse_name = |name: &str| parse_reference(name, &self.config.default_registry);
        let name = name.map(parse_name).transpose()?;
        if let Some(name) = name.as_ref().filter(|name| name.digest.is_some()) {
            return Err(ImageError::InvalidReference {
                reference: name.canonical(),
                reason: "the digest of an imported image is computed; name it without one"
                    .to_owned(),
            });
        }
        let (inner, reading) = (Arc::clone(self), archive.clone());
        // It ends with who asked for it.
        let gone = CancellationToken::new();
        let _gone = gone.clone().drop_guard();
        let contents =
            tokio::task::spawn_blocking(move || inner.read_archive(&reading, &gone)).await;
        let contents = contents.unwrap_or_else(|_| Err(interrupted()))?;
        // An archive may hold any text as a name; one that is no reference is no name.
        let own_names =
            contents.names.iter().filter_map(|name| parse_name(name).ok()).take(MOST_NAMES);
        let names: Vec<ParsedReference> =
            name.map_or_else(|| own_names.collect(), |name| vec![name]);

        let digest = contents.digest.clone();
        if self.ready(&digest).is_none() || self.records.get(&digest).is_none() {
            let image = describe(&archive, &contents, names.first(), source);
            self.build_once(&digest, progress, |inner, progress, wanted| {
                inner.build_archive(image, contents, progress, wanted).boxed()
            })
            .await?;
        }
        let inner = Arc::clone(self);
        let noting = tokio::task::spawn_blocking(move || {
            inner.records.mark_imported(&digest, inner.session.path())?;
            for name in names {
                inner.records.set_name(&digest, &name.canonical(), true, inner.session.path())?;
            }
            let record = inner.records.get(&digest).ok_or_else(interrupted)?;
            Ok(inner.records.summary(&digest, &record))
        });
        noting.await.unwrap_or_else(|_| Err(interrupted()))
    }

    fn read_archive(
        &self,
        archive: &ArchiveSource,
        gone: &CancellationToken,
    ) -> Result<Contents, ImageError> {
        let check_wanted = |bytes| {
            if gone.is_cancelled() || self.cancelled.is_cancelled() {
                return Err(interrupted());
            }
            if bytes > 0 { self.check_space(bytes, "the archive's content") } else { Ok(()) }
        };
        let files = match archive.kind {
            Kind::OciDirectory => Files::directory(&archive.path),
            Kind::OciArchive | Kind::DockerArchive => {
                Files::tar(&archive.path, self.session.path(), &self.config.limits, &check_wanted)?
            }
        };
        let (wanted, store) = (archive.wanted.as_deref(), &self.config);
        // `docker save` writes both by now; each is taken for what it is, whatever it was called.
        match (archive.kind, files.has(DOCKER), files.has(OCI)) {
            (Kind::DockerArchive, true, _) | (_, true, false) => {
                docker::read(&files, wanted, store)
            }
            (_, _, true) => layout::read(&files, wanted, store),
            (_, false, false) => {
                let reason = format!(
                    "it has neither {DOCKER}, as `docker save` writes it, nor {OCI} of an OCI \
                     layout"
                );
                Err(ImageError::corrupt(files::WHAT, reason))
            }
        }
    }

    async fn build_archive(
        self: Arc<Self>,
        image: ResolvedImage,
        contents: Contents,
        progress: ProgressSender,
        wanted: CancellationToken,
    ) -> Result<RootDisk, ImageError> {
        let _permit = self.turn_to_build(&wanted).await?;
        let digest = contents.digest;
        let total = contents.layers.iter().map(|layer| layer.length).sum();
        let meter = Meter::new(progress, 0, total);
        let mut layers = Vec::new();
        for (source, diff_id) in contents.layers.into_iter().zip(contents.config.diff_ids) {
            let (sender, ready) = oneshot::channel();
            // The receiver is right here.
            let _ = sender.send(Ok(source));
            layers.push(PendingLayer { ready, diff_id });
        }
        let blobs = Vec::new();
        self.build(Ingredients { image, digest, layers, blobs, imported: true, meter, wanted })
            .await
    }
}

/// Fills in what the API shows of an image that no registry has.
fn describe(
    archive: &ArchiveSource,
    contents: &Contents,
    name: Option<&ParsedReference>,
    source: &str,
) -> ResolvedImage {
    let registry = match archive.kind {
        Kind::DockerArchive => "docker-archive",
        Kind::OciArchive => "oci-archive",
        Kind::OciDirectory => "local",
    };
    let stem = || {
        archive.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    };
    ResolvedImage {
        requested: source.to_owned(),
        reference: ImageReference {
            registry: registry.to_owned(),
            repository: name.map_or_else(stem, |name| name.repository.clone()),
            tag: name.and_then(|name| name.tag.clone()),
            digest: Some(contents.digest.clone()),
            labels: contents.config.labels.clone(),
        },
        config: contents.config.run.clone(),
        download_size: contents.layers.iter().map(|layer| layer.length).sum(),
        imported: true,
    }
}
