//! Programs that insist on being process 1: they get PID, mount, UTS, IPC and cgroup namespaces of
//! their own, as containers have them. What is run beside such a program enters them.
//!
//! All other programs are children of init, since process 1 of a namespace ignores signals that it
//! has no handler for.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

/// What says to programs that they run in a container, as systemd asks for
/// (<https://systemd.io/CONTAINER_INTERFACE>).
pub const CONTAINER: (&str, &str) = ("container", "caddis");

/// Namespaces beside that of process ids, which is another's business: a process does not change
/// its own.
const OTHERS: [(&str, CloneFlags); 4] = [
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// Which namespaces a program gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespaces {
    /// Those of init.
    Inits,
    /// Some of its own.
    Own,
    /// Those of this process.
    Of(i32),
}

/// What a program is that insists on being process 1, as far as it matters how it is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Systemd,
    /// Runit's, which tells the first process to end when it is run as another.
    Runit,
    /// That of busybox.
    Busybox,
    Other,
}

/// How one is told to end unless something else is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By this signal.
    Signal(i32),
    /// By running it once more, with this argument.
    Run(&'static str),
}

impl Kind {
    /// How it ends for good; `None` where any program's way is its way.
    pub fn end(self) -> Option<End> {
        match self {
            // systemd(1): SIGRTMIN+3 halts; glibc keeps the first two for itself.
            Self::Systemd => Some(End::Signal(libc::SIGRTMIN() + 3)),
            // runit-init(8).
            Self::Runit => Some(End::Run("0")),
            // Its init/init.c: SIGUSR2 powers off.
            Self::Busybox => Some(End::Signal(libc::SIGUSR2)),
            Self::Other => None,
        }
    }
}

/// What a program is that has to be process 1; `None` when it is none of those. `path` is what is
/// run for `argv`.
pub fn kind(path: &Path, argv: &[String]) -> Option<Kind> {
    // By the kernel's word for what is open: quicker than looking at each part of the path, and
    // whatever is there is not waited for.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
    let real = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).ok()?;
    let name_of = |path: &Path| {
        path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let called = argv.first().map(|word| name_of(Path::new(word))).unwrap_or_default();
    match name_of(&real).as_str() {
        "systemd" => Some(Kind::Systemd),
        "runit-init" => Some(Kind::Runit),
        "busybox" => {
            let applet = if called == "busybox" {
                argv.get(1).map(String::as_str).unwrap_or_default()
            } else {
                &called
            };
            ["init", "linuxrc"].contains(&applet).then_some(Kind::Busybox)
        }
        "runit" | "openrc-init" | "s6-linux-init" | "finit" => Some(Kind::Other),
        // s6-overlay's is a script at this very place; others' scripts of that name want nothing
        // special.
        "init" if real == Path::new("/init") => is_of_s6(&real).then_some(Kind::Other),
        // That of System V, of upstart.
        "init" if real.parent().is_some_and(|parent| name_of(parent) == "sbin") => {
            Some(Kind::Other)
        }
        _ => None,
    }
}

fn is_of_s6(path: &Path) -> bool {
    use io::Read as _;
    // Whatever else is there may be waited for in vain.
    if !fs::metadata(path).is_ok_and(|file| file.is_file()) {
        return false;
    }
    let mut begin = Vec::new();
    let read = File::open(path).and_then(|file| file.take(16 * 1024).read_to_end(&mut begin));
    read.is_ok()
        && [b"s6-".as_slice(), b"/s6/"]
            .iter()
            .any(|word| begin.windows(word.len()).any(|part| part == *word))
}

/// The next child is born into another PID namespace, until this is dropped.
pub struct Birthplace {
    own: Option<File>,
}

impl Drop for Birthplace {
    fn drop(&mut self) {
        // One's own can always be entered.
        let _ = self.own.take().map(|own| setns(own, CloneFlags::CLONE_NEWPID));
    }
}

/// Chooses where the next child is born. The error is for the user.
pub fn choose(namespaces: Namespaces) -> Result<Birthplace, String> {
    let failed = |error: &dyn std::fmt::Display| format!("can't use a PID namespace: {error}");
    let own = || File::open("/proc/self/ns/pid").map_err(|e| failed(&e));
    match namespaces {
        Namespaces::Inits => Ok(Birthplace { own: None }),
        Namespaces::Own => {
            let own = own()?;
            unshare(CloneFlags::CLONE_NEWPID).map_err(|e| failed(&e))?;
            Ok(Birthplace { own: Some(own) })
        }
        Namespaces::Of(pid) => {
            let own = own()?;
            let theirs = File::open(format!("/proc/{pid}/ns/pid")).map_err(|_| ENDED.to_owned())?;
            setns(theirs, CloneFlags::CLONE_NEWPID).map_err(|e| failed(&e))?;
            Ok(Birthplace { own: Some(own) })
        }
    }
}

/// What is told when the program is gone whose namespaces are to be entered.
const ENDED: &str = "the machine's program has ended";

