//! POSIX access control lists: programs see them in one form, ext4 stores them in a shorter one.

use crate::bytes::{get16, get32};

/// Version of the form that programs see, and the size of an entry in it.
const SEEN: u32 = 2;
const ENTRY: usize = 8;
/// Version of the form on disk.
const STORED: u32 = 1;

/// Tags of entries.
const USER: u16 = 0x2;
const GROUP: u16 = 0x8;
const WITHOUT_ID: [u16; 4] = [0x1, 0x4, 0x10, 0x20];

/// The form on disk, or `None` when this is no access control list.
pub(crate) fn stored(seen: &[u8]) -> Option<Vec<u8>> {
    let entries = seen.get(4..)?;
    if get32(seen, 0) != SEEN || entries.len() % ENTRY != 0 {
        return None;
    }
    let mut stored = STORED.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(ENTRY) {
        match get16(entry, 0) {
            USER | GROUP => stored.extend(entry),
            tag if WITHOUT_ID.contains(&tag) => stored.extend(&entry[..4]),
            _ => return None,
        }
    }
    Some(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_users_and_groups_with_a_name_keep_their_number() {
        let seen = [
            2, 0, 0, 0, // version
            1, 0, 6, 0, 255, 255, 255, 255, // owner
            2, 0, 4, 0, 232, 3, 0, 0, // user 1000
            4, 0, 4, 0, 255, 255, 255, 255, // group
            16, 0, 4, 0, 255, 255, 255, 255, // mask
            32, 0, 0, 0, 255, 255, 255, 255, // others
        ];
        let stored_form = [
            1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 16, 0, 4, 0, 32, 0, 0, 0,
        ];
        assert_eq!(stored(&seen).unwrap(), stored_form);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for bad in [
            &[][..],
            &[2, 0, 0],
            &[1, 0, 0, 0],
            &[2, 0, 0, 0, 1, 0, 6],
            &[2, 0, 0, 0, 3, 0, 6, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(stored(bad), None, "{bad:?}");
        }
    }
}
