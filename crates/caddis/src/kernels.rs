//! The kernels that a host has, and which of them VMs boot when none is named.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What names of kernels begin with; the version follows.
const PREFIX: &str = "vmlinuz-";

/// Where a host has its kernels and their modules, and which one it runs.
pub struct HostKernels {
    boot: PathBuf,
    modules: PathBuf,
    /// `uname -r`.
    running: String,
}

impl Default for HostKernels {
    fn default() -> Self {
        let running = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            boot: "/boot".into(),
            modules: "/lib/modules".into(),
            running: running.trim().to_owned(),
        }
    }
}

impl HostKernels {
    /// The running one, whether or not it is there, unless there are others: hosts whose provider
    /// boots them have the kernels of their distribution too, or can get one.
    pub fn kernel(&self) -> PathBuf {
        let running = self.boot.join(format!("{PREFIX}{}", self.running));
        if running.exists() {
            return running;
        }
        self.latest().unwrap_or(running)
    }

    /// Modules for a kernel: `modules` beside it, where `make kernel` and `make guest-kernel` put
    /// them (of a kernel without modules it says what is built in); else those of the version in
    /// its name; else those of the running kernel.
    pub fn modules(&self, kernel: &Path) -> PathBuf {
        let beside = kernel.with_file_name("modules");
        if beside.is_dir() {
            return beside;
        }
        let of_name = self.modules_of(kernel).filter(|modules| modules.is_dir());
        of_name.unwrap_or_else(|| self.modules.join(&self.running))
    }

    /// Of those with modules, the one that was built last.
    fn latest(&self) -> Option<PathBuf> {
        let files = fs::read_dir(&self.boot).ok()?.flatten().map(|entry| entry.path());
        let whole = files.filter(|path| self.modules_of(path).is_some_and(|path| path.is_dir()));
        // Packages keep the time of a file.
        whole.max_by_key(|path| {
            (fs::metadata(path).and_then(|file| file.modified()).ok(), path.clone())
        })
    }

    fn modules_of(&self, kernel: &Path) -> Option<PathBuf> {
        let version = kernel.file_name()?.to_str()?.strip_prefix(PREFIX)?;
        Some(self.modules.join(version))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A host without kernels that runs 6.1.0-9.
    fn host(directory: &Path) -> HostKernels {
        let host = HostKernels {
            boot: directory.join("boot"),
            modules: directory.join("lib/modules"),
            running: "6.1.0-9".to_owned(),
        };
        fs::create_dir_all(&host.boot).unwrap();
        host
    }

    /// Puts a kernel there that was built so many days after the epoch.
    fn install(host: &HostKernels, version: &str, days: u64) -> PathBuf {
        fs::create_dir_all(host.modules.join(version)).unwrap();
        let path = host.boot.join(format!("vmlinuz-{version}"));
        let file = fs::File::create(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400)).unwrap();
        path
    }

    #[test]
    fn the_running_kernel_goes_before_the_latest_and_that_before_none() {
        let directory = tempfile::tempdir().unwrap();
        let host = host(directory.path());
        assert_eq!(host.kernel(), host.boot.join("vmlinuz-6.1.0-9"), "what the error will name");
        let later = install(&host, "6.1.0-10", 3);
        install(&host, "6.1.0-8", 2);
        // Neither is a kernel with modules.
        fs::write(host.boot.join("vmlinuz-6.1.0-11"), "").unwrap();
        fs::write(host.boot.join("config-6.1.0-10"), "").unwrap();
        assert_eq!(host.kernel(), later);
        let running = install(&host, "6.1.0-9", 1);
        assert_eq!(host.kernel(), running);
    }

    #[test]
    fn modules_are_those_beside_the_kernel_else_of_its_version_else_of_the_running_one() {
        let directory = tempfile::tempdir().unwrap();
        let host = host(directory.path());
        let other = install(&host, "6.1.0-8", 1);
        assert_eq!(host.modules(&other), host.modules.join("6.1.0-8"));
        let unknown = directory.path().join("vmlinux");
        assert_eq!(host.modules(&unknown), host.modules.join("6.1.0-9"));
        let beside = directory.path().join("modules");
        fs::create_dir(&beside).unwrap();
        assert_eq!(host.modules(&unknown), beside);
    }
}
