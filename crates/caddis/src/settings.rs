//! Settings of the server: flag, else environment variable, else the configuration file, else the
//! default.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use caddis_api::RegionCode;
use clap::{Args, ValueEnum};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::kernels::HostKernels;

mod snapshots;
mod traffic;
mod wireguard;

pub use snapshots::SnapshotSettings;
pub use traffic::{TrafficSettings, of_links};
pub use wireguard::WireGuardSettings;

/// Read when `--config` names no other, if it is there.
const CONFIG_FILE: &str = "/etc/caddis/caddis.toml";

/// Virtualization backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// KVM where it works, else emulation (on loopback only).
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// Software emulation: slower, and not a security boundary.
    Emulation,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Flags of `caddis serve`. Each is also an environment variable, and a key of the configuration
/// file with the name of the flag.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[command(
    after_help = "Examples:\n  caddis serve\n  caddis serve --data-dir /srv/caddis --listen \
                  127.0.0.1:4280 --insecure-registry 127.0.0.1:5000\n  caddis serve --kernel \
                  /boot/vmlinuz --modules /lib/modules/6.1.0\n\nThe same in \
                  /etc/caddis/caddis.toml:\n  data-dir = \"/srv/caddis\"\n  \
                        insecure-registry = [\"127.0.0.1:5000\"]"
)]
pub struct ServeArguments {
    /// TOML configuration file [default: /etc/caddis/caddis.toml, if it exists].
    #[arg(long, env = "CADDIS_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Data directory [default: /var/lib/caddis].
    #[arg(long, env = "CADDIS_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port of the API [default: 127.0.0.1:4280].
    #[arg(long, env = "CADDIS_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Region of this host [default: local].
    #[arg(long, env = "CADDIS_REGION", value_name = "NAME")]
    pub region: Option<String>,
    /// Virtualization backend [default: auto].
    #[arg(long, env = "CADDIS_ACCELERATOR", value_name = "WHAT")]
    pub accelerator: Option<AcceleratorChoice>,
    /// Guest kernel: a bzImage, or a vmlinux with the PVH note [default: the running kernel in
    /// /boot, else the latest there].
    #[arg(long, env = "CADDIS_KERNEL", value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Modules of the guest kernel, lib/modules/VERSION [default: `modules` next to it, else those
    /// of the version in its name, else those of the running kernel].
    #[arg(long, env = "CADDIS_MODULES", value_name = "DIR")]
    pub modules: Option<PathBuf>,
    /// QEMU binary [default: qemu-system-x86_64 in PATH].
    #[arg(long, env = "CADDIS_QEMU", value_name = "FILE")]
    pub qemu: Option<PathBuf>,
    /// Registry accessed over plain HTTP, host[:port]; may be repeated.
    #[arg(long, env = "CADDIS_INSECURE_REGISTRY", value_name = "HOST", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub insecure_registry: Vec<String>,
    /// Registry used for image names without one [default: docker.io].
    #[arg(long, env = "CADDIS_DEFAULT_REGISTRY", value_name = "HOST")]
    pub default_registry: Option<String>,
    /// Registry credentials, in the format of `docker login` [default: config.json in
    /// $DOCKER_CONFIG or ~/.docker].
    #[arg(long, env = "CADDIS_REGISTRY_CREDENTIALS", value_name = "FILE")]
    pub registry_credentials: Option<PathBuf>,
    /// Private IPv4 range for machines [default: 10.201.0.0/16, or the next /16 that is unused on
    /// this host].
    #[arg(long, env = "CADDIS_IPV4_POOL", value_name = "CIDR")]
    pub ipv4_pool: Option<Ipv4Net>,
    /// Private network that machines may reach, blocked by default; may be repeated.
    #[arg(long, env = "CADDIS_ALLOW_PRIVATE", value_name = "CIDR", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow_private: Vec<IpNet>,
    /// Upstream DNS server for machines [default: those of /etc/resolv.conf]; may be repeated.
    #[arg(long, env = "CADDIS_DNS", value_name = "ADDRESS", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Address and port on which services on port 80 of all apps answer, told apart by host name
    /// [default: 127.0.0.1:8080].
    #[arg(long, env = "CADDIS_HTTP_LISTEN", value_name = "ADDRESS")]
    pub http_listen: Option<SocketAddr>,
    /// Address and port on which services on port 443 of all apps answer, over TLS [default:
    /// 127.0.0.1:8443].
    #[arg(long, env = "CADDIS_HTTPS_LISTEN", value_name = "ADDRESS")]
    pub https_listen: Option<SocketAddr>,
    /// Domain of apps: APP.DOMAIN is the host name of an app [default: localhost].
    #[arg(long, env = "CADDIS_DOMAIN", value_name = "DOMAIN")]
    pub domain: Option<String>,
    /// Addresses that apps can have as their own, for services on any port; may be repeated
    /// [default: 127.64.0.0/16, reachable on this host only].
    #[arg(long, env = "CADDIS_PUBLIC_ADDRESSES", value_name = "CIDR", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_addresses: Vec<IpNet>,
    /// Static egress addresses: connections of apps and machines that were allocated one come from
    /// it; may be repeated.
    #[arg(long, env = "CADDIS_EGRESS_ADDRESSES", value_name = "CIDR", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub egress_addresses: Vec<IpNet>,
    /// UDP address and port for WireGuard peers of private networks, usually port 51820 [default:
    /// none].
    #[arg(long, env = "CADDIS_WIREGUARD_LISTEN", value_name = "ADDRESS")]
    pub wireguard_listen: Option<SocketAddr>,
    /// Host, or host and port, by which WireGuard peers reach this server [default: the address it
    /// listens on].
    #[arg(long, env = "CADDIS_WIREGUARD_ENDPOINT", value_name = "HOST")]
    pub wireguard_endpoint: Option<String>,
    /// HTML file that browsers are shown while a machine starts for them [default: they wait].
    #[arg(long, env = "CADDIS_WAKING_PAGE", value_name = "FILE")]
    pub waking_page: Option<PathBuf>,
    /// Write each request to a service into the log of the machine that answered it.
    #[arg(
        long,
        env = "CADDIS_ACCESS_LOG",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub access_log: Option<bool>,
    /// Total memory for machines, MiB [default: 15/16 of the host's, minus 512].
    #[arg(long, env = "CADDIS_MEMORY_MB", value_name = "MIB")]
    pub memory_mb: Option<u64>,
    /// CPU overcommit factor, vCPUs per CPU of the host [default: 16].
    #[arg(long, env = "CADDIS_CPU_OVERCOMMIT", value_name = "FACTOR")]
    pub cpu_overcommit: Option<f64>,
    /// Memory overcommit factor; above 1 the host may run out of memory and kill VMs [default: 1].
    #[arg(long, env = "CADDIS_MEMORY_OVERCOMMIT", value_name = "FACTOR")]
    pub memory_overcommit: Option<f64>,
    /// Disk overcommit factor for root disks, which are sparse [default: 10].
    #[arg(long, env = "CADDIS_DISK_OVERCOMMIT", value_name = "FACTOR")]
    pub disk_overcommit: Option<f64>,
    /// Total size of volumes, GiB; they take it as they are written [default: 3/4 of the data
    /// directory's file system].
    #[arg(long, env = "CADDIS_VOLUME_GB", value_name = "GIB")]
    pub volume_gb: Option<u64>,
    /// Where snapshots of volumes are kept, encrypted: a directory, or S3-compatible storage as
    /// s3://BUCKET/PREFIX [default: snapshots in the data directory].
    #[arg(long, env = "CADDIS_SNAPSHOT_STORE", value_name = "WHERE")]
    pub snapshot_store: Option<String>,
    /// URL of the S3-compatible service [default: that of AWS].
    #[arg(long, env = "CADDIS_SNAPSHOT_STORE_ENDPOINT", value_name = "URL")]
    pub snapshot_store_endpoint: Option<String>,
    /// Region of the bucket [default: us-east-1].
    #[arg(long, env = "CADDIS_SNAPSHOT_STORE_REGION", value_name = "NAME")]
    pub snapshot_store_region: Option<String>,
    /// File with aws_access_key_id and aws_secret_access_key, as AWS's tools have it [default: the
    /// environment's AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY].
    #[arg(long, env = "CADDIS_SNAPSHOT_STORE_CREDENTIALS", value_name = "FILE")]
    pub snapshot_store_credentials: Option<PathBuf>,
    /// Limit the I/O of volumes by the size of the machine, from 4000 requests and 16 MiB per
    /// second for shared-cpu-1x to 32000 and 128 MiB for performance-16x [default: false].
    #[arg(
        long,
        env = "CADDIS_VOLUME_THROTTLE",
        value_name = "BOOL",
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub volume_throttle: Option<bool>,
    /// Machines started at the same time after the host was down [default: 4].
    #[arg(long, env = "CADDIS_RESTART_CONCURRENCY", value_name = "COUNT")]
    pub restart_concurrency: Option<usize>,
    /// Maximum size of the warm pool, VMs kept ready for fast starts; 0 turns it off [default: 8,
    /// within 1/16 of the host's memory].
    #[arg(long, env = "CADDIS_POOL", value_name = "COUNT")]
    pub pool: Option<usize>,
    /// Maximum log size per machine, MiB [default: 16].
    #[arg(long, env = "CADDIS_LOG_MB", value_name = "MIB")]
    pub log_mb: Option<u64>,
    /// Disk space to keep free, MiB; below it unused images are removed, and new machines are
    /// refused [default: 1024].
    #[arg(long, env = "CADDIS_RESERVED_DISK_MB", value_name = "MIB")]
    pub reserved_disk_mb: Option<u64>,
    /// Rate limit factor, per kind of request and machine: 1 allows 1 request per second with
    /// bursts of 3 (reads of a machine: 5 and 10), 2 twice that, 0 disables the limit [default: 1,
    /// on loopback 0].
    #[arg(long, env = "CADDIS_RATE_LIMIT", value_name = "FACTOR")]
    pub rate_limit: Option<f64>,
    /// Format of log lines [default: text].
    #[arg(long, env = "CADDIS_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Log filter, `level` or `target=level,…`; requests are logged at debug [default: info].
    #[arg(long, env = "CADDIS_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// File with the id of the host's boot.
    #[arg(long, env = "CADDIS_BOOT_ID_FILE", value_name = "FILE", hide = true)]
    #[serde(skip)]
    pub boot_id_file: Option<PathBuf>,
}

