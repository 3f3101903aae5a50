//! Chooses what runs guests.

use std::{net::SocketAddr, path::Path};

use anyhow::{Result, bail};
use caddis_vmm::{
    Accelerator,
    probe::{Verdict, probe},
};

use crate::settings::AcceleratorChoice;

/// File in the data directory that keeps the probe's verdict.
pub const VERDICT_FILE: &str = "kvm.json";

/// Chooses; the reason is for people. Blocks for the probe.
pub fn choose(
    choice: AcceleratorChoice,
    listen: SocketAddr,
    data_dir: &Path,
) -> Result<(Accelerator, String)> {
    if choice == AcceleratorChoice::Emulation {
        return Ok((Accelerator::Emulation, "requested".to_owned()));
    }
    decide(choice, listen, &probe(Some(&data_dir.join(VERDICT_FILE))))
}

fn decide(
    choice: AcceleratorChoice,
    listen: SocketAddr,
    verdict: &Verdict,
) -> Result<(Accelerator, String)> {
    match choice {
        AcceleratorChoice::Emulation => Ok((Accelerator::Emulation, "requested".to_owned())),
        _ if verdict.usable => Ok((Accelerator::Kvm, verdict.reason.clone())),
        AcceleratorChoice::Kvm => {
            bail!("KVM does not work here: {}; see caddis doctor", verdict.reason)
        }
        AcceleratorChoice::Auto if listen.ip().is_loopback() => {
            Ok((Accelerator::Emulation, verdict.reason.clone()))
        }
        AcceleratorChoice::Auto => bail!(
            "KVM does not work here ({}), and emulation is not a security boundary, so caddis does \
             not serve others on {listen}. Use a host with hardware virtualization, listen on \
             127.0.0.1, or, if only you use it, set --accelerator emulation",
            verdict.reason
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_is_never_chosen_silently_for_others() {
        let verdict = |usable: bool| -> Verdict {
            serde_json::from_value(
                serde_json::json!({ "usable": usable, "reason": "r", "boot_id": "b" }),
            )
            .unwrap()
        };
        let (loopback, others): (SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
        let chosen = |choice, listen, usable| {
            decide(choice, listen, &verdict(usable)).map(|(chosen, _)| chosen).ok()
        };
        for (choice, listen, usable, expected) in [
            (AcceleratorChoice::Auto, loopback, true, Some(Accelerator::Kvm)),
            (AcceleratorChoice::Auto, loopback, false, Some(Accelerator::Emulation)),
            (AcceleratorChoice::Auto, others, true, Some(Accelerator::Kvm)),
            (AcceleratorChoice::Auto, others, false, None),
            (AcceleratorChoice::Kvm, loopback, false, None),
            (AcceleratorChoice::Emulation, others, false, Some(Accelerator::Emulation)),
        ] {
            assert_eq!(chosen(choice, listen, usable), expected, "{choice:?} {listen} {usable}");
        }
    }
}
