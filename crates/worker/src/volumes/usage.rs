//! How full volumes are, as the guests of running machines tell it, and extending those that are to
//! be extended by themselves.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use caddis_api::{MachineId, VolumeId, config::Mount, volume::VolumeState};
use caddis_guest_protocol::message::VolumeUsage;
use caddis_volume::SizeGib;
use futures::{StreamExt as _, stream};
use serde_json::json;

use super::{
    Attachment, Volumes, extend,
    row::{Usage, VolumeRow},
};
use crate::{
    engine::Shared,
    requests::quiet_session,
    store::{Durability, Room},
};

/// How often machines are asked whose volumes are extended by themselves.
const EXTEND_INTERVAL: Duration = Duration::from_secs(30);
/// So many of these are one interval in which all others are asked once.
const OTHERS_EVERY: u64 = 2;
/// How long a guest is waited for.
const DEADLINE: Duration = Duration::from_secs(2);
/// Guests that are asked at once.
const AT_ONCE: usize = 16;

/// Asks the guests of running machines again and again; never ends. Wakes none.
pub async fn watch(shared: Arc<Shared>) {
    for round in 1.. {
        shared.clock.sleep(EXTEND_INTERVAL).await;
        let machines = shared.volumes.machines(round % OTHERS_EVERY == 0);
        let asked = stream::iter(machines).map(|machine| ask(&shared, machine));
        let told: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let told: Vec<_> = told.into_iter().flatten().collect();
        note(&shared, told.iter().cloned()).await;
        // Only what was told just now says anything: others may have been extended since.
        for (volume, usage) in told {
            extend_if_due(&shared, &volume, &usage).await;
        }
    }
}

/// Asks the machine that has a volume, if it runs.
pub(super) async fn refresh(shared: &Shared, volume: &VolumeId) {
    if let Some(Attachment { machine, .. }) = shared.volumes.attached(volume) {
        note(shared, ask(shared, machine).await.into_iter()).await;
    }
}

async fn ask(shared: &Shared, machine: MachineId) -> Vec<(VolumeId, Usage)> {
    let Some(session) = quiet_session(shared, &machine).await else { return Vec::new() };
    let told = match session.volume_usage(DEADLINE).await {
        Ok(told) => told,
        Err(error) => {
            tracing::debug!(%machine, %error, "a guest does not tell how full its volumes are");
            return Vec::new();
        }
    };
    let volumes = shared.volumes.of_machine(&machine);
    let usage = |told: VolumeUsage| {
        let VolumeUsage { volume, block_size, blocks, blocks_free, blocks_avail } = told;
        let (id, _) = volumes.iter().find(|(_, index)| *index == volume)?;
        Some((id.clone(), Usage { block_size, blocks, blocks_free, blocks_avail }))
    };
    told.into_iter().filter_map(usage).collect()
}

/// Records what was told, where it is something else than before.
async fn note(shared: &Shared, told: impl Iterator<Item = (VolumeId, Usage)>) {
    let mut has_changed = false;
    for (id, usage) in told {
        let _turn = shared.volumes.turn(&id).await;
        let Some(mut row) = shared.volumes.row(&id) else { continue };
        if row.usage == Some(usage) || row.state.is_deleted() {
            continue;
        }
        row.usage = Some(usage);
        let recorded =
            shared.store.record_volumes(vec![row], None, Durability::Process, Room::Free);
        if let Err(error) = recorded.await {
            // It is told again.
            tracing::debug!(volume = %id, %error, "can't record how full a volume is");
        }
        shared.volumes.edit(&id, |entry| entry.row.usage = Some(usage));
        has_changed = true;
    }
    if has_changed {
        shared.announce();
    }
}

async fn extend_if_due(shared: &Arc<Shared>, id: &VolumeId, usage: &Usage) {
    let Some(Attachment { machine, mount, .. }) = shared.volumes.attached(id) else { return };
    // One whose guest did not see the last extension would not see the next either.
    let may_be = |row: &VolumeRow| row.state == VolumeState::Created && row.failure.is_none();
    let Some(row) = shared.volumes.row(id).filter(may_be) else { return };
    let from = row.size_gb;
    let Some(size_gb) = extended_size(&mount, from, usage) else { return };
    let mut details = json!({ "volume": id, "from_gb": from, "size_gb": size_gb });
    let (level, message) = match extend::extend(shared, id, size_gb, None).await {
        Ok(()) => {
            let text = format!("extending it from {from} to {size_gb} GB");
            ("info", format!("Volume {id} is over its threshold: {text}"))
        }
        Err(error) => {
            let error = error.message;
            let text = format!("Volume {id} is over its threshold and can't be extended: {error}");
            ("error", text)
        }
    };
    details["level"] = json!(level);
    tracing::debug!(volume = %id, %machine, message, "volume over its threshold");
    shared.tell_machine_of(id, message, details).await;
}

