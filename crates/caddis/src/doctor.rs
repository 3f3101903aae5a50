//! `caddis doctor`: whether this host can run VMs, and what to do where it can't.

use std::{
    io,
    net::TcpListener,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::Result;
use caddis_vmm::{
    boot::{self, BootSource},
    cgroup::{CgroupRoot, Version},
    probe::probe,
    qemu,
    slot::SlotPoolConfig,
};
use clap::Args;
use serde::Serialize;

use self::server::Server;
use crate::{
    failure,
    installation_key::InstallationKey,
    instance, print,
    settings::{AcceleratorChoice, ServeArguments, Settings, default_volume_gib},
};

mod network;
mod served;
mod server;
mod services;
mod snapshots;
mod wireguard;

/// What has not been tested by the project. KVM, a live systemd and cgroup v2 are tested on an
/// emulated AMD processor (`make test-host`).
const NOT_YET_TESTED: [&str; 3] = [
    "KVM on a real CPU (AMD is tested under emulation)",
    "KVM on an Intel CPU",
    "start times with KVM on real hardware",
];
/// Room for a few images.
const WANTED_DISK: u64 = 4 << 30;
const WANTED_MEMORY_KIB: u64 = 1 << 20;

/// Flags of `caddis doctor`: those of `caddis serve`, for what would be served.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis doctor\n  caddis doctor --json --kernel /boot/vmlinuz \
                  --modules /lib/modules/6.1.0"
)]
pub struct DoctorArguments {
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    serve: ServeArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Failed,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    message: String,
    /// What mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Check {
    fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, message: message.into(), mend: None }
    }

    fn warning(name: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, message: message.into(), mend: Some(mend.into()) }
    }

    fn failed(name: &'static str, message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, status: Status::Failed, message: message.into(), mend: Some(mend.into()) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
    not_yet_tested: [&'static str; 3],
}

/// Runs it. The exit code is 0 when nothing has failed.
pub async fn run(arguments: DoctorArguments) -> Result<ExitCode> {
    let settings = arguments.serve.resolve()?;
    let server = Server::find(&settings).await;
    let settings = served::with_those_of_server(settings, server.as_ref());
    let network = network::check(&settings, server.as_ref()).await;
    let snapshots = snapshots::check(&settings, server.as_ref()).await;
    let pool = network::pool(&settings).await;
    let checks = move || {
        let mut checks = checks(&settings, server.as_ref());
        checks.extend(wireguard::check(&settings, server.as_ref()));
        checks.extend([snapshots, pool, network]);
        checks.extend(server.as_ref().map(Server::check));
        checks
    };
    let checks = tokio::task::spawn_blocking(checks).await?;
    let ok = checks.iter().all(|check| check.status != Status::Failed);
    let report = Report { ok, checks, not_yet_tested: NOT_YET_TESTED };
    if arguments.json {
        print::line(serde_json::to_string_pretty(&report)?)?;
    } else {
        show(&report)?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(report: &Report) -> io::Result<()> {
    for check in &report.checks {
        let status = match check.status {
            Status::Ok => "ok     ",
            Status::Warning => "warning",
            Status::Failed => "FAILED ",
        };
        print::line(format_args!("{status} {}: {}", check.name, check.message))?;
        if let Some(mend) = &check.mend {
            print::line(format_args!("        → {mend}"))?;
        }
    }
    print::line("\nNot yet tested by the project:")?;
    for path in report.not_yet_tested {
        print::line(format_args!("  - {path}"))?;
    }
    let verdict = match report.ok {
        true => "This host can run VMs.",
        false => "This host can't run VMs yet: see above.",
    };
    print::line(format_args!("\n{verdict}"))
}

fn checks(settings: &Settings, server: Option<&Server>) -> Vec<Check> {
    // What the server says of its own counts for each check: they must not contradict each other.
    let running = server.filter(|server| server.runs());
    vec![
        user(),
        accelerator(settings),
        qemu_version(&settings.qemu),
        kernel(settings),
        program("mke2fs", "-V", "e2fsprogs", "builds root disks"),
        volumes(settings),
        program("depmod", "--version", "kmod", "makes kernel modules available to guests"),
        tun(),
        filter(settings),
        firewall(),
        forwarding(),
        port(settings, running),
        services::listeners(settings, running),
        services::addresses(settings, running),
        services::egress(settings, server),
        services::names(settings),
        installation_key(&settings.data_dir),
        disk(&settings.data_dir),
        memory(),
        cgroups(),
    ]
}

fn user() -> Check {
    let name = "user";
    if nix::unistd::geteuid().is_root() {
        return Check::ok(name, "root");
    }
    Check::failed(
        name,
        "caddis serve needs root, for taps, cgroups and the packet filter",
        "sudo caddis doctor",
    )
}

fn accelerator(settings: &Settings) -> Check {
    let name = "accelerator";
    let verdict = probe(None);
    if verdict.usable && settings.accelerator != AcceleratorChoice::Emulation {
        return Check::ok(name, format!("kvm ({}): VMs are isolated by hardware", verdict.reason));
    }
    let meaning = "emulation: slower, and by QEMU's own policy not a security boundary";
    let reason =
        if verdict.usable { "requested, although KVM works".to_owned() } else { verdict.reason };
    let mend = "to run other people's code, use a host with hardware virtualization (VT-x or AMD-V \
                turned on in its firmware, or nested virtualization turned on for a VM), and \
                modprobe kvm_intel or kvm_amd";
    if settings.accelerator == AcceleratorChoice::Kvm {
        return Check::failed(name, format!("kvm was requested, but {reason}"), mend);
    }
    Check::warning(name, format!("{meaning} ({reason})"), mend)
}

fn qemu_version(program: &Path) -> Check {
    let name = "qemu";
    match qemu::version(program) {
        Ok(version) => {
            let mut numbers = version
                .split(|c: char| !c.is_ascii_digit())
                .map(|part| part.parse::<u32>().unwrap_or(0));
            let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if found >= (7, 2) {
                Check::ok(name, version)
            } else {
                Check::failed(
                    name,
                    format!("{version}, 7.2 or later is required"),
                    "apt-get install qemu-system-x86",
                )
            }
        }
        Err(error) => Check::failed(name, error.to_string(), "apt-get install qemu-system-x86"),
    }
}

fn kernel(settings: &Settings) -> Check {
    let name = "kernel";
    let source = BootSource {
        kernel: settings.kernel.clone(),
        modules: settings.modules.clone(),
        init: caddis_guest_init_image::INIT.into(),
        extra_modules: Vec::new(),
    };
    let prepared = tempfile::tempdir().map_err(|error| error.to_string()).and_then(|directory| {
        boot::prepare(&source, directory.path()).map_err(|error| error.to_string())
    });
    match prepared {
        Ok(files) => Check::ok(name, format!("{} ({})", files.release, settings.kernel.display())),
        Err(error) => Check::failed(
            name,
            error,
            "apt-get install linux-image-cloud-amd64, or choose another with --kernel and \
             --modules",
        ),
    }
}

fn program(name: &'static str, argument: &str, package: &str, what: &str) -> Check {
    let mut command = Command::new(name);
    match command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => Check::ok(name, what),
        Err(error) => {
            Check::failed(name, format!("{error} ({what})"), format!("apt-get install {package}"))
        }
    }
}

/// What volumes need. Machines without volumes run without it.
fn volumes(settings: &Settings) -> Check {
    let name = "volumes";
    for (program, argument, package, what) in [
        ("qemu-img", "--version", "qemu-utils", "makes volumes"),
        ("mke2fs", "-V", "e2fsprogs", "makes their file systems"),
        ("qemu-storage-daemon", "--version", "qemu-system-common", "reads volumes for snapshots"),
    ] {
        let mut command = Command::new(program);
        let found = command.arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Err(error) = found {
            let text = format!("{program}: {error} ({what})");
            return Check::warning(name, text, format!("apt-get install {package}"));
        }
    }
    let existing = existing(&settings.data_dir);
    let size = match default_volume_gib(existing) {
        Ok(size) => size,
        Err(error) => {
            let text = failure::with_causes(&error);
            return Check::failed(name, text, "choose another directory with --data-dir");
        }
    };
    match settings.volume_gib {
        Some(gib) if gib > size => Check::warning(
            name,
            format!("{gib} GiB, more than 3/4 of the disk at {}", existing.display()),
            "volumes that fill the disk pause their machines: choose less with --volume-gb",
        ),
        gib => Check::ok(name, format!("up to {} GiB", gib.unwrap_or(size))),
    }
}

fn tun() -> Check {
    let path = "/dev/net/tun";
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Check::ok("tun", path),
        Err(error) => Check::failed("tun", format!("{path}: {error}"), "modprobe tun"),
    }
}

fn filter(settings: &Settings) -> Check {
    match caddis_network::check_filter(&settings.allow_private) {
        Ok(()) => Check::ok("nftables", "the packet filter can be loaded"),
        Err(error) => Check::failed(
            "nftables",
            error.to_string(),
            "apt-get install nftables; modprobe nft_fib_inet",
        ),
    }
}

/// Other filters that drop what is forwarded by default, as Docker's does.
fn firewall() -> Check {
    let name = "firewall";
    let output = Command::new("nft").args(["--json", "list", "chains"]).output();
    let Ok(listed) = output.map_err(drop).and_then(|output| {
        serde_json::from_slice::<serde_json::Value>(&output.stdout).map_err(drop)
    }) else {
        return Check::ok(name, "not checked: nft lists no chains");
    };
    let chains =
        listed["nftables"].as_array().into_iter().flatten().filter_map(|item| item.get("chain"));
    let dropping: Vec<_> = chains
        .filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop")
        .map(|chain| {
            let word = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", word("family"), word("table"), word("name"))
        })
        .collect();
    match dropping.first() {
        None => Check::ok(name, "no other filter drops machines' traffic"),
        Some(chain) => Check::warning(
            name,
            format!(
                "chain {chain} drops forwarded traffic by default: machines could not reach other \
                 networks"
            ),
            format!(
                "nft insert rule {chain} iifname 'caddis*' accept; nft insert rule {chain} oifname \
                 'caddis*' accept"
            ),
        ),
    }
}

fn forwarding() -> Check {
    let on = |path: &str| std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
    let (v4, v6) =
        (on("/proc/sys/net/ipv4/ip_forward"), on("/proc/sys/net/ipv6/conf/all/forwarding"));
    let name = "forwarding";
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Check::failed(
            name,
            "this host has no IPv6, which private addresses need",
            "boot without ipv6.disable=1",
        );
    }
    match (v4, v6) {
        (true, true) => Check::ok(name, "on"),
        _ => Check::ok(name, "off; caddis serve turns it on, caddis host clean off again"),
    }
}

