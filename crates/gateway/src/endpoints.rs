//! All endpoints. What a handler takes and answers is said where it is defined; whom it serves, how
//! it is counted and what becomes of a request that was cut short, here.

mod addresses;
mod apps;
mod egress;
mod filter;
mod health;
mod host;
mod images;
mod logs;
mod machines;
pub(crate) mod openapi;
mod organizations;
mod placements;
mod platform_status;
mod policies;
mod regions;
mod traffic;
mod volumes;
mod wireguard;

use caddis_catalog::Access::{Read, Write};
use utoipa_axum::routes;

pub(crate) use self::addresses::publish_known;

use self::machines::{
    actions, create, exec, get, history, hold, leases, list, memory, metadata, operation, terminal,
    update, usage, wait, watch,
};
use crate::http::{
    description::{
        Description,
        Rate::{self, Unlimited},
        Replay::{Exempt, Makes, Repeatable},
        Scope::{App, Caller, Installation, Machine, Open, Organization},
    },
    endpoint::Endpoint,
};

/// See the module's text.
pub(crate) fn all() -> Vec<Endpoint> {
    [server(), apps(), machines(), one_machine(), volumes(), peers()]
        .into_iter()
        .flatten()
        .collect()
}

fn server() -> Vec<Endpoint> {
    vec![
        Endpoint::new(routes!(health::health), Open, Unlimited),
        Endpoint::new(routes!(openapi::show_json), Open, Unlimited),
        Endpoint::new(routes!(openapi::show_page), Open, Unlimited),
        Endpoint::new(routes!(regions::list), Open, Unlimited),
        Endpoint::new(routes!(placements::place), Caller, Unlimited).replay(Repeatable),
        // It tells of all hosts and counts everybody's machines and images.
        Endpoint::new(routes!(platform_status::status), Installation, Unlimited),
        Endpoint::new(routes!(host::drain), Installation, Unlimited).replay(Repeatable),
        // Images of a host are shared by all its machines.
        Endpoint::new(routes!(images::list), Installation, Unlimited),
        // The same image is kept once.
        Endpoint::new(routes!(images::import), Installation, Unlimited).replay(Exempt),
        Endpoint::new(routes!(images::remove), Installation, Unlimited),
        Endpoint::new(routes!(organizations::list), Caller, Rate::Path),
        Endpoint::new(routes!(organizations::machines), Organization(Read), Rate::Path),
        Endpoint::new(routes!(volumes::organization::list), Organization(Read), Rate::Path),
    ]
}

fn apps() -> Vec<Endpoint> {
    vec![
        Endpoint::new(routes!(apps::list), Caller, Rate::Path),
        Endpoint::new(routes!(apps::create), Organization(Write), Rate::Path).replay(Makes),
        Endpoint::new(routes!(apps::get), App(Read), Rate::Path),
        Endpoint::new(routes!(apps::delete), App(Write), Rate::AppDeletion),
        Endpoint::new(routes!(logs::logs), App(Read), Unlimited),
        Endpoint::new(routes!(traffic::of_app), App(Read), Rate::Path),
        Endpoint::new(routes!(addresses::list), App(Read), Rate::Path),
        // Twice is two addresses.
        Endpoint::new(routes!(addresses::assign), App(Write), Rate::Path),
        Endpoint::new(routes!(addresses::release), App(Write), Rate::Path),
        Endpoint::new(routes!(policies::list), App(Read), Rate::Path).with_slash(),
        // Twice is refused, since the name is taken, and so tells nobody the id.
        Endpoint::new(routes!(policies::put), App(Write), Rate::Path),
        Endpoint::new(routes!(policies::get), App(Read), Rate::Path),
        Endpoint::new(routes!(policies::delete), App(Write), Rate::Path),
        Endpoint::new(routes!(egress::of_app), App(Read), Rate::Path),
    ]
}

fn peers() -> Vec<Endpoint> {
    vec![
        Endpoint::new(routes!(wireguard::list), Organization(Read), Rate::Path),
        // The second time its name is taken.
        Endpoint::new(routes!(wireguard::create), Organization(Write), Rate::Path),
        Endpoint::new(routes!(wireguard::show_one), Organization(Read), Rate::Path),
        // The same key a second time changes nothing.
        Endpoint::new(routes!(wireguard::reset), Organization(Write), Rate::Path)
            .replay(Repeatable),
        Endpoint::new(routes!(wireguard::remove), Organization(Write), Rate::Path),
    ]
}

fn machines() -> Vec<Endpoint> {
    vec![
        Endpoint::new(routes!(list::list), App(Read), Rate::Path),
        Endpoint::new(routes!(create::create), App(Write), Rate::Path).replay(Makes),
        Endpoint::new(routes!(watch::watch), App(Read), Rate::Path),
        Endpoint::new(routes!(usage::usage), App(Read), Rate::Path),
    ]
}

