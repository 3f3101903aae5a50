//! Device nodes that have to be there before the module behind them is: their first opening has the
//! kernel ask for it.

use super::modules::Tree;

/// Module, path below `/dev`, numbers and permissions. The numbers are fixed by the kernel's
/// interface (Documentation/admin-guide/devices.txt, include/linux/miscdevice.h), the permissions
/// are those of systemd's rules.
const NODES: [(&str, &str, u32, u32, &str); 14] = [
    ("fuse", "fuse", 10, 229, "666"),
    ("cuse", "cuse", 10, 203, "600"),
    ("tun", "net/tun", 10, 200, "666"),
    ("loop", "loop-control", 10, 237, "660"),
    ("ppp_generic", "ppp", 108, 0, "600"),
    ("btrfs", "btrfs-control", 10, 234, "600"),
    ("autofs4", "autofs", 10, 235, "600"),
    ("dm_mod", "mapper/control", 10, 236, "600"),
    ("vhost_net", "vhost-net", 10, 238, "666"),
    ("vhost_vsock", "vhost-vsock", 10, 241, "666"),
    ("uhid", "uhid", 10, 239, "600"),
    ("uinput", "uinput", 10, 223, "600"),
    ("userio", "userio", 10, 240, "600"),
    ("vfio", "vfio/vfio", 10, 196, "666"),
];

/// Those whose module this kernel has, one a line: path, major, minor, permissions.
pub(super) fn of(tree: &Tree) -> String {
    let there = NODES.iter().filter(|(module, ..)| tree.has(module));
    there.map(|(_, path, major, minor, mode)| format!("{path} {major} {minor} {mode}\n")).collect()
}
