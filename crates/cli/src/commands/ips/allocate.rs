//! `caddis ips allocate-v4`, `allocate-v6` and `allocate-egress`.

use caddis_api::addresses::{AssignIpReply, AssignIpRequest, IpAssignment, IpAssignmentType};
use clap::Args;

use crate::{CliError, globals::AppArgs, prompt, session::Session};

/// `caddis ips allocate-v4`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis ips allocate-v4 -a hello\n  caddis ips allocate-v4 -a hello \
                  --shared"
)]
pub struct AllocateV4 {
    #[command(flatten)]
    app: AppArgs,
    /// The address that all apps share, for HTTP and TLS on ports 80 and 443.
    #[arg(long)]
    shared: bool,
    /// Region that answers [default: all].
    #[arg(short, long, value_name = "CODE")]
    region: Option<String>,
    /// No effect: nothing is asked.
    #[arg(short, long, alias = "auto-confirm", hide = true)]
    yes: bool,
    /// Print the address as JSON.
    #[arg(short, long)]
    json: bool,
}

/// `caddis ips allocate-v6`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  caddis ips allocate-v6 -a hello\n  caddis ips allocate-v6 -a hello \
                  --private"
)]
pub struct AllocateV6 {
    #[command(flatten)]
    app: AppArgs,
    /// An address within a private network.
    #[arg(long)]
    private: bool,
    /// With --private: organization whose network reaches it [default: the app's].
    #[arg(long, value_name = "SLUG", requires = "private")]
    org: Option<String>,
    /// With --private: network that reaches it [default: the organization's default].
    #[arg(long, value_name = "NAME", requires = "private")]
    network: Option<String>,
    /// Region that answers [default: all].
    #[arg(short, long, value_name = "CODE")]
    region: Option<String>,
    /// Print the address as JSON.
    #[arg(short, long)]
    json: bool,
}

/// `caddis ips allocate-egress`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  caddis ips allocate-egress -a hello --yes\n\nThe app gets an address \
                  of each family of which the server has egress addresses. Where one of a pair is \
                  missing, as after 'caddis ips release-egress', only that one is allocated."
)]
pub struct AllocateEgress {
    #[command(flatten)]
    app: AppArgs,
    /// Region of the machines [default: the server's].
    #[arg(short, long, value_name = "CODE")]
    region: Option<String>,
    /// Don't ask for confirmation.
    #[arg(short, long, alias = "auto-confirm")]
    yes: bool,
    /// Print the addresses as JSON.
    #[arg(short, long)]
    json: bool,
}

pub async fn v4(allocate: AllocateV4, session: &Session) -> Result<(), CliError> {
    let kind = if allocate.shared { IpAssignmentType::SharedV4 } else { IpAssignmentType::V4 };
    let request =
        AssignIpRequest { kind: Some(kind), region: allocate.region, ..AssignIpRequest::default() };
    assign(&allocate.app, &request, allocate.json, session).await
}

pub async fn v6(allocate: AllocateV6, session: &Session) -> Result<(), CliError> {
    let kind = if allocate.private { IpAssignmentType::PrivateV6 } else { IpAssignmentType::V6 };
    let request = AssignIpRequest {
        kind: Some(kind),
        region: allocate.region,
        org_slug: allocate.org,
        network: allocate.network,
        ..AssignIpRequest::default()
    };
    assign(&allocate.app, &request, allocate.json, session).await
}

pub async fn egress(allocate: AllocateEgress, session: &Session) -> Result<(), CliError> {
    if !allocate.yes {
        session.printer.note(
            "Most apps need no static egress addresses. From a pair of them come all new \
             connections of the app's machines in the region, up to 64 machines, each with 1024 \
             ports.",
        )?;
        let question = "Allocate static egress addresses?";
        prompt::confirm(&session.printer, question, prompt::NO_YES).await?;
    }
    let request = AssignIpRequest {
        kind: Some(IpAssignmentType::EgressPair),
        region: allocate.region,
        ..AssignIpRequest::default()
    };
    assign(&allocate.app, &request, allocate.json, session).await
}

async fn assign(
    app: &AppArgs,
    request: &AssignIpRequest,
    json: bool,
    session: &Session,
) -> Result<(), CliError> {
    let client = session.client()?;
    let app = session.app(app)?;
    let assigned = client
        .assign_address(&app, request)
        .await
        .map_err(|error| CliError::attempted("could not allocate an address", error))?;
    if json {
        // They are in there too.
        return Ok(session.printer.json(&assigned)?);
    }
    let AssignIpReply { assignment, ip_pair, warnings } = assigned;
    let pair = ip_pair.into_iter().flat_map(|pair| [pair.v4, pair.v6]).flatten();
    let rows: Vec<_> = assignment
        .ip
        .iter()
        .cloned()
        .chain(pair)
        .map(|ip| IpAssignment {
            ip,
            region: assignment.region.clone(),
            service_name: assignment.service_name.clone(),
            shared: assignment.shared,
            egress: assignment.egress,
            created_at: assignment.created_at.clone(),
            network: assignment.network.clone(),
            machines: None,
        })
        .collect();
    super::table(session, &rows)?;
    Ok(warn(session, &warnings)?)
}

fn warn(session: &Session, warnings: &[String]) -> std::io::Result<()> {
    warnings.iter().try_for_each(|text| session.printer.note(format_args!("Warning: {text}")))
}
