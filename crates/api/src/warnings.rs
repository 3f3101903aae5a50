//! What of a configuration is stored and given back, and does nothing: not yet, or because of what
//! else is in it.

use serde_json::Value;

use crate::{RawConfig, fields, validate};

mod mounts;
mod services;

const NO_REPLAYS: &str = "requests are not replayed yet";
const NO_SECRETS: &str = "there are no secrets yet";
const ONE_HOST: &str = "it needs several hosts";

/// Fields that are stored only, with the reason.
const STORED: &[(&str, &str)] = &[
    ("services[].force_instance_key", NO_REPLAYS),
    ("services[].ports[].http_options.replay_cache", NO_REPLAYS),
    ("services[].ports[].http_options.compress", "responses are not compressed yet"),
    ("statics", "files are not served by the proxy yet"),
    ("metrics", "metrics are not collected yet"),
    ("cache_drive", "there are no cache drives yet"),
    ("standbys", ONE_HOST),
    ("spot", "there are no spot prices here"),
    ("dns.dns_forward_rules", "all queries go to the same name servers"),
    ("processes[].secrets", NO_SECRETS),
    ("processes[].ignore_app_secrets", NO_SECRETS),
    ("files[].secret_name", NO_SECRETS),
    ("files[].image_config", "files can't be made from an image's configuration yet"),
];

/// A line for each part that has no effect on this server, also where nobody knows it.
pub fn warnings(raw: &RawConfig) -> Vec<String> {
    let config = Value::Object(raw.fields());
    let given = STORED.iter().filter(|(path, _)| is_given(&config, path));
    let stored =
        given.map(|(field, why)| format!("config.{field} is stored and has no effect: {why}"));
    let of_others = validate::read(raw)
        .map(|config| [services::warnings(&config), mounts::warnings(&config)].concat());
    stored.chain(of_others.unwrap_or_default()).chain(fields::unknown(&config)).collect()
}

/// Whether there is something at a path, where `[]` stands for any item of a list.
fn is_given(value: &Value, path: &str) -> bool {
    let (name, rest) = path.split_once('.').map_or((path, ""), |(name, rest)| (name, rest));
    let of_items = name.strip_suffix("[]");
    let Some(value) = value.get(of_items.unwrap_or(name)) else { return false };
    match (value, of_items) {
        (Value::Array(items), Some(_)) => items.iter().any(|item| is_given(item, rest)),
        _ if !rest.is_empty() => is_given(value, rest),
        (Value::Null | Value::Bool(false), _) => false,
        (Value::Array(items), _) => !items.is_empty(),
        (Value::Object(fields), _) => !fields.is_empty(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_given_and_does_nothing_is_warned_of() {
        let sent = json!({
            "image": "a", "env": {"A": "b"}, "services": [], "standbys": ["1"], "statics": [{}],
            "mounts": null, "dns": {"skip_registration": true, "dns_forward_rules": []},
            "processes": [{}, {"secrets": [{"env_var": "A"}]}],
            "imgae": "b",
        });
        let warnings = warnings(&serde_json::from_value(sent).unwrap());
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warnings[0].starts_with("config.statics is stored"));
        assert!(warnings[1].ends_with("it needs several hosts"));
        assert_eq!(
            warnings[2],
            "config.processes[].secrets is stored and has no effect: there are no secrets yet"
        );
        assert!(warnings[3].ends_with("did you mean image?"));
        let forwarded = json!({"image": "a", "dns": {"dns_forward_rules": [{"addr": "::1"}]}});
        let warnings = super::warnings(&serde_json::from_value(forwarded).unwrap());
        assert!(warnings[0].starts_with("config.dns.dns_forward_rules is stored"), "{warnings:?}");
        let port = json!({"port": 80, "handlers": ["http"],
            "http_options": {"compress": true, "replay_cache": [{"path_prefix": "/"}]}});
        let service = json!({"internal_port": 80, "force_instance_key": "k", "ports": [port]});
        let sent = json!({"image": "a", "checks": {"a": {"type": "tcp", "port": 1}},
            "disable_machine_autostart": true, "services": [service]});
        let warnings = super::warnings(&serde_json::from_value(sent).unwrap());
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[0].starts_with("config.services[].force_instance_key is stored"));
        assert!(warnings[2].ends_with("responses are not compressed yet"));
    }
}
