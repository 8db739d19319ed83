//! The programs of Prometheus: where they are, and one server each of Prometheus and Alertmanager
//! for a test, on a free port, with its data in a directory of its own, ended with its owner.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Client, nobody, wait_until};

/// Where a program is: in the PATH, under the name that Debian gives it or that of its makers.
/// `None`, with a printed line, where it is not; with `TOLLGATE_REQUIRE_PROMETHEUS=1` its lack is a
/// failure.
pub fn program(name: &str) -> Option<PathBuf> {
    let makers = name.trim_start_matches("prometheus-");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|directory| [directory.join(name), directory.join(makers)])
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("TOLLGATE_REQUIRE_PROMETHEUS").is_none_or(|it| it != "1"),
            "TOLLGATE_REQUIRE_PROMETHEUS=1, but there is no {name}"
        );
        println!("SKIPPED: no {name} found; install it to run this test");
    }
    found
}

/// Runs one of the programs: whether it was content, and all that it printed.
pub fn run(program: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A running Prometheus or Alertmanager.
pub struct Server {
    child: Child,
    /// Where its pages and its API are.
    pub address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Prometheus with this configuration; what it stores, and its log, go into `directory`.
    pub fn prometheus(program: &Path, config: &Path, directory: &Path) -> Self {
        let data = format!("--storage.tsdb.path={}", directory.join("prometheus").display());
        Self::start(program, config, &directory.join("prometheus.log"), &[&data])
    }

    /// Alertmanager with this configuration, alone.
    pub fn alertmanager(program: &Path, config: &Path, directory: &Path) -> Self {
        let data = format!("--storage.path={}", directory.join("alertmanager").display());
        let alone = "--cluster.listen-address=";
        Self::start(program, config, &directory.join("alertmanager.log"), &[&data, alone])
    }

    fn start(program: &Path, config: &Path, log: &Path, options: &[&str]) -> Self {
        let address = nobody();
        let file = std::fs::File::create(log).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--web.listen-address={address}"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut server = Server { child, address, log: log.to_owned() };
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        wait_until(&format!("{name} is ready"), || {
            let status = server.child.try_wait().unwrap();
            assert_eq!(status, None, "{name} ended: {}", server.said());
            std::net::TcpStream::connect(address).is_ok()
                && Client::connect(address).get("/-/ready").status == 200
        });
        server
    }

    /// The JSON at a path of its API.
    pub fn json(&self, path: &str) -> Value {
        let text = Client::connect(self.address).get(path).text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// The values that an expression has now, of Prometheus.
    pub fn query(&self, expression: &str) -> Vec<f64> {
        let mut encoded = String::new();
        for byte in expression.bytes() {
            encoded += &format!("%{byte:02X}");
        }
        let answer = self.json(&format!("/api/v1/query?query={encoded}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap();
        results.iter().map(|it| it["value"][1].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Its log so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- {} said\n{}---", self.log.display(), self.said());
        }
    }
}
