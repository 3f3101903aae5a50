//! A rehearsal: what a machine will need is done once with stand-ins, by a child in namespaces of its own whose end
//! undoes it. The second time is quicker: the kernel has set up what it only sets up once, and an emulator has
//! translated the code that runs then.
#![expect(unsafe_code, reason = "fork, and the end of the child")]

use std::io::Read as _;

use caddis_guest_protocol::MachineSpec;
use nix::{
    sched::{CloneFlags, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

use crate::{
    configure::{self, Root},
    devices, network, spawn,
    timing::Timing,
};

/// Cgroup of the program that is rehearsed with.
const CGROUP: &str = "rehearsal";

/// Rehearses. Afterwards the disks are without drivers again, and the network card is up without addresses.
pub fn rehearse(spec: &MachineSpec) -> Result<(), String> {
    configure::take_identity(spec)?;
    devices::bind()?;
    let rehearsed = network::configure(&spec.network).and_then(|()| in_child(|| run(spec)));
    let released = network::withdraw(&spec.network).and_then(|()| devices::release_disks());
    // The child was in it; it is empty now.
    let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{CGROUP}"));
    rehearsed.and(released)
}

/// Mounts, and runs a program to its end.
fn run(spec: &MachineSpec) -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS).map_err(|e| format!("can't unshare: {e}"))?;
    let prepared = configure::prepare_root(spec, Root::Rehearsed, &mut Timing::begin())?;
    let mut streams = spawn::spawn(&spawn::Program {
        argv: &spec.argv,
        env: &prepared.env,
        user: spawn::As::Known(&prepared.user),
        directory: &spec.working_dir,
        cgroup: CGROUP,
        terminal: None,
        has_input: false,
        namespaces: crate::namespaces::Namespaces::Inits,
        limits: Some(prepared.limits),
    })?;
    // Its words are nobody's; what matters is that they were written and read.
    let _ = streams.output.read(&mut [0; 4096]);
    match waitpid(nix::unistd::Pid::from_raw(streams.pid), None) {
        Ok(WaitStatus::Exited(_, 0)) => Ok(()),
        other => Err(format!("the program ended as {other:?}")),
    }
}

/// Does it in a child, and waits for that.
fn in_child(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // SAFETY: this process has one thread, so the child may do whatever it may.
    match unsafe { fork() }.map_err(|e| format!("can't fork: {e}"))? {
        ForkResult::Child => {
            let outcome = work();
            if let Err(reason) = &outcome {
                crate::kernel::say(&format!("rehearsal: {reason}"));
            }
            // SAFETY: nothing of the parent's is undone or written twice by the child's end.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(_) => Err("it failed, see the console".to_owned()),
            Err(error) => Err(format!("can't wait for it: {error}")),
        },
    }
}
