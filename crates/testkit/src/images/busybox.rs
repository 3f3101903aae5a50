//! The smallest image that is of use: Debian's static busybox, a link per tool, two users.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{Config, Layer, cached, write_layout};
use crate::command::run_command;

const PROGRAM: &str = "/bin/busybox";
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:1000:1000::/var/www:/bin/sh\n";
const GROUP: &str = "root:x:0:\nwww:x:1000:\nextra:x:1001:www\n";
/// As an image has it that was made of a running system.
const MACHINE_ID: &str = "0123456789abcdef0123456789abcdef\n";
/// What the page of [`web`] says.
const PAGE: &str = "hello from a machine\n";

/// busybox whose program, unless told otherwise, sleeps; it ends with code 0 on SIGINT and SIGTERM.
///
/// # Errors
/// When busybox-static is missing.
pub fn busybox() -> Result<PathBuf> {
    let program = "trap 'exit 0' INT TERM; sleep 1000000 & wait";
    let cmd = vec!["/bin/sh".into(), "-c".into(), program.into()];
    busybox_with("busybox", &Config { cmd, ..Config::default() })
}

/// A web server on port 80.
///
/// # Errors
/// When busybox-static is missing.
pub fn web() -> Result<PathBuf> {
    let config = Config {
        entrypoint: vec!["/bin/busybox".into(), "httpd".into()],
        cmd: ["-f", "-v", "-p", "80", "-h", "/var/www"].map(Into::into).to_vec(),
        env: vec!["PATH=/bin".into()],
        exposed_ports: json!({ "80/tcp": {} }),
        ..Config::default()
    };
    busybox_with("web", &config)
}

/// One program and nothing else: no shell, no tools, no users.
///
/// # Errors
/// When busybox-static is missing.
pub fn bare() -> Result<PathBuf> {
    let program = fs::read(PROGRAM).context("no static busybox: apt-get install busybox-static")?;
    let entrypoint = vec!["/app/busybox".into(), "sleep".into(), "1000000".into()];
    let config = Config { entrypoint, ..Config::default() };
    cached("bare", &format!("{}{}", include_str!("busybox.rs"), program.len()), |layout| {
        let mut tree = Builder::new(Vec::new());
        append(&mut tree, "app/", EntryType::Directory, 0o755, 0, &[])?;
        append(&mut tree, "app/busybox", EntryType::Regular, 0o755, 0, &program)?;
        write_layout(layout, &[Layer::Bytes(tree.into_inner()?)], &config)
    })
}

/// busybox that runs as `config` says.
///
/// # Errors
/// When busybox-static is missing.
pub fn busybox_with(name: &str, config: &Config) -> Result<PathBuf> {
    let program = fs::read(PROGRAM).context("no static busybox: apt-get install busybox-static")?;
    let version = run_command(Command::new(PROGRAM).arg("--help"))?;
    let recipe = format!(
        "{}{}{PASSWD}{GROUP}{PAGE}{version}",
        include_str!("busybox.rs"),
        serde_json::to_string(config)?
    );
    cached(name, &recipe, |layout| build(layout, &program, config))
}

/// One thing in an image's tree.
#[derive(Debug, Clone, Copy)]
pub enum Entry {
    /// Path, and content.
    File(&'static str, &'static str),
    /// Path.
    Directory(&'static str),
    /// Path.
    Fifo(&'static str),
    /// Path, and where it leads.
    Link(&'static str, &'static str),
    /// Path, and the file it is another name of.
    HardLink(&'static str, &'static str),
    /// Path; that of the kernel's null device.
    Device(&'static str),
}

/// busybox with its tools, and beside them nothing but `entries`: an image need not be as one
/// expects it.
///
/// # Errors
/// When busybox-static is missing.
pub fn busybox_among(name: &str, entries: &[Entry], config: &Config) -> Result<PathBuf> {
    let program = fs::read(PROGRAM).context("no static busybox: apt-get install busybox-static")?;
    let recipe = format!(
        "{}{entries:?}{}{}",
        include_str!("busybox.rs"),
        program.len(),
        serde_json::to_string(config)?
    );
    cached(name, &recipe, |layout| {
        let mut tree = Builder::new(Vec::new());
        append_tools(&mut tree, &program)?;
        for entry in entries {
            let header = |kind| {
                let mut header = header(kind, 0o644, 0);
                header.set_size(0);
                header
            };
            match *entry {
                Entry::File(path, text) => {
                    append(&mut tree, path, EntryType::Regular, 0o644, 0, text.as_bytes())?
                }
                Entry::Directory(path) => {
                    append(&mut tree, path, EntryType::Directory, 0o755, 0, &[])?
                }
                Entry::Fifo(path) => append(&mut tree, path, EntryType::Fifo, 0o644, 0, &[])?,
                Entry::Link(path, target) => {
                    tree.append_link(&mut header(EntryType::Symlink), path, target)?
                }
                Entry::HardLink(path, target) => {
                    tree.append_link(&mut header(EntryType::Link), path, target)?
                }
                Entry::Device(path) => {
                    let mut header = header(EntryType::Char);
                    header.set_device_major(1)?;
                    header.set_device_minor(3)?;
                    tree.append_data(&mut header, path, std::io::empty())?;
                }
            }
        }
        write_layout(layout, &[Layer::Bytes(tree.into_inner()?)], config)
    })
}

fn append_tools(tree: &mut Builder<Vec<u8>>, program: &[u8]) -> Result<()> {
    append(tree, "bin/", EntryType::Directory, 0o755, 0, &[])?;
    append(tree, "bin/busybox", EntryType::Regular, 0o755, 0, program)?;
    let tools = run_command(Command::new(PROGRAM).arg("--list"))?;
    for tool in tools.lines().filter(|tool| *tool != "busybox") {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        header.set_size(0);
        tree.append_link(&mut header, format!("bin/{tool}"), "busybox")?;
    }
    Ok(())
}

fn build(layout: &Path, program: &[u8], config: &Config) -> Result<()> {
    let mut tree = Builder::new(Vec::new());
    append_tools(&mut tree, program)?;
    for (path, mode, owner) in [
        ("etc/", 0o755, 0),
        ("root/", 0o700, 0),
        ("tmp/", 0o1777, 0),
        ("var/", 0o755, 0),
        ("var/www/", 0o755, 1000),
    ] {
        append(&mut tree, path, EntryType::Directory, mode, owner, &[])?;
    }
    append(&mut tree, "etc/passwd", EntryType::Regular, 0o644, 0, PASSWD.as_bytes())?;
    append(&mut tree, "etc/machine-id", EntryType::Regular, 0o444, 0, MACHINE_ID.as_bytes())?;
    append(&mut tree, "etc/group", EntryType::Regular, 0o644, 0, GROUP.as_bytes())?;
    append(&mut tree, "var/www/index.html", EntryType::Regular, 0o644, 1000, PAGE.as_bytes())?;
    write_layout(layout, &[Layer::Bytes(tree.into_inner()?)], config)
}

fn header(kind: EntryType, mode: u32, owner: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner);
    header.set_gid(owner);
    header.set_mtime(0);
    header
}

fn append(
    tree: &mut Builder<Vec<u8>>,
    path: &str,
    kind: EntryType,
    mode: u32,
    owner: u64,
    data: &[u8],
) -> Result<()> {
    let mut header = header(kind, mode, owner);
    header.set_size(data.len() as u64);
    tree.append_data(&mut header, path, data)?;
    Ok(())
}
