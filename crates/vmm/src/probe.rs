//! Whether KVM runs a guest's kernel on the processor. That `/dev/kvm` is there proves nothing, nor
//! that it makes VMs: a host may offer KVM without hardware virtualisation and emulate kernel mode
//! at a thousandth of the speed. So a loop is run in kernel mode and timed.
#![expect(unsafe_code, reason = "memory of a VM is shared with it")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use serde::{Deserialize, Serialize};

use crate::record::boot_id;

/// A loop of 100 000 takes a processor well under a millisecond; an emulated kernel mode took 209
/// ms.
const LIMIT: Duration = Duration::from_millis(20);
/// When even that does not end.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The fastest of so many, since the host may be busy.
const ATTEMPTS: usize = 3;

const MEMORY: usize = 64 << 10;
const CODE: usize = 0x4000;
/// `mov ecx, 100000; again: dec ecx; jnz again; out 0x10, al; hlt`.
const PROGRAM: [u8; 12] = [0xb9, 0xa0, 0x86, 0x01, 0x00, 0xff, 0xc9, 0x75, 0xfc, 0xe6, 0x10, 0xf4];

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Guests can run on the processor.
    pub usable: bool,
    /// How that was found out, or why not, for people.
    pub reason: String,
    boot_id: String,
}

/// Finds out, at most once per boot of the host: the answer is kept in `cache`. Blocks for up to
/// three seconds.
pub fn probe(cache: Option<&Path>) -> Verdict {
    let boot_id = boot_id().unwrap_or_default();
    let known =
        cache.and_then(|path| serde_json::from_slice::<Verdict>(&std::fs::read(path).ok()?).ok());
    if let Some(known) = known.filter(|known| known.boot_id == boot_id) {
        return known;
    }
    let (sender, answer) = mpsc::channel();
    // A VM that never ends leaves its thread behind, until this process ends.
    std::thread::spawn(move || sender.send(fastest()));
    let (usable, reason) = match answer.recv_timeout(TIMEOUT) {
        Ok(Ok(time)) if time < LIMIT => {
            (true, format!("a loop of 100 000 in kernel mode took {time:.1?}"))
        }
        Ok(Ok(time)) => (
            false,
            format!(
                "/dev/kvm emulates kernel mode: a loop of 100 000 took {time:.1?}, a CPU needs \
                 under 1 ms"
            ),
        ),
        Ok(Err(reason)) => (false, reason),
        Err(_) => (false, format!("/dev/kvm did not run a loop of 100 000 within {TIMEOUT:?}")),
    };
    let verdict = Verdict { usable, reason, boot_id };
    if let (Some(path), Ok(text)) = (cache, serde_json::to_vec(&verdict)) {
        // Only saves the next probe.
        let _ = std::fs::write(path, text);
    }
    verdict
}

fn fastest() -> Result<Duration, String> {
    let mut best = Duration::MAX;
    for _ in 0..ATTEMPTS {
        best = best.min(run()?);
        if best < LIMIT {
            break;
        }
    }
    Ok(best)
}

/// Zeroed pages that a VM is given.
struct Pages(*mut u8);

impl Pages {
    const LAYOUT: Layout = match Layout::from_size_align(MEMORY, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    fn new() -> Result<Self, String> {
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(Self::LAYOUT) };
        if start.is_null() { Err("no memory for a VM".to_owned()) } else { Ok(Self(start)) }
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: within the allocation, as just checked; no VM runs while `self` is borrowed
        // mutably here.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the VM that used it was closed before.
        unsafe { dealloc(self.0, Self::LAYOUT) };
    }
}

/// Time that the loop takes.
fn run() -> Result<Duration, String> {
    let failed =
        |what: &'static str| move |error: kvm_ioctls::Error| format!("can't {what}: {error}");
    let mut pages = Pages::new()?;
    // Page tables: one large page from 0 on, in long mode.
    pages.write(0x1000, &0x2003_u64.to_le_bytes());
    pages.write(0x2000, &0x3003_u64.to_le_bytes());
    pages.write(0x3000, &0x0083_u64.to_le_bytes());
    pages.write(CODE, &PROGRAM);

    let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
    let vm = kvm.create_vm().map_err(failed("create a VM"))?;
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY as u64,
        userspace_addr: pages.0 as u64,
        ..Default::default()
    };
    // SAFETY: the pages live until after `vm` and `vcpu` are dropped, below.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("give memory to a VM"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("create a vCPU"))?;
    let mut special = vcpu.get_sregs().map_err(failed("read registers of a VM"))?;
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    special.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
    (special.ds, special.es, special.ss) = (data, data, data);
    special.cr3 = 0x1000;
    special.cr4 |= 1 << 5;
    special.cr0 |= 1 << 31 | 1;
    special.efer |= 1 << 8 | 1 << 10;
    vcpu.set_sregs(&special).map_err(failed("set registers of a VM"))?;
    let mut registers = vcpu.get_regs().map_err(failed("read registers of a VM"))?;
    registers.rip = CODE as u64;
    registers.rflags = 2;
    vcpu.set_regs(&registers).map_err(failed("set registers of a VM"))?;

    let start = Instant::now();
    let outcome = match vcpu.run().map_err(failed("run a VM"))? {
        VcpuExit::IoOut(..) => Ok(start.elapsed()),
        other => Err(format!("/dev/kvm does not run a loop in kernel mode: {other:?}")),
    };
    drop(vcpu);
    drop(vm);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_kept_for_the_boot_it_was_found_in() {
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("kvm.json");
        let found = probe(Some(&cache));
        assert!(!found.reason.is_empty());
        let mut forged =
            Verdict { usable: !found.usable, reason: "kept".to_owned(), ..found.clone() };
        std::fs::write(&cache, serde_json::to_vec(&forged).unwrap()).unwrap();
        assert_eq!(probe(Some(&cache)), forged, "not asked again");
        forged.boot_id = "another".to_owned();
        std::fs::write(&cache, serde_json::to_vec(&forged).unwrap()).unwrap();
        assert_eq!(probe(Some(&cache)).usable, found.usable, "asked again after a boot");
    }
}
