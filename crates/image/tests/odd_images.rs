//! Images as the world's tools write them, odd but sound: from a registry, a layout and an archive
//! alike.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use caddis_image::{Digest, ImageError, ImageStore};
use serde_json::{Value, json};
use support::{
    World,
    archive::{self, OciLayout},
    ext4::Ext4,
    image::{INDEX, Image, Layer, MANIFEST, digest},
    progress,
    registry::FakeRegistry,
};

/// An image whose configuration was changed.
fn with_config(name: &str, change: impl FnOnce(&mut Value)) -> Image {
    let mut image = Image::new(&[Layer::new().file(name, name.as_bytes())]);
    let old = image.manifest["config"]["digest"].as_str().unwrap().to_owned();
    let mut config: Value = serde_json::from_slice(&image.blobs.remove(&old).unwrap()).unwrap();
    change(&mut config);
    let bytes = config.to_string().into_bytes();
    image.manifest["config"]["digest"] = digest(&bytes).into();
    image.manifest["config"]["size"] = bytes.len().into();
    image.blobs.insert(digest(&bytes), bytes);
    image
}

/// A build for a platform, `linux/amd64/v3`.
fn build(platform: &str) -> Image {
    let parts: Vec<&str> = platform.split('/').collect();
    with_config(&platform.replace('/', "-"), |config| {
        config["os"] = parts[0].into();
        config["architecture"] = parts[1].into();
        config["variant"] = parts.get(2).copied().into();
    })
}

fn entry(image: &Image, platform: Option<&str>) -> Value {
    let mut entry = json!({"mediaType": MANIFEST, "digest": image.digest(),
        "size": image.manifest_bytes().len()});
    if let Some(platform) = platform {
        let parts: Vec<&str> = platform.split('/').collect();
        entry["platform"] =
            json!({"os": parts[0], "architecture": parts[1], "variant": parts.get(2)});
    }
    entry
}

fn index(entries: &[Value]) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string().into_bytes()
}

fn index_entry(bytes: &[u8]) -> Value {
    json!({"mediaType": INDEX, "digest": digest(bytes), "size": bytes.len()})
}

/// The same index, and what it leads to, as a registry, a directory and a tar file.
struct Everywhere {
    registry: FakeRegistry,
    layout: OciLayout,
    top: Vec<u8>,
}

impl Everywhere {
    async fn new(images: &[&Image], indexes: &[&[u8]], top: Vec<u8>) -> Self {
        let (registry, mut layout) = (FakeRegistry::start().await, OciLayout::default());
        for image in images {
            registry.offer("app", &image.digest().hex()[..10], image);
            layout.add(image);
        }
        for bytes in indexes.iter().copied().chain([&top[..]]) {
            registry.offer_manifest("app", "latest", INDEX, bytes.to_vec());
            layout.blobs.insert(digest(bytes), bytes.to_vec());
        }
        Self { registry, layout, top }
    }

    /// The digest of what is chosen with this level of amd64, which is the same from everywhere; or
    /// the error.
    async fn chosen(&self, level: u8) -> Result<Digest, ImageError> {
        let mut world = World::trusting(&self.registry.address);
        world.config.amd64_level = level;
        let pulled = world
            .open()
            .resolve(&self.registry.reference("app"))
            .await
            .map(|image| image.reference.digest.unwrap());
        let directory = world.outside.path().join("neighbour/layout");
        let file = world.outside.path().join("neighbour/layout.tar");
        // An index.json that lists the index, and one that is it.
        for index in [index(&[index_entry(&self.top)]), self.top.clone()] {
            self.layout.write(&directory, &index);
            archive::tar(&directory, &file);
            for source in
                [format!("oci:{}", directory.display()), format!("oci-archive:{}", file.display())]
            {
                let imported = import(&world.open(), &source, None).await;
                match (&imported, &pulled) {
                    (Ok(imported), Ok(pulled)) => assert_eq!(imported, pulled, "{source}"),
                    (Err(imported), Err(pulled)) => {
                        let reason = |error: &ImageError| {
                            error.to_string().split_once(": ").unwrap().1.to_owned()
                        };
                        assert_eq!(reason(imported), reason(pulled), "{source}");
                    }
                    _ => panic!("{source}: {imported:?}, from the registry {pulled:?}"),
                }
            }
        }
        pulled
    }
}

async fn import(
    store: &ImageStore,
    source: &str,
    name: Option<&str>,
) -> Result<Digest, ImageError> {
    store.import(source, name, &progress()).await.map(|image| image.digest)
}