/// Settings with nothing left open.
#[derive(Debug, Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub region: RegionCode,
    pub accelerator: AcceleratorChoice,
    pub kernel: PathBuf,
    pub modules: PathBuf,
    pub qemu: PathBuf,
    pub insecure_registries: Vec<String>,
    pub default_registry: String,
    pub registry_credentials: Option<PathBuf>,
    pub ipv4_pool: Option<Ipv4Net>,
    pub allow_private: Vec<IpNet>,
    pub dns: Vec<IpAddr>,
    pub traffic: TrafficSettings,
    /// Where WireGuard peers find the server; none where it does not listen.
    pub wireguard: Option<WireGuardSettings>,
    pub memory_mib: Option<u64>,
    pub cpu_overcommit: f64,
    pub memory_overcommit: f64,
    pub disk_overcommit: f64,
    /// Space for volumes; none: [`default_volume_gib`].
    pub volume_gib: Option<u64>,
    pub snapshots: SnapshotSettings,
    pub volume_throttle: bool,
    pub restart_concurrency: usize,
    pub pool: usize,
    pub log_bytes: u64,
    pub reserved_disk: u64,
    pub rate_limit: f64,
    pub log_format: LogFormat,
    pub log: String,
    pub boot_id_file: PathBuf,
}

impl ServeArguments {
    /// Reads the configuration file and fills in what is left open.
    pub fn resolve(self) -> Result<Settings> {
        let file = match &self.config {
            Some(path) => read(path)?,
            None if Path::new(CONFIG_FILE).exists() => read(Path::new(CONFIG_FILE))?,
            None => Self::default(),
        };
        let set = self.over(&file)?;
        let traffic = TrafficSettings::new(&set)?;
        let wireguard = WireGuardSettings::new(&set)?;
        let data_dir = set.data_dir.clone().unwrap_or_else(default_data_dir);
        let snapshots = SnapshotSettings::new(&set, &data_dir)?;
        let region = set.region.unwrap_or_else(|| "local".to_owned());
        if region.is_empty()
            || !region.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            bail!("invalid region '{region}': use lowercase letters, digits and dashes");
        }
        let cpu_overcommit = factor("CPU", set.cpu_overcommit.unwrap_or(16.0))?;
        let memory_overcommit = factor("memory", set.memory_overcommit.unwrap_or(1.0))?;
        let disk_overcommit = factor("disk", set.disk_overcommit.unwrap_or(10.0))?;
        let listen = set.listen.unwrap_or(([127, 0, 0, 1], 4280).into());
        let usual_limit = if listen.ip().is_loopback() { 0.0 } else { 1.0 };
        let rate_limit = set.rate_limit.unwrap_or(usual_limit);
        if !(0.0..=1e6).contains(&rate_limit) {
            bail!("the rate limit factor must be between 0 and 1000000, not {rate_limit}");
        }
        let host = HostKernels::default();
        let kernel = set.kernel.unwrap_or_else(|| host.kernel());
        let modules = set.modules.unwrap_or_else(|| host.modules(&kernel));
        Ok(Settings {
            data_dir,
            listen,
            region: RegionCode::from_trusted(region),
            accelerator: set.accelerator.unwrap_or(AcceleratorChoice::Auto),
            kernel,
            modules,
            qemu: in_path(set.qemu.unwrap_or_else(|| "qemu-system-x86_64".into())),
            insecure_registries: set.insecure_registry,
            default_registry: set.default_registry.unwrap_or_else(|| "docker.io".to_owned()),
            registry_credentials: set.registry_credentials.or_else(docker_credentials),
            ipv4_pool: set.ipv4_pool,
            allow_private: set.allow_private,
            dns: set.dns,
            traffic,
            wireguard,
            memory_mib: set.memory_mb,
            cpu_overcommit,
            memory_overcommit,
            disk_overcommit,
            volume_gib: set.volume_gb,
            snapshots,
            volume_throttle: set.volume_throttle.unwrap_or(false),
            restart_concurrency: set.restart_concurrency.unwrap_or(4),
            pool: set.pool.unwrap_or(8),
            log_bytes: set.log_mb.unwrap_or(16).saturating_mul(1 << 20),
            reserved_disk: set.reserved_disk_mb.unwrap_or(1024).saturating_mul(1 << 20),
            rate_limit,
            log_format: set.log_format.unwrap_or(LogFormat::Text),
            log: set.log.unwrap_or_else(|| "info".to_owned()),
            boot_id_file: set
                .boot_id_file
                .unwrap_or_else(|| "/proc/sys/kernel/random/boot_id".into()),
        })
    }
}

