//! `caddis serve` on a data directory and in a network of its own.

use std::{
    cell::Cell,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use caddis_testkit::{process, target_directory};
use hyper::Method;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    http::Http,
    machine::{APP, Machine, PROGRAM, config},
    place::Place,
    server_log::ServerLog,
};

/// Whether restored VMs wait for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// At most [`Pool::SIZE`].
    On,
    /// None.
    Off,
}

impl Pool {
    /// How many may wait where any do.
    pub const SIZE: usize = 2;

    fn size(self) -> usize {
        match self {
            Self::On => Self::SIZE,
            Self::Off => 0,
        }
    }
}

/// Size of an XFS, bytes; its file takes what is written.
const XFS_BYTES: u64 = 128 << 30;
/// Name of the image that most machines run.
pub const IMAGE: &str = "busybox";

/// A server. Dropping it stops its machines and removes all that it left.
#[derive(Debug)]
pub struct Server {
    place: Arc<Place>,
    child: Child,
    data: PathBuf,
    http: Http,
    log: ServerLog,
    pool: Pool,
    /// How long the log was before a VM was last taken out of the pool.
    taken: Cell<usize>,
}

impl Server {
    /// Starts one in `work` and returns when it has a template and the image [`IMAGE`].
    ///
    /// # Errors
    /// When it is not built or ends.
    pub async fn start(work: &Path, pool: Pool, registry: &str) -> Result<Self> {
        let data = work.join(if pool == Pool::On { "pool" } else { "no-pool" });
        Self::start_in(Place::network()?, data, pool, registry, &[]).await
    }

    /// Starts one with a pool whose volumes are on an XFS in a file, which only it sees: files of
    /// that share what they have in common.
    ///
    /// # Errors
    /// When there can be no XFS, and as [`Self::start`].
    pub async fn with_reflinks(work: &Path, registry: &str) -> Result<Self> {
        let (place, data) = (Place::network()?, work.join("reflinks"));
        let (disk, volumes) = (work.join("xfs"), data.join("volumes"));
        place.run(move || {
            std::fs::create_dir_all(&volumes)?;
            std::fs::File::create(&disk)?.set_len(XFS_BYTES)?;
            let (disk, volumes) = (disk.to_string_lossy(), volumes.to_string_lossy());
            caddis_testkit::run(["mkfs.xfs", "-q", "-m", "reflink=1", &disk])?;
            // Gone with the last process that sees it.
            caddis_testkit::run(["mount", "-o", "loop", &disk, &volumes]).map(drop)
        })??;
        // It looks at the disk of its data, where they are not.
        Self::start_in(place, data, Pool::On, registry, &["--volume-gb", "1000"]).await
    }

    async fn start_in(
        place: Place,
        data: PathBuf,
        pool: Pool,
        registry: &str,
        more: &[&str],
    ) -> Result<Self> {
        let place = Arc::new(place);
        let mut command = Command::new(binary()?);
        command
            .arg("serve")
            .arg("--data-dir")
            .arg(&data)
            .args(["--pool", &pool.size().to_string()]);
        command.args([
            "--listen",
            "127.0.0.1:4280",
            "--accelerator",
            accelerator(),
            "--insecure-registry",
            registry,
        ]);
        // 50 machines at once are to be measured, not refused.
        command.args(["--cpu-overcommit", "100", "--memory-mb", "100000"]).args(more);
        command.arg("--kernel").arg(kernel()?);
        // A Ctrl-C is for us, who then stop it in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = place.run(move || command.spawn())?.context("starting caddis serve")?;
        let log = ServerLog::new(child.stderr.take().context("the server's log")?);
        let address: SocketAddr = ([127, 0, 0, 1], 4280).into();
        let http = Http::new(place.clone(), address, "");
        let mut server = Self { place, child, data, http, log, pool, taken: Cell::default() };
        server
            .log
            .wait(0, |line| line.contains("listening on"))
            .await
            .context("caddis serve did not start")?;
        let token = std::fs::read_to_string(server.data.join("root.token"))
            .context("reading the root token")?;
        server.http = Http::new(server.place.clone(), address, token.trim());
        server.prepare().await.with_context(|| format!("its log:\n{}", server.log.tail()))?;
        Ok(server)
    }

