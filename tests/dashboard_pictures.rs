//! The pictures in `docs/dashboards/`: each dashboard, drawn from its own JSON and from what its own
//! queries answer, after some minutes of a service that really ran (`tests/long.sh pictures`). They
//! are no screenshots of Grafana.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/containers.rs"]
mod containers;
#[path = "support/dashboards/mod.rs"]
mod dashboards;
#[path = "support/draw/mod.rs"]
mod draw;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "support/prometheus.rs"]
mod prometheus;
#[path = "support/redis.rs"]
mod redis;
mod support;
#[path = "support/tokens.rs"]
mod tokens;
#[path = "support/traffic.rs"]
mod traffic;
#[path = "support/watched.rs"]
mod watched;

use std::collections::BTreeMap;

use draw::Ask;
use traffic::Service;
use watched::{Series, Watched, filled};

/// How large a picture may be.
const BYTES_MAX: usize = 150_000;
/// How often Prometheus looks, and over what rates are taken.
const INTERVAL: &str = "2s";
const WINDOW: &str = "10s";
/// Points of a line.
const POINTS: f64 = 100.0;

/// Answers of one run, kept so that pictures can be drawn again without another.
const KEPT: &str = "target/dashboard-answers.json";

/// What was asked, and what the answers were.
#[derive(serde::Serialize, serde::Deserialize)]
struct Answers {
    span: (f64, f64),
    answers: BTreeMap<String, Vec<Series>>,
}

impl Answers {
    fn of(watched: &Watched, from: f64) -> Self {
        let mut asked = Answers { span: (from, watched.now()), answers: BTreeMap::new() };
        for (_, dashboard) in dashboards::committed() {
            for panel in dashboards::panels_of(&dashboard) {
                for (_, expression) in dashboards::queries_of(panel) {
                    let answer =
                        watched.range(&filled(expression, WINDOW), asked.span, asked.step());
                    asked.answers.insert(expression.to_owned(), answer);
                }
            }
        }
        asked
    }
}

impl Ask for Answers {
    fn span(&self) -> (f64, f64) {
        self.span
    }

    fn step(&self) -> f64 {
        (self.span.1 - self.span.0) / POINTS
    }

    fn range(&self, expression: &str) -> Vec<Series> {
        let answer = self.answers.get(expression);
        answer.unwrap_or_else(|| panic!("not asked in that run: {expression}")).clone()
    }
}

#[test]
#[ignore = "takes six minutes and writes docs/dashboards: tests/long.sh pictures"]
fn pictures() {
    let program = std::env::var_os("TOLLGATE_BIN").map(std::path::PathBuf::from);
    let Some(service) = Service::start(program) else { panic!("a program is missing") };
    let tollgate = &service.tollgate;
    let played = vec![("tollgate", tollgate.pid()), ("app", std::process::id())];
    let Some(watched) = Watched::start(tollgate.admin, played, INTERVAL) else {
        panic!("a program is missing");
    };
    let from = watched.now();
    service.live();
    let answers = Answers::of(&watched, from + 10.0);
    std::fs::write(KEPT, serde_json::to_string(&answers).unwrap()).unwrap();
    draw_all(&answers);
}

#[test]
#[ignore = "draws the answers of the last run anew: tests/long.sh redraw"]
fn redraw() {
    let kept = std::fs::read_to_string(KEPT).unwrap();
    draw_all(&serde_json::from_str::<Answers>(&kept).unwrap());
}

fn draw_all(asked: &impl Ask) {
    std::fs::create_dir_all("docs/dashboards").unwrap();
    for (uid, json) in dashboards::committed() {
        let name = uid.trim_start_matches("tollgate-");
        write(name, &draw::dashboard(&json, asked, usize::MAX));
        if name == "overview" {
            // What the README shows: the first two rows.
            write("overview-top", &draw::dashboard(&json, asked, 2));
        }
    }
}

fn write(name: &str, picture: &str) {
    let file = format!("docs/dashboards/{name}.svg");
    println!("{file}: {} bytes", picture.len());
    assert!(picture.len() < BYTES_MAX, "{file} is too large");
    std::fs::write(file, picture).unwrap();
}
