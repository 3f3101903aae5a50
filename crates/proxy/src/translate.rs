//! A machine's record as the proxy routes it.

use std::time::{Duration, SystemTime};

use caddis_api::{
    Machine, MachineConfig, UnixMillis, VersionId,
    config::{self, Check, PortHandler, Service, ServicePort},
    validate,
};
use caddis_bus::message::MachineRecord;
use http::{HeaderName, HeaderValue};

use crate::{
    Autostop, Concurrency, ConcurrencyKind, Handlers, HeaderChange, HttpOptions, MachineRoute,
    MachineState, PortRoute, Protocol, ProxyProtocol, ServiceRoute, TlsOptions, TlsVersion,
};

/// Variable of a machine's environment that names the primary region of its app, as flyctl sets it.
const PRIMARY_REGION: &str = "PRIMARY_REGION";

/// A machine that has services.
pub(crate) struct Translated {
    /// Version of its configuration.
    pub version: VersionId,
    /// Primary region of its app, as its configuration has it.
    pub primary_region: Option<String>,
    /// Its route.
    pub route: MachineRoute,
}

/// None of a machine without services. A configuration that can't be read has none.
pub(crate) fn machine(record: &MachineRecord) -> Option<Translated> {
    let machine = &record.machine;
    let config = validate::read(machine.config.as_ref()?).ok()?;
    let services = config.services.iter().flatten().enumerate();
    let services: Vec<_> =
        services.filter_map(|(index, given)| service(machine, &config, index, given)).collect();
    if services.is_empty() {
        return None;
    }
    let route = MachineRoute {
        id: machine.id.clone(),
        worker: record.worker.clone(),
        region: machine.region.to_string(),
        address: machine.private_ipv4.as_deref()?.parse().ok()?,
        state: state(machine, &config),
        is_off: is_off(machine),
        cordoned: machine.cordoned,
        hold: machine.hold.as_ref().map(|hold| match &hold.reason {
            Some(reason) => format!("held until {}: {reason}", hold.until),
            None => format!("held until {}", hold.until),
        }),
        leased_until: record
            .lease
            .as_ref()
            .map(|lease| SystemTime::UNIX_EPOCH + Duration::from_secs(lease.expires_at)),
        booted_at: system_time(record.booted_at),
        started_at: system_time(record.started_at),
        services,
    };
    let primary_region = config.env.as_ref().and_then(|env| env.get(PRIMARY_REGION)).cloned();
    Some(Translated { version: machine.version.clone(), primary_region, route })
}

fn state(machine: &Machine, config: &MachineConfig) -> MachineState {
    use caddis_api::MachineState as S;
    if machine.host_status == "unreachable" {
        return MachineState::Other;
    }
    match machine.state {
        S::Started => MachineState::Started,
        S::Starting | S::Restarting | S::Updating | S::Replacing => MachineState::Starting,
        // They run at times that were set, not when somebody asks.
        _ if config.schedule.is_some() => MachineState::Other,
        // A request that comes now has it started once it has stopped.
        S::Stopping | S::Stopped => MachineState::Stopped,
        S::Suspending | S::Suspended => MachineState::Suspended,
        _ => MachineState::Other,
    }
}

fn is_off(machine: &Machine) -> bool {
    use caddis_api::MachineState as S;
    let is_there = matches!(
        machine.state,
        S::Started | S::Stopping | S::Suspending | S::Restarting | S::Updating | S::Replacing
    );
    !is_there
}

fn system_time(at: UnixMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(at.as_u64())
}

fn service(
    machine: &Machine,
    config: &MachineConfig,
    index: usize,
    given: &Service,
) -> Option<ServiceRoute> {
    let limits = given.concurrency.unwrap_or_default();
    let protocol = match given.protocol() {
        config::Protocol::Tcp => Protocol::Tcp,
        config::Protocol::Udp => Protocol::Udp,
    };
    Some(ServiceRoute {
        protocol,
        internal_port: given.internal_port?,
        ports: given.ports.iter().flatten().filter_map(port).collect(),
        concurrency: Concurrency {
            kind: match limits.kind.unwrap_or_default() {
                config::ConcurrencyKind::Connections => ConcurrencyKind::Connections,
                config::ConcurrencyKind::Requests => ConcurrencyKind::Requests,
            },
            soft_limit: limits.soft_limit.unwrap_or(config::DEFAULT_SOFT_LIMIT),
            hard_limit: limits.hard_limit,
        },
        autostart: given.autostart() && config.disable_machine_autostart != Some(true),
        autostop: match given.autostop() {
            config::Autostop::Off => Autostop::Off,
            config::Autostop::Stop => Autostop::Stop,
            config::Autostop::Suspend => Autostop::Suspend,
        },
        min_machines_running: given.min_machines_running.unwrap_or(0),
        idle_timeout: given.idle_timeout.map(|timeout| timeout.0),
        max_drain: given.max_drain.map(|drain| drain.0),
        healthy: machine.is_ready(index),
        grace: grace(config, given),
    })
}

