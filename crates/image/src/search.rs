//! Which of the builds in an index runs here: the one for the highest level of amd64 that the VMs'
//! processor has.
//!
//! ```text
//!  index ─▶ entry with a platform ────▶ fits, or is listed in the error
//!       ├─▶ another index ────────────▶ opened, its entries are of the platform that it was given
//!       └─▶ entry without a platform ─▶ opened if none fits: its configuration says what it is for
//! ```

use std::collections::{HashSet, VecDeque};

use crate::{
    Digest, ImageError,
    manifest::{Descriptor, sound_digest},
    platform::{Platform, ours},
};

/// Deepest nesting of an index in an index.
const DEEPEST: usize = 4;
/// Most indexes and manifests that are opened to find the one.
const MOST_OPENED: usize = 32;
/// Platforms that an error lists.
const MOST_LISTED: usize = 20;

/// What to do next to find the manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Open this: [`Search::add`] what is in an index, or [`Search::decide`] what a manifest's
    /// configuration says.
    Open(Digest),
    /// It is this. Should it be an index after all, [`Search::add`] what is in it.
    Take(Digest),
}

/// Finds the manifest to run among the entries of indexes.
#[derive(Debug)]
pub(crate) struct Search {
    what: String,
    level: u8,
    /// What was last given out; nothing while the first index is read.
    current: Option<Candidate>,
    best: Option<(u8, Candidate)>,
    indexes: VecDeque<Candidate>,
    unsaid: VecDeque<Candidate>,
    /// No index is opened twice, so that none leads round in circles.
    seen: HashSet<Digest>,
    opened: usize,
    others: Vec<String>,
    /// What is no container image.
    odd: Option<ImageError>,
    /// Whether none says that it fits, so that configurations decide.
    deciding: bool,
}

#[derive(Debug, Clone)]
struct Candidate {
    digest: Digest,
    depth: usize,
    platform: Platform,
}

impl Search {
    /// For a processor with this level of amd64, 1 to 4. `what` names the image in errors.
    pub(crate) fn new(what: &str, level: u8) -> Self {
        Self {
            what: what.to_owned(),
            level,
            current: None,
            best: None,
            indexes: VecDeque::new(),
            unsaid: VecDeque::new(),
            seen: HashSet::new(),
            opened: 0,
            others: Vec::new(),
            odd: None,
            deciding: false,
        }
    }

    /// Takes in the entries of the index that was given out last, or of the first.
    pub(crate) fn add(&mut self, entries: &[Descriptor]) -> Result<(), ImageError> {
        let (above, depth) = match &self.current {
            Some(index) => (index.platform.clone(), index.depth + 1),
            None => (Platform::default(), 1),
        };
        if depth > DEEPEST {
            return Err(ImageError::unsupported(
                format!("image {}", self.what),
                "its indexes are nested too deep",
            ));
        }
        for entry in entries.iter().filter(|entry| !entry.is_attestation()) {
            let platform = match &entry.platform {
                Some(platform) if !platform.is_unsaid() => platform.clone(),
                _ => above.clone(),
            };
            let needs = platform.needs(self.level);
            if needs.is_none() {
                self.list(&platform);
                continue;
            }
            let digest = sound_digest(&self.what, &entry.digest)?;
            if !self.seen.insert(digest.clone()) {
                continue;
            }
            let candidate = Candidate { digest, depth, platform };
            if entry.is_index() {
                self.indexes.push_back(candidate);
            } else if candidate.platform.is_unsaid() {
                self.unsaid.push_back(candidate);
            } else if let Some(needs) = needs {
                self.propose(needs, candidate);
            }
        }
        Ok(())
    }

