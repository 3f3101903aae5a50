//! Against Debian's docker-registry, with images pushed by skopeo, with and without authentication;
//! and archives written by skopeo.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use caddis_image::{Digest, ImageError, ImageStore};
use support::{
    World,
    ext4::Ext4,
    image::{Image, Layer},
    pull,
};
use tokio::io::{AsyncBufReadExt, BufReader};

/// A registry process; killed when dropped.
struct DockerRegistry {
    address: String,
    _process: tokio::process::Child,
    directory: tempfile::TempDir,
}

impl DockerRegistry {
    async fn start(authentication: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("htpasswd"), format!("user:{}\n", bcrypt("secret")))
            .unwrap();
        // The port is free when asked for; should another process take it before the registry does,
        // it is tried anew.
        for _ in 0..20 {
            let address =
                TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
            let configuration = format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: \
                 {0}/data}}}}\n\
                 http: {{addr: '{address}'}}\n{1}",
                directory.path().display(),
                authentication.replace("DIRECTORY", directory.path().to_str().unwrap()),
            );
            let path = directory.path().join("config.yml");
            fs::write(&path, configuration).unwrap();
            let mut process = tokio::process::Command::new("docker-registry")
                .arg("serve")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .expect("docker-registry is needed: apt-get install docker-registry");
            let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("listening on") {
                    // Its log is read on, so that it never has to wait for us.
                    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                    return Self { address, _process: process, directory };
                }
            }
        }
        panic!("docker-registry does not start");
    }
}

