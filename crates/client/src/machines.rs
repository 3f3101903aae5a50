//! Machines.

use std::time::Duration;

use caddis_api::{
    ApiDuration, LeaseNonce, Machine, MachineId, MachineState, Signal,
    event::MachineEvent,
    exec::{ExecReply, ExecRequest, ProcessStat},
    organization::{OrganizationMachine, OrganizationMachines},
    requests::{CreateMachineRequest, SignalRequest, StartReply, StopRequest, WaitReply},
};
use reqwest::Method;
use serde_json::Value;

use crate::{Client, ClientError, transport::Request};

/// Create resolves the image's manifest with its registry before it answers.
const CREATE_TIMEOUT: Duration = Duration::from_secs(180);
/// Longest slice of one wait: what the API allows, seconds.
const WAIT_SLICE_SECONDS: u64 = 60;
/// What a long request may take beyond the time it asks for itself.
pub(crate) const GRACE: Duration = Duration::from_secs(20);

/// Which machines to list. The default is all that are not destroyed, in full.
#[derive(Debug, Clone, Default)]
pub struct ListMachines {
    /// Also destroyed ones.
    pub include_deleted: bool,
    /// With their leases.
    pub include_leases: bool,
    /// Only in these states.
    pub states: Vec<MachineState>,
    /// Only in this region.
    pub region: Option<String>,
    /// Only with these metadata values.
    pub metadata: Vec<(String, String)>,
    /// Without config, checks and events.
    pub summary: bool,
}

/// How to restart.
#[derive(Debug, Clone, Default)]
pub struct RestartOptions {
    /// Overrides the stop signal.
    pub signal: Option<Signal>,
    /// Overrides the time between the stop signal and SIGKILL.
    pub timeout: Option<ApiDuration>,
    /// Kill at once.
    pub force: bool,
}

/// What to wait for.
#[derive(Debug, Clone)]
pub enum WaitFor {
    /// Any of these states.
    States(Vec<MachineState>),
    /// No transition in progress.
    Settled,
}

impl Client {
    /// `POST …/machines`.
    ///
    /// # Errors
    /// 400 for a bad configuration, 409 for a taken name, 422 for want of room or of the image.
    pub async fn create_machine(
        &self,
        app: &str,
        machine: &CreateMachineRequest,
    ) -> Result<Machine, ClientError> {
        let request = Request::post(["v1", "apps", app, "machines"]).timeout(Some(CREATE_TIMEOUT));
        self.read_with(request, machine).await
    }

    /// `POST …/machines/{id}`: replaces the configuration. Answers before the new version runs.
    ///
    /// # Errors
    /// 400 for a bad configuration, 409 when leased or when another version is current, 422 for
    /// want of room or of the image.
    pub async fn update_machine(
        &self,
        app: &str,
        machine: &MachineId,
        update: &CreateMachineRequest,
        nonce: Option<&LeaseNonce>,
    ) -> Result<Machine, ClientError> {
        let request = machine_request(Method::POST, app, machine, None)
            .timeout(Some(CREATE_TIMEOUT))
            .nonce(nonce);
        self.read_with(request, update).await
    }

    /// `GET …/machines`.
    ///
    /// # Errors
    /// 404 for an unknown app.
    pub async fn list_machines(
        &self,
        app: &str,
        filter: &ListMachines,
    ) -> Result<Vec<Machine>, ClientError> {
        self.read(list_request(app, filter)).await
    }

    /// `GET /v1/orgs/{org}/machines`: those of all apps of an organisation, over all pages, without
    /// their configurations.
    ///
    /// # Errors
    /// 404 for an unknown organisation.
    pub async fn list_organization_machines(
        &self,
        org: &str,
    ) -> Result<Vec<OrganizationMachine>, ClientError> {
        let request = || Request::get(["v1", "orgs", org, "machines"]).query("summary", true);
        self.read_pages(request, |page: OrganizationMachines| (page.machines, page.next_cursor))
            .await
    }

    /// `GET …/machines`, as the server wrote it.
    ///
    /// # Errors
    /// 404 for an unknown app.
    pub async fn list_machines_json(
        &self,
        app: &str,
        filter: &ListMachines,
    ) -> Result<Vec<Value>, ClientError> {
        self.read(list_request(app, filter)).await
    }