/// The size that a volume of this size and use is to be extended to, GiB, if it is.
fn extended_size(mount: &Mount, size_gb: u32, usage: &Usage) -> Option<u32> {
    let threshold = given(mount.extend_threshold_percent)?;
    let limit = given(mount.size_gb_limit)?.min(SizeGib::MAX.get());
    let add = match (given(mount.add_size_gb), given(mount.add_size_percent)) {
        (Some(add), _) => add,
        (None, Some(percent)) => {
            let add = (u64::from(size_gb) * u64::from(percent)).div_ceil(100);
            u32::try_from(add).unwrap_or(u32::MAX).max(mount.min_add_size_gb.unwrap_or(1))
        }
        (None, None) => return None,
    };
    let (used, total) = (u128::from(usage.bytes_used()), u128::from(usage.bytes_total()));
    let is_over = total > 0 && used * 100 > total * u128::from(threshold);
    let size = size_gb.saturating_add(add);
    (is_over && size <= limit).then_some(size)
}

/// Clients send zero for what was not given.
fn given(number: Option<u32>) -> Option<u32> {
    number.filter(|number| *number > 0)
}

/// Whether all is said for a volume to be extended by itself.
fn extends(mount: &Mount) -> bool {
    let adds = given(mount.add_size_gb).or(given(mount.add_size_percent));
    given(mount.extend_threshold_percent).and(given(mount.size_gb_limit)).and(adds).is_some()
}

impl Volumes {
    /// Whether this was not the last that was told of a volume: what fails again and again is told
    /// once.
    pub(super) fn is_news(&self, volume: &VolumeId, message: &str) -> bool {
        let mut state = self.state();
        let Some(entry) = state.entries.get_mut(volume) else { return false };
        if entry.told == message {
            return false;
        }
        message.clone_into(&mut entry.told);
        true
    }

    /// What a volume is attached to.
    pub(super) fn attached(&self, volume: &VolumeId) -> Option<Attachment> {
        self.state().entries.get(volume).and_then(|entry| entry.attached.clone())
    }

    /// The volumes of a machine, with their numbers there.
    pub(super) fn of_machine(&self, machine: &MachineId) -> Vec<(VolumeId, u8)> {
        let state = self.state();
        let volumes = state.by_machine.get(machine).into_iter().flatten();
        let number = |id: &VolumeId| {
            let attached = state.entries.get(id).and_then(|entry| entry.attached.as_ref())?;
            Some((id.clone(), attached.index))
        };
        volumes.filter_map(number).collect()
    }

    /// Machines that have volumes: `all`, or those with one that is to be extended by itself.
    fn machines(&self, all: bool) -> Vec<MachineId> {
        if all {
            return self.state().by_machine.keys().cloned().collect();
        }
        let state = self.state();
        let attached = state.entries.values().filter_map(|entry| entry.attached.as_ref());
        let extending = attached.filter(|attached| extends(&attached.mount));
        let machines: BTreeSet<_> = extending.map(|attached| attached.machine.clone()).collect();
        machines.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(used_percent: u64) -> Usage {
        let (blocks, blocks_free) = (10_000, 10_000 - 100 * used_percent);
        Usage { block_size: 4096, blocks, blocks_free, blocks_avail: blocks_free }
    }

    #[test]
    fn volumes_are_extended_above_the_threshold_up_to_the_limit_and_only_where_all_is_said() {
        let mount = Mount {
            extend_threshold_percent: Some(80),
            add_size_gb: Some(2),
            size_gb_limit: Some(10),
            ..Mount::default()
        };
        assert_eq!(extended_size(&mount, 3, &usage(80)), None, "not above it");
        assert_eq!(extended_size(&mount, 3, &usage(81)), Some(5));
        assert_eq!(extended_size(&mount, 8, &usage(81)), Some(10));
        assert_eq!(extended_size(&mount, 9, &usage(99)), None, "it would pass the limit");
        let nothing = Usage { blocks: 0, blocks_free: 0, ..usage(0) };
        assert_eq!(extended_size(&mount, 3, &nothing), None);
        for incomplete in [
            Mount { extend_threshold_percent: None, ..mount.clone() },
            Mount { add_size_gb: None, ..mount.clone() },
            Mount { add_size_gb: Some(0), ..mount.clone() },
            Mount { size_gb_limit: None, ..mount.clone() },
        ] {
            assert_eq!(extended_size(&incomplete, 3, &usage(99)), None, "{incomplete:?}");
        }
        let percent = Mount { add_size_gb: None, add_size_percent: Some(10), ..mount };
        assert_eq!(extended_size(&percent, 3, &usage(99)), Some(4), "rounded up");
        let least = Mount { min_add_size_gb: Some(3), ..percent };
        assert_eq!(extended_size(&least, 3, &usage(99)), Some(6));
        let beyond = Mount { size_gb_limit: Some(9999), ..least };
        assert_eq!(extended_size(&beyond, 499, &usage(99)), None, "no volume is that large");
    }
}
