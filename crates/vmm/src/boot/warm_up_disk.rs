//! The disk that VMs warm up with, in the place of a machine's root disk: a root file system with
//! nothing in it but init, as a program to be read. Nothing is executed from it
//! (docs/measurements.md).

use std::{
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
/// Those of machines' root disks.
const FEATURES: &str = "none,sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr,\
                        extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize";

/// Makes it, whole or not at all. Blocks.
pub(super) fn build(init: &[u8], path: &Path) -> Result<(), VmmError> {
    let tree = path.with_extension(format!("tree.{}", std::process::id()));
    let disk = path.with_extension(format!("new.{}", std::process::id()));
    let attempt = || {
        for name in ["dev", "proc", "sys", "etc", "sbin"] {
            fs::create_dir_all(tree.join(name))?;
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        let program = tree.join(PROGRAM.trim_start_matches('/'));
        fs::write(&program, init)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        File::create(&disk)?.set_len(SIZE)?;
        let output = Command::new("mke2fs")
            .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-O",
                FEATURES,
                "-m",
                "0",
                "-b",
                "4096",
                "-E",
                "nodiscard",
                "-d",
            ])
            .args([&tree, &disk])
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
    let _ = fs::remove_dir_all(&tree);
    outcome.map_err(|error| VmmError::Unusable {
        path: "mke2fs".into(),
        reason: format!("can't create {}: {error}; apt-get install e2fsprogs", path.display()),
    })
}
