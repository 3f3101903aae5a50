//! Manifests, indexes and configurations: what they must look like. They are read as the Go
//! programs that write them do, which is more leniently than the specification's words.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{
    Digest, ImageConfig, ImageError, Limits, json,
    platform::{Platform, ours},
};

/// What an index says of an entry, or a manifest of a blob.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediatype")]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    pub(crate) annotations: BTreeMap<String, Option<String>>,
}

impl Descriptor {
    /// An annotation that says something.
    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key)?.as_deref().filter(|text| !text.is_empty())
    }

    /// Whether it is an index, by what is said of it.
    pub(crate) fn is_index(&self) -> bool {
        is_index(&self.media_type)
    }

    /// Whether it is what BuildKit adds about a build, and no build itself.
    pub(crate) fn is_attestation(&self) -> bool {
        let unknown = Platform::unknown();
        self.annotation("vnd.docker.reference.type").is_some()
            || self.platform.as_ref() == Some(&unknown)
    }
}

fn is_index(kind: &str) -> bool {
    matches!(
        kind,
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// A blob as its parent describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlobDescriptor {
    /// Of its content.
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
}

/// What a registry answers when asked for a manifest.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

/// An image's manifest, checked against the limits.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) config: BlobDescriptor,
    /// Lowest first.
    pub(crate) layers: Vec<BlobDescriptor>,
}

impl Manifest {
    /// Bytes of all layers as transferred.
    pub(crate) fn download_size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// An image's configuration, as far as it matters here.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) run: ImageConfig,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) platform: Platform,
}

impl Config {
    /// Fails unless it is for a processor with this level of amd64.
    pub(crate) fn runs_with(self, what: &str, level: u8) -> Result<Self, ImageError> {
        if self.platform.needs(level).is_some() {
            return Ok(self);
        }
        let reason = format!("it is for {}; what runs here is {}", self.platform, ours(level));
        Err(ImageError::unsupported(format!("image {what}"), reason))
    }
}

/// Fails unless the bytes have this digest.
pub(crate) fn verify(what: &str, bytes: &[u8], digest: &Digest) -> Result<(), ImageError> {
    let actual = Digest::of(bytes);
    if actual == *digest {
        Ok(())
    } else {
        Err(ImageError::corrupt(what, format!("its content has digest {actual}")))
    }
}

/// Reads a manifest or an index, told apart by what they hold; one that could be read as either is
/// refused (it would mean different images to different tools, CVE-2021-41190).
pub(crate) fn parse(what: &str, bytes: &[u8], limits: &Limits) -> Result<Document, ImageError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Shape {
        #[serde(rename = "schemaversion")]
        schema_version: Option<u32>,
        #[serde(rename = "mediatype")]
        media_type: String,
        manifests: Option<Vec<Descriptor>>,
        layers: Option<Vec<Descriptor>>,
        config: Option<Descriptor>,
    }
    let malformed = |error: &dyn std::fmt::Display| {
        ImageError::corrupt(format!("manifest of {what}"), error.to_string())
    };
    let shape: Shape = json::read(bytes).map_err(|error| malformed(&error))?;
    if let Some(version) = shape.schema_version.filter(|version| *version != 2) {
        return Err(ImageError::unsupported(
            format!("manifest of {what}, schema version {version}"),
            "push the image again with a current tool (schema version 2)",
        ));
    }
    match (shape.manifests, shape.config, shape.layers) {
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, None, None) if is_index(&shape.media_type) => Ok(Document::Index(Vec::new())),
        (None, Some(config), layers) => {
            check(what, &config, &layers.unwrap_or_default(), limits).map(Document::Manifest)
        }
        _ => Err(malformed(&"it is neither a manifest nor an index, or both at once")),
    }
}

