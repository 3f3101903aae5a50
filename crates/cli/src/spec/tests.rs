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
        json!({ "env": { "A": "3", "B": "2" }, "guest": { "cpus": 4, "memory_mb": 1024 }, "x": 1,
                "image": "nginx",
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
        build: BuildFlags { dockerfile: Some("Dockerfile".to_owned()), ..BuildFlags::default() },
        ..MachineFlags::default()
    });
}

#[test]
fn a_change_leaves_alone_what_no_flag_names() {
    let there = json!({ "image": "nginx", "env": { "A": "1", "FLY_STANDBY_FOR": "x" },
                        "standbys": ["x"],
                        "rootfs": { "size_gb": 4 },
                        "services": [{ "internal_port": 80, "ports": [{ "port": 80 }] }] });
    let flags = MachineFlags {
        standby_for: Some(vec![String::new()]),
        rootfs_size: Some("0".to_owned()),
        autostop: Some("suspend".to_owned()),
        autostart: Some(false),
        idle_timeout: Some("30s".to_owned()),
        max_drain: Some("1m".to_owned()),
        min_machines_running: Some(2),
        ..MachineFlags::default()
    };
    let changed =
        change(&RawConfig::from(there.as_object().unwrap().clone()), &flags, Path::new("/"))
            .unwrap();
    assert_eq!(
        Value::Object(changed),
        json!({ "image": "nginx", "env": { "A": "1" }, "rootfs": {},
                "services": [{ "internal_port": 80, "ports": [{ "port": 80 }],
                               "autostop": "suspend",
                               "autostart": false, "idle_timeout": "30s", "max_drain": "1m",
                               "min_machines_running": 2 }] })
    );
}
