//! Claims: small objects by which servers that share a store keep sweeps away from snapshots that
//! are being taken.
//!
//! A sweep removes chunks that no snapshot has; a snapshot that is being taken may be about to use
//! them. Whoever takes one and whoever sweeps first writes a claim, then looks for those of others:
//! the sweep gives way at once and before each removal, the snapshot waits until it has. Of two
//! that begin at the same time, at least one sees the other. A claim is renewed for as long as its
//! work goes on; one that was not for a while is of a server that is gone, and the next sweep
//! removes it.

use std::{sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use parking_lot::Mutex;
use tokio::{task::JoinHandle, time::Instant};

use super::{Inner, random_name};
use crate::SnapshotError;

/// How often a claim is renewed.
const RENEWAL: Duration = Duration::from_secs(60);
/// The claim of another server that was not renewed for so long is taken for left behind.
const EXPIRY: Duration = Duration::from_secs(10 * 60);

/// What is done by whoever has a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Take,
    Sweep,
}

impl Work {
    fn prefix(self) -> &'static str {
        match self {
            Self::Take => "take-",
            Self::Sweep => "sweep-",
        }
    }
}

/// A claim on an organisation. Dropped, it is removed as soon as possible.
pub(super) struct Claim {
    store: Arc<Inner>,
    organization: String,
    /// The last part of its key.
    file: String,
    renewed: Arc<Mutex<Instant>>,
    renewing: JoinHandle<()>,
    is_released: bool,
}

/// What else is claimed.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) is_taking: bool,
    /// Files of the claims of sweeps.
    pub(super) sweeping: Vec<String>,
    /// Files of claims that were left behind.
    dead: Vec<String>,
}

impl Claim {
    pub(super) async fn new(
        store: &Arc<Inner>,
        organization: &str,
        work: Work,
    ) -> Result<Self, SnapshotError> {
        let file = format!("{}{}-{}", work.prefix(), store.process, random_name()?);
        let renewed = Arc::new(Mutex::new(Instant::now()));
        let key = key(organization, &file);
        let renewing = tokio::spawn({
            let (store, renewed, key) = (Arc::clone(store), Arc::clone(&renewed), key.clone());
            async move {
                loop {
                    tokio::time::sleep(RENEWAL).await;
                    let now = Instant::now();
                    match store.objects.put(&key, Vec::new()).await {
                        Ok(()) => *renewed.lock() = now,
                        Err(fault) => tracing::warn!(?fault, "cannot renew a claim on snapshots"),
                    }
                }
            }
        });
        store.active.lock().insert(file.clone());
        let organization = organization.to_owned();
        let store = Arc::clone(store);
        let claim = Self { store, organization, file, renewed, renewing, is_released: false };
        // From here on it is removed again, whatever happens.
        claim.store.objects.put(&key, Vec::new()).await?;
        Ok(claim)
    }

    /// What else is claimed in this organisation.
    ///
    /// # Errors
    /// `Store`; also when another server took this claim for left behind.
    pub(super) async fn others(&self) -> Result<Others, SnapshotError> {
        self.is_current()?;
        let prefix = format!("organizations/{}/claims", self.organization);
        let metas: Vec<_> = self.store.objects.list(&prefix).try_collect().await?;
        let is_own = |file| file == Some(self.file.as_str());
        let own = metas.iter().find(|meta| is_own(meta.location.filename()));
        // The store's clock, as of the last renewal.
        let now = own.ok_or_else(|| self.lost())?.last_modified;
        let mut others = Others::default();
        for meta in &metas {
            let Some(file) = meta.location.filename().filter(|file| !is_own(Some(file))) else {
                continue;
            };
            let age = now.signed_duration_since(meta.last_modified).to_std();
            let is_of_this_process = file.split('-').nth(1) == Some(&self.store.process);
            let is_live = if is_of_this_process {
                self.store.active.lock().contains(file)
            } else {
                age.is_ok_and(|age| age < EXPIRY) || age.is_err()
            };
            if !is_live {
                others.dead.push(file.to_owned());
            } else if file.starts_with(Work::Take.prefix()) {
                others.is_taking = true;
            } else {
                others.sweeping.push(file.to_owned());
            }
        }
        Ok(others)
    }

    /// Removes what servers left behind that are gone.
    pub(super) async fn remove_dead(&self, others: &Others) -> Result<(), SnapshotError> {
        for file in &others.dead {
            self.store.objects.delete(&key(&self.organization, file)).await?;
        }
        Ok(())
    }

    /// Waits until the sweeps of other servers have ended that had begun before this claim was
    /// there. Later ones see it.
    pub(super) async fn wait_for_sweeps(&self) -> Result<(), SnapshotError> {
        let mut pause = self.store.options.backoff;
        let begun = Instant::now();
        let earlier = self.others().await?.sweeping;
        let mut remaining = earlier.clone();
        while !remaining.is_empty() {
            if begun.elapsed() > self.store.options.retry_for {
                let reason = "another server is sweeping the snapshots of this organization";
                return Err(SnapshotError::Store(reason.to_owned()));
            }
            // Stores tell nobody when an object is removed.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.store.options.backoff * 32);
            remaining = self.others().await?.sweeping;
            remaining.retain(|file| earlier.contains(file));
        }
        Ok(())
    }

    /// That it was renewed lately: no server takes it for left behind.
    pub(super) fn is_current(&self) -> Result<(), SnapshotError> {
        let age = self.renewed.lock().elapsed();
        if age < EXPIRY / 2 { Ok(()) } else { Err(self.lost()) }
    }

    /// That it is in the store.
    pub(super) async fn is_there(&self) -> Result<(), SnapshotError> {
        let found = self.store.objects.head(&key(&self.organization, &self.file)).await?;
        found.map(drop).ok_or_else(|| self.lost())
    }

    fn lost(&self) -> SnapshotError {
        let reason = "it was away for too long: another server may have removed new chunks";
        SnapshotError::Store(reason.to_owned())
    }

    pub(super) async fn release(mut self) {
        self.is_released = true;
        self.renewing.abort();
        self.store.active.lock().remove(&self.file);
        if let Err(fault) = self.store.objects.delete(&key(&self.organization, &self.file)).await {
            tracing::warn!(?fault, "cannot remove a claim on snapshots; it expires");
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.renewing.abort();
        self.store.active.lock().remove(&self.file);
        if self.is_released {
            return;
        }
        // Otherwise a sweep removes it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (store, key) = (Arc::clone(&self.store), key(&self.organization, &self.file));
            runtime.spawn(async move { store.objects.delete(&key).await });
        }
    }
}

fn key(organization: &str, file: &str) -> String {
    format!("organizations/{organization}/claims/{file}")
}