    async fn prepare(&self) -> Result<()> {
        let app = json!({ "app_name": APP, "org_slug": "personal" }).to_string();
        self.http.send(Method::POST, "/v1/apps", &app).await?;
        let layout = caddis_testkit::images::busybox()?;
        let source = format!("oci:{}", layout.display());
        self.caddis([
            "image",
            "import",
            &source,
            "--name",
            IMAGE,
            "--api-url",
            "http://127.0.0.1:4280",
        ])?;
        self.log
            .wait(0, |line| line.contains("template ready"))
            .await
            .context("there is no template")?;
        // The first start reads what later ones find in memory.
        self.before_start();
        let machine = Machine::create(&self.http, &config(IMAGE, PROGRAM)).await?;
        machine.first_output(String::new()).await?;
        machine.destroy().await
    }

    /// To be called before each start and create: from then on the pool is not full before it says
    /// so anew.
    pub fn before_start(&self) {
        self.taken.set(self.log.len());
    }

    /// Waits until as many restored VMs wait for a machine as may; at once where there is no pool.
    ///
    /// # Errors
    /// When the server does not say so in time.
    pub async fn pool_full(&self) -> Result<()> {
        if self.pool == Pool::Off {
            return Ok(());
        }
        let number = |line: &str, key: &str| {
            line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse::<usize>().ok())
        };
        let is_full = |line: &str| {
            let waiting = number(line, "waiting=");
            line.contains("pool ready") && waiting.is_some() && waiting >= number(line, "wanted=")
        };
        self.log
            .wait(self.taken.get(), is_full)
            .await
            .map(drop)
            .context("the pool did not get full")
    }

    /// The last lines of its log, for whoever has to find out what went wrong.
    pub fn log_tail(&self) -> String {
        self.log.tail()
    }

    /// Client of its API.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Its network.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Removes all machines.
    ///
    /// # Errors
    /// When one does not go.
    pub async fn clear(&self) -> Result<()> {
        let machines = self
            .http
            .send(Method::GET, &format!("/v1/apps/{APP}/machines?summary=true"), "")
            .await?;
        let machines = crate::machine::json(&machines)?;
        let ids =
            machines.as_array().into_iter().flatten().filter_map(|machine| machine["id"].as_str());
        let machines: Vec<_> = ids.map(|id| Machine::known(&self.http, id)).collect();
        futures::future::try_join_all(machines.iter().map(Machine::destroy)).await.map(drop)
    }

    fn caddis<const N: usize>(&self, arguments: [&str; N]) -> Result<()> {
        let words: Vec<_> =
            std::iter::once(binary()?.into_os_string()).chain(arguments.map(Into::into)).collect();
        let token = self.data.join("root.token");
        self.place.run(move || {
            let mut command = Command::new(&words[0]);
            command
                .args(&words[1..])
                .env("CADDIS_API_TOKEN", std::fs::read_to_string(token)?.trim());
            let output = command.process_group(0).stdin(Stdio::null()).output()?;
            ensure!(
                output.status.success(),
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok(())
        })?
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.data.to_string_lossy().into_owned();
        // Each of these is tried, whatever came of the one before: the last takes what they left.
        let drained = self.caddis(["host", "drain", "--timeout", "20", "--data-dir", &data]);
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
        if let Err(error) =
            drained.and_then(|()| self.caddis(["host", "clean", "--data-dir", &data]))
        {
            eprintln!("cleaning up after a server: {error:#}");
        }
        process::holders(&self.data).into_iter().for_each(process::end);
    }
}

/// What runs VMs, as the tests are told.
pub fn accelerator() -> &'static str {
    if std::env::var_os("CADDIS_TEST_ACCELERATOR").is_some_and(|value| value == "kvm") {
        "kvm"
    } else {
        "emulation"
    }
}

/// The kernel that VMs boot, with its modules beside it: Debian's, unless make was told otherwise.
fn kernel() -> Result<PathBuf> {
    let debian = || target_directory().join("kernel/vmlinuz");
    let path = std::env::var_os("CADDIS_KERNEL").map_or_else(debian, PathBuf::from);
    ensure!(path.exists(), "no {}: `make kernel` fetches it", path.display());
    Ok(path)
}

/// The program under measurement, built in the same way as this one.
fn binary() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding our own file")?.with_file_name("caddis");
    if !path.exists() {
        bail!("{} is not built: make build", path.display());
    }
    Ok(path)
}
