//! A build is for those who wait for it: it goes on while one does, and ends with the last.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use caddis_image::{ImageError, ImageStore, RootDisk};
use support::{
    World,
    image::{Image, Layer},
    names, progress, pull,
    registry::{FakeRegistry, Reply},
};
use tokio::{sync::mpsc, task::JoinHandle};

/// Longer than anything takes; a test that waits in vain fails.
const DEADLINE: Duration = Duration::from_secs(120);

fn image(name: &str) -> Image {
    Image::new(&[Layer::new().file("base", &[1; 5000]), Layer::new().file(name, &[2; 5000])])
}

/// A registry that gives the second layer of its images only once it may.
struct Stubborn {
    registry: FakeRegistry,
    world: World,
    gives: Arc<AtomicBool>,
    /// Digests of the layers that were asked for and not given.
    asked: mpsc::UnboundedReceiver<String>,
}

impl Stubborn {
    async fn new(images: &[&str]) -> Self {
        let registry = FakeRegistry::start().await;
        let mut held = Vec::new();
        for name in images {
            registry.offer(name, "latest", &image(name));
            held.push(image(name).layer_digest(1));
        }
        let gives = Arc::new(AtomicBool::new(false));
        let (sender, asked) = mpsc::unbounded_channel();
        let gives_now = Arc::clone(&gives);
        registry.misbehave(move |request| {
            let digest = held.iter().find(|digest| request.path.ends_with(*digest))?;
            if gives_now.load(Ordering::SeqCst) {
                return None;
            }
            // Nobody may be listening any more.
            let _ = sender.send(digest.clone());
            Some(Reply::new(500, ""))
        });
        let mut world = World::trusting(&registry.address);
        world.config.transfer.attempts = u32::MAX;
        world.config.transfer.first_pause = Duration::from_millis(1);
        Self { registry, world, gives, asked }
    }

    fn want(&self, store: &ImageStore, name: &str) -> JoinHandle<Result<RootDisk, ImageError>> {
        let (store, reference) = (store.clone(), self.registry.reference(name));
        tokio::spawn(async move { pull(&store, &reference).await })
    }

    /// Waits until the second layers of these images are asked for.
    async fn asked_for(&mut self, images: &[&str]) {
        let mut missing: Vec<String> =
            images.iter().map(|name| image(name).layer_digest(1)).collect();
        let asked = async {
            while !missing.is_empty() {
                let digest = self.asked.recv().await.expect("the registry is there");
                missing.retain(|wanted| *wanted != digest);
            }
        };
        tokio::time::timeout(DEADLINE, asked).await.expect("the layers are asked for");
    }
}

async fn gone(caller: JoinHandle<Result<RootDisk, ImageError>>) {
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn with_the_last_caller_a_build_ends_and_makes_room_for_others() {
    let mut registry = Stubborn::new(&["a", "b", "c", "d"]).await;
    let store = registry.world.open();
    // As many as are built at the same time.
    let callers = [registry.want(&store, "a"), registry.want(&store, "b")];
    registry.asked_for(&["a", "b"]).await;
    let waiting = registry.want(&store, "c");
    for caller in callers {
        gone(caller).await;
    }
    // Both places are free, which they are once nothing is left of the builds that had them.
    let other = registry.want(&store, "d");
    registry.asked_for(&["c", "d"]).await;
    gone(waiting).await;
    registry.gives.store(true, Ordering::SeqCst);
    tokio::time::timeout(DEADLINE, other).await.unwrap().unwrap().unwrap();
    assert_eq!(names(&registry.world.store_path("disks")).len(), 1);
}

#[tokio::test]
async fn one_caller_of_two_that_goes_away_stops_nothing() {
    let mut registry = Stubborn::new(&["app"]).await;
    let store = registry.world.open();
    let (first, second) = (registry.want(&store, "app"), registry.want(&store, "app"));
    registry.asked_for(&["app"]).await;
    gone(first).await;
    registry.asked_for(&["app"]).await;
    registry.gives.store(true, Ordering::SeqCst);
    let disk = tokio::time::timeout(DEADLINE, second).await.unwrap().unwrap().unwrap();
    assert!(disk.path.exists());
    registry.world.assert_no_work_left();
}

#[tokio::test]
async fn who_comes_after_the_last_has_gone_starts_anew() {
    let mut registry = Stubborn::new(&["app"]).await;
    let store = registry.world.open();
    for _ in 0..3 {
        let caller = registry.want(&store, "app");
        registry.asked_for(&["app"]).await;
        gone(caller).await;
    }
    registry.gives.store(true, Ordering::SeqCst);
    let disk = tokio::time::timeout(DEADLINE, registry.want(&store, "app"))
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(disk.path.exists());
}

#[tokio::test]
async fn a_caller_who_only_waits_for_its_turn_may_go_too() {
    let mut registry = Stubborn::new(&["a", "b", "c"]).await;
    let store = registry.world.open();
    let building = [registry.want(&store, "a"), registry.want(&store, "b")];
    registry.asked_for(&["a", "b"]).await;
    gone(registry.want(&store, "c")).await;
    registry.gives.store(true, Ordering::SeqCst);
    for caller in building {
        tokio::time::timeout(DEADLINE, caller).await.unwrap().unwrap().unwrap();
    }
    assert_eq!(registry.registry.count(&image("c").layer_digest(1)), 0);
}

/// Waits until nobody works in the directory of a store that is closed.
async fn closed(world: &World) {
    let session = world.store_path("tmp").join(&names(&world.store_path("tmp"))[0]);
    let session = fs::File::open(session).unwrap();
    let ended = tokio::task::spawn_blocking(move || {
        nix::fcntl::Flock::lock(session, nix::fcntl::FlockArg::LockExclusive)
            .map(drop)
            .map_err(|(_, error)| error)
    });
    tokio::time::timeout(DEADLINE, ended).await.expect("the build ends").unwrap().unwrap();
}

#[tokio::test]
async fn in_whatever_step_the_caller_goes_nothing_half_made_stays() {
    let many =
        (0..3000).fold(Layer::new(), |layer, number| layer.file(&format!("{number}"), &[1; 5000]));
    let image = Image::new(&[many, Layer::new().file("large", &vec![1; 64 << 20])]);
    let registry = FakeRegistry::start().await;
    registry.offer("app", "latest", &image);
    // Each of them or a later one: steps that are over quickly may not be seen.
    let steps = ["pull", "unpack", "build"];
    for first in 0..steps.len() {
        let steps = &steps[first..];
        let mut world = World::trusting(&registry.address);
        world.config.limits.unpacked_bytes = 1 << 30;
        let store = world.open();
        let resolved = store.resolve(&registry.reference("app")).await.unwrap();
        let sender = progress();
        let mut receiver = sender.subscribe();
        let building = store.root_disk(&resolved, &sender);
        tokio::select! {
            result = building => panic!("it was done before anyone could go: {result:?}"),
            reached = receiver.wait_for(|progress| steps.contains(&progress.step.as_str())) => {
                drop(reached.unwrap());
            }
        }
        drop(store);
        closed(&world).await;
        assert_eq!(names(&world.store_path("tmp")), [""; 0], "{steps:?}");
        assert_eq!(names(&world.store_path("disks")), [""; 0], "{steps:?}");
        world.assert_untouched();
    }
}
