//! A store in a temporary directory, and the real tools to look at its disks with.
#![allow(dead_code, reason = "each test uses some of it")]

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use caddis_volume::{
    Filesystem, InstallationKey, NewCopy, NewVolume, SizeGib, StoreConfig, Volume, VolumeError,
    VolumeId, VolumeKey, VolumeStore, Writer,
};
use jiff::Timestamp;
use tempfile::TempDir;

pub fn id(text: &str) -> VolumeId {
    text.parse().unwrap()
}

pub fn key() -> InstallationKey {
    InstallationKey::new([7; 32], "one")
}

pub fn gib(size: u32) -> SizeGib {
    SizeGib::new(size).unwrap()
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

pub struct Host {
    pub directory: TempDir,
    pub config: StoreConfig,
    pub store: VolumeStore,
}

impl Host {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// With a directory of a plain name, `volumes`.
    pub fn plain() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(directory.path().join("volumes"), key());
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    /// The same with another configuration.
    pub fn reopen_with(mut self, change: impl FnOnce(&mut StoreConfig)) -> Self {
        change(&mut self.config);
        self.reopen()
    }

    pub fn with(change: impl FnOnce(&mut StoreConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // A name that the tools have to be told of with care.
        let volumes = directory.path().join("a,b \"c\"=d/volumes");
        let mut config = StoreConfig::new(volumes, key());
        change(&mut config);
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    pub fn reopen(self) -> Self {
        let Self { directory, config, store } = self;
        drop(store);
        let store = VolumeStore::open(config.clone()).unwrap();
        Self { directory, config, store }
    }

    pub async fn create(
        &self,
        name: &str,
        size: u32,
        filesystem: Filesystem,
        encrypted: bool,
    ) -> Result<Volume, VolumeError> {
        let (id, size, created_at) = (id(name), gib(size), at(0));
        self.store.create(NewVolume { id, size, filesystem, encrypted, created_at }).await
    }

    /// A plain one without a file system, which is quick to make.
    pub async fn raw(&self, name: &str, size: u32) -> VolumeId {
        self.create(name, size, Filesystem::Raw, false).await.unwrap().id
    }

    pub fn place(&self, name: &str) -> PathBuf {
        self.config.directory.join("volumes").join(name)
    }

    pub fn trash(&self, name: &str) -> PathBuf {
        self.config.directory.join("trash").join(name)
    }

    pub fn disk(&self, name: &str) -> PathBuf {
        self.place(name).join("disk.qcow2")
    }

    /// What is below the directory of the volumes, but for what is always there.
    pub fn contents(&self) -> Vec<String> {
        ["volumes", "trash", "tmp"].iter().flat_map(|name| self.names(name)).collect()
    }

    pub fn names(&self, directory: &str) -> Vec<String> {
        let path = self.config.directory.join(directory);
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| format!("{directory}/{}", entry.unwrap().file_name().to_str().unwrap()))
            .collect();
        names.sort();
        names
    }

    /// Opens a volume, once whatever a process had of it is gone.
    pub async fn open_soon(&self, volume: &VolumeId) -> Writer {
        loop {
            match self.store.open_writer(volume, "a test").await {
                Err(VolumeError::InUse { .. }) => tokio::task::yield_now().await,
                opened => return opened.unwrap(),
            }
        }
    }

    /// Its disk as QEMU has to be told to open it, with a secret in a file.
    pub async fn node(&self, volume: &VolumeId) -> Node {
        let writer = self.store.open_writer(volume, "a test").await.unwrap();
        let node = Node::new(writer.path(), writer.key(), self.directory.path());
        writer.release();
        node
    }
}

pub fn copy_to(name: &str, size: Option<u32>) -> NewCopy {
    NewCopy { id: id(name), size: size.map(gib), created_at: at(0) }
}

/// A disk for QEMU's tools.
pub struct Node {
    pub secret: Option<String>,
    pub json: String,
}

impl Node {
    pub fn new(disk: &Path, key: Option<&VolumeKey>, scratch: &Path) -> Self {
        let file = serde_json::json!({ "driver": "file", "filename": disk.to_str().unwrap() });
        let mut node = serde_json::json!({ "driver": "qcow2", "file": file });
        let secret = key.map(|key| {
            node["encrypt"] = serde_json::json!({ "format": "luks", "key-secret": "k" });
            let (_, path) = tempfile::NamedTempFile::new_in(scratch).unwrap().keep().unwrap();
            fs::write(&path, key.passphrase().as_bytes()).unwrap();
            format!("secret,id=k,file={},format=raw", path.to_str().unwrap())
        });
        Self { secret, json: format!("json:{node}") }
    }

    fn object(&self) -> Vec<&str> {
        self.secret.iter().flat_map(|secret| ["--object", secret]).collect()
    }

    /// Runs commands of qemu-io.
    pub fn io(&self, commands: &[&str]) -> Output {
        let mut command = Command::new("qemu-io");
        command.args(self.object());
        for text in commands {
            command.args(["-c", text]);
        }
        command.arg(&self.json).output().expect("needs qemu-utils: apt-get install qemu-utils")
    }

    pub fn write(&self, pattern: u8, offset: &str, length: &str) {
        let output = self.io(&[&format!("write -P {pattern} {offset} {length}"), "flush"]);
        expect_success(&output);
    }

    /// Whether all bytes of a place have this value.
    pub fn has(&self, pattern: u8, offset: &str, length: &str) -> bool {
        let output = self.io(&[&format!("read -P {pattern} {offset} {length}")]);
        output.status.success()
            && !String::from_utf8_lossy(&output.stdout).contains("verification failed")
    }

    /// The whole disk, in the clear.
    pub fn to_raw(&self, path: &Path) {
        let mut command = Command::new("qemu-img");
        command.arg("convert").args(self.object()).args(["-O", "raw", &self.json]).arg(path);
        expect_success(&command.output().unwrap());
    }
}

pub fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    expect_success(&output);
    String::from_utf8(output.stdout).unwrap()
}

pub fn expect_success(output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}{}", String::from_utf8_lossy(&output.stdout));
}
