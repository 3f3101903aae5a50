//! Applying layers: one entry after the other, lowest layer first, with whiteouts as the OCI image
//! specification ("layer.md") says.

use std::{
    collections::HashSet,
    ffi::OsStr,
    hash::{BuildHasher, RandomState},
    io::BufRead,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::{
        stat::{
            FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev,
            mkdirat, mknodat, utimensat,
        },
        statvfs::fstatvfs,
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat},
};

use super::{
    Budget,
    inflate::{Inflated, from_stream},
    tar::{Entry, Kind, TarReader},
    tree::{self, Directory, Tree, bad_path},
};
use crate::{Digest, ImageError};

/// Whether something still wants the result; asked now and then.
pub(crate) type StillWanted<'a> = &'a dyn Fn() -> Result<(), ImageError>;

/// What an entry takes besides its data: an inode or two blocks.
const EACH_ENTRY: u64 = 4096;

/// Bytes written between looks at the free space.
const SPACE_CHECK_EVERY: u64 = 64 << 20;

/// Unpacks the layers of one image, in order, into one directory.
pub(crate) struct Unpacker<'a> {
    tree: Tree,
    budget: &'a Budget,
    still_wanted: StillWanted<'a>,
    keep_free: u64,
    written_unchecked: u64,
    /// Whether there is a layer below, whose files whiteouts could hide.
    has_lower: bool,
    /// Hashes of the paths that this layer put there: whiteouts don't apply to them.
    own: HashSet<u64>,
    hasher: RandomState,
    /// Times of directories, set when the layer is done, since each file made in them changes them.
    directory_times: Vec<(PathBuf, (i64, i64))>,
    /// Entries so far, all layers.
    pub(crate) entries: u64,
}

impl<'a> Unpacker<'a> {
    /// Unpacks into `directory`, which exists and is empty; leaves `keep_free` bytes of its file
    /// system alone.
    pub(crate) fn new(
        directory: &Path,
        budget: &'a Budget,
        keep_free: u64,
        still_wanted: StillWanted<'a>,
    ) -> Result<Self, ImageError> {
        Ok(Self {
            tree: Tree::open(directory)?,
            budget,
            still_wanted,
            keep_free,
            written_unchecked: SPACE_CHECK_EVERY,
            has_lower: false,
            own: HashSet::new(),
            hasher: RandomState::new(),
            directory_times: Vec::new(),
            entries: 0,
        })
    }

