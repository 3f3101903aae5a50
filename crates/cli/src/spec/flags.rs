//! Flags of a machine's configuration.

use clap::Args;

use crate::CliError;

/// Flags that describe a machine's VM.
#[derive(Debug, Clone, Default, Args)]
pub struct MachineFlags {
    /// Publish a port: PORT[:INTERNAL][/PROTOCOL[:HANDLER...]]; may be repeated. With the handler
    /// -, INTERNAL/PROTOCOL:- removes the service and PORT:INTERNAL/PROTOCOL:- one port.
    #[arg(short, long, value_name = "PORT", value_delimiter = ',')]
    pub port: Vec<String>,
    /// Environment variable NAME=VALUE; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Metadata NAME=VALUE; may be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub metadata: Vec<String>,
    /// Entrypoint instead of the image's, split into words as a shell does.
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Guest kernel argument; may be repeated.
    #[arg(long, value_name = "ARGUMENT")]
    pub kernel_arg: Vec<String>,
    /// Start on a schedule: hourly, daily, weekly or monthly.
    #[arg(long, value_name = "INTERVAL")]
    pub schedule: Option<String>,
    /// Don't register an internal DNS name for the machine.
    #[arg(long)]
    pub skip_dns_registration: bool,
    /// Whether a request to a service starts the machine.
    #[arg(
        long,
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub autostart: Option<bool>,
    /// What to do when its services are idle: off, stop or suspend.
    #[arg(
        long,
        value_name = "ACTION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "stop"
    )]
    pub autostop: Option<String>,
    /// Stop or suspend after this long without a connection, such as 30s or 5m.
    #[arg(long, value_name = "TIME")]
    pub idle_timeout: Option<String>,
    /// How long connections may last once the machine is to stop or suspend [default: it does
    /// not while one is open].
    #[arg(long, value_name = "TIME")]
    pub max_drain: Option<String>,
    /// Number of machines of the app that stay started without traffic.
    #[arg(long, value_name = "COUNT")]
    pub min_machines_running: Option<u32>,
    /// Restart policy: no, on-failure or always.
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Make it a standby for these machines, comma-separated IDs; '' to clear.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub standby_for: Option<Vec<String>>,
    /// Write a local file to the VM: /GUEST/PATH=LOCAL/PATH; may be repeated.
    #[arg(long, value_name = "PATH=FILE")]
    pub file_local: Vec<String>,
    /// Write text to a file in the VM: /GUEST/PATH=TEXT; may be repeated.
    #[arg(long, value_name = "PATH=TEXT")]
    pub file_literal: Vec<String>,
    /// Write a secret to a file in the VM: /GUEST/PATH=SECRET; may be repeated.
    #[arg(long, value_name = "PATH=SECRET")]
    pub file_secret: Vec<String>,
    /// Complete configuration as JSON, or the path of a .json file; other flags override it.
    #[arg(long, value_name = "JSON")]
    pub machine_config: Option<String>,
    #[command(flatten)]
    pub vm: VmFlags,
    /// Whether the root file system is kept: never, always or restart.
    #[arg(long, value_name = "WHEN")]
    pub rootfs_persist: Option<String>,
    /// Size of the root file system in GB, or with a unit; 0 for the default.
    #[arg(long, value_name = "SIZE")]
    pub rootfs_size: Option<String>,
    /// Swap in MB, or with a unit.
    #[arg(long, value_name = "SIZE")]
    pub swap_size: Option<String>,
    /// Cache drive in MB, or with a unit; 0 for none.
    #[arg(long, value_name = "SIZE")]
    pub cachedrive_size: Option<String>,
    /// Container that gets the image, files and command.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    #[command(flatten)]
    pub build: BuildFlags,
}

/// Processors and memory.
#[derive(Debug, Clone, Default, Args)]
pub struct VmFlags {
    /// Preset, such as shared-cpu-1x or performance-2x; see 'caddis platform vm-sizes'.
    #[arg(long, value_name = "PRESET")]
    pub vm_size: Option<String>,
    /// Number of CPUs.
    #[arg(long, visible_alias = "cpus", value_name = "COUNT", allow_negative_numbers = true)]
    pub vm_cpus: Option<i64>,
    /// CPU kind: shared or performance.
    #[arg(long, alias = "vm-cpukind", value_name = "KIND")]
    pub vm_cpu_kind: Option<String>,
    /// Memory in MB, or with a unit: 512mb, 2gb.
    #[arg(long, visible_alias = "memory", value_name = "SIZE")]
    pub vm_memory: Option<String>,
    /// Maximum memory for growth at run time.
    #[arg(long, value_name = "SIZE", hide = true)]
    pub vm_max_memory: Option<String>,
    /// No longer accepted.
    #[arg(long, value_name = "COUNT", hide = true)]
    pub vm_gpus: Option<u32>,
    /// No longer accepted.
    #[arg(long, alias = "vm-gpukind", value_name = "KIND", hide = true)]
    pub vm_gpu_kind: Option<String>,
    /// Place only on this dedicated host.
    #[arg(long, value_name = "ID")]
    pub host_dedication_id: Option<String>,
}

/// How an image would be built. There is no builder: they say so.
#[derive(Debug, Clone, Default, Args)]
pub struct BuildFlags {
    /// Not available: images are built elsewhere and imported.
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) dockerfile: Option<String>,
    /// Not available.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    pub(super) build_depot: Option<Option<String>>,
    /// Not available.
    #[arg(long, hide = true)]
    pub(super) build_nixpacks: bool,
    /// No effect: nothing is built.
    #[arg(long, hide = true, value_name = "SIZE", env = "FLY_BUILD_CONTEXT_WARN_SIZE")]
    pub(super) build_context_warn_size: Option<String>,
    /// Not available.
    #[arg(long, hide = true)]
    pub(super) build_only: bool,
    /// Not available.
    #[arg(long, hide = true)]
    pub(super) build_remote_only: bool,
    /// Not available.
    #[arg(long, hide = true)]
    pub(super) build_local_only: bool,
    /// Not available.
    #[arg(long, hide = true, value_name = "NAME=VALUE")]
    pub(super) build_arg: Vec<String>,
    /// Not available.
    #[arg(long, hide = true, value_name = "LABEL")]
    pub(super) image_label: Option<String>,
    /// Not available.
    #[arg(long, hide = true, value_name = "TARGET")]
    pub(super) build_target: Option<String>,
    /// Not available.
    #[arg(long, hide = true)]
    pub(super) no_build_cache: bool,
}

impl BuildFlags {
    /// Refuses what only a builder could do.
    pub(super) fn refuse(&self, image: Option<&str>) -> Result<(), CliError> {
        let asked = self.dockerfile.is_some()
            || self.build_depot.is_some()
            || self.build_nixpacks
            || self.build_only
            || self.build_remote_only
            || self.build_local_only
            || !self.build_arg.is_empty()
            || self.image_label.is_some()
            || self.build_target.is_some()
            || self.no_build_cache;
        if asked || image.is_some_and(|image| image.starts_with(['.', '/'])) {
            return Err(CliError::with_hint(
                "this server builds no images",
                "Build it with docker or podman, save it to an archive and give that to 'caddis \
                 image import', or push it to a registry and name it here.",
            ));
        }
        Ok(())
    }
}
