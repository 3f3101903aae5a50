//! Registries that cut connections or fall silent, for ever: each pull ends, and says which
//! registry it was.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::time::Duration;

use caddis_image::ImageError;
use serde_json::json;
use support::{
    World,
    ext4::Ext4,
    image::{Image, Layer},
    pull,
    registry::{FakeRegistry, Reply, ranged},
};

/// With so many bytes that don't compress.
fn image(bytes: usize) -> Image {
    let mut seed = 1u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(bytes)
    .collect();
    Image::new(&[Layer::new().file("data", &noise)])
}

async fn start(image: &Image) -> (FakeRegistry, World) {
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", image);
    let world = World::trusting(&registry.address);
    (registry, world)
}

/// Has all transfers of the layer break off after so many bytes, each going on where the one before
/// broke.
fn cut_layers(registry: &FakeRegistry, image: &Image, bytes: usize) {
    let (blob, digest) = (image.layer_blob(0).to_vec(), image.layer_digest(0));
    registry.misbehave(move |request| {
        let start = request.range_start().unwrap_or(0);
        let reply = if start == 0 { Reply::new(200, blob.clone()) } else { ranged(&blob, start) };
        request.path.ends_with(&digest).then(|| reply.cut_after(bytes))
    });
}

#[track_caller]
fn names_it(error: &ImageError, registry: &FakeRegistry) {
    assert!(matches!(error, ImageError::Unreachable { .. }) && error.is_retryable(), "{error}");
    assert!(error.to_string().contains(&registry.address), "{error}");
}

#[tokio::test]
async fn a_registry_that_cuts_every_connection_is_given_up_wherever_it_cuts() {
    let image = image(1000);
    for part in ["/manifests/", "/blobs/", "/token"] {
        for reply in
            [Reply::nothing(), Reply::new(200, "{\"half\":").cut_after(3), Reply::new(500, "")]
        {
            let (registry, world) = start(&image).await;
            let challenge = format!("Bearer realm=\"http://{}/token\"", registry.address);
            registry.misbehave(move |request| {
                if request.path.contains(part) {
                    return Some(reply.clone());
                }
                let refused = || Reply::new(401, "").header("WWW-Authenticate", challenge.clone());
                (part == "/token").then(refused)
            });
            let store = world.open();
            let error = pull(&store, &registry.reference("app")).await.unwrap_err();
            names_it(&error, &registry);
            assert!(registry.count(part) <= 6, "{part}: {} tries", registry.count(part));
            world.assert_nothing_came_of_it(&store).await;
        }
    }
}

#[tokio::test]
async fn a_registry_that_cuts_after_a_little_progress_each_time_is_given_up() {
    let image = image(2_000_000);
    let (registry, world) = start(&image).await;
    for bytes in [100, 40_000] {
        cut_layers(&registry, &image, bytes);
        let before = registry.log().len();
        let store = world.open();
        let error = pull(&store, &registry.reference("app")).await.unwrap_err();
        names_it(&error, &registry);
        assert!(error.to_string().contains("times"), "{error}");
        assert!(registry.log().len() - before < 12, "{} requests", registry.log().len() - before);
        world.assert_nothing_came_of_it(&store).await;
    }
    // A line that breaks now and then gets there.
    cut_layers(&registry, &image, 290_000);
    let disk = pull(&world.open(), &registry.reference("app")).await.unwrap();
    assert_eq!(Ext4::open(&disk.path).field("/data", "Size"), "2000000");
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_given_up_though_no_single_wait_is_over() {
    let image = image(100_000);
    let (registry, mut world) = start(&image).await;
    world.config.transfer.idle_timeout = Duration::from_secs(3600);
    world.config.transfer.resolve_timeout = Duration::from_millis(300);
    world.config.transfer.pull_timeout = Duration::from_millis(300);
    let digest = image.layer_digest(0);
    for part in [
        "/manifests/".to_owned(),
        image.manifest["config"]["digest"].as_str().unwrap().to_owned(),
        digest,
    ] {
        for bytes in [0, 10] {
            let (part, body) = (part.clone(), json!({ "long": "x".repeat(100_000) }).to_string());
            registry.misbehave(move |request| {
                request
                    .path
                    .contains(&part)
                    .then(|| Reply::new(200, body.clone()).without_length().hang_after(bytes))
            });
            let store = world.open();
            let error = pull(&store, &registry.reference("app")).await.unwrap_err();
            names_it(&error, &registry);
            world.assert_nothing_came_of_it(&store).await;
        }
    }
}
