//! Why a call of the catalog or of its store failed, and what clients are told about it.

use std::net::IpAddr;

use caddis_api::{ApiError, AppName, ErrorCode, MachineId, PolicyId, VolumeId};

/// Why a store did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Nothing was changed, unless the store is reached over a network and its answer was lost.
    #[error("can't {attempt} in the catalog: {reason}")]
    Failed {
        /// What was attempted.
        attempt: &'static str,
        /// The disk that the store is on has no room left.
        disk_full: bool,
        /// Why, in the store's own words.
        reason: String,
    },
    /// The store has ended.
    #[error("the catalog is closed")]
    Closed,
}

/// Why a catalog call failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No organisation has this slug.
    #[error("Could not find Organization '{0}'")]
    OrganizationNotFound(String),
    /// No app has this name.
    #[error("Could not find App \"{0}\"")]
    AppNotFound(String),
    /// Another app has this name.
    #[error("Validation failed: Name has already been taken")]
    AppNameTaken,
    /// The app is on its way out.
    #[error("failed_precondition: app \"{0}\" is being deleted")]
    AppInDeletion(AppName),
    /// The key was used for an app of another name.
    #[error("Validation failed: idempotency_key was used before with another name")]
    IdempotencyMismatch,
    /// Another machine of the app has this name.
    #[error(
        "already_exists: unique machine name violation, machine ID {holder} already exists with \
         name \"{name}\""
    )]
    MachineNameTaken {
        /// The name.
        name: String,
        /// Who has it.
        holder: MachineId,
    },
    /// The keyed request has a machine already: whoever carries it out too has placed it.
    #[error(
        "aborted: machine {machine} was already placed for this request, look for it before trying \
         again"
    )]
    RequestHasMachine {
        /// That machine.
        machine: MachineId,
    },
    /// The organisation has no network of this name.
    #[error("network not found")]
    NetworkNotFound,
    /// All addresses of the pool are taken.
    #[error(
        "no address is free in {pool}: release one that is no longer needed, or give the server \
         more with --public-addresses"
    )]
    AddressesExhausted {
        /// The prefixes.
        pool: String,
    },
    /// All egress addresses of the pool are taken.
    #[error(
        "no egress address is free in {pool}: release one that is no longer needed, or give the \
         server more with --egress-addresses"
    )]
    EgressExhausted {
        /// The prefixes.
        pool: String,
    },
    /// The machine has egress addresses of its own.
    #[error("already_exists: machine {0} has egress addresses of its own")]
    EgressTaken(MachineId),
    /// The machine has no egress addresses of its own.
    #[error("machine {0} has no egress addresses of its own")]
    EgressNotFound(MachineId),
    /// The address is not one that apps may have.
    #[error("invalid ip, {ip} is not an address of {pool}, or is in use by the server itself")]
    AddressOutsidePool {
        /// The address.
        ip: IpAddr,
        /// The prefixes.
        pool: String,
    },
    /// An app has the address.
    #[error("already_exists: address {0} is in use by an app")]
    AddressTaken(IpAddr),
    /// The app does not have the address.
    #[error("Could not find IP address {0}")]
    AddressNotFound(IpAddr),
    /// Another policy of the app has this name.
    #[error(
        "already_exists: the app has a network policy with the name \"{0}\"; to change it, send \
         its id too"
    )]
    PolicyNameTaken(String),
    /// The app has no such policy.
    #[error("Could not find network policy '{0}'")]
    PolicyNotFound(PolicyId),
    /// The app has as many policies as it can have.
    #[error("the app has {most} network policies already, which is the most it can have")]
    TooManyPolicies {
        /// How many that are.
        most: usize,
    },
    /// The network has a peer of this name.
    #[error("already_exists: the network has a WireGuard peer \"{0}\": choose another name")]
    PeerNameTaken(String),
    /// A peer has this key.
    #[error("already_exists: a WireGuard peer has this public key: each needs a key of its own")]
    PeerKeyTaken,
    /// The network has no peer of this name.
    #[error("Could not find WireGuard peer \"{0}\"")]
    PeerNotFound(String),
    /// No machine was ever placed under this id.
    #[error("machine {0} was never placed")]
    MachineNotFound(MachineId),
    /// No volume was ever placed under this id, or its app is gone.
    #[error("volume {0} not found")]
    VolumeNotFound(VolumeId),
    /// The machine is gone: it has no place that could change.
    #[error("failed_precondition: machine {0} is gone, it can't be moved")]
    MachineReleased(MachineId),
    /// The machine is not where the caller thought it to be.
    #[error(
        "aborted: machine {machine} was moved meanwhile (its epoch is {current}), look where it is \
         now"
    )]
    MachineMoved {
        /// The machine.
        machine: MachineId,
        /// Its epoch.
        current: u64,
    },
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let code = match &error {
            CatalogError::OrganizationNotFound(_)
            | CatalogError::AppNotFound(_)
            | CatalogError::AddressNotFound(_)
            | CatalogError::PolicyNotFound(_)
            | CatalogError::EgressNotFound(_)
            | CatalogError::PeerNotFound(_) => ErrorCode::NotFound,
            CatalogError::NetworkNotFound | CatalogError::AddressOutsidePool { .. } => {
                ErrorCode::InvalidArgument
            }
            CatalogError::AddressesExhausted { .. }
            | CatalogError::EgressExhausted { .. }
            | CatalogError::TooManyPolicies { .. } => ErrorCode::Unprocessable,
            CatalogError::AppNameTaken => ErrorCode::NameTaken,
            CatalogError::AppInDeletion(_) | CatalogError::MachineReleased(_) => {
                ErrorCode::FailedPrecondition
            }
            CatalogError::IdempotencyMismatch => ErrorCode::Unprocessable,
            CatalogError::MachineNameTaken { .. }
            | CatalogError::AddressTaken(_)
            | CatalogError::PolicyNameTaken(_)
            | CatalogError::EgressTaken(_)
            | CatalogError::PeerNameTaken(_)
            | CatalogError::PeerKeyTaken => ErrorCode::AlreadyExists,
            CatalogError::RequestHasMachine { .. } | CatalogError::MachineMoved { .. } => {
                ErrorCode::Aborted
            }
            CatalogError::MachineNotFound(_) => return Self::machine_not_found(),
            CatalogError::VolumeNotFound(_) => return Self::volume_not_found(),
            CatalogError::Store(StoreError::Failed { disk_full: true, .. }) => {
                return Self::disk_full();
            }
            CatalogError::Store(_) => return Self::internal(error),
        };
        Self::new(code, error.to_string())
    }
}
