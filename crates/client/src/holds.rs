//! Holds, and what the proxy knows of machines.

use caddis_api::{
    MachineId,
    hold::{Hold, HoldRequest},
    traffic::{AppTraffic, MachineTraffic},
};
use reqwest::Method;

use crate::{Client, ClientError, machines::machine_request, transport::Request};

impl Client {
    /// `PUT …/hold`: keeps a machine from being put to sleep when idle.
    ///
    /// # Errors
    /// 412 when it does not run.
    pub async fn hold_machine(
        &self,
        app: &str,
        machine: &MachineId,
        hold: &HoldRequest,
    ) -> Result<Hold, ClientError> {
        self.read_with(machine_request(Method::PUT, app, machine, Some("hold")), hold).await
    }

    /// `DELETE …/hold`.
    ///
    /// # Errors
    /// 404 for an unknown machine; not where there is no hold.
    pub async fn release_hold(&self, app: &str, machine: &MachineId) -> Result<(), ClientError> {
        self.send(&machine_request(Method::DELETE, app, machine, Some("hold"))).await.map(drop)
    }

    /// `GET …/traffic`; `None` where the server's proxy knows nothing of the machine, or there is
    /// none.
    ///
    /// # Errors
    /// What is not a 404.
    pub async fn machine_traffic(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<Option<MachineTraffic>, ClientError> {
        match self.read(machine_request(Method::GET, app, machine, Some("traffic"))).await {
            Ok(traffic) => Ok(Some(traffic)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `GET /v1/apps/{app}/traffic`; `None` where the server's proxy knows nothing of the app, or
    /// there is none.
    ///
    /// # Errors
    /// What is not a 404.
    pub async fn app_traffic(&self, app: &str) -> Result<Option<AppTraffic>, ClientError> {
        match self.read(Request::get(["v1", "apps", app, "traffic"])).await {
            Ok(traffic) => Ok(Some(traffic)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
