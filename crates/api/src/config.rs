//! A machine's configuration: the JSON as sent, and the typed reading of the parts that act.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use base64::Engine as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema, schema::AdditionalProperties},
};

use crate::{ApiDuration, Signal};

mod checks;
mod services;

pub use checks::{Check, CheckHeader, CheckProtocol, CheckPurpose, CheckType, Liveness};
pub use services::{
    Autostop, Concurrency, ConcurrencyKind, DEFAULT_SOFT_LIMIT, HeaderChange, HttpOptions,
    HttpResponseOptions, PortHandler, Protocol, ProxyProtoOptions, ProxyProtoVersion, Service,
    ServicePort, TlsOptions, TlsVersion,
};

/// The configuration as JSON, with every field it was sent with, known here or not. Kept as its
/// text, which clones share: values take up to fifty times as much memory.
#[derive(Clone, PartialEq, Eq)]
pub struct RawConfig(Arc<str>);

impl RawConfig {
    /// Its fields, read.
    pub fn fields(&self) -> Map<String, Value> {
        // It was written here, from such a map.
        serde_json::from_str(&self.0).unwrap_or_default()
    }

    /// One of its fields, read.
    pub fn field(&self, name: &str) -> Option<Value> {
        self.fields().remove(name)
    }

    /// A value of its metadata.
    pub fn metadata(&self, name: &str) -> Option<String> {
        Some(self.field("metadata")?.get(name)?.as_str()?.to_owned())
    }

    /// Bytes that it takes.
    pub fn size(&self) -> usize {
        self.0.len()
    }
}

impl From<Map<String, Value>> for RawConfig {
    fn from(fields: Map<String, Value>) -> Self {
        // A map with string keys, for which there is no way to fail.
        Self(serde_json::to_string(&fields).unwrap_or_else(|_| "{}".to_owned()).into())
    }
}

impl Default for RawConfig {
    fn default() -> Self {
        Map::new().into()
    }
}

impl fmt::Debug for RawConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Serialize for RawConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fields().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(Self::from)
    }
}

// Documented as what is known of it; that its other fields stay is said by `additionalProperties`.
impl PartialSchema for RawConfig {
    fn schema() -> RefOr<Schema> {
        match MachineConfig::schema() {
            RefOr::T(Schema::Object(mut known)) => {
                known.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(true)));
                RefOr::T(Schema::Object(known))
            }
            other => other,
        }
    }
}

impl ToSchema for RawConfig {
    fn name() -> Cow<'static, str> {
        MachineConfig::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        MachineConfig::schemas(schemas);
    }
}

/// A machine's configuration. The fields that this build acts on, and some that it checks and
/// stores; others are stored and given back as they were sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct MachineConfig {
    /// Image reference.
    pub image: Option<String>,
    /// Resources.
    pub guest: Option<Guest>,
    /// Deprecated preset name.
    pub size: Option<String>,
    /// Start parameters.
    pub init: Option<Init>,
    /// Environment.
    pub env: Option<BTreeMap<String, String>>,
    /// Several programs of one image, instead of a single one.
    pub processes: Option<Vec<Process>>,
    /// Containers; not supported yet, refused.
    pub containers: Option<Vec<Value>>,
    /// Ports that are reached through the app's addresses.
    pub services: Option<Vec<Service>>,
    /// Health checks, by name.
    pub checks: Option<BTreeMap<String, Check>>,
    /// Old form of `autostart: false` of all services.
    pub disable_machine_autostart: Option<bool>,
    /// Volumes, stored only.
    pub mounts: Option<Vec<Mount>>,
    /// Files written at every boot.
    pub files: Option<Vec<File>>,
    /// What to do when the program ends.
    pub restart: Option<Restart>,
    /// How to stop it.
    pub stop_config: Option<StopConfig>,
    /// Destroy the machine when its program has ended for good.
    pub auto_destroy: Option<bool>,
    /// Interval of a scheduled machine.
    pub schedule: Option<String>,
    /// Machines this one is a standby for.
    pub standbys: Option<Vec<String>>,
    /// User-defined key-value pairs.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Name resolution.
    pub dns: Option<Dns>,
    /// Root file system.
    pub rootfs: Option<Rootfs>,
}

/// Resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Guest {
    /// `shared` or `performance`.
    pub cpu_kind: Option<String>,
    /// vCPUs.
    pub cpus: Option<u32>,
    /// MiB.
    pub memory_mb: Option<u64>,
    /// Maximum memory for growth at run time, MiB.
    pub max_memory_mb: Option<u64>,
    /// GPUs; not available.
    pub gpus: Option<u32>,
    /// Appended to the kernel's command line.
    pub kernel_args: Option<Vec<String>>,
    /// Old place of `rootfs.persist`.
    pub persist_rootfs: Option<Value>,
    /// What its host has to have; no host has any of it.
    pub required_host_features: Option<Vec<String>>,
}

/// Start parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Init {
    /// Replaces entrypoint and command.
    pub exec: Option<Vec<String>>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// Run on a terminal.
    pub tty: Option<bool>,
    /// MiB.
    pub swap_size_mb: Option<u64>,
    /// Whether the program is process 1 of its own namespaces, as in a container. Init systems
    /// (systemd, runit, s6-overlay, busybox's) are by default. Caddis extension.
    pub pid_namespace: Option<bool>,
    /// Appended to the kernel's command line.
    pub kernel_args: Option<Vec<String>>,
    /// Limits of each process. Caddis extension.
    pub ulimits: Option<Ulimits>,
}

/// Limits of each process of a machine, its own programs and those run beside them, as `ulimit`
/// shows them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Ulimits {
    /// Open files; default: soft limit 10240, hard limit as high as the kernel allows.
    pub nofile: Option<Ulimit>,
    /// Processes and threads of a user; default: limited only by memory.
    pub nproc: Option<Ulimit>,
}

/// A limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Ulimit {
    /// Soft limit, at most the hard limit.
    pub soft: Option<u64>,
    /// Hard limit.
    pub hard: Option<u64>,
}

/// One of several programs of a machine. Fields left out default to those of a machine with a
/// single program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Process {
    /// Replaces entrypoint and command.
    pub exec: Option<Vec<String>>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// `user[:group]`, as in an image.
    pub user: Option<String>,
    /// Added to the machine's environment.
    pub env: Option<BTreeMap<String, String>>,
    /// Properties of the machine, added to the environment.
    pub env_from: Option<Vec<EnvFrom>>,
}

/// A variable that holds a property of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EnvFrom {
    /// Name.
    pub env_var: String,
    /// The property.
    pub field_ref: FieldRef,
}

/// A property of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FieldRef {
    /// Its id.
    Id,
    /// Version of its configuration.
    Version,
    /// Its app's name.
    AppName,
    /// Address in its private network.
    PrivateIp,
    /// Where it is.
    Region,
    /// What it runs.
    Image,
}

/// A volume's place in a machine. Empty strings count as absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Mount {
    /// Volume id. In requests a volume's name too: any of that name in the region that is not
    /// attached.
    pub volume: Option<String>,
    /// Absolute path in the guest.
    pub path: Option<String>,
    /// Name of the volume; in requests another way to give it in place of its id.
    pub name: Option<String>,
    /// Size of the volume at the create of the machine, GiB; filled in by the server.
    pub size_gb: Option<u32>,
    /// Whether the volume is encrypted; filled in by the server.
    pub encrypted: Option<bool>,
    /// Percentage of use above which the volume is extended by itself, 1 to 99; with one of
    /// `add_size_gb` and `add_size_percent`.
    pub extend_threshold_percent: Option<u32>,
    /// By how much it is extended by itself, GiB.
    pub add_size_gb: Option<u32>,
    /// By how much it is extended by itself, percent of its size, rounded up to a whole GiB.
    pub add_size_percent: Option<u32>,
    /// The least by which it is extended by itself, GiB, beside `add_size_percent`; 1 when absent.
    pub min_add_size_gb: Option<u32>,
    /// The size up to which it is extended by itself, GiB. Without it that is not done.
    pub size_gb_limit: Option<u32>,
}

/// A file written at every boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct File {
    /// Absolute path in the guest.
    pub guest_path: String,
    /// Content, base64.
    pub raw_value: Option<String>,
    /// Name of a secret that holds it.
    pub secret_name: Option<String>,
    /// Image whose config it gets.
    pub image_config: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
}

impl File {
    /// The decoded content of `raw_value`.
    pub fn content(&self) -> Option<Result<Vec<u8>, base64::DecodeError>> {
        self.raw_value.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text))
    }
}

/// What to do when the program ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum RestartPolicy {
    /// Never restart it.
    #[serde(rename = "no", alias = "never")]
    No,
    /// Restart it after every exit that was not requested.
    #[serde(rename = "always")]
    Always,
    /// Restart it when it failed.
    #[default]
    #[serde(rename = "on-failure", alias = "", alias = "on-fail")]
    OnFailure,
}

