//! What comes from outside, damaged in all ways: whatever is made of sound input, reading it ends,
//! panics never, and says what is wrong in a line that can be shown. `CADDIS_SOAK=1` tries longer.

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::json;

use crate::{
    Digest, ImageError, Limits,
    layer::{pax, tar::TarReader, unpack::inside_path},
    manifest::{self, Document, parse_config},
    search::{Search, Step},
};

/// Most memory that all of this may have taken, bytes; inputs are of a few KiB.
const MOST_MEMORY: u64 = 512 << 20;

/// A change to an input. Places are parts of its length.
#[derive(Debug, Clone)]
enum Damage {
    Set(f64, u8),
    Flip(f64, u8),
    Remove(f64, usize),
    Repeat(f64, usize, usize),
    Insert(f64, &'static [u8]),
    Cut(f64),
}

/// What is worth inserting.
const TOKENS: [&[u8]; 16] = [
    b"null",
    b"\"",
    b"{",
    b"[",
    b"}",
    b",",
    b"-1",
    b"18446744073709551616",
    b"1e999",
    b"\0",
    b"\xff",
    b"\\ud800",
    b"../",
    b"=",
    b"\n",
    b" ",
];

fn damage() -> impl Strategy<Value = Damage> {
    let place = || 0.0..1.0f64;
    prop_oneof![
        (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        (place(), 0..8u8).prop_map(|(at, bit)| Damage::Flip(at, 1 << bit)),
        (place(), 1..40usize).prop_map(|(at, length)| Damage::Remove(at, length)),
        (place(), 1..600usize, 1..5usize)
            .prop_map(|(at, length, times)| Damage::Repeat(at, length, times)),
        (place(), prop::sample::select(TOKENS.to_vec()))
            .prop_map(|(at, token)| Damage::Insert(at, token)),
        place().prop_map(Damage::Cut),
    ]
}

fn apply(input: &mut Vec<u8>, damage: &Damage) {
    let place = |at: f64| ((input.len() as f64 * at) as usize).min(input.len().saturating_sub(1));
    if input.is_empty() {
        return;
    }
    match *damage {
        Damage::Set(at, byte) => {
            let at = place(at);
            input[at] = byte;
        }
        Damage::Flip(at, bit) => {
            let at = place(at);
            input[at] ^= bit;
        }
        Damage::Remove(at, length) => {
            let at = place(at);
            input.drain(at..(at + length).min(input.len()));
        }
        Damage::Repeat(at, length, times) => {
            let at = place(at);
            let end = (at + length).min(input.len());
            let piece = input[at..end].repeat(times);
            input.splice(end..end, piece);
        }
        Damage::Insert(at, token) => {
            let at = place(at);
            input.splice(at..at, token.iter().copied());
        }
        Damage::Cut(at) => input.truncate(place(at)),
    }
}

/// Damages these inputs, and checks what is made of them.
#[track_caller]
pub(crate) fn damaged(sound: &[Vec<u8>], check: impl Fn(&[u8]) -> Result<(), TestCaseError>) {
    for input in sound {
        check(input).unwrap();
    }
    let cases = if std::env::var_os("CADDIS_SOAK").is_some() { 50_000 } else { 400 };
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let damages = prop::collection::vec(damage(), 1..8);
    let run =
        runner.run(&(prop::sample::select(sound.to_vec()), damages), |(mut input, damages)| {
            damages.iter().for_each(|damage| apply(&mut input, damage));
            check(&input)
        });
    run.unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    });
    assert!(peak.unwrap() << 10 < MOST_MEMORY, "{peak:?} KiB");
}

/// Fails unless an error can be shown to whoever named the image.
pub(crate) fn presentable(error: &ImageError) -> Result<(), TestCaseError> {
    let text = error.to_string();
    prop_assert!(error.is_client_fault() || error.is_retryable(), "{text}");
    prop_assert!(text.len() < 2000 && !text.contains(['\n', '\x1b', '\0']), "{text:?}");
    Ok(())
}

/// Whether it is what its type says.
fn is_digest(digest: &Digest) -> bool {
    digest.as_str().parse().as_ref() == Ok(digest)
}

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

#[test]
fn manifests_and_indexes() {
    let limits = Limits { layers: 20, ..Limits::default() };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "annotations": {"a": "b"},
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": digest('a'), "size": 12},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest('b'), "size": 34}],
    });
    let entry = |letter, kind: &str, variant: &str| {
        json!({"mediaType": format!("application/vnd.oci.image.{kind}.v1+json"),
               "digest": digest(letter), "size": 1,
               "platform": {"os": "linux", "architecture": "amd64", "variant": variant},
               "annotations": {"x": null}})
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry('c', "manifest", "v2"), entry('d', "index", ""),
                      {"digest": digest('e'), "size": 1}],
    });
    damaged(&[manifest.to_string().into(), index.to_string().into()], |input| {
        match manifest::parse("app", input, &limits) {
            Ok(Document::Manifest(manifest)) => {
                prop_assert!(manifest.layers.len() <= limits.layers);
                prop_assert!(
                    manifest
                        .layers
                        .iter()
                        .chain([&manifest.config])
                        .all(|blob| is_digest(&blob.digest))
                );
            }
            Ok(Document::Index(entries)) => {
                // As if all that it lists were itself.
                let mut search = Search::new("app", 2);
                let mut outcome = search.add(&entries);
                for round in 0.. {
                    prop_assert!(round < 100, "it ends");
                    outcome = match outcome.and_then(|()| search.next()) {
                        Ok(Step::Take(digest)) if is_digest(&digest) && round % 2 == 0 => break,
                        Ok(Step::Open(_) | Step::Take(_)) => search.add(&entries),
                        Err(error) => return presentable(&error),
                    };
                }
            }
            Err(error) => presentable(&error)?,
        }
        Ok(())
    });
}