fn volumes() -> Vec<Endpoint> {
    use volumes::{create, list, one, snapshots};
    let read = |handler| Endpoint::new(handler, App(Read), Rate::Path);
    let write = |handler| Endpoint::new(handler, App(Write), Rate::Path);
    vec![
        read(routes!(list::list)),
        write(routes!(create::create)).replay(Makes),
        read(routes!(one::get)),
        write(routes!(one::update)),
        write(routes!(one::delete)),
        write(routes!(one::extend)),
        write(routes!(one::undelete)).replay(Repeatable),
        read(routes!(snapshots::list)),
        write(routes!(snapshots::create)).replay(Makes),
        read(routes!(snapshots::get)),
        write(routes!(snapshots::delete)),
    ]
}

fn one_machine() -> Vec<Endpoint> {
    let read = |name| (Machine(Read), Rate::Machine(name));
    let write = |name| (Machine(Write), Rate::Machine(name));
    let of = |handler, (scope, rate)| Endpoint::new(handler, scope, rate);
    vec![
        Endpoint::new(routes!(get::get), Machine(Read), Rate::MachineRead),
        Endpoint::new(routes!(update::update), Machine(Write), Rate::Path).replay(Makes),
        Endpoint::new(routes!(actions::destroy), Machine(Write), Rate::Path),
        of(routes!(actions::start), write("start")).replay(Repeatable),
        of(routes!(actions::stop), write("stop")).replay(Repeatable),
        of(routes!(actions::suspend), write("suspend")).replay(Repeatable),
        // Twice is not the same as once, of this and all others that say nothing.
        of(routes!(actions::restart), write("restart")),
        of(routes!(actions::signal), write("signal")),
        of(routes!(actions::cordon), write("cordon")).replay(Repeatable),
        of(routes!(actions::uncordon), write("uncordon")).replay(Repeatable),
        of(routes!(wait::wait), read("wait")),
        of(routes!(operation::operation), read("operation")),
        of(routes!(exec::exec), write("exec")),
        of(routes!(terminal::session), write("exec")),
        of(routes!(history::processes), read("ps")),
        of(routes!(history::events), read("events")),
        of(routes!(update::versions), read("versions")),
        of(routes!(memory::get), read("memory")),
        of(routes!(memory::set), write("memory")),
        of(routes!(memory::reclaim), write("memory")),
        of(routes!(metadata::all), read("metadata")),
        of(routes!(metadata::merge), write("metadata")),
        of(routes!(metadata::get), read("metadata")),
        of(routes!(metadata::set), write("metadata")).replay(Repeatable),
        of(routes!(metadata::remove), write("metadata")),
        of(routes!(hold::get), read("hold")),
        of(routes!(hold::set), write("hold")),
        of(routes!(hold::release), write("hold")),
        of(routes!(traffic::of_machine), read("traffic")),
        of(routes!(egress::of_machine), read("egress_ips")),
        // Twice is refused, and so tells nobody which addresses they are.
        of(routes!(egress::allocate), write("egress_ips")),
        of(routes!(egress::release), write("egress_ips")),
        of(routes!(egress::promote), write("egress_ips")),
        of(routes!(leases::get), read("lease")),
        of(routes!(leases::acquire), write("lease")).replay(Repeatable),
        // Whoever can't give a lease back keeps everybody waiting.
        Endpoint::new(routes!(leases::release), Machine(Write), Unlimited),
    ]
}

/// An operation of the API, and what is said of its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedOperation {
    /// Its id in the OpenAPI document.
    pub id: String,
    /// Its method, in capitals.
    pub method: &'static str,
    /// Its path, with the names of parameters in braces.
    pub path: String,
    /// What is said of its endpoint.
    pub description: Description,
}

/// All operations, for tests of what callers may do.
pub fn operations() -> Vec<DescribedOperation> {
    let described = |endpoint: &Endpoint| -> Vec<_> {
        let described = endpoint.operations().map(|(method, operation)| DescribedOperation {
            id: operation.operation_id.clone().unwrap_or_default(),
            method,
            path: endpoint.path.clone(),
            description: endpoint.description,
        });
        described.collect()
    };
    all().iter().flat_map(described).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::description::Replay;

    #[test]
    fn what_becomes_of_each_post_that_was_cut_short() {
        let of = |replay: Replay| -> Vec<String> {
            let posts = operations().into_iter().filter(|row| row.method == "POST");
            posts.filter(|row| row.description.replay == replay).map(|row| row.id).collect()
        };
        let refused = [
            "App_IPAssignments_create",
            "App_NetworkPolicies_put",
            "Machines_restart",
            "Machines_signal",
            "Machines_exec",
            "Machines_reclaim_memory",
            "Machines_allocate_egress_ips",
            "Machines_promote_egress_ips",
            "WireGuardPeers_create",
        ];
        assert_eq!(of(Replay::Refuse), refused);
        assert_eq!(
            of(Makes),
            [
                "Apps_create",
                "Machines_create",
                "Machines_update",
                "Volumes_create",
                "createVolumeSnapshot"
            ]
        );
        assert_eq!(of(Exempt), ["Images_import"]);
    }
}
