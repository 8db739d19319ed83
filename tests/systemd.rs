//! The unit under `deploy/systemd` fits what tollgate does, and is as closed as it says. Where there
//! is a `systemd-analyze`, that reads it, too.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

const UNIT: &str = "deploy/systemd/tollgate.service";
const TOLLGATE: &str = env!("CARGO_BIN_EXE_tollgate");
/// The most that `systemd-analyze security` may find, in tenths, of 100. It found 14.
const EXPOSURE_MAX: &str = "15";

fn unit() -> String {
    fs::read_to_string(UNIT).unwrap()
}

/// The values of a setting, in their order.
fn settings(name: &str) -> Vec<String> {
    let unit = unit();
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

fn setting(name: &str) -> String {
    let mut all = settings(name);
    assert_eq!(all.len(), 1, "{name}");
    all.remove(0)
}

/// The unit with this build in the place of the binary, in a directory of its own.
fn unit_of_this_build() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tollgate.service");
    fs::write(&path, unit().replace("/usr/local/bin/tollgate", TOLLGATE)).unwrap();
    let path = path.display().to_string();
    (directory, path)
}

/// What `systemd-analyze` says; `None` where there is none that can.
fn analyze(arguments: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("systemd-analyze").args(arguments).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // `--offline` came with version 250.
    (!said.contains("unrecognized option")).then_some((output.status.success(), said))
}

#[test]
fn systemd_takes_every_line_of_it() {
    let (_directory, path) = unit_of_this_build();
    let Some((is_fine, said)) = analyze(&["verify", &path]) else {
        return println!("skipped: no systemd-analyze");
    };
    // It complains of what it does not know, and takes the unit all the same.
    assert!(is_fine && said.is_empty(), "{said}");
}

#[test]
fn it_is_as_closed_as_it_says() {
    let (_directory, path) = unit_of_this_build();
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let arguments = ["security", "--offline=true", "--no-pager", &threshold, &path];
    let Some((is_fine, said)) = analyze(&arguments) else {
        return println!("skipped: no systemd-analyze that reads units from files");
    };
    println!("{}", said.lines().last().unwrap_or_default());
    assert!(is_fine, "{said}");
}

/// Its end is not cut short: `server.drain_timeout` as it is by default, and 2 s of tollgate's own.
#[test]
fn it_has_time_to_drain() {
    let config = fs::read_to_string("config/tollgate.yaml").unwrap();
    let config: serde_yaml::Value = serde_yaml::from_str(&config).unwrap();
    let drain = config["server"]["drain_timeout"].as_str().unwrap();
    let drain = drain.parse::<humantime::Duration>().unwrap().as_secs();
    let stop: u64 = setting("TimeoutStopSec").parse().unwrap();
    assert!(stop > drain + 2, "{stop} s");
    assert_eq!(setting("KillSignal"), "SIGTERM");
    assert_eq!(setting("ExecReload"), "/bin/kill -HUP $MAINPID");
}

/// A mistake in the files ends tollgate with the code that systemd does not try again after.
#[test]
fn a_wrong_file_is_not_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("tollgate.yaml"), "server: { listen: 1 }\n").unwrap();
    fs::write(directory.path().join("tiers.yaml"), "default_tier: free\n").unwrap();
    let start = setting("ExecStart");
    let (program, arguments) = start.split_once(' ').unwrap();
    assert_eq!(program, "/usr/local/bin/tollgate");
    let status = Command::new(TOLLGATE)
        .args(arguments.split(' '))
        .current_dir(directory.path())
        .output()
        .unwrap()
        .status;
    assert_eq!(status.code().unwrap().to_string(), setting("RestartPreventExitStatus"));
    assert_eq!(setting("Restart"), "on-failure");
}

#[test]
fn it_may_open_as_many_files_as_it_has_connections() {
    let config = fs::read_to_string("config/tollgate.yaml").unwrap();
    let config: serde_yaml::Value = serde_yaml::from_str(&config).unwrap();
    let connections = config["server"]["max_connections"].as_u64().unwrap();
    let files: u64 = setting("LimitNOFILE").parse().unwrap();
    assert!(files > 2 * connections, "{files}");
    // It raises the soft limit by itself, which the filter has to let it do.
    let filter = settings("SystemCallFilter");
    assert_eq!(filter[0], "@system-service");
    assert!(filter.last().unwrap().contains("prlimit64"));
}

/// The system calls of a group; `None` where nobody knows.
fn group(name: &str) -> Option<BTreeSet<String>> {
    let (is_fine, said) = analyze(&["syscall-filter", "--no-pager", name])?;
    assert!(is_fine, "{said}");
    let mut calls = BTreeSet::new();
    for line in said.lines().skip(1).map(str::trim) {
        match line.chars().next() {
            None | Some('#') => {}
            Some('@') => calls.extend(group(line)?),
            Some(_) => drop(calls.insert(line.to_owned())),
        }
    }
    Some(calls)
}

#[test]
fn it_may_call_what_it_calls() {
    let Some(groups) = group("@system-service") else {
        return println!("skipped: no systemd-analyze");
    };
    let mut allowed = groups;
    let filter = settings("SystemCallFilter");
    let taken = filter[1].strip_prefix('~').unwrap().split(' ');
    for call in taken.flat_map(|name| group(name).unwrap()) {
        allowed.remove(&call);
    }
    allowed.extend(filter[2].split(' ').map(str::to_owned));
    let called = fs::read_to_string("tests/vectors/syscalls.txt").unwrap();
    let refused: Vec<&str> =
        called.lines().filter(|line| !line.starts_with('#') && !allowed.contains(*line)).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

/// What systemd listens on is what tollgate would, and as many may wait.
#[test]
fn the_socket_is_that_of_the_unit() {
    let socket = fs::read_to_string("deploy/systemd/tollgate.socket").unwrap();
    let setting = |name: &str| {
        let line = socket.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(setting("Service"), "tollgate.service");
    assert_eq!(setting("ListenStream"), tollgate::config::schema::LISTEN_DEFAULT);
    assert_eq!(setting("Backlog"), "4096");
    let (directory, _unit) = unit_of_this_build();
    let path = directory.path().join("tollgate.socket");
    fs::write(&path, &socket).unwrap();
    let Some((is_fine, said)) = analyze(&["verify", path.to_str().unwrap()]) else { return };
    assert!(is_fine && said.trim().is_empty(), "{said}");
}
