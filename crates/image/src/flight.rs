//! Work that is going on, and that others may join.

use std::sync::Weak;

use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use crate::{ImageError, Progress, RootDisk};

/// A build that is going on.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub(crate) result: Shared<BoxFuture<'static, Result<RootDisk, ImageError>>>,
    pub(crate) progress: watch::Receiver<Progress>,
    /// Held by all who wait for it; it ends with the last.
    pub(crate) wanted: Weak<DropGuard>,
}

/// A blob that is being fetched; gone when nobody waits for it any more.
pub(crate) type BlobFlight = WeakShared<BoxFuture<'static, Result<(), ImageError>>>;
