//! What a session asks of the volumes of a guest.

use std::time::Duration;

use super::{Answer, Session, SessionError};
use crate::{HostMessage, VOLUMES_SINCE, message::VolumeUsage};

/// Beyond the time in which init gives something up, so that the guest's own answer, which says
/// why, is the one that is heard.
const MARGIN: Duration = Duration::from_secs(5);

impl Session {
    /// Has the file system of a volume grow to the size of its disk, `size` bytes, of which the VM
    /// was told.
    ///
    /// # Errors
    /// When the guest can't, or does not answer within `deadline`.
    pub async fn grow_volume(
        &self,
        volume: u8,
        size: u64,
        deadline: Duration,
    ) -> Result<(), SessionError> {
        self.knows_volumes()?;
        self.ask(deadline, |id| HostMessage::GrowVolume { id, volume, size }).await.map(drop)
    }

    /// How full the volumes with a file system are.
    ///
    /// # Errors
    /// When the guest can't find out, or does not answer within `deadline`.
    pub async fn volume_usage(&self, deadline: Duration) -> Result<Vec<VolumeUsage>, SessionError> {
        self.knows_volumes()?;
        match self.ask(deadline, |id| HostMessage::VolumeUsage { id }).await? {
            Answer::Volumes(volumes) => Ok(volumes),
            _ => Err(SessionError::Broken),
        }
    }

    /// Writes out the file systems of all volumes and has them stand still, until
    /// [`Self::thaw_volumes`] and for `at_most` from now on.
    ///
    /// # Errors
    /// When the guest can't in that time, or does not answer. They go on then, at the end of that
    /// time at the latest.
    pub async fn freeze_volumes(&self, at_most: Duration) -> Result<(), SessionError> {
        self.knows_volumes()?;
        let deadline_ms = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
        let deadline = at_most.saturating_add(MARGIN);
        self.ask(deadline, |id| HostMessage::FreezeVolumes { id, deadline_ms }).await.map(drop)
    }

    /// Lets them go on, and tells for how long they stood still by the guest's clock; `None` where
    /// an init of an earlier release does not tell.
    ///
    /// # Errors
    /// When they had gone on before, so that they may have changed meanwhile, or the guest does not
    /// answer within `deadline`.
    pub async fn thaw_volumes(&self, deadline: Duration) -> Result<Option<Duration>, SessionError> {
        self.knows_volumes()?;
        match self.ask(deadline, |id| HostMessage::ThawVolumes { id }).await? {
            Answer::Outcome { still_us, .. } => Ok(still_us.map(Duration::from_micros)),
            _ => Err(SessionError::Broken),
        }
    }

    /// An init of an earlier release has no volumes, and would not answer.
    fn knows_volumes(&self) -> Result<(), SessionError> {
        let protocol = self.inner.protocol.load(std::sync::atomic::Ordering::Relaxed);
        if protocol == 0 || protocol >= VOLUMES_SINCE {
            return Ok(());
        }
        let text =
            "the machine's init is of an earlier release, which knows no volumes: restart it";
        Err(SessionError::Refused(text.to_owned()))
    }
}