/// The longest time before a check that gates the service begins.
fn grace(config: &MachineConfig, given: &Service) -> Duration {
    let own = given.checks.iter().flatten();
    let of_machine = config.checks.iter().flat_map(|checks| checks.values());
    let gating = of_machine.filter(|check| check.purpose == Some(config::CheckPurpose::Readiness));
    own.chain(gating).map(Check::grace_period).max().unwrap_or_default()
}

fn port(given: &ServicePort) -> Option<PortRoute> {
    let (start, end) = given.range()?;
    let http = given.http_options.clone().unwrap_or_default();
    let response = http.response.unwrap_or_default();
    let tls = given.tls_options.clone().unwrap_or_default();
    let version = given.proxy_proto_options.as_ref().and_then(|options| options.version);
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    Some(PortRoute {
        start,
        end,
        handlers: Handlers {
            http: given.has(PortHandler::Http),
            tls: given.has(PortHandler::Tls),
            pg_tls: given.has(PortHandler::PgTls),
            proxy_protocol: given.has(PortHandler::ProxyProto).then(|| {
                match version.unwrap_or_default() {
                    config::ProxyProtoVersion::V1 => ProxyProtocol::V1,
                    config::ProxyProtoVersion::V2 => ProxyProtocol::V2,
                }
            }),
        },
        force_https: given.force_https.unwrap_or(false),
        http: HttpOptions {
            h2_backend: http.h2_backend.unwrap_or(false),
            idle_timeout: http.idle_timeout.map(seconds),
            headers_read_timeout: http.headers_read_timeout.map(seconds),
            response_headers: response.headers.iter().flatten().filter_map(header).collect(),
            pristine: response.pristine.unwrap_or(false),
        },
        tls: TlsOptions {
            alpn: tls.alpn.unwrap_or_default(),
            versions: tls.versions.iter().flatten().map(tls_version).collect(),
        },
    })
}

fn tls_version(given: &config::TlsVersion) -> TlsVersion {
    match given {
        config::TlsVersion::V1_2 => TlsVersion::V12,
        config::TlsVersion::V1_3 => TlsVersion::V13,
    }
}

fn header((name, change): (&String, &config::HeaderChange)) -> Option<(HeaderName, HeaderChange)> {
    let value = |text: &String| HeaderValue::from_str(text).ok();
    let change = match change {
        config::HeaderChange::Remove(true) => return None,
        config::HeaderChange::Remove(false) => HeaderChange::Delete,
        config::HeaderChange::Set(text) => HeaderChange::Set(vec![value(text)?]),
        config::HeaderChange::SetAll(all) => {
            HeaderChange::Set(all.iter().map(value).collect::<Option<_>>()?)
        }
    };
    Some((HeaderName::try_from(name.as_str()).ok()?, change))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn record(config: Value) -> MachineRecord {
        serde_json::from_value(json!({
            "worker": "w", "epoch": 1, "revision": 2, "config_revision": 2, "app": "shop",
            "launched": true, "booted_at": 1000, "started_at": 2000, "lease": null,
            "machine": {
                "id": "148ed193b95389", "name": "m", "state": "started", "region": "ams",
                "image_ref": { "registry": "", "repository": "", "digest": "" },
                "instance_id": "01", "version": "01", "private_ip": "fdaa::1",
                "private_ipv4": "172.19.0.2", "created_at": "", "updated_at": "",
                "host_status": "ok", "checks": [], "events": [], "config": config,
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_machine_is_routed_with_its_times_and_its_apps_primary_region() {
        let services = json!([{ "internal_port": 80, "ports": [{ "port": 443 }] }]);
        let config = json!({
            "image": "nginx", "services": services, "env": { "PRIMARY_REGION": "ams" },
        });
        let translated = machine(&record(config)).unwrap();
        assert_eq!(translated.primary_region.as_deref(), Some("ams"));
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let route = translated.route;
        assert_eq!(since(route.booted_at), Duration::from_secs(1));
        assert_eq!(since(route.started_at), Duration::from_secs(2));
        assert_eq!(route.services[0].ports[0].start, 443);
    }

    #[test]
    fn a_machine_without_services_or_with_a_configuration_of_no_sense_has_no_route() {
        for config in [json!({ "image": "nginx" }), json!({ "image": 1, "services": "x" })] {
            assert!(machine(&record(config)).is_none());
        }
    }
}
