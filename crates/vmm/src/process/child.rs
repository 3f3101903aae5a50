//! Starts a VM process. What happens between fork and exec is here and nowhere else: only system
//! calls, on data made ready before, since another thread of the parent may have held any lock at
//! the fork.
#![expect(
    unsafe_code,
    reason = "code between fork and exec; raw system calls that have no safe wrapper there"
)]

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::io::fcntl_dupfd_cloexec;

/// Copies of the descriptors to pass wait above this number, out of the way of where they will go.
const ABOVE: RawFd = 200;

/// Where the kernel should look first when memory is short: a VM before the server, and before most
/// else.
const OOM_SCORE_ADJUSTMENT: &CStr = c"500";

/// What to start.
pub(crate) struct Spawn<'a> {
    pub(crate) program: &'a Path,
    pub(crate) arguments: &'a [String],
    /// Uid and gid it runs as.
    pub(crate) uid: u32,
    /// Further groups.
    pub(crate) groups: &'a [u32],
    /// Files into which it writes `0` to join its cgroups.
    pub(crate) cgroups: &'a [File],
    /// Passed under these numbers, from 3 on; no others are.
    pub(crate) descriptors: &'a [(RawFd, BorrowedFd<'a>)],
    /// Standard output.
    pub(crate) stdout: OwnedFd,
    /// Standard error.
    pub(crate) stderr: OwnedFd,
}

/// Starts it and returns its process id once the program runs. The caller reaps it.
pub(crate) fn spawn(spawn: Spawn<'_>) -> io::Result<u32> {
    let copies = spawn
        .descriptors
        .iter()
        .map(|(number, descriptor)| Ok((*number, fcntl_dupfd_cloexec(descriptor, ABOVE)?)))
        .collect::<io::Result<Vec<_>>>()?;
    let sources =
        copies.iter().map(|(number, copy)| (*number, copy.as_raw_fd())).collect::<Vec<_>>();
    let cgroup_procs = spawn
        .cgroups
        .iter()
        .map(|cgroup_procs_file| cgroup_procs_file.as_raw_fd())
        .collect::<Vec<_>>();
    // Std tells of a failing exec through a pipe, which must not get one of these numbers.
    let _occupied = occupy(spawn.descriptors.iter().map(|(number, _)| *number).max().unwrap_or(0))?;
    let uid = spawn.uid;
    let groups = spawn.groups.to_vec();

    let mut command = Command::new(spawn.program);
    command
        .args(spawn.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(spawn.stdout)
        .stderr(spawn.stderr);
    // SAFETY: the closure makes system calls only, on memory that was allocated before the fork.
    unsafe {
        command.pre_exec(move || {
            join(&cgroup_procs)?;
            place(&sources)?;
            use_small_pages()?;
            drop_rights(uid, &groups)
        });
    }
    // Dropping a `Child` neither kills nor reaps it; its pidfd is used for both.
    let child = command.spawn()?;
    Ok(child.id())
}

/// Holds all free numbers up to this one.
fn occupy(last: RawFd) -> io::Result<Vec<OwnedFd>> {
    let null = File::open("/dev/null")?;
    let mut held = Vec::new();
    loop {
        let copy = fcntl_dupfd_cloexec(&null, 0)?;
        if copy.as_raw_fd() > last {
            return Ok(held);
        }
        held.push(copy);
    }
}

/// `-1` of a system call becomes its error.
fn check(result: impl Into<i64>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Joins the cgroups first, so that everything after is bounded; and leaves the server's session
/// and network.
fn join(cgroup_procs: &[RawFd]) -> io::Result<()> {
    for cgroup_procs_file in cgroup_procs {
        // SAFETY: one byte of a constant; the descriptor is open in the parent and so here.
        check(unsafe { libc::write(*cgroup_procs_file, c"0".as_ptr().cast(), 1) } as i64)?;
    }
    let score = c"/proc/self/oom_score_adj";
    // SAFETY: constant strings that end with zero; the descriptor is closed by nobody else.
    unsafe {
        let file = libc::open(score.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(file)?;
        let length = OOM_SCORE_ADJUSTMENT.to_bytes().len();
        check(libc::write(file, OOM_SCORE_ADJUSTMENT.as_ptr().cast(), length) as i64)?;
        libc::close(file);
    }
    // SAFETY: no pointers.
    unsafe {
        check(libc::setsid())?;
        check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC))?;
        libc::umask(0o077);
    }
    Ok(())
}

/// Has exec close every descriptor but the standard streams and these, which are put where they are
/// expected.
fn place(sources: &[(RawFd, RawFd)]) -> io::Result<()> {
    // Marked and not closed: std reports a failing exec through a pipe up there.
    // SAFETY: no pointers.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    for (number, source) in sources {
        // SAFETY: both numbers are plain integers; the targets lie below all sources.
        check(unsafe { libc::dup2(*source, *number) })?;
    }
    Ok(())
}

/// QEMU asks for huge pages for the code it translates. Zeroing them, most of each in vain, is a
/// fifth of the processor time of a start under emulation (docs/measurements.md).
fn use_small_pages() -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1_u64, 0_u64, 0_u64, 0_u64) })
}

/// Gives up root for good: bounding set, groups, ids, and any way to get rights back by exec.
fn drop_rights(uid: u32, groups: &[libc::gid_t]) -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are to locals and arguments that outlive the calls, with their lengths.
    unsafe {
        check(libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
        for capability in 0..64_u64 {
            // Past the kernel's last capability: EINVAL. Without CAP_SETPCAP: the set stays, but
            // exec gives none of it to a process that isn't root and has no_new_privs.
            if libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 {
                break;
            }
        }
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, uid, uid, uid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64))
    }
}
