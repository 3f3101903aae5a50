//! What is asked of a mounted file system.
#![expect(unsafe_code, reason = "ioctls")]

use std::{fs::File, os::fd::AsRawFd as _};

// EXT4_IOC_RESIZE_FS of the kernel's fs/ext4/ext4.h; FIFREEZE and FITHAW of linux/fs.h.
nix::ioctl_write_ptr!(resize, b'f', 16, u64);
nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);

/// Has a mounted ext4 grow to so many blocks.
pub fn grow(root: &File, blocks: u64) -> nix::Result<()> {
    // SAFETY: the descriptor is open and the number outlives the call.
    unsafe { resize(root.as_raw_fd(), &raw const blocks) }.map(drop)
}

/// Has whoever writes to a file system wait, and it be whole as it is.
pub fn freeze(root: &File) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: the descriptor is open; the argument is not looked at.
    unsafe { fifreeze(root.as_raw_fd(), &raw mut unused) }.map(drop)
}

/// Lets it go on; `EINVAL` when it does.
pub fn thaw(root: &File) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: the descriptor is open; the argument is not looked at.
    unsafe { fithaw(root.as_raw_fd(), &raw mut unused) }.map(drop)
}
