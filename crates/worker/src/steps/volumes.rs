//! The volumes of a machine, on the way to its VM.

use std::{sync::Arc, time::Duration};

use caddis_api::{
    VolumeId,
    config::Mount,
    volume::{Filesystem, VolumeState},
};
use caddis_guest_protocol::spec::{MountSpec, VolumeFilesystem};
use caddis_vmm::{Backing, Passphrase, VolumeDisk};
use caddis_volume::{Recorded, Volume, VolumeError, Writer};

use super::{Context, Failure, RunningVmHandle, blocking, launch::is_resume};
use crate::volumes::{SavedVolume, Wanted, backing, extension_seen, once_free, volume_error};

/// How long a start waits for volumes that are being made. An encrypted one takes seconds, a copy
/// as long as its source is large.
const CREATING_TIMEOUT: Duration = Duration::from_secs(2 * 60);
/// How long a guest that was resumed may take to grow a file system.
const GROW_DEADLINE: Duration = Duration::from_secs(60);

/// The machine's volumes, open.
#[derive(Default)]
pub(super) struct Opened {
    /// For its VM, which takes the locks with them.
    pub disks: Vec<VolumeDisk>,
    /// Each as it was opened, with the generation before.
    opened: Vec<(Volume, u64)>,
    /// What is still to be durable of that.
    recorded: Vec<Recorded>,
}

fn mounts(context: &Context) -> impl Iterator<Item = (u8, &Mount, Result<VolumeId, Failure>)> {
    (0..).zip(context.config.mounts.iter().flatten()).map(|(index, mount)| {
        let name = mount.volume.as_deref().unwrap_or_default();
        let volume = mount.wanted_id();
        (index, mount, volume.ok_or_else(|| Failure::last(format!("'{name}' is no volume ID"))))
    })
}

pub(super) fn has_any(context: &Context) -> bool {
    context.config.mounts.as_ref().is_some_and(|mounts| !mounts.is_empty())
}

/// Waits until all of them are made.
pub(super) async fn ready(context: &Context) -> Result<(), Failure> {
    let volumes = &context.shared.volumes;
    for (_, _, id) in mounts(context) {
        let id = id?;
        let mut changes = volumes.changes();
        let made = changes.wait_for(|_| {
            let state = volumes.row(&id).map(|row| row.state);
            !matches!(state, Some(VolumeState::Creating | VolumeState::Restoring))
        });
        if context.shared.clock.timeout(CREATING_TIMEOUT, made).await.is_none() {
            let seconds = CREATING_TIMEOUT.as_secs();
            let text = format!("volume {id} is still being created, waited {seconds} s for it");
            return Err(Failure::last(text));
        }
        check(context, &id)?;
    }
    Ok(())
}

fn check(context: &Context, id: &VolumeId) -> Result<(), Failure> {
    let row = context.shared.volumes.row(id);
    let row = row.ok_or_else(|| Failure::last(format!("volume {id} was not found")))?;
    match row.state {
        VolumeState::Failed => {
            let reason = row.failure.and_then(|failure| failure.error).unwrap_or_default();
            Err(Failure::last(format!("volume {id} has failed: {reason}")))
        }
        state if state.is_deleted() => Err(Failure::last(format!("volume {id} is deleted"))),
        _ => Ok(()),
    }
}

/// Opens all of them for the machine's VM, which may not write to them before that is
/// [recorded](Opened::recorded).
pub(super) async fn open(context: &Context) -> Result<Opened, Failure> {
    let mut all = Opened::default();
    for (index, _, id) in mounts(context) {
        let opened = match id {
            Ok(id) => open_one(context, &id).await,
            Err(failure) => Err(failure),
        };
        match opened {
            Ok((writer, recorded, backing)) => {
                let volume = writer.volume().clone();
                all.opened.push((volume, writer.previous_generation()));
                all.recorded.push(recorded);
                all.disks.push(disk(index, writer, backing));
            }
            Err(failure) => {
                all.give_back(context).await;
                return Err(failure);
            }
        }
    }
    Ok(all)
}

async fn open_one(
    context: &Context,
    id: &VolumeId,
) -> Result<(Writer, Recorded, Option<Backing>), Failure> {
    check(context, id)?;
    let volumes = &context.shared.volumes;
    // Whoever reads it for a snapshot, or copies to it, ends that, and begins nothing until the VM
    // has it.
    let _wanted = volumes.background.want(id).await;
    let backing = backing(&context.shared, id).await.map_err(Failure::retry)?;
    let holder = format!("machine {}", context.row.id);
    let files = &volumes.files;
    match once_free(&context.shared.clock, || files.begin_writer(id, &holder)).await {
        Ok((writer, recorded)) => {
            extension_seen(&context.shared, id).await;
            Ok((writer, recorded, backing))
        }
        Err(error) => Err(failure(error)),
    }
}

fn failure(error: VolumeError) -> Failure {
    match error {
        error @ (VolumeError::InUse { .. }
        | VolumeError::Io { .. }
        | VolumeError::NoSpace { .. }
        | VolumeError::Program { .. }
        | VolumeError::Interrupted(_)) => Failure::retry(error),
        error => Failure::last(volume_error(error).message),
    }
}

