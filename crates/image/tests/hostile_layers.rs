//! Layers that try to get out of their directory, or to take more than is theirs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use caddis_image::{ImageError, ImageStore};
use support::{
    World,
    ext4::Ext4,
    image::{Image, Layer, gzip, header, zstd},
    pull,
    registry::FakeRegistry,
};
use tar::EntryType;

/// Pulls an image that is expected to be refused.
async fn refused_in(world: &mut World, image: &Image) -> ImageError {
    let registry = FakeRegistry::start().await;
    registry.offer("evil", "latest", image);
    world.config.insecure_registries = vec![registry.address.clone()];
    let store = world.open();
    let error = pull(&store, &registry.reference("evil")).await.unwrap_err();
    world.assert_nothing_came_of_it(&store).await;
    // Asking again gives no half-made disk either.
    let again = pull(&store, &registry.reference("evil")).await.unwrap_err();
    assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&again), "{again}");
    error
}

async fn refused(layers: &[Layer]) -> ImageError {
    refused_in(&mut World::new(), &Image::new(layers)).await
}

/// Pulls an image that is expected to work, but to stay inside.
async fn contained(world: &mut World, layers: &[Layer]) -> (ImageStore, Ext4) {
    let registry = FakeRegistry::start().await;
    registry.offer("sly", "latest", &Image::new(layers));
    world.config.insecure_registries = vec![registry.address.clone()];
    let store = world.open();
    let disk = pull(&store, &registry.reference("sly")).await.unwrap();
    world.assert_untouched();
    (store, Ext4::open(&disk.path))
}

#[tokio::test]
async fn paths_that_lead_outside_with_dot_dot_are_refused() {
    for path in
        ["../evil", "../../../../../../evil", "a/../../evil", "./../evil", "..", "a/../..", "a/.."]
    {
        let error = refused(&[Layer::new().file(path, b"x")]).await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{path}: {error}");
        assert!(error.is_client_fault());
    }
    let error =
        refused(&[Layer::new().pax(&[("path", b"../../evil")]).file("innocent", b"x")]).await;
    assert!(error.to_string().contains(".."), "{error}");
    let error = refused(&[Layer::new().directory("../neighbour/")]).await;
    assert!(error.to_string().contains(".."), "{error}");
}

#[tokio::test]
async fn absolute_paths_stay_inside() {
    let mut world = World::new();
    let canary = world.outside.path().join("canary");
    let neighbour = world.outside.path().join("neighbour/evil");
    let (_store, disk) = contained(
        &mut world,
        &[Layer::new()
            .file(canary.to_str().unwrap(), b"evil")
            .file(neighbour.to_str().unwrap(), b"evil")],
    )
    .await;
    assert_eq!(disk.read(canary.to_str().unwrap()), b"evil");
    assert_eq!(disk.read(neighbour.to_str().unwrap()), b"evil");
}

#[tokio::test]
async fn symlinks_in_parents_lead_to_places_inside() {
    let mut world = World::new();
    let outside = world.outside.path().to_owned();
    let outside = outside.to_str().unwrap();
    let (_store, disk) = contained(
        &mut world,
        &[
            // What the links point at exists outside; inside it must too, for there to be something
            // to write to.
            Layer::new()
                .directory(&format!("{outside}/neighbour/"))
                .symlink("absolute", &format!("{outside}/neighbour"))
                .symlink("climbing", &format!("../../../../../../../../..{outside}/neighbour"))
                .symlink("chain", "climbing/../neighbour")
                .file("absolute/one", b"1")
                .file("climbing/two", b"2")
                .file("chain/three", b"3"),
            Layer::new().file("absolute/four", b"4").directory("climbing/five/"),
        ],
    )
    .await;
    for name in ["one", "two", "three", "four", "five"] {
        assert!(disk.exists(&format!("{outside}/neighbour/{name}")), "{name}");
    }
}

#[tokio::test]
async fn symlinks_to_nothing_inside_are_refused_even_if_it_exists_outside() {
    let world = World::new();
    let outside = world.outside.path().to_str().unwrap().to_owned();
    for target in
        [format!("{outside}/neighbour"), "../".repeat(12) + &outside, "/proc/self/cwd".to_owned()]
    {
        let error =
            refused(&[Layer::new().symlink("way-out", &target).file("way-out/evil", b"x")]).await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{target}: {error}");
    }
    assert_eq!(support::names(&world.outside.path().join("neighbour")), [""; 0]);
}

