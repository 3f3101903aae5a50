//! A file system that mke2fs makes, this crate fills, and e2fsprogs look into.

#![allow(dead_code, reason = "not every test needs everything")]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use caddis_ext4::Error;
use tempfile::TempDir;

const UUID: &str = "01234567-89ab-8cde-8012-345678901234";

/// As caddis-image configures it.
const CONFIGURATION: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
[fs_types]
ext4 = {
features = extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";

pub const MIB: u64 = 1 << 20;

/// An image file beside the tree that it is filled with.
pub struct World {
    directory: TempDir,
    tree: TempDir,
}

impl World {
    pub fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let tree = TempDir::new_in(directory.path()).unwrap();
        Self { directory, tree }
    }

    /// With the tree in memory, where making and removing very many files is quick.
    pub fn in_memory() -> Self {
        Self { directory: TempDir::new().unwrap(), tree: TempDir::new_in("/dev/shm").unwrap() }
    }

    pub fn tree(&self) -> PathBuf {
        self.tree.path().to_owned()
    }

    pub fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    /// Makes an empty file system, with further options.
    pub fn make(&self, size: u64, inodes: u64, options: &[&str]) {
        let configuration = self.directory.path().join("configuration");
        fs::write(&configuration, CONFIGURATION).unwrap();
        File::create(self.image()).unwrap().set_len(size).unwrap();
        let output = Command::new("/usr/sbin/mke2fs")
            .env("MKE2FS_CONFIG", &configuration)
            .env("E2FSPROGS_FAKE_TIME", "1")
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-U", UUID, "-b", "4096"])
            .args(["-E", &format!("lazy_itable_init=1,nodiscard,root_owner=0:0,hash_seed={UUID}")])
            .args(["-N", &inodes.to_string()])
            .args(options)
            .arg(self.image())
            .output()
            .expect("mke2fs is needed: apt-get install e2fsprogs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn fill(&self) -> Result<(), Error> {
        self.fill_while(&mut |_| true)
    }

    pub fn fill_while(&self, should_continue: &mut dyn FnMut(u64) -> bool) -> Result<(), Error> {
        let file = File::options().read(true).write(true).open(self.image()).unwrap();
        caddis_ext4::fill(&file, &self.tree(), should_continue)
    }

    /// Makes a file system of 256 MiB from the tree, and checks it.
    pub fn build(&self) {
        self.make(256 * MIB, 20_000, &[]);
        self.fill().unwrap();
        self.check();
    }

    pub fn check(&self) {
        check(&self.image());
    }

    /// What debugfs prints for these commands.
    pub fn debugfs(&self, commands: &[&str]) -> String {
        let mut child = Command::new("/usr/sbin/debugfs")
            .args(["-f", "-"])
            .arg(self.image())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let commands = commands.join("\n");
        let writer = std::thread::spawn(move || writeln!(input, "{commands}"));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn stat(&self, path: &str) -> String {
        let text = self.debugfs(&[&format!("stat \"{path}\"")]);
        assert!(text.contains("Inode:"), "{path}: {text}");
        text
    }

    /// A field as debugfs prints it.
    pub fn field(&self, path: &str, name: &str) -> String {
        let text = self.stat(path);
        let (_, rest) =
            text.split_once(&format!("{name}:")).unwrap_or_else(|| panic!("no {name} in {text}"));
        rest.split_whitespace().next().unwrap().to_owned()
    }

    /// The value of an extended attribute.
    pub fn attribute(&self, path: &str, name: &str) -> Vec<u8> {
        let file = self.directory.path().join("value");
        let _ = fs::remove_file(&file);
        self.debugfs(&[&format!("ea_get -f {} \"{path}\" {name}", file.display())]);
        fs::read(file).unwrap()
    }

    /// Compares directories, files and links with the tree: names, content, permissions but the
    /// special bits, owners, seconds of times.
    pub fn compare(&self) {
        let copy = self.directory.path().join("copy");
        fs::create_dir(&copy).unwrap();
        self.debugfs(&[&format!("rdump / {}", copy.display())]);
        let found = list(&copy, &copy);
        let expected: Vec<_> = list(&self.tree(), &self.tree());
        assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected);
        }
    }
}

/// Checks a file system thoroughly.
pub fn check(image: &Path) {
    let output = run("e2fsck", &["-f", "-n", image.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(Path::new("/usr/sbin").join(program)).args(arguments).output().unwrap()
}

#[derive(Debug, PartialEq, Eq)]
struct Found {
    path: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    seconds: i64,
    content: Vec<u8>,
}

fn list(directory: &Path, top: &Path) -> Vec<Found> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let is_link = metadata.is_symlink();
        all.push(Found {
            path: path.strip_prefix(top).unwrap().as_os_str().as_bytes().to_vec(),
            // rdump sets owners last, which takes these bits away.
            mode: metadata.mode() & !0o7000,
            // rdump makes links anew.
            owner: if is_link { (0, 0) } else { (metadata.uid(), metadata.gid()) },
            seconds: if is_link { 0 } else { metadata.mtime() },
            content: match () {
                () if is_link => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
                () if metadata.is_file() => fs::read(&path).unwrap(),
                () => Vec::new(),
            },
        });
        if metadata.is_dir() {
            all.extend(list(&path, top));
        }
    }
    all
}