    /// Takes in what the configuration of the manifest that was given out last says it is for, or
    /// that it is none of a container image.
    pub(crate) fn decide(
        &mut self,
        platform: Result<Platform, ImageError>,
    ) -> Result<(), ImageError> {
        match platform {
            Ok(platform) => match (platform.needs(self.level), self.current.clone()) {
                (Some(needs), Some(manifest)) => {
                    self.propose(needs, Candidate { platform, ..manifest });
                }
                _ => self.list(&platform),
            },
            Err(error @ ImageError::Unsupported { .. }) => drop(self.odd.get_or_insert(error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What to do now.
    pub(crate) fn next(&mut self) -> Result<Step, ImageError> {
        let mut candidate = self.indexes.pop_front();
        if candidate.is_none() && (self.deciding || self.best.is_none()) {
            self.deciding = true;
            candidate = self.unsaid.pop_front();
        }
        if let Some(candidate) = candidate {
            self.opened += 1;
            if self.opened > MOST_OPENED {
                let reason = format!(
                    "more than {MOST_OPENED} entries of its indexes must be opened to know what \
                     they are"
                );
                return Err(ImageError::unsupported(format!("image {}", self.what), reason));
            }
            let digest = candidate.digest.clone();
            self.current = Some(candidate);
            return Ok(Step::Open(digest));
        }
        let Some((_, best)) = self.best.take() else { return Err(self.nothing()) };
        let digest = best.digest.clone();
        self.current = Some(best);
        Ok(Step::Take(digest))
    }

    /// The highest level wins, and of equals the first.
    fn propose(&mut self, needs: u8, candidate: Candidate) {
        if self.best.as_ref().is_none_or(|(best, _)| needs > *best) {
            self.best = Some((needs, candidate));
        }
    }

    fn list(&mut self, platform: &Platform) {
        let name = platform.to_string();
        if self.others.len() < MOST_LISTED && !self.others.contains(&name) {
            self.others.push(name);
        }
    }

    fn nothing(&self) -> ImageError {
        if let (true, Some(error)) = (self.others.is_empty(), &self.odd) {
            return error.clone();
        }
        let others =
            if self.others.is_empty() { "nothing".to_owned() } else { self.others.join(", ") };
        let reason =
            format!("it must have a build for {}, and has only: {others}", ours(self.level));
        ImageError::unsupported(format!("image {}", self.what), reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> Digest {
        format!("sha256:{number:064}").parse().unwrap()
    }

    /// An entry by what it is for: `linux/amd64/v3`, `index`, `index linux/arm64`, or nothing.
    fn entry(number: usize, is_for: &str) -> Descriptor {
        let (index, platform) =
            is_for.strip_prefix("index").map_or((false, is_for), |rest| (true, rest.trim()));
        let kind = if index { "application/vnd.oci.image.index.v1+json" } else { "" };
        Descriptor {
            media_type: kind.to_owned(),
            digest: digest(number).to_string(),
            platform: (!platform.is_empty()).then(|| self::platform(platform)),
            ..Descriptor::default()
        }
    }

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Platform::new(next(), next(), next())
    }

    fn search(level: u8, entries: &[&str]) -> Search {
        let mut search = Search::new("app", level);
        let entries: Vec<_> =
            entries.iter().enumerate().map(|(number, is_for)| entry(number, is_for)).collect();
        search.add(&entries).unwrap();
        search
    }

    #[test]
    fn the_highest_level_that_the_processor_has_is_taken_wherever_it_is_listed() {
        let levels =
            ["linux/amd64/v2", "linux/arm64/v8", "linux/amd64", "linux/amd64/v4", "linux/amd64/v3"];
        for (level, expected) in [(1, 2), (2, 0), (3, 4), (4, 3)] {
            let mut reversed = levels;
            reversed.reverse();
            assert_eq!(
                search(level, &levels).next().unwrap(),
                Step::Take(digest(expected)),
                "v{level}"
            );
            assert_eq!(
                search(level, &reversed).next().unwrap(),
                Step::Take(digest(4 - expected)),
                "v{level}"
            );
        }
        // Plain is v1, and the first of equals is taken; other spellings are known.
        assert_eq!(
            search(4, &["linux/amd64/v1", "linux/amd64"]).next().unwrap(),
            Step::Take(digest(0))
        );
        assert_eq!(
            search(3, &["Linux/x86_64/V3", "linux/amd64"]).next().unwrap(),
            Step::Take(digest(0))
        );
        for nonsense in [
            "linux/amd64/v0",
            "linux/amd64/v9",
            "linux/amd64/x",
            "linux/amd64/v300",
            "linux/amd64/v",
        ] {
            assert_eq!(
                search(4, &[nonsense, "linux/amd64"]).next().unwrap(),
                Step::Take(digest(1)),
                "{nonsense}"
            );
        }
    }

    #[test]
    fn what_there_is_instead_is_listed() {
        let error =
            search(3, &["linux/arm64/v8", "windows/amd64", "linux/amd64/v4", "windows/amd64"])
                .next()
                .unwrap_err();
        let listed = "for linux/amd64, at most v3, and has only: linux/arm64/v8, windows/amd64, \
                      linux/amd64/v4";
        assert!(error.to_string().ends_with(listed), "{error}");
        assert!(search(1, &[]).next().unwrap_err().to_string().ends_with("has only: nothing"));
        let error = search(1, &["unknown/unknown", "linux/s390x"]).next().unwrap_err();
        assert!(
            error.to_string().ends_with("only: linux/s390x"),
            "attestations are no builds: {error}"
        );
    }

    #[test]
    fn indexes_in_an_index_are_opened_and_their_entries_are_what_the_index_was_said_to_be() {
        let mut found =
            search(3, &["index linux/arm64", "index linux/amd64/v3", "linux/amd64", "index"]);
        assert_eq!(found.next().unwrap(), Step::Open(digest(1)));
        found.add(&[entry(10, ""), entry(11, "unknown/unknown")]).unwrap();
        assert_eq!(found.next().unwrap(), Step::Open(digest(3)));
        found.add(&[entry(12, "linux/arm64"), entry(13, "linux/amd64/v2")]).unwrap();
        assert_eq!(found.next().unwrap(), Step::Take(digest(10)));
        // What was listed as a manifest may be an index.
        found.add(&[entry(20, "")]).unwrap();
        assert_eq!(found.next().unwrap(), Step::Take(digest(20)));
    }

    #[test]
    fn entries_without_platform_are_decided_by_their_configuration_if_none_says_that_it_fits() {
        let mut found = search(3, &["", "linux/arm64", "", ""]);
        for (number, says) in [(0, "linux/arm64"), (2, "linux/amd64"), (3, "linux/amd64/v3")] {
            assert_eq!(found.next().unwrap(), Step::Open(digest(number)));
            found.decide(Ok(platform(says))).unwrap();
        }
        assert_eq!(found.next().unwrap(), Step::Take(digest(3)));
        assert_eq!(
            search(3, &["", "linux/amd64", ""]).next().unwrap(),
            Step::Take(digest(1)),
            "nothing is opened"
        );
        let mut found = search(3, &[""]);
        found.next().unwrap();
        found
            .decide(Err(ImageError::unsupported("a chart", "only container images can be run")))
            .unwrap();
        found.decide(Ok(platform("linux/riscv64"))).unwrap();
        assert!(found.next().unwrap_err().to_string().ends_with("only: linux/riscv64"));
    }

    #[test]
    fn indexes_end_however_they_are_nested() {
        // One that holds itself, or others many times.
        let mut found = search(1, &["index", "index"]);
        let mut opened = 0;
        let error = loop {
            match found.next() {
                Ok(Step::Open(_)) => {
                    found.add(&[entry(0, "index"), entry(1, "index"), entry(1, "")]).unwrap()
                }
                Ok(Step::Take(taken)) => panic!("{taken}"),
                Err(error) => break error,
            }
            opened += 1;
        };
        assert!(opened == 2 && error.to_string().ends_with("nothing"), "{opened}: {error}");
        let mut found = search(1, &["index"]);
        let error = (1..).find_map(|depth| {
            found.next().unwrap();
            found.add(&[entry(depth, "index")]).err()
        });
        assert!(error.unwrap().to_string().contains("nested"));
        let mut found = search(1, &["index"; 40]);
        let error = (0..=MOST_OPENED).find_map(|_| found.next().err()).unwrap();
        assert!(error.to_string().contains("more than 32"), "{error}");
    }

    #[test]
    fn only_sha256_is_known() {
        let mut search = Search::new("app", 1);
        let other = Descriptor { digest: "sha512:12".to_owned(), ..Descriptor::default() };
        assert!(search.add(&[other]).unwrap_err().to_string().contains("sha256"));
    }
}