    /// Applies one layer and checks that its content has the digest that the image's config gives.
    pub(crate) fn apply(
        &mut self,
        what: &str,
        layer: Inflated,
        digest: &Digest,
    ) -> Result<(), ImageError> {
        let mut reader = TarReader::new(layer);
        while let Some(entry) = reader.next_entry().map_err(|error| from_stream(what, error))? {
            self.budget.take_entry()?;
            self.entries += 1;
            // What has no data takes room, too.
            self.account_for(EACH_ENTRY)?;
            if self.entries.is_multiple_of(256) {
                (self.still_wanted)()?;
            }
            self.apply_entry(&entry, &mut reader)?;
        }
        reader.into_stream().finish(digest)?;
        for (path, modified) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            // A directory that a later entry of the layer removed or replaced has no time to set.
            if let Some(directory) = self.tree.directory(&path)? {
                let time = time(modified);
                utimensat(
                    &directory.descriptor,
                    ".",
                    &time,
                    &time,
                    UtimensatFlags::NoFollowSymlink,
                )
                .map_err(|error| bad_path(&path, error))?;
            }
        }
        self.has_lower = true;
        self.own.clear();
        self.tree.forget();
        Ok(())
    }

    fn apply_entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), ImageError> {
        let path = inside_path(&entry.path)?;
        let (Some(parent_path), Some(name)) = (path.parent(), path.file_name()) else {
            return self.apply_root(entry);
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.apply_whiteout(parent_path, hidden, &path);
        }
        let parent = self.tree.make_directory(parent_path)?;
        for _ in 0..self.tree.take_implied() {
            self.budget.take_entry()?;
            self.entries += 1;
        }
        let failed = |error| bad_path(&path, error);
        match parent.look(name).map_err(failed)? {
            Some(existing) if is_directory(existing.st_mode) && entry.kind == Kind::Directory => {}
            Some(_) => {
                tree::remove(&parent, name).map_err(failed)?;
                self.tree.forget();
                self.make(entry, &path, &parent, name, reader)?;
            }
            None => self.make(entry, &path, &parent, name, reader)?,
        }
        if entry.kind == Kind::Directory {
            self.set_owner_and_mode(entry, &parent, name).map_err(failed)?;
            self.directory_times.push((path.clone(), entry.modified));
        }
        if !matches!(entry.kind, Kind::File | Kind::HardLink) {
            set_attributes(entry, &path, &parent.location.join(name))?;
        }
        self.remember(&parent, name);
        Ok(())
    }

    /// Makes what is not there yet.
    fn make<R: BufRead>(
        &mut self,
        entry: &Entry,
        path: &Path,
        parent: &Rc<Directory>,
        name: &OsStr,
        reader: &mut TarReader<R>,
    ) -> Result<(), ImageError> {
        let failed = |error| bad_path(path, error);
        match entry.kind {
            Kind::File => return self.make_file(entry, path, parent, name, reader),
            Kind::HardLink => return self.make_link(entry, path, parent, name),
            Kind::Directory => {
                return mkdirat(&parent.descriptor, name, Mode::from_bits_truncate(0o700))
                    .map_err(failed);
            }
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(corrupt(path, "a symbolic link to nothing"));
                }
                symlinkat(OsStr::from_bytes(&entry.link), &parent.descriptor, name)
                    .map_err(failed)?;
                let (user, group) = owner(entry);
                fchownat(&parent.descriptor, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(failed)?;
            }
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharacterDevice => SFlag::S_IFCHR,
                    Kind::BlockDevice => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let device = makedev(u64::from(entry.device.0), u64::from(entry.device.1));
                mknodat(&parent.descriptor, name, kind, Mode::from_bits_truncate(0o600), device)
                    .map_err(failed)?;
                self.set_owner_and_mode(entry, parent, name).map_err(failed)?;
            }
        }
        let time = time(entry.modified);
        utimensat(&parent.descriptor, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(failed)
    }

    fn make_file<R: BufRead>(
        &mut self,
        entry: &Entry,
        path: &Path,
        parent: &Directory,
        name: &OsStr,
        reader: &mut TarReader<R>,
    ) -> Result<(), ImageError> {
        let failed = |error| bad_path(path, error);
        let file = tree::create_file(parent, name).map_err(failed)?;
        let mut sparse = entry.sparse.as_ref().map(|map| map.segments.iter().copied());
        let mut offset = 0;
        let mut left_in_segment = if sparse.is_some() { 0 } else { entry.data_size };
        let what = path.display().to_string();
        reader
            .read_data(|mut data| {
                self.account_for(data.len() as u64)?;
                while !data.is_empty() {
                    while left_in_segment == 0 {
                        // The map was checked to hold exactly as much as there is data.
                        let Some((start, length)) = sparse.as_mut().and_then(Iterator::next) else {
                            return Err(Failure(corrupt(path, "more data than its map says")));
                        };
                        (offset, left_in_segment) = (start, length);
                    }
                    let length =
                        data.len().min(usize::try_from(left_in_segment).unwrap_or(usize::MAX));
                    file.write_all_at(&data[..length], offset).map_err(|error| {
                        Failure(ImageError::io("unpack layer entry", path, error))
                    })?;
                    offset += length as u64;
                    left_in_segment -= length as u64;
                    data = &data[length..];
                }
                Ok(())
            })
            .map_err(|Failure(error)| match error {
                ImageError::Corrupt { reason, .. } => {
                    ImageError::corrupt(format!("layer entry `{what}`"), reason)
                }
                other => other,
            })?;
        if let Some(map) = &entry.sparse {
            file.set_len(map.file_size).map_err(|_| {
                ImageError::unsupported(
                    format!("layer entry `{what}`"),
                    "files may be as large as the host's take",
                )
            })?;
        }
        let (user, group) = owner(entry);
        fchown(&file, user, group).map_err(failed)?;
        fchmod(&file, Mode::from_bits_truncate(entry.mode)).map_err(failed)?;
        set_attributes(entry, path, &parent.location.join(name))?;
        let time = time(entry.modified);
        futimens(&file, &time, &time).map_err(failed)
    }

    fn make_link(
        &mut self,
        entry: &Entry,
        path: &Path,
        parent: &Rc<Directory>,
        name: &OsStr,
    ) -> Result<(), ImageError> {
        let target = inside_path(&entry.link)?;
        let missing =
            || corrupt(path, &format!("a hard link to `{}`, which is not there", target.display()));
        let (Some(target_parent), Some(target_name)) = (target.parent(), target.file_name()) else {
            return Err(corrupt(path, "a hard link to the root directory"));
        };
        // The link's own directory is kept open by `parent`, whatever this look-up replaces in the
        // tree's memory.
        let target_parent = self.tree.directory(target_parent)?.ok_or_else(missing)?;
        match target_parent.look(target_name).map_err(|error| bad_path(path, error))? {
            None => return Err(missing()),
            Some(existing) if is_directory(existing.st_mode) => {
                return Err(corrupt(path, "a hard link to a directory"));
            }
            Some(_) => {}
        }
        linkat(&target_parent.descriptor, target_name, &parent.descriptor, name, AtFlags::empty())
            .map_err(|error| bad_path(path, error))
    }

    /// The image's root directory has an entry of its own in some layers.
    fn apply_root(&mut self, entry: &Entry) -> Result<(), ImageError> {
        if entry.kind != Kind::Directory {
            return Err(corrupt(Path::new("/"), "the root is not a directory"));
        }
        let root = self.tree.root();
        let path = PathBuf::new();
        self.set_owner_and_mode(entry, &root, OsStr::new("."))
            .map_err(|error| bad_path(Path::new("/"), error))?;
        set_attributes(entry, Path::new("/"), &root.location)?;
        self.directory_times.push((path, entry.modified));
        Ok(())
    }

    fn apply_whiteout(
        &mut self,
        parent: &Path,
        hidden: &[u8],
        path: &Path,
    ) -> Result<(), ImageError> {
        let failed = |error| bad_path(path, error);
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(corrupt(path, "a whiteout of nothing"));
        }
        if !self.has_lower {
            return Ok(());
        }
        let Some(parent) = self.tree.directory(parent)? else { return Ok(()) };
        self.tree.forget();
        if hidden == b".wh..opq" {
            for name in tree::names(&parent).map_err(failed)? {
                self.hide_lower(&parent, &name).map_err(failed)?;
            }
        } else if !hidden.starts_with(b".wh.") {
            self.hide_lower(&parent, OsStr::from_bytes(hidden)).map_err(failed)?;
        } // others are AUFS's own book-keeping
        Ok(())
    }

    /// Removes what lower layers put there and leaves what this one did, whichever came first in
    /// the archive.
    fn hide_lower(&self, parent: &Directory, name: &OsStr) -> Result<(), Errno> {
        if !self.own.contains(&self.hasher.hash_one(parent.location.join(name))) {
            return tree::remove(parent, name);
        }
        if parent.look(name)?.is_some_and(|stat| is_directory(stat.st_mode)) {
            let directory = tree::child(parent, name)?;
            for name in tree::names(&directory)? {
                self.hide_lower(&directory, &name)?;
            }
        }
        Ok(())
    }

    /// Notes that this layer has this path, and with it all above.
    fn remember(&mut self, parent: &Directory, name: &OsStr) {
        if !self.has_lower {
            return;
        }
        let root = self.tree.root();
        let location = parent.location.join(name);
        for path in location.ancestors().take_while(|path| *path != root.location) {
            if !self.own.insert(self.hasher.hash_one(path)) {
                break;
            }
        }
    }

    fn set_owner_and_mode(
        &self,
        entry: &Entry,
        parent: &Directory,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let (user, group) = owner(entry);
        // Owner first: changing it clears the set-user-id bit.
        fchownat(&parent.descriptor, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        // None of the kinds this is for can be a link, and nobody else writes here.
        fchmodat(
            &parent.descriptor,
            name,
            Mode::from_bits_truncate(entry.mode),
            FchmodatFlags::FollowSymlink,
        )
    }

    fn account_for(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.written_unchecked += bytes;
        if self.written_unchecked < SPACE_CHECK_EVERY {
            return Ok(());
        }
        self.written_unchecked = 0;
        (self.still_wanted)()?;
        let space = fstatvfs(&self.tree.root().descriptor).map_err(|error| {
            ImageError::io("look at the free space of", Path::new("/"), error.into())
        })?;
        let free = space.blocks_available().saturating_mul(space.fragment_size());
        if free < self.keep_free {
            return Err(ImageError::NoSpace {
                what: "to unpack the image".to_owned(),
                reason: format!(
                    "{free} bytes are free, {} are kept for others (limits.keep_free_bytes)",
                    self.keep_free
                ),
            });
        }
        Ok(())
    }
}

