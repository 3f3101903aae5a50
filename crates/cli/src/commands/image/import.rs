//! `caddis image import`.

use std::io;

use bytes::Bytes;
use caddis_api::images::{ImageSummary, ImportUpdate};
use caddis_client::{ArchiveFormat, Client, Which};
use clap::Args;
use futures::{Stream, StreamExt as _};

use crate::{
    CliError, Printer,
    progress::Progress,
    render::{size, words},
    session::Session,
    upload::Archive,
};

/// `caddis image import`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  docker save web:1 -o web.tar && caddis image import \
                  docker-archive:web.tar\n  \
                        caddis image import oci:./layout --name web:1\n  \
                        caddis image import docker-archive:several.tar:web:2")]
pub struct Import {
    /// docker-archive:FILE, oci-archive:FILE or oci:DIRECTORY; append :NAME or :@INDEX (from 0)
    /// to pick one of several images.
    source: String,
    /// Name for the image [default: the archive's own].
    #[arg(short, long)]
    name: Option<String>,
    /// Print the image as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(command: Import, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let archive = Archive::parse(&command.source)?;
    let (format, which, length) = (archive.format, archive.image.clone(), archive.length());
    let which = Which { image: which.as_deref(), name: command.name.as_deref() };
    let image = import(printer, &client, format, which, archive.stream(), length).await?;
    if command.json {
        printer.json(&image)?;
    } else {
        let names = if image.names.is_empty() { image.digest } else { words::few(&image.names) };
        printer.out(format_args!("Imported {names} ({})", size::decimal(image.size)))?;
    }
    Ok(())
}

/// Sends an archive to the server, and shows how far it is.
pub async fn import(
    printer: &Printer,
    client: &Client,
    format: ArchiveFormat,
    which: Which<'_>,
    archive: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    length: Option<u64>,
) -> Result<ImageSummary, CliError> {
    let mut progress = Progress::new(printer);
    progress.show("upload", 0, 0);
    let mut updates = client.import_image(format, which, archive, length).await?;
    while let Some(update) = updates.next().await {
        match update? {
            ImportUpdate::Progress { step, bytes_done, bytes_total } => {
                progress.show(&step, bytes_done, bytes_total)
            }
            ImportUpdate::Done(image) => return Ok(image),
            ImportUpdate::Failed(error) => return Err(CliError::new(error.message)),
        }
    }
    Err(CliError::new("the server ended the import without a result; see its log"))
}
