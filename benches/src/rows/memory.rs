//! Memory of an idle machine: the proportional shares (PSS) of all VM processes, those that wait in
//! the pool too, and what the server holds for templates, over the number of machines.

use std::{collections::HashMap, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use caddis_testkit::process;
use futures::future::try_join_all;

use crate::{
    bench::Bench,
    cpu,
    machine::{Machine, PROGRAM, config},
    progress::progress,
    report::Promise,
    server::{IMAGE, Pool, Server},
};

const MIB: f64 = 1024.0 * 1024.0;

/// Measures the row.
///
/// # Errors
/// When a machine does not start.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let server = bench.server(Pool::On).await?;
    let machines = bench.repeat(20, 5);
    progress(&format!("memory: starting {machines} machines"));
    server.before_start();
    let config = config(IMAGE, PROGRAM);
    let all = try_join_all((0..machines).map(|_| Machine::create(server.http(), &config))).await?;
    for machine in &all {
        machine.wait("started").await?;
        machine.first_output(String::new()).await?;
    }
    server.pool_full().await?;
    cpu::rest().await?;
    // Once: what differs between runs is not noise but the number of machines.
    let bytes = memory(&server, machines)?;
    let text = format!(
        "memory of an idle machine of 256 MB, PSS of all VMs (also waiting ones) and templates \
         over {machines} machines"
    );
    bench.report.samples(
        "memory",
        &text,
        "MiB",
        Promise::AtMost(56.0),
        &[bytes / machines as f64 / MIB],
    );
    Ok(())
}

/// Bytes in all.
fn memory(server: &Server, machines: usize) -> Result<f64> {
    let vms = vms(server);
    let count = vms.len();
    ensure!(count >= machines, "{machines} machines run, and {count} VM processes were found");
    let (mut shares, mut shared_memory) = (0, 0);
    for pid in vms {
        let rollup = rollup(pid)?;
        shares += field(&rollup, "Pss:")?;
        shared_memory += field(&rollup, "Pss_Shmem:")?;
    }
    // A template's pages count in part for each VM that maps them; those that none maps are the
    // server's.
    let held = templates(server.pid())?;
    let mib = |bytes: u64| bytes >> 20;
    progress(&format!(
        "memory: {count} VM processes with {} MiB, {} of them shared, and {} MiB of templates",
        mib(shares),
        mib(shared_memory),
        mib(held)
    ));
    Ok((shares + held.saturating_sub(shared_memory)) as f64)
}

/// The VM processes of a server: those that it started, and those that hold a file of it.
fn vms(server: &Server) -> Vec<i32> {
    let mut pids = process::holders(server.data());
    pids.extend(children(server.pid().cast_signed()));
    let is_vm = |pid: &i32| process::name(*pid).is_some_and(|name| name.starts_with("qemu-system"));
    pids.into_iter().filter(is_vm).collect()
}

/// The processes that a process has started.
pub(super) fn children(of: i32) -> Vec<i32> {
    let numbered = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = numbered.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    all.filter(|pid| process::status(*pid, "PPid").is_some_and(|parent| parent == of.to_string()))
        .collect()
}

/// A process's proportional share of memory, bytes, as `smaps_rollup` has it.
pub(super) fn share(pid: i32) -> Result<u64> {
    field(&rollup(pid)?, "Pss:")
}

fn rollup(pid: i32) -> Result<String> {
    let file = format!("/proc/{pid}/smaps_rollup");
    std::fs::read_to_string(&file).with_context(|| format!("reading {file}"))
}

/// Bytes that the server holds as templates.
fn templates(server: u32) -> Result<u64> {
    // A template may be open several times, for a VM that is being started.
    let mut held = HashMap::new();
    for (number, target) in process::descriptors(server.cast_signed()) {
        if target.starts_with("/memfd:caddis-template") {
            let path = format!("/proc/{server}/fd/{number}");
            let file = std::fs::metadata(Path::new(&path))
                .with_context(|| format!("looking at {path}"))?;
            held.insert(file.ino(), file.blocks() * 512);
        }
    }
    let bytes: u64 = held.values().sum();
    ensure!(bytes > 0, "the server holds no template, or under another name");
    Ok(bytes)
}

/// A field of `smaps_rollup`, bytes.
fn field(rollup: &str, name: &str) -> Result<u64> {
    let line =
        rollup.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    let kib = line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no number in {line}"))? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_apart_and_counted_in_bytes() {
        let rollup = "55-56 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss:    12 kB\nPss_Shmem:  3 kB\n";
        assert_eq!(field(rollup, "Pss:").unwrap(), 12 * 1024);
        assert_eq!(field(rollup, "Pss_Shmem:").unwrap(), 3 * 1024);
        assert!(field(rollup, "Pss_Anon:").is_err());
    }
}
