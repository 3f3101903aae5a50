//! What VMs use of this host, sample after sample for as long as someone reads.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Query, State},
    http::Response,
    response::IntoResponse as _,
};
use bytes::Bytes;
use caddis_api::{
    AppName, MachineId,
    usage::{MachineUsage, UsageSample},
};
use futures::stream;
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};

use crate::engine::Shared;

#[derive(Debug, Deserialize)]
pub struct UsageQuery {
    app: AppName,
    interval_ms: u64,
}

/// The first sample at once, then one per interval.
pub async fn read(
    State(shared): State<Arc<Shared>>,
    Query(query): Query<UsageQuery>,
) -> Response<Body> {
    let mut ticks = interval(Duration::from_millis(query.interval_ms.max(100)));
    // Who reads slowly gets fewer samples, not old ones.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let lines = stream::unfold((ticks, HashMap::new()), move |(mut ticks, mut last)| {
        let (shared, app) = (shared.clone(), query.app.clone());
        async move {
            ticks.tick().await;
            let sample = sample(&shared, &app, &mut last).await;
            // Plain data, for which serialisation has no way to fail.
            let mut line = serde_json::to_vec(&sample).unwrap_or_default();
            line.push(b'\n');
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), (ticks, last)))
        }
    });
    Body::from_stream(lines).into_response()
}

/// Of each machine the process of its VM, when that was looked at, and its processor time then.
type Last = HashMap<MachineId, (u32, Instant, Duration)>;

async fn sample(shared: &Shared, app: &str, last: &mut Last) -> UsageSample {
    let mut vms = shared.running();
    vms.retain(|(id, _)| shared.publisher.get(id).is_some_and(|record| record.app == app));
    let (mut machines, mut now) = (Vec::new(), Last::new());
    for (id, vm) in vms {
        // It may end while it is looked at.
        let Ok(cpu) = vm.cpu_used().await else { continue };
        let at = Instant::now();
        let Ok(memory_bytes) = vm.memory_used().await else { continue };
        let before = last.get(&id).filter(|(process, ..)| *process == vm.pid());
        let cpu_percent = before.map(|(_, since, before)| {
            let used = cpu.saturating_sub(*before).as_secs_f64();
            (1000.0 * used / (at - *since).as_secs_f64().max(0.001)).round() / 10.0
        });
        let address = shared.publisher.get(&id).map(|record| record.machine.private_ip.parse());
        let asked = address.and_then(Result::ok).map(|address| shared.network.dns_queries(address));
        let asked = asked.unwrap_or_default();
        now.insert(id.clone(), (vm.pid(), at, cpu));
        machines.push(MachineUsage {
            id,
            cpu_percent,
            cpu_seconds: cpu.as_secs_f64(),
            memory_bytes,
            dns_queries: asked.asked,
            dns_forwarded: asked.forwarded,
        });
    }
    *last = now;
    UsageSample { worker: shared.worker.clone(), machines }
}
