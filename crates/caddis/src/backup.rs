//! `caddis backup` and `caddis restore`: consistent copies of the databases of a data directory and
//! of the egress addresses of its machines, as one tar file, and of its installation key where that
//! is asked for.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use caddis_network::Assignments;
use clap::Args;
use rusqlite::{Connection, OpenFlags, backup::Backup};

use crate::{
    installation_key::InstallationKey,
    instance::{self, Instance},
    print,
};

/// What is saved, by its name in the data directory.
const DATABASES: [&str; 2] = [instance::CATALOG, instance::WORKER_DATABASE];
/// The egress addresses of machines: those that a server starts again use them from the beginning,
/// before a gateway tells of them.
const EGRESS: &str = "network.egress.json";
/// Pages copied before writers get a turn.
const PAGES: i32 = 1000;

/// Flags of `caddis backup`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis backup /var/backups/caddis.tar\n  caddis backup \
                  /root/caddis.tar --with-key")]
pub struct BackupArguments {
    /// File to write; it must not exist.
    file: PathBuf,
    /// Include the installation key; whoever has the file can then decrypt what is encrypted on
    /// this host.
    #[arg(long)]
    with_key: bool,
    /// Data directory of the server.
    #[arg(long, env = "CADDIS_DATA_DIR", value_name = "DIR", default_value = "/var/lib/caddis")]
    data_dir: PathBuf,
}

/// Flags of `caddis restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  systemctl stop caddis; caddis restore /var/backups/caddis.tar \
                  --force; systemctl start caddis"
)]
pub struct RestoreArguments {
    /// File written by `caddis backup`.
    file: PathBuf,
    /// Data directory of the server.
    #[arg(long, env = "CADDIS_DATA_DIR", value_name = "DIR", default_value = "/var/lib/caddis")]
    data_dir: PathBuf,
    /// Replace existing databases, and the installation key if the backup has one. Machines created
    /// since the backup are forgotten.
    #[arg(long)]
    force: bool,
}

/// Saves the databases.
pub async fn backup(arguments: &BackupArguments) -> Result<()> {
    ensure!(
        !arguments.file.exists(),
        "{} already exists: choose another name",
        arguments.file.display()
    );
    let (file, data_dir, with_key) =
        (arguments.file.clone(), arguments.data_dir.clone(), arguments.with_key);
    let size = tokio::task::spawn_blocking(move || save(&data_dir, &file, with_key)).await??;
    print::line(format_args!(
        "Saved {} to {} ({size} bytes)",
        arguments.data_dir.display(),
        arguments.file.display()
    ))?;
    print::line("The data of volumes and snapshots is not included")?;
    if !with_key {
        print::line(
            "The installation key, without which neither encrypted volumes nor snapshots can be \
             read, is not included: use --with-key to include it",
        )?;
    }
    Ok(())
}

fn save(data_dir: &Path, file: &Path, with_key: bool) -> Result<u64> {
    ensure!(
        data_dir.join(instance::CATALOG).exists(),
        "{} is not the data directory of a server",
        data_dir.display()
    );
    let parent = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Beside the goal, so that it appears whole or not at all.
    let work = tempfile::Builder::new().prefix(".caddis-backup-").tempdir_in(parent);
    let work = work.with_context(|| format!("can't write in {}", parent.display()))?;
    let draft = work.path().join("tar");
    let out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let mut archive = tar::Builder::new(out);
    for name in DATABASES {
        let source = data_dir.join(name);
        if !source.exists() {
            continue;
        }
        let copy = work.path().join("copy.db");
        let _ = fs::remove_file(&copy);
        copy_database(&source, &copy)
            .with_context(|| format!("can't copy {}", source.display()))?;
        archive.append_path_with_name(&copy, name)?;
    }
    let egress = data_dir.join(EGRESS);
    if egress.exists() {
        archive.append_path_with_name(&egress, EGRESS)?;
    }
    if with_key {
        let path = data_dir.join(instance::INSTALLATION_KEY);
        ensure!(InstallationKey::open(&path)?.is_some(), "{} is missing", path.display());
        archive.append_path_with_name(&path, instance::INSTALLATION_KEY)?;
    }
    let out = archive.into_inner()?;
    out.sync_all()?;
    fs::hard_link(&draft, file).with_context(|| format!("can't write {}", file.display()))?;
    Ok(out.metadata()?.len())
}

