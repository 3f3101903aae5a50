//! A worker that is started again with 1 000 machines that all run, and with 10 000 of which 1 000
//! do, over VMs that cost nothing: until it answers for all of them, and until all guests have
//! answered.

use anyhow::Result;

use crate::{
    bench::Bench,
    engine::{Recovery, ourselves},
    progress::progress,
    report::Promise,
};

/// Measures the row.
///
/// # Errors
/// When a machine is not there again.
pub async fn measure(bench: &mut Bench) -> Result<()> {
    let rounds = if bench.quick() { "2" } else { "5" };
    for (machines, text) in
        [("1000", "1 000 machines that run"), ("10000", "10 000 machines, 1 000 of them running")]
    {
        progress(&format!("recovery: making {machines} machines"));
        let directory = bench.work().join(format!("recovery-{machines}"));
        let arguments = ["recovery", "--machines", machines, "--rounds", rounds];
        let found: Recovery = ourselves(&directory, &arguments).await?;
        let report = &mut bench.report;
        let (key, none) = (format!("recovery-{machines}"), Promise::None);
        report.samples(
            &key,
            &format!("start of a worker with {text}, until it answers for all"),
            "ms",
            none,
            &found.known,
        );
        let text = "the same, until each guest that runs has answered";
        report.samples(&format!("{key}-reached"), text, "ms", none, &found.reached);
    }
    Ok(())
}
