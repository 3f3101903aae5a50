//! Looks into ext4 images without mounting them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

pub struct Ext4(PathBuf);

impl Ext4 {
    /// Checks the file system thoroughly first.
    pub fn open(path: &Path) -> Self {
        let output = run("e2fsck", &["-f", "-n", path.to_str().unwrap()]);
        assert!(output.status.success(), "e2fsck: {}", String::from_utf8_lossy(&output.stdout));
        Self(path.to_owned())
    }

    fn debugfs(&self, command: &str) -> Vec<u8> {
        run("debugfs", &["-R", command, self.0.to_str().unwrap()]).stdout
    }

    /// What debugfs says about an inode, or `None` when there is no such file.
    pub fn stat(&self, path: &str) -> Option<String> {
        let text = String::from_utf8_lossy(&self.debugfs(&format!("stat \"{path}\""))).into_owned();
        text.contains("Inode:").then_some(text)
    }

    pub fn exists(&self, path: &str) -> bool {
        self.stat(path).is_some()
    }

    /// Content of a file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        assert!(self.exists(path), "{path} is not in the image");
        self.debugfs(&format!("cat \"{path}\""))
    }

    /// A field as debugfs prints it: `Mode`, `User`, `Inode`, `Links`, `Size`, `Type`.
    pub fn field(&self, path: &str, name: &str) -> String {
        let stat = self.stat(path).unwrap_or_else(|| panic!("{path} is not in the image"));
        let (_, rest) =
            stat.split_once(&format!("{name}:")).unwrap_or_else(|| panic!("no {name} in {stat}"));
        rest.split_whitespace().next().unwrap().to_owned()
    }

    pub fn attribute(&self, path: &str, name: &str) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        self.debugfs(&format!("ea_get -f {} \"{path}\" {name}", file.path().display()));
        std::fs::read(file.path()).unwrap()
    }

    /// Features and so on.
    /// Names in a directory, sorted.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let list =
            String::from_utf8_lossy(&self.debugfs(&format!("ls -p {directory}"))).into_owned();
        let mut names: Vec<_> =
            list.lines().filter_map(|line| Some(line.split('/').nth(5)?.to_owned())).collect();
        names.sort();
        names
    }

    pub fn superblock(&self) -> String {
        String::from_utf8_lossy(&self.debugfs("show_super_stats -h")).into_owned()
    }
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let path = PathBuf::from("/usr/sbin").join(program);
    Command::new(path)
        .args(arguments)
        .output()
        .unwrap_or_else(|_| panic!("{program} is needed: apt-get install e2fsprogs"))
}
