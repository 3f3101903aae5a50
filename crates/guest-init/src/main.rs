//! PID 1 of a VM. Comes up from the initrd with nothing but the kernel, waits for the host to say which machine this
//! is, turns the VM into it, runs its program, and reports its end.
//!
//! ```text
//! kernel ▸ /dev, /proc, /sys ▸ modules ▸ control port ▸ [Configure] ▸ entropy, clock, devices, root, network ▸ program
//!                                                                                                            │
//!   power off ◀ [AcknowledgeExit] ◀ exit report ◀ last log lines ◀──────────────── end of the program ◀──────┘
//! ```
//! While init waits for `Configure` the VM may be saved, and later restored as many machines: until then it draws no
//! random bytes, reads no boot id, and binds no disk or network card.
//!
//! One thread, one epoll loop ([`guest`]): everything that happens is an event, nothing is polled, and no write to the
//! host ever blocks.

use std::process::ExitCode;

mod clock;
mod configure;
mod demo;
mod devices;
mod entropy;
mod execs;
mod files;
mod freezer;
mod guest;
mod image_files;
mod kernel;
mod launch;
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
mod rehearsal;
mod sessions;
mod spawn;
mod timing;
mod users;

/// As a program of a VM that rehearses there is nothing to do but to say something.
const REHEARSE: &str = "rehearse";

fn main() -> ExitCode {
    if modprobe::is_called(std::env::args_os().next().as_deref()) {
        return modprobe::main(std::env::args_os().skip(1));
    }
    match std::env::args().nth(1).as_deref() {
        Some(REHEARSE) => {
            println!("rehearsed");
            return ExitCode::SUCCESS;
        }
        Some(demo::NAME) => {
            return match demo::main(std::env::args().skip(2)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        Some(files::NAME) => return files::main(std::env::args_os().skip(2)),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("caddis-guest-init is the first process of a VM and of no use elsewhere");
        return ExitCode::from(2);
    }
    if let Err(message) = guest::run() {
        // The host finds it in the console's last lines.
        kernel::say(&format!("init failed: {message}"));
    }
    kernel::end()
}
