//! What registries ask for, limit and say: credentials, patience, and the reason in their own
//! words.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use caddis_image::ImageError;
use serde_json::json;
use support::{
    World,
    image::{INDEX, Image, Layer, MANIFEST, digest},
    pull,
    registry::{FakeRegistry, Reply, Request},
};

const LOGIN: &str = "Basic dXNlcjpzZWNyZXQ=";

fn image() -> Image {
    Image::new(&[Layer::new().file("a", b"layer")])
}

async fn start() -> (FakeRegistry, World) {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &image());
    let world = World::trusting(&registry.address);
    (registry, world)
}

/// Gives the store a login for this registry: user and password, or an identity token.
fn log_in(world: &mut World, registry: &FakeRegistry, login: serde_json::Value) {
    let file: PathBuf = world.outside.path().join("neighbour/config.json");
    std::fs::write(&file, json!({"auths": {registry.address.clone(): login}}).to_string()).unwrap();
    world.config.registry_credentials = Some(file);
}

async fn refused(world: &World, registry: &FakeRegistry) -> (ImageError, String) {
    let error = pull(&world.open(), &registry.reference("app")).await.unwrap_err();
    let text = error.to_string();
    (error, text)
}

/// Answers requests for tokens with this, and wants the token `good` for all else.
fn with_token(
    registry: &FakeRegistry,
    challenge: &str,
    answer: impl Fn(&Request) -> Reply + Send + 'static,
) {
    let challenge = challenge.replace("HOST", &registry.address);
    registry.misbehave(move |request| {
        if request.path.starts_with("/token") {
            return Some(answer(request));
        }
        let allowed = request.header("authorization") == Some("Bearer good");
        (!allowed).then(|| Reply::new(401, "{}").header("WWW-Authenticate", challenge.clone()))
    });
}

#[tokio::test]
async fn tokens_are_had_from_odd_challenges_and_in_odd_answers() {
    for challenge in [
        "Bearer realm=\"http://HOST/token\",service=\"svc\",scope=\"repository:app:pull\"",
        "bearer realm=http://HOST/token,service=svc,error=\"invalid_token",
        "Bearer service=svc realm=http://HOST/token",
        "Negotiate, Basic realm=\"x\", Bearer realm=\"/token\",service=\"svc\"",
    ] {
        for answer in [
            json!({"token": "good", "expires_in": "300"}),
            json!({"token": null, "access_token": "good", "expires_in": 299.5, "issued_at": null}),
        ] {
            let (registry, world) = start().await;
            with_token(&registry, challenge, move |request| {
                assert!(request.path.contains("service=svc"), "{}", request.path);
                Reply::new(200, answer.to_string())
            });
            pull(&world.open(), &registry.reference("app")).await.unwrap();
            assert_eq!(registry.count("/token"), 1, "{challenge}");
        }
    }
    // A challenge of bytes that are no text loses nothing but them, and Basic is there where Bearer
    // leads nowhere.
    let (registry, mut world) = start().await;
    log_in(&mut world, &registry, json!({"auth": "dXNlcjpzZWNyZXQ="}));
    registry.misbehave(|request| {
        let challenge = "Bearer realm=\"http://[\", Basic realm=\"Gr\u{fc}n\"";
        let refused = || Reply::new(401, "").header("WWW-Authenticate", challenge);
        (request.header("authorization") != Some(LOGIN)).then(refused)
    });
    pull(&world.open(), &registry.reference("app")).await.unwrap();
}

