//! Fields that a configuration can have, at any depth: for telling of those that nobody knows.

use serde_json::Value;

/// Unknown fields that are told of at most.
const MOST: usize = 20;

/// How alike two names must be, of 1.
const CLOSE: f64 = 0.85;

/// The fields of each object: those of the reference, and ours. `[]` stands for every item of a
/// list, `*` for every key of an object whose keys are free. What is not listed has no fields, or
/// may have any.
const FIELDS: &[(&str, &[&str])] = &[
    (
        "config",
        &[
            "auto_destroy",
            "cache_drive",
            "checks",
            "containers",
            "disable_machine_autostart",
            "dns",
            "env",
            "files",
            "guest",
            "image",
            "init",
            "metadata",
            "metrics",
            "mounts",
            "processes",
            "restart",
            "rootfs",
            "schedule",
            "services",
            "size",
            "spot",
            "standbys",
            "statics",
            "stop_config",
            "volumes",
        ],
    ),
    ("config.cache_drive", &["size_mb"]),
    (
        "config.checks.*",
        &[
            "grace_period",
            "headers",
            "interval",
            "kind",
            "liveness",
            "method",
            "path",
            "port",
            "protocol",
            "timeout",
            "tls_server_name",
            "tls_skip_verify",
            "type",
        ],
    ),
    ("config.checks.*.headers[]", &["name", "values"]),
    ("config.checks.*.liveness", &["failures"]),
    (
        "config.dns",
        &[
            "dns_forward_rules",
            "hostname",
            "hostname_fqdn",
            "nameservers",
            "options",
            "searches",
            "skip_registration",
        ],
    ),
    ("config.dns.dns_forward_rules[]", &["addr", "basename"]),
    ("config.dns.options[]", &["name", "value"]),
    ("config.files[]", &["guest_path", "image_config", "mode", "raw_value", "secret_name"]),
    (
        "config.guest",
        &[
            "cpu_kind",
            "cpus",
            "gpu_kind",
            "gpus",
            "host_dedication_id",
            "kernel_args",
            "max_memory_mb",
            "memory_mb",
            "persist_rootfs",
            "required_host_features",
        ],
    ),
    (
        "config.init",
        &[
            "cmd",
            "entrypoint",
            "exec",
            "kernel_args",
            "pid_namespace",
            "swap_size_mb",
            "tty",
            "ulimits",
        ],
    ),
    ("config.init.ulimits", &["nofile", "nproc"]),
    ("config.init.ulimits.*", &["hard", "soft"]),
    ("config.metrics", &["https", "path", "port"]),
    (
        "config.mounts[]",
        &[
            "add_size_gb",
            "add_size_percent",
            "encrypted",
            "extend_threshold_percent",
            "min_add_size_gb",
            "name",
            "path",
            "size_gb",
            "size_gb_limit",
            "volume",
        ],
    ),
    (
        "config.processes[]",
        &["cmd", "entrypoint", "env", "env_from", "exec", "ignore_app_secrets", "secrets", "user"],
    ),
    ("config.processes[].env_from[]", &["env_var", "field_ref"]),
    ("config.processes[].secrets[]", &["env_var", "name"]),
    ("config.restart", &["max_retries", "policy"]),
    ("config.rootfs", &["persist", "size_gb"]),
    (
        "config.services[]",
        &[
            "autostart",
            "autostop",
            "checks",
            "concurrency",
            "force_instance_description",
            "force_instance_key",
            "idle_timeout",
            "internal_port",
            "max_drain",
            "min_machines_running",
            "ports",
            "protocol",
        ],
    ),
    (
        "config.services[].checks[]",
        &[
            "grace_period",
            "headers",
            "interval",
            "liveness",
            "method",
            "path",
            "port",
            "protocol",
            "timeout",
            "tls_server_name",
            "tls_skip_verify",
            "type",
        ],
    ),
    ("config.services[].checks[].headers[]", &["name", "values"]),
    ("config.services[].checks[].liveness", &["failures"]),
    ("config.services[].concurrency", &["hard_limit", "soft_limit", "type"]),
    (
        "config.services[].ports[]",
        &[
            "end_port",
            "force_https",
            "handlers",
            "http_options",
            "port",
            "proxy_proto_options",
            "start_port",
            "tls_options",
        ],
    ),
    (
        "config.services[].ports[].http_options",
        &[
            "compress",
            "h2_backend",
            "headers_read_timeout",
            "idle_timeout",
            "replay_cache",
            "response",
        ],
    ),
    (
        "config.services[].ports[].http_options.replay_cache[]",
        &["allow_bypass", "name", "path_prefix", "ttl_seconds", "type"],
    ),
    ("config.services[].ports[].http_options.response", &["headers", "pristine"]),
    ("config.services[].ports[].proxy_proto_options", &["fly_src", "version"]),
    ("config.services[].ports[].tls_options", &["alpn", "default_self_signed", "versions"]),
    ("config.spot", &["max_price_fraction"]),
    ("config.statics[]", &["guest_path", "index_document", "tigris_bucket", "url_prefix"]),
    ("config.stop_config", &["signal", "timeout"]),
];

