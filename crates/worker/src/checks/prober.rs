//! How a check is carried out: behind a trait, so that tests decide what it finds.

use std::net::SocketAddr;

use async_trait::async_trait;
use caddis_api::{
    MachineId,
    config::{Check, CheckProtocol, CheckType},
};

/// Longest summary of a finding, and longest part of a response that is shown with it, bytes.
const LONGEST_SUMMARY: usize = 512;
pub(super) const LONGEST_BODY: usize = 256;

/// Carries out checks.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Tries a check once. Whoever asks gives up when its time is over, by dropping this.
    async fn probe(&self, probe: &Probe) -> Finding;
}

/// A check of one machine.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Whose.
    pub machine: MachineId,
    /// Its name.
    pub name: String,
    /// Where the machine's host reaches it.
    pub address: SocketAddr,
    /// How it is carried out.
    pub kind: CheckType,
    /// Its details.
    pub check: Check,
}

impl Probe {
    /// Whether it is over TLS.
    pub fn is_https(&self) -> bool {
        self.kind == CheckType::Http && self.check.protocol == Some(CheckProtocol::Https)
    }

    /// Method of the request.
    pub fn method(&self) -> String {
        let method = self.check.method.as_deref().filter(|method| !method.is_empty());
        method.unwrap_or("GET").to_ascii_uppercase()
    }

    /// Path of the request.
    pub fn path(&self) -> &str {
        self.check.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/")
    }

    /// What is tried, as the beginning of a finding: `HTTP GET http://10.0.0.2:8080/`.
    pub fn subject(&self) -> String {
        let address = self.address;
        match self.kind {
            CheckType::Tcp => format!("TCP connect {address}"),
            CheckType::Http => {
                let scheme = if self.is_https() { "https" } else { "http" };
                format!("HTTP {} {scheme}://{address}{}", self.method(), self.path())
            }
        }
    }
}

/// What an attempt has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// It has succeeded.
    pub passed: bool,
    /// What was tried, and how it went.
    pub summary: String,
    /// The beginning of the response.
    pub body: String,
}

impl Finding {
    /// A failure without a response.
    pub fn failed(summary: String) -> Self {
        Self { passed: false, summary, body: String::new() }
    }

    /// All of it, for the user. Bounded, without control characters.
    pub fn output(&self) -> String {
        let summary = printable(&self.summary, LONGEST_SUMMARY);
        let body = printable(self.body.trim(), LONGEST_BODY);
        if body.is_empty() { summary } else { format!("{summary} Output: \"{body}\"") }
    }
}

fn printable(text: &str, longest: usize) -> String {
    let end = text.floor_char_boundary(longest);
    let shown = text[..end].chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = shown.collect();
    if end < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_bounded_and_printable() {
        let finding = Finding {
            passed: true,
            summary: format!("HTTP GET http://a/{}", "x".repeat(5000)),
            body: format!("one\ntwo\x1b[31m{}\n", "é".repeat(5000)),
        };
        let output = finding.output();
        assert!(output.len() < LONGEST_SUMMARY + LONGEST_BODY + 40, "{}", output.len());
        assert!(output.contains("Output: \"one two [31mé"), "{output}");
        assert!(!output.contains(char::is_control));
        assert_eq!(Finding::failed("no".to_owned()).output(), "no");
    }
}
