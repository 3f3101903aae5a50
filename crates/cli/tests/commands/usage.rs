//! Command lines that are none, and commands of the reference that are not here.

use insta::assert_snapshot;

use crate::stand::Stand;

#[tokio::test]
async fn commands_that_are_not_here_lead_to_what_stands_in_for_them() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("secrets set A=1 --stage").await, @"
    exit code 1
    ----- stderr -----
    Error: secrets are not available yet
    'caddis machine run' and 'update' set variables with --env and write files with --file-local.
    ");
    assert_snapshot!(stand.run("deploy").await, @"
    exit code 1
    ----- stderr -----
    Error: deploying from fly.toml is not available
    'caddis machine run' creates a machine, 'caddis machine update --image' changes its image.
    ");
    for (line, words) in [
        ("certs list", "certificates are not available yet"),
        ("proxy 80:8080", "their services at the app's ('caddis ips list')"),
        ("scale count 3", "'caddis machine clone' adds machines"),
        ("tokens create deploy", "'caddis auth token' prints the one in use"),
        ("machine api-proxy", "there is no agent, and none is needed"),
        ("ssh issue", "'caddis ssh console'"),
        ("console", "'caddis ssh console' opens a shell in a machine"),
    ] {
        let outcome = stand.run(line).await;
        assert!(outcome.code == 1 && outcome.stderr.contains(words), "{line}: {outcome}");
        assert!(!outcome.stderr.contains("tip:"), "{line}: {outcome}");
    }
    // What is mistyped is still told.
    let mistyped = stand.run("machine lst").await;
    assert!(mistyped.code == 1 && mistyped.stderr.contains("'list'"), "{mistyped}");
}

#[tokio::test]
async fn what_is_wrong_ends_with_1_and_help_with_0() {
    let stand = Stand::new().await;
    for wrong in [
        "nonsense",
        "machine nonsense",
        "machine list --nonsense",
        "machine list extra",
        "machine exec",
        "machine top --interval 0",
        "sftp put a b -m 9",
        "machine exec 148ed193b95389 ls -- ls",
        "image rm",
    ] {
        let outcome = stand.run(wrong).await;
        assert!(
            outcome.code == 1 && outcome.stdout.is_empty() && !outcome.stderr.is_empty(),
            "{wrong}: {outcome}"
        );
    }
    for help in ["--help", "machine --help", "machine", "machine leases", "orgs", "machine run -h"]
    {
        let outcome = stand.run(help).await;
        assert!(outcome.code == 0 && outcome.stdout.contains("Usage: caddis"), "{help}: {outcome}");
        assert!(outcome.stderr.is_empty(), "{help}: {outcome}");
    }
}

#[tokio::test]
async fn a_negative_number_is_told_as_such_and_a_flag_is_no_number() {
    let stand = Stand::with_app().await;
    assert_snapshot!(stand.run("machine run web -a shop --memory -5").await, @"
    exit code 1
    ----- stderr -----
    error: --vm-memory must not be negative, got: -5

    For more information, try '--help'.
    ");
    assert_snapshot!(stand.run("volumes create data -a shop -s -3gb").await, @"
    exit code 1
    ----- stderr -----
    error: --size must not be negative, got: -3gb

    For more information, try '--help'.
    ");
    assert_snapshot!(stand.run("volumes create data -a shop --count --yes").await, @"
    exit code 1
    ----- stderr -----
    error: a value is required for '--count <COUNT>' but none was supplied

    For more information, try '--help'.
    ");
    // Its own limit is told with more.
    assert_snapshot!(stand.run("machine run web -a shop --vm-cpus -2").await, @"
    exit code 1
    ----- stderr -----
    Error: --vm-cpus must be greater than zero, got: -2
    ");
    assert_snapshot!(stand.run("machine list -5").await, @"
    exit code 1
    ----- stderr -----
    error: unexpected argument '-5' found

    Usage: caddis machine list [OPTIONS]

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn organizations_are_listed_and_chosen() {
    let stand = Stand::new().await;
    assert_snapshot!(stand.run("orgs list").await, @"
    exit code 0
    ----- stdout -----
     NAME │ SLUG │ TYPE
     Personal │ personal │ PERSONAL
    ");
    assert_snapshot!(stand.run("orgs list --json").await, @r#"
    exit code 0
    ----- stdout -----
    {
        "personal": "Personal"
    }
    "#);
    assert_snapshot!(stand.run("machine run web --shell --org other").await, @"
    exit code 1
    ----- stderr -----
    Error: organization other not found
    'caddis orgs list' lists the organizations the access token has access to.
    ");
    let own = stand.run("machine run web --shell --org personal --command 'exit 0'").await.ok();
    assert!(!own.stderr.contains("selected"), "{own}");
}
