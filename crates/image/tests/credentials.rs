//! Which login a registry is shown, and which not.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use caddis_image::ImageError;
use serde_json::{Value, json};
use support::{
    World,
    image::{Image, Layer},
    registry::{FakeRegistry, Reply, Request},
};

fn image() -> Image {
    Image::new(&[Layer::new().file("file", b"content")])
}

fn basic(user: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:secret-of-{user}")))
}

fn login(user: &str) -> Value {
    json!({ "auth": STANDARD.encode(format!("{user}:secret-of-{user}")) })
}

/// A registry with these repositories, and a store whose credentials are in a file that can be
/// written.
async fn start(repositories: &[&str]) -> (FakeRegistry, World, PathBuf) {
    let registry = FakeRegistry::start().await;
    for name in repositories {
        registry.offer(name, "latest", &image());
    }
    let mut world = World::trusting(&registry.address);
    let file = world.outside.path().join("neighbour/config.json");
    world.config.registry_credentials = Some(file.clone());
    (registry, world, file)
}

/// Has each repository ask for the password of the user it is mapped to.
fn ask_for(registry: &FakeRegistry, users: &[(&str, &str)]) {
    let users: Vec<(String, String)> =
        users.iter().map(|(name, user)| (format!("/v2/{name}/"), basic(user))).collect();
    registry.misbehave(move |request| {
        let (_, wanted) = users.iter().find(|(path, _)| request.path.starts_with(path.as_str()))?;
        let allowed = request.header("authorization") == Some(wanted.as_str());
        (!allowed).then(|| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"here\""))
    });
}

fn shown(log: &[Request], path: &str) -> Vec<String> {
    let mut shown: Vec<String> = log
        .iter()
        .filter(|request| request.path.starts_with(path))
        .filter_map(|request| request.header("authorization").map(str::to_owned))
        .collect();
    shown.sort();
    shown.dedup();
    shown
}

#[tokio::test]
async fn each_path_of_a_registry_is_shown_its_own_login_and_no_other_paths() {
    let (registry, world, file) =
        start(&["team/app", "team/special/app", "other/app", "stranger/app"]).await;
    let host = &registry.address;
    let auths = json!({ "auths": {
        format!("{host}/other"): login("other"),
        format!("{host}/team"): login("team"),
        format!("{host}/team/special"): login("special"),
        format!("{host}/team/spec"): login("prefix"),
        format!("{host}/null"): null,
    }});
    fs::write(&file, auths.to_string()).unwrap();
    ask_for(
        &registry,
        &[
            ("team/special/app", "special"),
            ("team/app", "team"),
            ("other/app", "other"),
            ("stranger/app", "stranger"),
        ],
    );
    let store = world.open();
    for name in ["team/app", "other/app", "team/special/app"] {
        store.resolve(&registry.reference(name)).await.unwrap();
    }
    let error = store.resolve(&registry.reference("stranger/app")).await.unwrap_err();
    assert!(
        matches!(error, ImageError::Unauthorized { .. }) && error.to_string().contains("no login"),
        "{error}"
    );
    let log = registry.log();
    for (path, user) in
        [("/v2/team/app/", "team"), ("/v2/other/", "other"), ("/v2/team/special/", "special")]
    {
        assert_eq!(shown(&log, path), [basic(user)], "{path}");
    }
    assert_eq!(shown(&log, "/v2/stranger/"), [""; 0]);

    // With a login of the whole host the stranger is shown that.
    let auths = json!({ "auths": { format!("{host}/team"): login("team"),
        host.clone(): login("stranger") }});
    fs::write(&file, auths.to_string()).unwrap();
    store.resolve(&registry.reference("stranger/app")).await.unwrap();
    assert_eq!(shown(&registry.log(), "/v2/stranger/"), [basic("stranger")]);
}

#[tokio::test]
async fn a_token_server_is_shown_the_login_of_the_path_that_a_token_is_for() {
    let (registry, world, file) = start(&["team/app", "other/app", "public/app"]).await;
    let host = &registry.address;
    let auths = json!({ "auths": { format!("{host}/team"): login("team"),
        format!("{host}/other"): login("other") }});
    fs::write(&file, auths.to_string()).unwrap();
    let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"svc\"");
    registry.misbehave(move |request| {
        if request.path.starts_with("/token?") {
            let token =
                request.path.rsplit("repository%3A").next().unwrap().replace("%2Fapp%3Apull", "");
            return Some(Reply::new(200, json!({ "token": token, "expires_in": 300 }).to_string()));
        }
        let wanted = format!("Bearer {}", request.path.split('/').nth(2).unwrap());
        let allowed = request.header("authorization") == Some(wanted.as_str());
        (!allowed).then(|| Reply::new(401, "").header("WWW-Authenticate", challenge.clone()))
    });
    let store = world.open();
    for name in ["team/app", "other/app", "public/app"] {
        store.resolve(&registry.reference(name)).await.unwrap();
    }
    let log = registry.log();
    for (name, expected) in
        [("team", Some(basic("team"))), ("other", Some(basic("other"))), ("public", None)]
    {
        let asked: Vec<_> = log
            .iter()
            .filter(|request| {
                request.path.starts_with("/token?")
                    && request.path.contains(&format!("%3A{name}%2F"))
            })
            .map(|request| request.header("authorization").map(str::to_owned))
            .collect();
        assert_eq!(asked, [expected], "{name}");
    }
}

