//! Writes OCI image layouts: layers, config, manifest and index, each named by its digest
//! (<https://github.com/opencontainers/image-spec/blob/main/image-layout.md>).

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How an image runs; unset fields are left out.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Config {
    /// `user[:group]`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `K=V`.
    pub env: Vec<String>,
    /// First part of the command line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Second part, which users replace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// How it is asked to end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// `{"80/tcp": {}}`.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub exposed_ports: Value,
}

/// One layer: a tar archive, not compressed.
#[derive(Debug, Clone)]
pub enum Layer {
    /// In memory.
    Bytes(Vec<u8>),
    /// In a file.
    File(PathBuf),
}

/// Hashes what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
    length: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }

    fn digest(self) -> (String, u64) {
        let hex: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        (hex, self.length)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a layout with one image for this machine's architecture into an existing directory.
///
/// # Errors
/// When a file can't be read or written.
pub fn write_layout(directory: &Path, layers: &[Layer], config: &Config) -> Result<()> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for layer in layers {
        let (diff_id, descriptor) = match layer {
            Layer::Bytes(bytes) => write_layer(&blobs, bytes.as_slice())?,
            Layer::File(path) => {
                write_layer(&blobs, File::open(path).with_context(|| path.display().to_string())?)?
            }
        };
        diff_ids.push(diff_id);
        descriptors.push(descriptor);
    }
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": write_document(&blobs, "application/vnd.oci.image.config.v1+json", &config)?,
        "layers": descriptors,
    });
    let index = json!({
        "schemaVersion": 2,
        "manifests": [
            write_document(&blobs, "application/vnd.oci.image.manifest.v1+json", &manifest)?,
        ],
    });
    fs::write(directory.join("index.json"), index.to_string())?;
    fs::write(directory.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    Ok(())
}

fn write_layer(blobs: &Path, mut tar: impl Read) -> Result<(String, Value)> {
    let unfinished = blobs.join("unfinished");
    let compressed = Hashing::new(io::BufWriter::new(File::create(&unfinished)?));
    let mut plain = Hashing::new(GzEncoder::new(compressed, Compression::fast()));
    io::copy(&mut tar, &mut plain)?;
    let Hashing { inner, hash, length } = plain;
    let mut compressed = inner.finish()?;
    compressed.flush()?;
    let (diff_id, _) = Hashing { inner: (), hash, length }.digest();
    let (digest, size) = compressed.digest();
    fs::rename(unfinished, blobs.join(&digest))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Ok((format!("sha256:{diff_id}"), descriptor(media_type, &digest, size)))
}

fn write_document(blobs: &Path, media_type: &str, document: &Value) -> Result<Value> {
    let text = document.to_string();
    let mut hashing = Hashing::new(Vec::new());
    hashing.write_all(text.as_bytes())?;
    let (digest, size) = hashing.digest();
    fs::write(blobs.join(&digest), text)?;
    Ok(descriptor(media_type, &digest, size))
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_has_the_digest_it_is_named_by() {
        let directory = tempfile::tempdir().unwrap();
        write_layout(directory.path(), &[Layer::Bytes(vec![0; 1024])], &Config::default()).unwrap();
        let blobs: Vec<_> = fs::read_dir(directory.path().join("blobs/sha256"))
            .unwrap()
            .map(|e| e.unwrap())
            .collect();
        assert_eq!(blobs.len(), 3);
        for blob in blobs {
            let mut hashing = Hashing::new(Vec::new());
            hashing.write_all(&fs::read(blob.path()).unwrap()).unwrap();
            assert_eq!(hashing.digest().0, blob.file_name().into_string().unwrap());
        }
    }
}
