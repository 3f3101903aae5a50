//! What the commands say of themselves, in help, manual and completions.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use caddis_testkit::fake::FakeServer;

fn caddis() -> Command {
    Command::new(env!("CARGO_BIN_EXE_caddis"))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn files(directory: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap());
    files
        .map(|file| {
            (file.file_name().into_string().unwrap(), fs::read_to_string(file.path()).unwrap())
        })
        .collect()
}

#[test]
fn each_code_of_the_proxy_is_explained_with_its_status() {
    let explained: Vec<serde_json::Value> =
        serde_json::from_str(&run(caddis().args(["explain", "--json"]))).unwrap();
    for code in caddis_proxy::ErrorCode::ALL {
        let found = explained.iter().find(|one| one["code"] == code.as_str());
        let found = found.unwrap_or_else(|| panic!("{code} is not explained"));
        // Errors before there is HTTP have none.
        let status = found["status"].as_u64();
        assert!(
            status.is_none_or(|status| status == u64::from(code.status().as_u16())),
            "{code}: {found}"
        );
    }
    let is_known = |code: &str| caddis_proxy::ErrorCode::ALL.iter().any(|one| one.as_str() == code);
    for one in &explained {
        let code = one["code"].as_str().unwrap();
        let is_of_the_proxy = code.len() == 4 && code.starts_with('P');
        assert!(!is_of_the_proxy || is_known(code), "{code} is never told");
    }
}

#[test]
fn negative_values_of_the_servers_own_flags_are_told_as_such() {
    for (line, expected) in [
        ("serve --memory-mb -5", "error: --memory-mb must not be negative, got: -5"),
        ("serve --pool -1", "error: --pool must not be negative, got: -1"),
        ("doctor --volume-gb -2", "error: --volume-gb must not be negative, got: -2"),
        ("host drain --timeout -1", "error: --timeout must not be negative, got: -1"),
        ("doctor --cpu-overcommit -1", "Error: the CPU overcommit factor must be above 0"),
    ] {
        let output = caddis().args(line.split(' ')).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.starts_with(expected), "{line}: {said}");
    }
}

/// `CADDIS_BLESS=1` writes them.
#[test]
fn the_pages_of_the_commands_are_what_help_says() {
    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli");
    let directory = tempfile::tempdir().unwrap();
    run(caddis().args(["man", "--markdown", "--directory"]).arg(directory.path()));
    let pages = files(directory.path());
    if std::env::var_os("CADDIS_BLESS").is_some() {
        let _ = fs::remove_dir_all(&checked_in);
        fs::create_dir_all(&checked_in).unwrap();
        for (name, text) in &pages {
            fs::write(checked_in.join(name), text).unwrap();
        }
    }
    let there = files(&checked_in);
    for name in pages.keys().chain(there.keys()) {
        assert_eq!(
            pages.get(name),
            there.get(name),
            "docs/cli/{name}: write it anew with CADDIS_BLESS=1"
        );
    }
    for (name, page) in &pages {
        // A page without commands of its own is of one that does something.
        assert!(
            page.contains("| command |") || page.contains("\n```sh\n"),
            "{name} has no example"
        );
        assert!(!page.contains('\u{1b}'), "{name} has colours");
    }
}

#[test]
fn the_manual_has_a_page_per_command_that_man_can_read() {
    let directory = tempfile::tempdir().unwrap();
    run(caddis().args(["man", "--directory"]).arg(directory.path()));
    let pages = files(directory.path());
    assert!(pages.len() > 50, "{:?}", pages.keys());
    for (name, page) in pages {
        assert!(page.contains(&format!(".TH {}", name.trim_end_matches(".1"))), "{name}: {page}");
        assert!(page.contains(".SH SYNOPSIS"), "{name}");
    }
}

/// What a shell is offered for these words, of which the last is being typed.
fn offered(server: &FakeServer, home: &Path, words: &[&str]) -> Vec<String> {
    let mut command = caddis();
    command
        .env_clear()
        .env("CADDIS_COMPLETE", "fish")
        .env("HOME", home)
        .env("CADDIS_DATA_DIR", home);
    command.env("CADDIS_API_URL", server.url()).env("CADDIS_API_TOKEN", server.token());
    command.args(["--", "caddis"]).args(words).current_dir(home);
    let offered = run(&mut command);
    let mut offered: Vec<_> =
        offered.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect();
    offered.sort();
    offered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shells_complete_commands_apps_and_machines() {
    let server = FakeServer::start().await.unwrap();
    let api = server.api().unwrap();
    api.create_app("shop", None).await.unwrap();
    api.create_app("other", None).await.unwrap();
    let body = serde_json::json!({ "name": "front", "config": { "image": "web",
        "restart": { "policy": "no" } } });
    let machine = api.create_machine_from("shop", body).await.unwrap();
    let home = tempfile::tempdir().unwrap();
    tokio::task::block_in_place(|| {
        let offered = |words: &[&str]| offered(&server, home.path(), words);
        assert!(offered(&["mach"]).contains(&"machine".to_owned()));
        assert!(offered(&["machine", "st"]).contains(&"stop".to_owned()));
        // A host with much else to do may take longer than a shell waits.
        let live = |words: &[&str], expected: &[&str]| {
            let found =
                (0..5).map(|_| offered(words)).find(|names| !names.is_empty()).unwrap_or_default();
            assert_eq!(found, expected, "{words:?}");
        };
        live(&["machine", "list", "-a", ""], &["other", "shop"]);
        live(&["machine", "list", "-a", "sh"], &["shop"]);
        live(&["machine", "stop", "-a", "shop", &machine.id()[..5]], &[machine.id()]);
        live(&["machine", "stop", "-a", "shop", "fr"], &["front"]);
        assert_eq!(offered(&["machine", "stop", "-a", "other", "fr"]), Vec::<String>::new());
        live(&["logs", "-a", "shop", "-m", "fr"], &["front"]);
        live(&["machine", "exec", "-a", "shop", "fr"], &["front"]);
        live(&["machine", "exec", "-a", "shop", &machine.id()[..5]], &[machine.id()]);
        assert_eq!(
            offered(&["machine", "exec", "-a", "shop", "front", "--", "fr"]),
            Vec::<String>::new()
        );
        assert_eq!(offered(&["explain", "insuff"]), ["insufficient_capacity"]);
        // A server that is not there costs nothing but its names.
        assert_eq!(
            offered(&["machine", "list", "--api-url", "http://127.0.0.1:9", "-a", "sh"]),
            Vec::<String>::new()
        );
    });
}

#[test]
fn help_and_version_are_commands_too() {
    assert_eq!(run(caddis().arg("version")), run(caddis().arg("--version")));
    assert_eq!(
        run(caddis().args(["help", "machine", "run"])),
        run(caddis().args(["machine", "run", "--help"]))
    );
    assert_eq!(run(caddis().arg("help")), run(caddis().arg("--help")));
    let unknown = caddis().args(["help", "secrets"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{unknown:?}");
    assert!(
        String::from_utf8_lossy(&unknown.stderr).contains("secrets are not available yet"),
        "{unknown:?}"
    );
}

#[test]
fn the_scripts_of_the_shells_call_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(caddis().args(["completion", shell]));
        assert!(script.contains("CADDIS_COMPLETE"), "{script}");
    }
}
