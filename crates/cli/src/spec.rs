//! A machine's configuration from flags.

use std::path::Path;

use base64::Engine as _;
use caddis_api::RawConfig;
use clap::Args;
use serde_json::{Map, Value, json};

use crate::CliError;

/// Flags that describe a machine.
#[derive(Debug, Clone, Default, Args)]
pub struct MachineFlags {
    /// Publish a port: PORT[:INTERNAL][/PROTOCOL[:HANDLER...]]; may be repeated.
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
    /// When the program ends: no, on-failure or always.
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// Write a local file into the VM: /GUEST/PATH=LOCAL/PATH; may be repeated.
    #[arg(long, value_name = "PATH=FILE")]
    pub file_local: Vec<String>,
    /// Write a text into a file of the VM: /GUEST/PATH=TEXT; may be repeated.
    #[arg(long, value_name = "PATH=TEXT")]
    pub file_literal: Vec<String>,
    /// The whole configuration as JSON, or the path of a .json file; other flags change it.
    #[arg(long, value_name = "JSON")]
    pub machine_config: Option<String>,
    /// Preset, such as shared-cpu-1x or performance-2x; see 'caddis platform vm-sizes'.
    #[arg(long, value_name = "PRESET")]
    pub vm_size: Option<String>,
    /// Number of processors.
    #[arg(long, visible_alias = "cpus", value_name = "COUNT")]
    pub vm_cpus: Option<u32>,
    /// Kind of processors: shared or performance.
    #[arg(long, alias = "vm-cpukind", value_name = "KIND")]
    pub vm_cpu_kind: Option<String>,
    /// Memory in MB, or with a unit: 512mb, 2gb.
    #[arg(long, visible_alias = "memory", value_name = "SIZE")]
    pub vm_memory: Option<String>,
    /// Size of the root file system in GB, or with a unit.
    #[arg(long, value_name = "SIZE")]
    pub rootfs_size: Option<String>,
}

/// What `run` and `create` add.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub image: Option<String>,
    pub command: Vec<String>,
    pub auto_destroy: bool,
}

/// The configuration that the flags describe.
pub fn build(flags: &MachineFlags, program: &Program, directory: &Path) -> Result<RawConfig, CliError> {
    let mut config = match &flags.machine_config {
        Some(source) => read_config(source, directory)?,
        None => Map::new(),
    };
    if let Some(image) = &program.image {
        config.insert("image".to_owned(), json!(image));
    }
    if config.get("image").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(CliError::new("image argument can't be an empty string"));
    }
    if program.auto_destroy {
        config.insert("auto_destroy".to_owned(), json!(true));
    }
    merge_pairs(&mut config, "env", &flags.env)?;
    merge_pairs(&mut config, "metadata", &flags.metadata)?;
    set_guest(&mut config, flags)?;
    set_init(&mut config, flags, program)?;
    set_restart(&mut config, flags, program)?;
    if let Some(schedule) = &flags.schedule {
        config.insert("schedule".to_owned(), json!(schedule));
    }
    if flags.skip_dns_registration {
        object(&mut config, "dns").insert("skip_registration".to_owned(), json!(true));
    }
    if let Some(size) = &flags.rootfs_size {
        let size = parse_size(size, 1 << 30).ok_or_else(|| CliError::new(format!("invalid rootfs size '{size}'")))?;
        object(&mut config, "rootfs").insert("size_gb".to_owned(), json!(size));
    }
    add_files(&mut config, flags, directory)?;
    add_services(&mut config, &flags.port)?;
    Ok(RawConfig(config))
}

fn read_config(source: &str, directory: &Path) -> Result<Map<String, Value>, CliError> {
    let text = if source.trim_start().starts_with('{') {
        source.to_owned()
    } else if source.ends_with(".json") {
        let path = directory.join(source);
        std::fs::read_to_string(&path).map_err(|e| CliError::new(format!("could not read {}: {e}", path.display())))?
    } else {
        return Err(CliError::new(format!("invalid machine config source: \"{source}\"")));
    };
    serde_json::from_str(&text).map_err(|e| CliError::new(format!("invalid machine config: {e}")))
}

/// The object of this name, made when missing.
fn object<'a>(config: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
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

fn merge_pairs(config: &mut Map<String, Value>, name: &str, pairs: &[String]) -> Result<(), CliError> {
    for pair in pairs {
        let parts = pair.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) =
            parts.ok_or_else(|| CliError::new(format!("invalid key/value pairs specified for flag {name}")))?;
        object(config, name).insert(key.to_owned(), json!(value));
    }
    Ok(())
}

