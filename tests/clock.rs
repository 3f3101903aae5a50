//! The time of day in real VMs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use caddis_testkit::{DEADLINE, Host, Machine};
use serde_json::json;

use crate::stand::Stand;

/// How far the guest's clock is ahead of the host's, seconds.
async fn ahead(machine: &Machine) -> Result<i64> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let guest: i64 = machine.shell("date +%s").await?.trim().parse()?;
    Ok(guest - i64::try_from(now())?)
}

#[tokio::test]
async fn a_guest_whose_clock_was_set_hours_off_is_right_again() -> Result<()> {
    let host = Host::new().await?;
    let stand = Stand::new(&host).await?;
    let machine = stand.script("exec sleep 10000", json!({})).await?;
    machine.wait("started").await?;
    for hours in [2_i64, -2] {
        let set = machine
            .shell(&format!("date -s @$(( $(date +%s) + {hours} * 3600 )) >/dev/null"))
            .await;
        set?;
        let begun = Instant::now();
        loop {
            let off = ahead(&machine).await?;
            if off.abs() <= 2 {
                println!("{hours} h off: right after {:?}", begun.elapsed());
                break;
            }
            if begun.elapsed() > DEADLINE {
                bail!("still {off} s off");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
