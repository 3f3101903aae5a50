//! README and guide: every command that they give runs, and what they print is what is shown.
//!
//! Blocks that need a real VM run in the end-to-end tests. What is not run at all is listed here.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use caddis_testkit::{
    fake::{FakeOptions, FakeServer},
    guide::{Page, Place, is_understood},
};
use serde_json::Value;

const CADDIS: &str = env!("CARGO_BIN_EXE_caddis");

const CHANGES_HOST: &str = "changes the host it runs on";
const TAKES_TERMINAL: &str = "needs a terminal, or goes on until it is ended";
const CHANGES_USER: &str = "changes which server the user's other commands reach";
const OTHER_TOOL: &str = "needs files made by another tool";
const NEEDS_LISTENERS: &str = "needs the shared listeners of a server that runs VMs";

/// Blocks that are not run, by page and first line, and why.
const NOT_RUN: &[(&str, &str, &str)] = &[
    ("README.md", "apt-get install make\n", CHANGES_HOST),
    ("README.md", "apt-get install make qemu-system-x86", CHANGES_HOST),
    ("docs/guide/cli.md", "caddis auth login", CHANGES_USER),
    ("docs/guide/images.md", "caddis serve", TAKES_TERMINAL),
    ("docs/guide/images.md", "docker save", OTHER_TOOL),
    ("docs/guide/operations.md", "apt-get install", CHANGES_HOST),
    ("docs/guide/operations.md", "install -m 755", CHANGES_HOST),
    ("docs/guide/operations.md", "journalctl", TAKES_TERMINAL),
    ("docs/guide/operations.md", "caddis host drain\n$ systemctl stop", CHANGES_HOST),
    ("docs/guide/operations.md", "caddis backup /var/backups", CHANGES_HOST),
    ("docs/guide/operations.md", "caddis host drain\n$ apt-get install", CHANGES_HOST),
    ("docs/guide/operations.md", "caddis host drain --timeout", CHANGES_HOST),
    ("docs/guide/operations.md", "systemctl restart", CHANGES_HOST),
    ("docs/guide/operations.md", "caddis host drain\n$ systemctl disable", CHANGES_HOST),
    ("docs/guide/operations.md", "caddis serve", TAKES_TERMINAL),
    ("docs/guide/services.md", "curl -sI", NEEDS_LISTENERS),
    ("docs/guide/shell.md", "caddis ssh console", TAKES_TERMINAL),
    ("docs/guide/wireguard.md", "caddis serve", TAKES_TERMINAL),
    ("docs/guide/wireguard.md", "caddis wireguard create", CHANGES_HOST),
];

/// Pages with blocks that run on real VMs only.
const NEED_VMS: &[&str] = &[
    "docs/guide/logs.md",
    "docs/guide/networking.md",
    "docs/guide/operations.md",
    "docs/guide/postgres.md",
    "docs/guide/shell.md",
    "docs/guide/troubleshooting.md",
];

/// On a server of its own, since a page may drain its host.
fn run(page: &Page, server: &FakeServer) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let environment = BTreeMap::from([
        ("CADDIS_API_URL", server.url()),
        ("CADDIS_API_TOKEN", server.token().to_owned()),
        ("CADDIS_DATA_DIR", server.directory().display().to_string()),
    ]);
    let (directory, caddis) = (directory.path(), Path::new(CADDIS));
    page.run(&Place { directory, caddis, environment, has_vms: false })
}

