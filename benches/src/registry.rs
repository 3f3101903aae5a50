//! Debian's `docker-registry`, in the network of a server.

use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result};

use crate::{place::Place, server_log::ServerLog};

/// Where it listens; in a network namespace of its own nobody else does.
pub const ADDRESS: &str = "127.0.0.1:5000";

/// A running registry; dropping it ends it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    place: Arc<Place>,
}

impl Registry {
    /// Starts one in a place, that keeps its blobs in `directory`, and returns when it listens.
    ///
    /// # Errors
    /// When `docker-registry` is missing or does not start.
    pub async fn start(place: &Arc<Place>, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let config = directory.join("config.yml");
        let blobs = directory.join("blobs");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \
             {ADDRESS}}}\n",
            blobs.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = place.run(move || command.spawn())?;
        let mut child = child.context("starting docker-registry; scripts/setup.sh installs it")?;
        let log = ServerLog::new(child.stderr.take().context("the registry's log")?);
        let registry = Self { child, place: place.clone() };
        log.wait(0, |line| line.contains("listening on"))
            .await
            .context("docker-registry did not start")?;
        Ok(registry)
    }

    /// Pushes the image of an OCI layout and gives its reference.
    ///
    /// # Errors
    /// When skopeo fails.
    pub async fn push(&self, layout: &Path, name: &str) -> Result<String> {
        let reference = format!("{ADDRESS}/{name}");
        let mut command = tokio::process::Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        command.arg(format!("oci:{}", layout.display())).arg(format!("docker://{reference}"));
        command
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let runtime = tokio::runtime::Handle::current();
        let child = self.place.run(move || {
            let _entered = runtime.enter();
            command.spawn()
        })?;
        let output = child
            .context("starting skopeo; scripts/setup.sh installs it")?
            .wait_with_output()
            .await?;
        anyhow::ensure!(
            output.status.success(),
            "skopeo: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(reference)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
