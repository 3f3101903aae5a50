//! The disk with all modules of a kernel, which every VM of that kernel has read-only: what a
//! guest's kernel asks for is loaded from it. It is made once per kernel, with `depmod` and
//! `mke2fs`, by whoever needs it first.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::{compression, modules::Tree};
use crate::VmmError;

/// Name of the file begins so.
pub(super) const PREFIX: &str = "modules-";
const ENDING: &str = "ext4";
const CHOSEN: &str = "chosen";
const BLOCK: u64 = 4096;
/// Room for what depmod makes and for the file system itself, bytes.
const SPARE: u64 = 16 << 20;
/// No journal: nobody writes to it. Init mounts it as it does root disks, so it has nothing that
/// those have not.
const FEATURES: &str =
    "none,sparse_super,large_file,filetype,dir_index,extent,flex_bg,metadata_csum,64bit";
/// Lists beside the modules that `depmod` reads.
const LISTS: [&str; 3] = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];

/// See the module's text.
#[derive(Debug)]
pub struct ModulesDisk {
    path: PathBuf,
    tree: Tree,
    built: OnceLock<Result<(), String>>,
}

impl ModulesDisk {
    /// The disk of these modules, in `directory`; none where the kernel has all built in.
    pub(super) fn find(tree: Tree, kernel: &str, directory: &Path) -> io::Result<Option<Self>> {
        if tree.is_empty() {
            return Ok(None);
        }
        let mut digest = Sha256::new();
        digest.update(format!("{kernel} {} {FEATURES}\n", tree.release()));
        for (path, size) in tree.sizes()? {
            digest.update(format!("{} {size}\n", path.display()));
        }
        let digest: String =
            digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let prefix = format!("{PREFIX}{digest}-");
        let with = |wanted: &str| {
            let is_it = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with(&prefix) && path.extension().is_some_and(|ending| ending == wanted)
            };
            Ok::<_, io::Error>(
                fs::read_dir(directory)?.flatten().map(|entry| entry.path()).find(is_it),
            )
        };
        let found = with(ENDING)?;
        let is_there = found.is_some();
        // Each that is made has a name of its own: a machine that was suspended with one mounted
        // must never get another. Until it is made its name is kept, since what VMs are saved with
        // has it in its key.
        let path = match found.or(with(CHOSEN)?.map(|chosen| chosen.with_extension(ENDING))) {
            Some(path) => path,
            None => {
                let path = directory.join(format!("{prefix}{:08x}.{ENDING}", random()?));
                File::create_new(path.with_extension(CHOSEN))?;
                path
            }
        };
        let built = OnceLock::new();
        if is_there {
            // Empty until then.
            let _ = built.set(Ok(()));
        }
        Ok(Some(Self { path, tree, built }))
    }

    /// Where it is, or will be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that keeps its name until it is made.
    pub(super) fn chosen(&self) -> PathBuf {
        self.path.with_extension(CHOSEN)
    }

    /// Why it could not be made, if that was tried.
    pub fn problem(&self) -> Option<&str> {
        self.built.get()?.as_ref().err().map(String::as_str)
    }

    /// Makes it if it is not there, and waits for another who does. Blocks.
    ///
    /// # Errors
    /// Why there is none: what failed once is not tried again by this process.
    pub fn get(&self) -> Result<&Path, &str> {
        let built = self.built.get_or_init(|| {
            let built = self.build();
            match &built {
                Ok(()) => {
                    let (path, modules) = (self.path.display(), self.tree.len());
                    info!(%path, modules, "kernel modules ready");
                }
                Err(reason) => warn!(reason, "guests can't load kernel modules"),
            }
            built
        });
        built.as_ref().map(|()| self.path.as_path()).map_err(String::as_str)
    }

    fn build(&self) -> Result<(), String> {
        let temporary =
            |kind: &str| self.path.with_extension(format!("{kind}.{}", std::process::id()));
        let (tree, disk) = (temporary("tree"), temporary("new"));
        let outcome = self.fill(&tree).and_then(|bytes| self.format(&tree, &disk, bytes));
        // Gone already when all went well.
        let _ = fs::remove_file(&disk);
        let _ = fs::remove_dir_all(&tree);
        outcome.map_err(|reason| format!("can't create {}: {reason}", self.path.display()))
    }

    fn root(&self, tree: &Path) -> PathBuf {
        tree.join("lib/modules").join(self.tree.release())
    }

    /// Puts the modules in place, unpacked, with the lists of what depends on what. Gives the room
    /// they take.
    fn fill(&self, tree: &Path) -> Result<u64, String> {
        let root = self.root(tree);
        let mut bytes = 0;
        let sizes = self.tree.sizes().map_err(|error| error.to_string())?;
        for (relative, _) in &sizes {
            let goal = root.join(unpacked(relative));
            let failed = |error: io::Error| format!("{}: {error}", goal.display());
            let source = self.tree.root().join(relative);
            fs::create_dir_all(goal.parent().unwrap_or(&root)).map_err(failed)?;
            place(&source, &goal).map_err(|reason| format!("{}: {reason}", source.display()))?;
            bytes += fs::metadata(&goal).map_err(failed)?.len().next_multiple_of(BLOCK);
        }
        for name in LISTS {
            match fs::copy(self.tree.root().join(name), root.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(format!("{name}: {error}"));
                }
                _ => {}
            }
        }
        run(Command::new("depmod").arg("-b").arg(tree).arg(self.tree.release()), "kmod")?;
        Ok(bytes)
    }

    fn format(&self, tree: &Path, disk: &Path, bytes: u64) -> Result<(), String> {
        let size = (bytes + bytes / 32 + SPARE).next_multiple_of(BLOCK);
        let inodes = self.tree.len() * 5 / 4 + 256;
        let made = File::create(disk).and_then(|file| file.set_len(size));
        made.map_err(|error| error.to_string())?;
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args([
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
            "-N",
            &inodes.to_string(),
        ]);
        mke2fs.args(["-E", "nodiscard,root_owner=0:0", "-d"]).arg(self.root(tree)).arg(disk);
        run(&mut mke2fs, "e2fsprogs")?;
        // Whole or not at all, also when the host dies meanwhile.
        let kept = File::open(disk)
            .and_then(|file| file.sync_all())
            .and_then(|()| fs::rename(disk, &self.path));
        kept.map_err(|error| error.to_string())?;
        // One that stays is of no use, and does no harm.
        let _ = fs::remove_file(self.chosen());
        Ok(())
    }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}