/// Restart policy and its limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Restart {
    /// Default is on-failure.
    pub policy: Option<RestartPolicy>,
    /// Restarts within five minutes, for on-failure.
    pub max_retries: Option<u32>,
}

/// How to stop the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct StopConfig {
    /// Signal sent first.
    pub signal: Option<Signal>,
    /// Time until SIGKILL.
    pub timeout: Option<ApiDuration>,
}

/// Name resolution in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Dns {
    /// No internal name for this machine.
    pub skip_registration: Option<bool>,
    /// Name servers to use instead of the host's.
    pub nameservers: Option<Vec<String>>,
    /// Search list.
    pub searches: Option<Vec<String>>,
    /// Options of resolv.conf.
    pub options: Option<Vec<DnsOption>>,
    /// Host name; default is the machine id.
    pub hostname: Option<String>,
    /// Fully qualified host name.
    pub hostname_fqdn: Option<String>,
}

/// One option of resolv.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct DnsOption {
    /// Name.
    pub name: String,
    /// Value, if it takes one.
    pub value: Option<String>,
}

/// Root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Rootfs {
    /// `never`, `restart` or `always`; only `never` has an effect so far.
    pub persist: Option<String>,
    /// GiB.
    pub size_gb: Option<u64>,
}

/// Size of the root disk unless the configuration names a larger one, GiB.
pub const DEFAULT_ROOTFS_GIB: u64 = 8;

/// Memory of a machine that may be suspended at most, MiB, as the reference has it.
pub const MAX_SUSPENDED_MIB: u64 = 2048;

/// Restarts that on-failure allows within its window unless the configuration says otherwise.
pub const DEFAULT_MAX_RETRIES: u32 = 10;

impl MachineConfig {
    /// Virtual processors; filled in by [`crate::validate::normalise`].
    pub fn cpus(&self) -> u32 {
        self.guest.as_ref().and_then(|guest| guest.cpus).unwrap_or(1)
    }

    /// Guest memory, MiB.
    pub fn memory_mib(&self) -> u64 {
        self.guest.as_ref().and_then(|guest| guest.memory_mb).unwrap_or(256)
    }

    /// Size of the root disk, GiB.
    pub fn rootfs_gib(&self) -> u64 {
        let size = self.rootfs.as_ref().and_then(|rootfs| rootfs.size_gb).unwrap_or(0);
        size.max(DEFAULT_ROOTFS_GIB)
    }

    /// Whether its processors are its own.
    pub fn has_dedicated_cpus(&self) -> bool {
        self.guest.as_ref().and_then(|guest| guest.cpu_kind.as_deref()) == Some("performance")
    }

    /// Why a machine of this configuration can't be suspended, if it can't.
    pub fn why_not_suspendable(&self) -> Option<String> {
        let memory = self.memory_mib();
        if memory > MAX_SUSPENDED_MIB {
            return Some(format!(
                "it has {memory} MiB of memory, the limit is {MAX_SUSPENDED_MIB}"
            ));
        }
        if self.init.as_ref().and_then(|init| init.swap_size_mb).is_some_and(|size| size > 0) {
            return Some("it has swap (init.swap_size_mb)".to_owned());
        }
        let has_schedule = self.schedule.as_ref().is_some_and(|schedule| !schedule.is_empty());
        has_schedule.then(|| "it has a schedule".to_owned())
    }

    /// Whether one of its ports is served only on an address of the app's own.
    pub fn needs_own_address(&self) -> bool {
        self.services.iter().flatten().any(Service::needs_own_address)
    }

    /// Restart policy, with the default applied.
    pub fn restart_policy(&self) -> RestartPolicy {
        self.restart.as_ref().and_then(|restart| restart.policy).unwrap_or_default()
    }

    /// Restarts within the window, with the default applied.
    pub fn max_retries(&self) -> u32 {
        self.restart.as_ref().and_then(|restart| restart.max_retries).unwrap_or(DEFAULT_MAX_RETRIES)
    }

    /// Further kernel arguments, from both places they may stand.
    pub fn kernel_args(&self) -> Vec<String> {
        let guest = self.guest.iter().flat_map(|guest| guest.kernel_args.iter().flatten());
        let init = self.init.iter().flat_map(|init| init.kernel_args.iter().flatten());
        guest.chain(init).cloned().collect()
    }
}
