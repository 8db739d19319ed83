//! `tollgate usage reconcile`: what a process has counted, in two ways that share no code: its
//! metrics when a request is over, and its records, read back from the sink.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::admin::usage::ShownTotals;
use crate::clock::monotonic;
use crate::commands::admin_client::read_token;
use crate::commands::{Format, print};
use crate::metrics::names;

use super::ReconcileArgs;
use super::source::get;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Report {
    replica: String,
    in_flight: i64,
    lag_seconds: f64,
    agrees: bool,
    rows: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Line {
    tier: String,
    what: &'static str,
    counted: i64,
    recorded: i64,
    difference: i64,
}

/// Prints a table of both.
///
/// # Errors
/// They differ after the wait, or cannot be read.
pub(super) fn reconcile(args: &ReconcileArgs) -> anyhow::Result<()> {
    let token = args.token_file.as_deref().map(read_token).transpose()?;
    let get = |path, token| get("--admin", &args.admin, path, token);
    let deadline = monotonic() + args.wait;
    let report = loop {
        let totals = get("/api/v1/usage/totals", token.clone())?;
        let totals: ShownTotals =
            serde_json::from_str(&totals).context("the answer has no totals")?;
        // After the totals: what is counted now and not there yet shows as missing, never the
        // other way round.
        let metrics = get("/metrics", None)?;
        let report = compare(&metrics, totals);
        if report.agrees || monotonic() >= deadline {
            break report;
        }
        std::thread::sleep(PAUSE);
    };
    match args.format {
        Format::Human => print(table(&report)),
        Format::Json => print(serde_json::to_string(&report)?),
    }
    if !report.agrees {
        bail!("records and counters differ");
    }
    Ok(())
}

fn compare(metrics: &str, totals: ShownTotals) -> Report {
    let mut lines: BTreeMap<(String, usize), (i64, i64)> = BTreeMap::new();
    let columns = [&names::USAGE_REQUESTS, &names::USAGE_UNITS, &names::USAGE_DENIED];
    for (index, desc) in columns.iter().enumerate() {
        for (labels, value) in series(metrics, desc.name) {
            let tier = labels.strip_prefix("{tier=\"").and_then(|it| it.strip_suffix("\"}"));
            if let Some(tier) = tier {
                lines.entry((tier.to_owned(), index)).or_default().0 += value;
            }
        }
    }
    for (tier, sums) in &totals.tiers {
        for (index, sum) in [sums.requests, sums.units, sums.denied].into_iter().enumerate() {
            lines.entry((tier.clone(), index)).or_default().1 += sum;
        }
    }
    let rows = lines.into_iter().map(|((tier, index), (counted, recorded))| {
        let what = ["requests", "units", "denied"].get(index).copied().unwrap_or_default();
        Line { tier, what, counted, recorded, difference: recorded.saturating_sub(counted) }
    });
    let rows: Vec<Line> = rows.collect();
    Report {
        replica: totals.replica,
        in_flight: series(metrics, names::IN_FLIGHT.name).map(|(_, value)| value).sum(),
        lag_seconds: totals.lag_seconds,
        agrees: rows.iter().all(|row| row.difference == 0),
        rows,
    }
}

/// Samples of a name: their labels, and their values.
fn series<'m>(metrics: &'m str, name: &'m str) -> impl Iterator<Item = (&'m str, i64)> {
    metrics.lines().filter_map(move |line| {
        let (series, value) = line.rsplit_once(' ')?;
        let labels = series.strip_prefix(name)?;
        let is_it = labels.is_empty() || labels.starts_with('{');
        let value: f64 = value.parse().ok()?;
        is_it.then_some((labels, value as i64))
    })
}

fn table(report: &Report) -> String {
    let width = report.rows.iter().map(|row| row.tier.len()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "replica {}\n{:<width$}  {:<8}  {:>12}  {:>12}  {:>10}",
        report.replica, "tier", "what", "counted", "recorded", "difference"
    );
    for Line { tier, what, counted, recorded, difference } in &report.rows {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{tier:<width$}  {what:<8}  {counted:>12}  {recorded:>12}  {difference:>10}"
        );
    }
    let verdict = if report.agrees { "they agree" } else { "they differ" };
    let (in_flight, lag) = (report.in_flight, report.lag_seconds);
    let _ = write!(text, "\n{verdict}; {in_flight} requests under way, {lag:.1} s not written yet");
    text
}
