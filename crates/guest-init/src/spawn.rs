//! Starts programs in the guest. Every descriptor of init is close-on-exec from its birth; that a
//! program gets no other than its own three is made sure of once more before it begins.
#![expect(unsafe_code, reason = "fork, what only its child may do, and the ioctls of terminals")]

use std::{
    convert::Infallible,
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, IntoRawFd as _, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::OFlag,
    pty::{Winsize, posix_openpt, unlockpt},
    sys::{
        signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask},
        stat::{Mode, fchmod},
        termios::{InputFlags, SetArg, tcgetattr, tcsetattr},
    },
    unistd::{
        ForkResult, Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchown, fork,
        pipe2, setgid, setgroups, setsid, setuid,
    },
};

use crate::{
    image_files,
    launch::{Launch, NotBegun, Report, Stage},
    limits::Limits,
    namespaces::{self, Namespaces, Visit},
    users::{self, User},
};

/// Where programs are looked for when the environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

nix::ioctl_none_bad!(set_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_int_bad!(open_peer, libc::TIOCGPTPEER);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// What to start.
pub struct Program<'a> {
    /// Program and arguments; none is the user's shell.
    pub argv: &'a [String],
    /// All of its environment.
    pub env: &'a [(String, String)],
    /// As whom.
    pub user: As<'a>,
    /// Working directory.
    pub directory: &'a str,
    /// Name of its cgroup.
    pub cgroup: &'a str,
    /// A terminal of so many columns and rows.
    pub terminal: Option<(u16, u16)>,
    /// Its standard input is a pipe; otherwise it is empty.
    pub has_input: bool,
    /// Where it runs.
    pub namespaces: Namespaces,
    /// Those of init where there are none.
    pub limits: Option<Limits>,
}

