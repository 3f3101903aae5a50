//! Where a new machine goes: all workers of a region are asked, the best of those that have room
//! gets it.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use caddis_api::{ApiError, ErrorCode, MachineConfig, RegionCode, WorkerId};
use caddis_bus::{
    AskWindow,
    message::{self, Offer, Question},
};

use crate::http::context::Inner;

/// How long offers are collected (design §2.3).
const WINDOW: AskWindow =
    AskWindow { quiet: Duration::from_millis(10), deadline: Duration::from_secs(2) };

/// The offers of the first of these regions that has room, best first, and its name.
pub(crate) async fn offers(
    context: &Inner,
    regions: &[RegionCode],
    config: &MachineConfig,
) -> Result<(RegionCode, Vec<Offer>), ApiError> {
    let question = question(config);
    let mut refused = Vec::new();
    for region in regions {
        let answers = ask(context, region, &question, WINDOW).await?;
        let (mut fitting, full): (Vec<Offer>, Vec<Offer>) =
            answers.into_iter().partition(|offer| offer.fits);
        if !fitting.is_empty() {
            rank(&mut fitting);
            return Ok((region.clone(), fitting));
        }
        refused.push((region.clone(), full));
    }
    Err(no_room(config, &refused))
}

/// What the hosts of a region offer a machine, best first, those that have no room last.
pub(crate) async fn offers_in(
    context: &Inner,
    region: &RegionCode,
    config: &MachineConfig,
) -> Result<Vec<Offer>, ApiError> {
    let mut offers = ask(context, region, &question(config), WINDOW).await?;
    rank(&mut offers);
    offers.sort_by_key(|offer| !offer.fits);
    Ok(offers)
}

fn question(config: &MachineConfig) -> Question {
    Question::Place {
        cpus: config.cpus(),
        memory_mib: config.memory_mib(),
        disk_gib: config.rootfs_gib(),
        volume_gib: 0,
        image: config.image.clone().unwrap_or_default(),
    }
}

/// A volume to be placed.
pub(crate) struct WantedVolume {
    /// Size, GiB.
    pub gib: u32,
    /// A machine that the host must have room for as well, unless nothing is said of it.
    pub compute: Option<MachineConfig>,
    /// Hosts that it is not to be on.
    pub avoid: BTreeSet<WorkerId>,
    /// Whether it is to be on none of them.
    pub apart: Apart,
    /// Whether they are those that have any volume of its app, not only of its name.
    pub app_wide: bool,
}

/// Whether a volume is on a host of its own, without others of its name or app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Apart {
    /// It need not be.
    No,
    /// Where its region has several hosts.
    OfSeveralHosts,
    /// Also where no other host could ever have it.
    Always,
}

/// What hosts offer for a volume.
pub(crate) struct VolumeOffers {
    /// The first of the wanted regions that has room.
    pub region: RegionCode,
    /// Its offers, best first.
    pub offers: Vec<Offer>,
    /// Whether each of several volumes has to be on a host of its own.
    pub apart: bool,
}

/// The offers for a volume.
pub(crate) async fn volume_offers(
    context: &Inner,
    regions: &[RegionCode],
    wanted: &WantedVolume,
) -> Result<VolumeOffers, ApiError> {
    let compute = wanted.compute.as_ref();
    let question = Question::Place {
        cpus: compute.map_or(0, MachineConfig::cpus),
        memory_mib: compute.map_or(0, MachineConfig::memory_mib),
        disk_gib: compute.map_or(0, MachineConfig::rootfs_gib),
        volume_gib: wanted.gib.into(),
        image: compute.and_then(|config| config.image.clone()).unwrap_or_default(),
    };
    let hosts = context.view.hosts().all();
    let mut refused = Vec::new();
    for region in regions {
        let is_only = hosts.iter().filter(|(_, host)| host.region == *region).count() == 1;
        let apart = match wanted.apart {
            Apart::No => false,
            Apart::OfSeveralHosts => !is_only,
            Apart::Always => true,
        };
        let avoids = |offer: &Offer| apart && wanted.avoid.contains(&offer.worker);
        let answers = ask(context, region, &question, WINDOW).await?;
        let (mut fitting, unfit): (Vec<Offer>, Vec<Offer>) =
            answers.into_iter().partition(|offer| offer.fits && !avoids(offer));
        if !fitting.is_empty() {
            rank(&mut fitting);
            return Ok(VolumeOffers { region: region.clone(), offers: fitting, apart });
        }
        refused.push((region.clone(), unfit));
    }
    Err(no_room_for_volume(wanted, &refused))
}

