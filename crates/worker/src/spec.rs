//! Merges image and machine configuration into what init is told. Pure.

use std::time::Duration;

use caddis_api::{
    ApiError, MachineConfig, Signal, UnknownSignal,
    config::{DEFAULT_ROOTFS_GIB, DnsOption, FieldRef, Process, Ulimit},
};
use caddis_guest_protocol::spec::{FileSpec, LimitSpec, MachineSpec, NetworkSpec, ProgramSpec};
use caddis_image::{ImageConfig, OwnFile};

use crate::{operations::StopPlan, row::MachineRow};

/// Time between stop signal and SIGKILL unless the configuration says otherwise, as the reference
/// has it.
pub const DEFAULT_STOP_TIMEOUT_MS: u64 = 5_000;

/// What init is told, but for time and entropy, which belong to the moment of sending.
///
/// # Errors
/// 400 when neither image nor configuration name a program.
pub fn machine_spec(
    row: &MachineRow,
    config: &MachineConfig,
    network: NetworkSpec,
) -> Result<MachineSpec, ApiError> {
    let image = &row.image.config;
    let mut programs = programs(row, config);
    if programs.iter().any(|program| program.argv.is_empty()) {
        return Err(ApiError::invalid(format!(
            "image {} has no program to run, set config.init.cmd or config.init.exec",
            row.image.requested
        )));
    }
    let first = programs.remove(0);
    let ulimits = config.init.as_ref().and_then(|init| init.ulimits.clone()).unwrap_or_default();
    Ok(MachineSpec {
        machine_id: row.id.to_string(),
        argv: first.argv,
        env: first.env,
        user: first.user,
        others: programs,
        working_dir: image.working_dir.clone(),
        pid_namespace: config.init.as_ref().and_then(|init| init.pid_namespace),
        tty: config.init.as_ref().and_then(|init| init.tty).unwrap_or(false),
        open_files: limit(ulimits.nofile),
        user_processes: limit(ulimits.nproc),
        files: files(config),
        network,
        hostname: hostname(row, config),
        root_size: config.rootfs_gib() << 30,
        grow_root: config.rootfs_gib() > DEFAULT_ROOTFS_GIB,
        ..MachineSpec::default()
    })
}

fn limit(limit: Option<Ulimit>) -> LimitSpec {
    let Ulimit { soft, hard } = limit.unwrap_or_default();
    LimitSpec { soft, hard }
}

/// At least one.
fn programs(row: &MachineRow, config: &MachineConfig) -> Vec<ProgramSpec> {
    let image = &row.image.config;
    let program = |process: &Process| ProgramSpec {
        argv: argv(image, config, process),
        env: environment(row, config, process),
        user: process.user.clone().unwrap_or_else(|| image.user.clone()),
    };
    match config.processes.as_deref().unwrap_or_default() {
        [] => vec![program(&Process::default())],
        several => several.iter().map(program).collect(),
    }
}

fn argv(image: &ImageConfig, config: &MachineConfig, process: &Process) -> Vec<String> {
    let given = |words: &Option<Vec<String>>| words.clone().filter(|words| !words.is_empty());
    let init = config.init.clone().unwrap_or_default();
    let has_own = process.entrypoint.is_some() || process.cmd.is_some();
    if let Some(exec) = given(&process.exec).or_else(|| given(&init.exec).filter(|_| !has_own)) {
        return exec;
    }
    let entrypoint =
        process.entrypoint.clone().or(init.entrypoint).unwrap_or_else(|| image.entrypoint.clone());
    let cmd = process.cmd.clone().or(init.cmd).unwrap_or_else(|| image.cmd.clone());
    entrypoint.into_iter().chain(cmd).collect()
}

/// Later ones win: the image's, the configuration's, the process's, the platform's.
fn environment(
    row: &MachineRow,
    config: &MachineConfig,
    process: &Process,
) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match merged.iter_mut().find(|(known, _)| known == key) {
        Some((_, old)) => value.clone_into(old),
        None => merged.push((key.to_owned(), value.to_owned())),
    };
    for variable in &row.image.config.env {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(key, value);
    }
    for (key, value) in config.env.iter().flatten().chain(process.env.iter().flatten()) {
        set(key, value);
    }
    for variable in process.env_from.iter().flatten() {
        set(&variable.env_var, &fact(row, variable.field_ref));
    }
    let group = config.metadata.as_ref().and_then(|metadata| metadata.get("fly_process_group"));
    for (key, value) in [
        ("FLY_APP_NAME", row.app.as_str()),
        ("FLY_MACHINE_ID", row.id.as_str()),
        ("FLY_ALLOC_ID", row.id.as_str()),
        ("FLY_REGION", row.region.as_str()),
        ("FLY_PRIVATE_IP", &row.addresses.ipv6.to_string()),
        ("FLY_IMAGE_REF", &row.image.requested),
        ("FLY_MACHINE_VERSION", row.version.as_str()),
        ("FLY_VM_MEMORY_MB", &config.memory_mib().to_string()),
    ] {
        set(key, value);
    }
    if let Some(group) = group {
        set("FLY_PROCESS_GROUP", group);
    }
    merged
}

