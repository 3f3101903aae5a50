//! A real server: the built binary on a data directory of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};
use caddis_vmm::{cgroup::CgroupRoot, slot::SlotPoolConfig};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
};

use crate::{Api, DEADLINE, Host, Machine, Output, Terminal, process, target_directory};

/// How a server is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Registries, host and port, to be reached over plain HTTP.
    pub insecure_registries: Vec<String>,
    /// Further arguments of `caddis serve`.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: BTreeMap<String, String>,
    /// Most files that it may have open, not to be raised.
    pub open_files: Option<u64>,
    /// Beside another server of the same host: with a data directory and a port of its own.
    pub second: bool,
}

/// How long a server has to end by itself when it is dropped.
const GRACE: std::time::Duration = std::time::Duration::from_secs(8);

/// A server on a [`Host`]. Dropping it ends it and its VMs; when the test panicked, or with
/// `CADDIS_TEST_LOG` set, its log is printed.
#[derive(Debug)]
pub struct Server<'a> {
    host: &'a Host,
    options: Options,
    child: Option<Child>,
    api: Api,
}

impl<'a> Server<'a> {
    /// Where it listens.
    pub const LISTEN: &'static str = "127.0.0.1:4280";
    /// Where the second of a host does.
    pub const LISTEN_SECOND: &'static str = "127.0.0.1:4281";

    /// Starts a server and returns when it says that it is ready.
    ///
    /// # Errors
    /// When it isn't built (`make build-tests`), or ends before it is ready.
    pub async fn start(host: &'a Host, options: Options) -> Result<Self> {
        process::adopt_orphans();
        let api = Api::new(
            format!("http://{}", if options.second { Self::LISTEN_SECOND } else { Self::LISTEN }),
            None,
        )?;
        let mut server = Self { host, options, child: None, api };
        fs::write(server.boot_id_file(), "11111111-2222-4333-8444-555555555555\n")?;
        server.launch().await?;
        let token = fs::read_to_string(server.data_directory().join("root.token"))
            .context("reading the root token")?;
        server.api = server.api.with_token(Some(token.trim()))?;
        Ok(server)
    }

