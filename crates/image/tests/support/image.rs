//! Images made by hand, so that they can be wrong in any way.

use std::{collections::HashMap, io::Write};

use caddis_image::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

/// A tar archive, written raw.
#[derive(Default, Clone)]
pub struct Layer {
    pub bytes: Vec<u8>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// A header, its checksum set, and data.
    pub fn raw(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) -> Self {
        self.raw(header(kind, path, link, mode, data.len() as u64), data)
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, data)
    }

    pub fn directory(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, b"")
    }

    /// A pax extended header for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut block = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            block.extend_from_slice(format!("{length} {key}=").as_bytes());
            block.extend_from_slice(value);
            block.push(b'\n');
        }
        self.entry(EntryType::XHeader, "pax", "", 0o644, &block)
    }

    /// The finished archive.
    pub fn tar(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.extend_from_slice(&[0; 1024]);
        bytes
    }
}

/// A header with names as they are, however wrong.
pub fn header(kind: EntryType, path: &str, link: &str, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// An image: its blobs by digest, and its manifest.
#[derive(Clone)]
pub struct Image {
    pub blobs: HashMap<String, Vec<u8>>,
    pub manifest: Value,
}

impl Image {
    /// Of gzipped layers.
    pub fn new(layers: &[Layer]) -> Self {
        let layers: Vec<(Vec<u8>, Vec<u8>)> =
            layers.iter().map(|layer| (layer.tar(), gzip(&layer.tar()))).collect();
        Self::of_blobs(&layers, "tar+gzip")
    }

    /// Of pairs of tar archive and what is transferred for it.
    pub fn of_blobs(layers: &[(Vec<u8>, Vec<u8>)], kind: &str) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest(tar)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {
                "Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=1", "B=2"],
                "User": "web:www",
                "WorkingDir": "/srv", "StopSignal": "SIGQUIT",
                "ExposedPorts": {"80/tcp": {}, "443/tcp": {}},
                "Labels": {"maker": "tests"},
            },
        })
        .to_string()
        .into_bytes();
        let mut blobs = HashMap::new();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|(_, blob)| {
                blobs.insert(digest(blob), blob.clone());
                json!({
                    "mediaType": format!("application/vnd.oci.image.layer.v1.{kind}"),
                    "digest": digest(blob), "size": blob.len(),
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": descriptors,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
        });
        blobs.insert(digest(&config), config);
        Self { blobs, manifest }
    }

    pub fn manifest_bytes(&self) -> Vec<u8> {
        self.manifest.to_string().into_bytes()
    }

    pub fn digest(&self) -> Digest {
        digest(&self.manifest_bytes()).parse().unwrap()
    }

    pub fn layer_digest(&self, index: usize) -> String {
        self.manifest["layers"][index]["digest"].as_str().unwrap().to_owned()
    }

    pub fn layer_blob(&self, index: usize) -> &[u8] {
        &self.blobs[&self.layer_digest(index)]
    }
}