#[tokio::test]
async fn the_commands_of_readme_and_guide_run_as_they_stand_there() {
    let pages = Page::all().unwrap();
    assert!(pages.len() > 15, "{}", pages.len());
    let mut tasks = Vec::new();
    for page in pages {
        let server = FakeServer::start().await.unwrap();
        tasks.push(tokio::task::spawn_blocking(move || run(&page, &server)));
    }
    let mut failed = Vec::new();
    for task in tasks {
        failed.extend(task.await.unwrap().err().map(|error| format!("{error:#}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn what_is_not_run_is_listed_with_the_reason() {
    let mut listed: Vec<_> = NOT_RUN.iter().collect();
    for page in Page::all().unwrap() {
        for block in &page.blocks {
            let place = format!("{}, line {}", page.name, block.line);
            match &*block.mark {
                "sh" | "sh vm" => assert!(!block.text.contains("\n$ "), "{place}"),
                "text" | "json" => {}
                "console" => {
                    let begins = |first: &str| block.text.starts_with(&format!("$ {first}"));
                    let row = listed
                        .iter()
                        .position(|(name, first, _)| *name == page.name && begins(first));
                    listed.remove(row.unwrap_or_else(|| panic!("{place} is not listed")));
                }
                other => panic!("{place}: a block is marked {other:?}"),
            }
        }
        assert_eq!(page.needs_vm(), NEED_VMS.contains(&&*page.name), "{}", page.name);
    }
    assert!(listed.is_empty(), "no page has {listed:?}");
}

#[test]
fn commands_that_are_not_run_have_arguments_that_exist() {
    let mut checked = 0;
    for page in Page::all().unwrap() {
        for block in page.blocks.iter().filter(|block| block.mark == "console") {
            let lines = block.text.lines().filter_map(|line| line.strip_prefix("$ caddis "));
            for line in lines {
                is_understood(Path::new(CADDIS), &format!("caddis {line}"))
                    .unwrap_or_else(|error| panic!("{}, line {}: {error}", page.name, block.line));
                checked += 1;
            }
        }
    }
    assert!(checked > 10, "{checked}");
    assert!(is_understood(Path::new(CADDIS), "caddis serve --no-such-flag").is_err());
}

/// Operations of the page that a server shows at `/docs`, in an order in which all succeed.
const DOCS: &str = "
    Health_show Server_openapi Server_docs Platform_regions_get Platform_status
    WireGuardPeers_create WireGuardPeers_list WireGuardPeers_show WireGuardPeers_reset
    WireGuardPeers_delete Platform_placements_post Organizations_list
    Apps_create Apps_list Apps_show
    App_IPAssignments_create App_IPAssignments_list App_IPAssignments_delete Images_list
    App_NetworkPolicies_put App_NetworkPolicies_list App_NetworkPolicies_show
    App_NetworkPolicies_delete
    Volumes_create Volumes_get_by_id Volumes_list Volumes_org_list Volumes_update Volumes_extend
    createVolumeSnapshot Volumes_list_snapshots Volumes_get_snapshot Volumes_delete_snapshot
    Volume_delete Volumes_undelete
    Machines_create Machines_wait Machines_show Machines_list Machines_org_list Machines_watch
    Machines_usage Machines_follow_operation Machines_exec Machines_list_processes
    Machines_list_events Machines_list_versions Machines_get_memory Machines_set_memory_limit
    Machines_reclaim_memory Machines_upsert_metadata Machines_get_metadata_key
    Machines_update_metadata Machines_update_metadata_deprecated Machines_show_metadata
    Machines_delete_metadata Machines_create_lease Machines_show_lease Machines_release_lease
    Machines_set_hold Machines_show_hold Machines_release_hold Machines_traffic
    Apps_traffic
    Machines_allocate_egress_ips Machines_promote_egress_ips Machines_list_egress_ips
    App_EgressIPs_list Machines_allocate_egress_ips Machines_release_egress_ips
    Machines_cordon Machines_uncordon Apps_logs Machines_update Machines_wait
    Machines_update_deprecated Machines_wait Machines_restart Machines_wait Machines_suspend
    Machines_start Machines_wait Machines_signal Machines_stop Machines_start Machines_wait
    Host_drain Machines_delete Apps_delete";

/// Operations that take an archive, or more than curl: the pages on images and shells have them.
const NOT_WITH_CURL: &[&str] = &["Images_import", "Images_delete", "Machines_exec_ws"];

/// Standard output of a shell that knows server and token.
fn shell(server: &FakeServer, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-c", script]).env("URL", server.url()).env("TOKEN", server.token());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_that_a_server_documents_itself_with_work() {
    let traffic = Some(Default::default());
    let options = FakeOptions { traffic, ..Default::default() };
    let server = FakeServer::with(options).await.unwrap();
    tokio::task::block_in_place(|| {
        let page = shell(&server, "curl -fsS $URL/docs");
        let plain = |text: &str| {
            let text = text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">");
            text.replace("&amp;", "&")
        };
        let mut commands = BTreeMap::new();
        for article in page.split("<article id=\"").skip(1) {
            let Some((_, rest)) = article.split_once("<pre class=\"curl\">") else { continue };
            let id = article.split('"').next().unwrap();
            commands.insert(id, plain(rest.split("</pre>").next().unwrap()));
        }
        let known: BTreeSet<_> =
            DOCS.split_whitespace().chain(NOT_WITH_CURL.iter().copied()).collect();
        assert_eq!(commands.keys().copied().collect::<BTreeSet<_>>(), known);

        // What the examples name, and what it is here.
        let status: Value =
            serde_json::from_str(&shell(&server, &commands["Platform_status"])).unwrap();
        let host = status["hosts"][0]["id"].as_str().unwrap().to_owned();
        let mut names = vec![("01K3A5ZJ6R2X8N4B7D9F0H1M2P".to_owned(), host)];
        for id in DOCS.split_whitespace() {
            let mut command = commands[id].clone();
            for (example, here) in &names {
                command = command.replace(example, here);
            }
            let printed = shell(&server, &command);
            let field = |name: &str| {
                let value: Value = serde_json::from_str(&printed).unwrap();
                value[name].as_str().unwrap().to_owned()
            };
            match id {
                "Machines_create" => names.push(("148ed193b95389".to_owned(), field("id"))),
                "App_NetworkPolicies_put" => {
                    names.push(("np_4l2k8s0d7fj3n1qz".to_owned(), field("id")));
                }
                "Volumes_create" => {
                    let volume = field("id");
                    let until_there = format!(
                        "until curl -fsS -H \"Authorization: Bearer $TOKEN\" \
                         $URL/v1/apps/hello/volumes/{volume} | grep -q '\"created\"'; do :; done"
                    );
                    shell(&server, &until_there);
                    names.push(("vol_9vw681egy1jj5xm4".to_owned(), volume));
                }
                "createVolumeSnapshot" => {
                    names.push(("vs_Ql8xbllZOYDSDgo2D7NY".to_owned(), field("id")));
                }
                "Machines_create_lease" => names.push(("5f0c2d9e8b7a".to_owned(), field("nonce"))),
                _ => {}
            }
        }
    });
}
