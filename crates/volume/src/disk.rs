//! Disks of volumes, through `qemu-img` and `mke2fs`.
//!
//! The file system is made in a sparse file and then copied, where it is not zero, into the qcow2,
//! so that nothing is mounted, and what is on the host in the clear is an empty file system.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::{
    Check, VolumeError, VolumeKey,
    process::{Ended, Program, Programs, key_file},
};

/// Clusters as QEMU makes them by default, in parts that are allocated one by one: the first write
/// of 4 KiB to a cluster writes 4 KiB and not 64.
const LAYOUT: &str = "compat=1.1,cluster_size=65536,extended_l2=on,lazy_refcounts=off";

/// The same without parts, for disks with a backing: QEMU before 8.1 aborts when it copies from a
/// backing to a cluster of which a part is there already (assertion `skip_bytes < pnum` in
/// `bdrv_co_do_copy_on_readv`).
const LAYOUT_WITH_BACKING: &str = "compat=1.1,cluster_size=65536,lazy_refcounts=off";

/// The key is random, so nothing is won by stretching it, and each open would wait for it. One
/// millisecond is the least that `qemu-img` takes. The hash is one that needs long enough for
/// `qemu-img` to measure it: with SHA-256 QEMU 7.2 fails every other time ([`UNMEASURABLE`]).
const LUKS: &str = "encrypt.format=luks,encrypt.cipher-alg=aes-256,encrypt.cipher-mode=xts,\
    encrypt.hash-alg=sha512,encrypt.iter-time=1,encrypt.key-secret=key0";

/// What `qemu-img` says when it measured no CPU time for hashing: the clock of the kernel may be
/// coarser than that takes. It is tried again.
const UNMEASURABLE: &str = "Unable to get accurate CPU usage";
const ATTEMPTS: usize = 20;

/// As for root disks, neither the host's mke2fs.conf nor the version decides what guests get.
const CONFIGURATION: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";

const BLOCK: u64 = 4096;

/// Tables are kept free for growing up to this without moving anything, bytes: twice the largest
/// volume.
const GROWS_TO: u64 = 1 << 40;

/// MiB. It stays as it is when the volume grows, so it is not as small as mke2fs makes that of a
/// small one.
const SMALL_JOURNAL: u64 = 32;
const JOURNAL: u64 = 64;
/// From this size on the journal is not the small one, bytes.
const WITH_JOURNAL: u64 = 4 << 30;

/// Runs the programs.
#[derive(Debug)]
pub(crate) struct Disks {
    pub(crate) programs: Programs,
    pub(crate) qemu_img: PathBuf,
    pub(crate) mke2fs: PathBuf,
    pub(crate) storage_daemon: PathBuf,
}

impl Disks {
    /// Makes the file of a disk of zeroes, mode 0600.
    pub(crate) async fn create(
        &self,
        disk: &Path,
        bytes: u64,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        self.create_with(LAYOUT, disk, bytes, key).await
    }

    /// The same of one that is to be filled from a backing.
    pub(crate) async fn create_for_backing(
        &self,
        disk: &Path,
        bytes: u64,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        self.create_with(LAYOUT_WITH_BACKING, disk, bytes, key).await
    }

    async fn create_with(
        &self,
        layout: &str,
        disk: &Path,
        bytes: u64,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        new_file(disk)?;
        let what = format!("create the disk {}", disk.display());
        let mut layout = layout.to_owned();
        if key.is_some() {
            layout.extend([",", LUKS]);
        }
        for attempt in 1.. {
            let mut arguments = words(&["create", "-q", "-f", "qcow2", "-o", &layout]);
            arguments.extend(secrets(usize::from(key.is_some())));
            arguments.extend([disk.into(), bytes.to_string().into()]);
            let keys = key.into_iter().collect();
            let ended = self.qemu_img(&what, arguments, keys, |_| ()).await?;
            match ended.code {
                Some(0) => break,
                _ if ended.stderr.contains(UNMEASURABLE) && attempt < ATTEMPTS => {}
                _ => return Err(ended.error(&self.qemu_img, &what)),
            }
        }
        Ok(())
    }

