//! PID 1 of a VM. Comes up from the initrd with nothing but the kernel, waits for the host to say
//! which machine this is, turns the VM into it, runs its program, and reports its end.
//!
//! ```text
//! kernel ▸ /dev, /proc, /sys ▸ modules, devices ▸ port, launcher
//!        ▸ [Configure] ▸ entropy, clock, network, root ▸ volumes ▸ program ▸ its end
//!        ▸ volumes unmounted ▸ last log lines ▸ exit report ▸ [AcknowledgeExit] ▸ power off
//! ```
//! While init waits for `Configure` the VM may be saved, and later restored as many machines: until
//! then it reads no boot id and opens no disk, and what was drawn of random bytes is nobody's.
//!
//! One thread, one epoll loop ([`guest`]): everything that happens is an event, nothing is polled,
//! and no write to the host ever blocks.

#![cfg_attr(not(test), no_main)]
#![expect(unsafe_code, reason = "what the C library calls")]

use nix::sys::signal::{SigHandler, Signal, signal};

mod api;
mod clock;
mod configure;
mod demo;
mod devices;
mod entropy;
mod execs;
mod files;
mod filesystem;
mod freezer;
mod guest;
mod image_files;
mod kernel;
mod launch;
mod launcher;
mod limits;
mod lines;
mod logs;
mod memory;
mod modprobe;
mod namespaces;
mod network;
mod oom;
mod port;
mod processes;
mod program;
mod sessions;
mod spawn;
mod task;
mod timing;
mod uevents;
mod users;
mod volumes;
mod warm_up;

/// Called by the C library instead of by Rust's runtime, which reads `/proc/self/maps` first and
/// sets up what a program wants that may run out of stack: under an emulator that is a good part of
/// what it takes to start one.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main() -> libc::c_int {
    // As the runtime has it: who has gone is told by an error.
    // SAFETY: a disposition without a handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    // Writes out what is left for standard output, which a return to the C library would not.
    std::process::exit(run())
}

/// The exit status.
fn run() -> i32 {
    if modprobe::is_called(std::env::args_os().next().as_deref()) {
        return modprobe::main(std::env::args_os().skip(1));
    }
    match std::env::args().nth(1).as_deref() {
        Some(launcher::NAME) => return launcher::main(),
        Some(demo::NAME) => {
            return match demo::main(std::env::args().skip(2)) {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("{error}");
                    1
                }
            };
        }
        Some(files::NAME) => return files::main(std::env::args_os().skip(2)),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("caddis-guest-init is the first process of a VM and of no use elsewhere");
        return 2;
    }
    if let Err(message) = guest::run() {
        // The host finds it in the console's last lines.
        kernel::say(&format!("init failed: {message}"));
    }
    kernel::end()
}
