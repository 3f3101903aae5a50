//! The init binary of VMs, built statically by this crate's build script, so that the host's
//! program carries it.
#![forbid(unsafe_code)]

/// A static program for x86-64 Linux: `caddis-guest-init` in the profile `init`.
pub static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

#[cfg(test)]
mod tests {
    /// A program that needs a loader names it in a program header of this type.
    const PT_INTERP: u32 = 3;

    #[test]
    fn init_is_static_and_small() {
        let file = super::INIT;
        assert!(file.starts_with(b"\x7fELF"));
        let number = |at: usize, length: usize| {
            file[at..at + length]
                .iter()
                .rev()
                .fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
        };
        // e_phoff, e_phentsize and e_phnum of the ELF-64 header.
        let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        let kinds: Vec<_> = (0..count).map(|entry| number(table + entry * size, 4)).collect();
        assert!(
            !kinds.is_empty() && !kinds.contains(&(PT_INTERP as usize)),
            "no image need have its loader: {kinds:?}"
        );
        assert!(file.len() < 8 << 20, "{} bytes", file.len());
    }
}
