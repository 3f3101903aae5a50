//! A machine's configuration from flags.

mod files;
mod guest;
mod ports;
pub mod size;

use std::path::Path;

use caddis_api::RawConfig;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{CliError, words};

pub use guest::{check as check_guest, presets};

/// Where a machine's configuration names those it stands in for.
const STANDBY_FOR: &str = "FLY_STANDBY_FOR";

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
    /// Replace the image's entrypoint; split into words as a shell does.
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Argument for the guest's kernel; may be repeated.
    #[arg(long, value_name = "ARGUMENT")]
    pub kernel_arg: Vec<String>,
    /// Run hourly, daily, weekly or monthly.
    #[arg(long, value_name = "INTERVAL")]
    pub schedule: Option<String>,
    /// No internal name for the machine.
    #[arg(long)]
    pub skip_dns_registration: bool,
    /// Whether a request to a service starts the machine.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub autostart: Option<bool>,
    /// What to do when no service is used: off, stop or suspend.
    #[arg(long, value_name = "ACTION", num_args = 0..=1, require_equals = true, default_missing_value = "stop")]
    pub autostop: Option<String>,
    /// When the program ends: no, on-failure or always.
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Stand in for these machines, ids with commas; '' for none any more.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub standby_for: Option<Vec<String>>,
    /// Write a local file into the VM: /GUEST/PATH=LOCAL/PATH; may be repeated.
    #[arg(long, value_name = "PATH=FILE")]
    pub file_local: Vec<String>,
    /// Write a text into a file of the VM: /GUEST/PATH=TEXT; may be repeated.
    #[arg(long, value_name = "PATH=TEXT")]
    pub file_literal: Vec<String>,
    /// Write a secret into a file of the VM: /GUEST/PATH=SECRET; may be repeated.
    #[arg(long, value_name = "PATH=SECRET")]
    pub file_secret: Vec<String>,
    /// The whole configuration as JSON, or the path of a .json file; other flags change it.
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
    /// Which container of a machine with several gets image, files and command.
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
    /// Number of processors.
    #[arg(long, visible_alias = "cpus", value_name = "COUNT", allow_negative_numbers = true)]
    pub vm_cpus: Option<i64>,
    /// Kind of processors: shared or performance.
    #[arg(long, alias = "vm-cpukind", value_name = "KIND")]
    pub vm_cpu_kind: Option<String>,
    /// Memory in MB, or with a unit: 512mb, 2gb.
    #[arg(long, visible_alias = "memory", value_name = "SIZE")]
    pub vm_memory: Option<String>,
    /// Ceiling for growth at run time.
    #[arg(long, value_name = "SIZE", hide = true)]
    pub vm_max_memory: Option<String>,
    /// No longer accepted.
    #[arg(long, value_name = "COUNT", hide = true)]
    pub vm_gpus: Option<u32>,
    /// No longer accepted.
    #[arg(long, alias = "vm-gpukind", value_name = "KIND", hide = true)]
    pub vm_gpu_kind: Option<String>,
    /// Only on this dedicated host.
    #[arg(long, value_name = "ID")]
    pub host_dedication_id: Option<String>,
}

/// How an image would be built. There is no builder: they say so.
#[derive(Debug, Clone, Default, Args)]
pub struct BuildFlags {
    /// Not available: images are built elsewhere and imported.
    #[arg(long, value_name = "FILE", hide = true)]
    dockerfile: Option<String>,
    /// Not available.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, value_name = "BOOL")]
    build_depot: Option<Option<String>>,
    /// Not available.
    #[arg(long, hide = true)]
    build_nixpacks: bool,
    /// Without effect: nothing is built.
    #[arg(long, hide = true, value_name = "SIZE", env = "FLY_BUILD_CONTEXT_WARN_SIZE")]
    build_context_warn_size: Option<String>,
    /// Not available.
    #[arg(long, hide = true)]
    build_only: bool,
    /// Not available.
    #[arg(long, hide = true)]
    build_remote_only: bool,
    /// Not available.
    #[arg(long, hide = true)]
    build_local_only: bool,
    /// Not available.
    #[arg(long, hide = true, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// Not available.
    #[arg(long, hide = true, value_name = "LABEL")]
    image_label: Option<String>,
    /// Not available.
    #[arg(long, hide = true, value_name = "TARGET")]
    build_target: Option<String>,
    /// Not available.
    #[arg(long, hide = true)]
    no_build_cache: bool,
}

