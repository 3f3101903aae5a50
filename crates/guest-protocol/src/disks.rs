//! Where the disks of a VM are: by the number of their virtio transport (virtio-mmio, counted from
//! 0), which is the `_UID` of the transport in ACPI's tables. A disk says what it is to its driver
//! alone; its place is there to be seen before.
//!
//! None is 0: QEMU's microvm with two interrupt controllers never delivers the interrupt of that
//! one to Linux.

/// The disk with all modules of the guest's kernel, where it has some. Init leaves that device
/// alone until the kernel asks for a module.
pub const MODULES_TRANSPORT: u32 = 1;
/// The root disk.
pub const ROOT_TRANSPORT: u32 = 2;
/// Swap; a disk of 0 bytes where there is none, like all that follow.
pub const SWAP_TRANSPORT: u32 = 3;
/// What can be had again.
pub const CACHE_TRANSPORT: u32 = 4;
/// The first volume; the others follow.
pub const FIRST_VOLUME_TRANSPORT: u32 = 5;