#[tokio::test]
async fn a_token_server_that_redirects_is_followed_and_no_credentials_leave_it() {
    let (registry, mut world) = start().await;
    let elsewhere = FakeRegistry::start().await;
    world.config.insecure_registries.push(elsewhere.address.clone());
    log_in(&mut world, &registry, json!({"auth": "dXNlcjpzZWNyZXQ="}));
    let good = || Reply::new(200, json!({"token": "good"}).to_string());
    let challenge = "Bearer realm=\"http://HOST/token\",service=\"svc\"";
    // To itself: with the login.
    with_token(&registry, challenge, move |request| {
        match request.path.strip_prefix("/token/v2?") {
            Some(query) => {
                assert!(query.contains("scope="));
                assert_eq!(request.header("authorization"), Some(LOGIN));
                good()
            }
            None => Reply::new(308, "")
                .header("Location", request.path.replace("/token?", "/token/v2?")),
        }
    });
    pull(&world.open(), &registry.reference("app")).await.unwrap();
    // Elsewhere: without.
    let target = format!("http://{}/other", elsewhere.address);
    with_token(&registry, challenge, move |_| {
        Reply::new(302, "").header("Location", target.clone())
    });
    elsewhere.misbehave(move |request| {
        assert_eq!(request.header("authorization"), None);
        Some(good())
    });
    let fresh = World { config: world.config.clone(), ..World::new() };
    pull(&fresh.open(), &registry.reference("app:latest")).await.unwrap();
    assert_eq!(elsewhere.count("/other"), 1);
    // An identity token is in the body of the request, and goes nowhere else.
    log_in(&mut world, &registry, json!({"identitytoken": "secret"}));
    let other = Image::new(&[Layer::new().file("b", b"other")]);
    registry.offer("app", "latest", &other);
    let (error, text) = refused(&world, &registry).await;
    assert!(
        matches!(error, ImageError::Unauthorized { .. }) && text.contains("redirects"),
        "{text}"
    );
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(elsewhere.log().len(), 1);
}

