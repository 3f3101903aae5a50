//! The init binary of VMs, built statically by this crate's build script, so that the host's program carries it.
#![forbid(unsafe_code)]

/// A static program for x86-64 Linux: `caddis-guest-init` in the profile `init`.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

#[cfg(test)]
mod tests {
    #[test]
    fn init_is_static_and_small() {
        assert!(super::INIT.starts_with(b"\x7fELF"));
        // A dynamically linked program names its loader, which no image need have.
        assert!(!super::INIT.windows(9).any(|bytes| bytes == b"ld-linux-"));
        assert!(super::INIT.len() < 8 << 20, "{} bytes", super::INIT.len());
    }
}
