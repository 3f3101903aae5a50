//! The program of `caddis demo`: what the only file of its image does. It says where it is, then
//! waits to be ended.

use std::{fs, io::Write as _};

use nix::{
    sys::{
        signal::{SigSet, Signal},
        utsname::uname,
    },
    unistd::gethostname,
};

/// The argument by which this is asked for.
pub const NAME: &str = "demo";

/// Another argument, for who asks a machine that runs already.
const ASK: &str = "ask";

/// Runs it.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<(), std::io::Error> {
    if arguments.next().as_deref() == Some(ASK) {
        let host = gethostname()?;
        println!("{} has been up for {} s", host.to_string_lossy(), first_word("/proc/uptime"));
        return Ok(());
    }
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let kernel = uname()?;
    println!("Hello from a virtual machine.");
    println!("  machine  {} of app {}", variable("FLY_MACHINE_ID"), variable("FLY_APP_NAME"));
    println!("  started  {}", variable("CADDIS_START_KIND"));
    println!(
        "  kernel   {} {}",
        kernel.sysname().to_string_lossy(),
        kernel.release().to_string_lossy()
    );
    println!("  memory   {} MiB", memory_kib() / 1024);
    println!(
        "  image    one file of {} kB, this program",
        fs::metadata("/proc/self/exe")?.len() / 1000
    );
    std::io::stdout().flush()?;
    let ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    ends.thread_block()?;
    ends.wait()?;
    println!("Goodbye.");
    Ok(())
}

fn first_word(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

fn memory_kib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|total| total.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