#[tokio::test]
async fn the_best_build_for_the_processor_is_taken_from_registry_layout_and_archive() {
    let platforms =
        ["linux/arm64/v8", "linux/amd64/v2", "linux/amd64/v4", "linux/amd64", "linux/amd64/v3"];
    let images: Vec<Image> = platforms.iter().map(|platform| build(platform)).collect();
    let all: Vec<&Image> = images.iter().collect();
    let entries: Vec<Value> = images
        .iter()
        .zip(platforms)
        .map(|(image, platform)| entry(image, Some(platform)))
        .collect();
    let everywhere = Everywhere::new(&all, &[], index(&entries)).await;
    for (level, expected) in [(1, 3), (2, 1), (3, 4), (4, 2)] {
        assert_eq!(everywhere.chosen(level).await.unwrap(), images[expected].digest(), "v{level}");
    }
    // Without platforms the configurations decide.
    let entries: Vec<Value> = images.iter().map(|image| entry(image, None)).collect();
    let everywhere = Everywhere::new(&all, &[], index(&entries)).await;
    for (level, expected) in [(1, 3), (3, 4)] {
        assert_eq!(everywhere.chosen(level).await.unwrap(), images[expected].digest(), "v{level}");
    }
}

#[tokio::test]
async fn an_index_in_an_index_is_followed() {
    let (ours, arm, better) = (build("linux/amd64"), build("linux/arm64"), build("linux/amd64/v2"));
    let attestation = json!({"mediaType": MANIFEST, "digest": digest(b"gone"), "size": 4,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}});
    // As buildx and registries' mirrors write them: an index for each platform.
    let of_ours = index(&[entry(&ours, Some("linux/amd64")), attestation.clone()]);
    let of_arm = index(&[entry(&arm, Some("linux/arm64")), attestation]);
    let deep = index(&[entry(&better, None)]);
    let mut deep_entry = index_entry(&deep);
    deep_entry["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": "v2"});
    let top = index(&[index_entry(&of_arm), index_entry(&of_ours), deep_entry]);
    let everywhere =
        Everywhere::new(&[&ours, &arm, &better], &[&of_ours, &of_arm, &deep], top).await;
    assert_eq!(everywhere.chosen(1).await.unwrap(), ours.digest());
    assert_eq!(everywhere.chosen(2).await.unwrap(), better.digest());
}

#[tokio::test]
async fn what_does_not_run_here_is_refused_with_a_list_of_what_there_is() {
    let (arm, newer) = (build("linux/arm64"), build("linux/amd64/v4"));
    let entries = [entry(&arm, Some("linux/arm64")), entry(&newer, Some("linux/amd64/v4"))];
    let everywhere = Everywhere::new(&[&arm, &newer], &[], index(&entries)).await;
    let error = everywhere.chosen(3).await.unwrap_err().to_string();
    assert!(
        error.contains("linux/amd64, at most v3") && error.ends_with("linux/arm64, linux/amd64/v4"),
        "{error}"
    );
    // An image alone, whose configuration says what it is.
    for image in [&arm, &newer] {
        let registry = FakeRegistry::start().await;
        registry.offer("app", "latest", image);
        let mut world = World::trusting(&registry.address);
        world.config.amd64_level = 3;
        let error = world.open().resolve(&registry.reference("app")).await.unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("it is for linux/a"), "{error}");
    }
    for depth in [3, 6] {
        let mut bytes = index(&[entry(&arm, Some("linux/arm64"))]);
        let mut indexes = vec![bytes.clone()];
        for _ in 0..depth {
            bytes = index(&[index_entry(&bytes)]);
            indexes.push(bytes.clone());
        }
        let indexes: Vec<&[u8]> = indexes.iter().map(Vec::as_slice).collect();
        let registry = Everywhere::new(&[&arm], &indexes, bytes.clone()).await.registry;
        let world = World::trusting(&registry.address);
        let error = world.open().resolve(&registry.reference("app")).await.unwrap_err().to_string();
        assert!(
            error.contains(if depth == 3 { "linux/arm64" } else { "nested too deep" }),
            "{error}"
        );
    }
}