/// `a/b.ko.xz` becomes `a/b.ko`.
fn unpacked(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|ending| ending == "ko") {
        path.to_owned()
    } else {
        path.with_extension("")
    }
}

/// A module that is not packed is linked where that can be done: it is only read.
fn place(source: &Path, goal: &Path) -> Result<(), String> {
    if source.extension().is_some_and(|ending| ending == "ko") {
        if fs::hard_link(source, goal).is_ok() {
            return Ok(());
        }
        return fs::copy(source, goal).map(|_| ()).map_err(|error| error.to_string());
    }
    let packed = fs::read(source).map_err(|error| error.to_string())?;
    let content = compression::unpack(&packed)?;
    File::create(goal)
        .and_then(|mut file| file.write_all(&content))
        .map_err(|error| error.to_string())
}

fn run(command: &mut Command, package: &str) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}; apt-get install {package}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// As [`ModulesDisk::find`], as the driver's error.
pub(super) fn find(
    tree: Tree,
    kernel: &Path,
    directory: &Path,
) -> Result<Option<std::sync::Arc<ModulesDisk>>, VmmError> {
    let kernel = kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let found = ModulesDisk::find(tree, &kernel, directory)
        .map_err(VmmError::io("look at the kernel's modules"))?;
    Ok(found.map(std::sync::Arc::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module as far as depmod looks: an object file of this processor with a `.modinfo` section.
    fn object(directory: &Path, name: &str, information: &str) -> PathBuf {
        let source = format!(
            "__asm__(\".section .modinfo,\\\"a\\\"\\n{}.previous\\n\");\n",
            information
                .split(';')
                .map(|word| format!(".asciz \\\"{word}\\\"\\n"))
                .collect::<String>()
        );
        let (c, o) = (directory.join(format!("{name}.c")), directory.join(format!("{name}.ko")));
        fs::write(&c, source).unwrap();
        let built = Command::new("cc").arg("-c").arg(&c).arg("-o").arg(&o).status();
        assert!(built.expect("a C compiler is needed: apt-get install build-essential").success());
        fs::remove_file(&c).unwrap();
        o
    }

    fn listing(disk: &Path, path: &str) -> String {
        let output = Command::new("debugfs")
            .args(["-R", &format!("cat {path}")])
            .arg(disk)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn a_disk_has_all_modules_unpacked_and_the_lists_to_find_them_by() {
        let host = tempfile::tempdir().unwrap();
        let root = host.path().join("6.1");
        let drivers = root.join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        object(&drivers, "plain", "license=GPL;alias=fs-plain");
        let packed =
            object(&drivers, "packed", "license=GPL;alias=char-major-10-229;alias=devname:packed");
        fs::write(
            drivers.join("packed.ko.zst"),
            zstd::encode_all(&*fs::read(&packed).unwrap(), 1).unwrap(),
        )
        .unwrap();
        fs::remove_file(packed).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let open = || Tree::open(host.path(), "6.1").unwrap();
        let disk = ModulesDisk::find(open(), "k", directory.path()).unwrap().unwrap();
        let path = disk.get().unwrap().to_owned();

        assert!(listing(&path, "modules.alias").contains("alias fs-plain plain"));
        assert!(listing(&path, "modules.dep").contains("kernel/drivers/packed.ko:"));
        assert!(listing(&path, "modules.devname").contains("packed packed c10:229"));
        let output = Command::new("debugfs")
            .args(["-R", "ls -p kernel/drivers"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("/packed.ko/"));
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, std::slice::from_ref(&path), "nothing else is left");

        let again = ModulesDisk::find(open(), "k", directory.path()).unwrap().unwrap();
        assert_eq!(again.path(), path, "it is made once");
        let other = ModulesDisk::find(open(), "another kernel", directory.path()).unwrap().unwrap();
        assert_ne!(other.path(), path);
        fs::remove_file(&path).unwrap();
        let anew = ModulesDisk::find(open(), "k", directory.path()).unwrap().unwrap();
        assert_ne!(anew.path(), path, "what was mounted by its name is never replaced under it");
    }

    #[test]
    fn a_disk_that_can_t_be_made_leaves_nothing_and_says_why() {
        let host = tempfile::tempdir().unwrap();
        fs::create_dir_all(host.path().join("6.1")).unwrap();
        fs::write(host.path().join("6.1/broken.ko.xz"), b"\xfd7zXZ\0 and then nothing").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let tree = Tree::open(host.path(), "6.1").unwrap();
        let disk = ModulesDisk::find(tree, "k", directory.path()).unwrap().unwrap();
        assert!(disk.get().unwrap_err().contains("broken.ko.xz"), "{:?}", disk.get());
        assert_eq!(disk.problem(), disk.get().err());
        let left: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [disk.chosen()], "nothing is left but its name");
        let tree = Tree::open(host.path(), "6.1").unwrap();
        let again = ModulesDisk::find(tree, "k", directory.path()).unwrap().unwrap();
        assert_eq!(again.path(), disk.path(), "what was saved meanwhile is good after a restart");
    }

    #[test]
    fn a_kernel_with_all_built_in_has_no_disk() {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("modules.builtin"), "kernel/ext4.ko\n").unwrap();
        let tree = Tree::open(host.path(), "6.1").unwrap();
        assert!(ModulesDisk::find(tree, "k", host.path()).unwrap().is_none());
    }
}