    /// Starts it again, after [`Self::kill`] or [`Self::terminate`].
    ///
    /// # Errors
    /// When it ends before it is ready.
    pub async fn launch(&mut self) -> Result<()> {
        // Ready is told as systemd is told: by a datagram (sd_notify(3)).
        let socket = self.path("notify");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).context("listening for the server's readiness")?;
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut child = self
            .command(&socket)?
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting caddis")?;
        let mut message = vec![0; 4096];
        let ready = async {
            loop {
                let length = notify.recv(&mut message).await?;
                if message
                    .get(..length)
                    .unwrap_or_default()
                    .split(|byte| *byte == b'\n')
                    .any(|line| line == b"READY=1")
                {
                    return anyhow::Ok(());
                }
            }
        };
        let outcome = tokio::select! {
            ready = tokio::time::timeout(DEADLINE, ready) => ready.context("caddis serve was not \
                ready in time")?,
            status = child.wait() => {
                bail!("caddis serve ended at start: {}\n{}", status?, self.log())
            }
        };
        self.child = Some(child);
        outcome
    }

    fn command(&self, notify: &Path) -> Result<Command> {
        // A test that is killed takes its server along.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(limit) = self.options.open_files {
            command.args(["prlimit", &format!("--nofile={limit}:{limit}")]);
        }
        command.arg(Self::binary()?).arg("serve");
        command.arg("--data-dir").arg(self.data_directory());
        command.args([
            "--listen",
            self.listen(),
            "--accelerator",
            &accelerator(),
            "--log-format",
            "text",
        ]);
        command.arg("--kernel").arg(kernel()?);
        for registry in &self.options.insecure_registries {
            command.args(["--insecure-registry", registry]);
        }
        command.args(&self.options.arguments);
        if std::env::var_os("CADDIS_LOG").is_none() {
            // With a line per request.
            command.env("CADDIS_LOG", "info,caddis_gateway=debug");
        }
        command.env("NOTIFY_SOCKET", notify).env("CADDIS_BOOT_ID_FILE", self.boot_id_file());
        command.env("DOCKER_CONFIG", self.host.path("docker")).env("HOME", self.host.directory());
        command.envs(&self.options.environment).stdin(Stdio::null());
        Ok(command)
    }

    /// Variables of a user on its host that runs the binary as the server is run.
    ///
    /// # Errors
    /// When there is no kernel.
    pub fn variables(&self) -> Result<BTreeMap<&'static str, String>> {
        Ok(BTreeMap::from([
            ("CADDIS_DATA_DIR", self.data_directory().display().to_string()),
            ("CADDIS_LISTEN", self.listen().to_owned()),
            ("CADDIS_ACCELERATOR", accelerator()),
            ("CADDIS_KERNEL", kernel()?.display().to_string()),
        ]))
    }

    /// The binary under test: `CADDIS_BINARY`, or the one cargo built beside this test.
    ///
    /// # Errors
    /// When it isn't built.
    pub fn binary() -> Result<PathBuf> {
        if let Some(path) = std::env::var_os("CADDIS_BINARY") {
            return Ok(path.into());
        }
        let test = std::env::current_exe().context("finding the test's own file")?;
        let path = test.ancestors().nth(2).context("finding the build directory")?.join("caddis");
        if !path.exists() {
            bail!("{} is not built: cargo build --workspace --bins", path.display());
        }
        Ok(path)
    }

    /// Its data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.path("data")
    }

    fn listen(&self) -> &'static str {
        if self.options.second { Self::LISTEN_SECOND } else { Self::LISTEN }
    }

    /// No path is the beginning of another's.
    fn path(&self, name: &str) -> PathBuf {
        self.host.path(&if self.options.second {
            format!("second-{name}")
        } else {
            name.to_owned()
        })
    }

    /// Where the network namespace of its machines is mounted.
    ///
    /// # Errors
    /// When it has none.
    pub fn namespace(&self) -> Result<PathBuf> {
        let directory = Path::new("/run/caddis/networks");
        let own = self.data_directory();
        let claims = fs::read_dir(directory).context("reading the claims of networks")?.flatten();
        let is_own = |path: &PathBuf| {
            fs::read(path).is_ok_and(|owner| owner == own.as_os_str().as_encoded_bytes())
        };
        let claim =
            claims.map(|entry| entry.path()).find(is_own).context("the server has no network")?;
        Ok(claim.with_extension("net"))
    }

    /// Runs a program in the network namespace of its machines.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_in_namespace(&self, words: &[&str]) -> Result<String> {
        let namespace = format!("--net={}", self.namespace()?.display());
        crate::run([&["nsenter", &namespace, "--"], words].concat())
    }

    /// What stands for `/proc/sys/kernel/random/boot_id`: writing another id makes the server
    /// believe in a reboot.
    pub fn boot_id_file(&self) -> PathBuf {
        self.path("boot_id")
    }

    fn log_file(&self) -> PathBuf {
        self.path("server.log")
    }

    /// What it wrote up to now.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// A client with the root token.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Waits until it has built a template, so that starts use it.
    ///
    /// # Errors
    /// When it has none in time.
    pub async fn templates(&self) -> Result<Vec<PathBuf>> {
        let is_template =
            |path: &PathBuf| path.extension().is_some_and(|ending| ending == "template");
        let look = || {
            let entries = fs::read_dir(self.data_directory().join("templates"))
                .into_iter()
                .flatten()
                .flatten();
            let found: Vec<_> = entries.map(|entry| entry.path()).filter(is_template).collect();
            // The file is there a moment before the server says that it starts from it.
            (!found.is_empty() && self.log().contains("template ready")).then_some(found)
        };
        eventually(look, || "the server has built no template".to_owned()).await
    }

    /// Waits until it has said so often that a template is ready.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn templates_ready(&self, times: usize) -> Result<()> {
        let ready = || (self.log().matches("template ready").count() >= times).then_some(());
        eventually(ready, || format!("the server has fewer templates than {times}")).await
    }

    /// A handle on a machine.
    pub fn machine(&self, app: &str, id: &str) -> Machine {
        Machine::new(self.api.clone(), app, id)
    }

    /// Runs the command line with this server's address and token.
    ///
    /// # Errors
    /// When it can't be run or does not end.
    pub async fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(Self::binary()?);
        self.as_client(command.args(arguments)).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, command.output()).await;
        Ok(output.with_context(|| format!("caddis {arguments:?} did not end"))??.into())
    }

    /// Begins a command line whose standard output and standard error are read while it runs.
    /// Dropping it kills it.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn begin_cli(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(Self::binary()?);
        self.as_client(command.args(arguments)).stdin(Stdio::null()).kill_on_drop(true);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the command line")
    }

    /// Runs the command line on a terminal.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn terminal(&self, arguments: &[&str], columns: u16, rows: u16) -> Result<Terminal> {
        let prepare = |command: &mut Command| {
            self.as_client(command.args(arguments)).env("TERM", "xterm");
        };
        Terminal::start(prepare, &Self::binary()?, columns, rows)
    }

    fn as_client<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("CADDIS_API_URL", self.api.url(""))
            .env("CADDIS_API_TOKEN", self.api.token().unwrap_or_default());
        command
            .env("HOME", self.host.directory())
            .env_remove("XDG_CONFIG_HOME")
            .env("NO_COLOR", "1")
    }

    /// Process id of the server.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self) -> Result<i32> {
        Ok(self
            .child
            .as_ref()
            .and_then(Child::id)
            .context("the server does not run")?
            .try_into()?)
    }

    /// Process ids of its machines' VMs.
    pub fn vms(&self) -> Vec<i32> {
        self.vms_in(&self.data_directory())
    }

    /// Waits until there is no VM of a machine: the kernel takes a moment to remove one that was
    /// killed.
    ///
    /// # Errors
    /// When there still is one after a while.
    pub async fn until_no_vm(&self) -> Result<()> {
        let look = || self.vms().is_empty().then_some(());
        eventually(look, || format!("VM processes {:?} are left", self.vms())).await
    }

    /// Process id of the VM of one machine.
    ///
    /// # Errors
    /// When there is not exactly one.
    pub fn vm(&self, machine: &Machine) -> Result<i32> {
        let mut found = self.vms();
        found.retain(|pid| {
            process::descriptors(*pid).iter().any(|(_, target)| target.contains(machine.id()))
        });
        match found[..] {
            [pid] => Ok(pid),
            _ => bail!("machine {} has VM processes {found:?}", machine.id()),
        }
    }

    fn vms_in(&self, directory: &Path) -> Vec<i32> {
        let is_vm =
            |pid: &i32| process::name(*pid).is_some_and(|name| name.starts_with("qemu-system"));
        let unbound = |pid: &i32| holds_any(*pid, &["/building-", "/waiting-"]);
        process::holders(directory).into_iter().filter(is_vm).filter(|pid| !unbound(pid)).collect()
    }

    /// Process ids of VMs that wait for a machine.
    pub fn waiting(&self) -> Vec<i32> {
        self.unbound("/waiting-")
    }

    fn unbound(&self, kind: &str) -> Vec<i32> {
        let holders = process::holders(&self.data_directory());
        holders.into_iter().filter(|pid| holds_any(*pid, &[kind])).collect()
    }

    /// Waits until a VM boots that is to become a template.
    ///
    /// # Errors
    /// When none does in time.
    pub async fn until_builds(&self) -> Result<()> {
        let look = || (!self.unbound("/building-").is_empty()).then_some(());
        eventually(look, || "the server builds no template".to_owned()).await
    }

    /// Waits until the log has told so many times that one more VM waits for a machine.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_pooled(&self, times: usize) -> Result<()> {
        self.until_logged("pool ready", times).await
    }

    /// Waits until the log has said this so many times.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until_logged(&self, text: &str, times: usize) -> Result<()> {
        let look = || (self.log().matches(text).count() >= times).then_some(());
        eventually(look, || format!("the log does not say '{text}' {times} times\n{}", self.log()))
            .await
    }

    /// `kill -9`; its VMs stay.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the server does not run")?;
        child.kill().await.context("killing the server")
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn terminate(&mut self) -> Result<ExitStatus> {
        kill(Pid::from_raw(self.pid()?), Signal::SIGTERM).context("signalling the server")?;
        let mut child = self.child.take().context("the server does not run")?;
        Ok(tokio::time::timeout(DEADLINE, child.wait())
            .await
            .context("the server does not end on SIGTERM")??)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.child.take().and_then(|child| child.id()) {
            // It waits for VMs that it has killed and whose processes are not gone yet: nobody else
            // finds those.
            let ended = !std::thread::panicking() && process::ends_in(pid.cast_signed(), GRACE);
            if !ended {
                process::end(pid.cast_signed());
            }
        }
        for pid in process::holders(&self.data_directory()) {
            process::end(pid);
        }
        // Fails as long as another test's VMs are there, and that is as well.
        let _ = CgroupRoot::remove(&SlotPoolConfig::default().cgroup_parent);
        if std::thread::panicking() || std::env::var_os("CADDIS_TEST_LOG").is_some() {
            eprintln!("---- log of the server ----\n{}---- end of the log ----", self.log());
        }
    }
}

/// Looks again and again until something is found, for as long as a busy machine may take: what is
/// looked for is told by nobody.
async fn eventually<T>(
    mut look: impl FnMut() -> Option<T>,
    failure: impl Fn() -> String,
) -> Result<T> {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if std::time::Instant::now() > deadline {
            bail!(failure());
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn holds_any(pid: i32, names: &[&str]) -> bool {
    process::descriptors(pid)
        .iter()
        .any(|(_, target)| names.iter().any(|name| target.contains(name)))
}

/// What runs guests in tests: `kvm` or `emulation`.
pub fn accelerator() -> String {
    std::env::var("CADDIS_TEST_ACCELERATOR").unwrap_or_else(|_| "emulation".into())
}

/// The kernel of VMs. Its modules are beside it, unless CADDIS_MODULES names others.
///
/// # Errors
/// When it is not there.
pub fn kernel() -> Result<PathBuf> {
    let kernel = std::env::var_os("CADDIS_KERNEL").map(PathBuf::from);
    let kernel = kernel.unwrap_or_else(|| target_directory().join("kernel/vmlinuz"));
    if !kernel.exists() {
        bail!("no {}: `make kernel` puts it there", kernel.display());
    }
    Ok(kernel)
}