/// As whom a program runs.
pub enum As<'a> {
    /// A user that is known.
    Known(&'a User),
    /// One that is to be looked up, `user[:group]`, whose home becomes `HOME` unless `env` has one.
    Named(&'a str),
}

/// Our ends of a started program's streams, none of which blocks.
pub struct Streams {
    /// Process id.
    pub pid: i32,
    /// Tells whether the program has begun.
    pub launch: Launch,
    /// To its standard input.
    pub input: Option<File>,
    /// From its standard output, or from its terminal.
    pub output: File,
    /// From its standard error; a terminal has none of its own.
    pub error: Option<File>,
}

/// The program's own three.
struct Standard {
    /// `None` is empty.
    input: Option<OwnedFd>,
    output: OwnedFd,
    error: OwnedFd,
}

/// Starts a program: its process is there, and [`Streams::launch`] tells what comes of it. The
/// error is for the user.
pub fn spawn(program: &Program) -> Result<Streams, String> {
    let (standard, input, output, error) = match program.terminal {
        Some((columns, rows)) => {
            let (terminal, standard) = terminal(columns, rows)?;
            let input = non_blocking(copy(&terminal)?)?;
            (standard, Some(input), terminal, None)
        }
        None => {
            let (output, theirs) = pipe()?;
            let (error, theirs_too) = pipe()?;
            let (theirs_first, input) = match program.has_input.then(pipe).transpose()? {
                Some((theirs, input)) => (Some(theirs), Some(non_blocking(input)?)),
                None => (None, None),
            };
            let standard = Standard { input: theirs_first, output: theirs, error: theirs_too };
            (standard, input, output, Some(non_blocking(error)?))
        }
    };
    let (report, theirs) = pipe()?;
    let (report, output) = (non_blocking(report)?, non_blocking(output)?);
    let visit = Visit::of(program.namespaces)?;
    let birthplace = namespaces::choose(program.namespaces)?;
    // SAFETY: this process has one thread, so the child may do whatever it may.
    match unsafe { fork() }.map_err(|e| format!("can't fork: {e}"))? {
        ForkResult::Parent { child } => {
            drop(birthplace);
            let pid = child.as_raw();
            Ok(Streams { pid, launch: Launch::new(pid, report), input, output, error })
        }
        ForkResult::Child => {
            let mut report = Report(theirs.into());
            let Err(reason) = become_program(program, &standard, &visit, &mut report);
            report.failed(&reason);
            // SAFETY: nothing of the parent's is undone or written twice by the child's end.
            unsafe { libc::_exit(127) }
        }
    }
}

/// What happens in the child. It returns only when there is no program to become.
fn become_program(
    program: &Program,
    standard: &Standard,
    visit: &Visit,
    report: &mut Report,
) -> Result<Infallible, NotBegun> {
    let failed = |what: &'static str| move |error: nix::Error| format!("can't {what}: {error}");
    report.stage(Stage::Begin);
    // First of all, so that who is told to end takes all of it along.
    setsid().map_err(failed("begin a session"))?;
    if let Some(mut door) = cgroup(program.cgroup) {
        door.write_all(b"0")
            .map_err(|e| format!("can't join the cgroup {}: {e}", program.cgroup))?;
    }
    match &standard.input {
        Some(input) => dup2_stdin(input),
        None => {
            dup2_stdin(File::open("/dev/null").map_err(|e| format!("can't open /dev/null: {e}"))?)
        }
    }
    .map_err(failed("set up standard input"))?;
    dup2_stdout(&standard.output).map_err(failed("set up standard output"))?;
    dup2_stderr(&standard.error).map_err(failed("set up standard error"))?;
    if program.terminal.is_some() {
        // SAFETY: descriptor 0 is the terminal, and the session has none yet.
        unsafe { set_controlling_terminal(0) }.map_err(failed("take the terminal"))?;
    }
    // What it looks for from here on is what there is in its own.
    if program.namespaces == Namespaces::Own {
        namespaces::isolate(program.terminal.is_some())
            .map_err(|e| format!("can't make namespaces: {e}"))?;
    }
    visit.enter().map_err(failed("enter the namespaces of the machine's program"))?;
    let ends: Vec<_> =
        standard.input.iter().chain([&standard.output, &standard.error]).map(AsFd::as_fd).collect();
    execute(program, &ends, report)
}

/// All that touches the image, in the process that is to become the program, to whose user its
/// streams (`ends`) go.
pub fn execute(
    program: &Program,
    ends: &[BorrowedFd<'_>],
    report: &mut Report,
) -> Result<Infallible, NotBegun> {
    let failed = |what: &'static str| move |error: nix::Error| format!("can't {what}: {error}");
    report.stage(Stage::User);
    let named = match program.user {
        As::Known(_) => None,
        As::Named(name) => Some(users::resolve(name)?),
    };
    let user = match (&named, &program.user) {
        (Some(user), _) => user,
        (None, As::Known(user)) => user,
        (None, As::Named(name)) => return Err(format!("user {name} is unknown").into()),
    };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    // So that /dev/stdout can be opened, also by a program that has become yet another user since:
    // who has no descriptor of them can't get at a pipe, whatever its mode. A terminal has a name
    // by which others could read what is typed, so only writing is for all, and only where nobody
    // types.
    let mode = match program.terminal {
        None => 0o666,
        Some(_) if program.has_input => 0o620,
        Some(_) => 0o622,
    };
    for end in ends {
        fchown(end, Some(uid), Some(gid)).map_err(failed("give its streams to the user"))?;
        fchmod(end, Mode::from_bits_truncate(mode))
            .map_err(failed("give its streams to the user"))?;
    }

    report.stage(Stage::Directory);
    let directory = Path::new("/").join(program.directory);
    // As docker does: an image may name a directory that nothing has made. Where it can't be made
    // it can't be entered.
    let made = image_files::make_directories(&directory);

    report.stage(Stage::Enter);
    chdir(&directory).map_err(|error| {
        let reason = made.err().unwrap_or_else(|| error.desc().to_owned());
        format!("can't enter the working directory {}: {reason}", directory.display())
    })?;

    report.stage(Stage::Program);
    let shell = if program.argv.is_empty() { shell(user)? } else { Vec::new() };
    let argv = if program.argv.is_empty() { &shell } else { program.argv };
    let name = argv.first().ok_or_else(|| "no program given".to_owned())?;
    let path = find(name, program.env, &directory)?;

    report.stage(Stage::Execute);
    let home = named.as_ref().filter(|_| !program.env.iter().any(|(key, _)| key == "HOME"));
    let home = home.map(|user| ("HOME".to_owned(), user.home.clone()));
    let text = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| format!("can't run {name}: a word contains a NUL"))
    };
    let arguments = argv.iter().map(|word| text(word.as_bytes())).collect::<Result<Vec<_>, _>>()?;
    let variables = program
        .env
        .iter()
        .chain(&home)
        .map(|(key, value)| text(format!("{key}={value}").as_bytes()));
    let variables = variables.collect::<Result<Vec<_>, _>>()?;
    let groups = user.groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>();
    let become_user = || {
        program.limits.map_or(Ok(()), Limits::take)?;
        setgroups(&groups)?;
        setgid(gid)?;
        setuid(uid)?;
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
        // SAFETY: the default disposition runs no handler. Rust ignores this one, and a program
        // would inherit that.
        unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)
    };
    become_user().map_err(failed("become the user"))?;
    close_on_exec();
    let error = match execve(&text(path.as_os_str().as_bytes())?, &arguments, &variables) {
        Err(error) => io::Error::from(error),
        Ok(never) => match never {},
    };
    let reason = format!("can't run {}: {}", path.display(), explain(&path, &error));
    Err(if error.kind() == io::ErrorKind::NotFound {
        NotBegun::missing(reason)
    } else {
        NotBegun::unusable(reason)
    })
}

