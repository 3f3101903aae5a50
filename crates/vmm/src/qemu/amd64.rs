//! Which level of amd64 the processor of VMs has (x86-64 psABI, "Micro-Architecture Levels"):
//! programs built for a higher one die of illegal instructions.

/// What each level from the second on adds, as `/proc/cpuinfo` calls it.
const ADDED: [&[&str]; 3] = [
    &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"],
    &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"],
    &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"],
];
/// First QEMU whose emulator has AVX2 and FMA; none has AVX-512.
const EMULATES_AVX2: (u32, u32) = (7, 2);

/// The level of a processor with these flags, 1 to 4. VMs have those of the host with `-cpu host`.
pub(crate) fn of_flags(flags: &str) -> u8 {
    let has = |level: &&&[&str]| {
        level.iter().all(|flag| flags.split_ascii_whitespace().any(|known| known == *flag))
    };
    ADDED.iter().take_while(has).fold(1, |level, _| level + 1)
}

/// The level of `-cpu max` under the emulator of a QEMU of this version, `7.2.22 (Debian …)`.
pub(crate) fn of_emulator(version: &str) -> u8 {
    let mut numbers = version.split(['.', ' ']).map_while(|number| number.parse().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= EMULATES_AVX2 { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_had_with_all_flags_of_it_and_of_those_below() {
        let all: Vec<&str> = ADDED.concat();
        assert_eq!(of_flags(&all.join(" ")), 4);
        assert_eq!(of_flags("fpu sse2"), 1);
        for missing in &all {
            let flags: Vec<&str> = all.iter().copied().filter(|flag| flag != missing).collect();
            let expected = 1 + ADDED.iter().position(|level| level.contains(missing)).unwrap();
            assert_eq!(usize::from(of_flags(&flags.join(" "))), expected, "without {missing}");
        }
    }

    #[test]
    fn the_emulator_has_what_its_version_can() {
        for (version, level) in [
            ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", 3),
            ("7.1.0", 2),
            ("6.2.0 (Debian 1:6.2)", 2),
            ("10.0.2", 3),
            ("8", 3),
            ("odd", 2),
        ] {
            assert_eq!(of_emulator(version), level, "{version}");
        }
    }

    /// Asks the program itself, so that a QEMU that emulates less does not go unnoticed.
    #[test]
    fn the_emulator_says_the_same_itself() {
        use std::{io::Write as _, process::Stdio};

        let program = std::path::Path::new("qemu-system-x86_64");
        let ask = concat!(
            r#"{"execute": "query-cpu-model-expansion", "arguments": "#,
            r#"{"type": "full", "model": {"name": "max"}}}"#
        );
        let script =
            format!("{{\"execute\": \"qmp_capabilities\"}}\n{ask}\n{{\"execute\": \"quit\"}}\n");
        let mut qemu = std::process::Command::new(program)
            .args([
                "-M", "microvm", "-accel", "tcg", "-cpu", "max", "-S", "-display", "none", "-qmp",
                "stdio",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("QEMU is needed: apt-get install qemu-system-x86");
        qemu.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        let said = String::from_utf8(qemu.wait_with_output().unwrap().stdout).unwrap();
        // QEMU writes names with a dash, and pni as sse3.
        let has = |flag: &&str| match *flag {
            "pni" => said.contains(r#""sse3": true"#) || said.contains(r#""pni": true"#),
            flag => {
                said.contains(&format!(r#""{flag}": true"#))
                    || said.contains(&format!(r#""{}": true"#, flag.replace('_', "-")))
            }
        };
        let flags: Vec<&str> = ADDED.concat().into_iter().filter(has).collect();
        assert_eq!(
            of_flags(&flags.join(" ")),
            of_emulator(&crate::qemu::version(program).unwrap()),
            "{flags:?}"
        );
    }
}
