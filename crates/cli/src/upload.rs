//! Archives on their way to the server: a file as it is, a directory as a tar of it.

use std::{
    fs::File,
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use caddis_client::ArchiveFormat;
use futures::{Stream, stream};
use tokio::sync::mpsc;

use crate::CliError;

const CHUNK: usize = 256 * 1024;
/// Chunks read ahead.
const AHEAD: usize = 4;

/// What is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    pub format: ArchiveFormat,
    /// Which of the images in it, by name or `@` and its place.
    pub image: Option<String>,
    path: PathBuf,
    is_directory: bool,
}

impl Archive {
    /// Reads `docker-archive:FILE`, `oci-archive:FILE` or `oci:DIRECTORY`, each with `:NAME` of one
    /// image in it where there are several. Paths and names may hold colons: the longest path that
    /// exists is taken.
    pub fn parse(source: &str) -> Result<Self, CliError> {
        let wrong = || {
            CliError::new(format!(
                "invalid source '{source}': use docker-archive:FILE, oci-archive:FILE or \
                 oci:DIRECTORY, and append :NAME for one of several images"
            ))
        };
        let (kind, rest) = source.split_once(':').ok_or_else(wrong)?;
        let (format, is_directory) = match kind {
            "docker-archive" => (ArchiveFormat::Docker, false),
            "oci-archive" => (ArchiveFormat::Oci, false),
            "oci" => (ArchiveFormat::Oci, true),
            _ => return Err(wrong()),
        };
        let cuts = rest.match_indices(':').map(|(at, _)| at).chain([rest.len()]);
        let longest = cuts.filter(|at| Path::new(&rest[..*at]).exists()).max();
        let (path, name) = longest
            .map_or_else(|| rest.split_once(':').unwrap_or((rest, "")), |at| rest.split_at(at));
        let image = Some(name.trim_start_matches(':').to_owned()).filter(|name| !name.is_empty());
        let path = PathBuf::from(path);
        let found = std::fs::metadata(&path).map_err(|error| {
            CliError::new(format!("could not read {}: {error}", path.display()))
        })?;
        if found.is_dir() != is_directory {
            let expected = if is_directory { "a directory" } else { "a file" };
            return Err(CliError::new(format!(
                "{} is not {expected}, as {kind}: requires",
                path.display()
            )));
        }
        Ok(Self { format, image, path, is_directory })
    }

    /// Bytes, when known beforehand.
    pub fn length(&self) -> Option<u64> {
        (!self.is_directory)
            .then(|| std::fs::metadata(&self.path).ok().map(|file| file.len()))
            .flatten()
    }

    /// Its bytes, read on a thread of their own.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::task::spawn_blocking(move || {
            let outcome = if self.is_directory {
                send_tree(&self.path, &sender)
            } else {
                send_file(&self.path, &sender)
            };
            if let Err(error) = outcome {
                // Nobody listens any more when the server has said no.
                let _ = sender.blocking_send(Err(error));
            }
        });
        stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        })
    }
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

fn send_file(path: &Path, sender: &Sender) -> io::Result<()> {
    let mut file = File::open(path)?;
    loop {
        let mut chunk = vec![0; CHUNK];
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        chunk.truncate(count);
        sender.blocking_send(Ok(chunk.into())).map_err(|_| io::ErrorKind::BrokenPipe)?;
    }
}

fn send_tree(path: &Path, sender: &Sender) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(CHUNK, ChannelWriter(sender)));
    archive.follow_symlinks(false);
    archive.append_dir_all(".", path)?;
    archive.into_inner()?.flush()
}

struct ChannelWriter<'a>(&'a Sender);

impl Write for ChannelWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Ok(Bytes::copy_from_slice(bytes)))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn files_are_sent_as_they_are_and_directories_as_tar() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("a"), vec![7; 600_000]).unwrap();
        let file = directory.path().join("a").display().to_string();
        let archive = Archive::parse(&format!("docker-archive:{file}")).unwrap();
        assert_eq!(archive.length(), Some(600_000));
        let sent: Vec<_> = archive.stream().map(|chunk| chunk.unwrap().len()).collect().await;
        assert_eq!(sent.iter().sum::<usize>(), 600_000);
        let archive = Archive::parse(&format!("oci:{}", directory.path().display())).unwrap();
        let sent: Vec<u8> = archive.stream().map(|chunk| chunk.unwrap().to_vec()).concat().await;
        let names: Vec<_> = tar::Archive::new(&sent[..])
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names.iter().any(|name| name.ends_with('a')), "{names:?}");
        std::fs::write(directory.path().join("a:b"), "").unwrap();
        for (after, path, image) in [
            ("", "a", None),
            (":", "a", None),
            (":web:1", "a", Some("web:1")),
            (":@2", "a", Some("@2")),
            (":localhost:5000/web:1", "a", Some("localhost:5000/web:1")),
            (":b", "a:b", None),
            (":b:web", "a:b", Some("web")),
            (":bc", "a", Some("bc")),
        ] {
            let archive = Archive::parse(&format!("docker-archive:{file}{after}")).unwrap();
            assert_eq!(
                (archive.path, archive.image.as_deref()),
                (directory.path().join(path), image),
                "{after}"
            );
        }
        let archive = Archive::parse(&format!("oci:{}:web:1", directory.path().display())).unwrap();
        assert_eq!(
            (archive.path.as_path(), archive.image.as_deref()),
            (directory.path(), Some("web:1"))
        );
        for wrong in [
            file.clone(),
            format!("oci:{file}"),
            "oci-archive:/no/such".to_owned(),
            format!("zip:{file}"),
        ] {
            assert!(Archive::parse(&wrong).is_err(), "{wrong}");
        }
    }
}
