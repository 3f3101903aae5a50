//! What all commands work with: where to write, which server, which app, and the leases they hold.

use std::{path::PathBuf, time::Duration};

use caddis_api::{LeaseNonce, Machine, MachineId};
use caddis_client::Client;
use futures::future::{BoxFuture, FutureExt as _};
use parking_lot::{Mutex, MutexGuard};

use crate::{CliError, Environment, Globals, Printer, connection::Connection, globals::AppArgs};

/// Time to live of a lease, seconds.
const LEASE_SECONDS: u64 = 120;
/// How long another's lease is waited for.
const LEASE_TIMEOUT: Duration = Duration::from_secs(60);
const LEASE_RETRY: Duration = Duration::from_millis(500);

/// A lease that is held.
struct Held {
    client: Client,
    app: String,
    machine: MachineId,
    nonce: LeaseNonce,
}

/// One run of a command.
pub struct Session {
    pub globals: Globals,
    pub environment: Environment,
    pub printer: Printer,
    leases: Mutex<Vec<Held>>,
    /// What is to be done at the end, however it comes.
    at_end: Mutex<Vec<BoxFuture<'static, ()>>>,
}

impl Session {
    pub fn new(globals: Globals, environment: Environment, printer: Printer) -> Self {
        Self { globals, environment, printer, leases: Mutex::default(), at_end: Mutex::default() }
    }

    /// The server, and the token for it.
    pub fn connection(&self) -> Result<Connection, CliError> {
        Connection::find(self.globals.server(), &self.environment)
    }

    /// A client of the server.
    pub fn client(&self) -> Result<Client, CliError> {
        let connection = self.connection()?;
        if self.globals.verbose || self.globals.debug {
            self.printer
                .note(format_args!("server {} (from {})", connection.url, connection.url_source))?;
            self.printer.note(format_args!("access token from {}", connection.token_source))?;
        }
        if connection.token.is_none() {
            return Err(CliError::with_hint(
                "no access token available",
                "Give one with --access-token or CADDIS_API_TOKEN, or store one with 'caddis auth \
                 login'; a server's first token is in the file root.token of its data directory.",
            ));
        }
        Ok(Client::new(&connection.url, connection.token.as_deref())?)
    }

    /// The settings file, which may not be there yet.
    pub fn settings_path(&self) -> Result<PathBuf, CliError> {
        let missing = "can't locate the settings file: neither XDG_CONFIG_HOME nor HOME is set";
        self.environment.settings_path().ok_or_else(|| CliError::new(missing))
    }

    /// Name of the app.
    pub fn app(&self, arguments: &AppArgs) -> Result<String, CliError> {
        arguments.require(&self.environment)
    }

    fn leases(&self) -> MutexGuard<'_, Vec<Held>> {
        self.leases.lock()
    }

    /// Takes a machine's lease, waiting for another's to end. Released by [`Self::release_leases`].
    pub async fn lease(
        &self,
        client: &Client,
        app: &str,
        machine: &Machine,
    ) -> Result<LeaseNonce, CliError> {
        let id = &machine.id;
        let begun = tokio::time::Instant::now();
        let mut told = false;
        loop {
            match client.acquire_lease(app, id, LEASE_SECONDS, None).await {
                Ok(lease) => {
                    let (client, app, machine) = (client.clone(), app.to_owned(), id.clone());
                    self.leases().push(Held { client, app, machine, nonce: lease.nonce.clone() });
                    return Ok(lease.nonce);
                }
                Err(error) if error.status() == Some(409) && begun.elapsed() < LEASE_TIMEOUT => {
                    if !told && begun.elapsed() > Duration::from_secs(2) {
                        told = true;
                        self.printer.note(format_args!("Waiting on lease for machine {id}..."))?;
                    }
                    tokio::time::sleep(LEASE_RETRY).await;
                }
                Err(error) => return Err(CliError::attempted("failed to obtain lease", error)),
            }
        }
    }

    /// Has something done at the end of the command, also after an error or Ctrl-C.
    pub fn at_end(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.at_end.lock().push(work.boxed());
    }

    /// Does what is to be done at the end.
    pub async fn clean_up(&self) {
        let work = std::mem::take(&mut *self.at_end.lock());
        // The newest first, as what was made later stands on what was made before.
        for work in work.into_iter().rev() {
            work.await;
        }
    }

    /// Gives back the leases that are still held.
    pub async fn release_leases(&self) {
        let held = std::mem::take(&mut *self.leases());
        self.give_back(held).await;
    }

    /// Gives back the lease of a machine that is only waited for from here on: others may want to
    /// change it meanwhile.
    pub async fn release_lease(&self, machine: &MachineId) {
        let held: Vec<_> =
            self.leases().extract_if(.., |lease| lease.machine == *machine).collect();
        self.give_back(held).await;
    }

    async fn give_back(&self, held: Vec<Held>) {
        for lease in held {
            if let Err(error) =
                lease.client.release_lease(&lease.app, &lease.machine, &lease.nonce).await
            {
                // One that is over, or whose machine is gone, needs no release.
                if !error.is_not_found() {
                    let text =
                        format!("failed to release lease for machine {}: {error}", lease.machine);
                    let _ = self.printer.note(text);
                }
            }
        }
    }
}
