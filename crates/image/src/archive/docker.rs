//! What `docker save` and `skopeo copy … docker-archive:` write: a `manifest.json` that names config and layers.
//!
//! It has no manifest with a digest, so one is made up from what is in it: the same archive contents give the same
//! digest everywhere.

use serde::Deserialize;

use super::{Contents, files::Files};
use crate::{
    ImageError, Limits,
    manifest::{digest_of, parse_config},
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

pub(super) fn read(files: Files, wanted: Option<&str>, limits: &Limits) -> Result<Contents, ImageError> {
    let what = "docker archive";
    let bytes = files.read("manifest.json", limits.manifest_bytes)?;
    let items: Vec<Item> = serde_json::from_slice(&bytes)
        .map_err(|error| ImageError::corrupt(format!("manifest.json of the {what}"), error.to_string()))?;
    let tags = |item: &Item| item.repo_tags.clone().unwrap_or_default();
    let item = match (wanted, items.as_slice()) {
        (None, [item]) => item,
        (Some(wanted), items) => items
            .iter()
            .find(|item| tags(item).iter().any(|tag| tag == wanted || *tag == format!("{wanted}:latest")))
            .ok_or_else(|| not_one(wanted, &items.iter().flat_map(tags).collect::<Vec<_>>()))?,
        (None, items) => return Err(not_one("", &items.iter().flat_map(tags).collect::<Vec<_>>())),
    };
    if item.layers.len() > limits.layers {
        let limit = format!("limits.layers is {}; squash the image", limits.layers);
        return Err(ImageError::too_large(format!("{what} with {} layers", item.layers.len()), limit));
    }
    let config_bytes = files.read(&item.config, limits.config_bytes)?;
    let config = parse_config(what, &config_bytes, item.layers.len())?;
    let layers = item.layers.iter().map(|layer| files.find(layer)).collect::<Result<Vec<_>, _>>()?;

    let described: Vec<_> = config
        .diff_ids
        .iter()
        .zip(&layers)
        .map(|(digest, layer)| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.length,
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(&config_bytes), "size": config_bytes.len(),
        },
        "layers": described,
    });
    let name = wanted.map(str::to_owned).or_else(|| tags(item).into_iter().next());
    Ok(Contents { digest: digest_of(manifest.to_string().as_bytes()), config, layers, name })
}

fn not_one(wanted: &str, known: &[String]) -> ImageError {
    ImageError::NotFound {
        what: format!("docker-archive image {wanted}"),
        hint: format!("name one of those in the archive as docker-archive:FILE:NAME: {}", known.join(", ")),
    }
}
