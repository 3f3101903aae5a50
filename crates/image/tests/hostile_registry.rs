//! Registries that lie, break off, send us elsewhere or change their mind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use caddis_image::ImageError;
use serde_json::json;
use support::{
    World,
    ext4::Ext4,
    image::{CONFIG, INDEX, Image, Layer, MANIFEST, digest},
    pull,
    registry::{FakeRegistry, Reply, ranged},
};

/// About 300 KB that doesn't compress, so that transfers can be cut in the middle.
fn image() -> Image {
    let mut seed = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(300_000)
    .collect();
    Image::new(&[Layer::new().file("data", &noise), Layer::new().file("second", b"layer")])
}

async fn start(image: &Image) -> (FakeRegistry, World) {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", image);
    let world = World::trusting(&registry.address);
    (registry, world)
}

async fn refused(registry: &FakeRegistry, world: &World) -> ImageError {
    let store = world.open();
    let error = pull(&store, &registry.reference("app")).await.unwrap_err();
    world.assert_nothing_came_of_it(&store).await;
    error
}

#[tokio::test]
async fn a_blob_with_another_digest_is_refused() {
    let image = image();
    let (registry, world) = start(&image).await;
    let mut bytes = image.layer_blob(0).to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    registry.replace_blob(&image.layer_digest(0), bytes);
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused() {
    let image = image();
    let (registry, world) = start(&image).await;
    let blob = image.layer_blob(0).to_vec();
    for bytes in [blob[..blob.len() - 1].to_vec(), [blob.clone(), vec![0]].concat(), Vec::new()] {
        registry.replace_blob(&image.layer_digest(0), bytes);
        let error = refused(&registry, &world).await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_manifest_or_config_with_another_digest_is_refused() {
    let image = image();
    let (registry, world) = start(&image).await;
    let config = image.manifest["config"]["digest"].as_str().unwrap().to_owned();
    let mut bytes = image.blobs[&config].clone();
    bytes[5] ^= 1;
    registry.replace_blob(&config, bytes);
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");

    let other = Image::new(&[Layer::new().file("other", b"")]).manifest_bytes();
    registry.misbehave(move |request| {
        request.path.contains("/manifests/").then(|| Reply::new(200, other.clone()))
    });
    let pinned = registry.reference(&format!("app@{}", image.digest()));
    let error = world.open().resolve(&pinned).await.unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    // Nor may a registry contradict itself about a tag.
    let bytes = image.manifest_bytes();
    registry.misbehave(move |request| {
        let reply = Reply::new(200, bytes.clone())
            .header("Docker-Content-Digest", digest(b"something else"));
        request.path.contains("/manifests/").then_some(reply)
    });
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
}

#[tokio::test]
async fn ten_thousand_layers_are_refused_before_any_is_fetched() {
    let mut image = image();
    let layer = image.manifest["layers"][0].clone();
    image.manifest["layers"] = vec![layer; 10_000].into();
    let (registry, world) = start(&image).await;
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    assert!(error.to_string().contains("10000 layers"), "{error}");
    assert_eq!(registry.count("/blobs/"), 0);
}

#[tokio::test]
async fn declared_sizes_beyond_the_limits_are_refused_before_any_is_fetched() {
    for (pointer, size) in
        [("/layers/0/size", 1u64 << 40), ("/layers/0/size", u64::MAX), ("/config/size", 1 << 30)]
    {
        let mut image = image();
        *image.manifest.pointer_mut(pointer).unwrap() = size.into();
        let (registry, world) = start(&image).await;
        let error = refused(&registry, &world).await;
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert_eq!(registry.count("/blobs/"), 0);
    }
}

#[tokio::test]
async fn manifests_beyond_the_limit_are_refused_declared_or_not() {
    let (registry, world) = start(&image()).await;
    let huge = vec![b' '; (4 << 20) + 1];
    registry.offer_manifest("app", "latest", MANIFEST, huge.clone());
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    // Chunked: its length shows only as it comes.
    registry.misbehave(move |request| {
        let mut body = format!("{:x}\r\n", huge.len()).into_bytes();
        body.extend_from_slice(&huge);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        let reply = Reply::new(200, body).without_length().header("Transfer-Encoding", "chunked");
        request.path.contains("/manifests/").then_some(reply)
    });
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn manifests_that_make_no_sense_are_refused() {
    let image = image();
    let (registry, world) = start(&image).await;
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = image.manifest.clone();
        change(&mut manifest);
        manifest.to_string().into_bytes()
    };
    for bytes in [
        b"not json".to_vec(),
        b"[".repeat(100_000),
        b"{}".to_vec(),
        with(&|manifest| manifest["manifests"] = json!([])),
        with(&|manifest| manifest["schemaVersion"] = 1.into()),
        with(&|manifest| manifest["layers"][0]["digest"] = "sha256:../../../etc/passwd".into()),
        with(&|manifest| {
            manifest["layers"][0]["digest"] = "md5:d41d8cd98f00b204e9800998ecf8427e".into()
        }),
        with(&|manifest| manifest["layers"][0]["size"] = (-1).into()),
        with(&|manifest| manifest["layers"][0]["mediaType"] = "application/x-evil".into()),
        with(&|manifest| {
            manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into()
        }),
        with(&|manifest| drop(manifest["layers"].as_array_mut().unwrap().pop())),
    ] {
        registry.offer_manifest("app", "latest", MANIFEST, bytes.clone());
        let error = refused(&registry, &world).await;
        let kind = matches!(error, ImageError::Corrupt { .. } | ImageError::Unsupported { .. });
        assert!(
            kind && error.is_client_fault(),
            "{}: {error}",
            String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
        );
    }
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index_and_its_absence_is_said() {
    let image = image();
    let (registry, world) = start(&image).await;
    let entry = |digest: String, os: &str, architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": digest, "size": image.manifest_bytes().len(),
               "platform": {"os": os, "architecture": architecture}})
    };
    let arm = entry(digest(b"arm"), "linux", "arm64");
    let windows = entry(digest(b"windows"), "windows", "amd64");
    let attestation = entry(digest(b"attestation"), "unknown", "unknown");
    let ours = entry(image.digest().to_string(), "linux", "amd64");
    let index = |entries| {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries})
            .to_string()
            .into_bytes()
    };

    registry.offer_manifest("app", "latest", INDEX, index(json!([arm, windows, attestation])));
    let error = refused(&registry, &world).await;
    assert!(
        matches!(error, ImageError::Unsupported { .. })
            && error.to_string().contains("linux/arm64"),
        "{error}"
    );

    registry.offer_manifest(
        "app",
        "latest",
        INDEX,
        index(json!([arm, windows, ours, attestation])),
    );
    let store = world.open();
    let resolved = store.resolve(&registry.reference("app")).await.unwrap();
    assert_eq!(resolved.reference.digest, Some(image.digest()));

    // An index that holds itself has no digest, but a chain of them may be long.
    let mut inner = index(json!([ours]));
    for _ in 0..4 {
        registry.offer_manifest("app", "latest", INDEX, inner.clone());
        let entry = json!({"mediaType": MANIFEST, "digest": digest(&inner), "size": inner.len()});
        inner = index(json!([entry]));
    }
    registry.offer_manifest("app", "latest", INDEX, inner);
    let error = store.resolve(&registry.reference("app")).await.unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
}

