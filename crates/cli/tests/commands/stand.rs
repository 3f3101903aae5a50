//! Commands run in this process against a real server over a fake host, and what they print as one
//! text.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    future::{Future, pending},
    path::Path,
    sync::{LazyLock, Mutex},
    time::Duration,
};

use caddis_cli::{Command, Environment, Globals, OutputTail, Printer, Usage, execute, parse};
use caddis_testkit::fake::{FakeOptions, FakeServer};
use clap::Parser;
use regex::{Captures, Regex};
use serde_json::Value;
use tokio::time::timeout;

#[derive(Parser)]
#[command(name = "caddis")]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Time within which everything happens.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A server and a user's home.
pub struct Stand {
    pub server: FakeServer,
    home: tempfile::TempDir,
    /// Ids seen so far: each has the same name in all texts.
    known: Mutex<Vec<String>>,
}

/// How a command ended. Shown as exit code, standard output and standard error, with what differs
/// from run to run replaced.
pub struct Outcome {
    pub code: u8,
    /// As it was written.
    pub stdout: String,
    /// As it was written.
    pub stderr: String,
    text: String,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Outcome {
    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    /// Insists on a success.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.text);
        self
    }
}

impl Stand {
    pub async fn new() -> Self {
        Self::with(FakeOptions::default()).await
    }

    pub async fn with(options: FakeOptions) -> Self {
        let server = FakeServer::with(options).await.unwrap();
        Self { server, home: tempfile::tempdir().unwrap(), known: Mutex::default() }
    }

    /// One with an app `shop`.
    pub async fn with_app() -> Self {
        let stand = Self::new().await;
        stand.run("apps create shop").await.ok();
        stand
    }

    /// The user's home, which is the current directory too.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Makes a machine in the app `shop` that runs until it is stopped; returns its id.
    pub async fn machine(&self, name: &str) -> String {
        self.machine_with(&format!("web --name {name} --restart no")).await
    }

    /// The same with these arguments of `run`.
    pub async fn machine_with(&self, arguments: &str) -> String {
        let outcome = self.run(&format!("machine run {arguments} -a shop")).await.ok();
        let id = outcome.stdout.lines().find_map(|line| line.trim().strip_prefix("Machine ID: "));
        id.unwrap_or_else(|| panic!("no id in {outcome}")).to_owned()
    }

    /// Runs a command line, split into words as a shell does, after `caddis`.
    pub async fn run(&self, line: &str) -> Outcome {
        self.run_until(line, pending()).await
    }

    /// The same, with Ctrl-C when this ends.
    pub async fn run_until(&self, line: &str, interrupt: impl Future<Output = ()>) -> Outcome {
        let (url, token) = (self.server.url(), self.server.token().to_owned());
        self.run_in(line, &[("CADDIS_API_URL", &url), ("CADDIS_API_TOKEN", &token)], interrupt)
            .await
    }

