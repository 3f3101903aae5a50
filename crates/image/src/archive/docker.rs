//! What `docker save` and `skopeo copy … docker-archive:` write: a `manifest.json` that names
//! config and layers.
//!
//! It has no manifest with a digest, so one is made up from what is in it: the same archive
//! contents give the same digest everywhere.

use std::collections::HashSet;

use serde::Deserialize;

use super::{
    contents::{Contents, DOCKER},
    files::Files,
    names::{self, Named},
};
use crate::{
    Digest, ImageError, ImageStoreConfig, Limits, json,
    manifest::{Config, parse_config},
};

const WHAT: &str = "docker archive";
/// Builds of one image that are looked at.
const MOST_BUILDS: usize = 32;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    config: String,
    #[serde(rename = "repotags")]
    tags: Vec<String>,
    layers: Vec<String>,
}

impl Named for Item {
    const ARE_BUILDS: bool = false;

    fn content(&self) -> &str {
        &self.config
    }

    fn names(&self) -> Vec<&str> {
        self.tags.iter().map(String::as_str).collect()
    }
}

pub(super) fn read(
    files: &Files,
    wanted: Option<&str>,
    store: &ImageStoreConfig,
) -> Result<Contents, ImageError> {
    let bytes = files.read(DOCKER, store.limits.manifest_bytes)?;
    let items: Vec<Item> = json::read(&bytes).map_err(|error| {
        ImageError::corrupt(format!("{} of the {WHAT}", DOCKER), error.to_string())
    })?;
    let mut best: Option<(Option<u8>, &Item, Vec<u8>, Config)> = None;
    let picked = names::pick(&items, wanted)?;
    // Tags of one image may be items of their own.
    let mut read = HashSet::new();
    for &item in &picked {
        if !read.insert((&item.config, &item.layers)) {
            continue;
        }
        if read.len() > MOST_BUILDS {
            return Err(ImageError::too_large(
                WHAT,
                format!("{MOST_BUILDS} builds of an image are looked at"),
            ));
        }
        let (config_bytes, config) = config_of(files, item, &store.limits)?;
        let needs = config.platform.needs(store.amd64_level);
        if best.as_ref().is_none_or(|(found, ..)| needs > *found) {
            best = Some((needs, item, config_bytes, config));
        }
    }
    let (_, item, config_bytes, config) =
        best.ok_or_else(|| ImageError::corrupt(WHAT, "it is empty"))?;
    let config = config.runs_with(WHAT, store.amd64_level)?;
    let names = match wanted {
        Some(name) if !name.starts_with('@') => vec![name.to_owned()],
        _ => picked.iter().flat_map(|item| item.tags.clone()).collect(),
    };
    let layers =
        item.layers.iter().map(|layer| files.find(layer)).collect::<Result<Vec<_>, _>>()?;
    let described: Vec<_> = config
        .diff_ids
        .iter()
        .zip(&layers)
        .map(|(digest, layer)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest,
                "size": layer.length,
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config_bytes), "size": config_bytes.len(),
        },
        "layers": described,
    });
    Ok(Contents { digest: Digest::of(manifest.to_string().as_bytes()), config, layers, names })
}

fn config_of(files: &Files, item: &Item, limits: &Limits) -> Result<(Vec<u8>, Config), ImageError> {
    if item.layers.len() > limits.layers {
        let limit = format!("limits.layers is {}; squash the image", limits.layers);
        return Err(ImageError::too_large(
            format!("{WHAT} with {} layers", item.layers.len()),
            limit,
        ));
    }
    let bytes = files.read(&item.config, limits.config_bytes)?;
    let config = parse_config(WHAT, &bytes, item.layers.len())?;
    Ok((bytes, config))
}