impl ServeArguments {
    /// These, and where they say nothing what a configuration file says.
    fn over(self, file: &Self) -> Result<Self> {
        let mut set = toml::Table::try_from(file)?;
        let flags = toml::Table::try_from(&self).context("can't use the flags as settings")?;
        set.extend(flags);
        Ok(Self { boot_id_file: self.boot_id_file, ..set.try_into()? })
    }
}

fn factor(what: &str, factor: f64) -> Result<f64> {
    if !(factor > 0.0 && factor <= 1000.0) {
        bail!("the {what} overcommit factor must be above 0 and at most 1000, not {factor}");
    }
    Ok(factor)
}

fn read(path: &Path) -> Result<ServeArguments> {
    let attempted = || format!("can't use the configuration file {}", path.display());
    toml::from_str(&std::fs::read_to_string(path).with_context(attempted)?).with_context(attempted)
}

/// Space for volumes unless told otherwise, GiB: the rest of the disk is for images and root disks.
pub fn default_volume_gib(data_dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(data_dir)
        .with_context(|| format!("can't read the size of the disk of {}", data_dir.display()))?;
    Ok((stat.blocks() * stat.fragment_size() / 4 * 3) >> 30)
}

/// Where data is kept unless told otherwise.
pub fn default_data_dir() -> PathBuf {
    PathBuf::from("/var/lib/caddis")
}

