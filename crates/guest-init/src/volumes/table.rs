//! Where a device is mounted, by the kernel's table (proc(5), mountinfo).

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt as _, path::PathBuf};

use nix::sys::stat::makedev;

const TABLE: &str = "/proc/self/mountinfo";

/// All places where a device is mounted, in the order in which they were.
pub fn mounts_of(device: u64) -> Result<Vec<PathBuf>, String> {
    let table = fs::read(TABLE).map_err(|error| format!("can't read {TABLE}: {error}"))?;
    let lines = table.split(|byte| *byte == b'\n');
    let of_device = lines.filter_map(parse).filter(|(number, _)| *number == device);
    Ok(of_device.map(|(_, place)| place).collect())
}

fn parse(line: &[u8]) -> Option<(u64, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let number = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = number.split_once(':')?;
    let place = unescape(fields.nth(1)?);
    Some((makedev(major.parse().ok()?, minor.parse().ok()?), place))
}

/// Spaces and the like are three octal digits behind a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut left = field;
    while let Some((first, rest)) = left.split_first() {
        let digits = rest.get(..3).filter(|_| *first == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*first));
        left = if code.is_some() { &rest[3..] } else { rest };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::ffi::OsStrExt as _, path::Path};

    use super::*;

    #[test]
    fn places_are_read_whatever_is_in_their_names() {
        let line = b"36 35 254:2 / /my\\040data rw,relatime shared:1 - ext4 /dev/vdc rw";
        let expected = (makedev(254, 2), PathBuf::from("/my data"));
        assert_eq!(parse(line), Some(expected));
        let odd = unescape(b"/a\\134b\\");
        assert_eq!(odd.as_os_str().as_bytes(), b"/a\\b\\");
        for line in [&b""[..], b"36 35", b"36 35 x / /data", b"36 35 1:x / /data"] {
            assert_eq!(parse(line), None);
        }
        let none: &Path = Path::new("");
        assert_eq!(unescape(b""), none);
    }
}
