//! `caddis apps create`.

use std::{fs, path::PathBuf};

use caddis_api::app::CreateAppRequest;
use clap::Args;
use toml_edit::{DocumentMut, value};

use crate::{CliError, prompt, session::Session};

/// Where `--save` writes the name.
const FILE: &str = "caddis.toml";

/// `caddis apps create`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis apps create hello\n  caddis apps create --generate-name \
                  --save"
)]
pub struct Create {
    /// App name.
    name: Option<String>,
    /// App name, as a flag.
    #[arg(long = "name", value_name = "NAME", conflicts_with = "name")]
    name_flag: Option<String>,
    /// Generate a name.
    #[arg(long)]
    generate_name: bool,
    /// Private network of its machines; machines in different networks can't reach each other.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Organization that owns the app.
    #[arg(short, long, value_name = "SLUG", default_value = "personal")]
    org: String,
    /// No effect: every app is a Machines app.
    #[arg(long, hide = true)]
    machines: bool,
    /// Write the name to caddis.toml in the current directory, so that commands there don't need
    /// -a.
    #[arg(long)]
    save: bool,
    /// With --save: replace another app's name without asking.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print the app as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn run(create: Create, session: &Session) -> Result<(), CliError> {
    let (client, printer) = (session.client()?, &session.printer);
    let mut name = create.name.or(create.name_flag).filter(|name| !name.is_empty());
    if name.is_none() && !create.generate_name {
        if !printer.is_interactive() {
            return Err(CliError::with_hint(
                "name argument or flag must be specified when not running interactively",
                "Give a name, or use --generate-name.",
            ));
        }
        let question = "Choose an app name (leave blank to generate one): ";
        name = Some(prompt::ask(printer, question, prompt::NO_YES).await?)
            .filter(|name| !name.is_empty());
    }
    // What can't be written is told before anything is made.
    let file = if create.save { Some(File::open(session, create.yes).await?) } else { None };
    let network = create.network;
    let request = CreateAppRequest {
        name,
        org_slug: Some(create.org),
        network,
        ..CreateAppRequest::default()
    };
    let app = client.create_app(&request).await?.app;
    if create.json {
        printer.json(&app)?;
    } else {
        printer.out(format_args!("New app created: {}", app.name))?;
    }
    if let Some(file) = file {
        file.save(&app.name)?;
        printer.note(format_args!("Wrote the name to {FILE}"))?;
    }
    Ok(())
}

/// The file that names the app, with all else that is in it.
struct File {
    path: PathBuf,
    document: DocumentMut,
}

impl File {
    async fn open(session: &Session, yes: bool) -> Result<Self, CliError> {
        let path = session.environment.current_directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(CliError::new(format!("could not read {}: {e}", path.display()))),
        };
        let document: DocumentMut = text
            .parse()
            .map_err(|e| CliError::new(format!("could not read {}: {e}", path.display())))?;
        if let Some(other) = document.get("app").and_then(|app| app.as_str())
            && !other.is_empty()
            && !yes
        {
            let question = format!("{FILE} already names app {other}. Replace it?");
            prompt::confirm(&session.printer, &question, prompt::NO_YES).await?;
        }
        Ok(Self { path, document })
    }

    fn save(mut self, app: &str) -> Result<(), CliError> {
        self.document["app"] = value(app);
        fs::write(&self.path, self.document.to_string()).map_err(|e| {
            CliError::new(format!(
                "app {app} was created, but could not write {}: {e}",
                self.path.display()
            ))
        })
    }
}