/// Fields of a request to create or update a machine.
const REQUEST: &[&str] = &[
    "id",
    "org_slug",
    "config",
    "name",
    "region",
    "lease_ttl",
    "skip_launch",
    "skip_service_registration",
    "skip_secrets",
    "min_secrets_version",
    "current_version",
    "lsvd",
];

/// Fields of a request to create a volume.
const NEW_VOLUME: &[&str] = &[
    "name",
    "region",
    "size_gb",
    "encrypted",
    "require_unique_zone",
    "unique_zone_app_wide",
    "snapshot_retention",
    "auto_backup_enabled",
    "fstype",
    "snapshot_id",
    "source_volume_id",
    "compute",
    "compute_image",
    "machines_only",
    "count",
];

/// Fields of a request to update a volume.
const VOLUME_UPDATE: &[&str] = &["snapshot_retention", "auto_backup_enabled"];

fn fields(of: &str) -> Option<&'static [&'static str]> {
    FIELDS.iter().find(|(path, _)| *path == of).map(|(_, fields)| *fields)
}

/// A line for each field of a request's body that has no meaning.
pub fn unknown_of_request<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    unknown_beside(names, REQUEST, elsewhere)
}

/// The same, of a request to create a volume.
pub fn unknown_of_new_volume<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    unknown_beside(names, NEW_VOLUME, |_| None)
}

/// The same, of a request to update a volume. What only a create or an extend changes is told as
/// such.
pub fn unknown_of_volume_update<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let elsewhere = |name: &str| match name {
        "size_gb" => Some("; use extend".to_owned()),
        name => NEW_VOLUME.contains(&name).then(|| "; only a create sets it".to_owned()),
    };
    unknown_beside(names, VOLUME_UPDATE, elsewhere)
}

fn unknown_beside<'a>(
    names: impl IntoIterator<Item = &'a str>,
    known: &[&str],
    elsewhere: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let unknown = names.into_iter().filter(|name| !known.contains(name)).take(MOST);
    unknown
        .map(|name| {
            let hint = hint(name, known).or_else(|| elsewhere(name));
            format!("{} is not known and has no effect{}", shown(name), hint.unwrap_or_default())
        })
        .collect()
}

/// A line for each field of a configuration that nobody knows.
pub fn unknown(config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(config, "config", "config", &mut found);
    found
}

fn look(value: &Value, pattern: &str, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => {
            let pattern = format!("{pattern}[]");
            for (index, item) in items.iter().enumerate() {
                look(item, &pattern, &format!("{path}[{index}]"), found);
            }
        }
        Value::Object(object) => {
            let free = format!("{pattern}.*");
            let known = fields(pattern);
            for (key, value) in object {
                let path = format!("{path}.{}", shown(key));
                match known {
                    Some(known) if known.contains(&key.as_str()) => {
                        look(value, &format!("{pattern}.{key}"), &path, found);
                    }
                    Some(known) if found.len() < MOST => {
                        let hint = hint(key, known).or_else(|| elsewhere(key)).unwrap_or_default();
                        found.push(format!(
                            "{path} is not known, it is stored and has no effect{hint}"
                        ));
                    }
                    Some(_) => return,
                    None if fields(&free).is_some() => look(value, &free, &path, found),
                    None => {}
                }
            }
        }
        _ => {}
    }
}

/// A client's word, fit to be shown.
fn shown(name: &str) -> String {
    name.escape_debug().take(60).collect()
}