fn port(settings: &Settings, server: Option<&Server>) -> Check {
    let name = "port";
    if let Some(server) = server {
        return Check::ok(name, format!("{} is served by caddis", server.file.url));
    }
    match TcpListener::bind(settings.listen) {
        Ok(_) => Check::ok(name, format!("{} is free", settings.listen)),
        Err(error) => Check::failed(
            name,
            format!("{}: {error}", settings.listen),
            "choose another address with --listen",
        ),
    }
}

fn installation_key(data_dir: &Path) -> Check {
    let name = "installation key";
    let path = data_dir.join(instance::INSTALLATION_KEY);
    match InstallationKey::open(&path) {
        Ok(None) => Check::ok(name, "not created yet; caddis serve creates it"),
        Ok(Some(key)) => {
            let text =
                format!("{} ({}); caddis backup --with-key saves it", key.id(), path.display());
            Check::ok(name, text)
        }
        Err(error) => Check::failed(
            name,
            failure::with_causes(&error),
            "encrypted data can't be read without it: fix this, or restore it from a backup",
        ),
    }
}

/// What is not there yet will be made on the disk of what is.
fn existing(data_dir: &Path) -> &Path {
    data_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn disk(data_dir: &Path) -> Check {
    let name = "disk";
    let existing = existing(data_dir);
    match nix::sys::statvfs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            let text = format!("{} MiB free at {}", free >> 20, existing.display());
            if free >= WANTED_DISK {
                Check::ok(name, text)
            } else {
                Check::warning(
                    name,
                    text,
                    "free some space, or choose another directory with --data-dir",
                )
            }
        }
        Err(error) => Check::failed(
            name,
            format!("{}: {error}", existing.display()),
            "choose another directory with --data-dir",
        ),
    }
}

fn memory() -> Check {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok())
        .unwrap_or(0);
    let text = format!("{} MiB available", kib >> 10);
    if kib >= WANTED_MEMORY_KIB {
        Check::ok("memory", text)
    } else {
        Check::warning("memory", text, "a machine of 256 MiB uses up to 450 MiB under emulation")
    }
}

fn cgroups() -> Check {
    let name = "cgroups";
    let parent = SlotPoolConfig::default().cgroup_parent;
    match CgroupRoot::detect(&parent) {
        Ok(root) => {
            let version = match root.version() {
                Version::V1 => "v1",
                Version::V2 => "v2",
            };
            // Left alone when VMs are in it.
            let _ = CgroupRoot::remove(&parent);
            Check::ok(name, format!("{version}: memory, CPU time and threads of VMs are limited"))
        }
        Err(error) => Check::failed(
            name,
            error.to_string(),
            "mount the controllers memory, cpu and pids; under systemd set Delegate=yes for the \
             unit",
        ),
    }
}
