//! Archives and layouts on disk.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::Path,
};

use serde_json::{Value, json};

use super::image::{Image, Layer};

/// An OCI layout without its index.
#[derive(Default)]
pub struct OciLayout {
    pub blobs: HashMap<String, Vec<u8>>,
}

impl OciLayout {
    pub fn add(&mut self, image: &Image) {
        self.blobs.extend(image.blobs.clone());
        self.blobs.insert(image.digest().to_string(), image.manifest_bytes());
    }

    /// Writes it with this index.json.
    pub fn write(&self, directory: &Path, index: &[u8]) {
        fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(
                directory.join("blobs/sha256").join(digest.trim_start_matches("sha256:")),
                bytes,
            )
            .unwrap();
        }
        fs::write(directory.join("index.json"), index).unwrap();
    }
}

/// Packs a directory.
pub fn tar(directory: &Path, file: &Path) {
    let mut archive = tar::Builder::new(File::create(file).unwrap());
    archive.append_dir_all(".", directory).unwrap();
    archive.finish().unwrap();
}

/// What `docker save` writes of these images and their tags.
pub fn docker(file: &Path, images: &[(&Image, Value)]) {
    let mut archive = Layer::new();
    let mut items = Vec::new();
    for (image, tags) in images {
        let config = image.manifest["config"]["digest"].as_str().unwrap();
        let name = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        archive = archive.file(&name(config), &image.blobs[config]);
        let layers = image.manifest["layers"].as_array().unwrap();
        for layer in layers {
            let digest = layer["digest"].as_str().unwrap();
            archive = archive.file(&name(digest), &image.blobs[digest]);
        }
        let layers: Vec<String> =
            layers.iter().map(|layer| name(layer["digest"].as_str().unwrap())).collect();
        items.push(json!({"Config": name(config), "RepoTags": tags, "Layers": layers}));
    }
    fs::write(file, archive.file("manifest.json", Value::from(items).to_string().as_bytes()).tar())
        .unwrap();
}
