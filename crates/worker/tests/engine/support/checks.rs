//! What must hold of a host and its machines.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, time::Duration};

use caddis_api::{MachineId, MachineState, RegionCode, event::MachineEvent};
use caddis_bus::{
    AskWindow, Bus as _,
    message::{Offer, Question, decode, encode, region_subject},
};
use serde_json::Value;

use super::{Fixture, MEMORY_MIB, TIMEOUT};

/// Whether an event is to be seen in the log.
fn is_told(event: &MachineEvent) -> bool {
    let has = |key: &str| event.told().get(key).is_some();
    let reached = ["started", "suspended"].contains(&event.status.as_str());
    let by_traffic = event.source == "proxy" && event.kind == "start";
    event.kind == "exit"
        || has("error")
        || has("message")
        || has("delay_ms")
        || has("reason")
        || (by_traffic && event.status == "starting")
        || (reached && ["start", "restart", "suspend"].contains(&event.kind.as_str()))
}

impl Fixture {
    /// What the host holds is what this machine needs in its state, and no more; it is the only one
    /// there is.
    pub async fn assert_all_fits(&self, machine: &MachineId, name: &str) {
        assert_eq!(self.host.collisions(), 0, "{name}: a second VM was to be launched");
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let record = self.record(machine).unwrap().machine;
            let (state, is_settled) =
                (record.state, record.operation.is_none() && record.state.is_settled());
            let runs = usize::from(state == MachineState::Started);
            let keeps =
                usize::from(matches!(state, MachineState::Started | MachineState::Suspended));
            let files = |file: &str| usize::from(self.file(machine, file).exists());
            let slots = self.slots.as_ref().unwrap().list().unwrap().len();
            let found =
                [self.host.running().len(), self.network.taps().len(), slots, files("root.qcow2")];
            let saved = files("memory.snapshot");
            let exists = state != MachineState::Destroyed;
            let promised = self.promised().await;
            let fits = found == [runs, runs, runs, keeps]
                && saved == usize::from(state == MachineState::Suspended)
                && (promised > 0) == exists
                && (exists || !self.file(machine, "").exists());
            if is_settled && fits {
                break;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name}: {state} with [VMs, taps, slots, overlays] {found:?}, {saved} snapshots, \
                 {promised} MiB promised"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let ids: Vec<_> = self.events(machine).await.into_iter().map(|event| event.id).collect();
        assert!(
            ids.windows(2).all(|pair| pair[0] > pair[1]),
            "{name}: events are not numbered one after the other"
        );
        self.assert_log_tells_all(machine, name).await;
    }

    /// The lines of a machine's log that its host has written, with the events they tell of.
    pub fn own_lines(&self, machine: &MachineId) -> Vec<(String, String)> {
        let directory = self.directory.path().join("worker/logs").join(machine.as_str());
        let mut files: Vec<_> = fs::read_dir(directory)
            .into_iter()
            .flatten()
            .map(|file| file.unwrap().path())
            .collect();
        files.sort();
        let text: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let own =
            |line: Value| Some((line["e"].as_str()?.to_owned(), line["m"].as_str()?.to_owned()));
        lines.filter_map(own).collect()
    }

    /// Its log tells of each event that matters once, in their order.
    pub async fn assert_log_tells_all(&self, machine: &MachineId, name: &str) {
        let events = self.events(machine).await;
        let oldest = events.last().map_or(String::new(), |event| event.id.to_string());
        let expected: Vec<_> =
            events.iter().rev().filter(|event| is_told(event)).map(|e| e.id.to_string()).collect();
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let lines = self.own_lines(machine);
            let mut told: Vec<_> =
                lines.iter().map(|(event, _)| event.clone()).filter(|id| *id >= oldest).collect();
            told.dedup();
            if told == expected {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{name}: the log tells {lines:#?} of {events:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All that the host runs is what these machines need.
    pub fn holds_what_runs(&self, machines: &[MachineId]) -> bool {
        let started = |machine: &&MachineId| {
            self.record(machine).unwrap().machine.state == MachineState::Started
        };
        let mut started: Vec<_> =
            machines.iter().filter(started).map(ToString::to_string).collect();
        let mut running = self.host.running();
        started.sort();
        running.sort();
        let slots = self.slots.as_ref().unwrap().list().unwrap().len();
        running == started && [self.network.taps().len(), slots] == [started.len(); 2]
    }

    /// Memory promised to machines, MiB.
    async fn promised(&self) -> u64 {
        MEMORY_MIB - self.asked_for(0).await.free_memory_mib
    }

    /// Whether a volume of so many GiB fits, and the space for volumes that is left.
    pub async fn offer(&self, volume_gib: u64) -> (bool, Option<u64>) {
        let offer = self.asked_for(volume_gib).await;
        (offer.fits, offer.free_volume_gib)
    }

    async fn asked_for(&self, volume_gib: u64) -> Offer {
        let image = "image".to_owned();
        let question = Question::Place { cpus: 0, memory_mib: 0, disk_gib: 0, volume_gib, image };
        let (bus, window) =
            (self.bus.clone(), AskWindow { quiet: Duration::from_secs(5), deadline: TIMEOUT });
        let asked = async move {
            bus.ask_all(
                &region_subject(&RegionCode::from_trusted("local")),
                encode(&question),
                window,
            )
            .await
        };
        decode("offer", &self.in_worker(asked).await.unwrap()[0]).unwrap()
    }

    /// Nothing of any machine is there, or only what was killed.
    pub async fn assert_nothing_runs(&self) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while !self.host.running().is_empty() || !self.network.taps().is_empty() {
            let (vms, taps) = (self.host.running(), self.network.taps());
            assert!(
                tokio::time::Instant::now() < deadline,
                "left are the VMs of {vms:?} and the taps {taps:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