#[tokio::test]
async fn a_login_that_is_changed_or_taken_away_is_used_no_more() {
    let (registry, world, file) = start(&["app"]).await;
    let write = |user: &str| {
        fs::write(&file, json!({ "auths": { registry.address.clone(): login(user) }}).to_string())
            .unwrap();
    };
    // Takes whoever says anything.
    registry.misbehave(|request| {
        let named = request.header("authorization").is_some();
        (!named).then(|| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"here\""))
    });
    let store = world.open();
    let reference = registry.reference("app");
    write("first");
    store.resolve(&reference).await.unwrap();
    write("second");
    let before = registry.log().len();
    store.resolve(&reference).await.unwrap();
    assert_eq!(shown(&registry.log()[before..], "/"), [basic("second")]);
    let before = registry.log().len();
    store.resolve(&reference).await.unwrap();
    assert!(
        registry.log()[before..].iter().all(|request| request.header("authorization").is_some()),
        "remembered"
    );

    for nothing in [Some("{}"), Some("no JSON"), None] {
        write("third");
        store.resolve(&reference).await.unwrap();
        match nothing {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let before = registry.log().len();
        store.resolve(&reference).await.unwrap_err();
        assert_eq!(shown(&registry.log()[before..], "/"), [""; 0], "{nothing:?}");
    }
}

#[tokio::test]
async fn a_login_that_a_helper_keeps_is_named_in_the_error_and_harms_no_other() {
    let (registry, world, file) = start(&["private/app", "team/app", "public/app"]).await;
    let host = registry.address.clone();
    let auths = json!({
        "auths": { host.clone(): {}, format!("{host}/team"): login("team"),
            "elsewhere.example.com": null },
        "credHelpers": { host.clone(): "keychain", "elsewhere.example.com": null },
    });
    fs::write(&file, auths.to_string()).unwrap();
    ask_for(&registry, &[("private/app", "nobody"), ("team/app", "team")]);
    let store = world.open();
    store.resolve(&registry.reference("team/app")).await.unwrap();
    store.resolve(&registry.reference("public/app")).await.unwrap();
    let error = store.resolve(&registry.reference("private/app")).await.unwrap_err();
    assert!(error.is_client_fault(), "{error}");
    for part in ["docker-credential-keychain", "private/app", &host] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // A registry that gives everyone a token, which then opens nothing.
    let refusals = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&refusals);
    registry.misbehave(move |request| {
        if request.path.starts_with("/token?") {
            return Some(Reply::new(200, json!({ "token": "anonymous" }).to_string()));
        }
        *counted.lock().unwrap() += 1;
        let challenge = format!("Bearer realm=\"http://{host}/token\"");
        Some(Reply::new(401, "").header("WWW-Authenticate", challenge))
    });
    let error = world.open().resolve(&registry.reference("private/app")).await.unwrap_err();
    assert!(error.to_string().contains("docker-credential-keychain"), "{error}");
    assert_eq!(
        *refusals.lock().unwrap(),
        3,
        "a HEAD without and one with the token, and a GET for the reason"
    );
}

#[tokio::test]
async fn a_login_that_is_refused_is_named_by_its_key_and_not_by_its_content() {
    let (registry, world, file) = start(&["team/app"]).await;
    let key = format!("{}/team", registry.address);
    fs::write(
        &file,
        json!({ "auths": { key.clone(): login("old"), registry.address.clone(): login("team") }})
            .to_string(),
    )
    .unwrap();
    ask_for(&registry, &[("team/app", "team")]);
    let error = world.open().resolve(&registry.reference("team/app")).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains(&format!("`{key}`")), "{text}");
    assert!(
        !text.contains("secret") && !text.contains(&STANDARD.encode("old:secret-of-old")),
        "{text}"
    );
    assert_eq!(
        shown(&registry.log(), "/"),
        [basic("old")],
        "the longest key, also when another would do"
    );
}
