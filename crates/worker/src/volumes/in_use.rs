//! Waiting for whoever still has the files of a volume that no machine has any more.

use std::time::Duration;

use caddis_volume::VolumeError;

use crate::clock::Clock;

/// How often a volume is tried that somebody has open: a VM process that is just ending, one that a
/// server was just starting when it was killed, or any that was just forked and has a copy of every
/// descriptor until it runs its program. Nothing tells of the end of a lock.
const TRIES: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(50);

/// Does something with the files of a volume, again and again for 5 s while they are in use.
///
/// # Errors
/// Those of the work; that they are in use, where they still are in the end.
pub async fn once_free<T, F>(clock: &Clock, mut work: impl FnMut() -> F) -> Result<T, VolumeError>
where
    F: Future<Output = Result<T, VolumeError>>,
{
    for _ in 1..TRIES {
        match work().await {
            Err(VolumeError::InUse { .. }) => clock.sleep(INTERVAL).await,
            outcome => return outcome,
        }
    }
    work().await
}