fn docker_credentials() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// A bare name is looked for in `PATH`; not found, it stays as it is and the error names it.
fn in_path(program: PathBuf) -> PathBuf {
    if program.components().count() > 1 {
        return program;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(&program))
        .find(|file| file.is_file())
        .unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("caddis.toml");
        std::fs::write(
            &config,
            "region = 'ams'\nlisten = '127.0.0.1:1'\ndns = ['192.0.2.1']\nlog-mb = 3\n",
        )
        .unwrap();
        let arguments = ServeArguments {
            config: Some(config.clone()),
            region: Some("fra".to_owned()),
            ..ServeArguments::default()
        };
        let settings = arguments.resolve().unwrap();
        assert_eq!((settings.region.as_str(), settings.listen.port()), ("fra", 1));
        assert_eq!(
            (settings.dns.len(), settings.log_bytes, settings.restart_concurrency),
            (1, 3 << 20, 4)
        );
        std::fs::write(&config, "regoin = 'ams'\n").unwrap();
        let arguments = ServeArguments { config: Some(config), ..ServeArguments::default() };
        assert!(format!("{:#}", arguments.resolve().unwrap_err()).contains("regoin"));
    }

    #[test]
    fn the_packaged_configuration_names_every_setting_and_each_can_be_used() {
        let packaged = include_str!("../../../packaging/caddis.toml");
        assert_eq!(toml::from_str::<toml::Table>(packaged).unwrap(), toml::Table::new());
        let setting = |line: &str| Some(line.strip_prefix('#')?.split_once(" = ")?.0.to_owned());
        let settings: String = packaged
            .lines()
            .filter(|line| setting(line).is_some_and(|name| !name.contains(' ')))
            .map(|line| format!("{}\n", &line[1..]))
            .collect();
        toml::from_str::<ServeArguments>(&settings).unwrap();
        let named: BTreeSet<_> = toml::from_str::<toml::Table>(&settings)
            .unwrap()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let flags = ServeArguments::augment_args(clap::Command::new("serve"));
        let flags = flags.get_arguments().filter(|argument| !argument.is_hide_set());
        // The one says where the file is, the other is the unit's.
        let flags = flags.filter_map(|argument| argument.get_long());
        let flags = flags.filter(|name| !["config", "data-dir"].contains(name));
        assert_eq!(named, flags.map(str::to_owned).collect());
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [
            ServeArguments { region: Some("A b".to_owned()), ..ServeArguments::default() },
            ServeArguments { cpu_overcommit: Some(f64::NAN), ..ServeArguments::default() },
            ServeArguments { memory_overcommit: Some(0.0), ..ServeArguments::default() },
            ServeArguments { disk_overcommit: Some(1e9), ..ServeArguments::default() },
            ServeArguments { rate_limit: Some(-1.0), ..ServeArguments::default() },
            ServeArguments { memory_mb: Some(u64::MAX), ..ServeArguments::default() },
            ServeArguments { config: Some("/no/such/file".into()), ..ServeArguments::default() },
            ServeArguments {
                snapshot_store: Some("ftp://host".to_owned()),
                ..ServeArguments::default()
            },
            ServeArguments { domain: Some("a b".to_owned()), ..ServeArguments::default() },
            ServeArguments { domain: Some("a..b".to_owned()), ..ServeArguments::default() },
            ServeArguments {
                public_addresses: vec!["0.0.0.0/0".parse().unwrap()],
                ..ServeArguments::default()
            },
        ] {
            assert!(arguments.resolve().is_err());
        }
    }
}
