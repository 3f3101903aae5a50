//! Making room, and removing what the user does not want any more.

use std::{collections::HashSet, fs};

use crate::{
    Digest, GarbageReport, ImageError,
    inner::Inner,
    reference::{parse_reference, pinned_digest},
    session,
};

impl Inner {
    /// Blocking; see [`crate::ImageStore::remove`].
    pub(crate) fn remove(
        &self,
        name_or_digest: &str,
        in_use: &HashSet<Digest>,
    ) -> Result<(), ImageError> {
        let not_found = || ImageError::NotFound {
            what: name_or_digest.to_owned(),
            hint: "no image with this name or digest is on the host".to_owned(),
        };
        let parsed = parse_reference(name_or_digest, &self.config.default_registry);
        let named = parsed.as_ref().ok().and_then(|parsed| self.records.named(&parsed.canonical()));
        let pinned =
            || pinned_digest(name_or_digest).filter(|digest| self.records.get(digest).is_some());
        let digest = match (parsed, named) {
            (Ok(parsed), Some(digest)) => {
                let name = parsed.canonical();
                if self.records.drop_name(&digest, &name, self.session.path())? {
                    return Ok(());
                }
                digest
            }
            // A digest says which image is meant, whatever name is before it.
            (parsed, _) => match pinned() {
                Some(digest) => digest,
                None => return Err(parsed.err().unwrap_or_else(not_found)),
            },
        };
        if in_use.contains(&digest) {
            return Err(ImageError::InUse { digest });
        }
        let blobs = self.records.get(&digest).map(|record| record.blobs).unwrap_or_default();
        self.remove_image(&digest);
        // What other images share stays.
        let shared: HashSet<Digest> =
            self.records.all().into_iter().flat_map(|(_, record)| record.blobs).collect();
        let unwanted: HashSet<_> = blobs
            .into_iter()
            .filter(|digest| !shared.contains(digest))
            .map(|digest| self.blobs.path(&digest))
            .collect();
        for blob in self.blobs.idle()? {
            if unwanted.contains(&blob.path) {
                session::remove(&blob.path);
            }
        }
        Ok(())
    }

    /// Blocking; see [`crate::ImageStore::collect_garbage`].
    pub(crate) fn collect_garbage(
        &self,
        in_use: &HashSet<Digest>,
        wanted_free: u64,
    ) -> Result<GarbageReport, ImageError> {
        let mut report =
            GarbageReport { free_bytes: self.free_bytes()?, ..GarbageReport::default() };
        if report.free_bytes >= wanted_free {
            return Ok(report);
        }
        for blob in self.blobs.idle()? {
            if report.free_bytes >= wanted_free {
                return Ok(report);
            }
            session::remove(&blob.path);
            report.freed_bytes += blob.size;
            report.free_bytes = self.free_bytes()?;
        }
        let mut idle = self.records.all();
        idle.retain(|(digest, record)| !record.imported && !in_use.contains(digest));
        idle.sort_by_key(|(digest, record)| self.records.last_used(digest, record));
        for (digest, record) in idle {
            if report.free_bytes >= wanted_free {
                break;
            }
            if self.lock_flights().contains_key(&digest) {
                continue;
            }
            self.remove_image(&digest);
            report.removed.push(digest);
            report.freed_bytes += record.disk_bytes;
            report.free_bytes = self.free_bytes()?;
        }
        tracing::info!(
            images = report.removed.len(),
            freed_bytes = report.freed_bytes,
            free_bytes = report.free_bytes,
            "removed unused images to make room"
        );
        Ok(report)
    }

    /// The disk first: a record without one is cleared away at the next start, and never used.
    fn remove_image(&self, digest: &Digest) {
        session::remove(&self.disk_path(digest));
        self.records.remove(digest);
    }

    /// Removes root disks that have no record: a crash came between the two.
    pub(crate) fn remove_orphans(&self) -> Result<(), ImageError> {
        let failed = |error| ImageError::io("list", &self.disks, error);
        let known: HashSet<_> =
            self.records.all().iter().map(|(digest, _)| self.disk_path(digest)).collect();
        for entry in fs::read_dir(&self.disks).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if !known.contains(&path) {
                session::remove(&path);
            }
        }
        Ok(())
    }
}