/// Machines, with a volume of this size each, that would fit on each host of a region that has room
/// for any.
pub(crate) async fn room_in(
    context: &Inner,
    region: &RegionCode,
    config: &MachineConfig,
    volume_gib: u64,
) -> Result<Vec<u64>, ApiError> {
    let (cpus, memory_mib, disk_gib) = (config.cpus(), config.memory_mib(), config.rootfs_gib());
    let question = Question::Place { cpus, memory_mib, disk_gib, volume_gib, image: String::new() };
    let window =
        AskWindow { quiet: Duration::from_millis(10), deadline: Duration::from_millis(500) };
    let offers = ask(context, region, &question, window).await?.into_iter();
    let further = |offer: &Offer| {
        let cpus = u64::from(offer.free_cpus) / u64::from(cpus.max(1));
        cpus.min(offer.free_memory_mib / memory_mib.max(1))
            .min(offer.free_disk_gib / disk_gib.max(1))
            .min(match offer.free_volume_gib {
                Some(free) if volume_gib > 0 => free / volume_gib,
                _ => u64::MAX,
            })
    };
    Ok(offers.filter(|offer| offer.fits).map(|offer| 1 + further(&offer)).collect())
}

/// What the workers of a region offer.
pub(crate) async fn ask(
    context: &Inner,
    region: &RegionCode,
    question: &Question,
    window: AskWindow,
) -> Result<Vec<Offer>, ApiError> {
    let subject = message::region_subject(region);
    let answers = context.bus.ask_all(&subject, message::encode(question), window).await?;
    let offers = answers
        .iter()
        .filter_map(|answer| message::decode(&subject, answer).inspect_err(unreadable).ok());
    Ok(offers.collect())
}

fn unreadable(error: &caddis_bus::BusError) {
    tracing::error!(%error, "an offer can't be read");
}

/// An image that is there already saves the most time; then room to grow.
fn rank(offers: &mut [Offer]) {
    offers.sort_by_key(|offer| {
        (Reverse(offer.has_image), Reverse(offer.free_memory_mib), offer.worker.clone())
    });
}

fn no_room_for_volume(wanted: &WantedVolume, refused: &[(RegionCode, Vec<Offer>)]) -> ApiError {
    let mut text = format!("could not find a candidate host: the volume needs {} GiB", wanted.gib);
    if let Some(compute) = &wanted.compute {
        text.push_str(&format!(
            ", its machine {} CPUs and {} MiB of memory",
            compute.cpus(),
            compute.memory_mib()
        ));
    }
    for (region, offers) in refused {
        if offers.is_empty() {
            text.push_str(&format!("; in {region} no host answers"));
        }
        for offer in offers {
            text.push_str(&format!("; host {} in {region} ", offer.worker));
            text.push_str(&match (&offer.free_volume_gib, &offer.shortage) {
                _ if offer.drains => "is being drained".to_owned(),
                _ if offer.fits && wanted.app_wide => {
                    "has another volume of the app, and a zone of its own was asked for \
                     (unique_zone_app_wide)"
                        .to_owned()
                }
                _ if offer.fits => {
                    "has another volume of this name, and a zone of its own was asked for \
                     (require_unique_zone)"
                        .to_owned()
                }
                (_, Some(shortage)) => format!("has not enough free: {shortage}"),
                (Some(free), None) => format!("has {free} GiB free"),
                (None, None) => "has not enough free".to_owned(),
            });
        }
    }
    ApiError::new(ErrorCode::InsufficientCapacity, text)
}

