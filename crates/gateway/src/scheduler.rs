//! Where a new machine goes: all workers of a region are asked, the best of those that have room
//! gets it.

use std::{cmp::Reverse, time::Duration};

use caddis_api::{ApiError, ErrorCode, MachineConfig, RegionCode};
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
    let question = Question::Place {
        cpus: config.cpus(),
        memory_mib: config.memory_mib(),
        disk_gib: config.rootfs_gib(),
        volume_gib: 0,
        image: config.image.clone().unwrap_or_default(),
    };
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

/// Machines that would fit on each host of a region that has room for any.
pub(crate) async fn room_in(
    context: &Inner,
    region: &RegionCode,
    config: &MachineConfig,
) -> Result<Vec<u64>, ApiError> {
    let (cpus, memory_mib, disk_gib) = (config.cpus(), config.memory_mib(), config.rootfs_gib());
    let question =
        Question::Place { cpus, memory_mib, disk_gib, volume_gib: 0, image: String::new() };
    let window =
        AskWindow { quiet: Duration::from_millis(10), deadline: Duration::from_millis(500) };
    let offers = ask(context, region, &question, window).await?.into_iter();
    let further = |offer: &Offer| {
        let cpus = u64::from(offer.free_cpus) / u64::from(cpus.max(1));
        cpus.min(offer.free_memory_mib / memory_mib.max(1))
            .min(offer.free_disk_gib / disk_gib.max(1))
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
    use caddis_api::WorkerId;

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