#[tokio::test]
async fn missing_and_forbidden_images_are_the_clients_fault_at_once() {
    let (registry, world) = start(&image()).await;
    let store = world.open();
    let error = store.resolve(&registry.reference("app:nope")).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }) && error.is_client_fault(), "{error}");
    for status in [401, 403] {
        registry.misbehave(move |_| Some(Reply::new(status, "{}")));
        let error = store.resolve(&registry.reference("app")).await.unwrap_err();
        assert!(
            matches!(error, ImageError::Unauthorized { .. }) && error.is_client_fault(),
            "{error}"
        );
    }
    registry.misbehave(|_| Some(Reply::new(500, "{}")));
    let before = registry.log().len();
    let error = store.resolve(&registry.reference("app")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }) && !error.is_client_fault(), "{error}");
    assert_eq!(registry.log().len() - before, 6, "tried again after the HEAD, but not for ever");
    world.assert_nothing_came_of_it(&store).await;
}

#[tokio::test]
async fn a_connection_cut_half_way_is_resumed_where_it_broke() {
    let image = image();
    let (registry, world) = start(&image).await;
    let (blob, path) = (image.layer_blob(0).to_vec(), format!("/blobs/{}", image.layer_digest(0)));
    let cuts = AtomicUsize::new(0);
    let wanted = path.clone();
    registry.misbehave(move |request| {
        if !request.path.ends_with(&wanted) || cuts.fetch_add(1, Ordering::Relaxed) >= 2 {
            return None;
        }
        let start = request.range_start().unwrap_or(0);
        let reply = if start == 0 { Reply::new(200, blob.clone()) } else { ranged(&blob, start) };
        Some(reply.cut_after(100_000))
    });
    let disk = pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert_eq!(Ext4::open(&disk.path).field("/data", "Size"), "300000");
    let starts: Vec<Option<usize>> = registry
        .log()
        .iter()
        .filter(|request| request.path.ends_with(&path))
        .map(|r| r.range_start())
        .collect();
    assert_eq!(starts.len(), 3);
    assert_eq!(starts[0], None);
    assert!(starts[1] > Some(0) && starts[2] > starts[1], "{starts:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_started_over() {
    let image = image();
    let (registry, world) = start(&image).await;
    let (blob, path) = (image.layer_blob(0).to_vec(), format!("/blobs/{}", image.layer_digest(0)));
    let tries = AtomicUsize::new(0);
    registry.misbehave(move |request| {
        if !request.path.ends_with(&path) {
            return None;
        }
        let reply = Reply::new(200, blob.clone());
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Some(reply.cut_after(150_000)),
            1 => Some(Reply::new(416, "")),
            2 => Some(reply.cut_after(200_000)),
            // Not what was asked for.
            3 => Some(ranged(&blob, 10)),
            _ => Some(reply),
        }
    });
    let disk = pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert_eq!(Ext4::open(&disk.path).field("/data", "Size"), "300000");
}

