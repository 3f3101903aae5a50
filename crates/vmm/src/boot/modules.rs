//! Finds kernel modules and the order to load them in.
//!
//! A package that was unpacked and not installed has no `modules.dep`, so dependencies come from
//! the modules themselves: each names what it needs in its `.modinfo` section, as `depends=a,b`.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use super::compression;

/// One module, unpacked.
pub(super) struct Module {
    /// With underscores, as the kernel names it.
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    files: HashMap<String, PathBuf>,
    built_in: HashSet<String>,
    release: String,
}

impl Tree {
    /// Lists the modules in or below `directory`; the reason when there are none for this kernel.
    pub(super) fn open(directory: &Path, release: &str) -> Result<Self, String> {
        let candidates =
            ["", "lib/modules", "modules"].map(|between| directory.join(between).join(release));
        let root = candidates
            .into_iter()
            .find(|path| path.is_dir())
            .unwrap_or_else(|| directory.to_owned());
        let (files, built_in, release) = (HashMap::new(), HashSet::new(), release.to_owned());
        let mut tree = Self { root: root.clone(), files, built_in, release };
        tree.walk(&root).map_err(|error| {
            format!("{error}; set the directory of the kernel's modules with --modules")
        })?;
        let built_in = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
        tree.built_in = built_in.lines().filter_map(|line| name_of(Path::new(line))).collect();
        if tree.files.is_empty() && tree.built_in.is_empty() {
            let release = &tree.release;
            return Err(format!(
                "it has no modules of kernel {release}; --modules must match --kernel"
            ));
        }
        Ok(tree)
    }

    /// Where they are.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What `uname -r` says in a guest.
    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// How many there are, those built in not counted.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether all are built in.
    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether there is such a module, not built in.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// All files, relative to [`Self::root`], with their sizes, in order.
    pub(super) fn sizes(&self) -> std::io::Result<Vec<(PathBuf, u64)>> {
        let size = |path: &PathBuf| {
            let relative = path.strip_prefix(&self.root).unwrap_or(path).to_owned();
            fs::metadata(path).map(|file| (relative, file.len()))
        };
        let mut sizes = self.files.values().map(size).collect::<Result<Vec<_>, _>>()?;
        sizes.sort_unstable();
        Ok(sizes)
    }

    fn walk(&mut self, directory: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                self.walk(&entry.path())?;
            } else if let Some(name) = name_of(&entry.path()) {
                self.files.insert(name, entry.path());
            }
        }
        Ok(())
    }

    /// The modules to load, each after what it depends on. Those built in are left out, and those
    /// `wanted` ones that this kernel does not have.
    pub(super) fn load_order(
        &self,
        needed: &[&str],
        wanted: &[&str],
    ) -> Result<Vec<Module>, String> {
        let mut loading = Loading { tree: self, seen: HashSet::new(), order: Vec::new() };
        for name in needed {
            loading.add(&normal(name), true)?;
        }
        for name in wanted {
            loading.add(&normal(name), false)?;
        }
        Ok(loading.order)
    }
}

struct Loading<'a> {
    tree: &'a Tree,
    seen: HashSet<String>,
    order: Vec<Module>,
}

impl Loading<'_> {
    fn add(&mut self, name: &str, needed: bool) -> Result<(), String> {
        if self.tree.built_in.contains(name) || !self.seen.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(name) else {
            let missing = format!("the module {name} is missing; --modules must match --kernel");
            return if needed { Err(missing) } else { Ok(()) };
        };
        let packed = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let content = compression::unpack(&packed)
            .map_err(|reason| format!("{}: {reason}", path.display()))?;
        let built_for = information(&content, "vermagic");
        if !built_for.is_empty() && built_for.split(' ').next() != Some(&self.tree.release) {
            let (path, release) = (path.display(), &self.tree.release);
            return Err(format!(
                "{path} was built for kernel {built_for}, not {release}; --modules must match \
                 --kernel"
            ));
        }
        for dependency in
            information(&content, "depends").split(',').filter(|name| !name.is_empty())
        {
            self.add(&normal(dependency), true)?;
        }
        let before = information(&content, "softdep");
        let before = before.split_once("pre:").map_or("", |(_, names)| names);
        for dependency in before.split_whitespace().take_while(|name| !name.ends_with(':')) {
            self.add(&normal(dependency), false)?;
        }
        self.order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

/// A value of the module's `.modinfo` section, which is a row of `key=value` that end with a zero
/// byte.
fn information(module: &[u8], key: &str) -> String {
    let sought = format!("\0{key}=");
    let Some(at) = module.windows(sought.len()).position(|bytes| bytes == sought.as_bytes()) else {
        return String::new();
    };
    let value = module.get(at + sought.len()..).unwrap_or_default();
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// `net/virtio-net.ko.xz` is the module `virtio_net`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, ending) = file.split_once(".ko")?;
    ["", ".gz", ".xz", ".zst"].contains(&ending).then(|| normal(name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(directory: &Path, file: &str, information: &str) {
        let content = format!("\x7fELF\0license=GPL\0{information}\0name=x\0");
        let packed = if file.ends_with(".zst") {
            zstd::encode_all(content.as_bytes(), 1).unwrap()
        } else {
            content.into_bytes()
        };
        fs::write(directory.join(file), packed).unwrap();
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn modules_load_after_what_they_depend_on() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("lib/modules/6.1/kernel");
        fs::create_dir_all(&root).unwrap();
        module(&root, "virtio-net.ko.zst", "depends=failover,virtio");
        module(&root, "virtio.ko", "depends=ring\0softdep=pre: crc absent post: late");
        module(&root, "failover.ko", "depends=");
        module(&root, "ring.ko", "depends=core");
        module(&root, "crc.ko", "depends=");
        fs::write(root.join("../modules.builtin"), "kernel/core.ko\nkernel/ext4.ko\n").unwrap();
        let tree = Tree::open(directory.path(), "6.1").unwrap();
        let order = tree.load_order(&["virtio_net", "ext4"], &["unknown"]).unwrap();
        assert_eq!(names(&order), ["failover", "ring", "crc", "virtio", "virtio_net"]);
        assert!(order.iter().all(|module| module.content.starts_with(b"\x7fELF")));
    }

    #[test]
    fn a_missing_module_and_the_modules_of_another_kernel_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Tree::open(directory.path(), "6.1").err().unwrap().contains("no modules"));
        module(directory.path(), "a.ko", "depends=b\0vermagic=6.1 SMP");
        let load = |release| {
            Tree::open(directory.path(), release).unwrap().load_order(&["a"], &[]).err().unwrap()
        };
        assert!(load("6.1").contains("module b is missing"));
        assert!(load("6.12").contains("built for kernel 6.1 SMP, not 6.12"));
    }

    #[test]
    fn modules_that_depend_on_each_other_end() {
        let directory = tempfile::tempdir().unwrap();
        module(directory.path(), "a.ko", "depends=b");
        module(directory.path(), "b.ko", "depends=a");
        let tree = Tree::open(directory.path(), "6.1").unwrap();
        assert_eq!(names(&tree.load_order(&["a"], &[]).unwrap()), ["b", "a"]);
    }
}
