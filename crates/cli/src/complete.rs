//! What a shell offers when the user presses Tab: names of live apps and machines.
//!
//! The shell runs this program for it, so all here is quick, silent, and gives up rather than wait.

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use caddis_api::Volume;
use caddis_client::{Client, ListMachines};
use clap::Parser;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};

use crate::{
    Environment,
    app_name::{self, AppFlags},
    connection::{Connection, ServerFlags},
    settings::Settings,
};

/// The variable by which a shell's script asks for candidates.
pub const VARIABLE: &str = "CADDIS_COMPLETE";

/// A server that takes longer has no candidates.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// Names of apps.
pub fn apps() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let apps = ask(async |client, _| {
            let apps = client.list_apps(None).await.ok()?;
            Some(apps.into_iter().map(|app| (app.name.to_string(), app.status)).collect())
        });
        fitting(current, apps)
    })
}

/// Ids of machines, told by name and state, and their names.
pub fn machines() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let machines = ask(async |client, arguments| {
            let app = app_name::find(arguments.app(), &Environment::of_process()).ok()??;
            let filter = ListMachines { summary: true, ..ListMachines::default() };
            let machines = client.list_machines(&app, &filter).await.ok()?;
            let both = machines.into_iter().flat_map(|machine| {
                let told = format!("{} ({})", machine.name, machine.state);
                let by_name = (machine.name, format!("{} ({})", machine.id, machine.state));
                [(machine.id.to_string(), told), by_name]
            });
            Some(both.collect())
        });
        // Names would only double the list for someone who has typed nothing yet.
        let machines =
            if current.is_empty() { machines.into_iter().step_by(2).collect() } else { machines };
        fitting(current, machines)
    })
}

/// Ids of volumes, told by name and state.
pub fn volumes() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let volumes = ask(async |client, arguments| {
            let app = app_name::find(arguments.app(), &Environment::of_process()).ok()??;
            let volumes = client.list_volumes(&app).await.ok()?.into_iter();
            let told = |volume: &Volume| format!("{} ({})", volume.name, volume.state.as_str());
            Some(volumes.map(|volume| (volume.id.to_string(), told(&volume))).collect())
        });
        fitting(current, volumes)
    })
}

/// Names of contexts.
pub fn contexts() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let settings = Settings::load(Environment::of_process().settings_path().as_deref())
            .unwrap_or_default();
        fitting(
            current,
            settings.contexts.into_iter().map(|(name, context)| (name, context.api_url)).collect(),
        )
    })
}

/// Words that are always the same.
pub fn words(words: Vec<String>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        fitting(current, words.iter().map(|word| (word.clone(), String::new())).collect())
    })
}

/// Those that begin as `current` does, with what they are.
fn fitting(current: &OsStr, candidates: Vec<(String, String)>) -> Vec<CompletionCandidate> {
    let Some(current) = current.to_str() else { return Vec::new() };
    let candidates = candidates.into_iter().filter(|(name, _)| name.starts_with(current));
    // A control character in a name must not reach the terminal.
    let clean = |text: String| text.chars().filter(|c| !c.is_control()).collect::<String>();
    candidates
        .map(|(name, told)| {
            let told = Some(clean(told)).filter(|told| !told.is_empty());
            CompletionCandidate::new(clean(name)).help(told.map(Into::into))
        })
        .collect()
}

/// What of the line that is being typed decides which server and which app.
#[derive(Debug, Default, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[arg(short = 't', long)]
    access_token: Option<String>,
    #[arg(long)]
    api_url: Option<String>,
    #[arg(long)]
    context: Option<String>,
    #[arg(short, long)]
    app: Option<String>,
    #[arg(short, long)]
    config: Option<PathBuf>,
}

impl Line {
    /// Reads the flags it knows and passes over everything else, such as what is half typed.
    fn read(words: impl IntoIterator<Item = String>) -> Self {
        let mut known = Vec::new();
        // What comes after is a command in a machine.
        let ours = joined(words).into_iter().take_while(|word| word != "--");
        let mut words = ours.peekable();
        while let Some(word) = words.next() {
            let takes_value =
                ["-a", "--app", "-c", "--config", "-t", "--access-token", "--api-url", "--context"]
                    .contains(&&*word);
            let holds_value =
                ["--app=", "--config=", "--access-token=", "--api-url=", "--context="];
            if takes_value && words.peek().is_some_and(|next| !next.starts_with('-')) {
                known.push(word);
                known.extend(words.next());
            } else if holds_value.iter().any(|flag| word.starts_with(flag)) {
                known.push(word);
            }
        }
        Self::try_parse_from(known).unwrap_or_default()
    }

    fn server(&self) -> ServerFlags<'_> {
        ServerFlags {
            access_token: self.access_token.as_deref(),
            api_url: self.api_url.as_deref(),
            context: self.context.as_deref(),
        }
    }

    fn app(&self) -> AppFlags<'_> {
        AppFlags { app: self.app.as_deref(), config: self.config.as_deref() }
    }
}

/// bash takes `=` and `:` for the ends of words: puts together again what they are in.
fn joined(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut joined: Vec<String> = Vec::new();
    let mut goes_on = false;
    for word in words {
        let is_joint = word == "=" || word == ":";
        match joined.last_mut() {
            Some(last) if is_joint || goes_on => last.push_str(&word),
            _ => joined.push(word),
        }
        goes_on = is_joint;
    }
    joined
}

/// Asks the server that the line is about.
fn ask(
    question: impl AsyncFnOnce(Client, Line) -> Option<Vec<(String, String)>>,
) -> Vec<(String, String)> {
    // The shell's script calls `caddis -- words of the line`.
    let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let line = Line::read(words.skip_while(|word| word != "--").skip(2));
    let Ok(connection) = Connection::find(line.server(), &Environment::of_process()) else {
        return Vec::new();
    };
    let Ok(client) = Client::new(&connection.url, connection.token.as_deref()) else {
        return Vec::new();
    };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let answer =
        runtime.block_on(async { tokio::time::timeout(TIMEOUT, question(client, line)).await });
    runtime.shutdown_background();
    answer.ok().flatten().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_typed_line_tells_app_and_server() {
        let line = "machine stop --api-url http://there -a shop --signal INT 14 --nonsense=1";
        let line = Line::read(line.split(' ').map(str::to_owned));
        assert_eq!(line.app.as_deref(), Some("shop"));
        assert_eq!(line.api_url.as_deref(), Some("http://there"));
        let line = Line::read(["machine", "stop", "--app=shop", "-a"].map(str::to_owned));
        assert_eq!(line.app.as_deref(), Some("shop"));
        let line = "machine exec -a shop 14 -- tar -c /etc -a other";
        let line = Line::read(line.split(' ').map(str::to_owned));
        assert_eq!(line.app.as_deref(), Some("shop"));
        assert_eq!(line.config, None);
        // As bash splits it.
        let line = "machine stop --app = shop --api-url http : //there : 4280 fr";
        let line = Line::read(line.split(' ').map(str::to_owned));
        assert_eq!(line.app.as_deref(), Some("shop"));
        assert_eq!(line.api_url.as_deref(), Some("http://there:4280"));
    }

    #[test]
    fn what_does_not_begin_alike_is_not_offered() {
        let names = ["shop", "shop-\u{1b}[2J", "web"].map(|name| (name.to_owned(), String::new()));
        let offered: Vec<_> = fitting(OsStr::new("sh"), names.to_vec())
            .into_iter()
            .map(|candidate| candidate.get_value().to_owned())
            .collect();
        assert_eq!(offered, ["shop", "shop-[2J"]);
    }
}