fn skopeo(arguments: &[&str]) {
    let output = Command::new("skopeo")
        .args(["--insecure-policy"])
        .args(arguments)
        .output()
        .expect("skopeo is needed: apt-get install skopeo");
    assert!(
        output.status.success(),
        "skopeo {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Writes an image as an OCI layout, for skopeo to read.
fn write_layout(image: &Image, directory: &Path) -> PathBuf {
    let layout = directory.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let manifest = image.manifest_bytes();
    for (digest, bytes) in image.blobs.iter().chain([(&image.digest().to_string(), &manifest)]) {
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": support::image::MANIFEST, "digest": image.digest(), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "v1"},
    }]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    layout
}

fn image() -> Image {
    Image::new(&[
        Layer::new().directory("etc/").file("etc/one", b"1").file("etc/gone", b"1"),
        Layer::new().file("etc/.wh.gone", b"").file("etc/two", b"2"),
    ])
}

fn assert_is_the_image(disk: &Path) {
    let disk = Ext4::open(disk);
    assert_eq!((disk.read("/etc/one"), disk.read("/etc/two")), (b"1".to_vec(), b"2".to_vec()));
    assert!(!disk.exists("/etc/gone"));
}

#[tokio::test]
async fn images_are_pulled_by_tag_and_by_digest_in_both_formats() {
    let registry = DockerRegistry::start("").await;
    let layout = write_layout(&image(), registry.directory.path());
    let source = format!("oci:{}:v1", layout.display());
    let world = World::trusting(&registry.address);
    let store = world.open();
    for format in ["oci", "v2s2"] {
        let target = format!("docker://{}/team/{format}:1.0", registry.address);
        skopeo(&["copy", "-q", "--dest-tls-verify=false", "--format", format, &source, &target]);
        let reference = format!("{}/team/{format}:1.0", registry.address);
        let resolved = store.resolve(&reference).await.unwrap();
        assert_eq!(resolved.requested, reference);
        assert_eq!(resolved.reference.registry, registry.address);
        assert_eq!(resolved.reference.repository, format!("team/{format}"));
        assert_eq!(resolved.reference.tag.as_deref(), Some("1.0"));
        assert_eq!(resolved.reference.labels.as_ref().unwrap()["maker"], "tests");
        let config = &resolved.config;
        assert_eq!(
            (&config.entrypoint[..], &config.cmd[..]),
            (&["/bin/app".to_owned()][..], &["serve".to_owned()][..])
        );
        assert_eq!(config.env, ["A=1", "B=2"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("web:www", "/srv"));
        assert_eq!(config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(config.exposed_ports, ["443/tcp", "80/tcp"]);
        assert!(resolved.download_size > 0);

        let progress = support::progress();
        let disk = store.root_disk(&resolved, &progress).await.unwrap();
        assert_eq!(progress.borrow().step, "build");
        assert_eq!(disk.size, world.config.root_disk_size);
        assert_is_the_image(&disk.path);

        let digest = resolved.reference.digest.as_ref().unwrap();
        let pinned = format!("{}/team/{format}@{digest}", registry.address);
        let by_digest = store.resolve(&pinned).await.unwrap();
        assert_eq!(by_digest.reference.digest.as_ref(), Some(digest));
        assert_eq!(store.root_disk(&by_digest, &support::progress()).await.unwrap(), disk);
    }
    let error = store.resolve(&format!("{}/team/none", registry.address)).await.unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    world.assert_untouched();
    world.assert_no_work_left();
}

#[tokio::test]
async fn a_registry_with_passwords_wants_the_right_one() {
    let authentication = "auth: {htpasswd: {realm: tests, path: DIRECTORY/htpasswd}}\n";
    let registry = DockerRegistry::start(authentication).await;
    let layout = write_layout(&image(), registry.directory.path());
    let target = format!("docker://{}/private:1", registry.address);
    let source = format!("oci:{}:v1", layout.display());
    skopeo(&[
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-creds",
        "user:secret",
        &source,
        &target,
    ]);

    let reference = format!("{}/private:1", registry.address);
    let mut world = World::trusting(&registry.address);
    let error = world.open().resolve(&reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");

    let file = registry.directory.path().join("config.json");
    world.config.registry_credentials = Some(file.clone());
    let store = world.open();
    for (credentials, right) in [("dXNlcjp3cm9uZw==", false), ("dXNlcjpzZWNyZXQ=", true)] {
        let auths = serde_json::json!({"auths": {registry.address.clone(): {"auth": credentials}}});
        fs::write(&file, auths.to_string()).unwrap();
        match (pull(&store, &reference).await, right) {
            (Ok(disk), true) => assert_is_the_image(&disk.path),
            (Err(error), false) => {
                assert!(
                    matches!(error, ImageError::Unauthorized { .. }) && error.is_client_fault(),
                    "{error}"
                );
            }
            (result, _) => panic!("{result:?}"),
        }
    }
}

/// A bcrypt hash as the registry wants it, made by the C library's `crypt`.
fn bcrypt(password: &str) -> String {
    let script = "print crypt($ARGV[0], '$2b$05$abcdefghijklmnopqrstuu')";
    let output = Command::new("perl")
        .args(["-e", script, password])
        .output()
        .expect("perl is needed: apt-get install perl-base");
    let hash = String::from_utf8(output.stdout).unwrap();
    assert!(hash.starts_with("$2b$05$"), "the C library knows no bcrypt: {hash}");
    hash
}

#[tokio::test]
async fn archives_of_all_kinds_are_imported() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let layout = write_layout(&image(), directory.path());
    let source = format!("oci:{}:v1", layout.display());
    let docker = path("docker.tar");
    skopeo(&["copy", "-q", &source, &format!("docker-archive:{docker}:example.com/web:2")]);
    skopeo(&["copy", "-q", &source, &format!("oci-archive:{}:v2", path("oci.tar"))]);
    let oci = path("oci:archive.tar"); // a colon in the path, to be awkward
    fs::rename(path("oci.tar"), &oci).unwrap();
    let compressed = path("docker.tar.gz");
    fs::write(&compressed, support::image::gzip(&fs::read(&docker).unwrap())).unwrap();

    for (source, name, reference, registry) in [
        (format!("docker-archive:{docker}"), None, "example.com/web:2", "docker-archive"),
        (
            format!("docker-archive:{docker}:example.com/web:2"),
            Some("mine"),
            "mine",
            "docker-archive",
        ),
        (format!("docker-archive:{compressed}"), Some("zipped"), "zipped:latest", "docker-archive"),
        (format!("oci-archive:{oci}"), Some("from-oci:3"), "from-oci:3", "oci-archive"),
        (format!("oci-archive:{oci}:v2"), Some("from-oci:4"), "from-oci:4", "oci-archive"),
        (
            format!("oci:{}", layout.display()),
            Some("from/layout"),
            "docker.io/from/layout",
            "local",
        ),
        (format!("oci:{}:v1", layout.display()), Some("from/layout:x"), "from/layout:x", "local"),
    ] {
        let world = World::new();
        let store = world.open();
        let summary = store.import(&source, name, &support::progress()).await.unwrap();
        assert_eq!(summary.names.len(), 1, "{source}");
        // No registry is asked: there is none that could be.
        let resolved = store.resolve(reference).await.unwrap();
        assert_eq!(resolved.reference.digest.as_ref(), Some(&summary.digest));
        // By a name it is called so, by its digest after where it came from.
        let asked = if reference.starts_with("example.com/") { "example.com" } else { "docker.io" };
        assert_eq!(resolved.reference.registry, asked);
        assert_eq!(resolved.config.user, "web:www");
        let disk = store.root_disk(&resolved, &support::progress()).await.unwrap();
        assert_is_the_image(&disk.path);
        let by_digest = store.resolve(summary.digest.as_str()).await.unwrap();
        assert_eq!(by_digest.reference.registry, registry);
        assert_eq!(by_digest.reference.digest, resolved.reference.digest);
        world.assert_untouched();
        survives_a_restart(world, store, reference, &summary.digest).await;
    }
}

async fn survives_a_restart(world: World, store: ImageStore, reference: &str, digest: &Digest) {
    drop(store);
    let store = world.open();
    assert_eq!(store.resolve(reference).await.unwrap().reference.digest.as_ref(), Some(digest));
    assert!(store.ready_root_disk(digest).is_some());
    world.assert_no_work_left();
}

#[tokio::test]
async fn archives_that_are_wrong_are_refused() {
    let world = World::new();
    let store = world.open();
    let directory = tempfile::tempdir().unwrap();
    let layout = write_layout(&image(), directory.path());
    let digest = image().layer_digest(0).trim_start_matches("sha256:").to_owned();
    let blob = layout.join("blobs/sha256").join(digest);
    let mut bytes = fs::read(&blob).unwrap();
    let noise = directory.path().join("noise.tar");
    fs::write(&noise, [9; 5000]).unwrap();
    let missing = directory.path().join("none.tar");

    let import = async |source: String| {
        store.import(&source, Some("x"), &support::progress()).await.unwrap_err()
    };
    let error = import(format!("docker-archive:{}", noise.display())).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    let error = import(format!("docker-archive:{}", missing.display())).await;
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = import(format!("tarball:{}", noise.display())).await;
    assert!(matches!(error, ImageError::InvalidReference { .. }), "{error}");
    let error = import(format!("oci:{}:v9", layout.display())).await;
    assert!(
        matches!(error, ImageError::NotFound { .. }) && error.to_string().contains("v1"),
        "{error}"
    );
    let error = import("oci-archive:/dev/null".to_owned()).await;
    assert!(matches!(error, ImageError::Unsupported { .. }), "{error}");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let error = import(format!("oci:{}", layout.display())).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    fs::write(&blob, &bytes[1..]).unwrap();
    let error = import(format!("oci:{}", layout.display())).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    fs::remove_file(&blob).unwrap();
    let error = import(format!("oci:{}", layout.display())).await;
    assert!(matches!(error, ImageError::Corrupt { .. }), "{error}");
    world.assert_nothing_came_of_it(&store).await;
}
