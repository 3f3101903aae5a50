//! Random bytes from the host.
#![expect(unsafe_code, reason = "the ioctls of /dev/random")]

use std::{
    fs::OpenOptions,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
};

/// `struct rand_pool_info` of linux/random.h with room for what the host sends.
#[repr(C)]
struct Pool {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; CAPACITY],
}

const CAPACITY: usize = 512;

// The request's number has the size of the struct without its buffer, which is of any length.
nix::ioctl_write_ptr_bad!(
    add_entropy,
    nix::request_code_write!(b'R', 0x03, 2 * size_of::<libc::c_int>()),
    Pool
);
nix::ioctl_none!(reseed, b'R', 0x07);

/// Mixes in and credits bytes, and has the kernel's generator use them at once.
pub fn add(bytes: &[u8]) -> Result<(), String> {
    // After a resume programs may have put something else in its place: it is not waited for.
    let random = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open("/dev/random");
    let random = random.map_err(|e| format!("can't open /dev/random: {e}"))?;
    let mut pool = Pool { entropy_bits: 0, bytes: 0, buffer: [0; CAPACITY] };
    let count = bytes.len().min(CAPACITY);
    pool.buffer[..count].copy_from_slice(&bytes[..count]);
    // At most 512.
    pool.bytes = count as libc::c_int;
    pool.entropy_bits = 8 * pool.bytes;
    let descriptor: RawFd = random.as_raw_fd();
    // SAFETY: the descriptor is open, and the pool says how many of its bytes are to be read.
    unsafe { add_entropy(descriptor, &raw const pool) }
        .map_err(|e| format!("can't add entropy: {e}"))?;
    // SAFETY: no argument. Kernels before 5.18 reseed by themselves and may refuse.
    let _ = unsafe { reseed(descriptor) };
    Ok(())
}