#[tokio::test]
async fn nulls_and_absences_are_read_from_registry_layout_and_archives() {
    let image = with_config("odd", |config| {
        for field in ["created", "author", "variant", "history"] {
            config[field] = Value::Null;
        }
        config["rootfs"]["type"] = Value::Null;
        config["config"] = json!({
            "Env": null, "Cmd": null, "Entrypoint": ["/odd"], "ExposedPorts": {"80/tcp": null},
            "Volumes": null,
            "Labels": {"none": null}, "User": null, "WorkingDir": null, "StopSignal": null,
            "OnBuild": null,
        });
    });
    let mut descriptor = entry(&image, None);
    for field in ["annotations", "urls", "data", "artifactType", "platform"] {
        descriptor[field] = Value::Null;
    }
    let everywhere = Everywhere::new(&[&image], &[], index(&[descriptor])).await;
    assert_eq!(everywhere.chosen(1).await.unwrap(), image.digest());
    let world = World::new();
    let file = world.outside.path().join("neighbour/docker.tar");
    archive::docker(&file, &[(&image, Value::Null)]);
    let store = world.open();
    let digest =
        import(&store, &format!("docker-archive:{}", file.display()), Some("odd")).await.unwrap();
    let config = store.resolve("odd").await.unwrap().config;
    assert_eq!(
        (config.entrypoint, config.exposed_ports),
        (vec!["/odd".to_owned()], vec!["80/tcp".to_owned()])
    );
    assert_eq!(Ext4::open(&store.ready_root_disk(&digest).unwrap().path).read("/odd"), b"odd");
    // Of no layers at all.
    let mut empty = with_config("empty", |config| config["rootfs"] = json!({}));
    empty.manifest["layers"] = Value::Null;
    let everywhere = Everywhere::new(&[&empty], &[], index(&[entry(&empty, None)])).await;
    assert_eq!(everywhere.chosen(1).await.unwrap(), empty.digest());
}

