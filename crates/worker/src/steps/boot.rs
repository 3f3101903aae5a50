//! Booting a VM, and making it the machine.

use base64::Engine as _;
use caddis_guest_protocol::OWN_FILES_SINCE;
use caddis_vmm::{StartKind, VmExit};
use rand::RngCore as _;

use super::{Context, Done, Failure, no_vm, root, suspend, volumes};
use crate::{live::Guest, spec};

pub(super) async fn boot(context: Context) -> Result<Done, Failure> {
    let mut live = context.live.ok_or_else(no_vm)?;
    if live.vm.start().kind == StartKind::Resume {
        // Also where the server that resumed it was killed before it removed that: from here on its
        // disk changes.
        suspend::forget_snapshot(&context.shared, &context.row).await?;
    }
    // Its server may have been killed before it had the VM go on.
    suspend::unpause(&live).await?;
    let guest = live.until(|guest| guest.up || guest.gone.is_some()).await;
    guest.gone.as_ref().map_or(Ok(Done::Next), |exit| Err(died(exit)))
}

pub(super) async fn configure(mut context: Context) -> Result<Done, Failure> {
    let mut live = context.live.take().ok_or_else(no_vm)?;
    if live.vm.start().kind == StartKind::Resume {
        suspend::thaw(&live, true).await?;
        volumes::catch_up(&context, &live).await?;
        return Ok(Done::Next);
    }
    let network = context.shared.network.guest_spec(&context.row.addresses);
    // With its files, which are kept nowhere else.
    let config = caddis_api::validate::read(&context.row.config)?;
    let mut machine = spec::machine_spec(&context.row, &config, network)?;
    volumes::catch_up(&context, &live).await?;
    machine.mounts = volumes::specs(&context)?;
    machine.own_files = root::unwritten(&context).await?;
    machine.entropy = entropy();
    machine.time_ns = context.shared.clock.now_ns();
    machine.env.push(("CADDIS_START_KIND".to_owned(), live.vm.start().kind.as_str().to_owned()));
    // Repeating the same configuration is harmless, so a server that was restarted in between
    // simply sends it again; only a program that has begun already must not be configured a second
    // time.
    if !live.guest.borrow().configured {
        let guest = live.until(|guest| guest.up || guest.gone.is_some()).await;
        // Its server was another release: what it was given is not what this one tells.
        if guest.gone.is_none() && !live.session.speaks(OWN_FILES_SINCE) {
            return Err(Failure::retry("the VM was started by an earlier release"));
        }
        live.told(live.session.configure(machine)).await.map_err(Failure::retry)?;
    }
    let settled = |guest: &Guest| guest.started || guest.failed.is_some() || guest.gone.is_some();
    let guest = live.until(settled).await;
    if let Some(message) = guest.failed {
        return Err(Failure::last(message));
    }
    match guest.gone {
        Some(exit) if guest.ended.is_none() => Err(died(&exit)),
        _ => Ok(Done::Next),
    }
}

fn died(exit: &VmExit) -> Failure {
    Failure::retry(match exit {
        VmExit::Ended => "the VM ended before its program ran".to_owned(),
        VmExit::HostOom => {
            "the VM exceeded its memory bound on the host before its program ran".to_owned()
        }
        VmExit::DiskFull { message } | VmExit::Crashed { message } => {
            format!("the VM died before its program ran: {message}")
        }
    })
}

/// Fresh random bytes for a guest.
pub fn entropy() -> String {
    let mut entropy = [0; 64];
    rand::rng().fill_bytes(&mut entropy);
    base64::engine::general_purpose::STANDARD.encode(entropy)
}