fn set_guest(config: &mut Map<String, Value>, flags: &MachineFlags) -> Result<(), CliError> {
    let mut set = |key: &str, value: Value| object(config, "guest").insert(key.to_owned(), value);
    if let Some(name) = &flags.vm_size {
        let preset = preset(name).ok_or_else(|| {
            let names: Vec<_> = presets().into_iter().map(|preset| preset.name).collect();
            CliError::new(format!("'{name}' is an invalid machine size, choose one of: [{}]", names.join(", ")))
        })?;
        set("cpu_kind", json!(preset.kind));
        set("cpus", json!(preset.cpus));
        set("memory_mb", json!(preset.memory_mb));
    }
    if let Some(cpus) = flags.vm_cpus {
        if cpus == 0 {
            return Err(CliError::new("--vm-cpus must be greater than zero, got: 0"));
        }
        set("cpus", json!(cpus));
    }
    if let Some(kind) = &flags.vm_cpu_kind {
        if !["shared", "performance"].contains(&kind.as_str()) {
            return Err(CliError::new("--vm-cpu-kind must be set to 'shared' or 'performance'"));
        }
        set("cpu_kind", json!(kind));
    }
    if let Some(memory) = &flags.vm_memory {
        match parse_size(memory, 1 << 20) {
            None => return Err(CliError::new(format!("invalid memory size '{memory}'"))),
            Some(0) => return Err(CliError::new("--vm-memory cannot be zero")),
            Some(mib) => set("memory_mb", json!(mib)),
        };
    }
    if !flags.kernel_arg.is_empty() {
        set("kernel_args", json!(flags.kernel_arg));
    }
    Ok(())
}

fn set_init(config: &mut Map<String, Value>, flags: &MachineFlags, program: &Program) -> Result<(), CliError> {
    if let Some(entrypoint) = &flags.entrypoint {
        let words = shell_words::split(entrypoint).map_err(|e| CliError::new(format!("invalid entrypoint: {e}")))?;
        object(config, "init").insert("entrypoint".to_owned(), json!(words));
    }
    if !program.command.is_empty() {
        object(config, "init").insert("cmd".to_owned(), json!(program.command));
    }
    Ok(())
}

fn set_restart(config: &mut Map<String, Value>, flags: &MachineFlags, program: &Program) -> Result<(), CliError> {
    let policy = match flags.restart.as_deref() {
        Some("no" | "never") => Some("no"),
        Some("on-failure" | "on-fail") => Some("on-failure"),
        Some("always") => Some("always"),
        Some(_) => return Err(CliError::new("invalid restart provided: use no, on-failure or always")),
        None if program.auto_destroy => Some("no"),
        None => None,
    };
    if let Some(policy) = policy {
        object(config, "restart").insert("policy".to_owned(), json!(policy));
    }
    Ok(())
}

fn add_files(config: &mut Map<String, Value>, flags: &MachineFlags, directory: &Path) -> Result<(), CliError> {
    let encode = |content: &[u8]| base64::engine::general_purpose::STANDARD.encode(content);
    let local = flags.file_local.iter().map(|argument| ("file-local", argument));
    let literal = flags.file_literal.iter().map(|argument| ("file-literal", argument));
    for (flag, argument) in local.chain(literal) {
        let (path, value) =
            argument.split_once('=').ok_or_else(|| CliError::new(format!("invalid {flag} argument {argument}")))?;
        if !path.starts_with('/') {
            return Err(CliError::new(format!("guest path, {path}, must be absolute")));
        }
        let content = if flag == "file-local" {
            let source = directory.join(value);
            std::fs::read(&source).map_err(|e| CliError::new(format!("could not read {}: {e}", source.display())))?
        } else {
            value.as_bytes().to_vec()
        };
        let files = list(config, "files");
        files.retain(|file| file.get("guest_path").and_then(Value::as_str) != Some(path));
        if !value.is_empty() {
            files.push(json!({ "guest_path": path, "raw_value": encode(&content) }));
        }
    }
    Ok(())
}