/// Lets errors of the stream and of ours come out of one closure.
struct Failure(ImageError);

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(from_stream("layer", error))
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self(error)
    }
}

/// A path of a layer, taken from the image's root. `..` takes the name before it away, whatever
/// that is, as in the programs that write and read layers (`filepath.Clean`); one that would lead
/// outside is refused.
pub(crate) fn inside_path(path: &[u8]) -> Result<PathBuf, ImageError> {
    let given = Path::new(OsStr::from_bytes(path));
    let mut inside = PathBuf::new();
    for component in given.components() {
        match component {
            Component::Normal(name) => inside.push(name),
            Component::RootDir | Component::CurDir => {}
            // Above the root is the root.
            Component::ParentDir if inside.pop() || given.is_absolute() => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(corrupt(given, "its path leads outside the image with `..`"));
            }
        }
    }
    Ok(inside)
}

fn set_attributes(entry: &Entry, path: &Path, location: &Path) -> Result<(), ImageError> {
    for (name, value) in &entry.attributes {
        let name = OsStr::from_bytes(name);
        let Err(error) = xattr::set(location, name, value) else { continue };
        match error.raw_os_error() {
            // What the host's file system can't hold (a label of another security module, say) the
            // image can do without, except capabilities: programs would fail later for no visible
            // reason.
            Some(libc::EOPNOTSUPP | libc::EPERM | libc::EINVAL)
                if name != "security.capability" =>
            {
                let (path, attribute) = (path.display(), name.display());
                tracing::debug!(%path, %attribute, %error, "extended attribute left out");
            }
            _ => {
                let reason =
                    format!("its extended attribute `{}` can't be stored: {error}", name.display());
                return Err(ImageError::unsupported(
                    format!("layer entry `{}`", path.display()),
                    reason,
                ));
            }
        }
    }
    Ok(())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn time((seconds, nanoseconds): (i64, i64)) -> TimeSpec {
    TimeSpec::new(seconds, nanoseconds)
}

fn is_directory(mode: libc::mode_t) -> bool {
    mode & libc::S_IFMT == libc::S_IFDIR
}

fn corrupt(path: &Path, reason: &str) -> ImageError {
    ImageError::corrupt(format!("layer entry `{}`", path.display()), reason)
}
