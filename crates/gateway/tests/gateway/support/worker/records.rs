//! Records of machines that were never run.

use std::sync::Arc;

use caddis_api::{
    EventId, LeaseNonce, Machine, MachineId, MachineState, UnixMillis, VersionId, WorkerId,
    event::MachineEvent,
    lease::Lease,
    machine::{ImageRef, Operation},
};
use caddis_bus::message::{CreateMachine, MachineRecord, VersionRecord};

pub fn version(record: &MachineRecord) -> VersionRecord {
    let machine = record.machine.clone();
    VersionRecord {
        version: machine.version,
        config: machine.config.unwrap(),
        image: machine.image_ref,
    }
}

/// Puts a state and an event into a record.
pub fn enter(record: &mut MachineRecord, state: MachineState, kind: &str) {
    record.machine.state = state;
    record.launched |= state == MachineState::Started;
    let events = record.machine.events.get_or_insert_default();
    let timestamp = UnixMillis::new(1_700_000_000_000);
    let id = EventId::following(events.first().map(|event| &event.id), timestamp);
    let event = MachineEvent {
        id,
        kind: kind.to_owned(),
        status: state.to_string(),
        source: "user".to_owned(),
        timestamp,
        request: None,
        details: None,
    };
    events.insert(0, Arc::new(event));
}

pub fn lease(id: &MachineId, ttl: u64, owner: String, description: &str) -> Lease {
    Lease {
        nonce: LeaseNonce::from_trusted(format!("n{}", &id.as_str()[..11])),
        expires_at: 4_000_000_000 + ttl,
        owner,
        description: description.to_owned(),
        version: VersionId::generate(),
    }
}

pub fn new_record(worker: &WorkerId, create: CreateMachine) -> MachineRecord {
    let version = VersionId::generate();
    let mut record = MachineRecord {
        worker: worker.clone(),
        epoch: create.placement_epoch,
        revision: 1,
        config_revision: 1,
        app: create.app,
        launched: false,
        booted_at: UnixMillis::EPOCH,
        started_at: UnixMillis::EPOCH,
        lease: None,
        machine: Machine {
            id: create.id,
            name: create.name,
            state: MachineState::Creating,
            region: create.region,
            image_ref: ImageRef::default(),
            instance_id: version.clone(),
            version,
            private_ip: create.ipv6.to_string(),
            created_at: "2026-03-31T06:08:08Z".to_owned(),
            updated_at: "2026-03-31T06:08:08Z".to_owned(),
            config: Some(create.config),
            incomplete_config: None,
            events: Some(Vec::new()),
            checks: None,
            host_status: "ok".to_owned(),
            host_status_reason: None,
            cordoned: create.cordoned,
            nonce: None,
            warnings: Vec::new(),
            lease: None,
            operation: Some(operation("pull", 0)),
            hold: None,
            isolation: None,
            start_kind: None,
            private_ipv4: None,
            image_size: None,
        },
    };
    enter(&mut record, MachineState::Creating, "launch");
    record
}

pub fn operation(step: &str, bytes_done: u64) -> Operation {
    Operation {
        kind: "create".to_owned(),
        step: step.to_owned(),
        bytes_done,
        bytes_total: 100,
        attempt: 1,
        started_at: "2026-03-31T06:08:08.000Z".to_owned(),
        deadline: "2026-03-31T06:18:08.000Z".to_owned(),
        last_error: None,
        retry_at: None,
    }
}
