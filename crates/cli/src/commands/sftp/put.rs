//! `caddis sftp put`.

use std::{
    fs::{self, File, Metadata},
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes};
use caddis_client::{FromSession, SessionReader, SessionWriter};
use clap::Args;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::transfer::{self, COMPLETE, CONTENT, Progress, Words, failed};
use crate::{CliError, commands::target::Target, render::size, session::Session};

const CHUNK: usize = 64 * 1024;
/// Chunks read ahead.
const AHEAD: usize = 4;

/// `caddis sftp put`.
#[derive(Debug, Args)]
pub struct Put {
    /// File or directory to copy.
    local: PathBuf,
    /// Path in the machine, or a directory there to copy into [default: the same name, in /].
    remote: Option<String>,
    #[command(flatten)]
    target: Target,
    /// Copy a directory recursively.
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Permissions of the file, octal [default: 0644; files of a directory keep theirs].
    #[arg(short, long, value_name = "MODE", value_parser = mode)]
    mode: Option<u32>,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| "use octal digits, such as 0644".to_owned())
}

pub async fn run(put: Put, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let local = session.environment.current_directory.join(&put.local);
    let found = fs::metadata(&local).map_err(failed("read", &local))?;
    if found.is_dir() && !put.recursive {
        let text = format!("{} is a directory: use -R to copy it recursively", put.local.display());
        return Err(CliError::new(text));
    }
    let whole = fs::canonicalize(&local).map_err(failed("read", &local))?;
    let source = whole.clone();
    let name = local.file_name().or(whole.file_name()).and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| CliError::new(format!("{} has no valid file name", local.display())))?;
    let remote = put.remote.clone().unwrap_or_else(|| format!("/{name}"));
    let (app, machine) = put.target.find(session, &client).await?;
    put.target.tell(session, &machine)?;

    let (sender, mut chunks) = mpsc::channel(AHEAD);
    let total = found.is_file().then_some(found.len());
    let mode = put.mode.or(found.is_file().then_some(0o644));
    let reading = tokio::task::spawn_blocking(move || {
        let out = io::BufWriter::with_capacity(CHUNK, Sink(sender));
        write(&source, mode, out)
    });
    let (mut reader, mut writer) =
        transfer::open(&client, &app, &machine.id, &["put", &remote, name], true).await?;
    let mut progress = Progress::new(printer, total);
    let (mut words, mut path) = (Words::default(), Vec::new());
    let code = {
        let mut hear = std::pin::pin!(hear(&mut reader, &mut words, &mut path));
        let send = async {
            send(&mut writer, &mut chunks, &mut progress).await;
            // What could not be read here must not be taken for whole there.
            reading.await.map_err(io::Error::other)??;
            // When the connection breaks, who listens hears why.
            let _ = writer.end_input().await;
            Ok::<_, CliError>(())
        };
        tokio::select! {
            biased;
            code = &mut hear => code?,
            sent = send => {
                sent?;
                hear.await?
            }
        }
    };
    let sent = progress.done;
    drop(progress);
    words.judge(code, printer)?;
    let path = String::from_utf8_lossy(&path).trim_end().to_owned();
    printer.note(format_args!("{} written to {path}", size::decimal(total.unwrap_or(sent))))?;
    Ok(())
}

/// Listens to the copying program until it ends.
async fn hear(
    reader: &mut SessionReader,
    words: &mut Words,
    path: &mut Vec<u8>,
) -> Result<i32, CliError> {
    loop {
        match reader.next().await? {
            FromSession::Stdout(bytes) => path.extend_from_slice(&bytes),
            FromSession::Stderr(bytes) => words.add(&bytes),
            FromSession::Exit(code) => return Ok(code),
        }
    }
}

/// Sends what is read, as the machine takes it. When that fails it waits for ever.
async fn send(
    writer: &mut SessionWriter,
    chunks: &mut mpsc::Receiver<Bytes>,
    progress: &mut Progress,
) {
    while let Some(mut chunk) = chunks.recv().await {
        while !chunk.is_empty() {
            writer.until_room().await;
            let Ok(count) = writer.input(&chunk).await else { return std::future::pending().await };
            chunk.advance(count);
            progress.add(count);
        }
    }
}

/// Writes into a channel.
struct Sink(mpsc::Sender<Bytes>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Bytes::copy_from_slice(bytes))
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes an archive of a file or directory; its files get `mode` where there is one.
fn write(root: &Path, mode: Option<u32>, out: impl Write) -> Result<(), CliError> {
    let mut archive = Builder::new(out);
    let found = fs::metadata(root).map_err(failed("read", root))?;
    let mut waiting = vec![(root.to_owned(), PathBuf::from(CONTENT), found)];
    while let Some((path, name, found)) = waiting.pop() {
        append(&mut archive, &path, &name, &found, mode)?;
        if found.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed("read", &path))? {
                let entry = entry.map_err(failed("read", &path))?;
                let found = entry.metadata().map_err(failed("read", &entry.path()))?;
                waiting.push((entry.path(), name.join(entry.file_name()), found));
            }
        }
    }
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    archive.append_data(&mut header, COMPLETE, io::empty()).map_err(failed("send", root))?;
    archive.into_inner().and_then(|mut out| out.flush()).map_err(failed("send", root))
}

fn append(
    archive: &mut Builder<impl Write>,
    path: &Path,
    name: &Path,
    found: &Metadata,
    mode: Option<u32>,
) -> Result<(), CliError> {
    let mut header = Header::new_gnu();
    header.set_size(0);
    header.set_mode(found.mode() & 0o7777);
    if found.is_dir() {
        header.set_entry_type(EntryType::Directory);
        return archive.append_data(&mut header, name, io::empty()).map_err(failed("send", path));
    }
    if found.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        let target = fs::read_link(path).map_err(failed("read", path))?;
        return archive.append_link(&mut header, name, target).map_err(failed("send", path));
    }
    if !found.is_file() {
        return Err(CliError::new(format!(
            "{} is neither a file, a directory nor a link",
            path.display()
        )));
    }
    header.set_entry_type(EntryType::Regular);
    header.set_mode(mode.unwrap_or(found.mode()) & 0o7777);
    header.set_size(found.len());
    let file = File::open(path).map_err(failed("read", path))?;
    let mut content = io::Read::take(file, found.len());
    archive.append_data(&mut header, name, &mut content).map_err(failed("send", path))?;
    match content.limit() {
        0 => Ok(()),
        _ => Err(CliError::new(format!("{} shrank while it was being read", path.display()))),
    }
}
