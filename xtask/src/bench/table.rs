//! What was measured of two servers, and its table.

use std::time::Duration;

use anyhow::Result;

use super::server::Server;

/// One server in one round, which sums up what a row measures.
pub(crate) struct Run {
    pub(crate) server: Server,
    cpu: Duration,
    operations: u64,
    /// In place of CPU time.
    value: Option<f64>,
}

impl Run {
    pub(crate) fn new(server: Server) -> Self {
        Self { server, cpu: Duration::ZERO, operations: 0, value: None }
    }

    /// Runs `work` and adds the CPU time that the server took for that many operations.
    pub(crate) fn measure(
        &mut self,
        operations: u64,
        work: impl FnOnce(&Server) -> Result<()>,
    ) -> Result<()> {
        let before = self.server.cpu()?;
        work(&self.server)?;
        self.cpu += self.server.cpu()?.saturating_sub(before);
        self.operations += operations;
        Ok(())
    }

    /// Forgets what was measured.
    pub(crate) fn reset(&mut self) {
        (self.cpu, self.operations) = (Duration::ZERO, 0);
    }

    /// Takes a value instead of CPU time.
    pub(crate) fn set(&mut self, value: f64) {
        self.value = Some(value);
    }

    /// The CPU time of an operation in microseconds, or the value.
    fn result(&self) -> f64 {
        self.value.unwrap_or(self.cpu.as_secs_f64() * 1e6 / self.operations.max(1) as f64)
    }
}

/// What is measured.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// The largest ratio that is well.
    pub(crate) limit: f64,
    pub(crate) run: fn(&mut Run) -> Result<()>,
}

/// Starts our server or the real one.
pub(crate) type Start<'s> = &'s dyn Fn(bool) -> Result<Server>;

/// Measures both servers in turn and prints the medians. Returns how many ratios are too large.
pub(crate) fn compare(
    title: &str,
    rows: &[Row],
    start: Start<'_>,
    rounds: usize,
    only: &[String],
) -> Result<usize> {
    let wanted =
        |row: &&Row| only.is_empty() || only.iter().any(|start| row.name.starts_with(&**start));
    println!("\n| {title:<32} | ours (least..most)     | real (least..most)     | ratio | limit |");
    println!("|:{:-<32}-|{:->23}:|{:->23}:|------:|------:|", "", "", "");
    let mut large = 0;
    for row in rows.iter().filter(wanted) {
        let mut results = [vec![], vec![]];
        for _ in 0..rounds {
            for (is_real, results) in [false, true].into_iter().zip(&mut results) {
                let mut run = Run::new(start(is_real)?);
                if let Err(error) = (row.run)(&mut run) {
                    let whose = if is_real { "real" } else { "our" };
                    return Err(error.context(format!("{}, the {whose} server", row.name)));
                }
                results.push(run.result());
            }
        }
        results.iter_mut().for_each(|results| results.sort_by(f64::total_cmp));
        let median = |results: &[f64]| results[results.len() / 2];
        let cell = |results: &[f64]| {
            let range = format!("({:.1}..{:.1})", results[0], results[results.len() - 1]);
            format!("{:>7.1} {range:>15}", median(results))
        };
        let [ours, real] = &results;
        let ratio = median(ours) / median(real);
        let is_large = ratio > row.limit;
        large += usize::from(is_large);
        println!(
            "| {:<32} | {:>22} | {:>22} | {ratio:>5.2} | {:>5.1} |{}",
            row.name,
            cell(ours),
            cell(real),
            row.limit,
            if is_large { " too much" } else { "" }
        );
    }
    Ok(large)
}