impl BuildFlags {
    /// Refuses what only a builder could do.
    fn refuse(&self, image: Option<&str>) -> Result<(), CliError> {
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
                "Build it with docker or podman, save it to an archive and give that to 'caddis image import', or push it \
                 to a registry and name it here.",
            ));
        }
        Ok(())
    }
}

/// What `run` and `create` add.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub image: Option<String>,
    pub command: Vec<String>,
    pub auto_destroy: bool,
}

/// The configuration of a new machine.
pub fn build(
    flags: &MachineFlags,
    program: &Program,
    directory: &Path,
) -> Result<RawConfig, CliError> {
    let mut config = match &flags.machine_config {
        Some(source) => read_config(source, directory)?,
        None => Map::new(),
    };
    if let Some(image) = &program.image {
        config.insert("image".to_owned(), json!(image));
    }
    let image = config.get("image").and_then(Value::as_str);
    flags.build.refuse(image)?;
    if image.is_none_or(str::is_empty) && !config.contains_key("containers") {
        return Err(CliError::new("image argument can't be an empty string"));
    }
    if program.auto_destroy {
        config.insert("auto_destroy".to_owned(), json!(true));
    }
    if !program.command.is_empty() {
        object(&mut config, "init").insert("cmd".to_owned(), json!(program.command));
    }
    apply(&mut config, flags, directory)?;
    if flags.restart.is_none() {
        let default = match (program.auto_destroy, &flags.schedule) {
            (true, _) => Some("no"),
            (false, Some(_)) => Some("on-failure"),
            (false, None) => None,
        };
        if let Some(policy) = default {
            object(&mut config, "restart").entry("policy").or_insert_with(|| json!(policy));
        }
    }
    Ok(config.into())
}

/// A machine's configuration with what the flags change of it.
pub fn change(
    config: &RawConfig,
    flags: &MachineFlags,
    directory: &Path,
) -> Result<Map<String, Value>, CliError> {
    let mut config = match &flags.machine_config {
        Some(source) => {
            // A whole configuration takes the place of the old one; what it leaves out of it, image
            // and guest, stays.
            let mut new = read_config(source, directory)?;
            for key in ["image", "guest"] {
                if let Some(value) = config.field(key).filter(|_| !new.contains_key(key)) {
                    new.insert(key.to_owned(), value);
                }
            }
            new
        }
        None => config.fields(),
    };
    flags.build.refuse(None)?;
    apply(&mut config, flags, directory)?;
    Ok(config)
}

/// Whether a whole configuration is given that says which image to run.
pub fn names_image(flags: &MachineFlags, directory: &Path) -> Result<bool, CliError> {
    let Some(source) = &flags.machine_config else { return Ok(false) };
    Ok(read_config(source, directory)?.contains_key("image"))
}

/// Gives a configuration these processors and so much memory.
pub fn set_vm(config: &mut Map<String, Value>, flags: &VmFlags) -> Result<(), CliError> {
    guest::set(config, flags, &[])
}

/// Puts an image in.
pub fn set_image(config: &mut Map<String, Value>, image: &str) -> Result<(), CliError> {
    BuildFlags::default().refuse(Some(image))?;
    config.insert("image".to_owned(), json!(image));
    Ok(())
}

/// Sets the command, split into words as a shell does; an empty one is that of the image again.
pub fn set_command(config: &mut Map<String, Value>, command: &str) -> Result<(), CliError> {
    let words = words::split("command", command)?;
    match words.is_empty() {
        true => drop(object(config, "init").remove("cmd")),
        false => drop(object(config, "init").insert("cmd".to_owned(), json!(words))),
    }
    Ok(())
}

/// Whether a machine with this configuration stands in for others, and so isn't launched.
pub fn is_standby(config: &Map<String, Value>) -> bool {
    config.get("standbys").and_then(Value::as_array).is_some_and(|standbys| !standbys.is_empty())
}

