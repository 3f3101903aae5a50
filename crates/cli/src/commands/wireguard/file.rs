//! Keys, and the file that `wg-quick` and the WireGuard apps take.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::agreement::{PrivateKey, X25519};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use caddis_api::wireguard::WireGuardPeerReply;
use rand::Rng as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{CliError, session::Session};

/// Largest packet within the tunnel, bytes: as machines have it, and what fits into 1500 with all
/// that is around it.
const MTU: u32 = 1420;
/// Seconds between packets that keep a way open through NAT, as in the reference.
const KEEPALIVE: u32 = 15;
/// Longest name of an interface, bytes, which `wg-quick` takes from that of the file.
const LONGEST_NAME: usize = 15;

/// A key pair; the private key does not leave this computer.
pub struct KeyPair {
    private: Zeroizing<[u8; 32]>,
    /// In base64.
    pub public: String,
}

impl KeyPair {
    /// A new one.
    pub fn random() -> Result<Self, CliError> {
        let mut private = Zeroizing::new(rand::rng().random::<[u8; 32]>());
        // As `wg genkey` has them.
        private[0] &= 248;
        private[31] = private[31] & 127 | 64;
        Self::of(private)
    }

    fn of(private: Zeroizing<[u8; 32]>) -> Result<Self, CliError> {
        let key = PrivateKey::from_private_key(&X25519, &*private);
        let public = key.ok().and_then(|key| key.compute_public_key().ok());
        let public = public.ok_or_else(|| CliError::new("could not make a key pair"))?;
        Ok(Self { private, public: STANDARD.encode(public) })
    }
}

/// Where the file goes.
pub enum Target {
    /// To standard output.
    Output,
    /// To a file that is not there yet, or is to be written over.
    File { path: PathBuf, replace: bool },
}

impl Target {
    /// Checks that a file could be written, before anything is changed.
    pub fn check(path: Option<PathBuf>, replace: bool) -> Result<Self, CliError> {
        let Some(path) = path.filter(|path| path != Path::new("-")) else {
            return Ok(Self::Output);
        };
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"_=+.-".contains(&b);
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let interface = name.strip_suffix(".conf").unwrap_or_default();
        if !(1..=LONGEST_NAME).contains(&interface.len()) || !interface.bytes().all(legal) {
            return Err(CliError::with_hint(
                format!("invalid file name '{name}'"),
                "wg-quick takes the interface's name from it: use NAME.conf, with at most 15 \
                 letters, digits, dashes and dots.",
            ));
        }
        if !replace && path.exists() {
            return Err(CliError::with_hint(
                format!("{} is already there", path.display()),
                "Name another file, or remove it.",
            ));
        }
        Ok(Self::File { path, replace })
    }

    /// Writes it, and shows what was written where; with `json` as JSON, which holds the
    /// configuration itself where it goes to no file.
    pub fn write(
        &self,
        session: &Session,
        org: &str,
        keys: &KeyPair,
        reply: &WireGuardPeerReply,
        json: bool,
    ) -> Result<(), CliError> {
        let text = text(keys, reply);
        let printer = &session.printer;
        let Self::File { path, replace } = self else {
            if json {
                printer.json(&Written { reply, file: None, configuration: Some(&text) })?;
            } else {
                printer.raw_out(&text)?;
            }
            return Ok(());
        };
        let attempted = |error: std::io::Error| {
            let hint = format!(
                "The peer is there: 'caddis wireguard reset {org} {}' writes the file anew.",
                reply.peer.name
            );
            CliError::with_hint(format!("could not write {}: {error}", path.display()), hint)
        };
        if *replace {
            // What is there may be readable by others.
            let _ = std::fs::remove_file(path);
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(attempted)?;
        if json {
            let written = Written { reply, file: Some(path), configuration: None };
            return Ok(printer.json(&written)?);
        }
        let path = path.display();
        Ok(printer.out(format_args!(
            "Wrote WireGuard configuration to {path}; connect with: sudo wg-quick up {path}"
        ))?)
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(flatten)]
    reply: &'a WireGuardPeerReply,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration: Option<&'a str>,
}

fn text(keys: &KeyPair, reply: &WireGuardPeerReply) -> Zeroizing<String> {
    let (peer, server) = (&reply.peer, &reply.server);
    let private = Zeroizing::new(STANDARD.encode(*keys.private));
    Zeroizing::new(format!(
        "[Interface]\nPrivateKey = {}\nAddress = {}/128\nDNS = {}\nMTU = {MTU}\n\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = {}\nEndpoint = {}\n\
         PersistentKeepalive = {KEEPALIVE}\n",
        *private, peer.peer_ip, server.dns, server.public_key, server.allowed_ips, server.endpoint,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7748, section 6.1.
    #[test]
    fn a_public_key_is_that_of_its_private_key() {
        let private = STANDARD.decode("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=").unwrap();
        let keys = KeyPair::of(Zeroizing::new(private.try_into().unwrap())).unwrap();
        assert_eq!(keys.public, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
        assert_ne!(KeyPair::random().unwrap().public, KeyPair::random().unwrap().public);
    }

    #[test]
    fn only_names_that_wg_quick_takes_are_taken() {
        let check = |name: &str| Target::check(Some(name.into()), false);
        for good in ["a.conf", "/nowhere/caddis.conf", "fifteen-letters.conf"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["a", ".conf", "sixteen-letters-.conf", "a b.conf", "a.txt", "/"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(matches!(check("-"), Ok(Target::Output)));
    }
}
