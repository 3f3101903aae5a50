//! Small files of this crate, which are whole or not there, whenever the server is killed or the
//! disk full.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use crate::NetworkError;

/// What a file of keys and values says; nothing where there is none.
pub(crate) fn read(file: &Path) -> BTreeMap<String, String> {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Writes one.
pub(crate) fn write(file: &Path, state: &BTreeMap<String, String>) -> Result<(), NetworkError> {
    let text = serde_json::to_string(state).unwrap_or_default();
    replace(file, text.as_bytes()).map_err(NetworkError::io(format!("write {}", file.display())))
}

/// Puts a file in the place of what is there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&draft, path)).inspect_err(|_| _ = fs::remove_file(&draft))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_can_not_be_written_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("network.json");
        let state = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
        write(&path, &state).unwrap();
        // What a kill in the middle of writing leaves is no hindrance, and is not read.
        fs::write(directory.path().join("network.new"), "{").unwrap();
        assert_eq!(read(&path), state);
        write(&path, &BTreeMap::new()).unwrap();
        assert_eq!(read(&path), BTreeMap::new());
        write(&path, &state).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");

        // The draft can't be made, as on a disk that is full.
        fs::create_dir(directory.path().join("network.new")).unwrap();
        write(&path, &BTreeMap::new()).unwrap_err();
        assert_eq!(read(&path), state);
    }
}
