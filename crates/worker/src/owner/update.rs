//! Updates: a new version of the configuration takes the place of the current one, which goes on
//! until what the new one runs is there. Until then nothing is lost: what can't be had leaves the
//! machine as it was.

use caddis_api::{ApiError, LeaseNonce, MachineConfig, MachineState, RawConfig};
use caddis_bus::message::{UpdateMachine, VersionRecord, WorkerReply, WorkerResult};
use caddis_image::ResolvedImage;
use serde_json::json;

use super::{Owner, lease::grant, record::image_ref};
use crate::{
    event::Source,
    operations::{CancelSuspend, Exit, OperationKind, Start, StartReason, Stop, Update},
    policy::{Request, Verdict},
    restart,
    row::{MachineRow, Replaced},
    spec,
    store::{Durability, VersionChange},
};

/// A new configuration, checked, with what it runs.
#[derive(Debug)]
pub struct Revision {
    /// Completed.
    pub raw: RawConfig,
    /// Read.
    pub config: MachineConfig,
    /// What it runs.
    pub image: ResolvedImage,
    /// As it was asked for.
    pub update: UpdateMachine,
}

impl Owner {
    pub(super) async fn update(
        &mut self,
        nonce: Option<&LeaseNonce>,
        revision: Revision,
    ) -> WorkerResult {
        self.check_lease(nonce)?;
        let Revision { raw, config, image, update } = revision;
        if let Some(expected) = update.expected.filter(|expected| *expected != self.row.version) {
            let current = &self.row.version;
            return Err(ApiError::aborted(format!(
                "machine version mismatch, {expected} is not the current {current}"
            )));
        }
        let supersede = match self.verdict(Request::Update) {
            Verdict::Refuse(error) => return Err(error),
            verdict => matches!(verdict, Verdict::Supersede(_)),
        };
        self.check_replaceable(&raw)?;
        let mut row = self.row.clone();
        // Versions rise also when the clock went back since the last one.
        let wanted = update.version.filter(|version| *version > self.row.version);
        let version =
            wanted.unwrap_or_else(|| self.row.version.following(self.shared.clock.unix_now()));
        (row.version, row.config, row.image) = (version, raw, image);
        row.cordoned |= update.cordoned;
        let replaced = replaced(&self.row);
        spec::machine_spec(&row, &config, self.shared.network.guest_spec(&row.addresses))?;
        let now = self.shared.clock.unix_now();
        if let Some((ttl, owner)) = update.lease {
            let held = self.row.valid_lease(now);
            let nonce = held.map_or_else(LeaseNonce::random, |lease| lease.nonce.clone());
            let (owner, words) =
                held.map_or((owner, String::new()), |l| (l.owner.clone(), l.description.clone()));
            row.lease = Some(grant(&row, nonce, ttl, owner, words, now));
        }
        let lease = row.lease.clone().filter(|_| row.lease != self.row.lease);
        let stop = self.plan(None, None);
        let run = !update.skip_launch && replaced.runs;
        self.shared.capacity.resize(&row.id, &config)?;
        let kept = recorded(&self.row);
        let begun = self.try_change(Durability::Synced, |draft| {
            draft.row = row;
            draft.row.next = None;
            draft.row.drained = false;
            draft.row.restarts.clear();
            draft.version(VersionChange::Keep(kept));
            draft.begin(OperationKind::Update(Update { stop, run }), Source::User);
            draft.row.replaced = Some(Box::new(replaced));
        });
        if let Err(error) = begun.await {
            self.shared.capacity.restore(&self.row.id, &self.config, self.row.addresses.ipv4);
            return Err(error);
        }
        let warnings = spec::image_warnings(&self.row.image.config, &config);
        self.take_on(config);
        if supersede {
            self.break_off_step();
            self.turns.end();
        }
        let mut record = self.shared.publisher.known(self.record());
        record.machine.warnings = warnings;
        Ok(WorkerReply::Updated { record: Box::new(record), lease })
    }

