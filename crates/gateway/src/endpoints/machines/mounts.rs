//! The volumes of a machine: chosen before it is placed, since it goes where they are. What the
//! view says of them may be out of date; their worker refuses what another machine has by now, and
//! then others are chosen.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use caddis_api::{
    ApiError, ErrorCode, MachineConfig, MachineId, RawConfig, RegionCode, Volume, VolumeId,
    WorkerId, config::Mount,
};
use caddis_bus::message::{VolumeRecord, WorkerRequest};
use caddis_catalog::AppRecord;
use serde_json::{Map, Value, json};

use crate::{http::context::Context, scheduler};

/// A volume for each mount, all on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub worker: WorkerId,
    pub region: RegionCode,
    /// In the order of the mounts.
    pub volumes: Vec<Volume>,
}

/// Whose volumes are chosen, and what for.
pub(super) struct Wish<'a> {
    pub app: &'a AppRecord,
    pub config: &'a MachineConfig,
    /// Where the machine may be.
    pub regions: &'a [RegionCode],
    /// A machine that may have them already: an earlier try has made it.
    pub machine: Option<&'a MachineId>,
}

/// Volumes for the mounts of a configuration that has some.
pub(super) struct Chooser {
    /// Those that may be mounted, of each mount, the best first.
    candidates: Vec<Vec<VolumeRecord>>,
    /// Whether each was asked for by its name.
    by_name: Vec<bool>,
    /// Those that turned out to be taken.
    taken: HashSet<VolumeId>,
    /// Hosts that turned out to be full.
    full: BTreeSet<WorkerId>,
}

impl Chooser {
    /// Looks for them. Fails where there are none for a mount, whatever the others have.
    pub async fn new(context: &Context, wish: &Wish<'_>) -> Result<Self, ApiError> {
        context.volumes_synced().await?;
        let placed = context.catalog.volumes_of(wish.app.number).await?.into_iter();
        let own: HashSet<_> = placed.map(|row| row.id).collect();
        let mut known = context.view.volumes_of_app(&wish.app.name);
        known.retain(|record| own.contains(&record.volume.id));
        let mounts = wish.config.mounts.as_deref().unwrap_or_default();
        let candidates = mounts.iter().enumerate().map(|(index, mount)| {
            let field = format!("config.mounts[{index}].volume");
            candidates(&field, mount, &known, wish)
        });
        let mut candidates: Vec<_> = candidates.collect::<Result<_, ApiError>>()?;
        let hosts: BTreeSet<_> =
            candidates.iter().flatten().map(|record| &record.worker).cloned().collect();
        if hosts.len() > 1 {
            let order = order(context, wish).await?;
            let place =
                |record: &VolumeRecord| order.get(&record.worker).copied().unwrap_or(usize::MAX);
            candidates.iter_mut().for_each(|records| records.sort_by_key(place));
        }
        let by_name = mounts.iter().map(|mount| mount.wanted_id().is_none()).collect();
        Ok(Self { candidates, by_name, taken: HashSet::new(), full: BTreeSet::new() })
    }

    /// The next volumes to try.
    pub fn choose(&self) -> Option<Choice> {
        let hosts = self.candidates.first()?.iter().map(|record| &record.worker);
        hosts.filter(|host| !self.full.contains(*host)).find_map(|host| self.on(host))
    }

    fn on(&self, host: &WorkerId) -> Option<Choice> {
        let mut chosen: Vec<&VolumeRecord> = Vec::new();
        // Those that are asked for by id first, so that no name takes one of them.
        let mut order: Vec<_> = (0..self.candidates.len()).collect();
        order.sort_by_key(|index| self.by_name[*index]);
        let mut found = BTreeMap::new();
        for index in order {
            let record = self.candidates[index].iter().find(|record| {
                let id = &record.volume.id;
                record.worker == *host
                    && !self.taken.contains(id)
                    && chosen.iter().all(|other| other.volume.id != *id)
            })?;
            chosen.push(record);
            found.insert(index, record.volume.clone());
        }
        let region = chosen.first()?.volume.region.clone();
        Some(Choice { worker: host.clone(), region, volumes: found.into_values().collect() })
    }

    /// A host has no room for the machine.
    pub fn is_full(&mut self, host: &WorkerId) {
        self.full.insert(host.clone());
    }

