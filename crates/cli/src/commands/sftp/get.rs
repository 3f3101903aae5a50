//! `caddis sftp get`. What comes is written under another name first, so that what appears under
//! its own is whole; and nothing is written elsewhere, whatever the machine sends.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use caddis_client::FromSession;
use clap::Args;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::transfer::{self, COMPLETE, CONTENT, ChannelReader, Progress, Words, failed};
use crate::{CliError, commands::target::Target, render::size, session::Session};

/// Messages that wait to be written.
const AHEAD: usize = 16;

/// `caddis sftp get`.
#[derive(Debug, Args)]
pub struct Get {
    /// Path in the machine.
    remote: String,
    /// Local path [default: the same name, in the current directory].
    local: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    /// Copy a directory recursively.
    #[arg(short = 'R', long)]
    recursive: bool,
}

pub async fn run(get: Get, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let name = Path::new(&get.remote).file_name();
    let name = name.filter(|_| !get.remote.ends_with("..")).map(Path::new);
    let no_name =
        || CliError::new(format!("{} has no file name: give the local path too", get.remote));
    let local = match &get.local {
        Some(local) => session.environment.current_directory.join(local),
        None => session.environment.current_directory.join(name.ok_or_else(no_name)?),
    };
    let local = if local.is_dir() && get.local.is_some() {
        local.join(name.ok_or_else(no_name)?)
    } else {
        local
    };
    if fs::symlink_metadata(&local).is_ok() {
        return Err(failed("write", &local)(io::ErrorKind::AlreadyExists.into()));
    }
    let parent =
        local.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (app, machine) = get.target.find(session, &client).await?;
    get.target.tell(session, &machine)?;
    // Removed when we end here, also by Ctrl-C.
    let scratch = tempfile::Builder::new()
        .prefix(".caddis-get-")
        .tempdir_in(parent)
        .map_err(failed("write", &local))?;

    let arguments: &[&str] =
        if get.recursive { &["get", "-R", &get.remote] } else { &["get", &get.remote] };
    let (mut reader, writer) = transfer::open(&client, &app, &machine.id, arguments, false).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let directory = scratch.path().to_owned();
    let unpacking =
        tokio::task::spawn_blocking(move || unpack(&directory, ChannelReader::new(receiver)));
    let (mut words, mut progress) = (Words::default(), Progress::new(printer, None));
    let code = loop {
        match reader.next().await? {
            FromSession::Stdout(bytes) => {
                progress.add(bytes.len());
                if sender.send(bytes).await.is_err() {
                    // It says why.
                    break 0;
                }
            }
            FromSession::Stderr(bytes) => words.add(&bytes),
            FromSession::Exit(code) => break code,
        }
    };
    drop((sender, reader, writer, progress));
    let unpacked = unpacking.await.map_err(io::Error::other)?;
    words.judge(code, printer)?;
    let bytes = unpacked?;
    keep(&scratch, &local)?;
    printer.note(format_args!("{} written to {}", size::decimal(bytes), local.display()))?;
    Ok(())
}

/// Makes it appear under its own name, unless something has come there meanwhile.
fn keep(scratch: &TempDir, local: &Path) -> Result<(), CliError> {
    let content = scratch.path().join(CONTENT);
    match renameat_with(CWD, &content, CWD, local, RenameFlags::NOREPLACE) {
        // Not every file system can.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS)
            if fs::symlink_metadata(local).is_err() =>
        {
            fs::rename(&content, local)
        }
        outcome => outcome.map_err(io::Error::from),
    }
    .map_err(failed("write", local))
}