/// The known name most like an unknown one.
fn hint(name: &str, known: &[&str]) -> Option<String> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '-'], "");
    let wanted = plain(name);
    let likeness = |known: &str| {
        let known = plain(known);
        let is_part = wanted.len().min(known.len()) > 2
            && (wanted.starts_with(&known) || known.starts_with(&wanted));
        if is_part { 1.0 } else { strsim::jaro_winkler(&wanted, &known) }
    };
    let (by, best) =
        known.iter().map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (by >= CLOSE).then(|| format!("; did you mean {best}?"))
}

/// Where a field of this very name is, when it is in another place.
fn elsewhere(name: &str) -> Option<String> {
    let (path, _) = FIELDS.iter().find(|(_, fields)| fields.contains(&name))?;
    Some(format!("; did you mean {path}.{name}?"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::volume::{CreateVolumeRequest, UpdateVolumeRequest};

    #[test]
    fn unknown_fields_are_told_with_the_near_one_at_any_depth() {
        for (config, expected) in [
            (
                json!({ "imgae": "a" }),
                "config.imgae is not known, it is stored and has no effect; did you mean image?",
            ),
            (
                json!({ "guest": { "cpu": 1 } }),
                "config.guest.cpu is not known, it is stored and has no effect; did you mean cpus?",
            ),
            (
                json!({ "services": [{}, { "auto_stop_machines": true }] }),
                "config.services[1].auto_stop_machines is not known, it is stored and has no \
                 effect; did you mean autostop?",
            ),
            (
                json!({ "services": [{ "ports": [{ "handler": [] }] }] }),
                "config.services[0].ports[0].handler is not known, it is stored and has no effect; \
                 did you mean handlers?",
            ),
            (
                json!({ "checks": { "web": { "intervall": "5s" } } }),
                "config.checks.web.intervall is not known, it is stored and has no effect; did you \
                 mean interval?",
            ),
            (
                json!({ "cmd": ["a"] }),
                "config.cmd is not known, it is stored and has no effect; did you mean \
                 config.init.cmd?",
            ),
            (
                json!({ "memory_mb": 512 }),
                "config.memory_mb is not known, it is stored and has no effect; did you mean \
                 config.guest.memory_mb?",
            ),
            (json!({ "zzz": 1 }), "config.zzz is not known, it is stored and has no effect"),
            (json!({ "a\nb": 1 }), "config.a\\nb is not known, it is stored and has no effect"),
        ] {
            assert_eq!(unknown(&config), [expected], "{config}");
        }
        let free = json!({
            "image": "a", "env": { "imgae": "x" }, "metadata": { "x": "y" },
            "containers": [{ "odd": 1 }],
            "init": { "ulimits": { "nofile": { "soft": 1 } } }, "guest": null,
            "services": [null, 5],
        });
        assert_eq!(unknown(&free), [""; 0]);
        let many: serde_json::Map<_, _> =
            (0..1000).map(|number| (format!("x{number}"), json!(1))).collect();
        assert_eq!(unknown(&Value::Object(many)).len(), MOST);
    }

    #[test]
    fn fields_of_volumes_are_those_of_their_requests() {
        let names = |value: Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let known = |fields: &[&str]| fields.iter().map(|&field| field.to_owned()).collect();
        let new = CreateVolumeRequest { count: Some(2), ..CreateVolumeRequest::default() };
        assert_eq!(names(json!(new)), known(NEW_VOLUME));
        assert_eq!(names(json!(UpdateVolumeRequest::default())), known(VOLUME_UPDATE));
        assert_eq!(
            unknown_of_new_volume(["name", "size"]),
            ["size is not known and has no effect; did you mean size_gb?"]
        );
        assert_eq!(
            unknown_of_volume_update(["snapshot_retention", "size_gb", "fstype", "x"]),
            [
                "size_gb is not known and has no effect; use extend",
                "fstype is not known and has no effect; only a create sets it",
                "x is not known and has no effect"
            ]
        );
    }

    #[test]
    fn so_are_those_beside_the_configuration() {
        let told = unknown_of_request(["config", "nmae", "image", "region"]);
        assert_eq!(
            told,
            [
                "nmae is not known and has no effect; did you mean name?",
                "image is not known and has no effect; did you mean config.image?"
            ]
        );
    }
}
