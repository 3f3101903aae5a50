//! A process that becomes the machine's program. It is there before it is known which machine this
//! is, with streams, session and cgroup of the program, so that a start only has to tell it which
//! program that is. It is init's own file, executed, and shares nothing with init but two pipes.
//!
//! ```text
//! init    ── orders ──▶  launcher: once more │ a program ▸ exec
//! init    ◀── report ──  ready                 as launch.rs has it
//! ```
#![expect(
    unsafe_code,
    reason = "what happens between fork and exec, and descriptors by their number"
)]

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl, openat},
    sys::stat::Mode,
    unistd::{chroot, execve, fchdir, pipe2, setsid},
};

use crate::{
    launch::{Launch, Report},
    limits::Limits,
    namespaces::Namespaces,
    program::CGROUP,
    spawn::{self, As, Program, Streams},
    users::User,
};

/// What init's program is called with.
pub const NAME: &str = "launch";
/// Descriptors of the process, where no others are.
const ORDERS: RawFd = 100;
const REPORT: RawFd = 101;
/// Longest order, bytes: as much as an empty pipe takes at once.
const LONGEST: usize = 60 * 1024;
/// What it says when it waits.
const READY: u8 = b'r';
/// Between the words of an order, none of which can have it.
const END: char = '\0';

/// Init's end.
pub struct Launcher {
    pid: i32,
    orders: File,
    report: File,
    output: OwnedFd,
    error: OwnedFd,
}

impl Launcher {
    /// Starts it, and returns when it waits.
    pub fn start() -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("can't start the launcher: {error}");
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| failed(&error));
        let ((theirs, orders), (report, theirs_too)) = (pipe()?, pipe()?);
        let cgroup = format!("/sys/fs/cgroup/{CGROUP}/cgroup.procs");
        let mut command = Command::new("/proc/self/exe");
        command
            .arg(NAME)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let prepare = move || {
            setsid()?;
            // Where there are no cgroups, programs do without.
            if let Ok(mut door) = OpenOptions::new().write(true).open(&cgroup) {
                door.write_all(b"0")?;
            }
            for (from, to) in [(&theirs, ORDERS), (&theirs_too, REPORT)] {
                // SAFETY: numbers only; nobody has what is there.
                Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
            }
            Ok(())
        };
        // SAFETY: this process has one thread, so its child may do whatever it may.
        let mut child =
            unsafe { command.pre_exec(prepare) }.spawn().map_err(|error| failed(&error))?;
        drop(command);
        let (Some(output), Some(error)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(failed(&"it has no streams"));
        };
        let pid = i32::try_from(child.id()).map_err(|error| failed(&error))?;
        let mut launcher = Self {
            pid,
            orders: orders.into(),
            report: report.into(),
            output: output.into(),
            error: error.into(),
        };
        launcher.ready()?;
        Ok(launcher)
    }

    fn ready(&mut self) -> Result<(), String> {
        let mut word = [0];
        match self.report.read_exact(&mut word) {
            Ok(()) if word == [READY] => Ok(()),
            Ok(()) => Err("the launcher failed".to_owned()),
            Err(error) => Err(format!("the launcher ended: {error}")),
        }
    }

    /// Has it execute itself once more, which is quicker the next time.
    pub fn warm_up(&mut self) -> Result<(), String> {
        self.order("")?;
        self.ready()
    }

    fn order(&mut self, text: &str) -> Result<(), String> {
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let order = [&length.to_ne_bytes(), text.as_bytes()].concat();
        self.orders
            .write_all(&order)
            .map_err(|error| format!("can't tell the launcher what to run: {error}"))
    }

    /// Has it become a program. `None` where it can't be this one, or is there no longer.
    pub fn launch(mut self, program: &Program) -> Result<Option<Streams>, String> {
        let Some(order) = encode(program).filter(|order| order.len() <= LONGEST) else {
            return Ok(None);
        };
        if self.order(&order).is_err() {
            return Ok(None);
        }
        let [report, output, error] =
            [self.report.into(), self.output, self.error].map(spawn::non_blocking);
        let launch = Launch::new(self.pid, report?);
        Ok(Some(Streams {
            pid: self.pid,
            launch,
            input: None,
            output: output?,
            error: Some(error?),
        }))
    }
}

/// A program as words; `None` where it needs what a launcher does not have.
fn encode(program: &Program) -> Option<String> {
    let As::Known(user) = program.user else { return None };
    let limits = program.limits?;
    let is_plain =
        program.terminal.is_none() && !program.has_input && program.namespaces == Namespaces::Inits;
    if !is_plain || program.cgroup != CGROUP || program.argv.is_empty() {
        return None;
    }
    let numbers =
        |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    let ids: Vec<u64> =
        [user.uid, user.gid].iter().chain(&user.groups).map(|id| u64::from(*id)).collect();
    let mut words = vec![
        program.directory.to_owned(),
        numbers(&ids),
        numbers(&limits.to_numbers()),
        program.argv.len().to_string(),
    ];
    words.extend(program.argv.iter().cloned());
    words.extend(program.env.iter().map(|(key, value)| format!("{key}={value}")));
    let has_none = words.iter().all(|word| !word.contains(END));
    has_none.then(|| words.join(&END.to_string()))
}

