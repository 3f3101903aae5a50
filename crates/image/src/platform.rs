//! What an image, or an entry of an index, is for.

use std::fmt;

use serde::Deserialize;

/// What a manifest is for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    pub(crate) fn new(os: String, architecture: String, variant: String) -> Self {
        Self { os, architecture, variant }
    }

    /// What is said of entries that are no builds.
    pub(crate) fn unknown() -> Self {
        Self::new("unknown".to_owned(), "unknown".to_owned(), String::new())
    }

    /// Whether nothing is said of it.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.architecture.is_empty()
    }

    /// The level of amd64 that it needs, where that runs with at most `level`. What is not said is
    /// as here.
    pub(crate) fn needs(&self, level: u8) -> Option<u8> {
        let is =
            |text: &str, any: &[&str]| any.iter().any(|known| text.eq_ignore_ascii_case(known));
        if !is(&self.os, &["", "linux"])
            || !is(&self.architecture, &["", "amd64", "x86_64", "x86-64"])
        {
            return None;
        }
        let needed = match self.variant.to_ascii_lowercase().as_str() {
            "" => Some(1),
            variant => variant.strip_prefix('v')?.parse().ok(),
        };
        needed.filter(|needed| (1..=level).contains(needed))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |text: &str, default: &str| {
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        write!(formatter, "{}/{}", or(&self.os, "linux"), or(&self.architecture, "amd64"))?;
        if self.variant.is_empty() { Ok(()) } else { write!(formatter, "/{}", self.variant) }
    }
}

/// What runs here, in words.
pub(crate) fn ours(level: u8) -> String {
    if level > 1 { format!("linux/amd64, at most v{level}") } else { "linux/amd64".to_owned() }
}
