use std::fs;

use super::*;

fn unified(directory: &Path) -> String {
    fs::write(directory.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
    fs::write(directory.join("cgroup.subtree_control"), "memory\n").unwrap();
    format!(
        "30 23 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        directory.display()
    )
}

fn trees(directory: &Path) -> String {
    let line = |name: &str| {
        fs::create_dir_all(directory.join(name)).unwrap();
        format!("31 24 0:27 / {}/{name} rw - cgroup cgroup rw,{name}\n", directory.display())
    };
    ["memory", "cpuset", "cpu", "pids"].map(line).concat()
}

const LIMITS: Limits = Limits { memory: 1 << 28, cpu_weight: 50, threads: 128 };

#[test]
fn version_2_gets_its_limits_in_one_directory() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = unified(directory.path());
    fs::create_dir_all(directory.path().join("a.slice/vms/slot-3")).unwrap();
    fs::write(directory.path().join("a.slice/cgroup.subtree_control"), "").unwrap();
    fs::write(directory.path().join("a.slice/vms/cgroup.subtree_control"), "").unwrap();
    let root = CgroupRoot::from_mounts(&mounts, "a.slice/vms").unwrap();
    assert_eq!(root.version(), Version::V2);
    let slot = root.slot("slot-3");
    let place = directory.path().join("a.slice/vms/slot-3");
    assert_eq!(slot.directories(), std::slice::from_ref(&place));
    for file in ["memory.max", "memory.swap.max", "cpu.weight", "pids.max"] {
        fs::write(place.join(file), "max      ").unwrap();
    }
    slot.create(LIMITS).unwrap();
    let read = |file: &str| fs::read_to_string(place.join(file)).unwrap();
    assert!(read("memory.max").starts_with("268435456"));
    assert!(read("memory.swap.max").starts_with('0'));
    assert!(read("cpu.weight").starts_with("50"));
    assert!(read("pids.max").starts_with("128"));
    fs::write(place.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
    assert_eq!(slot.oom_kills(), 2);
    assert_eq!(root.list().unwrap(), ["slot-3"]);
    let passed_on =
        fs::read_to_string(directory.path().join("a.slice/vms/cgroup.subtree_control")).unwrap();
    assert!(passed_on.starts_with("+"), "controllers are passed down to the slots");
    fs::remove_dir_all(directory.path().join("a.slice/vms")).unwrap();
    assert_eq!(root.list().unwrap(), Vec::<String>::new(), "another server has tidied up");
}

#[test]
fn version_1_gets_its_limits_in_the_tree_of_each_controller() {
    let directory = tempfile::tempdir().unwrap();
    let root = CgroupRoot::from_mounts(&trees(directory.path()), "caddis").unwrap();
    assert_eq!(root.version(), Version::V1);
    let slot = root.slot("slot-0");
    for (tree, file) in
        [("memory", "memory.limit_in_bytes"), ("cpu", "cpu.shares"), ("pids", "pids.max")]
    {
        let place = directory.path().join(tree).join("caddis/slot-0");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join(file), "").unwrap();
    }
    slot.create(LIMITS).unwrap();
    let read = |file: &str| fs::read_to_string(directory.path().join(file)).unwrap();
    assert_eq!(read("memory/caddis/slot-0/memory.limit_in_bytes"), "268435456");
    assert_eq!(read("cpu/caddis/slot-0/cpu.shares"), "512");
    assert_eq!(read("pids/caddis/slot-0/pids.max"), "128");
    fs::write(
        directory.path().join("memory/caddis/slot-0/memory.oom_control"),
        "under_oom 0\noom_kill 1\n",
    )
    .unwrap();
    assert_eq!(slot.oom_kills(), 1);
}

#[test]
fn in_hybrid_mode_an_empty_unified_tree_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("unified");
    fs::create_dir(&empty).unwrap();
    let mounts = unified(&empty) + &trees(directory.path());
    fs::write(empty.join("cgroup.controllers"), "\n").unwrap();
    assert_eq!(CgroupRoot::from_mounts(&mounts, "caddis").unwrap().version(), Version::V1);
}

#[test]
fn a_missing_controller_and_a_parent_outside_the_tree_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mounts = trees(directory.path());
    let without =
        mounts.lines().filter(|line| !line.ends_with("pids")).collect::<Vec<_>>().join("\n");
    let error = CgroupRoot::from_mounts(&without, "caddis").unwrap_err().to_string();
    assert!(error.contains("'pids'"), "{error}");
    for parent in ["", "/caddis", "../caddis", "caddis/../.."] {
        assert!(CgroupRoot::from_mounts(&mounts, parent).is_err(), "{parent}");
    }
}

#[test]
fn cgroups_that_are_hidden_by_what_is_mounted_over_them_are_told_from_missing_controllers() {
    let directory = tempfile::tempdir().unwrap();
    assert!(detect::are_hidden("23 27 0:22 / /sys rw - sysfs none rw\n"), "none at all");
    let mounts = unified(directory.path());
    assert!(detect::are_hidden(&mounts), "an empty directory is in their place");
    fs::write(directory.path().join("cgroup.procs"), "").unwrap();
    assert!(!detect::are_hidden(&mounts));
    assert!(detect::HIDDEN.contains("nsenter"));
}