/// What is mounted below `/` from now on is seen by programs in mount namespaces of their own, too:
/// kernel modules.
pub fn share_mounts() -> Result<(), String> {
    let (none, flags) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED);
    mount(none, "/", none, flags, none).map_err(|error| format!("can't share mounts: {error}"))
}

/// In the child: the namespaces beside that of process ids are its own from here on, and show it
/// what is its own.
pub fn isolate(has_terminal: bool) -> io::Result<()> {
    // By its name, since a mount of init's namespace can't be bound in another.
    let terminal = if has_terminal { Some(fs::read_link("/proc/self/fd/0")?) } else { None };
    let others = OTHERS.iter().fold(CloneFlags::empty(), |all, (_, flag)| all | *flag);
    unshare(others)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    for (kind, target) in [("proc", "/proc"), ("cgroup2", "/sys/fs/cgroup")] {
        umount2(target, MntFlags::MNT_DETACH)?;
        mount(Some(kind), target, Some(kind), quiet, none)?;
    }
    // A kernel without message queues has none here either.
    if umount2("/dev/mqueue", MntFlags::MNT_DETACH).is_ok() {
        mount(Some("mqueue"), "/dev/mqueue", Some("mqueue"), quiet, none)?;
    }
    if let Some(terminal) = terminal {
        // What the program writes to its console is the machine's log then.
        mount(Some(&terminal), "/dev/console", none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

/// Namespaces that a program is to enter, ready for it.
pub struct Visit(Vec<(File, CloneFlags)>);

impl Visit {
    /// Those of a process; none where they are init's or to be made. The error is for the user.
    pub fn of(namespaces: Namespaces) -> Result<Self, String> {
        let Namespaces::Of(pid) = namespaces else { return Ok(Self(Vec::new())) };
        let open = |(name, flag): &(&str, CloneFlags)| {
            let file =
                File::open(format!("/proc/{pid}/ns/{name}")).map_err(|_| ENDED.to_owned())?;
            Ok((file, *flag))
        };
        OTHERS.iter().map(open).collect::<Result<_, String>>().map(Self)
    }

    /// In the child: enters them.
    pub fn enter(&self) -> nix::Result<()> {
        self.0.iter().try_for_each(|(namespace, flag)| setns(namespace, *flag))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn programs_are_known_by_what_they_are_behind_any_link() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        for directory in ["sbin", "lib/systemd", "lib/runit", "bin"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for file in [
            "lib/systemd/systemd",
            "lib/runit/runit-init",
            "bin/busybox",
            "bin/app",
            "bin/init",
            "sbin/openrc-init",
        ] {
            fs::write(at(file), "").unwrap();
        }
        fs::create_dir_all(at("sysv/sbin")).unwrap();
        fs::write(at("sysv/sbin/init"), "").unwrap();
        for (link, target) in [
            ("sbin/init", "../lib/systemd/systemd"),
            ("sbin/runit", "../lib/runit/runit-init"),
            ("bin/linuxrc", "busybox"),
            ("bin/sh", "busybox"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        let of = |path: &str, words: &[&str]| {
            let words = words.iter().map(|word| (*word).to_owned());
            let argv: Vec<_> =
                std::iter::once(at(path).display().to_string()).chain(words).collect();
            kind(&at(path), &argv)
        };
        assert_eq!(of("sbin/init", &[]), Some(Kind::Systemd));
        assert_eq!(of("lib/systemd/systemd", &["--unit=x"]), Some(Kind::Systemd));
        assert_eq!(of("sbin/runit", &[]), Some(Kind::Runit));
        assert_eq!(of("sbin/openrc-init", &[]), Some(Kind::Other));
        assert_eq!(of("sysv/sbin/init", &[]), Some(Kind::Other));
        assert_eq!(of("bin/linuxrc", &[]), Some(Kind::Busybox));
        assert_eq!(of("bin/busybox", &["init"]), Some(Kind::Busybox));
        for (path, words) in [
            ("bin/busybox", vec!["sh"]),
            ("bin/sh", vec!["init"]),
            ("bin/app", vec![]),
            ("bin/init", vec![]),
        ] {
            assert_eq!(of(path, &words), None, "{path}");
        }
        assert_eq!(of("no/such", &[]), None);
    }

    #[test]
    fn a_script_is_s6_s_when_it_speaks_of_it() {
        let place = tempfile::tempdir().unwrap();
        let script = place.path().join("init");
        for (text, expected) in [
            ("#!/bin/sh -e\nexec /package/admin/s6-overlay-3/libexec/preinit\n", true),
            ("#!/usr/bin/execlineb -S0\n/etc/s6/init/init-stage1 $@\n", true),
            ("#!/bin/sh\nexec \"$@\"\n", false),
        ] {
            fs::write(&script, text).unwrap();
            assert_eq!(is_of_s6(&script), expected, "{text}");
        }
        assert!(!is_of_s6(&place.path().join("missing")));
    }

    #[test]
    fn systemd_is_told_as_its_manual_says() {
        assert_eq!(Kind::Systemd.end(), Some(End::Signal(37)));
        assert_eq!(Kind::Other.end(), None);
    }
}
