//! The command line of QEMU. Pure.
//!
//! Everything on it is ours or a number: no word comes from a user or an image, and no path but
//! those of descriptors.

use super::{Accelerator, descriptor};

/// What the command line depends on.
pub(super) struct Shape<'a> {
    pub(super) name: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    /// It boots; otherwise it waits to be restored.
    pub(super) boots: bool,
    /// One that boots does so when it is told to.
    pub(super) waits: bool,
    /// Disks, by arguments of their own (`disks.rs`).
    pub(super) disks: Vec<String>,
    pub(super) mac: &'a str,
    pub(super) has_tap: bool,
    pub(super) tsc_khz: u64,
    pub(super) kernel_args: &'a [String],
}

/// Kernel arguments that shorten the boot of a distribution's kernel (measured: together 0.35 s
/// under emulation).
const KERNEL: &str = "console=ttyS0 quiet cryptomgr.notests 8250.nr_uarts=1 i8042.noaux \
                      i8042.nomux i8042.nopnp i8042.dumbkbd random.trust_cpu=on no_timer_check \
                      lsm= audit=0 mitigations=off reboot=t panic=-1";

/// All arguments, for the descriptors of [`descriptor`].
pub(super) fn arguments(shape: &Shape<'_>) -> Vec<String> {
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| {
        arguments.push(option.to_owned());
        arguments.push(value);
    };
    add("-name", shape.name.to_owned());
    // acpi: the distribution's kernel finds virtio-mmio devices by it alone. ioapic2: room for 24
    // of them. Timer, interrupt controller and clock of old stay: under emulation a kernel without
    // them starts seconds later.
    add("-machine", "microvm,acpi=on,ioapic2=on,memory-backend=m0".to_owned());
    match shape.accelerator {
        Accelerator::Kvm => {
            add("-accel", "kvm".to_owned());
            add("-cpu", "host".to_owned());
        }
        Accelerator::Emulation => {
            // The default translation cache would grow to a quarter of the host's memory limit.
            add("-accel", "tcg,tb-size=64".to_owned());
            add("-cpu", "max".to_owned());
        }
    }
    add("-smp", shape.vcpus.to_string());
    add("-m", format!("{}M", shape.memory_mib));
    // One name whatever is behind it, so that what is saved with the one can be restored with the
    // other.
    let size = format!("id=m0,size={}M", shape.memory_mib);
    let file = format!("memory-backend-file,{size},mem-path=/proc/self/fd/{}", descriptor::MEMORY);
    // One that boots has it for itself; what another is restored from is copied on write.
    add("-object", format!("{file},share={}", if shape.boots { "on" } else { "off" }));
    if shape.boots {
        add("-kernel", format!("/proc/self/fd/{}", descriptor::KERNEL));
        add("-initrd", format!("/proc/self/fd/{}", descriptor::INITRD));
        add("-append", kernel_line(shape));
    } else {
        // The kernel is in the memory already. It goes on when it is told to.
        add("-incoming", "defer".to_owned());
    }
    if shape.has_tap {
        add("-netdev", format!("tap,id=net,fd={},vhost=off", descriptor::TAP));
        // A VM that was restored is where it was: it need not announce that to its link.
        add(
            "-device",
            format!("virtio-net-device,netdev=net,mac={},guest_announce=off", shape.mac),
        );
    }
    add("-device", "virtio-rng-device".to_owned());
    add("-chardev", format!("socket,id=control,fd={},server=on,wait=off", descriptor::CONTROL));
    add("-device", "virtio-serial-device,max_ports=2".to_owned());
    add(
        "-device",
        format!("virtserialport,chardev=control,name={}", caddis_guest_protocol::PORT_NAME),
    );
    add("-chardev", format!("socket,id=qmp,fd={},server=on,wait=off", descriptor::QMP));
    add("-mon", "chardev=qmp,mode=control".to_owned());
    add("-chardev", "stdio,id=console,signal=off,mux=off".to_owned());
    add("-serial", "chardev:console".to_owned());
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    // State is named by all that it depends on already, and that of devices alone does not begin
    // with it.
    add("-global", "migration.send-configuration=off".to_owned());
    arguments.extend(shape.disks.iter().cloned());
    for switch in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.push(switch.to_owned());
    }
    if !shape.boots || shape.waits {
        arguments.push("-S".to_owned());
    }
    arguments.extend(["-display", "none", "-monitor", "none"].map(str::to_owned));
    arguments
}

fn kernel_line(shape: &Shape<'_>) -> String {
    let mut line = KERNEL.to_owned();
    if shape.accelerator == Accelerator::Emulation {
        // Without it the kernel measures its clock against a timer, fails on a busy host and hangs
        // for ever.
        line.push_str(&format!(" tsc_early_khz={} tsc=reliable", shape.tsc_khz));
    }
    for argument in shape.kernel_args {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Disk, DiskFormat, DiskRole,
        qemu::disks::{self, modules},
    };

    fn root() -> Disk {
        let format = DiskFormat::Overlay("/base".into());
        Disk { role: DiskRole::Root, format, path: "/own".into(), size: 1 << 30 }
    }

    fn shape(accelerator: Accelerator) -> Vec<String> {
        arguments(&Shape {
            name: "0123456789abcd",
            accelerator,
            vcpus: 2,
            memory_mib: 512,
            boots: true,
            waits: false,
            disks: [modules(true), disks::arguments(Some(&[root()]))].concat(),
            mac: "02:00:00:00:00:01",
            has_tap: true,
            tsc_khz: 2_000_000,
            kernel_args: &["loglevel=7".to_owned()],
        })
    }

    #[test]
    fn hardware_and_emulation_differ_in_the_processor_and_its_clock_only() {
        let (kvm, tcg) = (shape(Accelerator::Kvm), shape(Accelerator::Emulation));
        assert_eq!(kvm.len(), tcg.len());
        let different: Vec<_> =
            kvm.iter().zip(&tcg).filter(|(a, b)| a != b).map(|(a, _)| a.as_str()).collect();
        assert_eq!(different.len(), 3, "{different:?}");
        assert_eq!(different[..2], ["kvm", "host"]);
        assert!(
            tcg.iter().any(|word| word.contains("tsc_early_khz=2000000 tsc=reliable loglevel=7"))
        );
        assert!(!kvm.iter().any(|word| word.contains("tsc_early_khz")));
    }

    #[test]
    fn the_sandbox_is_on_and_no_path_of_the_host_is_named() {
        let line = shape(Accelerator::Emulation).join(" ");
        assert!(line.contains(
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        ));
        let paths = line.split([' ', '=', ',', '"']).filter(|word| word.starts_with('/'));
        assert_eq!(paths.clone().count(), 6);
        assert!(
            paths
                .clone()
                .all(|path| path.starts_with("/dev/fdset/") || path.starts_with("/proc/self/fd/"))
        );
    }
}