#[tokio::test]
async fn a_file_is_never_written_through_a_symlink_of_its_own_name() {
    let mut world = World::new();
    let canary = world.outside.path().join("canary").to_str().unwrap().to_owned();
    let (_store, disk) = contained(
        &mut world,
        &[Layer::new().symlink("file", &canary).file("file", b"evil").symlink("other", &canary)],
    )
    .await;
    assert_eq!(disk.field("/file", "Type"), "regular");
    assert_eq!(disk.field("/other", "Type"), "symlink");
}

#[tokio::test]
async fn links_that_loop_are_refused() {
    let error =
        refused(&[Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", b"x")]).await;
    assert!(error.to_string().contains("symbolic links"), "{error}");
}

#[tokio::test]
async fn hard_links_to_the_outside_are_refused() {
    let world = World::new();
    let canary = world.outside.path().join("canary").to_str().unwrap().to_owned();
    for target in [canary.as_str(), "../canary", "../../../../canary", "missing", "/", "."] {
        let error =
            refused(&[Layer::new().hardlink("evil", target).file("evil", b"overwritten")]).await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{target}: {error}");
    }
    let outside = world.outside.path().to_str().unwrap();
    let error =
        refused(&[Layer::new().symlink("out", outside).hardlink("evil", "out/canary")]).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert_eq!(std::fs::read(world.outside.path().join("canary")).unwrap(), b"alive");
}

#[tokio::test]
async fn a_hard_link_to_a_symlink_links_the_symlink() {
    let mut world = World::new();
    let canary = world.outside.path().join("canary").to_str().unwrap().to_owned();
    let (_store, disk) = contained(
        &mut world,
        &[Layer::new().symlink("link", &canary).hardlink("second", "link").file("second", b"x")],
    )
    .await;
    assert_eq!(disk.field("/second", "Type"), "regular");
}

#[tokio::test]
async fn whiteouts_remove_nothing_outside() {
    let mut world = World::new();
    let outside = world.outside.path().to_str().unwrap().to_owned();
    let (_store, disk) = contained(
        &mut world,
        &[
            Layer::new()
                .file(&format!("{outside}/canary"), b"inside")
                .symlink("out", &outside)
                .file("victim/x", b"x")
                .symlink("victim/way", &outside),
            Layer::new().file("out/.wh.canary", b"").file(".wh.victim", b""),
        ],
    )
    .await;
    assert!(!disk.exists(&format!("{outside}/canary")));
    assert!(!disk.exists("/victim"));
    let lower = Layer::new().file("a", b"x");
    for name in [".wh.", ".wh..", ".wh...", "d/.wh..."] {
        let error = refused(&[lower.clone(), Layer::new().directory("d/").file(name, b"")]).await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_layer_that_inflates_beyond_the_limit_is_stopped() {
    // 65 MiB of zeros, in some 60 KB; the limit is 64 MiB.
    let tar = Layer::new().file("zeros", &vec![0; 65 << 20]).tar();
    for (blob, kind) in [(gzip(&tar), "tar+gzip"), (zstd(&tar), "tar+zstd")] {
        assert!(blob.len() < 1 << 20);
        let error =
            refused_in(&mut World::new(), &Image::of_blobs(&[(tar.clone(), blob)], kind)).await;
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("unpacked_bytes"), "{error}");
    }
    // What follows the end of the archive counts too.
    let mut trailing = Layer::new().file("a", b"x").tar();
    trailing.resize(65 << 20, 0);
    let error = refused_in(
        &mut World::new(),
        &Image::of_blobs(&[(trailing.clone(), gzip(&trailing))], "tar"),
    )
    .await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
    // And so do all layers together.
    let half = Layer::new().file("zeros", &vec![0; 33 << 20]);
    let error = refused(&[half.clone(), half]).await;
    assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn headers_of_one_entry_are_bounded_together() {
    let map = "1,".repeat(250_000);
    let mut many = Layer::new();
    for _ in 0..4 {
        many = many.pax(&[("GNU.sparse.map", map.as_bytes())]);
    }
    let mut attributes = Layer::new();
    for number in 0..1001 {
        attributes = attributes.pax(&[(&format!("SCHILY.xattr.user.{number}"), b"v")]);
    }
    for (layer, told) in
        [(many, "longer than 1 MiB"), (attributes, "more than 1000 extended attributes")]
    {
        let error = refused(&[layer.file("x", b"x")]).await;
        assert!(error.to_string().contains(told), "{error}");
    }
}

#[tokio::test]
async fn directories_that_only_names_imply_count_as_entries() {
    let mut world = World::new();
    world.config.limits.entries = 1000;
    let layer = (0..30).fold(Layer::new(), |layer, number| {
        layer.file(&format!("{number}/{}x", "a/".repeat(40)), b"")
    });
    let error = refused_in(&mut world, &Image::new(&[layer])).await;
    assert!(error.to_string().contains("limits.entries"), "{error}");
}

#[tokio::test]
async fn too_many_entries_are_refused() {
    let mut world = World::new();
    world.config.limits.entries = 1000;
    let layer = (0..1001).fold(Layer::new(), |layer, index| layer.file(&format!("{index}"), b""));
    let error = refused_in(&mut world, &Image::new(&[layer])).await;
    assert!(error.to_string().contains("limits.entries"), "{error}");
}

#[tokio::test]
async fn directories_nested_without_end_are_refused() {
    // Each step doubles back through a link, so that no single path is long.
    let mut layer = Layer::new();
    let step = "d/".repeat(40);
    let mut base = String::new();
    for index in 0..8 {
        let deep = format!("{base}{step}");
        layer = layer.directory(&deep);
        let link = format!("l{index}");
        layer = layer.symlink(&link, deep.trim_end_matches('/'));
        base = format!("{link}/");
    }
    let error = refused(&[layer]).await;
    assert!(error.to_string().contains("nested"), "{error}");
}

#[tokio::test]
async fn no_room_is_said_plainly_and_leaves_nothing() {
    let mut world = World::new();
    world.config.limits.keep_free_bytes = 1 << 60;
    let error = refused_in(&mut world, &Image::new(&[Layer::new().file("a", b"x")])).await;
    assert!(matches!(error, ImageError::NoSpace { .. }), "{error}");
    assert!(!error.is_client_fault());
}

#[tokio::test]
async fn malformed_archives_are_refused() {
    let good = Layer::new().file("file", &[7; 2000]);
    let cut = good.bytes[..1024].to_vec();
    let mut bad_checksum = good.tar();
    bad_checksum[0] ^= 1;
    let mut huge = header(EntryType::Regular, "huge", "", 0o644, 0);
    huge.set_size(u64::MAX >> 1);
    huge.set_cksum();
    let mut huge_name = header(EntryType::GNULongName, "././@LongLink", "", 0, 0);
    huge_name.set_size(1 << 40);
    huge_name.set_cksum();
    let mut unknown = header(EntryType::new(b'Z'), "what", "", 0o644, 0);
    unknown.set_cksum();
    let overlapping = Layer::new().pax(&[
        ("GNU.sparse.map", b"0,4,2,4"),
        ("GNU.sparse.size", b"8"),
        ("GNU.sparse.name", b"holes"),
    ]);
    let endless_map =
        Layer::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"8")]);
    for (name, tar) in [
        ("cut off", cut),
        ("wrong checksum", bad_checksum),
        ("absurd size", huge.as_bytes().to_vec()),
        ("absurd name", huge_name.as_bytes().to_vec()),
        ("unknown type", unknown.as_bytes().to_vec()),
        ("overlapping holes", overlapping.file("holes", b"12345678").tar()),
        ("endless map", endless_map.file("holes", b"99999999999\n").tar()),
        (
            "malformed pax",
            Layer::new().entry(EntryType::XHeader, "pax", "", 0, b"nonsense").file("a", b"").tar(),
        ),
        ("noise", b"this is no archive at all".repeat(100)),
    ] {
        let error = refused_in(
            &mut World::new(),
            &Image::of_blobs(&[(tar.clone(), gzip(&tar))], "tar+gzip"),
        )
        .await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{name}: {error}");
    }
    // Compressed data that breaks off or is followed by something else.
    let blob = gzip(&good.tar());
    let cut = blob[..blob.len() / 2].to_vec();
    let mut followed = blob;
    followed.extend_from_slice(b"more");
    for blob in [cut, followed] {
        let error =
            refused_in(&mut World::new(), &Image::of_blobs(&[(good.tar(), blob)], "tar+gzip"))
                .await;
        assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    }
}

#[tokio::test]
async fn other_compressions_are_refused_by_name() {
    let layer = Layer::new().file("a", b"x").tar();
    for (start, name) in [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"BZh91AY&SY", "bzip2"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x1f\x9d\x90", "compress"),
    ] {
        let blob = [start, &[9; 600]].concat();
        let error =
            refused_in(&mut World::new(), &Image::of_blobs(&[(layer.clone(), blob)], "tar")).await;
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(&format!("compressed with {name},")) && error.ends_with("gzip or zstd"),
            "{error}"
        );
        assert!(!error.contains(['.', ';']), "one sentence: {error}");
    }
}

#[tokio::test]
async fn content_other_than_the_config_says_is_refused() {
    let honest = Layer::new().file("a", b"honest").tar();
    let other = Layer::new().file("a", b"other!").tar();
    let error =
        refused_in(&mut World::new(), &Image::of_blobs(&[(honest, gzip(&other))], "tar+gzip"))
            .await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("digest"), "{error}");
}
