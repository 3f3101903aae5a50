//! Pretended volumes.

use std::collections::BTreeMap;

use super::FakeGuest;
use crate::{GuestMessage, HostMessage, message::VolumeUsage, spec::VolumeFilesystem};

/// Size of their blocks, bytes.
const BLOCK: u64 = 4096;
/// How they refuse.
const REFUSED: &str = "told to fail";
/// How long they say that they stood still, microseconds.
pub const STILL_US: u64 = 6_200;

/// What has become of the volumes since the machine was configured.
#[derive(Default)]
pub(super) struct Volumes {
    /// Sizes that were told since, by number.
    grown: BTreeMap<u8, u64>,
    /// They stand still, for so many milliseconds.
    frozen: Option<u64>,
}

impl FakeGuest {
    /// What volumes were grown to, by number.
    pub fn grown_volumes(&self) -> BTreeMap<u8, u64> {
        self.state().volumes.grown.clone()
    }

    /// Whether its volumes stand still, and for how many milliseconds at most, which this guest
    /// does not count.
    pub fn frozen_volumes(&self) -> Option<u64> {
        self.state().volumes.frozen
    }

    /// Has volumes that stand still go on, as when their time is over.
    pub fn end_freeze(&self) {
        self.state().volumes.frozen = None;
    }

    /// The answer to a request that is about volumes.
    pub(super) fn about_volumes(&self, message: &HostMessage) -> Option<GuestMessage> {
        let still_us = matches!(message, HostMessage::ThawVolumes { .. }).then_some(STILL_US);
        let (id, outcome) = match message {
            HostMessage::VolumeUsage { id } => {
                let volumes = self.volume_usage();
                return Some(GuestMessage::VolumeUsage { id: *id, volumes });
            }
            HostMessage::GrowVolume { id, volume, size } => (id, self.grow_volume(*volume, *size)),
            HostMessage::FreezeVolumes { id, deadline_ms } => {
                (id, self.freeze_volumes(*deadline_ms))
            }
            HostMessage::ThawVolumes { id } => (id, self.thaw_volumes()),
            _ => return None,
        };
        let still_us = still_us.filter(|_| outcome.is_ok());
        Some(GuestMessage::Answer { id: *id, failure: outcome.err(), still_us })
    }

    /// A tenth of each is taken.
    fn volume_usage(&self) -> Vec<VolumeUsage> {
        let state = self.state();
        let mounts = state.spec.iter().flat_map(|spec| &spec.mounts);
        let usage = |(volume, size): (u8, u64)| {
            let blocks = state.volumes.grown.get(&volume).unwrap_or(&size) / BLOCK;
            let free = blocks - blocks / 10;
            VolumeUsage { volume, block_size: BLOCK, blocks, blocks_free: free, blocks_avail: free }
        };
        mounts
            .filter(|mount| mount.filesystem == VolumeFilesystem::Ext4)
            .map(|mount| usage((mount.volume, mount.size)))
            .collect()
    }

    fn grow_volume(&self, volume: u8, size: u64) -> Result<(), String> {
        if self.behaviour.refuses_volumes {
            return Err(REFUSED.to_owned());
        }
        let mut state = self.state();
        let mut mounts = state.spec.iter().flat_map(|spec| &spec.mounts);
        if !mounts.any(|mount| mount.volume == volume) {
            return Err(format!("the machine has no volume {volume}"));
        }
        state.volumes.grown.insert(volume, size);
        Ok(())
    }

    fn freeze_volumes(&self, deadline_ms: u64) -> Result<(), String> {
        if self.behaviour.refuses_volumes {
            return Err(REFUSED.to_owned());
        }
        self.state().volumes.frozen = Some(deadline_ms);
        Ok(())
    }

    fn thaw_volumes(&self) -> Result<(), String> {
        let thawed = self.state().volumes.frozen.take();
        thawed.map(drop).ok_or_else(|| "the volumes went on before".to_owned())
    }
}
