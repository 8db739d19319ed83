//! The dashboards: what their one source says (`source`), what its expressions name (`promql`), and
//! the JSON for Grafana that is made of both (`grafana`, `panels`).
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

pub mod grafana;
pub mod panels;
#[path = "../promql.rs"]
pub mod promql;
pub mod source;

use std::path::PathBuf;

use serde_json::Value;

use source::{Board, Source};

/// Where the JSON of a dashboard is kept, from the root of the repository.
pub fn file(board: &Board) -> PathBuf {
    PathBuf::from(format!("deploy/grafana/dashboards/{}.json", board.uid))
}

/// Every dashboard of the repository as it is committed, by its uid.
pub fn committed() -> Vec<(String, Value)> {
    let source = Source::read();
    let read = |board: &Board| {
        let text = std::fs::read_to_string(file(board)).unwrap_or_default();
        let json = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!("{}: {error}; TOLLGATE_UPDATE=1 makes it", file(board).display())
        });
        (board.uid.clone(), json)
    };
    source.dashboards.iter().map(read).collect()
}

/// Panels of a dashboard's JSON, rows aside.
pub fn panels_of(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let all = dashboard["panels"].as_array().unwrap().iter();
    all.flat_map(|panel| {
        let inner = panel["panels"].as_array().into_iter().flatten();
        std::iter::once(panel).chain(inner)
    })
    .filter(|panel| panel["type"] != "row")
}

/// Expressions of a panel's JSON, with their letters.
pub fn queries_of(panel: &Value) -> impl Iterator<Item = (&str, &str)> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    targets.map(|it| (it["refId"].as_str().unwrap(), it["expr"].as_str().unwrap()))
}
