//! The machine as gateways see it.

use std::{collections::VecDeque, sync::Arc};

use caddis_api::{
    Machine, MachineConfig, MachineState, UnixMillis,
    event::MachineEvent,
    hold::Hold,
    machine::{ImageRef, Operation},
    time,
};
use caddis_bus::message::MachineRecord;
use caddis_image::{Digest, ImageReference, Progress};
use caddis_vmm::Isolation;

use crate::{
    checks,
    engine::Shared,
    event,
    live::HostReason,
    row::{MachineRow, RecordedHold},
    steps::Step,
};

/// Events that are published with the machine.
pub const RECENT_EVENTS: usize = 20;

/// The machine as it is recorded, with its configuration read, unless it is destroyed, its latest
/// events, the progress of its step, and why its host does not vouch for it.
pub fn record(
    shared: &Shared,
    row: &MachineRow,
    config: Option<&MachineConfig>,
    events: &VecDeque<Arc<MachineEvent>>,
    progress: &Progress,
    host: Option<HostReason>,
) -> MachineRecord {
    let machine = Machine {
        id: row.id.clone(),
        name: row.name.clone(),
        state: row.state,
        region: row.region.clone(),
        image_ref: image_ref(&row.image.reference),
        instance_id: row.version.clone(),
        version: row.version.clone(),
        private_ip: row.addresses.ipv6.to_string(),
        created_at: time::seconds(row.created_at.into()),
        updated_at: time::seconds(row.updated_at.into()),
        // Of a destroyed one it is read from the database, if anyone asks.
        config: (row.state != MachineState::Destroyed).then(|| row.config.clone()),
        incomplete_config: None,
        events: Some(events.iter().take(RECENT_EVENTS).cloned().collect()),
        checks: Some(config.map_or_else(Vec::new, |config| checks::statuses(row, config))),
        host_status: if host.is_some() { "unknown" } else { "ok" }.to_owned(),
        host_status_reason: host.map(|reason| reason.as_str().to_owned()),
        cordoned: row.cordoned,
        nonce: None,
        warnings: Vec::new(),
        lease: None,
        operation: operation(row, progress),
        hold: row.valid_hold(shared.clock.unix_now()).map(hold),
        isolation: Some(
            match shared.vmm.capabilities().isolation {
                Isolation::Hardware => "hardware",
                Isolation::Emulated => "emulated",
            }
            .to_owned(),
        ),
        start_kind: row.start_kind.clone(),
        private_ipv4: Some(row.addresses.ipv4.to_string()),
        image_size: Some(row.image.download_size),
    };
    MachineRecord {
        worker: shared.worker.clone(),
        epoch: row.placement_epoch,
        revision: row.revision,
        // The publisher knows it.
        config_revision: row.revision,
        app: row.app.clone(),
        launched: row.launched,
        booted_at: UnixMillis::new(row.boot),
        started_at: row.started_at,
        lease: row.public_lease(shared.clock.unix_now()),
        machine,
    }
}

/// An image as the API shows it.
pub fn image_ref(image: &ImageReference) -> ImageRef {
    ImageRef {
        registry: image.registry.clone(),
        repository: image.repository.clone(),
        tag: image.tag.clone(),
        digest: image.digest.as_ref().map(Digest::to_string).unwrap_or_default(),
        labels: image.labels.clone().filter(|labels| !labels.is_empty()),
    }
}

/// A hold as the API shows it.
pub fn hold(hold: &RecordedHold) -> Hold {
    Hold { until: time::milliseconds(hold.until.into()), reason: hold.reason.clone() }
}

fn operation(row: &MachineRow, progress: &Progress) -> Option<Operation> {
    let operation = row.operation.as_ref()?;
    let step = if progress.step.is_empty() {
        operation.current().map_or("finish", Step::as_str).to_owned()
    } else {
        progress.step.clone()
    };
    Some(Operation {
        kind: operation.kind.rules().name().to_owned(),
        step,
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        attempt: operation.attempt,
        started_at: time::milliseconds(operation.started_at.into()),
        deadline: time::milliseconds(operation.deadline.into()),
        last_error: operation.last_error.clone().map(event::bounded_text),
        retry_at: operation.waits_until().map(|at| time::milliseconds(at.into())),
    })
}