/// Whatever else is open ends with the exec. Kernels before 5.11 can't; there it depends on how
/// each was opened.
fn close_on_exec() {
    let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
    // SAFETY: numbers only; no descriptor is closed before the exec.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Sends a process, or a negative process group, a signal by its number, which may be one of the
/// real-time ones. One that has just ended hears nothing.
pub fn send_signal(pid: i32, number: i32) {
    // SAFETY: no memory is passed.
    let _ = unsafe { libc::kill(pid, number) };
}

fn explain(path: &Path, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) if path.exists() => {
            "its interpreter or dynamic loader is not in the image".to_owned()
        }
        Some(libc::ENOEXEC) => {
            "it is not an executable for this CPU, or a script without #!".to_owned()
        }
        _ => error.to_string(),
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), String> {
    pipe2(OFlag::O_CLOEXEC).map_err(|e| format!("can't make a pipe: {e}"))
}

fn copy(end: &OwnedFd) -> Result<OwnedFd, String> {
    end.try_clone().map_err(|error| format!("can't make a terminal: {error}"))
}

/// A terminal: our end, and the program's. Not by openpty(3), whose descriptors programs that start
/// meanwhile would get.
fn terminal(columns: u16, rows: u16) -> Result<(OwnedFd, Standard), String> {
    let failed = |error: nix::Error| format!("can't make a terminal: {error}");
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let ours = posix_openpt(flags).map_err(failed)?;
    unlockpt(&ours).map_err(failed)?;
    // SAFETY: the descriptor is open, and the argument is a number. By its path another could be
    // meant.
    let theirs = unsafe { open_peer(ours.as_raw_fd(), flags.bits()) }.map_err(failed)?;
    // SAFETY: it was just opened for us.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs) };
    // So that erasing a character erases all of its bytes.
    let mut settings = tcgetattr(&theirs).map_err(failed)?;
    settings.input_flags |= InputFlags::IUTF8;
    tcsetattr(&theirs, SetArg::TCSANOW, &settings).map_err(failed)?;
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the size outlives the call.
    unsafe { set_window_size(theirs.as_raw_fd(), &raw const size) }.map_err(failed)?;
    let standard = Standard { input: Some(copy(&theirs)?), output: copy(&theirs)?, error: theirs };
    Ok((ours.into(), standard))
}

/// Tells a terminal's program its new size.
pub fn resize(terminal: &File, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the size outlives the call. What is no terminal refuses.
    let _ = unsafe { set_window_size(terminal.as_raw_fd(), &raw const size) };
}

pub fn non_blocking(descriptor: OwnedFd) -> Result<File, String> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(|e| format!("can't set up a pipe: {e}"))?;
    // SAFETY: the descriptor was just given up by its owner.
    Ok(unsafe { File::from_raw_fd(descriptor.into_raw_fd()) })
}

/// The file through which a process joins a cgroup, made when missing; `None` where there are no
/// cgroups.
fn cgroup(name: &str) -> Option<File> {
    let directory = Path::new("/sys/fs/cgroup").join(name);
    let _ = fs::create_dir(&directory);
    OpenOptions::new().write(true).open(directory.join("cgroup.procs")).ok()
}

/// The shell of a user: the one the image names, or the usual ones.
fn shell(user: &User) -> Result<Vec<String>, String> {
    let is_shell = |path: &&str| !["nologin", "false"].iter().any(|none| path.ends_with(none));
    let candidates =
        user.shell.as_deref().filter(is_shell).into_iter().chain(["/bin/bash", "/bin/sh"]);
    let mut there = candidates.filter(|path| fs::metadata(path).is_ok_and(|file| file.is_file()));
    let found = there.next().map(|path| vec![path.to_owned()]);
    found.ok_or_else(|| "the image has no shell (no /bin/sh): give a program to run".to_owned())
}

/// Finds a program as a shell does.
pub fn find(name: &str, env: &[(String, String)], directory: &Path) -> Result<PathBuf, NotBegun> {
    if name.contains('/') {
        let path = directory.join(name);
        return match fs::metadata(&path) {
            Ok(file) if file.is_dir() => {
                Err(NotBegun::unusable(format!("can't run {name}: it is a directory")))
            }
            Ok(_) => Ok(path),
            Err(error) => Err(NotBegun::missing(format!("can't run {name}: {error}"))),
        };
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let candidates = || path.split(':').map(|part| directory.join(part).join(name));
    let is_file = |path: &PathBuf| fs::metadata(path).is_ok_and(|file| file.is_file());
    let is_runnable = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    candidates().find(is_runnable).ok_or_else(|| match candidates().find(is_file) {
        Some(file) => {
            NotBegun::unusable(format!("can't run {name}: {} is not executable", file.display()))
        }
        None => NotBegun::missing(format!("can't run {name}: there is no such program in {path}")),
    })
}
