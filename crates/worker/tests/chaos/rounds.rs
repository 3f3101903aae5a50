//! Many clients, few machines, and whatever may happen.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use caddis_bus::{Chaos, InProcessBus};
use caddis_guest_protocol::fake::Behaviour;
use caddis_vmm::{VmExit, fake::Faults};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    ALONE,
    client::{Client, World},
    process::Taken,
    site::{DEADLINE, Site},
    soaks,
};

const CLIENTS: usize = 32;
const MACHINES: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_clients_do_at_once_each_machine_has_one_history() {
    let _alone = ALONE.lock().await;
    let usual = || if soaks() { rand::random() } else { 1 };
    let seed = std::env::var("CADDIS_SEED").map_or_else(|_| usual(), |seed| seed.parse().unwrap());
    println!("CADDIS_SEED={seed}");
    let (rounds, requests) = if soaks() { (20, 400) } else { (3, 80) };
    let chaos = Chaos { seed, drop: 0.005, repeat: 0.05, delay: Duration::from_millis(5) };
    // An answer that comes when its machine is forgotten would have the gateway show that again.
    let site = Site::keeping(InProcessBus::with_chaos(chaos), DEADLINE * 4).await;
    let world = World::new(site, MACHINES);
    let mut taken = Vec::new();
    for round in 0..rounds {
        let clients =
            (0..CLIENTS).map(|number| Client::new(&world, seed, round, number).run(requests));
        tokio::select! {
            _ = futures::future::join_all(clients) => {}
            () = weather(&world, seed ^ round as u64) => {}
        }
        world.site.host.set_faults(Faults::default());
        world.site.settle().await;
        {
            let history = world.history.lock().unwrap();
            for what in
                ["create", "start", "stop", "suspend", "update", "destroy", "set", "read", "lease"]
            {
                assert!(history.succeeded(what) > 0, "no {what} has succeeded");
            }
            println!("round {round}: {:?}", history.answers());
            history.check().unwrap_or_else(|e| panic!("CADDIS_SEED={seed}: {e}"));
        }
        world.site.destroy_all().await;
        world.clear();
        taken.push(Taken::now());
        println!("{:?}", taken[round]);
    }
    let (second, last) = (taken[1], taken[rounds - 1]);
    assert!(last.is_flat_since(second), "CADDIS_SEED={seed}: {taken:?}");
    world.site.end().await;
}

/// What happens to VMs without anyone asking; never ends.
async fn weather(world: &World, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut minutes = tokio::time::interval(Duration::from_millis(50));
    let host = &world.site.host;
    loop {
        minutes.tick().await;
        let few = |random: &mut StdRng| usize::from(random.random_bool(0.3));
        let few_ms = |random: &mut StdRng| Duration::from_millis(random.random_range(0..8));
        host.set_faults(Faults {
            failing_launches: few(&mut random),
            failing_saves: few(&mut random),
            launch_delay: few_ms(&mut random),
            save_delay: few_ms(&mut random),
            death_delay: few_ms(&mut random),
            pool: random.random_bool(0.5),
            guest: Behaviour { completes_logs: random.random_bool(0.5), ..Behaviour::default() },
            ..Faults::default()
        });
        if let Some(machine) =
            host.running().choose(&mut random).filter(|_| random.random_bool(0.2))
        {
            host.crash(machine, VmExit::HostOom);
        }
    }
}