fn fact(row: &MachineRow, field: FieldRef) -> String {
    match field {
        FieldRef::Id => row.id.to_string(),
        FieldRef::Version => row.version.to_string(),
        FieldRef::AppName => row.app.to_string(),
        FieldRef::PrivateIp => row.addresses.ipv6.to_string(),
        FieldRef::Region => row.region.to_string(),
        FieldRef::Image => row.image.requested.clone(),
    }
}

fn files(config: &MachineConfig) -> Vec<FileSpec> {
    let files = config.files.iter().flatten();
    files
        .filter_map(|file| {
            let content = file.raw_value.clone()?;
            let mode = file.mode.unwrap_or(0);
            Some(FileSpec { path: file.guest_path.clone(), content, mode, only_in_place: false })
        })
        .collect()
}

fn hostname(row: &MachineRow, config: &MachineConfig) -> String {
    let given = config.dns.as_ref().and_then(|dns| dns.hostname.clone());
    given.filter(|name| !name.is_empty()).unwrap_or_else(|| row.id.to_string())
}

/// Files that a machine has in place of its image's.
pub fn own_files(row: &MachineRow, config: &MachineConfig, network: &NetworkSpec) -> Vec<OwnFile> {
    let dns = config.dns.clone().unwrap_or_default();
    let hostname = hostname(row, config);
    let names =
        dns.hostname_fqdn.map_or_else(|| hostname.clone(), |fqdn| format!("{fqdn} {hostname}"));
    let (ipv4, ipv6) = (row.addresses.ipv4, row.addresses.ipv6);
    // Programs that know IPv4 alone look for their own name too, and some do not start without.
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{ipv6} fly-local-6pn \
         {names}\n\
         {ipv4} fly-global-services {names}\n"
    );
    let servers = dns
        .nameservers
        .filter(|servers| !servers.is_empty())
        .unwrap_or_else(|| network.nameservers.clone());
    let mut resolver: String =
        servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    let options = dns.options.unwrap_or_default().into_iter().map(resolver_option).collect();
    for (keyword, words) in [("search", dns.searches.unwrap_or_default()), ("options", options)] {
        if !words.is_empty() {
            resolver.push_str(&format!("{keyword} {}\n", words.join(" ")));
        }
    }
    let file = |path, content| OwnFile { path, content, only_in_place: false };
    // Who has one of the image's would have the same as all others of the image.
    let id = OwnFile {
        only_in_place: true,
        ..file("/etc/machine-id", format!("{:0>32}\n", row.id.as_str()))
    };
    vec![
        file("/etc/hostname", format!("{hostname}\n")),
        file("/etc/hosts", hosts),
        file("/etc/resolv.conf", resolver),
        id,
    ]
}

fn resolver_option(option: DnsOption) -> String {
    match option.value.filter(|value| !value.is_empty()) {
        Some(value) => format!("{}:{value}", option.name),
        None => option.name,
    }
}

/// Refuses to suspend a machine that can't be.
///
/// # Errors
/// 412 with the reason.
pub fn check_suspendable(config: &MachineConfig) -> Result<(), ApiError> {
    match config.why_not_suspendable() {
        Some(reason) => Err(ApiError::precondition(format!("unable to suspend machine: {reason}"))),
        None => Ok(()),
    }
}

/// How to stop a machine: as asked, else as configured, else as the image has it, else SIGINT (for
/// which the guest sends init systems their own) and five seconds.
pub fn stop_plan(
    image: &ImageConfig,
    config: &MachineConfig,
    signal: Option<Signal>,
    timeout: Option<Duration>,
) -> StopPlan {
    let configured = config.stop_config.clone().unwrap_or_default();
    let chosen = signal.or(configured.signal).or_else(|| stop_signal(image).ok().flatten());
    // Less than one was stored by those who meant seconds, and counts as the default.
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let timeout =
        timeout.filter(|time| !time.is_zero()).or_else(|| configured.timeout.map(|time| time.0));
    StopPlan {
        signal: chosen.unwrap_or(Signal::INT),
        is_default: chosen.is_none(),
        timeout_ms: timeout
            .map(millis)
            .filter(|timeout| *timeout > 0)
            .unwrap_or(DEFAULT_STOP_TIMEOUT_MS)
            .min(caddis_api::validate::MAX_STOP_TIMEOUT_SECONDS * 1000),
    }
}

/// The signal that an image wants to be stopped with, if any.
fn stop_signal(image: &ImageConfig) -> Result<Option<Signal>, UnknownSignal> {
    image.stop_signal.as_deref().map(str::parse).transpose()
}