fn disk(index: u8, writer: Writer, backing: Option<Backing>) -> VolumeDisk {
    let passphrase = writer.key().map(|key| Passphrase::new(key.passphrase().to_string()));
    let size = writer.volume().size.bytes();
    VolumeDisk { index, file: Arc::new(writer.into_descriptor()), passphrase, size, backing }
}

impl Opened {
    /// Waits until it is durable that they are open.
    pub(super) async fn recorded(&mut self) -> Result<(), Failure> {
        let mut outcome = Ok(());
        for (opened, recorded) in self.opened.iter_mut().zip(self.recorded.drain(..)) {
            match recorded.done().await {
                Ok(recorded) => *opened = recorded,
                Err(error) => outcome = Err(failure(error)),
            }
        }
        outcome
    }

    /// Why the memory of the machine can't be resumed with its volumes, if it can't: what it knows
    /// of their file systems is not so any more.
    pub(super) fn changed_since(&self, saved: &[SavedVolume]) -> Option<String> {
        self.opened.iter().find_map(|(volume, before)| {
            let id = &volume.id;
            let Some(then) = saved.iter().find(|then| then.id == *id) else {
                return Some(format!("volume {id} was not there when it was suspended"));
            };
            if then.generation == Some(*before) {
                return None;
            }
            let done = if volume.size.get() > then.size_gb || then.generation.is_none() {
                "extended"
            } else {
                "changed"
            };
            Some(format!("volume {id} was {done} since it was suspended"))
        })
    }

    /// No VM has run with them: what is saved of the machine still fits to them.
    pub(super) async fn give_back(mut self, context: &Context) {
        // What could not be recorded need not be taken back.
        let _ = self.recorded().await;
        let directory = context.files();
        if !is_resume(&context.row) || !context.shared.vmm.is_saved(directory.directory()) {
            return;
        }
        let files = context.shared.volumes.files.clone();
        let given_back = blocking(move || {
            for (volume, before) in &self.opened {
                files.unwritten(volume, *before).map_err(std::io::Error::other)?;
            }
            Ok(())
        });
        if let Err(error) = given_back.await {
            tracing::warn!(machine = %context.row.id, %error, "can't put generations back");
        }
    }
}

/// What init is told of them.
pub(super) fn specs(context: &Context) -> Result<Vec<MountSpec>, Failure> {
    let spec = |(index, mount, id): (u8, &Mount, Result<VolumeId, Failure>)| {
        let volume = context.shared.volumes.files.get(&id?).map_err(Failure::retry)?;
        Ok(MountSpec {
            volume: index,
            path: mount.path.clone().unwrap_or_default(),
            filesystem: match volume.filesystem {
                Filesystem::Ext4 => VolumeFilesystem::Ext4,
                Filesystem::Raw => VolumeFilesystem::Raw,
            },
            size: volume.size.bytes(),
        })
    };
    mounts(context).map(spec).collect()
}

/// Has a VM see those that were extended while it was being launched.
pub(super) async fn catch_up(context: &Context, live: &RunningVmHandle) -> Result<(), Failure> {
    for (index, _, id) in mounts(context) {
        let (id, files) = (id?, context.shared.volumes.files.clone());
        let found = blocking(move || {
            let volume = files.get(&id).map_err(std::io::Error::other)?;
            let usage = files.usage(&id).map_err(std::io::Error::other)?;
            Ok((volume.size.bytes(), usage.virtual_bytes))
        });
        let (size, seen) = found.await.map_err(Failure::retry)?;
        if seen >= size {
            continue;
        }
        live.vm.resize_volume(index, size).await.map_err(Failure::retry)?;
        if live.vm.start().kind == caddis_vmm::StartKind::Resume {
            let grown = live.told(live.session.grow_volume(index, size, GROW_DEADLINE)).await;
            grown.map_err(Failure::retry)?;
        }
    }
    Ok(())
}

/// Ends the snapshots that are being taken of the machine's volumes; none begins until what this
/// returns is dropped.
pub(super) async fn wanted(context: &Context) -> Vec<Wanted> {
    let background = &context.shared.volumes.background;
    let ids = mounts(context).filter_map(|(_, _, id)| id.ok());
    let mut wanted = Vec::new();
    for id in ids {
        wanted.push(background.want(&id).await);
    }
    wanted
}

/// The volumes of a machine that is about to be saved. What is changed of them from here on can't
/// be known to its memory.
pub(super) fn saved(context: &Context) -> Vec<SavedVolume> {
    let volumes = &context.shared.volumes;
    let saved = |(_, _, id): (u8, &Mount, Result<VolumeId, Failure>)| {
        let id = id.ok()?;
        let volume = volumes.files.get(&id).ok()?;
        let is_growing = volumes.row(&id).is_some_and(|row| row.state == VolumeState::Extending);
        let generation = (!is_growing).then_some(volume.generation);
        Some(SavedVolume { id, generation, size_gb: volume.size.get() })
    };
    mounts(context).filter_map(saved).collect()
}
