//! Removing what no snapshot has: mark and sweep per organisation.

use std::{collections::HashSet, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::{
    Inner, READ_AT_ONCE, Swept,
    claims::{Claim, Work},
    keys::{Id, Keys},
    manifest::Segment,
};
use crate::{SnapshotError, SnapshotName};

/// Ids that are held at once: 64 MiB. Where an organisation has more chunks, they are gone through
/// in several passes, each of which is for a part of them.
const MARKED_AT_ONCE: u64 = 2 << 20;
/// Objects that are listed before those of them that are garbage are removed.
const REMOVED_AT_ONCE: usize = 1000;

/// How the sweep of an organisation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Somebody takes a snapshot.
    GaveWay,
}

impl Inner {
    pub(super) async fn sweep(self: &Arc<Self>) -> Result<Swept, SnapshotError> {
        let mut swept = Swept::default();
        let mut failed = None;
        for organization in self.objects.list_parts("organizations").await? {
            let Ok(_exclusive) = self.gate(&organization).try_write_owned() else {
                swept.busy += 1;
                continue;
            };
            match self.sweep_claimed(&organization, &mut swept).await {
                Ok(Outcome::Done) => {}
                Ok(Outcome::GaveWay) => swept.busy += 1,
                Err(error) => {
                    tracing::warn!(organization, %error, "cannot sweep snapshots");
                    failed.get_or_insert(error);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(swept),
        }
    }

    async fn sweep_claimed(
        self: &Arc<Self>,
        organization: &str,
        swept: &mut Swept,
    ) -> Result<Outcome, SnapshotError> {
        let claim = Claim::new(self, organization, Work::Sweep).await?;
        let others = claim.others().await?;
        claim.remove_dead(&others).await?;
        let outcome = if others.is_taking || !others.sweeping.is_empty() {
            Ok(Outcome::GaveWay)
        } else {
            self.sweep_organization(organization, &claim, swept).await
        };
        claim.release().await;
        outcome
    }

    async fn sweep_organization(
        &self,
        organization: &str,
        claim: &Claim,
        swept: &mut Swept,
    ) -> Result<Outcome, SnapshotError> {
        let keys = self.keys(organization)?;
        let grace = i64::try_from(self.options.grace.as_millis()).unwrap_or(i64::MAX);
        let before = Timestamp::now().as_millisecond().saturating_sub(grace);
        let names = self.names(organization).await?;
        let (segments, ids) = self.segments(&keys, &names).await?;
        let chunks: u64 = segments.iter().map(|(_, segment)| segment.count as u64).sum();
        let passes = u128::from(chunks.div_ceil(MARKED_AT_ONCE).max(1));
        for pass in 0..passes {
            let mut marked = HashSet::new();
            // By number: a closure over references would not be `Send` for all of them.
            let (keys, segments) = (&keys, &segments);
            let mut read = futures::stream::iter(0..segments.len())
                .map(|index| async move {
                    let (name, segment) = &segments[index];
                    self.entries(keys, name, segment).await
                })
                .buffer_unordered(READ_AT_ONCE);
            while let Some(entries) = read.try_next().await? {
                let ids = entries.iter().map(|entry| entry.id.short());
                marked.extend(ids.filter(|id| id % passes == pass));
            }
            let is_garbage = |id: &Id| {
                let id = id.short();
                id % passes == pass && !marked.contains(&id)
            };
            let prefix = format!("organizations/{organization}/chunks");
            if self.remove(&prefix, before, is_garbage, claim, swept).await? == Outcome::GaveWay {
                return Ok(Outcome::GaveWay);
            }
        }
        let prefix = format!("organizations/{organization}/segments");
        let is_garbage = |id: &Id| !ids.contains(id);
        if self.remove(&prefix, before, is_garbage, claim, swept).await? == Outcome::GaveWay {
            return Ok(Outcome::GaveWay);
        }
        let prefix = format!("organizations/{organization}");
        self.objects.remove_unfinished(&prefix, self.options.grace).await?;
        Ok(Outcome::Done)
    }

    /// The segments that these snapshots have, each once, and their ids.
    async fn segments<'a>(
        &self,
        keys: &Keys,
        names: &'a [SnapshotName],
    ) -> Result<(Vec<(&'a SnapshotName, Segment)>, HashSet<Id>), SnapshotError> {
        let (mut segments, mut ids) = (Vec::new(), HashSet::new());
        let mut read = futures::stream::iter(0..names.len())
            .map(|index| async move { (&names[index], self.manifest(keys, &names[index]).await) })
            .buffer_unordered(READ_AT_ONCE);
        while let Some((name, manifest)) = read.next().await {
            let manifest = match manifest {
                // Removed since it was listed.
                Err(SnapshotError::NotFound(_)) => continue,
                manifest => manifest?,
            };
            for segment in (0..manifest.segments.len()).map(|index| manifest.segment(index)) {
                if segment.id.is_some_and(|id| ids.insert(id)) {
                    segments.push((name, segment));
                }
            }
        }
        Ok((segments, ids))
    }

    /// Removes what is garbage and was written before an instant, milliseconds since 1970.
    async fn remove(
        &self,
        prefix: &str,
        before: i64,
        is_garbage: impl Fn(&Id) -> bool,
        claim: &Claim,
        swept: &mut Swept,
    ) -> Result<Outcome, SnapshotError> {
        let mut listed = self.objects.list(prefix).try_chunks(REMOVED_AT_ONCE);
        while let Some(metas) = listed.next().await {
            let metas = metas.map_err(|error| error.1)?;
            let garbage = metas.into_iter().filter(|meta| {
                let id = meta.location.filename().and_then(Id::parse);
                id.is_some_and(|id| is_garbage(&id))
                    && meta.last_modified.timestamp_millis() <= before
            });
            let garbage: Vec<_> = garbage.collect();
            if claim.others().await?.is_taking {
                return Ok(Outcome::GaveWay);
            }
            let bytes: u64 = garbage.iter().map(|meta| meta.size).sum();
            let count = garbage.len() as u64;
            let locations = garbage.into_iter().map(|meta| meta.location).collect();
            self.objects.delete_all(locations).await?;
            swept.chunks += count;
            swept.bytes += bytes;
        }
        Ok(Outcome::Done)
    }
}