    /// What an update can't change.
    fn check_replaceable(&self, new: &RawConfig) -> Result<(), ApiError> {
        if self.row.operation.as_ref().is_some_and(|operation| operation.kind == AUTO_DESTROY) {
            return Err(ApiError::precondition(
                "machine is about to be destroyed, refusing to update",
            ));
        }
        let volumes = |config: &RawConfig| {
            let mounts = config
                .field("mounts")
                .and_then(|mounts| mounts.as_array().cloned())
                .unwrap_or_default();
            mounts.iter().map(|mount| mount.get("volume").cloned()).collect::<Vec<_>>()
        };
        if volumes(&self.row.config) != volumes(new) {
            return Err(ApiError::invalid(
                "invalid config.mounts, the volume of a machine can't be changed",
            ));
        }
        Ok(())
    }

    fn take_on(&mut self, config: MachineConfig) {
        self.shared.uses(&self.row.id, &self.row.image);
        let mounts = config.mounts.as_deref().unwrap_or_default();
        self.shared.volumes.restore(&self.row.id, mounts);
        self.config = super::kept(config);
        self.shared.policies.knows(&self.row, &self.config);
    }

    /// The new version can't be had: the machine goes on with the one it had.
    pub(super) async fn revert(&mut self, replaced: Replaced, reason: String) {
        tracing::warn!(machine = %self.row.id, reason, "update abandoned");
        self.turns.end();
        // It was read before.
        let config = caddis_api::validate::read(&replaced.config).unwrap_or_default();
        self.shared.capacity.restore(&self.row.id, &config, self.row.addresses.ipv4);
        let has_vm = self.live.is_some();
        let stop = self.plan(None, None);
        self.change(Durability::Synced, |draft| {
            let Replaced { version, config, image, state, runs } = replaced.clone();
            draft.version(VersionChange::Forget(version.clone()));
            (draft.row.version, draft.row.config, draft.row.image) = (version, config, image);
            (draft.row.next, draft.row.operation, draft.row.replaced) = (None, None, None);
            let settled = if state.is_settled() { state } else { MachineState::Stopped };
            let shown = if runs { MachineState::Started } else { settled };
            draft.row.state = shown;
            draft.event(Source::Worker, "update", shown, json!({ "error": reason }));
            match state {
                MachineState::Suspending if has_vm => {
                    let failure = Some(reason.clone());
                    let cancel = CancelSuspend { failure, by_traffic: false };
                    let cancel = OperationKind::CancelSuspend(cancel);
                    draft.begin(cancel, Source::Worker);
                }
                MachineState::Started => {}
                // It was on its way.
                _ if runs => draft.begin(Start::because(StartReason::Update), Source::Worker),
                MachineState::Creating | MachineState::Pending => {
                    draft.begin(OperationKind::Create, Source::Worker)
                }
                _ if !state.is_settled() => {
                    draft.begin(OperationKind::Stop(Stop(stop.clone())), Source::Worker)
                }
                _ => {}
            }
        })
        .await;
        self.take_on(config);
    }
}

/// The end of a machine that goes away with its program.
const AUTO_DESTROY: OperationKind = OperationKind::Exit(Exit { then: restart::Verdict::Destroy });

fn recorded(row: &MachineRow) -> VersionRecord {
    VersionRecord {
        version: row.version.clone(),
        config: row.config.clone(),
        image: image_ref(&row.image.reference),
    }
}

/// What an update of this machine replaces.
fn replaced(row: &MachineRow) -> Replaced {
    use MachineState as S;
    let kind = row.operation.as_ref().map(|operation| &operation.kind);
    let runs = match (&row.next, row.state) {
        // What was asked for last decides.
        (Some(next), _) => next.rules().runs_afterwards(),
        // One that failed was to run.
        (None, S::Started | S::Starting | S::Restarting | S::Failed) => true,
        (None, S::Stopping) => {
            matches!(kind, Some(OperationKind::Exit(exit)) if exit.restarts())
        }
        (None, _) => false,
    };
    let (version, config, image) = (row.version.clone(), row.config.clone(), row.image.clone());
    Replaced { version, config, image, state: row.state, runs }
}