    /// `GET …/machines/{id}`.
    ///
    /// # Errors
    /// 404.
    pub async fn get_machine(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<Machine, ClientError> {
        self.read(machine_request(Method::GET, app, machine, None)).await
    }

    /// `DELETE …/machines/{id}`; with `force` also when it runs.
    ///
    /// # Errors
    /// 409 when leased, 412 when it runs and `force` is not set.
    pub async fn destroy_machine(
        &self,
        app: &str,
        machine: &MachineId,
        force: bool,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ClientError> {
        let request =
            machine_request(Method::DELETE, app, machine, None).query("kill", force).nonce(nonce);
        self.send(&request).await.map(drop)
    }

    /// `POST …/start`. Answers before the machine runs.
    ///
    /// # Errors
    /// 409 when leased, 412 when its state does not allow it.
    pub async fn start_machine(
        &self,
        app: &str,
        machine: &MachineId,
        nonce: Option<&LeaseNonce>,
    ) -> Result<StartReply, ClientError> {
        self.read(action(app, machine, "start", nonce)).await
    }

    /// `POST …/stop`. Answers before the machine is stopped.
    ///
    /// # Errors
    /// 409 when leased.
    pub async fn stop_machine(
        &self,
        app: &str,
        machine: &MachineId,
        stop: &StopRequest,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ClientError> {
        self.send_body(&action(app, machine, "stop", nonce), |builder| builder.json(stop))
            .await
            .map(drop)
    }

    /// `POST …/suspend`. Answers before the machine is suspended.
    ///
    /// # Errors
    /// 409 when leased, 412 when its state or configuration does not allow it.
    pub async fn suspend_machine(
        &self,
        app: &str,
        machine: &MachineId,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ClientError> {
        self.send(&action(app, machine, "suspend", nonce)).await.map(drop)
    }

    /// `POST …/restart`. Answers before the machine runs again.
    ///
    /// # Errors
    /// 409 when leased.
    pub async fn restart_machine(
        &self,
        app: &str,
        machine: &MachineId,
        options: &RestartOptions,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ClientError> {
        let mut request = action(app, machine, "restart", nonce).query("force_stop", options.force);
        if let Some(timeout) = options.timeout {
            request = request.query("timeout", timeout);
        }
        if let Some(signal) = options.signal {
            request = request.query("signal", signal);
        }
        self.send(&request).await.map(drop)
    }

    /// `POST …/signal`.
    ///
    /// # Errors
    /// 412 when it does not run.
    pub async fn signal_machine(
        &self,
        app: &str,
        machine: &MachineId,
        signal: Signal,
    ) -> Result<(), ClientError> {
        let request = action(app, machine, "signal", None);
        self.send_body(&request, |builder| builder.json(&SignalRequest { signal })).await.map(drop)
    }

    /// `POST …/cordon` or `…/uncordon`.
    ///
    /// # Errors
    /// 409 when leased.
    pub async fn cordon_machine(
        &self,
        app: &str,
        machine: &MachineId,
        cordoned: bool,
        nonce: Option<&LeaseNonce>,
    ) -> Result<(), ClientError> {
        let verb = if cordoned { "cordon" } else { "uncordon" };
        self.send(&action(app, machine, verb, nonce)).await.map(drop)
    }

    /// `GET …/wait` for at most a minute, the longest the API allows; ask again to wait longer.
    ///
    /// # Errors
    /// 408 when time is up, 404 when the machine is gone.
    pub async fn wait_machine(
        &self,
        app: &str,
        machine: &MachineId,
        condition: &WaitFor,
        timeout: Duration,
    ) -> Result<WaitReply, ClientError> {
        let seconds = (timeout.as_secs_f64().ceil() as u64).clamp(1, WAIT_SLICE_SECONDS);
        let mut request = machine_request(Method::GET, app, machine, Some("wait"))
            .query("timeout", seconds)
            .timeout(Some(Duration::from_secs(seconds) + GRACE));
        match condition {
            WaitFor::Settled => request = request.query("state", "settled"),
            WaitFor::States(states) => {
                for state in states {
                    request = request.query("state", state);
                }
            }
        }
        self.read(request).await
    }

    /// `POST …/exec`.
    ///
    /// # Errors
    /// 412 when the machine does not run.
    pub async fn exec(
        &self,
        app: &str,
        machine: &MachineId,
        exec: &ExecRequest,
        nonce: Option<&LeaseNonce>,
    ) -> Result<ExecReply, ClientError> {
        let seconds = exec.timeout.unwrap_or(caddis_api::exec::MAX_TIMEOUT_SECONDS);
        let request =
            action(app, machine, "exec", nonce).timeout(Some(Duration::from_secs(seconds) + GRACE));
        self.read_with(request, exec).await
    }

    /// `GET …/ps`.
    ///
    /// # Errors
    /// 412 when the machine does not run.
    pub async fn processes(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<Vec<ProcessStat>, ClientError> {
        self.read(machine_request(Method::GET, app, machine, Some("ps"))).await
    }

    /// `GET …/events`, newest first; at most 50.
    ///
    /// # Errors
    /// 404.
    pub async fn events(
        &self,
        app: &str,
        machine: &MachineId,
        limit: usize,
    ) -> Result<Vec<MachineEvent>, ClientError> {
        self.read(machine_request(Method::GET, app, machine, Some("events")).query("limit", limit))
            .await
    }
}

fn list_request<'a>(app: &'a str, filter: &'a ListMachines) -> Request<'a> {
    let mut request = Request::get(["v1", "apps", app, "machines"]);
    for (name, wanted) in [
        ("include_deleted", filter.include_deleted),
        ("include_leases", filter.include_leases),
        ("summary", filter.summary),
    ] {
        if wanted {
            request = request.query(name, true);
        }
    }
    if !filter.states.is_empty() {
        let states: Vec<_> = filter.states.iter().map(|state| state.as_str()).collect();
        request = request.query("state", states.join(","));
    }
    if let Some(region) = &filter.region {
        request = request.query("region", region);
    }
    for (key, value) in &filter.metadata {
        request.query_owned(format!("metadata.{key}"), value.clone());
    }
    request
}

pub(crate) fn machine_request<'a>(
    method: Method,
    app: &'a str,
    machine: &'a MachineId,
    part: Option<&'a str>,
) -> Request<'a> {
    Request::new(method, ["v1", "apps", app, "machines", machine.as_str()].into_iter().chain(part))
}

fn action<'a>(
    app: &'a str,
    machine: &'a MachineId,
    verb: &'a str,
    nonce: Option<&'a LeaseNonce>,
) -> Request<'a> {
    machine_request(Method::POST, app, machine, Some(verb)).nonce(nonce)
}