fn check(
    what: &str,
    config: &Descriptor,
    layers: &[Descriptor],
    limits: &Limits,
) -> Result<Manifest, ImageError> {
    let config_type = config.media_type.as_str();
    if !matches!(
        config_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    ) {
        let what = format!("{what}, with a config of type {config_type},");
        return Err(ImageError::unsupported(what, "only container images can be run"));
    }
    let config = blob(what, config)?;
    if config.size > limits.config_bytes {
        return Err(ImageError::too_large(
            format!("config of {what}"),
            format!("limits.config_bytes is {}", limits.config_bytes),
        ));
    }
    if layers.len() > limits.layers {
        let what = format!("{what}, with {} layers,", layers.len());
        return Err(ImageError::too_large(
            what,
            format!("limits.layers is {}; squash the image", limits.layers),
        ));
    }
    let mut blobs = Vec::with_capacity(layers.len());
    for layer in layers {
        let kind = layer.media_type.as_str();
        let is_layer = kind.is_empty() // its content says what it is
            || kind.starts_with("application/vnd.oci.image.layer.v1.tar")
            || kind.starts_with("application/vnd.docker.image.rootfs.diff.tar");
        if !is_layer || kind.ends_with("encrypted") {
            let what = format!("a layer of {what} of type {kind}");
            return Err(ImageError::unsupported(
                what,
                "layers are tar, plain or with gzip or zstd",
            ));
        }
        let layer = blob(what, layer)?;
        if layer.size > limits.layer_compressed_bytes {
            return Err(ImageError::too_large(
                format!("layer {} of {what}, {} bytes,", layer.digest, layer.size),
                format!("limits.layer_compressed_bytes is {}", limits.layer_compressed_bytes),
            ));
        }
        blobs.push(layer);
    }
    Ok(Manifest { config, layers: blobs })
}

fn blob(what: &str, descriptor: &Descriptor) -> Result<BlobDescriptor, ImageError> {
    Ok(BlobDescriptor { digest: sound_digest(what, &descriptor.digest)?, size: descriptor.size })
}

/// A digest from a manifest or index.
pub(crate) fn sound_digest(what: &str, digest: &str) -> Result<Digest, ImageError> {
    digest.parse().map_err(|_| {
        let shown: String = digest.chars().filter(|c| !c.is_control()).take(100).collect();
        ImageError::unsupported(
            format!("digest `{shown}` in the manifest of {what}"),
            "only sha256 is known",
        )
    })
}

