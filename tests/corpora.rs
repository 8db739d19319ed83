//! Every input that the fuzzer keeps, through the functions that it calls: what it once found stays
//! found. Needs no nightly compiler.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "../fuzz/src/targets/mod.rs"]
mod targets;

fn replay(name: &str, target: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        if let Err(fault) = std::panic::catch_unwind(|| target(&data)) {
            eprintln!("with {}", path.display());
            std::panic::resume_unwind(fault);
        }
        count += 1;
    }
    assert!(count >= 10, "{folder} has {count} files");
}

#[test]
fn paths() {
    replay("path", targets::path);
}

#[test]
fn forwarding_fields() {
    replay("forwarded", targets::forwarded);
}

#[test]
fn policies() {
    replay("tiers", targets::tiers);
}

#[test]
fn configurations() {
    replay("config", targets::config);
}

#[test]
fn tokens() {
    replay("jwt", targets::jwt);
}

#[test]
fn headers_of_the_proxy_protocol() {
    replay("proxy_protocol", targets::proxy_protocol);
}

#[test]
fn lines_of_the_access_log() {
    replay("access_log", targets::access_log);
}

#[test]
fn logs_that_are_replayed() {
    replay("log_line", targets::log_line);
}

#[test]
fn replies_of_redis() {
    replay("redis_reply", targets::redis_reply);
}

#[test]
fn whole_requests() {
    replay("request", targets::request);
}

#[test]
fn calls_of_the_admin_api() {
    replay("admin", targets::admin);
}

/// A target that the fuzzer has and this file has not would not be replayed.
#[test]
fn every_target_is_here() {
    let mut names: Vec<String> = std::fs::read_dir("fuzz/corpus")
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let replayed = [
        "access_log",
        "admin",
        "config",
        "forwarded",
        "jwt",
        "log_line",
        "path",
        "proxy_protocol",
        "redis_reply",
        "request",
        "tiers",
    ];
    assert_eq!(names, replayed);
}
