//! Starts programs in the guest.
#![expect(unsafe_code, reason = "code between fork and exec, and the ioctls of terminals")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    pty::{Winsize, openpty},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        termios::{InputFlags, SetArg, tcgetattr, tcsetattr},
    },
    unistd::{Gid, Uid, fchown, pipe2, setgid, setgroups, setsid, setuid},
};

use crate::users::User;

/// Where programs are looked for when the environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

nix::ioctl_none_bad!(set_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// What to start.
pub struct Program<'a> {
    /// Program and arguments.
    pub argv: &'a [String],
    /// All of its environment.
    pub env: &'a [(String, String)],
    /// As whom.
    pub user: &'a User,
    /// Working directory.
    pub directory: &'a str,
    /// Name of its cgroup.
    pub cgroup: &'a str,
    /// A terminal of so many columns and rows.
    pub terminal: Option<(u16, u16)>,
    /// Its standard input is a pipe; otherwise it is empty.
    pub has_input: bool,
}

/// Our ends of a started program's streams, none of which blocks.
pub struct Streams {
    /// Process id.
    pub pid: i32,
    /// To its standard input.
    pub input: Option<File>,
    /// From its standard output, or from its terminal.
    pub output: File,
    /// From its standard error; a terminal has none of its own.
    pub error: Option<File>,
}

/// Starts it. The error says what the user should change.
pub fn spawn(program: &Program<'_>) -> Result<Streams, String> {
    let name = program.argv.first().ok_or("no program is given")?;
    let directory = if program.directory.is_empty() { "/" } else { program.directory };
    // As docker does: an image may name a directory that nothing has made.
    let _ = fs::create_dir_all(directory);
    let path = find(name, program.env, Path::new(directory))?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: nix::Error| format!("can't {what}: {error}")
    };
    let mut command = Command::new(&path);
    command.arg0(name).args(&program.argv[1..]).env_clear().current_dir(directory);
    command.envs(program.env.iter().map(|(key, value)| (key, value)));

    let streams = match program.terminal {
        Some((columns, rows)) => terminal(&mut command, columns, rows, program.user)?,
        None => {
            let (output, theirs) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
            let (error, theirs_too) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
            let (uid, gid) = (Uid::from_raw(program.user.uid), Gid::from_raw(program.user.gid));
            for end in [&theirs, &theirs_too] {
                // So that /dev/stdout can be opened by a program that is not root.
                fchown(end, Some(uid), Some(gid)).map_err(failed("give a pipe to the user"))?;
            }
            command.stdout(theirs).stderr(theirs_too);
            let input = if program.has_input {
                let (theirs, input) = pipe2(OFlag::O_CLOEXEC).map_err(failed("make a pipe"))?;
                fchown(&theirs, Some(uid), Some(gid)).map_err(failed("give a pipe to the user"))?;
                command.stdin(theirs);
                Some(non_blocking(input)?)
            } else {
                command.stdin(Stdio::null());
                None
            };
            Streams { pid: 0, input, output: non_blocking(output)?, error: Some(non_blocking(error)?) }
        }
    };

    let cgroup = cgroup(program.cgroup);
    let groups = program.user.groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>();
    let (uid, gid) = (Uid::from_raw(program.user.uid), Gid::from_raw(program.user.gid));
    let has_terminal = program.terminal.is_some();
    // SAFETY: the closure only makes system calls, on memory that was allocated before the fork; this process has one
    // thread.
    unsafe {
        command.pre_exec(move || {
            if let Some(door) = &cgroup {
                io::Write::write_all(&mut &*door, b"0")?;
            }
            setsid()?;
            if has_terminal {
                set_controlling_terminal(0)?;
            }
            setgroups(&groups)?;
            setgid(gid)?;
            setuid(uid)?;
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
            Ok(())
        });
    }
    let child = command.spawn().map_err(|error| format!("can't run {}: {}", path.display(), explain(&path, &error)))?;
    // Dropping a `Child` neither kills nor reaps it; the event loop does.
    Ok(Streams { pid: child.id().cast_signed(), ..streams })
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) if path.exists() => "its interpreter or dynamic loader is not in the image".to_owned(),
        Some(libc::ENOEXEC) => "it is no program for this processor, or a script without #!".to_owned(),
        _ => error.to_string(),
    }
}

fn terminal(command: &mut Command, columns: u16, rows: u16, user: &User) -> Result<Streams, String> {
    let failed = |error: nix::Error| format!("can't make a terminal: {error}");
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(&size, None).map_err(failed)?;
    // So that erasing a character erases all of its bytes.
    let mut settings = tcgetattr(&pair.slave).map_err(failed)?;
    settings.input_flags |= InputFlags::IUTF8;
    tcsetattr(&pair.slave, SetArg::TCSANOW, &settings).map_err(failed)?;
    fchown(&pair.slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid))).map_err(failed)?;
    let copy = |end: &OwnedFd| end.try_clone().map_err(|error| format!("can't make a terminal: {error}"));
    command.stdin(copy(&pair.slave)?).stdout(copy(&pair.slave)?).stderr(pair.slave);
    let input = non_blocking(copy(&pair.master)?)?;
    Ok(Streams { pid: 0, input: Some(input), output: non_blocking(pair.master)?, error: None })
}

/// Tells a terminal's program its new size.
pub fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the size outlives the call. What is no terminal refuses.
    let _ = unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) };
}

fn non_blocking(descriptor: OwnedFd) -> Result<File, String> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| format!("can't set up a pipe: {e}"))?;
    // SAFETY: the descriptor was just given up by its owner.
    Ok(unsafe { File::from_raw_fd(descriptor.into_raw_fd()) })
}

/// The file through which a process joins a cgroup, made when missing; `None` where there are no cgroups.
fn cgroup(name: &str) -> Option<File> {
    let directory = Path::new("/sys/fs/cgroup").join(name);
    let _ = fs::create_dir(&directory);
    OpenOptions::new().write(true).open(directory.join("cgroup.procs")).ok()
}

/// The shell of a user: the one the image names, or the usual ones.
pub fn shell(user: &User) -> Result<Vec<String>, String> {
    let is_shell = |path: &&str| !["nologin", "false"].iter().any(|none| path.ends_with(none));
    let candidates = user.shell.as_deref().filter(is_shell).into_iter().chain(["/bin/bash", "/bin/sh"]);
    let mut there = candidates.filter(|path| fs::metadata(path).is_ok_and(|file| file.is_file()));
    let found = there.next().map(|path| vec![path.to_owned()]);
    found.ok_or_else(|| "the image has no shell (no /bin/sh): name a program of it to run".to_owned())
}

/// Finds a program as a shell does.
fn find(name: &str, env: &[(String, String)], directory: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = directory.join(name);
        return match fs::metadata(&path) {
            Ok(file) if file.is_dir() => Err(format!("can't run {name}: it is a directory")),
            Ok(_) => Ok(path),
            Err(error) => Err(format!("can't run {name}: {error}")),
        };
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let runnable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let candidates = path.split(':').map(|part| directory.join(part).join(name));
    candidates.into_iter().find(runnable).ok_or_else(|| format!("can't run {name}: there is no such program in {path}"))
}
