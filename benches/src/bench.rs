//! What rows share: how often they measure, servers and rival, each begun when it is first needed.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context as _, Result};
use caddis_testkit::{images, process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    progress::progress,
    registry,
    report::Report,
    rival::Rival,
    server::{Pool, Server, accelerator},
};

/// Begin of the names of our directories, followed by the process id.
const PREFIX: &str = "caddis-bench-";

/// See the module's text. Everything ends when it is dropped, in the order of the fields.
#[derive(Debug)]
pub struct Bench {
    /// What was measured.
    pub report: Report,
    quick: bool,
    servers: Vec<(Pool, Rc<Server>)>,
    rival: Option<Rc<Rival>>,
    about: Value,
    work: TempDir,
}

impl Bench {
    /// Makes a directory, and ends what earlier ones left that were killed.
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn new(quick: bool) -> Result<Self> {
        sweep();
        // VMs run as other users, who must be able to pass.
        let work = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir()
            .context("making a directory")?;
        let about = json!({ "host": host()?, "accelerator": accelerator(), "quick": quick });
        Ok(Self { report: Report::default(), quick, servers: Vec::new(), rival: None, about, work })
    }

    /// `full` repetitions, or `quick` ones.
    pub fn repeat(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// Whether time is short.
    pub fn quick(&self) -> bool {
        self.quick
    }

    /// A directory for files, removed at the end.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// Where things are kept from one run to the next.
    pub fn kept() -> PathBuf {
        caddis_testkit::target_directory().join("bench")
    }

    /// The server with or without a pool.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn server(&mut self, pool: Pool) -> Result<Rc<Server>> {
        if let Some((_, server)) = self.servers.iter().find(|(of, _)| *of == pool) {
            return Ok(server.clone());
        }
        progress("starting a server and waiting for its template");
        let server = Rc::new(Server::start(self.work(), pool, registry::ADDRESS).await?);
        self.servers.push((pool, server.clone()));
        Ok(server)
    }

    /// podman.
    ///
    /// # Errors
    /// When it does not work.
    pub async fn rival(&mut self) -> Result<Rc<Rival>> {
        if let Some(rival) = &self.rival {
            return Ok(rival.clone());
        }
        progress("setting up podman");
        let rival = Rc::new(Rival::start(self.work(), &images::busybox()?).await?);
        self.about["rival"] = rival.describe().await?;
        self.rival = Some(rival.clone());
        Ok(rival)
    }

    /// Removes what a row left, so that the next one finds a quiet host.
    ///
    /// # Errors
    /// When something does not go.
    pub async fn clear(&mut self) -> Result<()> {
        for (_, server) in &self.servers {
            server.clear().await?;
        }
        match &self.rival {
            Some(rival) => rival.clear().await,
            None => Ok(()),
        }
    }

    /// Prints what the servers logged last: a row failed.
    pub fn show_logs(&self) {
        for (pool, server) in &self.servers {
            eprintln!(
                "---- log of the server, pool {pool:?} ----\n{}\n---- end of the log ----",
                server.log_tail()
            );
        }
    }

    /// Where and beside what was measured.
    pub fn about(&self) -> &Value {
        &self.about
    }
}

fn host() -> Result<Value> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let of = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key));
        line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let kib =
        meminfo.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    let qemu = caddis_testkit::run(["qemu-system-x86_64", "--version"])?;
    Ok(json!({
        "processors": std::thread::available_parallelism()?.get(),
        "model": of("model name"),
        "memory_gib": kib >> 20,
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "qemu": qemu.lines().next(),
    }))
}

/// Ends what benchmarks left that were killed.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
            process::holders(&entry.path()).into_iter().for_each(process::end);
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
