//! Which machine has which volume.

use std::collections::HashSet;

use caddis_api::{ApiError, AppName, MachineId, config::Mount, volume::VolumeState};

use super::{
    Attachment, State, Volumes,
    error::{check_created, failed, in_use, not_found},
};
use crate::engine::Shared;

/// The volumes of a new machine, which are free again when this is dropped.
pub struct Attaching<'a> {
    shared: &'a Shared,
    machine: Option<MachineId>,
}

impl Attaching<'_> {
    /// The machine is there: it has them until it is destroyed.
    pub fn keep(mut self) {
        self.machine = None;
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        if let Some(machine) = &self.machine {
            self.shared.detach_volumes(machine);
        }
    }
}

impl Volumes {
    /// Gives a new machine its volumes: all of them, or none.
    fn attach(&self, machine: &MachineId, app: &AppName, mounts: &[Mount]) -> Result<(), ApiError> {
        let mut state = self.state();
        let mut wanted = HashSet::new();
        for mount in mounts {
            let name = mount.volume.as_deref().unwrap_or_default();
            let volume = mount.wanted_id().ok_or_else(|| {
                ApiError::invalid(format!("invalid config.mounts, '{name}' is no volume ID"))
            })?;
            let entry = state.of_app(&volume, app).ok_or_else(|| not_found(&volume))?;
            match entry.row.state {
                VolumeState::Failed => return Err(failed(&entry.row)),
                state if state.is_mountable() && !entry.is_going => {}
                VolumeState::Destroyed => return Err(not_found(&volume)),
                _ => {
                    check_created(&entry.row)?;
                    let text = format!("volume {volume} is being deleted");
                    return Err(ApiError::precondition(text));
                }
            }
            if let Some(attached) = &entry.attached {
                return Err(in_use(&volume, &attached.machine, ""));
            }
            if !wanted.insert(volume.clone()) {
                let text = format!("invalid config.mounts, volume {volume} is mounted twice");
                return Err(ApiError::invalid(text));
            }
        }
        self.note(&mut state, machine, mounts);
        Ok(())
    }

    /// A machine that exists has its volumes, whatever has become of them, with these settings.
    pub fn restore(&self, machine: &MachineId, mounts: &[Mount]) {
        if !mounts.is_empty() {
            self.note(&mut self.state(), machine, mounts);
        }
    }

    fn note(&self, state: &mut State, machine: &MachineId, mounts: &[Mount]) {
        for (index, mount) in (0..).zip(mounts) {
            let entry = mount.wanted_id().and_then(|volume| state.entries.get_mut(&volume));
            let Some(entry) = entry else {
                tracing::error!(%machine, volume = mount.volume, "a machine's volume is missing");
                continue;
            };
            let (volume, mount) = (entry.row.id.clone(), mount.clone());
            if let Some(other) = entry.attached.as_ref().filter(|other| other.machine != *machine) {
                let other = &other.machine;
                tracing::error!(%machine, %volume, %other, "two machines have the same volume");
                continue;
            }
            entry.attached = Some(Attachment { machine: machine.clone(), index, mount });
            self.touch(entry);
            let volumes = state.by_machine.entry(machine.clone()).or_default();
            if !volumes.contains(&volume) {
                volumes.push(volume);
            }
        }
    }

    /// A machine has no volumes any more. False where it had none.
    fn detach(&self, machine: &MachineId) -> bool {
        let mut state = self.state();
        let Some(volumes) = state.by_machine.remove(machine) else { return false };
        for volume in volumes {
            if let Some(entry) = state.entries.get_mut(&volume) {
                entry.attached = None;
                self.touch(entry);
            }
        }
        true
    }
}

impl Shared {
    /// Gives a new machine its volumes: all of them, or none.
    ///
    /// # Errors
    /// 404 and 412 where it can't have one, with the reason.
    pub fn attach_volumes(
        &self,
        machine: &MachineId,
        app: &AppName,
        mounts: &[Mount],
    ) -> Result<Attaching<'_>, ApiError> {
        if mounts.is_empty() {
            return Ok(Attaching { shared: self, machine: None });
        }
        self.volumes.attach(machine, app, mounts)?;
        self.announce();
        Ok(Attaching { shared: self, machine: Some(machine.clone()) })
    }

    /// A machine is gone: its volumes are free.
    pub fn detach_volumes(&self, machine: &MachineId) {
        if self.volumes.detach(machine) {
            self.announce();
        }
    }
}
