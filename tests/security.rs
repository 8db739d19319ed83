//! `SECURITY.md` names tests that are there, and the profile of system calls is one under which
//! tollgate does its work, and little else can be done.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use support::{Backend, GENEROUS, Start, wait_until};

const PROFILE: &str = "deploy/seccomp/tollgate.json";
const LAUNCHER: &str = "tests/support/seccomp.py";
/// The launcher's answer where there is no libseccomp.
const NONE_HERE: i32 = 77;

fn text(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// `suite::test` of each mention in backticks.
fn named_tests(document: &str) -> BTreeSet<(&str, &str)> {
    let is_name = |it: &str| it.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
    let in_code = document.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    in_code
        .filter_map(|code| code.split_once("::"))
        .filter(|(suite, test)| is_name(suite) && is_name(test) && !test.is_empty())
        .collect()
}

#[test]
fn every_defence_names_a_test_that_is_there() {
    let document = text("SECURITY.md");
    let named = named_tests(&document);
    assert!(named.len() > 60, "{} tests", named.len());
    for (suite, test) in named {
        let code = text(&format!("tests/{suite}.rs"));
        // Some are made by a macro, of which the name is an argument.
        let is_there = code.contains(&format!("fn {test}(")) || code.contains(&format!("{test},"));
        assert!(is_there, "SECURITY.md: {suite}::{test} is not there");
    }
    // Each line of what is tried has its test, and each part says what is not defended.
    let mut parts = 0;
    for part in document.split("\n### ").skip(1).filter(|it| it.contains("\n| tries ")) {
        let title = part.lines().next().unwrap();
        assert!(part.contains("\nNot defended: "), "SECURITY.md: {title}");
        for row in part.lines().filter(|it| it.starts_with("| ")).skip(1) {
            assert!(!named_tests(row).is_empty(), "SECURITY.md: {title}: {row}");
        }
        parts += 1;
    }
    assert!(parts >= 8, "{parts}");
}

fn profile() -> Value {
    serde_json::from_str(&text(PROFILE)).unwrap()
}

#[test]
fn the_profile_allows_what_is_called_and_nothing_that_leads_out() {
    let profile = profile();
    assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
    let mut allowed = BTreeSet::new();
    for rule in profile["syscalls"].as_array().unwrap() {
        let names = rule["names"].as_array().unwrap().iter().map(|it| it.as_str().unwrap());
        if rule["action"] == "SCMP_ACT_ALLOW" {
            // These say more than a name can.
            let is_wide = rule["args"].is_null();
            for name in names {
                assert!(!is_wide || !matches!(name, "clone" | "socket" | "ioctl"), "{name}");
                allowed.insert(name);
            }
        } else {
            assert_eq!((rule["errnoRet"].as_u64(), names.collect()), (Some(38), vec!["clone3"]));
        }
    }
    let called = text("tests/vectors/syscalls.txt");
    let called = called.lines().filter(|it| !it.starts_with('#'));
    let called: BTreeSet<&str> = called.filter(|it| *it != "clone3").collect();
    assert!(called.len() > 60);
    assert_eq!(called.difference(&allowed).collect::<Vec<_>>(), [&""; 0]);
    for name in [
        "add_key",
        "bpf",
        "capset",
        "chmod",
        "chown",
        "chroot",
        "delete_module",
        "fork",
        "init_module",
        "io_uring_setup",
        "kexec_load",
        "keyctl",
        "kill",
        "link",
        "memfd_create",
        "mknod",
        "mount",
        "open_by_handle_at",
        "perf_event_open",
        "personality",
        "pidfd_getfd",
        "pivot_root",
        "process_vm_readv",
        "process_vm_writev",
        "ptrace",
        "reboot",
        "setgid",
        "setgroups",
        "setns",
        "setuid",
        "symlink",
        "syslog",
        "umount2",
        "unshare",
        "userfaultfd",
        "vfork",
        "vmsplice",
    ] {
        assert!(!allowed.contains(name), "{name}");
    }
}

/// A program under the profile; `None`, with a printed line, where there is nothing to do so with.
fn under_profile(program: &[&str]) -> Option<Output> {
    let launched = Command::new("python3").args([LAUNCHER, PROFILE]).args(program).output().ok();
    let launched = launched.filter(|output| output.status.code() != Some(NONE_HERE));
    if launched.is_none() {
        println!("skipped: no python3, or no libseccomp");
    }
    launched
}

#[test]
fn under_the_profile_it_serves_reloads_and_drains() {
    let Some(output) = under_profile(&[env!("CARGO_BIN_EXE_tollgate"), "--version"]) else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("tollgate");
    let root = env!("CARGO_MANIFEST_DIR");
    let script = format!(
        "#!/bin/sh\nexec python3 {root}/{LAUNCHER} {root}/{PROFILE} {} \"$@\"\n",
        env!("CARGO_BIN_EXE_tollgate")
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let backend = Backend::ok();
    let log = directory.path().join("access.log");
    let config = format!("log: {{ access: '{}' }}\n", log.display());
    let start = Start::default().program(program).upstream(backend.address);
    let mut tollgate = start.config(&config).tiers(GENEROUS).run();
    // 2 is a filter; 1, NoNewPrivs, is what keeps a program that it starts from more rights.
    let status = text(&format!("/proc/{}/status", tollgate.pid()));
    assert!(
        status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"),
        "{status}"
    );

    for _ in 0..20 {
        assert_eq!(tollgate.get("/a").status, 200);
    }
    assert_eq!(tollgate.admin("/metrics").status, 200);
    assert_eq!(tollgate.admin("/health").status, 200);
    std::fs::write(tollgate.path("tiers.yaml"), format!("{GENEROUS}# another\n")).unwrap();
    std::fs::rename(&log, directory.path().join("access.log.1")).unwrap();
    tollgate.signal("HUP");
    wait_until("the access log is opened anew", || log.exists());
    assert_eq!(tollgate.get("/b").status, 200);
    tollgate.signal("TERM");
    assert!(tollgate.wait().success(), "{}", tollgate.log());
    assert!(!text(log.to_str().unwrap()).is_empty());
}

#[test]
fn under_the_profile_no_namespace_is_made() {
    let unshare = "/usr/bin/unshare";
    if !Path::new(unshare).exists() {
        return println!("skipped: no unshare");
    }
    let Some(output) = under_profile(&[unshare, "--user", "/bin/true"]) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("Operation not permitted"), "{output:?}");
}

/// Though it can reach the socket: whoever has that user's rights has not the right to ask.
#[test]
fn another_user_is_not_handed_the_sockets() {
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let can = Command::new("setpriv").args(nobody).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        return println!("skipped: only root can be another user");
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let config = format!("server: {{ handover: '{}' }}\n", path.display());
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).config(&config).run();
    for (what, mode) in [(directory.path(), 0o755), (path.as_path(), 0o777)] {
        std::fs::set_permissions(what, PermissionsExt::from_mode(mode)).unwrap();
    }
    // Says how many bytes and descriptors came.
    let ask = "import socket, sys\n\
               it = socket.socket(socket.AF_UNIX); it.settimeout(20); it.connect(sys.argv[1])\n\
               try:\n    it.sendall(b'tollgate sockets 1\\n')\n\
               \x20   data, files, _, _ = socket.recv_fds(it, 16, 8)\n\
               except OSError as error:\n    data, files = b'', []\n\
               print(len(data), len(files))";
    let answer_to = |user: &[&str]| {
        let mut words = user.to_vec();
        words.extend(["env", "python3", "-c", ask, path.to_str().unwrap()]);
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        assert_eq!(tollgate.get("/").status, 200);
        String::from_utf8(output.stdout).unwrap()
    };
    let other = answer_to(&[&["setpriv"][..], &nobody].concat());
    if other.is_empty() {
        return println!("skipped: another user has no python3");
    }
    assert_eq!(other, "0 0\n");
    // The same question of the same user is answered.
    assert_ne!(answer_to(&[]), "0 0\n");
}
