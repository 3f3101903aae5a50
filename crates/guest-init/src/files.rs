//! Init as a program that copies files, for images without any of their own: an ordinary child, so
//! that a slow disk holds up nobody. Archives are tar; what is copied is the entry `content` with
//! what is below it, and the last entry is `complete`, without which an archive was cut off.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

mod get;
mod put;

/// First argument.
pub const NAME: &str = "files";
/// Name of what is copied, in archives.
const CONTENT: &str = "content";
/// Name of an archive's last entry.
const COMPLETE: &str = "complete";

/// How init is called for it.
pub fn command(arguments: &[String]) -> Vec<String> {
    ["/proc/self/exe", NAME]
        .into_iter()
        .map(str::to_owned)
        .chain(arguments.iter().cloned())
        .collect()
}

/// Runs it. Errors go to standard error.
///
/// `get [-R] PATH` writes an archive; `put PATH NAME` reads one, which becomes PATH, or PATH/NAME
/// where PATH is a directory, and says its path; `find PATH` lists what is there, a JSON object per
/// line.
pub fn main(arguments: impl Iterator<Item = OsString>) -> i32 {
    let arguments: Vec<_> = arguments.collect();
    let words: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    let is = |word: &OsStr, name: &str| word == OsStr::new(name);
    let outcome = match words[..] {
        [verb, path] if is(verb, "get") => get::get(Path::new(path), false),
        [verb, flag, path] if is(verb, "get") && is(flag, "-R") => get::get(Path::new(path), true),
        [verb, path, name] if is(verb, "put") => put::put(Path::new(path), name),
        [verb, path] if is(verb, "find") => find(Path::new(path)),
        _ => Err("it is called as 'get [-R] PATH', 'put PATH NAME' or 'find PATH'".to_owned()),
    };
    match outcome {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("{message}");
            1
        }
    }
}

/// What went wrong with a path, as people say it.
fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> String + 'a {
    move |error| {
        let reason = match error.raw_os_error() {
            Some(libc::ENOENT) => "no such file or directory in the machine".to_owned(),
            Some(libc::ENOSPC) => "the machine's disk is full".to_owned(),
            Some(libc::EROFS) => "it is on a file system that can't be written to".to_owned(),
            Some(libc::EEXIST) => "it exists already".to_owned(),
            _ => error.to_string(),
        };
        format!("can't {what} {}: {reason}", path.display())
    }
}

fn find(root: &Path) -> Result<(), String> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let told = |e: io::Error| format!("can't write the list: {e}");
    walk(root, Unreadable::Told, &mut |path, metadata| {
        let kind = match metadata.file_type() {
            kind if kind.is_dir() => "directory",
            kind if kind.is_file() => "file",
            kind if kind.is_symlink() => "link",
            _ => "other",
        };
        let line = serde_json::json!({
            "path": String::from_utf8_lossy(path.as_os_str().as_bytes()),
            "kind": kind,
            "size": metadata.size(),
            "mode": metadata.mode() & 0o7777,
            "mtime": metadata.mtime(),
        });
        writeln!(out, "{line}").map_err(told)
    })?;
    out.flush().map_err(told)
}

/// What becomes of a directory that can't be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// It is told and left out.
    Told,
    /// All ends there.
    Fatal,
}

/// Calls `visit` for all that is at and below a path, parents first, by name. The root is looked at
/// through a link, what is below is not. What has vanished meanwhile is left out.
fn walk(
    root: &Path,
    unreadable: Unreadable,
    visit: &mut impl FnMut(&Path, &Metadata) -> Result<(), String>,
) -> Result<(), String> {
    let metadata = fs::metadata(root).map_err(failed("read", root))?;
    let mut waiting = vec![(root.to_owned(), metadata)];
    while let Some((path, metadata)) = waiting.pop() {
        visit(&path, &metadata)?;
        if !metadata.is_dir() {
            continue;
        }
        let mut below: Vec<PathBuf> = match fs::read_dir(&path) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if unreadable == Unreadable::Told => {
                eprintln!("{}", failed("read", &path)(error));
                continue;
            }
            Err(error) => return Err(failed("read", &path)(error)),
        };
        below.sort_unstable_by(|a, b| b.cmp(a));
        waiting.extend(below.into_iter().filter_map(|path| {
            let metadata = fs::symlink_metadata(&path).ok()?;
            Some((path, metadata))
        }));
    }
    Ok(())
}
