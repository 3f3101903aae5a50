//! Which installations (data directories) are on this host: each has a number, from which its names
//! come. A claim is a file with the data directory's path; it lives as long as the host runs, or
//! until the host is cleaned.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStringExt as _,
        fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::{NetworkError, state};

/// Where claims and namespaces of all installations of a host are. Gone after a reboot, as the
/// namespaces are.
pub const RUN_DIRECTORY: &str = "/run/caddis/networks";

/// The first of the routing tables, one per installation.
const TABLES: u32 = 0x00ca_dd00;
/// So many installations there may be.
const COUNT: u32 = 200;
const LOCK: &str = "lock";
/// Of routing rules: a server that watches takes it while it changes them, with or without the
/// other.
const RULES_LOCK: &str = "rules.lock";

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
    /// Name of the host's end of the link to its namespace, and of its table in the host's packet
    /// filter.
    pub(crate) fn link(&self) -> String {
        link_of(self.number)
    }

    /// Number of its routing table.
    pub(crate) fn table(&self) -> u32 {
        TABLES + self.number
    }

    /// Where its namespace is mounted.
    pub(crate) fn namespace(&self) -> PathBuf {
        self.directory.join(format!("{}.net", self.number))
    }

    /// Waits until no other server changes routing rules. Blocks.
    pub(crate) fn lock_rules(&self) -> Result<Flock<File>, NetworkError> {
        lock(&self.directory, RULES_LOCK)
    }

    fn claim(&self) -> PathBuf {
        self.directory.join(self.number.to_string())
    }
}

/// What the names of the links of all installations begin with.
pub(crate) const LINK_PREFIX: &str = "caddis-";

/// Name of the link of the installation with this number.
pub(crate) fn link_of(number: u32) -> String {
    format!("{LINK_PREFIX}{number}")
}

/// The number of the installation whose link has this name.
pub(crate) fn number_of(link: &str) -> Option<u32> {
    link.strip_prefix(LINK_PREFIX)?.parse().ok().filter(|number| *number < COUNT)
}

fn lock(directory: &Path, name: &str) -> Result<Flock<File>, NetworkError> {
    let attempted = || format!("lock the networks in {}", directory.display());
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(name));
    let file = file.map_err(NetworkError::io(attempted()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| NetworkError::io(attempted())(error.into()))
}

impl Claims {
    /// Waits for the lock. Blocks.
    pub(crate) fn lock(directory: &Path) -> Result<Self, NetworkError> {
        let attempted = || format!("lock the networks in {}", directory.display());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(NetworkError::io(attempted()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock(directory, LOCK)? })
    }

    /// All there are.
    pub(crate) fn list(&self) -> Result<Vec<Installation>, NetworkError> {
        let attempted = || format!("list the networks in {}", self.directory.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(NetworkError::io(attempted()))? {
            let entry = entry.map_err(NetworkError::io(attempted()))?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let owner =
                OsString::from_vec(fs::read(entry.path()).map_err(NetworkError::io(attempted()))?);
            found.push(Installation {
                number,
                owner: owner.into(),
                directory: self.directory.clone(),
            });
        }
        found.sort_by_key(|installation| installation.number);
        Ok(found)
    }

    /// That of a data directory, if it has one.
    pub(crate) fn find(&self, owner: &Path) -> Result<Option<Installation>, NetworkError> {
        Ok(self.list()?.into_iter().find(|installation| installation.owner == owner))
    }

    /// That of a data directory, which is given one if it has none: the `former` number where it is
    /// free, or one that none of these links of the host has.
    pub(crate) fn take(
        &self,
        owner: &Path,
        former: Option<u32>,
        links: &[String],
    ) -> Result<Installation, NetworkError> {
        let taken = self.list()?;
        if let Some(own) = taken.iter().find(|installation| installation.owner == owner) {
            return Ok(own.clone());
        }
        let is_free = |number: &u32| taken.iter().all(|other| other.number != *number);
        // Whose claim was lost may go on.
        let is_unused = |number: &u32| {
            is_free(number) && links.iter().all(|link| number_of(link) != Some(*number))
        };
        let number = former.filter(is_free).or_else(|| (0..COUNT).find(is_unused));
        let number = number.ok_or_else(|| {
            let hint =
                "clean those that are no longer used with `caddis host clean --data-dir DIR`";
            let error =
                io::Error::other(format!("{COUNT} data directories have one on this host; {hint}"));
            NetworkError::io("allocate a network")(error)
        })?;
        let own =
            Installation { number, owner: owner.to_owned(), directory: self.directory.clone() };
        let path = own.claim();
        let written = state::replace(&path, owner.as_os_str().as_encoded_bytes());
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
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};

    use super::*;

    #[test]
    fn each_data_directory_keeps_its_number_and_one_that_is_given_back_goes_to_the_next() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::lock(&run.path().join("networks")).unwrap();
        // Paths are bytes.
        let (one, two) = (Path::new("/one"), Path::new(OsStr::from_bytes(b"/tw\xf6")));
        let number = |owner: &Path| claims.take(owner, None, &[]).unwrap().number;
        assert_eq!([number(one), number(two), number(one), number(two)], [0, 1, 0, 1]);
        assert_eq!(claims.find(two).unwrap().unwrap().owner, two);
        assert_eq!(claims.find(Path::new("/three")).unwrap(), None);
        claims.release(&claims.find(one).unwrap().unwrap()).unwrap();
        assert_eq!(number(Path::new("/three")), 0);
        assert_eq!(claims.list().unwrap().len(), 2);
        let own = claims.take(two, None, &[]).unwrap();
        assert_eq!((own.link().as_str(), own.table()), ("caddis-1", 0x00ca_dd01));
        claims.release(&own).unwrap();
        assert_eq!(claims.find(two).unwrap(), None);
    }

    #[test]
    fn a_claim_that_was_lost_is_taken_again_and_its_link_given_to_nobody_else() {
        let run = tempfile::tempdir().unwrap();
        let claims = Claims::lock(run.path()).unwrap();
        let links = ["caddis-0", "caddis-1", "caddis-x", "eth0"].map(str::to_owned);
        let number =
            |owner: &str, former| claims.take(Path::new(owner), former, &links).unwrap().number;
        assert_eq!(number("/new", None), 2, "whose claims were lost go on with these links");
        assert_eq!(number("/lost", Some(1)), 1);
        assert_eq!(number("/late", Some(1)), 3, "another has it by now");
        for number in (0..COUNT).filter(|number| ![1, 2, 3].contains(number)) {
            fs::write(run.path().join(number.to_string()), format!("/{number}")).unwrap();
        }
        let error = claims.take(Path::new("/one-too-many"), None, &[]).unwrap_err().to_string();
        assert!(error.contains("caddis host clean --data-dir"), "{error}");
    }
}