/// `port[:internal][/proto[:handler…]]`, as the reference's grammar has it.
fn add_services(config: &mut Map<String, Value>, ports: &[String]) -> Result<(), CliError> {
    for text in ports {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let mut words = protocol.split(':');
        let protocol = words.next().filter(|word| !word.is_empty()).unwrap_or("tcp");
        let handlers: Vec<_> = words.collect();
        let mut parts = ports.split(':');
        let (external, internal, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if rest.is_some() {
            return Err(CliError::new("port definition must be at most 2 elements (external:internal)"));
        }
        let number =
            |text: &str, what: &str| text.parse::<u16>().map_err(|_| CliError::new(format!("invalid {what}port")));
        let (first, last) = match external.split_once('-') {
            Some((first, last)) if internal.is_some() => {
                (number(first, "external ")?, Some(number(last, "external ")?))
            }
            Some(_) => return Err(CliError::new("invalid port")),
            None => (number(external, "external ")?, None),
        };
        let internal = match internal {
            Some(internal) => number(internal, "machine (internal) ")?,
            None => first,
        };
        let mut port = match last {
            Some(last) => json!({ "start_port": first, "end_port": last }),
            None => json!({ "port": first }),
        };
        if !handlers.is_empty() {
            port["handlers"] = json!(handlers);
        }
        let services = list(config, "services");
        let same = |service: &&mut Value| service["internal_port"] == internal && service["protocol"] == protocol;
        match services.iter_mut().find(same).and_then(|service| service["ports"].as_array_mut()) {
            Some(ports) => ports.push(port),
            None => services.push(json!({ "protocol": protocol, "internal_port": internal, "ports": [port] })),
        }
    }
    Ok(())
}

/// A number of `unit`s, or a size with a unit of its own. Binary units. `None` for what is neither.
fn parse_size(text: &str, unit: u64) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse::<u64>().ok()?;
    let factor = match text[digits..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" if digits == text.len() => return Some(number),
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    Some(number.checked_mul(factor)?.div_ceil(unit))
}

/// A size of machine that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preset {
    pub name: String,
    pub kind: &'static str,
    pub cpus: u32,
    pub memory_mb: u32,
}

/// All of them.
pub fn presets() -> Vec<Preset> {
    let preset = |kind: &'static str, prefix: &str, cpus: u32, each: u32| Preset {
        name: format!("{prefix}-{cpus}x"),
        kind,
        cpus,
        memory_mb: cpus * each,
    };
    let shared = [1, 2, 4, 6, 8].map(|cpus| preset("shared", "shared-cpu", cpus, 256));
    let performance = [1, 2, 4, 6, 8, 10, 12, 14, 16].map(|cpus| preset("performance", "performance", cpus, 2048));
    shared.into_iter().chain(performance).collect()
}

fn preset(name: &str) -> Option<Preset> {
    presets().into_iter().find(|preset| preset.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: MachineFlags) -> Result<Value, String> {
        let program = Program { image: Some("nginx".to_owned()), ..Program::default() };
        build(&flags, &program, Path::new("/")).map(|config| Value::Object(config.0)).map_err(|e| e.to_string())
    }

    fn ports(ports: &[&str]) -> Result<Value, String> {
        let port = ports.iter().map(|port| (*port).to_owned()).collect();
        config(MachineFlags { port, ..MachineFlags::default() }).map(|config| config["services"].clone())
    }

    #[test]
    fn ports_become_services_merged_by_internal_port_and_protocol() {
        assert_eq!(
            ports(&["443:80/tcp:http:tls", "80", "1001/udp"]).unwrap(),
            json!([
                { "protocol": "tcp", "internal_port": 80,
                  "ports": [{ "port": 443, "handlers": ["http", "tls"] }, { "port": 80 }] },
                { "protocol": "udp", "internal_port": 1001, "ports": [{ "port": 1001 }] },
            ])
        );
        let range = ports(&["8000-8010:80"]).unwrap();
        assert_eq!(range[0]["ports"][0], json!({ "start_port": 8000, "end_port": 8010 }));
        for wrong in ["x", "1:2:3", "70000", "80:x", "1-2"] {
            assert!(ports(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_the_named_unit_or_their_own() {
        for (text, expected) in [
            ("512", Some(512)),
            ("512mb", Some(512)),
            ("2gb", Some(2048)),
            ("1GiB", Some(1024)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text, 1 << 20), expected, "{text}");
        }
    }

    #[test]
    fn flags_change_a_given_configuration() {
        let flags = MachineFlags {
            machine_config: Some(r#"{"env": {"A": "1", "B": "2"}, "guest": {"cpus": 4}, "x": 1}"#.to_owned()),
            env: vec!["A=3".to_owned()],
            vm_memory: Some("1gb".to_owned()),
            file_literal: vec!["/a=b".to_owned()],
            ..MachineFlags::default()
        };
        assert_eq!(
            config(flags).unwrap(),
            json!({ "env": { "A": "3", "B": "2" }, "guest": { "cpus": 4, "memory_mb": 1024 }, "x": 1, "image": "nginx",
                    "files": [{ "guest_path": "/a", "raw_value": "Yg==" }] })
        );
        let wrong = |flags: MachineFlags| assert!(config(flags).is_err());
        wrong(MachineFlags { env: vec!["A".to_owned()], ..MachineFlags::default() });
        wrong(MachineFlags { vm_size: Some("huge".to_owned()), ..MachineFlags::default() });
        wrong(MachineFlags { restart: Some("sometimes".to_owned()), ..MachineFlags::default() });
        wrong(MachineFlags { file_local: vec!["a=b".to_owned()], ..MachineFlags::default() });
    }
}
