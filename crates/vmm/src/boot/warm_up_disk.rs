//! The disks that VMs warm up with. In the place of a machine's root disk: a root file system with
//! nothing in it but init, as a program to be read; nothing is executed from it
//! (docs/measurements.md). In the place of a volume: an empty file system with a journal.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::VmmError;

/// Where the program is.
pub(crate) const PROGRAM: &str = "/sbin/warm-up";
/// Room for init and what is written during a warm-up, bytes.
const SIZE: u64 = 16 << 20;
/// Those of machines' root disks; volumes have a journal besides.
const FEATURES: &str = "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,\
                        extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize";
/// Size of the volume with room for the smallest journal, 1024 blocks; bytes.
const VOLUME_SIZE: u64 = 16 << 20;

/// Makes that of the root, whole or not at all. Blocks.
pub(super) fn build(init: &[u8], path: &Path) -> Result<(), VmmError> {
    let tree = path.with_extension(format!("tree.{}", std::process::id()));
    let attempt = || {
        for name in ["dev", "proc", "sys", "etc", "sbin", "mnt"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        let program = tree.join(PROGRAM.trim_start_matches('/'));
        fs::write(&program, init)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))
    };
    let tree_made = attempt().map_err(VmmError::io(format!("write {}", tree.display())));
    let made = tree_made.and_then(|()| {
        let arguments = ["-O", FEATURES, "-E", "nodiscard", "-d"].map(OsStr::new);
        make_ext4(path, SIZE, arguments.into_iter().chain([tree.as_os_str()]))
    });
    let _ = fs::remove_dir_all(&tree);
    made
}

/// Makes that of a volume, whole or not at all. Blocks.
pub(super) fn build_volume(path: &Path) -> Result<(), VmmError> {
    let features = format!("{FEATURES},has_journal");
    let arguments = ["-O", &features, "-J", "size=4", "-E", "nodiscard,lazy_journal_init=1"];
    make_ext4(path, VOLUME_SIZE, arguments.map(OsStr::new).into_iter())
}

fn make_ext4<'a>(
    path: &Path,
    size: u64,
    arguments: impl Iterator<Item = &'a OsStr>,
) -> Result<(), VmmError> {
    let disk = path.with_extension(format!("new.{}", std::process::id()));
    let attempt = || {
        File::create(&disk)?.set_len(size)?;
        let output = Command::new("mke2fs")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-b", "4096"])
            .args(arguments)
            .arg(&disk)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            return Err(std::io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ));
        }
        fs::rename(&disk, path)
    };
    let outcome = attempt();
    // Gone already when all went well.
    let _ = fs::remove_file(&disk);
    outcome.map_err(|error| VmmError::Unusable {
        path: "mke2fs".into(),
        reason: format!("can't create {}: {error}; apt-get install e2fsprogs", path.display()),
    })
}