fn apply(
    config: &mut Map<String, Value>,
    flags: &MachineFlags,
    directory: &Path,
) -> Result<(), CliError> {
    if let Some(container) = &flags.container {
        // The server has no containers yet, and says so when some are configured.
        return Err(CliError::new(format!("container \"{container}\" not found")));
    }
    merge_pairs(config, "env", &flags.env)?;
    merge_pairs(config, "metadata", &flags.metadata)?;
    guest::set(config, &flags.vm, &flags.kernel_arg)?;
    if let Some(entrypoint) = &flags.entrypoint {
        let words = words::split("entrypoint", entrypoint)?;
        object(config, "init").insert("entrypoint".to_owned(), json!(words));
    }
    set_restart(config, flags)?;
    if let Some(schedule) = &flags.schedule {
        config.insert("schedule".to_owned(), json!(schedule));
    }
    if flags.skip_dns_registration {
        object(config, "dns").insert("skip_registration".to_owned(), json!(true));
    }
    set_disks(config, flags)?;
    files::read_local(config, directory)?;
    files::add(config, flags, directory)?;
    ports::add(config, &flags.port)?;
    set_services(config, flags)?;
    if let Some(ids) = &flags.standby_for {
        set_standbys(config, ids);
    }
    Ok(())
}

fn read_config(source: &str, directory: &Path) -> Result<Map<String, Value>, CliError> {
    let text = if source.trim_start().starts_with('{') {
        source.to_owned()
    } else if source.ends_with(".json") {
        let path = directory.join(source);
        std::fs::read_to_string(&path)
            .map_err(|e| CliError::new(format!("could not read {}: {e}", path.display())))?
    } else {
        return Err(CliError::new(format!("invalid machine config source: \"{source}\"")));
    };
    serde_json::from_str(&text).map_err(|e| CliError::new(format!("invalid machine config: {e}")))
}

/// The object of this name, made when missing.
pub fn object<'a>(config: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(name).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(fields) => fields,
        _ => unreachable!("made an object just now"),
    }
}

fn list<'a>(config: &'a mut Map<String, Value>, name: &str) -> &'a mut Vec<Value> {
    let value = config.entry(name).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("made a list just now"),
    }
}

fn merge_pairs(
    config: &mut Map<String, Value>,
    name: &str,
    pairs: &[String],
) -> Result<(), CliError> {
    for pair in pairs {
        let parts = pair.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = parts.ok_or_else(|| {
            CliError::new(format!("invalid key/value pairs specified for flag {name}"))
        })?;
        object(config, name).insert(key.to_owned(), json!(value));
    }
    Ok(())
}

fn set_restart(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let policy = match flags.restart.as_deref() {
        Some("no" | "never") => "no",
        Some("on-failure" | "on-fail") => "on-failure",
        Some("always") => "always",
        Some("") => {
            config.remove("restart");
            return Ok(());
        }
        Some(_) => {
            return Err(CliError::new("invalid restart provided: use no, on-failure or always"));
        }
        None => return Ok(()),
    };
    object(config, "restart").insert("policy".to_owned(), json!(policy));
    Ok(())
}

fn set_disks(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let parse = |flag: &str, text: &str, unit: u64| match size::parse(text, unit) {
        Some(size) => Ok(size),
        None if text.trim_start().starts_with('-') => {
            Err(CliError::new(format!("{flag} must not be negative")))
        }
        None => Err(CliError::new(format!("invalid size '{text}' for {flag}: write 10 or 10gb"))),
    };
    if let Some(persist) = &flags.rootfs_persist {
        if !["never", "always", "restart"].contains(&persist.as_str()) {
            return Err(CliError::new(
                "invalid rootfs-persist value, must be one of: never, always, restart",
            ));
        }
        object(config, "rootfs").insert("persist".to_owned(), json!(persist));
    }
    if let Some(text) = &flags.rootfs_size {
        match parse("--rootfs-size", text, 1 << 30)? {
            0 => drop(object(config, "rootfs").remove("size_gb")),
            size => drop(object(config, "rootfs").insert("size_gb".to_owned(), json!(size))),
        }
    }
    if let Some(text) = &flags.swap_size {
        match size::parse(text, 1 << 20) {
            None | Some(0) => return Err(CliError::new("--swap-size must be greater than zero")),
            Some(size) => object(config, "init").insert("swap_size_mb".to_owned(), json!(size)),
        };
    }
    if let Some(text) = &flags.cachedrive_size {
        match parse("--cachedrive-size", text, 1 << 20)? {
            0 => drop(config.remove("cache_drive")),
            size => drop(object(config, "cache_drive").insert("size_mb".to_owned(), json!(size))),
        }
    }
    Ok(())
}