#[tokio::test]
async fn what_a_token_server_says_reaches_the_user() {
    let challenge = "Bearer realm=\"http://HOST/token\"";
    for (reply, words) in [
        (
            Reply::new(401, r#"{"details":"incorrect username or password"}"#),
            "incorrect username or password",
        ),
        (
            Reply::new(403, r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#),
            "not for you",
        ),
        (
            Reply::new(400, r#"{"error":"invalid_scope","error_description":"no such scope"}"#),
            "no such scope",
        ),
        (Reply::new(404, "<html>gone</html>"), "web page"),
        (Reply::new(200, "<!doctype html>log in"), "web page"),
        (Reply::new(200, "{}"), "no token"),
        (Reply::new(200, r#"{"token":"a\nb"}"#), "no usable token"),
    ] {
        let (registry, world) = start().await;
        with_token(&registry, challenge, move |_| reply.clone());
        let (error, text) = refused(&world, &registry).await;
        assert!(matches!(error, ImageError::Unauthorized { .. }), "{text}");
        assert!(text.contains(words) && text.contains(&registry.address), "{text}");
    }
    for (challenge, words) in [
        ("Negotiate", "asks for Negotiate"),
        ("Bearer service=x", "no token server"),
        ("", "how to log in"),
    ] {
        let (registry, world) = start().await;
        with_token(&registry, challenge, |_| Reply::new(500, ""));
        let (error, text) = refused(&world, &registry).await;
        assert!(
            matches!(error, ImageError::Unauthorized { .. }) && text.contains(words),
            "{challenge}: {text}"
        );
    }
}

#[tokio::test]
async fn a_short_wait_that_a_registry_asks_for_is_kept_anywhere() {
    let past = "Sun, 06 Nov 1994 08:49:37 GMT";
    for part in ["/manifests/latest", "/blobs/", "/token"] {
        for (status, asked) in [(429, "0"), (503, past)] {
            let (registry, world) = start().await;
            let tries = AtomicUsize::new(0);
            let challenge = format!("Bearer realm=\"http://{}/token\"", registry.address);
            registry.misbehave(move |request| {
                if request.path.contains(part) && tries.fetch_add(1, Ordering::Relaxed) < 2 {
                    return Some(Reply::new(status, "{}").header("Retry-After", asked));
                }
                if request.path.starts_with("/token") {
                    return Some(Reply::new(200, r#"{"token":"good"}"#));
                }
                let refused = || Reply::new(401, "").header("WWW-Authenticate", challenge.clone());
                (part == "/token" && request.header("authorization").is_none()).then(refused)
            });
            pull(&world.open(), &registry.reference("app")).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_long_wait_is_not_kept_but_told() {
    let future = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(5))
        .strftime("%a, %d %b %Y %H:%M:%S GMT");
    for (status, asked, when) in [
        (429, "7200".to_owned(), "retry in 7200 s, at 2"),
        (503, future.to_string(), "retry in 1"),
        (429, String::new(), "later"),
    ] {
        for part in ["/manifests/", "/blobs/"] {
            let (registry, mut world) = start().await;
            world.config.transfer.attempts = 2;
            let asked = asked.clone();
            registry.misbehave(move |request| {
                let body = concat!(
                    r#"{"errors":[{"code":"TOOMANYREQUESTS","#,
                    r#""message":"You have reached your pull rate limit."}]}"#
                );
                let reply = Reply::new(status, body);
                let reply = if asked.is_empty() {
                    reply
                } else {
                    reply.header("Retry-After", asked.clone())
                };
                request.path.contains(part).then_some(reply)
            });
            let (error, text) = refused(&world, &registry).await;
            assert!(matches!(error, ImageError::RateLimited { .. }), "{text}");
            assert!(error.is_retryable() && !error.is_client_fault());
            for words in
                ["rate limit", "You have reached your pull rate limit.", when, &registry.address]
            {
                assert!(text.contains(words), "{words}: {text}");
            }
            assert!(registry.count(part) <= 3, "{} requests", registry.count(part));
        }
    }
    // One that is waited for counts against what an image may take in all.
    let (registry, mut world) = start().await;
    world.config.transfer.longest_wait = Duration::from_secs(3600);
    world.config.transfer.resolve_timeout = Duration::from_millis(200);
    registry.misbehave(|_| Some(Reply::new(429, "").header("Retry-After", "600")));
    let (error, text) = refused(&world, &registry).await;
    assert!(
        matches!(error, ImageError::Unreachable { .. }) && text.contains("timed out"),
        "{text}"
    );
}

fn pulls(registry: &FakeRegistry) -> usize {
    registry
        .log()
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("/manifests/"))
        .count()
}

#[tokio::test]
async fn twenty_machines_of_an_image_that_is_there_cost_no_pull() {
    let (registry, world) = start().await;
    let entry = json!({"mediaType": MANIFEST, "digest": image().digest(),
        "size": image().manifest_bytes().len(),
        "platform": {"os": "linux", "architecture": "amd64"}});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
        .to_string()
        .into_bytes();
    registry.offer_manifest("app", "index", INDEX, index);
    let store = world.open();
    for tag in ["latest", "index"] {
        let reference = registry.reference(&format!("app:{tag}"));
        pull(&store, &reference).await.unwrap();
        let (before, all) = (pulls(&registry), registry.log().len());
        for _ in 0..20 {
            pull(&store, &reference).await.unwrap();
        }
        assert_eq!(
            (pulls(&registry) - before, registry.log().len() - all),
            (0, 20),
            "{tag}: a HEAD each"
        );
    }
    // A tag that moves is noticed, and fetched once.
    let moved = Image::new(&[Layer::new().file("moved", b"")]);
    registry.offer("app", "latest", &moved);
    let before = pulls(&registry);
    for _ in 0..2 {
        let found = store.resolve(&registry.reference("app")).await.unwrap();
        assert_eq!(found.reference.digest, Some(moved.digest()));
    }
    assert_eq!(pulls(&registry) - before, 1);
}

#[tokio::test]
async fn registries_that_know_no_head_are_asked_as_ever() {
    for reply in [
        Reply::new(405, ""),
        Reply::new(404, ""),
        Reply::new(200, ""),
        Reply::new(200, "").header("Docker-Content-Digest", "nonsense"),
        Reply::new(200, "").header("Docker-Content-Digest", digest(b"another")),
        Reply::new(429, ""),
        Reply::nothing(),
        Reply::new(502, ""),
    ] {
        let (registry, world) = start().await;
        registry.misbehave(move |request| (request.method == "HEAD").then(|| reply.clone()));
        let store = world.open();
        for _ in 0..2 {
            pull(&store, &registry.reference("app")).await.unwrap();
        }
        assert_eq!(pulls(&registry), 2, "{:?}", registry.log());
    }
}

#[tokio::test]
async fn what_a_registry_says_reaches_the_user() {
    let said =
        r#"{"errors":[{"code":"X","message":"ask \u001b[31mMs Smith"},{"message":"or nobody"}]}"#;
    for status in [400, 401, 403, 404, 429, 451, 500] {
        for part in ["/manifests/", "/blobs/"] {
            let (registry, mut world) = start().await;
            world.config.transfer.attempts = 1;
            registry.misbehave(move |request| {
                request.path.contains(part).then(|| Reply::new(status, said))
            });
            let (error, text) = refused(&world, &registry).await;
            assert!(
                text.contains(&format!("HTTP {status}, \"ask  [31mMs Smith; or nobody\"")),
                "{text}"
            );
            let fault = matches!(status, 401 | 403 | 404);
            assert_eq!((error.is_client_fault(), error.is_retryable()), (fault, !fault), "{text}");
        }
    }
    // An answer without end, or that never comes, does not hold up the error.
    let (registry, mut world) = start().await;
    world.config.transfer.attempts = 1;
    for reply in [
        Reply::new(400, vec![b'x'; 5 << 20]),
        Reply::new(400, "{\"errors\":[").without_length().cut_after(5),
    ] {
        registry.misbehave(move |_| Some(reply.clone()));
        let (_, text) = refused(&world, &registry).await;
        assert!(text.contains("HTTP 400") && text.len() < 500, "{text}");
    }
}

#[tokio::test]
async fn a_web_page_is_called_that() {
    let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
    for status in [200, 404, 403, 500] {
        for part in ["/manifests/", "/blobs/"] {
            for kind in ["text/html; charset=utf-8", "application/octet-stream"] {
                let (registry, mut world) = start().await;
                world.config.transfer.attempts = 1;
                registry.misbehave(move |request| {
                    let reply = Reply::new(status, page).header("Content-Type", kind);
                    request.path.contains(part).then_some(reply)
                });
                let (_, text) = refused(&world, &registry).await;
                assert!(text.contains("web page (HTML)"), "{status} {part} {kind}: {text}");
            }
        }
    }
    let (registry, world) = start().await;
    let layer = image().layer_digest(0);
    registry.misbehave(move |request| {
        request
            .path
            .ends_with(&layer)
            .then(|| Reply::new(200, page).header("Content-Type", "text/html"))
    });
    let (_, text) = refused(&world, &registry).await;
    assert!(text.contains("web page (HTML)"), "{text}");
}

#[tokio::test]
async fn a_missing_build_of_an_index_is_said_to_be_missing() {
    let (registry, world) = start().await;
    let gone = digest(b"gone");
    let entry = json!({"mediaType": MANIFEST, "digest": gone, "size": 4,
        "platform": {"os": "linux", "architecture": "amd64"}});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
        .to_string()
        .into_bytes();
    registry.offer_manifest("app", "latest", INDEX, index);
    let (error, text) = refused(&world, &registry).await;
    assert!(matches!(error, ImageError::NotFound { .. }) && error.is_client_fault(), "{text}");
    for words in ["app:latest", "is an index", &gone, "push the image again"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[tokio::test]
async fn references_with_a_digest_are_asked_and_named_by_it() {
    let (registry, world) = start().await;
    let store = world.open();
    for tag in ["", ":latest", ":of-no-matter"] {
        let found = store
            .resolve(&registry.reference(&format!("app{tag}@{}", image().digest())))
            .await
            .unwrap();
        assert_eq!(found.reference.digest, Some(image().digest()));
        assert_eq!(found.reference.tag.as_deref(), tag.strip_prefix(':'));
    }
    assert!(registry.log().iter().all(|request| !request.path.contains("/manifests/latest")));
    let missing = digest(b"missing");
    for tag in ["", ":latest"] {
        let error = store
            .resolve(&registry.reference(&format!("app{tag}@{missing}")))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("`{}/app@{missing}`", registry.address)), "{error}");
    }
}