#[test]
fn configurations() {
    let config = json!({
        "os": "linux", "architecture": "amd64", "variant": "v2",
        "created": "2026-01-01T00:00:00Z", "history": [{}],
        "rootfs": {"type": "layers", "diff_ids": [digest('a')]},
        "config": {"User": "web", "Env": ["A=1", "B"], "Cmd": ["a"], "Entrypoint": "b",
                   "WorkingDir": "/",
                   "Labels": {"x": "y", "z": null}, "ExposedPorts": {"80/tcp": {}},
                   "StopSignal": "SIGTERM"},
    });
    damaged(&[config.to_string().into()], |input| {
        match parse_config("app", input, 1).and_then(|config| config.runs_with("app", 3)) {
            Ok(config) => prop_assert!(config.diff_ids.iter().all(is_digest)),
            Err(error) => presentable(&error)?,
        }
        Ok(())
    });
}

fn archives() -> Vec<Vec<u8>> {
    let append = |archive: &mut tar::Builder<Vec<u8>>, kind, path: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_path(path).unwrap();
        header.set_cksum();
        archive.append(&header, data).unwrap();
    };
    use tar::EntryType as Type;
    let mut plain = tar::Builder::new(Vec::new());
    append(&mut plain, Type::Directory, "etc/", b"");
    append(&mut plain, Type::Regular, "etc/passwd", &[b'x'; 700]);
    append(&mut plain, Type::GNULongName, "././@LongLink", "a/../long/".repeat(30).as_bytes());
    append(&mut plain, Type::Regular, "short", b"data");
    append(&mut plain, Type::Char, "null", b"");
    let mut pax = tar::Builder::new(Vec::new());
    append(
        &mut pax,
        Type::XHeader,
        "pax",
        b"14 path=x/y/z\n12 uid=1000\n30 SCHILY.xattr.user.note=a=b\n17 mtime=12.5000\n",
    );
    append(&mut pax, Type::Regular, "short", b"data");
    append(
        &mut pax,
        Type::XHeader,
        "pax",
        b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n26 GNU.sparse.name=sparse\n27 \
          GNU.sparse.realsize=900\n",
    );
    append(
        &mut pax,
        Type::Regular,
        "sparse",
        &[b"1\n0\n4\n".to_vec(), vec![0; 506], b"data".to_vec()].concat(),
    );
    append(
        &mut pax,
        Type::XHeader,
        "pax",
        b"28 GNU.sparse.map=0,2,800,2\n24 GNU.sparse.size=1000\n",
    );
    append(&mut pax, Type::Regular, "sparse", b"data");
    [plain, pax].map(|archive| archive.into_inner().unwrap()).to_vec()
}

#[test]
fn tar_archives() {
    damaged(&archives(), |input| {
        // With checksums that are right, so that what is behind them is reached.
        let mut mended = input.to_vec();
        for block in mended.chunks_exact_mut(512) {
            if block.iter().any(|byte| *byte != 0) {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        for input in [input, &mended] {
            let mut reader = TarReader::new(input);
            let mut entries = 0;
            let mut length = 0;
            while let Ok(Some(entry)) = reader.next_entry() {
                entries += 1;
                prop_assert!(entries <= input.len() / 512 + 1);
                prop_assert!(!entry.path.contains(&0) && !entry.link.contains(&0));
                if let Ok(path) = inside_path(&entry.path) {
                    prop_assert!(
                        path.components()
                            .all(|part| matches!(part, std::path::Component::Normal(_)))
                    );
                }
                if let Some(map) = &entry.sparse {
                    prop_assert!(map.segments.len() <= input.len());
                }
                let data = reader.read_data(|data| {
                    length += data.len();
                    Ok::<_, std::io::Error>(())
                });
                if data.is_err() {
                    break;
                }
            }
            prop_assert!(length <= input.len());
        }
        Ok(())
    });
}

#[test]
fn pax_headers() {
    let block = b"14 path=x/y/z\n12 uid=1000\n30 SCHILY.xattr.user.note=a=b\n10 mtime=\n".to_vec();
    damaged(&[block], |input| {
        for (key, value) in pax::records(input).unwrap_or_default() {
            prop_assert!(key.len() + value.len() <= input.len());
            if let Some((_, nanoseconds)) = pax::time(value) {
                prop_assert!((0..1_000_000_000).contains(&nanoseconds));
            }
            let _ = pax::number(value);
        }
        Ok(())
    });
}