    /// Makes `file` an empty ext4 of a size, sparse. `configuration` is a path to be used for it.
    pub(crate) async fn make_ext4(
        &self,
        file: &Path,
        configuration: &Path,
        bytes: u64,
    ) -> Result<(), VolumeError> {
        let failed = |error| VolumeError::io("write", file, error);
        fs::write(configuration, CONFIGURATION).map_err(failed)?;
        new_file(file)?.set_len(bytes).map_err(failed)?;
        let journal = if bytes < WITH_JOURNAL { SMALL_JOURNAL } else { JOURNAL };
        // Holes are zeroes: tables of inodes need not be written, and the guest need not do so
        // later, which it does in the background when they are left out (lazy_itable_init).
        let extended = format!(
            "discard,lazy_journal_init=1,root_owner=0:0,resize={}",
            GROWS_TO.max(2 * bytes) / BLOCK
        );
        let mut arguments = words(&["-q", "-F", "-t", "ext4", "-m", "0", "-L", "volume"]);
        arguments.extend(words(&["-b", &BLOCK.to_string(), "-J", &format!("size={journal}")]));
        arguments.extend(words(&["-E", &extended]));
        arguments.extend([file.into(), (bytes / BLOCK).to_string().into()]);
        let what = "make the file system of a volume";
        let program = Program {
            path: &self.mke2fs,
            what,
            package: "e2fsprogs",
            arguments,
            environment: vec![("MKE2FS_CONFIG", configuration.into())],
            keys: Vec::new(),
            files: Vec::new(),
        };
        let ended = self.programs.run(program, |_| ()).await?;
        expect_success(&ended, &self.mke2fs, what)
    }

    /// Copies what is not zero of a raw file into a disk of zeroes.
    pub(crate) async fn fill(
        &self,
        raw: &Path,
        disk: &Path,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        let mut arguments = words(&["convert", "-n", "--target-is-zero", "-f", "raw"]);
        arguments.extend(secrets(usize::from(key.is_some())));
        arguments.extend(words(&["--target-image-opts"]));
        arguments.extend([raw.into(), target(disk, key.map(|_| 0))?]);
        let what = format!("write the file system to {}", disk.display());
        let keys = key.into_iter().collect();
        let ended = self.qemu_img(&what, arguments, keys, |_| ()).await?;
        expect_success(&ended, &self.qemu_img, &what)
    }

    /// Copies what is not zero of a disk into a disk of zeroes that is no smaller; `done` is told
    /// the copied part, from 0 to 1. In between it is in the clear in the memory of `qemu-img`
    /// only. Both are encrypted, or neither.
    pub(crate) async fn copy(
        &self,
        from: &Path,
        to: &Path,
        keys: Option<[&VolumeKey; 2]>,
        mut done: impl FnMut(f64),
    ) -> Result<(), VolumeError> {
        let mut arguments = words(&["convert", "-p", "-n", "--target-is-zero"]);
        arguments.extend(secrets(keys.map_or(0, |keys| keys.len())));
        arguments.extend(words(&["--target-image-opts"]));
        arguments.extend([source(from, keys.map(|_| 0))?, target(to, keys.map(|_| 1))?]);
        let what = format!("copy {}", from.display());
        let mut line = Vec::new();
        let seen = |bytes: &[u8]| {
            for byte in bytes {
                match byte {
                    b'\r' | b'\n' => line.clear(),
                    b'/' => done(fraction(&line)),
                    _ if line.len() < 32 => line.push(*byte),
                    _ => {}
                }
            }
        };
        let keys = keys.into_iter().flatten().collect();
        let ended = self.qemu_img(&what, arguments, keys, seen).await?;
        expect_success(&ended, &self.qemu_img, &what)
    }