#[tokio::test]
async fn one_of_several_images_in_an_archive_is_taken_by_any_of_its_names() {
    let images = [
        ("one", json!(["web:1", "example.com/web:1"])),
        ("two", json!(["docker.io/library/web:2"])),
        ("three", json!(null)),
    ];
    let images: Vec<(Image, Value)> =
        images.into_iter().map(|(name, tags)| (with_config(name, |_| ()), tags)).collect();
    let world = World::new();
    let file = world.outside.path().join("neighbour/several.tar");
    archive::docker(
        &file,
        &images.iter().map(|(image, tags)| (image, tags.clone())).collect::<Vec<_>>(),
    );
    let mut layout = OciLayout::default();
    let mut entries = Vec::new();
    for (image, tags) in &images {
        layout.add(image);
        for tag in tags.as_array().cloned().unwrap_or_else(|| vec![Value::Null]) {
            let mut entry = entry(image, None);
            entry["annotations"] = json!({"io.containerd.image.name": tag});
            entries.push(entry);
        }
    }
    let directory = world.outside.path().join("neighbour/several");
    layout.write(&directory, &index(&entries));
    let store = world.open();
    for (source, nameless) in [
        (format!("docker-archive:{}", file.display()), "@2"),
        (format!("oci:{}", directory.display()), "@3"),
    ] {
        let error = import(&store, &source, None).await.unwrap_err();
        assert!(matches!(error, ImageError::NotFound { .. }) && error.is_client_fault(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains("docker-archive:FILE:NAME") && error.contains("oci:DIRECTORY:NAME"),
            "{error}"
        );
        // Each name that it advises works.
        let advised = error.rsplit_once(": ").unwrap().1;
        for name in advised.split(", ") {
            import(&store, &format!("{source}:{name}"), Some("advised")).await.unwrap();
        }
        assert!(advised.ends_with(nameless), "{advised}");
        for (name, content) in [
            ("web:1", "/one"),
            ("docker.io/library/web:1", "/one"),
            ("example.com/web:1", "/one"),
            ("@0", "/one"),
            ("web:2", "/two"),
            (nameless, "/three"),
        ] {
            let digest = import(&store, &format!("{source}:{name}"), Some("mine")).await.unwrap();
            let disk = Ext4::open(&store.ready_root_disk(&digest).unwrap().path);
            assert!(disk.exists(content), "{source}:{name}");
        }
        for missing in ["web:3", "web", "@9", "@x", "@-1"] {
            let error =
                import(&store, &format!("{source}:{missing}"), None).await.unwrap_err().to_string();
            assert!(
                error.contains(missing) && error.contains("the archive contains web:1, "),
                "{error}"
            );
        }
        let digest = import(&store, &format!("{source}:web:2"), None).await.unwrap();
        let listed =
            store.list().await.unwrap().into_iter().find(|listed| listed.digest == digest).unwrap();
        assert!(listed.names.contains(&"docker.io/library/web:2".to_owned()), "{:?}", listed.names);
    }
}

#[tokio::test]
async fn an_image_with_several_tags_is_one_image_and_keeps_them() {
    let image = with_config("tagged", |_| ());
    let world = World::new();
    let neighbour = world.outside.path().join("neighbour");
    archive::docker(&neighbour.join("tagged.tar"), &[(&image, json!(["web:1", "web:latest"]))]);
    let mut layout = OciLayout::default();
    layout.add(&image);
    let entries: Vec<Value> = ["web:1", "web:latest"]
        .map(|name| {
            let mut entry = entry(&image, None);
            let (whole, tag) =
                (format!("docker.io/library/{name}"), name.split_once(':').unwrap().1);
            entry["annotations"] = json!({
                "io.containerd.image.name": whole, "org.opencontainers.image.ref.name": tag,
            });
            entry
        })
        .to_vec();
    layout.write(&neighbour.join("tagged"), &index(&entries));
    for source in ["docker-archive:tagged.tar", "oci:tagged"] {
        let store = world.open();
        let source = source.replace(':', &format!(":{}/", neighbour.display()));
        let digest = import(&store, &source, None).await.unwrap();
        assert_eq!(
            store.list().await.unwrap()[0].names,
            ["docker.io/library/web:1", "docker.io/library/web:latest"]
        );
        store.remove(digest.as_str(), &Default::default()).await.unwrap();
    }
    let store = world.open();
    let by_tag =
        import(&store, &format!("oci:{}:latest", neighbour.join("tagged").display()), None)
            .await
            .unwrap();
    assert_eq!(by_tag, image.digest());
}

#[tokio::test]
async fn a_compressed_archive_leaves_nothing_beside_its_image_and_its_names_are_bounded() {
    let image = with_config("packed", |_| ());
    let world = World::new();
    let plain = world.outside.path().join("neighbour/plain.tar");
    let tags: Vec<_> = (0..1000).map(|number| format!("web:{number}")).collect();
    // Each tag an item of its own, and all of one.
    let items: Vec<_> = (0..50).map(|_| (&image, json!(tags))).collect();
    archive::docker(&plain, &items);
    let packed = plain.with_extension("gz");
    std::fs::write(&packed, support::image::gzip(&std::fs::read(&plain).unwrap())).unwrap();
    let store = world.open();
    import(&store, &format!("docker-archive:{}", packed.display()), None).await.unwrap();
    assert_eq!(store.list().await.unwrap()[0].names.len(), 100);
    world.assert_no_work_left();
}

#[tokio::test]
async fn an_archive_is_taken_for_what_it_is_and_what_is_none_is_called_that() {
    let image = with_config("app", |_| ());
    let world = World::new();
    let neighbour = world.outside.path().join("neighbour");
    let file = |name: &str| neighbour.join(name).display().to_string();
    archive::docker(&neighbour.join("docker.tar"), &[(&image, json!(null))]);
    let mut layout = OciLayout::default();
    layout.add(&image);
    layout.write(&neighbour.join("layout"), &index(&[entry(&image, None)]));
    archive::tar(&neighbour.join("layout"), &neighbour.join("oci.tar"));
    let store = world.open();
    import(&store, &format!("oci-archive:{}", file("docker.tar")), Some("a")).await.unwrap();
    import(&store, &format!("docker-archive:{}", file("oci.tar")), Some("b")).await.unwrap();
    std::fs::write(file("other.tar"), Layer::new().file("etc/passwd", b"").tar()).unwrap();
    let error = import(&store, &format!("docker-archive:{}", file("other.tar")), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("neither manifest.json") && error.contains("index.json"), "{error}");
    for (start, name) in [
        (&b"\xfd7zXZ\0"[..], "xz"),
        (b"BZh91AY&SY", "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ] {
        std::fs::write(file("packed"), [start, &[7; 600]].concat()).unwrap();
        let error =
            import(&store, &format!("docker-archive:{}", file("packed")), None).await.unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("compressed with {name}, is not supported")),
            "{error}"
        );
    }
    for nonsense in [&b"#!/bin/sh\necho no archive\n"[..], &[7; 2000], b""] {
        std::fs::write(file("packed"), nonsense).unwrap();
        let error =
            import(&store, &format!("docker-archive:{}", file("packed")), None).await.unwrap_err();
        assert!(
            error.is_client_fault() && error.to_string().contains("not a tar archive"),
            "{error}"
        );
    }
}
