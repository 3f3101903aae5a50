//! `caddis image list`.

use caddis_api::images::ImageSummary;
use clap::Args;
use jiff::Timestamp;

use crate::{
    CliError,
    render::{size, time},
    session::Session,
};

/// `caddis image list`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  caddis image list")]
pub struct List {
    /// Print as JSON.
    #[arg(short, long)]
    json: bool,
    /// Print digests only.
    #[arg(short, long)]
    quiet: bool,
}

pub async fn run(list: List, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    if list.json {
        return Ok(printer.json(&client.list_images_json().await?)?);
    }
    let images = client.list_images().await?;
    if list.quiet {
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