/// Writes what an archive holds below `directory`. Says how many bytes of content that was.
fn unpack(directory: &Path, archive: ChannelReader) -> Result<u64, CliError> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => {
            CliError::new("can't write the received files: the disk is full")
        }
        _ => CliError::new(format!("can't unpack the received files: {error}")),
    };
    let mut archive = tar::Archive::new(archive);
    let mut directories: Vec<(PathBuf, u32)> = Vec::new();
    let mut bytes = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        if name == Path::new(COMPLETE) {
            for (path, mode) in directories.into_iter().rev() {
                set_mode(&path, mode).map_err(failed("write", &path))?;
            }
            return Ok(bytes);
        }
        let kind = entry.header().entry_type();
        let fits = name.starts_with(CONTENT)
            && name.components().all(|part| matches!(part, Component::Normal(_)))
            && (kind.is_file() || kind.is_dir() || kind.is_symlink());
        if !fits {
            return Err(CliError::new(format!(
                "the machine sent something that was not requested: {}",
                name.display()
            )));
        }
        let mode = entry.header().mode().map_err(broken)?;
        bytes += entry.size();
        if kind.is_dir() && goes_through_directories(directory, &name) {
            // Its mode comes last: one that can't be written to would be in the way.
            let path = directory.join(&name);
            fs::create_dir(&path).map_err(broken)?;
            directories.push((path, mode));
            continue;
        }
        // Refuses to go through a link that leads elsewhere.
        if kind.is_dir() || !entry.unpack_in(directory).map_err(broken)? {
            return Err(CliError::new(format!(
                "the machine sent a path outside the target: {}",
                name.display()
            )));
        }
        if kind.is_file() {
            let path = directory.join(&name);
            set_mode(&path, mode).map_err(failed("write", &path))?;
        }
    }
    Err(CliError::new(
        "the transfer was cut off: the connection to the machine, or its copying program, ended \
         early",
    ))
}

/// Whether no part of the way there is a link.
fn goes_through_directories(directory: &Path, name: &Path) -> bool {
    let ancestors = name.ancestors().skip(1).filter(|part| !part.as_os_str().is_empty());
    ancestors
        .into_iter()
        .all(|part| fs::symlink_metadata(directory.join(part)).is_ok_and(|found| found.is_dir()))
}

/// Without the bits that give a program another's rights.
fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o777))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tar::{Builder, EntryType, Header};

    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> ChannelReader {
        let mut archive = Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o4640);
            header.set_size(0);
            if kind.is_file() {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, content.as_bytes()).unwrap();
            } else if content.is_empty() {
                header.set_mode(0o500);
                archive.append_data(&mut header, name, &b""[..]).unwrap();
            } else {
                archive.append_link(&mut header, name, content).unwrap();
            }
        }
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(Bytes::from(archive.into_inner().unwrap())).unwrap();
        ChannelReader::new(receiver)
    }

    #[test]
    fn what_comes_is_unpacked_with_its_modes_and_must_be_complete() {
        use std::os::unix::fs::PermissionsExt as _;
        let whole = [
            (CONTENT, EntryType::Directory, ""),
            ("content/file", EntryType::Regular, "text"),
            ("content/link", EntryType::Symlink, "file"),
            (COMPLETE, EntryType::Regular, ""),
        ];
        let place = tempfile::tempdir().unwrap();
        assert_eq!(unpack(place.path(), archive(&whole)).unwrap(), 4);
        let file = place.path().join("content/file");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o640);
        let content = fs::metadata(place.path().join(CONTENT)).unwrap();
        assert_eq!(content.permissions().mode() & 0o7777, 0o500);
        let place = tempfile::tempdir().unwrap();
        assert!(
            unpack(place.path(), archive(&whole[..3])).unwrap_err().to_string().contains("cut off")
        );
    }

    #[test]
    fn a_machine_writes_nowhere_else() {
        let elsewhere = tempfile::tempdir().unwrap();
        let there = elsewhere.path().to_str().unwrap();
        for hostile in [
            vec![("other", EntryType::Regular, "x")],
            vec![("content/a", EntryType::Fifo, "")],
            vec![
                (CONTENT, EntryType::Directory, ""),
                ("content/b", EntryType::Link, "/etc/passwd"),
            ],
            vec![(CONTENT, EntryType::Symlink, there), ("content/file", EntryType::Regular, "x")],
            vec![(CONTENT, EntryType::Symlink, there), ("content/new", EntryType::Directory, "")],
        ] {
            let place = tempfile::tempdir().unwrap();
            let mut hostile = hostile;
            hostile.push((COMPLETE, EntryType::Regular, ""));
            assert!(unpack(place.path(), archive(&hostile)).is_err(), "{hostile:?}");
        }
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
