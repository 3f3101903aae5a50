//! What people would use instead: podman with crun and its bridge, in mount and network namespaces
//! of its own, so that its bridge and rules are gone with it.

use std::{path::Path, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{
    machine::{PROGRAM, READY},
    place::{CNI_STATE, Place},
};

/// Root lacks the right to raise limits on some hosts, and there podman's defaults fail.
pub const FLAGS: [&str; 5] =
    ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--cgroups=disabled"];
/// Nothing that is measured takes longer.
const DEADLINE: Duration = Duration::from_secs(120);

/// podman with stores of its own. Dropping it removes its containers.
#[derive(Debug)]
pub struct Rival {
    podman: Podman,
    image: String,
}

/// How podman is called: where, and with which store.
#[derive(Debug, Clone)]
pub struct Podman {
    place: Arc<Place>,
    store: Vec<String>,
}

impl Podman {
    /// A store in `directory`, used in a place.
    pub fn new(place: Arc<Place>, directory: &Path) -> Self {
        let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
        Self { place, store: vec!["--root".into(), path("root"), "--runroot".into(), path("run")] }
    }

    /// Starts podman there, ready to be read.
    fn spawn(&self, words: &[&str]) -> Result<Child> {
        let mut command = Command::new("podman");
        command.args(&self.store).args(words).process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let runtime = tokio::runtime::Handle::current();
        let spawned = self.place.run(move || {
            let _entered = runtime.enter();
            command.spawn()
        })?;
        spawned.context("starting podman; scripts/setup.sh podman crun catatonit installs it")
    }

    /// Runs podman to its end and gives what it said.
    ///
    /// # Errors
    /// When it fails.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let output = tokio::time::timeout(DEADLINE, self.spawn(words)?.wait_with_output()).await;
        let output = output.with_context(|| format!("podman {words:?} does not end"))??;
        ensure!(
            output.status.success(),
            "podman {words:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs podman attached until the program's first output; podman goes on as long as what is
    /// returned.
    ///
    /// # Errors
    /// When there is none, or another than expected.
    pub async fn first_output(&self, words: &[&str]) -> Result<Child> {
        let mut child = self.spawn(words)?;
        let mut lines = BufReader::new(child.stdout.take().context("podman's output")?).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        let line = line.with_context(|| format!("no output from podman {words:?}"))??;
        if line.as_deref() != Some(READY) {
            let output = child.wait_with_output().await?;
            bail!(
                "podman {words:?} says {line:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(child)
    }
}

impl Rival {
    /// Sets podman up with the image of an OCI layout.
    ///
    /// # Errors
    /// When it is not installed or does not work here.
    pub async fn start(work: &Path, layout: &Path) -> Result<Self> {
        std::fs::create_dir_all(CNI_STATE).with_context(|| format!("making {CNI_STATE}"))?;
        let podman = Podman::new(Arc::new(Place::containers()?), &work.join("podman"));
        let mut rival = Self { podman, image: String::new() };
        rival.image =
            rival.podman.run(&["pull", "--quiet", &format!("oci:{}", layout.display())]).await?;
        // The first one makes the bridge and fills caches.
        rival.create("first").await?;
        drop(rival.podman.first_output(&["start", "--attach", "first"]).await?);
        rival.clear().await?;
        Ok(rival)
    }

    /// podman.
    pub fn podman(&self) -> &Podman {
        &self.podman
    }

    /// Makes a container that runs [`PROGRAM`].
    ///
    /// # Errors
    /// When podman fails.
    pub async fn create(&self, name: &str) -> Result<()> {
        let create: Vec<_> =
            ["create", "--name", name].into_iter().chain(FLAGS).chain(self.program()).collect();
        self.podman.run(&create).await.map(drop)
    }

    /// What `podman run` is called with to do the same.
    pub fn run_words<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        ["run", "--rm", "--name", name].into_iter().chain(FLAGS).chain(self.program()).collect()
    }

    fn program(&self) -> [&str; 4] {
        [&self.image, "/bin/sh", "-c", PROGRAM]
    }

    /// Ends a container's program as a stop would, and waits until it is over.
    ///
    /// # Errors
    /// When podman fails.
    pub async fn end(&self, name: &str, mut attached: Child) -> Result<()> {
        self.podman.run(&["kill", "--signal", "INT", name]).await?;
        tokio::time::timeout(DEADLINE, attached.wait())
            .await
            .context("podman stays attached")??;
        Ok(())
    }

    /// Removes all containers.
    ///
    /// # Errors
    /// When podman fails.
    pub async fn clear(&self) -> Result<()> {
        self.podman.run(&["rm", "--all", "--force", "--time", "0"]).await.map(drop)
    }

    /// What it is, for the report.
    ///
    /// # Errors
    /// When podman fails.
    pub async fn describe(&self) -> Result<Value> {
        let info = self.podman.run(&["info", "--format", "json"]).await?;
        let info: Value = serde_json::from_str(&info).context("reading podman info")?;
        Ok(json!({
            "podman": info["version"]["Version"],
            "runtime": info["host"]["ociRuntime"]["version"]
                .as_str()
                .and_then(|text| text.lines().next()),
            "network": format!(
                "bridge, {}",
                info["host"]["networkBackend"].as_str().unwrap_or("cni")
            ),
            "storage": info["store"]["graphDriverName"],
            "flags": FLAGS.join(" "),
        }))
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let words = self
            .podman
            .store
            .iter()
            .map(String::as_str)
            .chain(["rm", "--all", "--force", "--time", "0"]);
        let mut command = std::process::Command::new("podman");
        command.args(words.collect::<Vec<_>>());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let removed = self.podman.place.run(move || command.stdin(Stdio::null()).output());
        if !matches!(&removed, Ok(Ok(output)) if output.status.success()) {
            eprintln!("removing containers: {removed:?}");
        }
        // Only if nobody else keeps anything there.
        let _ = std::fs::remove_dir(CNI_STATE);
    }
}