    /// A choice was refused. Whether there may be another: a volume of it that was asked for by
    /// name is another machine's by now, or gone.
    pub async fn is_refused(&mut self, context: &Context, choice: &Choice) -> bool {
        refresh(context, choice).await;
        let mut is_another = false;
        for (volume, by_name) in choice.volumes.iter().zip(&self.by_name) {
            let now = look(context, &volume.id);
            if now.is_none_or(|now| !now.volume.is_free()) {
                is_another |= *by_name;
                self.taken.insert(volume.id.clone());
            }
        }
        is_another
    }
}

#[expect(clippy::disallowed_methods, reason = "a volume that was found for the caller before")]
fn look(context: &Context, id: &VolumeId) -> Option<VolumeRecord> {
    context.view.volume(id)
}

/// Has the view know what became of volumes.
pub(super) async fn refresh(context: &Context, choice: &Choice) {
    for volume in &choice.volumes {
        let request = WorkerRequest::GetVolume { volume: volume.id.clone() };
        let deadline = context.settings.request_deadline;
        if let Err(error) = context.ask(&choice.worker, request, deadline).await {
            // The next listing tells.
            tracing::debug!(volume = %volume.id, ?error, "a worker did not tell of a volume");
        }
    }
}

fn candidates(
    field: &str,
    mount: &Mount,
    known: &[VolumeRecord],
    wish: &Wish<'_>,
) -> Result<Vec<VolumeRecord>, ApiError> {
    let is_ours = |volume: &Volume| {
        wish.machine.is_some() && volume.attached_machine_id.as_ref() == wish.machine
    };
    let is_free =
        |volume: &Volume| volume.is_free() || (volume.state.is_mountable() && is_ours(volume));
    if let Some(id) = mount.wanted_id() {
        let record = known.iter().find(|record| record.volume.id == id);
        let record = record.ok_or_else(|| {
            ApiError::invalid(format!("invalid {field}, the app has no volume {id}"))
        })?;
        let volume = &record.volume;
        if !volume.state.is_mountable() {
            return Err(ApiError::precondition(format!(
                "volume {id} is {}, no machine can have it",
                volume.state.as_str()
            )));
        }
        if let Some(machine) = volume.attached_machine_id.as_ref().filter(|_| !is_ours(volume)) {
            return Err(ApiError::precondition(format!(
                "volume {id} is already attached to machine {machine}"
            )));
        }
        if !wish.regions.contains(&volume.region) {
            let wanted: Vec<_> = wish.regions.iter().map(RegionCode::as_str).collect();
            return Err(ApiError::invalid(format!(
                "invalid {field}, volume {id} is in region {}, the machine is to be in {}: use the \
                 region of the volume",
                volume.region,
                wanted.join(", ")
            )));
        }
        if volume.host_status == "unreachable" {
            return Err(unreachable(&format!("the host of volume {id}")));
        }
        return Ok(vec![record.clone()]);
    }
    let name = mount.wanted_name().unwrap_or_default();
    let fits = |record: &&VolumeRecord| record.volume.name == name && is_free(&record.volume);
    let mut found = Vec::new();
    for region in wish.regions {
        let there = known.iter().filter(fits).filter(|record| record.volume.region == *region);
        found.extend(there.cloned());
    }
    if !found.is_empty() && found.iter().all(|row| row.volume.host_status == "unreachable") {
        return Err(unreachable(&format!("the host of each unattached volume '{name}'")));
    }
    found.retain(|record| record.volume.host_status != "unreachable");
    // One that an earlier try has taken is the one.
    found.sort_by_key(|record| !is_ours(&record.volume));
    if found.is_empty() {
        return Err(none_left(name, wish.regions));
    }
    Ok(found)
}

fn unreachable(what: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unavailable,
        format!("unavailable: {what} can't be reached, try again later"),
    )
}

/// There is no volume of a name.
fn none_left(name: &str, regions: &[RegionCode]) -> ApiError {
    let regions: Vec<_> = regions.iter().map(RegionCode::as_str).collect();
    ApiError::precondition(format!(
        "no unattached volume '{name}' in region {}, create one first",
        regions.join(", ")
    ))
}

/// Why no volumes could be chosen although there are some for each mount.
pub(super) fn nothing_fits(config: &MachineConfig, regions: &[RegionCode]) -> ApiError {
    let mounts = config.mounts.as_deref().unwrap_or_default();
    let names: Vec<_> = mounts
        .iter()
        .filter_map(|mount| mount.volume.as_deref().or(mount.name.as_deref()))
        .collect();
    match names.as_slice() {
        [name] => none_left(name, regions),
        [name, other] if name == other => {
            ApiError::precondition(format!("not enough unattached volumes for '{name}'"))
        }
        _ => ApiError::precondition(format!(
            "the volumes {} are not on one host: a machine runs where its volumes are",
            names.join(" and ")
        )),
    }
}

