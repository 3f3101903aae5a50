//! What all of a store's work shares.

use std::{collections::HashMap, path::PathBuf};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    Digest, ImageStoreConfig,
    blobs::Blobs,
    flight::{BlobFlight, Flight},
    records::Records,
    registry::Registry,
    session::Session,
};

/// Modules add what they do with it.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: ImageStoreConfig,
    pub(crate) disks: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) records: Records,
    pub(crate) registry: Registry,
    pub(crate) session: Session,
    pub(crate) builds: Semaphore,
    pub(crate) cancelled: CancellationToken,
    pub(crate) flights: Mutex<HashMap<Digest, Flight>>,
    pub(crate) blob_flights: Mutex<HashMap<Digest, BlobFlight>>,
}

impl Inner {
    pub(crate) fn lock_flights(&self) -> MutexGuard<'_, HashMap<Digest, Flight>> {
        self.flights.lock()
    }
}