/// Reads an image's configuration; `layers` is how many the manifest has.
pub(crate) fn parse_config(what: &str, bytes: &[u8], layers: usize) -> Result<Config, ImageError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Document {
        os: String,
        architecture: String,
        variant: String,
        config: Run,
        rootfs: RootFs,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct RootFs {
        diff_ids: Vec<String>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Run {
        user: String,
        #[serde(rename = "exposedports")]
        exposed_ports: BTreeMap<String, IgnoredAny>,
        env: Vec<String>,
        #[serde(deserialize_with = "words")]
        entrypoint: Vec<String>,
        #[serde(deserialize_with = "words")]
        cmd: Vec<String>,
        labels: BTreeMap<String, Option<String>>,
        #[serde(rename = "workingdir")]
        working_dir: String,
        #[serde(rename = "stopsignal")]
        stop_signal: String,
    }
    let what = format!("config of {what}");
    let Document { os, architecture, variant, config, rootfs } =
        json::read(bytes).map_err(|error| ImageError::corrupt(&what, error.to_string()))?;
    let diff_ids = &rootfs.diff_ids;
    if diff_ids.len() != layers {
        let reason = format!("it lists {} layers, the manifest {layers}", diff_ids.len());
        return Err(ImageError::corrupt(what, reason));
    }
    let diff_ids =
        diff_ids.iter().map(|digest| sound_digest(&what, digest)).collect::<Result<_, _>>()?;
    let run = ImageConfig {
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        user: config.user,
        working_dir: config.working_dir,
        stop_signal: Some(config.stop_signal).filter(|signal| !signal.is_empty()),
        exposed_ports: config.exposed_ports.into_keys().collect(),
    };
    let labels: BTreeMap<_, _> =
        config.labels.into_iter().map(|(name, value)| (name, value.unwrap_or_default())).collect();
    let labels = Some(labels).filter(|labels| !labels.is_empty());
    Ok(Config { run, labels, diff_ids, platform: Platform::new(os, architecture, variant) })
}

/// A list of words, or one alone as Docker once wrote it.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Words::deserialize(deserializer)? {
        Words::Many(words) => words,
        Words::One(word) => vec![word],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn read(document: &Value) -> Result<Document, ImageError> {
        parse("app", document.to_string().as_bytes(), &Limits::default())
    }

    fn config(document: &Value, layers: usize) -> Result<Config, ImageError> {
        parse_config("app", document.to_string().as_bytes(), layers)
    }

    /// All ways to say nothing about a field: null, absent, and the given empty value.
    fn without(document: &Value, pointer: &str, empty: Value) -> Vec<Value> {
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        let with = |value: Option<Value>| {
            let mut document = document.clone();
            let fields = document.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            assert!(fields.remove(field).is_some(), "{pointer}");
            fields.extend(value.map(|value| (field.to_owned(), value)));
            document
        };
        vec![with(None), with(Some(Value::Null)), with(Some(empty))]
    }

    #[test]
    fn null_absent_and_empty_are_alike_in_every_optional_field_of_a_manifest_and_an_index() {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                       "digest": digest('a'), "size": 1,
                       "annotations": {}, "urls": [], "data": ""},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
                        "digest": digest('b'), "size": 2,
                        "annotations": {"a": "b"}, "platform": {"os": ""}}],
            "annotations": {"x": "y"}, "subject": {},
        });
        let fields = [
            "/artifactType",
            "/mediaType",
            "/config/mediaType",
            "/config/annotations",
            "/config/urls",
        ];
        let of_layer = [
            "/layers/0/mediaType",
            "/layers/0/annotations",
            "/layers/0/platform",
            "/annotations",
            "/subject",
        ];
        for field in fields.into_iter().chain(of_layer) {
            let empty = if field.ends_with("ype") { json!("") } else { json!({}) };
            let empty = if field.ends_with("urls") { json!([]) } else { empty };
            for document in without(&manifest, field, empty) {
                let Document::Manifest(read) = read(&document).unwrap() else {
                    panic!("{document}")
                };
                assert_eq!(
                    (read.config.digest.as_str(), read.layers[0].size),
                    (digest('a').as_str(), 2),
                    "{document}"
                );
            }
        }
        for document in without(&manifest, "/layers", json!([])) {
            let Document::Manifest(read) = read(&document).unwrap() else { panic!("{document}") };
            assert_eq!(read.layers, []);
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "annotations": {"a": null},
            "manifests": [{"mediaType": "x", "digest": digest('a'), "size": 1,
                           "annotations": {"b": null},
                           "platform": {"os": "linux", "architecture": "amd64", "variant": "v2",
                                        "os.features": [null]}}],
        });
        let (platform, entry) = ("/manifests/0/platform", "/manifests/0");
        for (field, empty) in [
            (format!("{entry}/mediaType"), json!("")),
            (format!("{entry}/annotations"), json!({})),
            (platform.to_owned(), json!({})),
            (format!("{platform}/variant"), json!("")),
            (format!("{platform}/os"), json!("")),
            (format!("{platform}/os.features"), json!([])),
            ("/annotations".to_owned(), json!({})),
        ] {
            for document in without(&index, &field, empty) {
                let Document::Index(entries) = read(&document).unwrap() else {
                    panic!("{document}")
                };
                assert_eq!(entries[0].digest, digest('a'), "{document}");
            }
        }
        for document in without(&index, "/manifests", json!([])) {
            let Document::Index(entries) = read(&document).unwrap() else { panic!("{document}") };
            assert_eq!(entries.len(), 0);
        }
    }

    #[test]
    fn null_absent_and_empty_are_alike_in_every_field_of_a_configuration() {
        let full = json!({
            "os": "linux", "architecture": "amd64", "variant": "", "created": null,
            "author": null, "history": [null],
            "rootfs": {"type": "layers", "diff_ids": []},
            "config": {"User": "web", "Env": ["A=1"], "Cmd": ["x"], "Entrypoint": ["y"],
                       "WorkingDir": "/w",
                       "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": null, "443/TCP": {}},
                       "Volumes": null,
                       "Labels": {"Maker": "me", "none": null}, "OnBuild": null,
                       "Healthcheck": null},
        });
        let Config { run, labels, .. } = config(&full, 0).unwrap();
        assert_eq!(
            (run.env, run.cmd, run.entrypoint),
            (vec!["A=1".into()], vec!["x".into()], vec!["y".into()])
        );
        assert_eq!((run.user.as_str(), run.working_dir.as_str()), ("web", "/w"));
        assert_eq!(
            (run.stop_signal.as_deref(), run.exposed_ports),
            (Some("SIGQUIT"), vec!["443/TCP".into(), "80/tcp".into()])
        );
        let labels: Vec<_> = labels.unwrap().into_iter().collect();
        assert_eq!(
            labels,
            [("Maker".into(), "me".into()), ("none".into(), String::new())],
            "as Go reads it"
        );
        for (field, empty) in [
            ("os", json!("")),
            ("architecture", json!("")),
            ("variant", json!("")),
            ("rootfs", json!({})),
            ("rootfs/diff_ids", json!([])),
            ("rootfs/type", json!("")),
            ("config", json!({})),
            ("config/User", json!("")),
            ("config/Env", json!([])),
            ("config/Cmd", json!([])),
            ("config/Entrypoint", json!([])),
            ("config/WorkingDir", json!("")),
            ("config/StopSignal", json!("")),
            ("config/ExposedPorts", json!({})),
            ("config/Labels", json!({})),
        ] {
            let read: Vec<_> = without(&full, &format!("/{field}"), empty)
                .iter()
                .map(|document| config(document, 0).unwrap().runs_with("app", 1).unwrap())
                .map(|config| (config.run, config.labels))
                .collect();
            assert!(read.windows(2).all(|pair| pair[0] == pair[1]), "{field}: {read:?}");
        }
        // Layers that the configuration does not know of are another matter.
        for document in without(&full, "/rootfs/diff_ids", json!([])) {
            assert!(
                config(&document, 1).unwrap_err().to_string().contains("0 layers, the manifest 1")
            );
        }
    }

    #[test]
    fn what_go_reads_is_read() {
        let odd = b"{\"OS\": \"linux\", \"Architecture\": \"amd64\", \"RootFS\": null, \
            \"unknown\": {\"deep\": [1.5e300]},\
            \"Config\": {\"entrypoint\": \"/bin/sh\", \"CMD\": [\"a\", null], \
            \"Env\": [\"A=1\", \"B=\xff\"],\
            \"labels\": {\"L\xe4nge\": \"x\"}}}";
        let config = parse_config("app", odd, 0).unwrap();
        assert_eq!(config.run.entrypoint, ["/bin/sh"], "one word alone");
        assert_eq!(
            (config.run.cmd.len(), config.run.env.len()),
            (1, 2),
            "a byte that is not UTF-8 harms no other text"
        );
        let manifest = json!({"SchemaVersion": 2, "CONFIG": {"Digest": digest('a'), "Size": 3},
                              "Layers": null});
        assert!(
            matches!(read(&manifest).unwrap(), Document::Manifest(found) if found.config.size == 3)
        );
    }

    #[test]
    fn what_is_no_image_is_refused_in_any_spelling() {
        let blob = json!({"digest": digest('a'), "size": 1});
        for document in [
            json!({"schemaVersion": 2, "config": blob, "layers": [], "manifests": []}),
            json!({"schemaVersion": 2, "config": blob, "Manifests": []}),
            json!({"schemaVersion": 2, "layers": [], "MANIFESTS": [blob]}),
            json!({"schemaVersion": 2}),
            json!({"schemaVersion": 2, "manifests": null, "config": null}),
            json!({"schemaVersion": 1, "fsLayers": []}),
            json!({"schemaVersion": 2, "config": {}, "layers": []}),
            json!({"schemaVersion": 2, "config": {"digest": "md5:1", "size": 1}}),
            json!({"schemaVersion": 2, "config": {"digest": digest('a'), "size": -1}}),
            json!([]),
            json!(null),
        ] {
            let error = read(&document).unwrap_err();
            assert!(error.is_client_fault(), "{document}: {error}");
        }
    }
}