#[tokio::test]
async fn a_blob_that_never_gets_past_a_point_is_given_up() {
    let image = image();
    let (registry, world) = start(&image).await;
    let (blob, path) = (image.layer_blob(0).to_vec(), format!("/blobs/{}", image.layer_digest(0)));
    let counted = path.clone();
    registry.misbehave(move |request| {
        let reply = Reply::new(200, blob.clone()).cut_after(150_000);
        request.path.ends_with(&path).then_some(reply)
    });
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Unreachable { .. }) && error.is_retryable(), "{error}");
    assert!(registry.count(&counted) <= 10, "{} tries", registry.count(&counted));
}

#[tokio::test]
async fn a_tag_that_moves_after_resolving_changes_nothing() {
    let image = image();
    let (registry, world) = start(&image).await;
    let store = world.open();
    let resolved = store.resolve(&registry.reference("app")).await.unwrap();
    let moved = Image::new(&[Layer::new().file("moved", b"")]);
    registry.offer("app", "latest", &moved);
    let disk = store.root_disk(&resolved, &support::progress()).await.unwrap();
    assert!(Ext4::open(&disk.path).exists("/second"));
    let now = store.resolve(&registry.reference("app")).await.unwrap();
    assert_eq!(now.reference.digest, Some(moved.digest()));
    let disk = store.root_disk(&now, &support::progress()).await.unwrap();
    assert!(Ext4::open(&disk.path).exists("/moved"));
    let images = store.list().await.unwrap();
    let named = images.iter().find(|listed| !listed.names.is_empty()).unwrap();
    assert_eq!((images.len(), &named.digest), (2, &moved.digest()), "the name goes with the tag");
}

#[tokio::test]
async fn unlisted_registries_on_this_host_are_never_contacted() {
    let image = image();
    let (registry, _) = start(&image).await;
    let world = World::new();
    let store = world.open();
    let port = registry.address.split_once(':').unwrap().1.to_owned();
    for host in [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "[::1]",
        "127.1",
        "[::ffff:127.0.0.1]",
        "169.254.169.254",
    ] {
        let error = store.resolve(&format!("{host}:{port}/app")).await.unwrap_err();
        assert!(
            matches!(error, ImageError::Refused { .. }) && error.is_client_fault(),
            "{host}: {error}"
        );
        assert!(error.to_string().contains("--insecure-registry"), "{error}");
    }
    assert_eq!(registry.log().len(), 0);
}