/// Whether a host has no room for a machine.
pub(super) fn is_for_want_of_room(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::InsufficientCapacity | ErrorCode::VolumePlacementCapacity)
}

/// That the host of volumes has no room for a machine.
pub(super) fn no_room(choice: &Choice, error: ApiError) -> ApiError {
    if error.code == ErrorCode::VolumePlacementCapacity {
        return error;
    }
    let ids: Vec<_> = choice.volumes.iter().map(|volume| format!("'{}'", volume.id)).collect();
    ApiError::new(
        ErrorCode::VolumePlacementCapacity,
        format!(
            "insufficient resources to create new machine with existing volume id {}: {}",
            ids.join(", "),
            error.message
        ),
    )
}

/// The hosts that answer, in the order in which the machine would best run on them.
async fn order(context: &Context, wish: &Wish<'_>) -> Result<BTreeMap<WorkerId, usize>, ApiError> {
    let mut order = BTreeMap::new();
    for region in wish.regions {
        for offer in scheduler::offers_in(context, region, wish.config).await? {
            let place = order.len();
            order.entry(offer.worker).or_insert(place);
        }
    }
    Ok(order)
}

/// The configuration with volumes filled in.
pub(super) fn filled_in(raw: &RawConfig, volumes: &[Volume]) -> RawConfig {
    let mut fields = raw.fields();
    let mounts = fields.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten();
    for (mount, volume) in mounts.zip(volumes) {
        if let Value::Object(mount) = mount {
            mount.insert("volume".to_owned(), json!(volume.id));
            mount.insert("name".to_owned(), json!(volume.name));
            mount.insert("size_gb".to_owned(), json!(volume.size_gb));
            mount.insert("encrypted".to_owned(), json!(volume.encrypted));
        }
    }
    fields.into()
}