    /// The same, with Ctrl-C when this has been written to standard output.
    pub async fn run_until_shown(&self, line: &str, text: &str) -> Outcome {
        let (url, token) = (self.server.url(), self.server.token().to_owned());
        let variables = [("CADDIS_API_URL", &*url), ("CADDIS_API_TOKEN", &*token)];
        let shown = async |stdout: OutputTail| {
            let shown = async {
                while !stdout.text().contains(text) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(DEADLINE, shown).await.unwrap_or_else(|_| panic!("no {text} came"));
        };
        self.run_interrupted(line, &variables, shown).await
    }

    /// Runs a command line with these variables beside `HOME`, without server and token.
    pub async fn run_in(
        &self,
        line: &str,
        variables: &[(&str, &str)],
        interrupt: impl Future<Output = ()>,
    ) -> Outcome {
        self.run_interrupted(line, variables, |_| interrupt).await
    }

    async fn run_interrupted<F: Future<Output = ()>>(
        &self,
        line: &str,
        variables: &[(&str, &str)],
        interrupt: impl FnOnce(OutputTail) -> F,
    ) -> Outcome {
        let words = shell_words::split(line).unwrap();
        let cli = match parse::<Cli>(["caddis".to_owned()].into_iter().chain(words)) {
            Ok(cli) => cli,
            Err(error) => {
                // As `report_usage` has it.
                let Usage { code, text } = Usage::of(&error);
                let (text, none) = (text.to_string(), String::new());
                let (stdout, stderr) = if code == 0 { (text, none) } else { (none, text) };
                return self.outcome(code, stdout, stderr);
            }
        };
        let home = self.home().display().to_string();
        let mut environment =
            Environment { current_directory: self.home().to_owned(), ..Environment::default() };
        for (name, value) in [("HOME", &*home), ("CADDIS_DATA_DIR", &*home)].iter().chain(variables)
        {
            environment.variables.insert((*name).to_owned(), (*value).to_owned());
        }
        let (printer, stdout, stderr) = Printer::capturing();
        let code =
            execute(cli.command, cli.globals, environment, printer, interrupt(stdout.clone()))
                .await;
        self.outcome(code, stdout.text(), stderr.text())
    }

    fn outcome(&self, code: u8, stdout: String, stderr: String) -> Outcome {
        let part = |name: &str, text: &str| match self.steady(text) {
            text if text.is_empty() => String::new(),
            text => format!("\n----- {name} -----\n{text}"),
        };
        let text =
            format!("exit code {code}{}{}", part("stdout", &stdout), part("stderr", &stderr));
        Outcome { code, stdout, stderr, text }
    }

    /// The text with names in the place of what differs from run to run. Machines and versions are
    /// numbered as they come up first, and stay as wide as they are.
    pub fn steady(&self, text: &str) -> String {
        static IDS: LazyLock<Regex> = LazyLock::new(|| {
            let ids = concat!(
                r"\b([0-9a-f]{14}|[0-7][0-9A-HJKMNP-TV-Z]{25}|vol_[0-9a-z]{16}|",
                r"vs_[0-9A-Za-z]{20})\b"
            );
            Regex::new(ids).unwrap()
        });
        static OTHERS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
            let others = [
                (r"\(Request ID: [^)]+\)", "(Request ID: …)"),
                (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", "[TIME]"),
                (r"\b(\d+h)?(\d+m)?\d+[sm] ago", "[AGO]"),
                (r"\d+\.\d ms", "[TIME]"),
                (r"\d\d [A-Z][a-z]{2} \d\d \d\d:\d\d UTC", "[TIME]"),
                (r"(?m)^  (Creating the volume|Restoring|Filling|Taking)[^\n]*\n", ""),
                // That of its host.
                (r"(Zone: |│ )[0-9a-f]{4}(\n| │)", "${1}zone$2"),
                (r"fdaa:[0-9a-f:]+", "[IPV6]"),
                (r"\b10\.0\.\d+\.\d+", "[IPV4]"),
                (r#""(timestamp|expires_at)": \d+"#, "\"$1\": [TIME]"),
                (r"127\.0\.0\.1:\d+", "SERVER"),
                // They are those of the host that the tests run on.
                (
                    r"has \d+ CPUs, (\d+) MiB and \d+ GiB free",
                    "has [CPUS] CPUs, $1 MiB and [DISK] GiB free",
                ),
                // How far something is: what is quick may be over before it is told.
                (
                    concat!(
                        r"(?m)^  (Looking up|Pulling|Unpacking|Building|Uploading|Preparing|",
                        r"Starting|Booting|Waiting)[^\n.:]*\n"
                    ),
                    "",
                ),
                // Columns are as wide as what was replaced.
                (r" +│", " │"),
                (r"(?m) +$", ""),
            ];
            others.into_iter().map(|(pattern, name)| (Regex::new(pattern).unwrap(), name)).collect()
        });
        let text = text.replace(&self.home().display().to_string(), "HOME");
        let text = text.replace(self.server.token(), "TOKEN");
        let mut text = OTHERS[0].0.replace_all(&text, OTHERS[0].1).into_owned();
        text = IDS.replace_all(&text, |found: &Captures<'_>| self.name_of(&found[0])).into_owned();
        for (pattern, name) in &OTHERS[1..] {
            text = pattern.replace_all(&text, *name).into_owned();
        }
        text
    }

    fn name_of(&self, id: &str) -> String {
        let mut known = self.known.lock().unwrap();
        if !known.iter().any(|other| other == id) {
            known.push(id.to_owned());
        }
        let alike: Vec<_> = known.iter().filter(|other| other.len() == id.len()).collect();
        let number = alike.iter().position(|other| *other == id).unwrap_or_default() + 1;
        match id.len() {
            14 => format!("machine-id-{number:03}"),
            20 => format!("volume-id-{number:010}"),
            23 => format!("snapshot-id-{number:011}"),
            _ => format!("01{number:0>24}"),
        }
    }
}