#[tokio::test]
async fn redirects_are_followed_only_to_places_that_are_allowed() {
    let image = image();
    let (registry, mut world) = start(&image).await;
    let elsewhere = FakeRegistry::start().await;
    elsewhere.offer("app", "latest", &image);
    let target = format!("http://{}", elsewhere.address);
    registry.misbehave(move |request| {
        let reply = Reply::new(307, "").header("Location", format!("{target}{}", request.path));
        request.path.contains("/blobs/").then_some(reply)
    });
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Refused { .. }), "{error}");
    assert_eq!(elsewhere.log().len(), 0);

    world.config.insecure_registries.push(elsewhere.address.clone());
    pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert!(elsewhere.log().len() >= 3);

    for location in
        ["https://127.0.0.1/x", "http://localhost/x", "file:///etc/passwd", "http://[::1]:80/", ""]
    {
        let (registry, world) = start(&image).await;
        registry.misbehave(move |request| {
            request
                .path
                .contains("/manifests/")
                .then(|| Reply::new(302, "").header("Location", location))
        });
        let error = refused(&registry, &world).await;
        let kind = matches!(error, ImageError::Refused { .. } | ImageError::Unreachable { .. });
        assert!(kind, "{location}: {error}");
    }
}

#[tokio::test]
async fn a_redirect_that_leads_round_in_circles_ends() {
    let (registry, world) = start(&image()).await;
    registry
        .misbehave(|request| Some(Reply::new(302, "").header("Location", request.path.clone())));
    let error = refused(&registry, &world).await;
    assert!(error.to_string().contains("redirects"), "{error}");
    assert!(registry.log().len() <= 6);
}

