//! Programs of the host: `qemu-img`, `qemu-storage-daemon` and `mke2fs`. Keys reach them through
//! pipes, never by argument or file, and they end with what wanted them.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
};

use crate::{VolumeError, VolumeKey, lock};

/// Number under which a program has [`Programs::marker`], and the first for keys. They are out of
/// the way of the pipe by which std tells that a program could not be run.
const MARKER: i32 = 500;
const FIRST_KEY: i32 = 501;
/// The first for other files.
const FIRST_FILE: i32 = 510;

/// Of what a program says as much is kept, bytes: enough for any message.
const WORDS: usize = 64 << 10;

/// Starts programs, all of which hold a descriptor of one file, by which the next server finds
/// those that outlived this one.
#[derive(Debug)]
pub(crate) struct Programs {
    marker: File,
    directory: PathBuf,
}

/// What to run.
pub(crate) struct Program<'a> {
    /// Path or name.
    pub(crate) path: &'a Path,
    /// For messages, after "failed to".
    pub(crate) what: &'a str,
    /// Debian's package that has it.
    pub(crate) package: &'static str,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    /// It reads their passphrases from the descriptors [`key_file`] names.
    pub(crate) keys: Vec<&'a VolumeKey>,
    /// It has them open as [`open_file`] and [`file_number`] name them.
    pub(crate) files: Vec<OwnedFd>,
}

/// How a program ended.
pub(crate) struct Ended {
    /// None: by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// The file from which a program reads the passphrase of a key.
pub(crate) fn key_file(index: usize) -> String {
    format!("/proc/self/fd/{}", FIRST_KEY as usize + index)
}

/// The number of an open file that a program is given.
pub(crate) fn file_number(index: usize) -> String {
    (FIRST_FILE as usize + index).to_string()
}

/// Its path.
pub(crate) fn open_file(index: usize) -> String {
    format!("/proc/self/fd/{}", file_number(index))
}

impl Programs {
    /// Ends the programs that a server left behind, which must be gone itself.
    pub(crate) fn new(directory: &Path) -> Result<Self, VolumeError> {
        let path = directory.join("programs");
        let failed = |error| VolumeError::io("end the programs that have open", &path, error);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(&path).map_err(failed)?;
        // Before this server has it open, and with it the processes that it forks.
        end_holders(&path).map_err(failed)?;
        let marker = File::open(&path).map_err(failed)?;
        Ok(Self { marker, directory: directory.to_owned() })
    }

    /// Runs a program to its end, handing what it writes to standard output to `seen`. It is killed
    /// when this is dropped.
    pub(crate) async fn run(
        &self,
        program: Program<'_>,
        seen: impl FnMut(&[u8]),
    ) -> Result<Ended, VolumeError> {
        let mut program = program;
        let mut child = self.spawn(&mut program, Stdio::null())?;
        let failed = |error: io::Error| failure(&program, error);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr, status) =
            tokio::join!(read(stdout, seen), read(stderr, |_| ()), child.wait());
        Ok(Ended {
            code: status.map_err(failed)?.code(),
            stdout: stdout.map_err(failed)?,
            stderr: String::from_utf8_lossy(&stderr.map_err(failed)?).into_owned(),
        })
    }

    /// Starts a program, which takes its files. It is killed when this is dropped.
    pub(crate) fn spawn(
        &self,
        program: &mut Program<'_>,
        stdin: Stdio,
    ) -> Result<Child, VolumeError> {
        let files = std::mem::take(&mut program.files);
        let failed = |error: io::Error| failure(program, error);
        let mut mappings = Vec::with_capacity(1 + program.keys.len() + files.len());
        let marker = self.marker.try_clone().map_err(failed)?;
        mappings.push(FdMapping { parent_fd: marker.into(), child_fd: MARKER });
        for (key, child_fd) in program.keys.iter().zip(FIRST_KEY..FIRST_FILE) {
            mappings.push(FdMapping { parent_fd: pipe(key).map_err(failed)?, child_fd });
        }
        for (parent_fd, child_fd) in files.into_iter().zip(FIRST_FILE..) {
            mappings.push(FdMapping { parent_fd, child_fd });
        }
        let mut command = Command::new(program.path);
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("LC_ALL", "C")
            .envs(program.environment.iter().map(|(name, value)| (name, value)))
            .args(&program.arguments)
            .current_dir(&self.directory)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command.fd_mappings(mappings).map_err(|error| failed(io::Error::other(error)))?;
        // It holds our copies of the descriptors until it is dropped.
        command.spawn().map_err(failed)
    }
}

impl Ended {
    /// The error of a program that failed.
    pub(crate) fn error(&self, path: &Path, what: &str) -> VolumeError {
        let words = self.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        if words.contains("No space left on device") || words.contains("Disk quota exceeded") {
            return VolumeError::NoSpace { what: what.to_owned(), reason: words };
        }
        let reason = match (self.code, words.is_empty()) {
            (_, false) => words,
            (Some(code), true) => format!("it ended with exit code {code} and said nothing"),
            (None, true) => "it was killed".to_owned(),
        };
        VolumeError::Program { program: name(path), what: what.to_owned(), reason }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn failure(program: &Program<'_>, error: io::Error) -> VolumeError {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("it is not installed: apt-get install {}", program.package)
        }
        _ => error.to_string(),
    };
    VolumeError::Program { program: name(program.path), what: program.what.to_owned(), reason }
}

/// A pipe that gives the passphrase once; it has room for it.
fn pipe(key: &VolumeKey) -> io::Result<OwnedFd> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(key.passphrase().as_bytes())?;
    Ok(reader.into())
}

/// Reads to the end and keeps the beginning.
pub(crate) async fn read(
    stream: Option<impl AsyncRead + Unpin>,
    mut seen: impl FnMut(&[u8]),
) -> io::Result<Vec<u8>> {
    let (Some(mut stream), mut kept) = (stream, Vec::new()) else { return Ok(Vec::new()) };
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(kept);
        }
        let new = buffer.get(..count).unwrap_or_default();
        seen(new);
        kept.extend(new.iter().take(WORDS - kept.len()));
    }
}

/// Kills the programs that have a file open, and waits until they are gone.
fn end_holders(path: &Path) -> io::Result<()> {
    let ours = fs::read_link("/proc/self/exe")?;
    let is_program =
        |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|theirs| theirs != ours);
    for pid in lock::holders(path)? {
        let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        let Ok(process) = pidfd_open(process, PidfdFlags::empty()) else { continue };
        // The descriptor is of whoever has the number now.
        if is_program(pid) && lock::holders(path)?.contains(&pid) {
            tracing::info!(pid, "ending a program that an earlier server left");
            pidfd_send_signal(&process, Signal::KILL)?;
            poll(&mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)], None)?;
        }
    }
    Ok(())
}
