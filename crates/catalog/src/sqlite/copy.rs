//! A consistent copy of a catalog that is in use.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, backup::StepResult};

use super::SqliteError;

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), SqliteError> {
    let failed = |reason: String| SqliteError::Backup { path: to.to_owned(), reason };
    if to.try_exists().map_err(|e| failed(e.to_string()))? {
        return Err(failed("the file already exists, choose another name".to_owned()));
    }
    let draft = to.with_extension("partial");
    let run = || -> rusqlite::Result<()> {
        let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut target = Connection::open(&draft)?;
        let backup = rusqlite::backup::Backup::new(&source, &mut target)?;
        // All pages in one step: one snapshot, however much is written meanwhile.
        match backup.step(-1)? {
            StepResult::Done => Ok(()),
            _ => Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                None,
            )),
        }
    };
    let written = run().map_err(|e| failed(e.to_string())).and_then(|()| {
        std::fs::File::open(&draft)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&draft, to))
            .map_err(|e| failed(e.to_string()))
    });
    if written.is_err() {
        // Nothing was promised yet, so a half-made copy is all that could be left.
        let _ = std::fs::remove_file(&draft);
    }
    written
}
