//! The health checks of a machine by name: those of its services and its own.

use crate::config::{Check, CheckPurpose, CheckType, MachineConfig};

/// A check of a machine that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedCheck<'a> {
    /// As [`crate::machine::CheckStatus::name`].
    pub name: String,
    /// Port in the VM.
    pub port: u16,
    /// How it is carried out.
    pub kind: CheckType,
    /// Place in `config.services` of the service that it is of; `None` for one of the machine.
    pub service: Option<usize>,
    /// As configured.
    pub check: &'a Check,
}

impl NamedCheck<'_> {
    /// Whether no service of the machine gets traffic unless it passes.
    pub fn is_readiness(&self) -> bool {
        self.service.is_none() && self.check.purpose == Some(CheckPurpose::Readiness)
    }
}

/// What names of checks of services begin with, and no name of another check.
pub const OF_SERVICES: &str = "servicecheck-";

/// The checks of a configuration: those of its services in their order, then its own by name.
/// One without type or port, or with the name of another, which an earlier release may have stored,
/// is left out.
pub fn of(config: &MachineConfig) -> Vec<NamedCheck<'_>> {
    let services = config.services.iter().flatten().enumerate();
    let of_services = services.flat_map(|(index, service)| {
        let checks = service.checks.iter().flatten();
        checks.map(move |check| (index, check, check.port.or(service.internal_port)))
    });
    let mut found: Vec<_> = of_services
        .enumerate()
        .filter_map(|(number, (service, check, port))| {
            let (kind, port) = (check.kind?, port?);
            let name = format!("{OF_SERVICES}{number:02}-{}-{port}", kind.as_str());
            Some(NamedCheck { name, port, kind, service: Some(service), check })
        })
        .collect();
    let own = config.checks.iter().flatten().filter(|(name, _)| !name.starts_with(OF_SERVICES));
    found.extend(own.filter_map(|(name, check)| {
        let (kind, port) = (check.kind?, check.port?);
        Some(NamedCheck { name: name.clone(), port, kind, service: None, check })
    }));
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        Machine, MachineState,
        machine::{CheckState, CheckStatus},
    };

    fn config(config: Value) -> MachineConfig {
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn checks_of_services_are_numbered_and_the_machines_own_have_their_keys() {
        let config = config(json!({
            "services": [
                {
                    "internal_port": 8080,
                    "checks": [{ "type": "http" }, { "type": "tcp", "port": 1 }],
                },
                { "internal_port": 53, "protocol": "udp" },
                { "internal_port": 5432, "checks": [{ "type": "tcp" }] },
            ],
            "checks": {
                "web": { "type": "http", "port": 8080, "kind": "readiness" },
                "db": { "type": "tcp", "port": 5432 },
                "servicecheck-01-tcp-1": { "type": "tcp", "port": 2 },
            },
        }));
        let found: Vec<_> = of(&config)
            .into_iter()
            .map(|c| (c.is_readiness(), c.service, c.port, c.name))
            .collect();
        let expected = [
            (false, Some(0), 8080, "servicecheck-00-http-8080"),
            (false, Some(0), 1, "servicecheck-01-tcp-1"),
            (false, Some(2), 5432, "servicecheck-02-tcp-5432"),
            (false, None, 5432, "db"),
            (true, None, 8080, "web"),
        ];
        assert_eq!(
            found,
            expected.map(|(ready, of, port, name)| (ready, of, port, name.to_owned()))
        );
    }

    #[test]
    fn what_can_not_be_carried_out_is_no_check() {
        let config = config(json!({
            "services": [{ "checks": [{ "type": "tcp" }, { "type": "tcp", "port": 1 }] }],
            "checks": { "a": { "type": "tcp" }, "b": { "port": 1 } },
        }));
        let names: Vec<_> = of(&config).into_iter().map(|check| check.name).collect();
        assert_eq!(names, ["servicecheck-01-tcp-1"]);
    }

    fn status(
        service: Option<usize>,
        kind: Option<CheckPurpose>,
        state: CheckState,
    ) -> CheckStatus {
        CheckStatus {
            name: "a".to_owned(),
            status: state,
            output: String::new(),
            updated_at: "2026-01-01T00:00:00Z".to_owned(),
            service,
            kind,
        }
    }

    #[test]
    fn a_service_is_ready_while_its_checks_and_those_for_readiness_pass() {
        use CheckState::{Critical, Passing, Warning};
        let machine: Machine = serde_json::from_value(json!({
            "id": "148ed193b95389", "name": "a", "state": "started", "region": "local",
            "image_ref": { "registry": "", "repository": "", "digest": "" },
            "instance_id": "01K3A5ZJ6R2X8N4B7D9F0H1M2P", "version": "01K3A5ZJ6R2X8N4B7D9F0H1M2P",
            "private_ip": "fdaa::1", "created_at": "", "updated_at": "",
        }))
        .unwrap();
        let with = |checks: Vec<CheckStatus>| Machine { checks: Some(checks), ..machine.clone() };
        let readiness = Some(CheckPurpose::Readiness);
        for (checks, ready) in [
            (vec![], [true, true]),
            (vec![status(Some(0), None, Passing)], [true, true]),
            (vec![status(Some(0), None, Warning)], [false, true]),
            (vec![status(Some(1), None, Critical)], [true, false]),
            (vec![status(Some(0), None, Passing), status(Some(0), None, Critical)], [false, true]),
            (vec![status(None, readiness, Critical)], [false, false]),
            (vec![status(None, readiness, Passing)], [true, true]),
            (vec![status(None, None, Critical)], [true, true]),
        ] {
            let machine = with(checks.clone());
            assert_eq!([machine.is_ready(0), machine.is_ready(1)], ready, "{checks:?}");
        }
        let stopped = Machine { state: MachineState::Stopped, ..with(Vec::new()) };
        assert!(!stopped.is_ready(0), "it does not run");
    }
}
