//! Volumes of the host.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::PathBuf, process::Command, time::Duration};

use caddis_api::{
    ApiError, AppName, MachineId, RawConfig, RegionCode, Volume, VolumeId,
    volume::{Filesystem, VolumeState},
};
use caddis_bus::{
    Bus as _, Published,
    message::{
        ANNOUNCEMENTS, CreateVolume, UpdateMachine, VolumeAction, VolumeRecord, WorkerReply,
        WorkerRequest,
    },
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Fixture, TIMEOUT};

/// A new volume of 1 GiB, in the clear.
pub fn new_volume() -> CreateVolume {
    CreateVolume {
        id: VolumeId::random(),
        name: "data".to_owned(),
        app: AppName::from_trusted("app"),
        region: RegionCode::from_trusted("local"),
        size_gb: 1,
        encrypted: false,
        filesystem: Filesystem::Ext4,
        source: None,
        org: "personal".to_owned(),
        snapshot: None,
        snapshot_retention: 5,
        auto_backup_enabled: true,
    }
}

/// A configuration with this volume.
pub fn mounted(volume: &VolumeId) -> Value {
    json!({ "mounts": [{ "volume": volume, "path": "/data" }] })
}

impl Fixture {
    /// Asks for a volume.
    pub async fn create_volume(&self, create: CreateVolume) -> Result<Volume, ApiError> {
        self.about_volume(WorkerRequest::CreateVolume(Box::new(create))).await
    }

    /// A volume that is there.
    pub async fn created_volume(&self) -> VolumeId {
        let id = self.create_volume(new_volume()).await.unwrap().id;
        self.until_volume(&id, |volume| volume.state == VolumeState::Created).await;
        id
    }

    /// Changes a volume.
    pub async fn act_on(&self, id: &VolumeId, action: VolumeAction) -> Result<Volume, ApiError> {
        self.about_volume(WorkerRequest::ActOnVolume { volume: id.clone(), action }).await
    }

    /// A volume, as its machine tells it.
    pub async fn volume(&self, id: &VolumeId) -> Result<Volume, ApiError> {
        self.about_volume(WorkerRequest::GetVolume { volume: id.clone() }).await
    }

    async fn about_volume(&self, request: WorkerRequest) -> Result<Volume, ApiError> {
        match self.ask(request).await? {
            WorkerReply::Volume { record } => Ok(record.volume),
            other => panic!("{other:?}"),
        }
    }

    /// All volumes, and the number of the last change.
    pub async fn volume_records(&self) -> (Vec<VolumeRecord>, u64) {
        match self.ask(WorkerRequest::ListVolumes { after: None }).await.unwrap() {
            WorkerReply::Volumes { records, more: false, revision, .. } => (records, revision),
            other => panic!("{other:?}"),
        }
    }

    /// What the worker announces from now on.
    pub async fn announcements(&self) -> mpsc::Receiver<Published> {
        self.bus.subscribe(ANNOUNCEMENTS).await.unwrap()
    }

    /// All volumes.
    pub async fn volumes(&self) -> Vec<Volume> {
        self.volume_records().await.0.into_iter().map(|record| record.volume).collect()
    }

    /// Waits until this holds of the volumes, which is looked at when the worker announces a
    /// change.
    pub async fn until_volumes(&self, what: &str, holds: impl Fn(&[Volume]) -> bool) {
        let mut announcements = self.announcements().await;
        let found = async {
            while !holds(&self.volumes().await) {
                announcements.recv().await.unwrap();
            }
        };
        if tokio::time::timeout(TIMEOUT, found).await.is_err() {
            panic!("{what}: not reached: {:#?}", self.volumes().await);
        }
    }

    /// Waits until this holds of a volume.
    pub async fn until_volume(&self, id: &VolumeId, holds: impl Fn(&Volume) -> bool) -> Volume {
        let find = |volumes: &[Volume]| volumes.iter().find(|volume| volume.id == *id).cloned();
        self.until_volumes(id.as_str(), |volumes| find(volumes).is_some_and(|v| holds(&v))).await;
        find(&self.volumes().await).unwrap()
    }

    /// The same, while time passes.
    pub async fn until_volumes_in_time(&self, holds: impl Fn(&[Volume]) -> bool) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        while !holds(&self.volumes().await) {
            assert!(tokio::time::Instant::now() < deadline, "{:#?}", self.volumes().await);
            self.clock.advance(Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Has a worker that makes no volume before [`Fixture::let_volumes_be_made`].
    pub async fn restart_making_no_volumes(&mut self) {
        self.end().await;
        let path = |name: &str| self.directory.path().join(name);
        let (gate, script, program) = (path("gate"), path("script"), path("qemu-img"));
        nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let text = format!(
            "#!/bin/sh\n[ ! -p {gate} ] || read -r line <{gate}\nexec qemu-img \"$@\"\n",
            gate = gate.display()
        );
        // Written by another process: who forks while we have it open for writing would keep it
        // busy.
        fs::write(&script, text).unwrap();
        let mut install = Command::new("install");
        assert!(install.arg("-m755").args([&script, &program]).status().unwrap().success());
        self.qemu_img = Some(program);
        self.start().await;
    }

    /// From now on.
    pub fn let_volumes_be_made(&self) {
        let gate = self.directory.path().join("gate");
        // Open for both it waits for nobody.
        let opened = fs::File::options().read(true).write(true).open(&gate).unwrap();
        fs::remove_file(&gate).unwrap();
        drop(opened);
    }

    /// Where the files of volumes are.
    pub fn volume_files(&self, id: &VolumeId) -> PathBuf {
        self.directory.path().join("volumes/volumes").join(id.as_str())
    }

    /// Gives a machine another configuration.
    pub async fn update_to(
        &self,
        machine: &MachineId,
        config: RawConfig,
    ) -> Result<WorkerReply, ApiError> {
        let update = UpdateMachine {
            config,
            version: None,
            expected: None,
            skip_launch: false,
            cordoned: false,
            lease: None,
        };
        let (machine, update) = (machine.clone(), Box::new(update));
        self.ask(WorkerRequest::Update { machine, nonce: None, update }).await
    }

    /// No machine has a volume, and nobody has it open: all can be deleted.
    pub async fn assert_volumes_are_free(&self, name: &str) {
        for volume in self.volumes().await {
            assert_eq!(volume.attached_machine_id, None, "{name}");
            let deleted = self.act_on(&volume.id, VolumeAction::Delete).await;
            assert_eq!(deleted.unwrap().state, VolumeState::PendingDestroy, "{name}");
        }
    }
}
