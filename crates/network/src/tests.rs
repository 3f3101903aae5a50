//! Tests on a network of their own: each is in new network and mount namespaces, which are gone
//! with its thread.

mod egress;
mod matrix;
mod peers;
mod policies;
mod recovery;
mod refused;
mod services;

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Instant,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use tempfile::TempDir;

use crate::{MachineAddresses, Network, NetworkConfig, NetworkError};

/// Runs a test on a host of its own. Needs root.
pub(crate) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("these tests need root: sudo make test");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .unwrap();
        // Namespaces are mounted in directories of tests: all of it goes with this.
        mount(Some("tmpfs"), &std::env::temp_dir(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap();
        run("ip link set lo up");
        // Its threads are where this one is.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// What a command says, which must succeed.
#[track_caller]
pub(crate) fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An installation.
pub(crate) struct Place {
    pub(crate) data: TempDir,
    run: PathBuf,
}

impl Place {
    /// One on the host of the others.
    pub(crate) fn beside(run: &TempDir) -> Self {
        Self { data: tempfile::tempdir().unwrap(), run: run.path().join("networks") }
    }

    fn config(&self) -> NetworkConfig {
        NetworkConfig {
            data_directory: self.data.path().to_owned(),
            run_directory: self.run.clone(),
            state_file: self.state_file(),
            ipv4_pool: None,
            allowed: Vec::new(),
            egress_pools: Vec::new(),
            dns_upstreams: Vec::new(),
            names: None,
        }
    }

    fn state_file(&self) -> PathBuf {
        self.data.path().join("network.json")
    }

    pub(crate) async fn start(&self) -> Result<Network, NetworkError> {
        Network::start(self.config()).await
    }

    async fn clean(&self) -> Result<crate::Cleaned, NetworkError> {
        Network::clean(&self.run, self.data.path(), &self.state_file()).await
    }

    /// The same once its VMs are gone: what another test is just starting has their taps open until
    /// then.
    async fn cleaned(&self) {
        let begun = Instant::now();
        while let Err(error) = self.clean().await {
            assert!(
                matches!(error, NetworkError::InUse { .. }) && begun.elapsed().as_secs() < 60,
                "{error}"
            );
        }
    }

    /// All that is missing, as `caddis doctor` says it.
    async fn missing(&self) -> Vec<&'static str> {
        Network::inspect(&self.run, self.data.path(), &[]).await.unwrap().unwrap()
    }

    /// The pool, as `caddis doctor` says it.
    async fn pool(&self) -> Result<String, NetworkError> {
        let found = Network::find_pool(&self.run, self.data.path(), &self.state_file(), None).await;
        found.map(|pool| pool.to_string())
    }

    /// The same without what is noted of hosts.
    fn claims(&self) -> Vec<String> {
        self.files().into_iter().filter(|name| !name.starts_with("forwarding-")).collect()
    }

    /// Names of the files of all installations, but locks.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.run)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.filter(|name| !name.ends_with("lock")).collect();
        names.sort();
        names
    }
}

/// What stands for a VM: it has a file of the data directory and a tap open.
struct Vm(Child);

impl Vm {
    fn start(place: &Place, tap: OwnedFd) -> Self {
        let file = File::create(place.data.path().join("disk")).unwrap();
        Self(Command::new("sleep").arg("1000").stdin(file).stdout(tap).spawn().unwrap())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn machine() -> MachineAddresses {
    MachineAddresses {
        ipv4: [10, 201, 3, 4].into(),
        ipv6: "fdaa:0:5::7".parse().unwrap(),
        network: "fdaa:0:5::/48".parse().unwrap(),
        mac: "02:00:00:00:00:01".to_owned(),
    }
}
