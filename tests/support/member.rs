//! A backend in a process of its own, so that it can be killed, and has its own share of open files.
//!
//! It is the test's own program, which runs nothing but a test that calls [`serve_if_asked`].

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::load::Fast;
use super::support::PATIENCE;

/// Says where such a process is to listen.
const WHERE: &str = "TOLLGATE_TEST_MEMBER";
const SERVES: &str = "it serves";
const STOP: &str = "stop";

/// A [`Fast`] in a process of its own; killed when dropped.
pub struct Member {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Member {
    /// On a port that is free, of a host of loopback that nobody connects from: so no client has its port
    /// while it is away.
    pub fn spawn(host: &str) -> Self {
        let address = TcpListener::bind((host, 0)).unwrap().local_addr().unwrap();
        Member { address, child: start(address) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Starts it again after it has ended.
    pub fn start(&mut self) {
        self.child = start(self.address);
    }

    /// Kills it, with all that it has under way.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has it end as [`Fast::wind_down`] says, and waits for that.
    pub fn stop(&mut self) {
        let mut input = self.child.stdin.take().unwrap();
        writeln!(input, "{STOP}").unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn start(address: SocketAddr) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_as_a_backend", "--ignored", "--nocapture"])
        .env(WHERE, address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let serves = lines.any(|line| line.unwrap().contains(SERVES));
    assert!(serves, "the backend did not start");
    // What it prints goes nowhere from here on.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Serves, in a process that [`Member`] started, until it is told to end or nobody is there any more who
/// could tell it; in any other nothing.
pub fn serve_if_asked() {
    let Ok(address) = std::env::var(WHERE) else { return };
    let deadline = Instant::now() + PATIENCE;
    let listener = loop {
        match TcpListener::bind(&address) {
            Ok(listener) => break listener,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut served = Fast::on(listener);
    println!("{SERVES}");
    if std::io::stdin().lines().map_while(Result::ok).any(|line| line == STOP) {
        served.wind_down();
    }
    // Not by a return: threads of connections that are left do not end.
    std::process::exit(0);
}