/// A line for each field of a mount that says something else of a volume than what it is: the
/// server fills these fields in.
pub(super) fn overridden(sent: &RawConfig, filled_in: &RawConfig) -> Vec<String> {
    let (sent, filled_in) = (sent.fields(), filled_in.fields());
    let mounts = |fields: &Map<String, Value>| -> Vec<Value> {
        fields.get("mounts").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let mut lines = Vec::new();
    for (index, (sent, real)) in mounts(&sent).iter().zip(mounts(&filled_in)).enumerate() {
        for field in ["name", "size_gb", "encrypted"] {
            let is_given = |value: &&Value| {
                !value.is_null() && value.as_str() != Some("") && value.as_u64() != Some(0)
            };
            if let Some(value) = sent.get(field).filter(is_given)
                && *value != real[field]
            {
                let volume = real["volume"].as_str().unwrap_or_default();
                lines.push(format!(
                    "config.mounts[{index}].{field} has no effect: volume {volume} has {}",
                    real[field]
                ));
            }
        }
    }
    lines
}

/// The configuration of an update with the volumes that the machine has: other paths are fine,
/// other volumes are not.
pub(super) fn kept(
    context: &Context,
    current: Option<&RawConfig>,
    (raw, config): (&RawConfig, &MachineConfig),
) -> Result<RawConfig, ApiError> {
    let changed =
        || ApiError::invalid("invalid config.mounts, the volume of a machine can't be changed");
    let current = current.map(caddis_api::validate::read).transpose()?;
    let current = current.and_then(|config| config.mounts).unwrap_or_default();
    let wanted = config.mounts.as_deref().unwrap_or_default();
    if wanted.len() != current.len() {
        return Err(changed());
    }
    let mut volumes = Vec::new();
    for (wanted, current) in wanted.iter().zip(&current) {
        let id = current.wanted_id().ok_or_else(changed)?;
        let is_it = match wanted.wanted_id() {
            Some(wanted) => wanted == id,
            None => wanted.wanted_name() == current.name.as_deref(),
        };
        if !is_it {
            return Err(changed());
        }
        volumes.extend(look(context, &id).map(|record| record.volume));
    }
    // Not all are known while their host is silent, and then their worker does not answer either.
    Ok(if volumes.len() == wanted.len() { filled_in(raw, &volumes) } else { raw.clone() })
}

#[cfg(test)]
mod tests {
    use caddis_api::{AppName, UnixMillis};

    use super::*;

    fn record(id: &str, host: &str) -> VolumeRecord {
        let volume: Volume = serde_json::from_value(json!({
            "id": id, "name": "data", "state": "created", "size_gb": 7, "region": "local",
            "zone": "0000", "encrypted": true, "attached_machine_id": null, "created_at": "",
            "fstype": "ext4", "snapshot_retention": 5, "auto_backup_enabled": true,
        }))
        .unwrap();
        VolumeRecord {
            worker: WorkerId::from_trusted(host),
            incarnation: "p".to_owned(),
            revision: 1,
            app: AppName::from_trusted("app"),
            updated_at: UnixMillis::EPOCH,
            volume,
        }
    }

    fn chooser(candidates: &[(bool, &[(&str, &str)])]) -> Chooser {
        let rows = |rows: &[(&str, &str)]| rows.iter().map(|(id, on)| record(id, on)).collect();
        Chooser {
            candidates: candidates.iter().map(|(_, all)| rows(all)).collect(),
            by_name: candidates.iter().map(|(by_name, _)| *by_name).collect(),
            taken: HashSet::new(),
            full: BTreeSet::new(),
        }
    }

    fn chosen(chooser: &Chooser) -> Option<(String, Vec<String>)> {
        let choice = chooser.choose()?;
        let ids = choice.volumes.iter().map(|volume| volume.id.to_string()).collect();
        Some((choice.worker.to_string(), ids))
    }

    #[test]
    fn volumes_of_one_machine_are_of_one_host_and_each_another() {
        let one: &[_] = &[("vol_1", "a"), ("vol_2", "b"), ("vol_3", "b")];
        let twice = chooser(&[(true, one), (true, one)]);
        let of = |host: &str, ids: &[&str]| {
            Some((host.to_owned(), ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()))
        };
        assert_eq!(chosen(&twice), of("b", &["vol_2", "vol_3"]));
        let by_id = chooser(&[(true, one), (false, &[("vol_2", "b")])]);
        assert_eq!(chosen(&by_id), of("b", &["vol_3", "vol_2"]), "no name takes what an id has");
        let apart = chooser(&[(false, &[("vol_1", "a")]), (false, &[("vol_2", "b")])]);
        assert_eq!(chosen(&apart), None);
    }

    #[test]
    fn hosts_that_are_full_and_volumes_that_are_taken_are_passed_over() {
        let mut one = chooser(&[(true, &[("vol_1", "a"), ("vol_2", "b"), ("vol_3", "b")])]);
        one.is_full(&WorkerId::from_trusted("a"));
        assert_eq!(chosen(&one).unwrap().1, ["vol_2"]);
        one.taken.insert("vol_2".parse().unwrap());
        assert_eq!(chosen(&one).unwrap().1, ["vol_3"]);
        one.is_full(&WorkerId::from_trusted("b"));
        assert_eq!(chosen(&one), None);
    }

    #[test]
    fn what_is_filled_in_takes_the_place_of_what_was_sent() {
        let raw: RawConfig = serde_json::from_value(json!({
            "mounts": [{ "name": "other", "volume": "", "path": "/data", "own": 1 }]
        }))
        .unwrap();
        assert_eq!(
            json!(filled_in(&raw, &[record("vol_1", "a").volume]))["mounts"],
            json!([{ "name": "data", "volume": "vol_1", "path": "/data", "own": 1, "size_gb": 7,
                "encrypted": true }])
        );
    }

    #[test]
    fn what_a_mount_says_of_a_volume_that_is_not_so_is_told() {
        let raw = |mount: Value| -> RawConfig {
            serde_json::from_value(json!({ "mounts": [mount] })).unwrap()
        };
        let told = |mount: Value| {
            let sent = raw(mount);
            overridden(&sent, &filled_in(&sent, &[record("vol_1", "a").volume]))
        };
        assert_eq!(told(json!({ "volume": "vol_1", "path": "/data" })), [""; 0]);
        let same = json!({ "volume": "vol_1", "name": "data", "size_gb": 7, "encrypted": true });
        assert_eq!(told(same), [""; 0]);
        let empty = json!({ "volume": "vol_1", "name": "", "size_gb": 0, "encrypted": null });
        assert_eq!(told(empty), [""; 0]);
        assert_eq!(
            told(json!({ "volume": "vol_1", "name": "x", "size_gb": 9, "encrypted": false })),
            [
                "config.mounts[0].name has no effect: volume vol_1 has \"data\"",
                "config.mounts[0].size_gb has no effect: volume vol_1 has 7",
                "config.mounts[0].encrypted has no effect: volume vol_1 has true"
            ]
        );
    }
}
