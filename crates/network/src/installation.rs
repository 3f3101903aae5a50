//! Which installations (data directories) are on this host: each has a number, from which its names come. A claim is a
//! file with the data directory's path; it lives as long as the host runs, or until the host is cleaned.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::{NetworkError, namespace};

/// Where claims and namespaces of all installations of a host are. Gone after a reboot, as the namespaces are.
pub const RUN_DIRECTORY: &str = "/run/caddis/networks";

/// The first of the routing tables, one per installation.
const TABLES: u32 = 0x00ca_dd00;
/// So many installations there may be.
const COUNT: u32 = 200;
const LOCK: &str = "lock";

/// One installation's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Installation {
    pub(crate) number: u32,
    /// Its data directory.
    pub(crate) owner: PathBuf,
    directory: PathBuf,
}

/// Held while claims, or what all installations of a host share, are looked at or changed.
#[derive(Debug)]
pub(crate) struct Claims {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Installation {
    /// Name of the host's end of the link to its namespace, and of its table in the host's packet filter.
    pub(crate) fn link(&self) -> String {
        format!("{LINK_PREFIX}{}", self.number)
    }

    /// Number of its routing table.
    pub(crate) fn table(&self) -> u32 {
        TABLES + self.number
    }

    /// Where its namespace is mounted.
    pub(crate) fn namespace(&self) -> PathBuf {
        self.directory.join(format!("{}.net", self.number))
    }

    fn claim(&self) -> PathBuf {
        self.directory.join(self.number.to_string())
    }
}

/// What the names of the links of all installations begin with.
pub(crate) const LINK_PREFIX: &str = "caddis-";

impl Claims {
    /// Waits for the lock. Blocks.
    pub(crate) fn lock(directory: &Path) -> Result<Self, NetworkError> {
        let attempted = || format!("lock the networks in {}", directory.display());
        fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).map_err(NetworkError::io(attempted()))?;
        let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(directory.join(LOCK));
        let file = file.map_err(NetworkError::io(attempted()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| NetworkError::io(attempted())(error.into()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// All there are.
    pub(crate) fn list(&self) -> Result<Vec<Installation>, NetworkError> {
        let attempted = || format!("list the networks in {}", self.directory.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(NetworkError::io(attempted()))? {
            let entry = entry.map_err(NetworkError::io(attempted()))?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let owner = fs::read_to_string(entry.path()).map_err(NetworkError::io(attempted()))?;
            found.push(Installation { number, owner: owner.into(), directory: self.directory.clone() });
        }
        found.sort_by_key(|installation| installation.number);
        Ok(found)
    }

    /// That of a data directory, if it has one.
    pub(crate) fn find(&self, owner: &Path) -> Result<Option<Installation>, NetworkError> {
        Ok(self.list()?.into_iter().find(|installation| installation.owner == owner))
    }

    /// That of a data directory, which is given one if it has none.
    pub(crate) fn take(&self, owner: &Path) -> Result<Installation, NetworkError> {
        let taken = self.list()?;
        if let Some(own) = taken.iter().find(|installation| installation.owner == owner) {
            return Ok(own.clone());
        }
        // One that went without being cleaned keeps its number as long as VMs may be in its namespace.
        let is_free = |number: &u32| match taken.iter().find(|installation| installation.number == *number) {
            Some(other) => !other.owner.exists() && !namespace::exists(&other.namespace()),
            None => true,
        };
        let full = || NetworkError::io("take a network")(io::Error::other(format!("{COUNT} installations have one")));
        let number = (0..COUNT).find(is_free).ok_or_else(full)?;
        let own = Installation { number, owner: owner.to_owned(), directory: self.directory.clone() };
        let path = own.claim();
        // Whole or not at all.
        let draft = path.with_extension("new");
        let text = owner.as_os_str().as_encoded_bytes();
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &path));
        written.map_err(NetworkError::io(format!("write {}", path.display())))?;
        Ok(own)
    }

    /// Gives it back.
    pub(crate) fn release(&self, installation: &Installation) -> Result<(), NetworkError> {
        let path = installation.claim();
        fs::remove_file(&path).map_err(NetworkError::io(format!("remove {}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_data_directory_keeps_its_number_and_one_that_is_gone_gives_it_to_the_next() {
        let run = tempfile::tempdir().unwrap();
        let (one, two, three) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let claims = Claims::lock(&run.path().join("networks")).unwrap();
        let number = |owner: &tempfile::TempDir| claims.take(owner.path()).unwrap().number;
        assert_eq!([number(&one), number(&two), number(&one)], [0, 1, 0]);
        assert_eq!(claims.find(three.path()).unwrap(), None);
        let gone = one.path().to_owned();
        one.close().unwrap();
        assert_eq!(number(&three), 0, "the one of {} is free", gone.display());
        assert_eq!(claims.list().unwrap().len(), 2);
        let own = claims.take(two.path()).unwrap();
        assert_eq!((own.link().as_str(), own.table()), ("caddis-1", 0x00ca_dd01));
        claims.release(&own).unwrap();
        assert_eq!(claims.find(two.path()).unwrap(), None);
    }
}