    /// Grows a disk.
    pub(crate) async fn grow(
        &self,
        disk: &Path,
        bytes: u64,
        key: Option<&VolumeKey>,
    ) -> Result<(), VolumeError> {
        let mut arguments = words(&["resize", "-q"]);
        arguments.extend(secrets(usize::from(key.is_some())));
        arguments.extend([source(disk, key.map(|_| 0))?, bytes.to_string().into()]);
        let what = format!("grow {}", disk.display());
        let keys = key.into_iter().collect();
        let ended = self.qemu_img(&what, arguments, keys, |_| ()).await?;
        expect_success(&ended, &self.qemu_img, &what)
    }

    /// Checks a disk and changes nothing.
    pub(crate) async fn check(
        &self,
        disk: &Path,
        key: Option<&VolumeKey>,
    ) -> Result<Check, VolumeError> {
        let mut arguments = words(&["check", "--output=json"]);
        arguments.extend(secrets(usize::from(key.is_some())));
        arguments.push(source(disk, key.map(|_| 0))?);
        let what = format!("check {}", disk.display());
        let keys = key.into_iter().collect();
        let ended = self.qemu_img(&what, arguments, keys, |_| ()).await?;
        // 2: corrupt, 3: leaks; 1 with or without a report: it could not check all of it.
        match serde_json::from_slice(&ended.stdout) {
            Ok(check) if matches!(ended.code, Some(0..=3)) => Ok(check),
            _ => Err(ended.error(&self.qemu_img, &what)),
        }
    }

    async fn qemu_img(
        &self,
        what: &str,
        arguments: Vec<OsString>,
        keys: Vec<&VolumeKey>,
        seen: impl FnMut(&[u8]),
    ) -> Result<Ended, VolumeError> {
        let path = &self.qemu_img;
        let (environment, files) = (Vec::new(), Vec::new());
        let package = "qemu-utils";
        let program = Program { path, what, package, arguments, environment, keys, files };
        self.programs.run(program, seen).await
    }
}

fn expect_success(ended: &Ended, path: &Path, what: &str) -> Result<(), VolumeError> {
    if ended.code == Some(0) { Ok(()) } else { Err(ended.error(path, what)) }
}

pub(crate) fn new_file(path: &Path) -> Result<fs::File, VolumeError> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(|error| VolumeError::io("make", path, error))
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// `key0` and so on, from the descriptors that the program is passed.
fn secrets(count: usize) -> Vec<OsString> {
    let secret = |index| {
        let file = key_file(index);
        words(&["--object", &format!("secret,id=key{index},file={file},format=raw")])
    };
    (0..count).flat_map(secret).collect()
}

/// A disk to open, with the number of its key. The format is named, never probed, and no backing
/// file is opened, whatever the header says.
fn source(disk: &Path, key: Option<usize>) -> Result<OsString, VolumeError> {
    let file = json!({ "driver": "file", "filename": utf8(disk)? });
    let mut node = json!({ "driver": "qcow2", "backing": null, "file": file });
    if let (Some(key), Some(node)) = (key, node.as_object_mut()) {
        let encrypt = json!({ "format": "luks", "key-secret": format!("key{key}") });
        node.insert("encrypt".to_owned(), encrypt);
    }
    Ok(format!("json:{node}").into())
}

/// A disk to write, in the only form that `--target-image-opts` takes.
fn target(disk: &Path, key: Option<usize>) -> Result<OsString, VolumeError> {
    let name = utf8(disk)?.replace(',', ",,");
    let mut options = format!("driver=qcow2,file.driver=file,file.filename={name}");
    if let Some(key) = key {
        options.push_str(&format!(",encrypt.format=luks,encrypt.key-secret=key{key}"));
    }
    Ok(options.into())
}

fn utf8(path: &Path) -> Result<&str, VolumeError> {
    path.to_str().ok_or_else(|| VolumeError::InvalidDirectory(path.to_owned()))
}

/// Of `    (12.34`, as `qemu-img -p` writes it.
fn fraction(line: &[u8]) -> f64 {
    let text = String::from_utf8_lossy(line);
    let number = text.trim_start_matches([' ', '(']).parse::<f64>();
    number.map_or(0.0, |percent| (percent / 100.0).clamp(0.0, 1.0))
}
