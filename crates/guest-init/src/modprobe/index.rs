//! The lists of `depmod` (depmod(8)): which file a module is, what it needs, and what names it goes
//! by.

use std::{collections::HashSet, fs, path::Path};

/// The lists, as text.
#[derive(Debug, Default)]
pub struct Index {
    dep: String,
    alias: String,
    built_in: String,
    soft: String,
}

impl Index {
    /// Those of a directory. Only the first has to be there.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let list = |name: &str| fs::read_to_string(directory.join(name));
        let dep =
            list("modules.dep").map_err(|error| format!("can't read modules.dep: {error}"))?;
        let other = |name: &str| list(name).unwrap_or_default();
        Ok(Self {
            dep,
            alias: other("modules.alias"),
            built_in: other("modules.builtin"),
            soft: other("modules.softdep"),
        })
    }

    /// The modules that a name stands for: its own, or those that have it as an alias.
    pub fn resolve(&self, name: &str) -> Vec<String> {
        let own = normal(name);
        if self.file(&own).is_some() {
            return vec![own];
        }
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for line in self.alias.lines() {
            let mut words = line.split(' ').skip(1);
            if let (Some(pattern), Some(module)) = (words.next(), words.next())
                && matches(pattern, &own)
                && seen.insert(module)
            {
                found.push(normal(module));
            }
        }
        found
    }

    /// Whether the kernel has it without loading anything.
    pub fn is_built_in(&self, name: &str) -> bool {
        let name = normal(name);
        self.built_in.lines().any(|line| module_of(line) == name)
    }

    /// The file of a module, and the modules to load before it, in order.
    pub fn file(&self, module: &str) -> Option<(&str, Vec<String>)> {
        let (path, needs) = self.dep.lines().find_map(|line| {
            let (path, needs) = line.split_once(':')?;
            (module_of(path) == module).then_some((path, needs))
        })?;
        // depmod lists last what comes first.
        Some((path, needs.split_whitespace().rev().map(module_of).collect()))
    }

    /// The modules that are better loaded before one, and after it.
    pub fn soft(&self, module: &str) -> (Vec<String>, Vec<String>) {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for line in self.soft.lines() {
            let mut words = line.split_whitespace();
            if words.next() != Some("softdep")
                || words.next().map(normal).as_deref() != Some(module)
            {
                continue;
            }
            let mut is_after = false;
            for word in words {
                match word {
                    "pre:" => is_after = false,
                    "post:" => is_after = true,
                    name if is_after => after.push(normal(name)),
                    name => before.push(normal(name)),
                }
            }
        }
        (before, after)
    }
}

/// With underscores, as the kernel names modules.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/net/tun.ko` is the module `tun`.
fn module_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// A shell's pattern, as aliases have them: `*`, `?` and `[…]`. A dash is an underscore.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what followed the last star does not fit.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(byte) => {
                // A bracket that begins no class stands for itself.
                let class = Some(byte)
                    .filter(|byte| **byte == b'[')
                    .and_then(|_| in_class(&pattern[p..], text[t]));
                let (fits, length) = class.unwrap_or((*byte == b'?' || is_same(*byte, text[t]), 1));
                if fits {
                    p += length;
                    t += 1;
                    continue;
                }
            }
            None => {}
        }
        let Some((at, from)) = star else { return false };
        star = Some((at, from + 1));
        (p, t) = (at + 1, from + 1);
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

fn is_same(one: u8, other: u8) -> bool {
    let normal = |byte| if byte == b'-' { b'_' } else { byte };
    normal(one) == normal(other)
}

/// Whether a byte is in the class that a pattern begins with, and how long that is; `None` when it
/// is no class.
fn in_class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let class = pattern.get(1..end)?;
    let mut fits = false;
    let mut at = 0;
    while let Some(first) = class.get(at) {
        match (class.get(at + 1), class.get(at + 2)) {
            (Some(b'-'), Some(last)) => {
                fits |= (*first..=*last).contains(&byte);
                at += 3;
            }
            _ => {
                fits |= *first == byte;
                at += 1;
            }
        }
    }
    Some((fits, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let text = |text: &str| text.to_owned();
        Index {
            dep: text(
                "kernel/net/bridge/bridge.ko: kernel/net/802/stp.ko kernel/net/llc/llc.ko\n\
                 kernel/net/802/stp.ko: kernel/net/llc/llc.ko\nkernel/net/llc/llc.ko:\n\
                 kernel/fs/overlayfs/overlay.ko.xz:\nkernel/net/nf-nat.ko:\n",
            ),
            alias: text(
                "# comment\nalias rtnl-link-bridge bridge\nalias fs-overlay overlay\nalias \
                 char-major-43-* stp\n\
                 alias x-[0-3]y llc\nalias x-[0-3]y stp\nalias x-[0-3]y llc\n",
            ),
            built_in: text("kernel/fs/ext4/ext4.ko\n"),
            soft: text(
                "# comment\nsoftdep nf-nat pre: llc x-y post: stp\nsoftdep llc post: nf-nat\n",
            ),
        }
    }

    #[test]
    fn names_and_aliases_lead_to_modules() {
        let index = index();
        for (name, expected) in [
            ("bridge", vec!["bridge"]),
            ("nf_nat", vec!["nf_nat"]),
            ("nf-nat", vec!["nf_nat"]),
            ("rtnl-link-bridge", vec!["bridge"]),
            ("rtnl_link_bridge", vec!["bridge"]),
            ("fs-overlay", vec!["overlay"]),
            ("char-major-43-7", vec!["stp"]),
            ("x-2y", vec!["llc", "stp"]),
            ("x-4y", vec![]),
            ("ext4", vec![]),
            ("comment", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(index.resolve(name), expected, "{name}");
        }
        assert!(index.is_built_in("ext4") && !index.is_built_in("bridge"));
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let index = index();
        let (path, needs) = index.file("bridge").unwrap();
        assert_eq!(
            (path, needs),
            ("kernel/net/bridge/bridge.ko", vec!["llc".to_owned(), "stp".to_owned()])
        );
        assert_eq!(index.file("overlay").unwrap().0, "kernel/fs/overlayfs/overlay.ko.xz");
        assert!(index.file("ext4").is_none());
        assert_eq!(
            index.soft("nf_nat"),
            (vec!["llc".to_owned(), "x_y".to_owned()], vec!["stp".to_owned()])
        );
        assert_eq!(index.soft("bridge"), (vec![], vec![]));
    }

    #[test]
    fn patterns_match_as_a_shell_s_do() {
        for (pattern, text, expected) in [
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a*b*c", "aXbYbZc", true),
            ("[ab]x", "bx", true),
            ("[ab]x", "cx", false),
            ("[a", "[a", true),
            ("a-[0-9]", "a_5", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