fn set_services(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let autostop = match flags.autostop.as_deref() {
        None => None,
        Some("off" | "false") => Some(json!(false)),
        Some("stop" | "true") => Some(json!(true)),
        Some("suspend") => Some(json!("suspend")),
        Some(other) => {
            return Err(CliError::new(format!(
                "invalid autostop '{other}': use off, stop or suspend"
            )));
        }
    };
    for service in config.get_mut("services").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(autostop) = &autostop {
            service["autostop"] = autostop.clone();
        }
        if let Some(autostart) = flags.autostart {
            service["autostart"] = json!(autostart);
        }
    }
    Ok(())
}

/// Has the machine stand in for these; for none when there are none.
pub fn set_standbys(config: &mut Map<String, Value>, ids: &[String]) {
    let ids: Vec<_> = ids.iter().filter(|id| !id.is_empty()).collect();
    if ids.is_empty() {
        config.remove("standbys");
        if let Some(env) = config.get_mut("env").and_then(Value::as_object_mut) {
            env.remove(STANDBY_FOR);
        }
        return;
    }
    let joined = ids.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(",");
    config.insert("standbys".to_owned(), json!(ids));
    object(config, "env").insert(STANDBY_FOR.to_owned(), json!(joined));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: MachineFlags) -> Result<Value, String> {
        let program = Program { image: Some("nginx".to_owned()), ..Program::default() };
        build(&flags, &program, Path::new("/"))
            .map(|config| Value::Object(config.fields()))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn flags_change_a_given_configuration() {
        let flags = MachineFlags {
            machine_config: Some(
                r#"{"env": {"A": "1", "B": "2"}, "guest": {"cpus": 4}, "x": 1}"#.to_owned(),
            ),
            env: vec!["A=3".to_owned()],
            vm: VmFlags { vm_memory: Some("1gb".to_owned()), ..VmFlags::default() },
            file_literal: vec!["/a=b".to_owned()],
            ..MachineFlags::default()
        };
        assert_eq!(
            config(flags).unwrap(),
            json!({ "env": { "A": "3", "B": "2" }, "guest": { "cpus": 4, "memory_mb": 1024 }, "x": 1, "image": "nginx",
                    "files": [{ "guest_path": "/a", "raw_value": "Yg==" }] })
        );
        let wrong = |flags: MachineFlags| assert!(config(flags).is_err());
        let size = |size: &str| VmFlags { vm_size: Some(size.to_owned()), ..VmFlags::default() };
        wrong(MachineFlags { env: vec!["A".to_owned()], ..MachineFlags::default() });
        wrong(MachineFlags { vm: size("huge"), ..MachineFlags::default() });
        wrong(MachineFlags { vm: size("shared-cpu-3x"), ..MachineFlags::default() });
        wrong(MachineFlags { restart: Some("sometimes".to_owned()), ..MachineFlags::default() });
        wrong(MachineFlags { file_local: vec!["a=b".to_owned()], ..MachineFlags::default() });
        wrong(MachineFlags { swap_size: Some("0".to_owned()), ..MachineFlags::default() });
        wrong(MachineFlags { container: Some("app".to_owned()), ..MachineFlags::default() });
        wrong(MachineFlags {
            build: BuildFlags {
                dockerfile: Some("Dockerfile".to_owned()),
                ..BuildFlags::default()
            },
            ..MachineFlags::default()
        });
    }

    #[test]
    fn a_change_leaves_alone_what_no_flag_names() {
        let there = json!({ "image": "nginx", "env": { "A": "1", "FLY_STANDBY_FOR": "x" }, "standbys": ["x"],
                            "rootfs": { "size_gb": 4 }, "services": [{ "internal_port": 80, "ports": [{ "port": 80 }] }] });
        let flags = MachineFlags {
            standby_for: Some(vec![String::new()]),
            rootfs_size: Some("0".to_owned()),
            autostop: Some("suspend".to_owned()),
            autostart: Some(false),
            ..MachineFlags::default()
        };
        let changed =
            change(&RawConfig::from(there.as_object().unwrap().clone()), &flags, Path::new("/"))
                .unwrap();
        assert_eq!(
            Value::Object(changed),
            json!({ "image": "nginx", "env": { "A": "1" }, "rootfs": {},
                    "services": [{ "internal_port": 80, "ports": [{ "port": 80 }], "autostop": "suspend",
                                   "autostart": false }] })
        );
    }
}
