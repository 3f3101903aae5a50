//! An image of about 350 MB: a base with a shell, layers of many small files that compress like
//! programs' text, and layers of large files that don't. The same bytes every time; kept from one
//! run to the next.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use caddis_testkit::images::{Config, Layer, write_layout};
use tar::{Builder, Header};

/// Changes whenever the recipe does.
const NAME: &str = "image-2";
/// Of each kind.
const LAYERS: u64 = 3;
/// Small files per layer: 3000 of 16 KiB in the mean, 48 MiB.
const SMALL_FILES: u64 = 3000;
/// Large files per layer, and their size.
const LARGE_FILES: u64 = 8;
const LARGE_SIZE: u64 = 8 << 20;
/// Words that text is made of.
const WORDS: [&str; 16] = [
    "return", "self", "import", "0x7fff", "the ", "machine", " = ", "(\n    ", "error", "; ",
    "public", "const ", "of ", "if ", "length", "}\n",
];

/// The OCI layout of the image in `directory`, made when it isn't there.
///
/// # Errors
/// When there is no room for it.
pub fn layout(directory: &Path) -> Result<PathBuf> {
    let goal = directory.join(NAME);
    if goal.exists() {
        return Ok(goal);
    }
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let work = tempfile::Builder::new().prefix(".making-").tempdir_in(directory)?;
    let mut layers = Vec::new();
    for number in 0..LAYERS {
        for (kind, write) in
            [("text", small_files as fn(&mut Builder<_>, u64) -> Result<()>), ("data", large_files)]
        {
            let path = work.path().join(format!("{kind}{number}.tar"));
            let mut tree = Builder::new(BufWriter::new(File::create(&path)?));
            write(&mut tree, number)?;
            tree.into_inner()?.into_inner()?;
            layers.push(Layer::File(path));
        }
    }
    let made = work.path().join("layout");
    fs::create_dir(&made)?;
    let config = Config { cmd: vec!["/bin/true".to_owned()], ..Config::default() };
    write_layout(&made, &layers, &config)?;
    fs::rename(&made, &goal).with_context(|| format!("keeping {}", goal.display()))?;
    Ok(goal)
}

fn small_files(tree: &mut Builder<BufWriter<File>>, layer: u64) -> Result<()> {
    let mut random = Random(layer + 1);
    for number in 0..SMALL_FILES {
        let size = 1 + random.next() % (32 << 10);
        let mut text = String::new();
        while (text.len() as u64) < size {
            text += WORDS[(random.next() % WORDS.len() as u64) as usize];
        }
        let path = format!("usr/lib/text{layer}/{:02}/file{number}.txt", number % 100);
        append(tree, &path, text.len() as u64, text.as_bytes())?;
    }
    Ok(())
}

fn large_files(tree: &mut Builder<BufWriter<File>>, layer: u64) -> Result<()> {
    for number in 0..LARGE_FILES {
        let bytes = Random(1000 + layer * LARGE_FILES + number);
        append(
            tree,
            &format!("usr/share/data{layer}/file{number}.bin"),
            LARGE_SIZE,
            bytes.take(LARGE_SIZE),
        )?;
    }
    Ok(())
}

fn append(
    tree: &mut Builder<BufWriter<File>>,
    path: &str,
    size: u64,
    data: impl Read,
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(0);
    tree.append_data(&mut header, path, data)?;
    Ok(())
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers from the same begin, and bytes that don't
/// compress.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Read for Random {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.next().to_le_bytes();
            chunk.copy_from_slice(bytes.get(..chunk.len()).unwrap_or_default());
        }
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_begin_gives_the_same_bytes() {
        let bytes = |seed| {
            let mut bytes = [0; 20];
            Random(seed).read_exact(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(bytes(7), bytes(7));
        assert_ne!(bytes(7), bytes(8));
    }
}