fn no_room(config: &MachineConfig, refused: &[(RegionCode, Vec<Offer>)]) -> ApiError {
    let drained = |offers: &Vec<Offer>| !offers.is_empty() && offers.iter().all(|o| o.drains);
    if !refused.is_empty() && refused.iter().all(|(_, offers)| drained(offers)) {
        return ApiError::precondition(
            "no host takes machines: each is being drained for a shutdown, until its server is \
             restarted",
        );
    }
    let mut text = format!(
        "could not find a candidate host: the machine needs {} CPUs, {} MiB of memory and {} GiB \
         of disk",
        config.cpus(),
        config.memory_mib(),
        config.rootfs_gib()
    );
    for (region, offers) in refused {
        if offers.is_empty() {
            text.push_str(&format!("; in {region} no host answers"));
        }
        for offer in offers {
            if offer.drains {
                let host = &offer.worker;
                text.push_str(&format!("; host {host} in {region} is being drained"));
                continue;
            }
            text.push_str(&format!(
                "; host {} in {region} has {} CPUs, {} MiB and {} GiB free",
                offer.worker, offer.free_cpus, offer.free_memory_mib, offer.free_disk_gib
            ));
            if let Some(shortage) = &offer.shortage {
                text.push_str(&format!(" ({shortage})"));
            }
        }
    }
    let offers = refused.iter().flat_map(|(_, offers)| offers).filter(|offer| !offer.drains);
    let roomiest = offers.max_by_key(|offer| offer.free_memory_mib);
    if let Some(offer) =
        roomiest.filter(|offer| offer.free_memory_mib >= 256 && offer.free_cpus > 0)
    {
        text.push_str(&format!(
            "; with at most {} CPUs, {} MiB and {} GiB it would fit",
            offer.free_cpus,
            offer.free_memory_mib / 256 * 256,
            offer.free_disk_gib
        ));
    }
    ApiError::new(ErrorCode::InsufficientCapacity, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(worker: &str, free: u64, has_image: bool) -> Offer {
        Offer {
            worker: WorkerId::from_trusted(worker),
            fits: true,
            drains: false,
            shortage: None,
            free_memory_mib: free,
            free_cpus: 4,
            free_disk_gib: 80,
            free_volume_gib: None,
            has_image,
        }
    }

    #[test]
    fn the_image_counts_before_memory() {
        let mut offers = [offer("a", 100, false), offer("b", 50, true), offer("c", 60, true)];
        rank(&mut offers);
        assert_eq!(offers.map(|offer| offer.worker.to_string()), ["c", "b", "a"]);
    }

    #[test]
    fn a_host_that_is_drained_is_no_lack_of_room() {
        let drained = Offer { fits: false, drains: true, ..offer("w", 1000, false) };
        let full =
            Offer { fits: false, shortage: Some("memory".to_owned()), ..offer("v", 0, false) };
        let config = MachineConfig::default();
        let refusal = |offers: &[Offer]| {
            no_room(&config, &[(RegionCode::from_trusted("local"), offers.to_vec())])
        };
        let error = refusal(std::slice::from_ref(&drained));
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        assert!(error.message.contains("until its server is restarted"), "{}", error.message);
        let silent = [
            (RegionCode::from_trusted("local"), vec![drained.clone()]),
            (RegionCode::from_trusted("far"), vec![]),
        ];
        assert_eq!(no_room(&config, &silent).code, ErrorCode::InsufficientCapacity);
        let error = refusal(&[drained, full]);
        assert_eq!(error.code, ErrorCode::InsufficientCapacity);
        let text = "; host w in local is being drained; host v in local has 4 CPUs, 0 MiB";
        assert!(error.message.contains(text), "{}", error.message);
    }

    #[test]
    fn a_refusal_of_a_volume_says_what_each_host_lacks() {
        let full = Offer {
            fits: false,
            free_volume_gib: Some(2),
            shortage: None,
            ..offer("full", 0, false)
        };
        let used = offer("used", 0, false);
        let drained = Offer { fits: false, drains: true, ..offer("drained", 0, false) };
        let mut wanted = WantedVolume {
            gib: 10,
            compute: None,
            avoid: BTreeSet::new(),
            apart: Apart::Always,
            app_wide: false,
        };
        let local = RegionCode::from_trusted("local");
        let far = (RegionCode::from_trusted("far"), vec![]);
        let error =
            no_room_for_volume(&wanted, &[(local.clone(), vec![full, used.clone(), drained]), far]);
        assert_eq!(error.code, ErrorCode::InsufficientCapacity);
        assert_eq!(
            error.message,
            "could not find a candidate host: the volume needs 10 GiB; host full in local has 2 \
             GiB free; host used in local has another volume of this name, and a zone of its own \
             was asked for (require_unique_zone); host drained in local is being drained; in far \
             no host answers"
        );
        wanted.app_wide = true;
        let error = no_room_for_volume(&wanted, &[(local, vec![used])]);
        let text = "has another volume of the app, and a zone of its own was asked for \
                    (unique_zone_app_wide)";
        assert!(error.message.contains(text), "{}", error.message);
    }

    #[test]
    fn a_refusal_says_what_is_free_and_what_would_fit() {
        let config = caddis_api::validate::read(
            &serde_json::from_value(serde_json::json!({"guest": {"cpus": 1, "memory_mb": 2048}}))
                .unwrap(),
        );
        let full =
            Offer { fits: false, shortage: Some("memory".to_owned()), ..offer("w", 1000, false) };
        let error = no_room(
            &config.unwrap(),
            &[
                (RegionCode::from_trusted("local"), vec![full]),
                (RegionCode::from_trusted("far"), vec![]),
            ],
        );
        assert_eq!(
            error.message,
            "could not find a candidate host: the machine needs 1 CPUs, 2048 MiB of memory and 8 \
             GiB of disk; host w in local has 4 CPUs, 1000 MiB and 80 GiB free (memory); in far no \
             host answers; with at most 4 CPUs, 768 MiB and 80 GiB it would fit"
        );
    }
}
