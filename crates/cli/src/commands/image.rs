//! `caddis image`.

use std::io;

use bytes::Bytes;
use caddis_api::images::{ImageSummary, ImportUpdate};
use caddis_client::{ArchiveFormat, Client, Which};
use clap::{Args, Subcommand};
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;

use crate::{
    CliError, Printer,
    progress::Progress,
    render::{size, time, words},
    session::Session,
    upload::Archive,
};

/// `caddis image …`.
#[derive(Debug, Args)]
pub struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Import an image from an archive.
    #[command(
        after_help = "Examples:\n  docker save web:1 -o web.tar && caddis image import docker-archive:web.tar\n  \
                            caddis image import oci:./layout --name web:1\n  \
                            caddis image import docker-archive:several.tar:web:2"
    )]
    Import {
        /// docker-archive:FILE, oci-archive:FILE or oci:DIRECTORY; append :NAME or :@INDEX (from 0)
        /// to pick one of several images.
        source: String,
        /// Name for the image [default: the archive's own].
        #[arg(short, long)]
        name: Option<String>,
        /// Print the image as JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// List images on the server.
    #[command(visible_alias = "ls", after_help = "Example:\n  caddis image list")]
    List {
        /// Print as JSON.
        #[arg(short, long)]
        json: bool,
        /// Print digests only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Remove unused images.
    #[command(
        visible_aliases = ["remove", "delete", "destroy"],
        after_help = "Example:\n  caddis image rm docker.io/library/nginx:1.26"
    )]
    Rm {
        /// Names or digests of the images.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

pub async fn run(image: Image, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    match image.command {
        ImageCommand::Import { source, name, json } => {
            let archive = Archive::parse(&source)?;
            let (format, which, length) = (archive.format, archive.image.clone(), archive.length());
            let which = Which { image: which.as_deref(), name: name.as_deref() };
            let image = import(printer, &client, format, which, archive.stream(), length).await?;
            if json {
                printer.json(&image)?;
            } else {
                let names =
                    if image.names.is_empty() { image.digest } else { words::few(&image.names) };
                printer.out(format_args!("Imported {names} ({})", size::decimal(image.size)))?;
            }
            Ok(())
        }
        ImageCommand::List { json, quiet } => {
            if json {
                printer.json(&client.list_images_json().await?)?;
                return Ok(());
            }
            let images = client.list_images().await?;
            if quiet {
                images.iter().try_for_each(|image| printer.out(&image.digest))?;
            } else if images.is_empty() {
                printer.out("No images")?;
            } else {
                let now = Timestamp::now();
                let row = |image: &ImageSummary| {
                    vec![
                        image.names.join(", "),
                        image.digest.chars().take(19).collect(),
                        size::decimal(image.size),
                        image.machines.to_string(),
                        time::relative(&image.created_at, now),
                    ]
                };
                let rows: Vec<_> = images.iter().map(row).collect();
                printer.table("", &["Name", "Digest", "Size", "Machines", "Created"], &rows)?;
            }
            Ok(())
        }
        ImageCommand::Rm { names } => {
            for name in names {
                client
                    .remove_image(&name)
                    .await
                    .map_err(|e| CliError::attempted(format!("could not remove {name}"), e))?;
                printer.out(format_args!("Removed {name}"))?;
            }
            Ok(())
        }
    }
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
