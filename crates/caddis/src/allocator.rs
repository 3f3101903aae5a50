//! The C library's allocator, as a server needs it.

/// From this size on memory is the kernel's own again when it is freed, bytes: glibc's default,
/// which it raises to 32 MiB as soon as the first large piece is freed, and keeps what is smaller.
/// Six configurations of 4 MiB that had come and gone had cost 178 MB then, and cost 8 with this.
const LARGE: i32 = 128 << 10;

/// Has memory of large requests given back for good.
pub fn give_back_what_is_large() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers, and locks what it changes.
        let changed = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
        if changed == 0 {
            tracing::warn!("can't configure the allocator for large allocations");
        }
    }
}
