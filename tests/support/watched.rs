//! A real Prometheus that watches a tollgate as the shipped configuration says, a real node_exporter,
//! and a stand-in for cAdvisor; and the dashboards' questions, asked to it.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::containers::{self, Played};
use crate::prometheus::{Server, program};
use crate::support::{Backend, nobody, wait_until};

/// One series of an answer: its labels, and its values by their times in seconds; what is not a
/// number is left out.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Series {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970, and the value.
    pub values: Vec<(f64, f64)>,
}

/// Prometheus with all that it scrapes beside tollgate.
pub struct Watched {
    /// Prometheus.
    pub server: Server,
    node: Child,
    _containers: Backend,
    _directory: tempfile::TempDir,
}

impl Watched {
    /// Starts everything; `None`, with a printed line, where a program is missing.
    pub fn start(tollgate: SocketAddr, played: Vec<Played>, interval: &str) -> Option<Self> {
        let prometheus = program("prometheus")?;
        let exporter = program("prometheus-node-exporter")?;
        let node_address = nobody();
        let node = Command::new(exporter)
            .arg(format!("--web.listen-address={node_address}"))
            // One file system is enough, and what else is mounted here is nobody's business.
            .arg("--collector.filesystem.mount-points-exclude=^/.+")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let containers = Backend::spawn(move |mut connection| {
            while connection.request().is_some() {
                connection.ok(&containers::page(&played));
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let targets = [
            ("tollgate:9900", tollgate),
            ("node-exporter:9100", node_address),
            ("cadvisor:8080", containers.address),
            ("alertmanager:9093", nobody()),
        ];
        let config = as_shipped(directory.path(), &targets, interval);
        let server = Server::prometheus(&prometheus, &config, directory.path());
        let watched = Watched { server, node, _containers: containers, _directory: directory };
        wait_until("everything is scraped", || {
            watched
                .server
                .query("count_over_time(up{job=~\"tollgate|node|cadvisor\"}[1m]) > 1")
                .len()
                == 3
        });
        Some(watched)
    }

    /// The time, as Prometheus says it.
    pub fn now(&self) -> f64 {
        self.server.query("vector(time())")[0]
    }

    /// Waits until everything has been scraped after this time.
    pub fn wait_until_scraped_after(&self, time: f64) {
        wait_until("all is scraped once more", || {
            let query = "min(timestamp(up{job=~\"tollgate|node|cadvisor\"}))";
            self.server.query(query).first().is_some_and(|last| *last > time)
        });
    }

    /// What an expression is over a time.
    pub fn range(&self, expression: &str, (from, to): (f64, f64), step: f64) -> Vec<Series> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            encoded += &format!("%{byte:02X}");
        }
        let path = format!("/api/v1/query_range?query={encoded}&start={from}&end={to}&step={step}");
        let answer = self.server.json(&path);
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().iter().map(series).collect()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.node.kill().ok();
        self.node.wait().ok();
    }
}

fn series(result: &Value) -> Series {
    let labels = result["metric"].as_object().unwrap();
    let text = |it: &Value| it.as_str().unwrap().to_owned();
    Series {
        labels: labels.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        values: result["values"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (pair[0].as_f64().unwrap(), text(&pair[1]).parse().unwrap()))
            // A quantile of nothing is no number.
            .filter(|(_, value): &(f64, f64)| value.is_finite())
            .collect(),
    }
}

/// The shipped configuration and its rules, with other targets and a shorter interval.
fn as_shipped(
    directory: &Path,
    targets: &[(&str, SocketAddr)],
    interval: &str,
) -> std::path::PathBuf {
    let shipped = Path::new("deploy/prometheus");
    for entry in std::fs::read_dir(shipped).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            let mut text = std::fs::read_to_string(entry.path()).unwrap();
            for (from, to) in targets {
                text = text.replace(from, &to.to_string());
            }
            for key in ["scrape_interval", "scrape_timeout", "evaluation_interval", "interval"] {
                for usual in ["10s", "15s", "30s"] {
                    let now = format!("{key}: {interval}\n");
                    text = text.replace(&format!("{key}: {usual}\n"), &now);
                }
            }
            std::fs::write(directory.join(entry.file_name()), text).unwrap();
        }
    }
    directory.join("prometheus.yml")
}

/// An expression with its variables filled in.
pub fn filled(expression: &str, window: &str) -> String {
    let mut expression = expression.replace("$__rate_interval", window).replace("$job", "tollgate");
    for variable in ["$instance", "$endpoint", "$tier", "$node", "$container"] {
        expression = expression.replace(variable, ".*");
    }
    assert!(!expression.contains('$'), "a variable without a value: {expression}");
    expression
}