/// What an order says.
struct Order {
    directory: String,
    user: User,
    limits: Limits,
    argv: Vec<String>,
    env: Vec<(String, String)>,
}

fn decode(text: &str) -> Option<Order> {
    let mut words = text.split(END);
    let numbers = |word: &str| {
        word.split(' ').map(|number| number.parse::<u64>().ok()).collect::<Option<Vec<_>>>()
    };
    let directory = words.next()?.to_owned();
    let ids = numbers(words.next()?)?
        .into_iter()
        .map(|id| u32::try_from(id).ok())
        .collect::<Option<Vec<_>>>()?;
    let [uid, gid, groups @ ..] = ids.as_slice() else { return None };
    // Home and shell are in the environment and the arguments already.
    let user =
        User { uid: *uid, gid: *gid, groups: groups.to_vec(), home: String::new(), shell: None };
    let limits = Limits::from_numbers(numbers(words.next()?)?.try_into().ok()?);
    let count = words.next()?.parse().ok()?;
    let argv: Vec<_> = words.by_ref().take(count).map(str::to_owned).collect();
    let pair =
        |word: &str| word.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    let env = words.map(pair).collect::<Option<_>>()?;
    (argv.len() == count).then_some(Order { directory, user, limits, argv, env })
}

/// The process itself.
pub fn main() -> i32 {
    // There is nobody to tell where even the report fails.
    let Err(_) = run();
    1
}

fn run() -> io::Result<std::convert::Infallible> {
    // SAFETY: they were made for this process, and nobody else here has them.
    let (mut orders, report) = unsafe { (File::from_raw_fd(ORDERS), File::from_raw_fd(REPORT)) };
    for file in [&orders, &report] {
        fcntl(file, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    let mut report = Report(report);
    // Init is another root by the time there is a program.
    let processes = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open("/proc")?;
    report.0.write_all(&[READY])?;
    let mut length = [0; 4];
    orders.read_exact(&mut length)?;
    let mut text = vec![0; usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX)];
    if text.is_empty() {
        return again(&orders, &report.0);
    }
    orders.read_exact(&mut text)?;
    let order = String::from_utf8(text).ok().as_deref().and_then(decode);
    let begun = order
        .ok_or_else(|| "the order can't be read".to_owned())
        .and_then(|order| enter_root(&processes).map(|()| order));
    let refused = match begun {
        Ok(Order { directory, user, limits, argv, env }) => {
            let program = Program {
                argv: &argv,
                env: &env,
                user: As::Known(&user),
                directory: &directory,
                cgroup: CGROUP,
                terminal: None,
                has_input: false,
                namespaces: Namespaces::Inits,
                limits: Some(limits),
            };
            // SAFETY: they were made for this process, and stay open.
            let ends = [1, 2].map(|number| unsafe { BorrowedFd::borrow_raw(number) });
            let Err(refused) = spawn::execute(&program, &ends, &mut report);
            refused
        }
        Err(reason) => reason.into(),
    };
    report.failed(&refused);
    std::process::exit(127)
}

/// Executes the same file once more.
fn again(orders: &File, report: &File) -> io::Result<std::convert::Infallible> {
    for descriptor in [orders, report] {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let words = [c"init", c"launch"];
    Ok(execve(c"/proc/self/exe", &words, &[] as &[&CStr])?)
}

/// Makes init's root this process's own.
fn enter_root(processes: &File) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't enter the root: {error}");
    let root = openat(processes, "1/root", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    root.and_then(fchdir).and_then(|()| chroot(".")).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_says_what_program_it_is() {
        let words =
            |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let user = User {
            uid: 4_000_000_000,
            gid: 7,
            groups: vec![7, 8],
            home: "/root".to_owned(),
            shell: None,
        };
        let limits = Limits::from_numbers([1, u64::MAX, 3, 4]);
        let argv = words(&["/bin/sh", "-c", "", "echo \n two words; ü"]);
        let env = vec![("A".to_owned(), "b=c".to_owned()), ("EMPTY".to_owned(), String::new())];
        let plain = |argv: &[String]| {
            encode(&Program {
                argv,
                env: &env,
                user: As::Known(&user),
                directory: "/a b",
                cgroup: CGROUP,
                terminal: None,
                has_input: false,
                namespaces: Namespaces::Inits,
                limits: Some(limits),
            })
        };
        let order = decode(&plain(&argv).unwrap()).unwrap();
        assert_eq!((order.directory.as_str(), &order.argv, &order.env), ("/a b", &argv, &env));
        assert_eq!(
            (order.user.uid, order.user.gid, order.user.groups),
            (user.uid, user.gid, user.groups.clone())
        );
        assert_eq!(order.limits, limits);

        assert_eq!(plain(&words(&["with\0zero"])), None);
        assert_eq!(plain(&[]), None);
        for damaged in [
            "",
            "/",
            "/\0x",
            "/\x000\x001 2 3 4\x001\0a",
            "/\x000 0\x001 2 3\x001\0a",
            "/\x000 0\x001 2 3 4\x002\0a",
        ] {
            assert!(decode(damaged).is_none(), "{damaged:?}");
        }
    }
}