fn copy_database(source: &Path, target: &Path) -> Result<()> {
    let from = Connection::open_with_flags(source, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut to = Connection::open(target)?;
    Backup::new(&from, &mut to)?.run_to_completion(PAGES, std::time::Duration::ZERO, None)?;
    // One file, with no log beside it.
    to.pragma_update(None, "journal_mode", "delete")?;
    Ok(())
}

/// Puts the databases back.
pub fn restore(arguments: &RestoreArguments) -> Result<()> {
    let instance = Instance::take(&arguments.data_dir)?;
    let file = File::open(&arguments.file)
        .with_context(|| format!("can't open {}", arguments.file.display()))?;
    let key_path = instance.path(instance::INSTALLATION_KEY);
    let is_used =
        key_path.exists() || DATABASES.into_iter().any(|name| instance.path(name).exists());
    if is_used && !arguments.force {
        bail!(
            "{} already contains data: use --force to replace it",
            instance.directory().display()
        );
    }
    let work = tempfile::Builder::new().prefix(".restore-").tempdir_in(instance.directory())?;
    let (mut found, mut key) = (Vec::new(), None);
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().context("this is not a backup of caddis")? {
        let mut entry = entry.context("this is not a backup of caddis")?;
        let path = entry.path()?.into_owned();
        if path == Path::new(instance::INSTALLATION_KEY) {
            let mut text = String::new();
            entry
                .take(1024)
                .read_to_string(&mut text)
                .context("the installation key in the backup is damaged")?;
            key = Some(
                InstallationKey::parse(&text)
                    .context("the installation key in the backup is damaged")?,
            );
            continue;
        }
        if path == Path::new(EGRESS) {
            let draft = work.path().join(EGRESS);
            std::io::copy(&mut entry, &mut File::create(&draft)?)?;
            serde_json::from_slice::<Assignments>(&fs::read(&draft)?)
                .context("the egress addresses in the backup are damaged; nothing was changed")?;
            found.push((EGRESS, draft));
            continue;
        }
        let Some(name) = DATABASES.into_iter().find(|name| Path::new(name) == path) else {
            bail!(
                "{} is not a backup of caddis: it contains {}",
                arguments.file.display(),
                path.display()
            );
        };
        let draft = work.path().join(found.len().to_string());
        std::io::copy(&mut entry, &mut File::create(&draft)?)?;
        let intact = Connection::open(&draft).and_then(|database| {
            database.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))
        });
        ensure!(
            intact.as_deref() == Ok("ok"),
            "the backup of {name} is damaged; nothing was changed"
        );
        found.push((name, draft));
    }
    ensure!(
        found.iter().any(|(name, _)| *name == instance::CATALOG),
        "this backup contains no catalog"
    );
    for (name, draft) in &found {
        let target = instance.path(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        // Logs of the old database must not be taken for the new one's.
        for suffix in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", target.display()));
        }
        File::open(draft)?.sync_all()?;
        fs::rename(draft, &target)
            .with_context(|| format!("can't replace {}", target.display()))?;
    }
    if let Some(key) = key {
        key.write(&key_path)?;
    }
    // Without it a server takes the disk of the volumes for not mounted, and does not start.
    let volumes = instance.path(instance::VOLUMES).join("volumes");
    let are_missing = !volumes.exists();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&volumes)?;
    print::line(format_args!(
        "Restored {} from {}",
        instance.directory().display(),
        arguments.file.display()
    ))?;
    if are_missing {
        print::line(format_args!(
            "Volumes without their files are failed from the next start on: put {} back before",
            instance.path(instance::VOLUMES).display()
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use caddis_network::egress_file;

    use super::*;

    fn database(path: &Path, value: i64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let database = Connection::open(path).unwrap();
        database
            .execute_batch("PRAGMA journal_mode = wal; CREATE TABLE IF NOT EXISTS t (x)")
            .unwrap();
        database.execute("INSERT INTO t VALUES (?)", [value]).unwrap();
    }

    fn sum(path: &Path) -> i64 {
        Connection::open(path)
            .unwrap()
            .query_row("SELECT sum(x) FROM t", [], |row| row.get(0))
            .unwrap()
    }

    #[tokio::test]
    async fn what_was_saved_comes_back_and_damage_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        let file = directory.path().join("backup.tar");
        for (value, name) in DATABASES.into_iter().enumerate() {
            database(&data_dir.join(name), value as i64 + 1);
        }
        let arguments =
            BackupArguments { file: file.clone(), with_key: false, data_dir: data_dir.clone() };
        backup(&arguments).await.unwrap();
        assert!(backup(&arguments).await.is_err(), "a backup is not written over");
        database(&data_dir.join(DATABASES[0]), 100);
        let restore_with = |file: &Path, force| {
            restore(&RestoreArguments { file: file.to_owned(), data_dir: data_dir.clone(), force })
        };
        assert!(restore_with(&file, false).is_err());
        let damaged = directory.path().join("damaged.tar");
        let mut bytes = fs::read(&file).unwrap();
        bytes[1024..5000].fill(0xff);
        fs::write(&damaged, bytes).unwrap();
        assert!(restore_with(&damaged, true).is_err());
        assert_eq!(sum(&data_dir.join(DATABASES[0])), 101);
        restore_with(&file, true).unwrap();
        assert_eq!((sum(&data_dir.join(DATABASES[0])), sum(&data_dir.join(DATABASES[1]))), (1, 2));
        let key = data_dir.join(instance::INSTALLATION_KEY);
        assert!(!key.exists(), "it was not saved");
        let egress = egress_file(&data_dir.join(instance::NETWORK_STATE));
        assert!(!egress.exists(), "there was none");

        let addresses = r#"[{"machine":"10.201.0.2","address":"192.0.2.1","ports":[1024,2047]}]"#;
        fs::write(&egress, addresses).unwrap();
        let file = directory.path().join("with_egress.tar");
        backup(&BackupArguments { file: file.clone(), ..arguments }).await.unwrap();
        fs::write(&egress, "[]").unwrap();
        let text = fs::read(&file).unwrap();
        let place = text.windows(addresses.len()).position(|at| at == addresses.as_bytes());
        let mut bytes = text.clone();
        bytes[place.unwrap()] = b'x';
        fs::write(&damaged, bytes).unwrap();
        let error = restore_with(&damaged, true).unwrap_err().to_string();
        assert!(error.contains("the egress addresses in the backup are damaged"), "{error}");
        assert_eq!(fs::read_to_string(&egress).unwrap(), "[]");
        restore_with(&file, true).unwrap();
        assert_eq!(fs::read_to_string(&egress).unwrap(), addresses);

        let file = directory.path().join("with_key.tar");
        let arguments =
            BackupArguments { file: file.clone(), with_key: true, data_dir: data_dir.clone() };
        assert!(backup(&arguments).await.is_err() && !file.exists(), "there is none");
        let first = InstallationKey::create(&key).unwrap().id();
        backup(&arguments).await.unwrap();
        fs::remove_file(&key).unwrap();
        InstallationKey::create(&key).unwrap();
        assert!(restore_with(&file, false).is_err());
        restore_with(&file, true).unwrap();
        assert_eq!(InstallationKey::open(&key).unwrap().unwrap().id(), first);
    }
}