#[tokio::test]
async fn credentials_go_to_the_registry_and_nowhere_else() {
    let image = image();
    let (registry, mut world) = start(&image).await;
    let elsewhere = FakeRegistry::start().await;
    elsewhere.offer("app", "latest", &image);
    world.config.insecure_registries.push(elsewhere.address.clone());
    let file = world.outside.path().join("neighbour/config.json");
    let auths = json!({"auths": {registry.address.clone(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    world.config.registry_credentials = Some(file);
    let target = format!("http://{}", elsewhere.address);
    registry.misbehave(move |request| {
        if request.header("authorization") != Some("Basic dXNlcjpzZWNyZXQ=") {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"here\""));
        }
        let reply = Reply::new(307, "").header("Location", format!("{target}{}", request.path));
        request.path.contains("/blobs/").then_some(reply)
    });
    // The other place would like to have them too.
    elsewhere.misbehave(|request| {
        assert_eq!(request.header("authorization"), None);
        None
    });
    pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert!(elsewhere.log().iter().all(|request| request.header("authorization").is_none()));

    elsewhere.misbehave(|_| {
        Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"give\""))
    });
    let other = Image::new(&[Layer::new().file("other", b"")]);
    registry.offer("app", "other", &other);
    elsewhere.offer("app", "other", &other);
    let error = pull(&world.open(), &registry.reference("app:other")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(elsewhere.log().iter().all(|request| request.header("authorization").is_none()));
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[tokio::test]
async fn bearer_tokens_are_fetched_from_the_realm_and_kept_while_they_last() {
    let image = image();
    let (registry, mut world) = start(&image).await;
    let file = world.outside.path().join("neighbour/config.json");
    let auths = json!({"auths": {registry.address.clone(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(&file, auths.to_string()).unwrap();
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"svc\",scope=\"ignored\"",
        registry.address
    );
    registry.misbehave(move |request| {
        if request.path.starts_with("/token?") {
            assert!(
                request.path.contains("service=svc")
                    && request.path.contains("scope=repository%3Aapp%3Apull")
            );
            let token = match request.header("authorization") {
                Some("Basic dXNlcjpzZWNyZXQ=") => json!({"token": "good", "expires_in": 300}),
                None => json!({"access_token": "anonymous"}),
                Some(other) => panic!("{other}"),
            };
            return Some(Reply::new(200, token.to_string()));
        }
        let allowed = request.header("authorization") == Some("Bearer good");
        (!allowed).then(|| Reply::new(401, "").header("WWW-Authenticate", challenge.clone()))
    });
    let error = world.open().resolve(&registry.reference("app")).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert_eq!(registry.count("/token?"), 1, "an anonymous token is tried");

    world.config.registry_credentials = Some(file);
    pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert_eq!(registry.count("/token?"), 2, "one token serves the whole pull");
}

#[tokio::test]
async fn a_realm_on_this_host_is_not_asked_unless_listed() {
    let (registry, world) = start(&image()).await;
    let victim = FakeRegistry::start().await;
    let realm = format!("Bearer realm=\"http://{}/token\"", victim.address);
    registry
        .misbehave(move |_| Some(Reply::new(401, "").header("WWW-Authenticate", realm.clone())));
    let error = refused(&registry, &world).await;
    assert!(matches!(error, ImageError::Refused { .. }), "{error}");
    assert_eq!(victim.log().len(), 0);
}

#[tokio::test]
async fn a_damaged_layer_in_the_store_is_fetched_again() {
    let image = image();
    let (registry, world) = start(&image).await;
    let store = world.open();
    pull(&store, &registry.reference("app")).await.unwrap();
    store.remove(image.digest().as_str(), &Default::default()).await.unwrap();
    // As after a power cut: the right size, the wrong content.
    let name = image.layer_digest(0).trim_start_matches("sha256:").to_owned();
    std::fs::write(world.store_path("blobs").join(name), vec![0; image.layer_blob(0).len()])
        .unwrap();
    let disk = pull(&store, &registry.reference("app")).await.unwrap();
    assert_eq!(Ext4::open(&disk.path).field("/data", "Size"), "300000");
}

#[tokio::test]
async fn layers_shared_between_images_are_fetched_once() {
    let base = Layer::new().file("base", &vec![3; 10_000]);
    let first = Image::new(&[base.clone(), Layer::new().file("first", b"")]);
    let second = Image::new(&[base, Layer::new().file("second", b"")]);
    let (registry, world) = start(&first).await;
    registry.offer("other", "latest", &second);
    let store = world.open();
    let (one, two) = (registry.reference("app"), registry.reference("other"));
    let (one, two) = tokio::join!(pull(&store, &one), pull(&store, &two));
    assert!(Ext4::open(&one.unwrap().path).exists("/first"));
    assert!(Ext4::open(&two.unwrap().path).exists("/second"));
    assert_eq!(registry.count(&first.layer_digest(0)), 1);
}

#[tokio::test]
async fn a_config_for_another_platform_is_refused() {
    let image = image();
    let (registry, world) = start(&image).await;
    let arm = json!({"architecture": "arm64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []}})
    .to_string();
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": {"mediaType": CONFIG, "digest": digest(arm.as_bytes()), "size": arm.len()}});
    registry.replace_blob(&digest(arm.as_bytes()), arm.into_bytes());
    registry.offer_manifest("app", "latest", MANIFEST, manifest.to_string().into_bytes());
    let error = refused(&registry, &world).await;
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[tokio::test]
async fn callers_of_one_image_share_one_build() {
    let image = image();
    let (registry, world) = start(&image).await;
    let store = world.open();
    let resolved = Arc::new(store.resolve(&registry.reference("app")).await.unwrap());
    let callers = (0..8).map(|_| {
        let (store, resolved) = (store.clone(), Arc::clone(&resolved));
        tokio::spawn(async move { store.root_disk(&resolved, &support::progress()).await.unwrap() })
    });
    let disks: Vec<_> =
        futures::future::join_all(callers).await.into_iter().map(Result::unwrap).collect();
    assert!(disks.iter().all(|disk| disk == &disks[0]));
    assert_eq!(registry.count(&image.layer_digest(0)), 1);
    assert_eq!(store.ready_root_disk(&image.digest()), Some(disks[0].clone()));
    world.assert_no_work_left();
}
