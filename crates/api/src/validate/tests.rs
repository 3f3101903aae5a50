use super::*;

fn raw(value: Value) -> RawConfig {
    serde_json::from_value(value).unwrap()
}

#[test]
fn fills_in_guest_and_restart_and_keeps_the_rest() {
    let sent = json!({"image": "nginx", "future": {"a": [1, 2]}, "services": [
        {"protocol": "tcp", "internal_port": 80, "autostop": "stop", "odd": 1}]});
    let (stored, config) = normalise(raw(sent)).unwrap();
    assert_eq!(
        Value::Object(stored.fields()),
        json!({"image": "nginx", "future": {"a": [1, 2]},
            "services": [{"protocol": "tcp", "internal_port": 80, "autostop": true, "odd": 1,
                "force_instance_key": null}],
            "guest": {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256},
            "restart": {"policy": "on-failure", "max_retries": 10}, "init": {}})
    );
    assert_eq!((config.cpus(), config.memory_mib()), (1, 256));
}

#[test]
fn expands_sizes() {
    let (stored, config) = normalise(raw(json!({"image": "a", "size": "performance-2x"}))).unwrap();
    assert_eq!((config.cpus(), config.memory_mib()), (2, 4096));
    assert!(!stored.fields().contains_key("size"));
}

#[test]
fn what_earlier_releases_stored_is_read() {
    let stored = raw(
        json!({"image": "a", "stop_config": {"timeout": 3, "signal": "SIGINT"}, "services": [{}],
        "mounts": [{"volume": "vol_1", "path": "/data"}], "dns": {"hostname": "a b"},
        "files": [{}]}),
    );
    assert_eq!(read(&stored).unwrap().stop_config.unwrap().timeout.unwrap().0.as_nanos(), 3);
}

#[test]
fn names_the_field_and_the_limit() {
    for (sent, expected) in [
        (json!({}), "config.image"),
        (json!({"image": 5}), "invalid config.image"),
        (json!({"image": "a", "guest": {"cpus": 3}}), "invalid config.guest.cpus"),
        (json!({"image": "a", "guest": {"cpus": -1}}), "invalid config.guest.cpus"),
        (json!({"image": "a", "guest": {"cpu_kind": "huge"}}), "invalid config.guest.cpu_kind"),
        (json!({"image": "a", "guest": {"memory_mb": 128}}), "minimum required 256 MiB"),
        (json!({"image": "a", "guest": {"memory_mb": 4096}}), "cannot exceed 2048 MiB"),
        (json!({"image": "a", "guest": {"memory_mb": 300}}), "multiple of 256"),
        (json!({"image": "a", "guest": {"memory_mb": 1e30}}), "invalid config.guest.memory_mb"),
        (
            json!({"image": "a", "guest": {"required_host_features": ["fast"]}}),
            "invalid config.guest.required_host_features, no host of this server has 'fast'",
        ),
        (json!({"image": "a", "size": "shared-cpu-99999999999x"}), "invalid config.size"),
        (json!({"image": "a", "stop_config": {"timeout": "301s"}}), "cannot exceed 300s"),
        (json!({"image": "a", "stop_config": {"signal": "SIGFOO"}}), "stop_config.signal"),
        (
            json!({"image": "a", "stop_config": {"timeout": 3}}),
            "stop_config.timeout, 3 ns is too short",
        ),
        (
            json!({"image": "a", "init": {"pid_namespace": true}, "processes": [{}, {}]}),
            "init.pid_namespace",
        ),
        (json!({"image": "a", "env": {"A=B": "x"}}), "config.env"),
        (json!({"image": "a", "env": {"A": 1}}), "config.env.A"),
        (
            json!({"image": "a", "files": [{"guest_path": "x", "raw_value": ""}]}),
            "config.files[0].guest_path",
        ),
        (json!({"image": "a", "files": [{"guest_path": "/x"}]}), "exactly one of"),
        (
            json!({"image": "a", "restart": {"policy": "sometimes"}}),
            "invalid config.restart.policy",
        ),
        (
            json!({"image": "a", "mounts": [{"volume": "vol_1", "path": "/"}]}),
            "config.mounts[0].path",
        ),
        (json!({"image": "a", "containers": [{}]}), "config.containers"),
        (
            json!({"image": "a", "processes": [{}, {"env": {"A=B": "x"}}]}),
            "config.processes[1].env",
        ),
        (json!({"image": "a", "processes": [{"cmd": ["a\0"]}]}), "config.processes[0], arguments"),
        (
            json!({"image": "a",
                "processes": [{"env_from": [{"env_var": "", "field_ref": "id"}]}]}),
            "env_from",
        ),
        (
            json!({"image": "a",
                "processes": [{"env_from": [{"env_var": "A", "field_ref": "x"}]}]}),
            "field_ref",
        ),
        (json!({"image": "a", "processes": vec![json!({}); 65]}), "cannot exceed 64"),
        (
            json!({"image": "a", "guest": ["shared", 1]}),
            "invalid config.guest, it must be an object",
        ),
        (
            json!({"image": "a", "dns": {"options": [["ndots", "1"]]}}),
            "invalid config.dns.options[0], it must be",
        ),
        (
            json!({"image": "a", "files": [["/x", "YQ=="]]}),
            "invalid config.files[0], it must be an object",
        ),
    ] {
        let error = normalise(raw(sent.clone())).unwrap_err();
        assert!(error.message.contains(expected), "{sent} gave {error}");
    }
}
