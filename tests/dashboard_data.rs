//! Every question of every dashboard, asked to a real Prometheus that has watched a tollgate under
//! the story that moves every metric: each must have an answer with numbers in it.
//!
//! Prometheus runs with the shipped configuration, so what its keep-lists drop is found missing here.
//! node_exporter is real; cAdvisor is played by `support/containers.rs`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/containers.rs"]
mod containers;
#[path = "support/dashboards/mod.rs"]
mod dashboards;
#[path = "support/frames.rs"]
mod frames;
#[path = "support/moves.rs"]
mod moves;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/redis.rs"]
mod redis;
#[path = "support/story.rs"]
mod story;
mod support;
#[path = "support/tokens.rs"]
mod tokens;
#[path = "support/watched.rs"]
mod watched;

use serde_json::Value;

use dashboards::{committed, panels_of, queries_of};
use story::World;
use support::Client;
use watched::{Watched, filled};

/// What `$__rate_interval` is here, where everything is scraped each second.
const WINDOW: &str = "10s";

/// Expressions of a dashboard with what they are for: panels, variables and reloads. Alerts may
/// rightly be none.
fn questions(dashboard: &Value) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for panel in panels_of(dashboard) {
        for (letter, expression) in queries_of(panel) {
            all.push((format!("{} {letter}", panel["title"]), expression.to_owned()));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inner = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
            let (metric, label) = inner.rsplit_once(", ").unwrap();
            let expression = format!("count by ({label}) ({metric})");
            all.push((format!("variable {}", variable["name"]), expression));
        }
    }
    let reloads = &dashboard["annotations"]["list"][1];
    all.push(("reloads".to_owned(), reloads["expr"].as_str().unwrap().to_owned()));
    all
}

#[test]
fn every_panel_has_data() {
    let Some(mut world) = World::new() else { return };
    let played = vec![("tollgate", world.tollgate.pid()), ("app", std::process::id())];
    let Some(watched) = Watched::start(world.tollgate.admin, played, "1s") else { return };
    let from = watched.now();
    world.tell();
    let told = watched.now();
    // The last step of the answers may lie a second before their end.
    watched.wait_until_scraped_after(told + 2.0);
    let span = (from, watched.now());

    let (mut asked, mut empty) = (0, Vec::new());
    for (uid, dashboard) in committed() {
        for (what, expression) in questions(&dashboard) {
            asked += 1;
            let answer = watched.range(&filled(&expression, WINDOW), span, 1.0);
            let mut numbers = answer.iter().flat_map(|series| &series.values);
            if !numbers.any(|(_, value)| value.is_finite()) {
                empty.push(format!("{uid}, {what}: {expression}"));
            }
        }
    }
    println!("{asked} questions over {:.0} s", span.1 - span.0);
    assert!(asked > 200, "{asked}");
    assert!(empty.is_empty(), "without data: {empty:#?}");

    let get = |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        Client::connect(world.tollgate.admin).send(head).answer()
    };
    // What the Infinity data source reads.
    let text = std::fs::read_to_string("deploy/grafana/optional/tollgate-top.json").unwrap();
    let top: Value = serde_json::from_str(&text).unwrap();
    for panel in panels_of(&top) {
        let target = &panel["targets"][0];
        let path = target["url"].as_str().unwrap().strip_prefix("${api}").unwrap();
        let answer: Value = serde_json::from_slice(&get(path).body).unwrap();
        let item = &answer[target["root_selector"].as_str().unwrap()][0];
        for column in target["columns"].as_array().unwrap() {
            let value = &item[column["selector"].as_str().unwrap()];
            let is_so = if column["type"] == "number" { value.is_u64() } else { value.is_string() };
            assert!(is_so, "{column}: {answer}");
        }
    }
    // Where the links lead; from this machine no token is asked for.
    for (uid, dashboard) in committed() {
        for link in dashboard["links"].as_array().unwrap() {
            if let Some(path) = link["url"].as_str().and_then(|it| it.strip_prefix("${admin}")) {
                assert_eq!(get(path).status, 200, "{uid}: {path}");
            }
        }
    }
}
