//! `context`, and which server is asked.

use std::future::pending;

use crate::stand::{Outcome, Stand};

/// Without variables that name a server.
async fn run(stand: &Stand, line: &str) -> Outcome {
    stand.run_in(line, &[], pending()).await
}

#[tokio::test]
async fn servers_have_names_and_one_is_used() {
    let (here, there) = (Stand::with_app().await, Stand::new().await);
    let (url, token) = (here.server.url(), here.server.token());
    assert_eq!(run(&here, "context list").await.ok().stdout, "No contexts\n");
    assert_eq!(run(&here, "context use lab").await.code, 1);
    assert_eq!(run(&here, "context add lab").await.code, 1);
    run(&here, &format!("context add lab --api-url {url} --access-token {token}")).await.ok();
    let other = (there.server.url(), there.server.token());
    run(&here, &format!("context add other --api-url {} --access-token {}", other.0, other.1))
        .await
        .ok();
    run(&here, "context use lab").await.ok();
    assert!(run(&here, "apps list -q").await.ok().stdout.contains("shop"));
    assert_eq!(run(&here, "apps list -q --context other").await.ok().stdout, "");
    let by_variable = [("CADDIS_CONTEXT", "other")];
    assert_eq!(here.run_in("apps list -q", &by_variable, pending()).await.ok().stdout, "");
    // A flag is stronger than any variable.
    let elsewhere = [("CADDIS_API_URL", "http://127.0.0.1:1"), ("CADDIS_API_TOKEN", "x")];
    assert!(
        here.run_in("apps list -q --context lab", &elsewhere, pending())
            .await
            .ok()
            .stdout
            .contains("shop")
    );
    let listed = run(&here, "context list --json").await.ok();
    assert_eq!(
        (&listed.json()[0]["name"], &listed.json()[0]["current"]),
        (&"lab".into(), &true.into())
    );
    assert!(!listed.stdout.contains(token), "{listed}");
    assert_eq!(
        run(&here, "context show --json").await.ok().json()["api_url_source"],
        "context lab"
    );
    let unknown = run(&here, "apps list --context lob").await;
    assert!(
        unknown.stderr.contains("there is no context 'lob'\nKnown contexts: lab, other."),
        "{unknown}"
    );
    run(&here, "context remove lab").await.ok();
    assert_eq!(run(&here, "apps list").await.code, 1);
}

#[tokio::test]
async fn a_token_of_one_context_is_not_sent_to_another_server() {
    let stand = Stand::new().await;
    let (url, token) = (stand.server.url(), stand.server.token());
    run(&stand, &format!("context add lab --api-url {url} --access-token {token}")).await.ok();
    run(&stand, "context use lab").await.ok();
    let outcome = run(&stand, "apps list --api-url http://127.0.0.1:1").await;
    assert!(outcome.stderr.contains("no access token available"), "{outcome}");
}