/// What of an image has no effect, for the user.
pub fn image_warnings(image: &ImageConfig, config: &MachineConfig) -> Vec<String> {
    let is_asked = config.stop_config.as_ref().is_none_or(|stop| stop.signal.is_none());
    let unknown = stop_signal(image).err().filter(|_| is_asked);
    unknown
        .map(|error| {
            format!("the image's stop signal is not used, {} is sent: {error}", Signal::INT)
        })
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use caddis_api::config::{Init, StopConfig};

    use super::*;

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["a".to_owned()],
            stop_signal: Some("SIGQUIT".to_owned()),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn overrides_of_the_program_are_independent() {
        let words =
            |list: &[&str]| Some(list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        for (init, expected) in [
            (Init::default(), vec!["/entry", "a"]),
            (Init { cmd: words(&["b", "c"]), ..Init::default() }, vec!["/entry", "b", "c"]),
            (Init { entrypoint: words(&["/other"]), ..Init::default() }, vec!["/other", "a"]),
            (
                Init { exec: words(&["/bin/x", "y"]), cmd: words(&["z"]), ..Init::default() },
                vec!["/bin/x", "y"],
            ),
        ] {
            let config = MachineConfig { init: Some(init), ..MachineConfig::default() };
            assert_eq!(argv(&image(), &config, &Process::default()), expected);
        }
    }

    #[test]
    fn what_a_process_leaves_open_is_as_for_a_machine_with_one() {
        let words =
            |list: &[&str]| Some(list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let only_exec = Init { exec: words(&["x"]), ..Init::default() };
        let with_cmd = Init { cmd: words(&["c"]), ..Init::default() };
        for (init, process, expected) in [
            (&with_cmd, Process::default(), vec!["/entry", "c"]),
            (&with_cmd, Process { cmd: words(&["d"]), ..Process::default() }, vec!["/entry", "d"]),
            (
                &with_cmd,
                Process { entrypoint: words(&["/e"]), ..Process::default() },
                vec!["/e", "c"],
            ),
            (&only_exec, Process::default(), vec!["x"]),
            (&only_exec, Process { cmd: words(&["d"]), ..Process::default() }, vec!["/entry", "d"]),
            (
                &only_exec,
                Process { exec: words(&["y", "z"]), ..Process::default() },
                vec!["y", "z"],
            ),
        ] {
            let config = MachineConfig { init: Some(init.clone()), ..MachineConfig::default() };
            assert_eq!(argv(&image(), &config, &process), expected);
        }
    }

    #[test]
    fn the_stop_signal_is_looked_for_in_order() {
        let configured = MachineConfig {
            stop_config: Some(StopConfig {
                signal: Some(Signal::TERM),
                timeout: Some("2s".parse().unwrap()),
            }),
            ..MachineConfig::default()
        };
        let bare = MachineConfig::default();
        let plan = |config, signal, timeout| stop_plan(&image(), config, signal, timeout);
        assert_eq!(
            plan(&configured, Some(Signal::KILL), Some(Duration::from_millis(7))),
            StopPlan { signal: Signal::KILL, timeout_ms: 7, is_default: false }
        );
        assert_eq!(
            plan(&configured, None, Some(Duration::ZERO)),
            StopPlan { signal: Signal::TERM, timeout_ms: 2000, is_default: false }
        );
        assert_eq!(plan(&bare, None, None).signal.name(), "SIGQUIT");
        assert_eq!(
            plan(&bare, None, Some(Duration::from_nanos(3))).timeout_ms,
            DEFAULT_STOP_TIMEOUT_MS
        );
        for (name, expected) in [
            ("SIGRTMIN+3", "SIGRTMIN+3"),
            ("RTMIN+3", "SIGRTMIN+3"),
            ("37", "SIGRTMIN+3"),
            ("winch", "SIGWINCH"),
        ] {
            let image =
                ImageConfig { stop_signal: Some(name.to_owned()), ..ImageConfig::default() };
            assert_eq!(stop_plan(&image, &bare, None, None).signal.name(), expected);
            assert!(image_warnings(&image, &bare).is_empty());
        }
        let odd = ImageConfig { stop_signal: Some("SIGODD".to_owned()), ..ImageConfig::default() };
        assert_eq!(stop_plan(&odd, &bare, None, None).signal, Signal::INT);
        assert!(image_warnings(&odd, &bare)[0].contains("SIGINT is sent: invalid signal 'SIGODD'"));
        assert!(image_warnings(&odd, &configured).is_empty());
        assert_eq!(
            stop_plan(&ImageConfig::default(), &bare, None, None),
            StopPlan { signal: Signal::INT, timeout_ms: DEFAULT_STOP_TIMEOUT_MS, is_default: true }
        );
    }
}
