//! What a line holds, whatever a request holds.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::log::writer::{Room, Target, start};

use super::*;

fn log(with_query: bool) -> AccessLog {
    let room = Room { chunks: 4, bytes: 1 << 20 };
    let lines = start("test", Target::File("/dev/null".into()), room).unwrap();
    AccessLog { lines, with_query, secret_parameters: ["token".into()].into() }
}

fn entry() -> Entry<'static> {
    Entry {
        at: Timestamp::from_micros(1_767_225_601_000_042),
        method: "GET",
        path: "/fo/history/2025",
        query: Some("a=1&token=secret"),
        status: 200,
        identity: None,
        tier: Some("free"),
        endpoint: "history",
        decided: Decided::Allow,
        limited_by: None,
        remaining: Some(99),
        retry_after: None,
        duration_us: 1234,
        upstream_us: Some(1100),
        limiter_us: Some(2),
        bytes_in: 0,
        bytes_out: 1024,
        peer: "203.0.113.7:50000".parse().unwrap(),
        trace: Some(TraceId(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c)),
    }
}

fn written(log: AccessLog, entry: &Entry<'_>) -> String {
    let mut lines = AccessLines::new(log);
    lines.push(entry);
    String::from_utf8(lines.take()).unwrap()
}

#[test]
fn a_line_has_these_fields_in_this_order() {
    let user = Identity::User("42".into());
    let told = Entry { identity: Some(&user), ..entry() };
    assert_eq!(
        written(log(false), &told),
        "{\"ts\":\"2026-01-01T00:00:01.000042Z\",\"method\":\"GET\",\"path\":\"/fo/history/2025\",\
         \"status\":200,\"identity\":\"user:42\",\"tier\":\"free\",\"endpoint\":\"history\",\
         \"decision\":\"allow\",\"limited_by\":null,\"remaining\":99,\"retry_after\":null,\
         \"duration_us\":1234,\"upstream_us\":1100,\"limiter_us\":2,\"bytes_in\":0,\
         \"bytes_out\":1024,\"peer\":\"203.0.113.7:50000\",\
         \"trace_id\":\"0af7651916cd43dd8448eb211c80319c\"}\n"
    );
    let line =
        |entry: &Entry<'_>| -> Value { serde_json::from_str(&written(log(true), entry)).unwrap() };
    let limit = |rule| LimitName { rule, period: Period::Minute };
    let denied = Entry {
        decided: Decided::Deny,
        limited_by: Some(limit(Some("history"))),
        retry_after: Some(30),
        trace: None,
        tier: None,
        ..entry()
    };
    let line_of_denied = line(&denied);
    assert_eq!(line_of_denied["limited_by"], "endpoint:history:minute");
    assert_eq!(line_of_denied["retry_after"], 30);
    assert_eq!(line_of_denied["trace_id"], Value::Null);
    assert_eq!(line_of_denied["path"], "/fo/history/2025?a=1&token=***");
    let by_tier = Entry { limited_by: Some(limit(None)), ..denied };
    assert_eq!(line(&by_tier)["limited_by"], "tier:minute");
}

#[test]
fn a_target_is_cut_once_and_as_a_whole() {
    let shown = |path: &str, query| {
        let line = written(log(true), &Entry { path, query: Some(query), ..entry() });
        let parsed: Value = serde_json::from_str(&line).unwrap();
        parsed["path"].as_str().unwrap().to_owned()
    };
    let fits = |bytes: usize| format!("/{}", "a".repeat(bytes - 1));
    assert_eq!(shown(&fits(PATH_MAX - 2), "b"), fits(PATH_MAX - 2) + "?b");
    assert_eq!(shown(&fits(PATH_MAX - 1), "b"), fits(PATH_MAX - 1) + "?…");
    assert_eq!(shown(&fits(PATH_MAX), ""), fits(PATH_MAX) + "…");
    // Cut before what is escaped, the text is shorter than it may be, and nothing may follow.
    let hidden = fits(PATH_MAX - 5) + "\u{202e}";
    assert_eq!(shown(&hidden, "token=x&a=b"), fits(PATH_MAX - 5) + "…");
}

#[test]
fn dates_are_right() {
    for (second, expected) in [
        (0, "1970-01-01T00:00:00."),
        (951_782_399, "2000-02-28T23:59:59."),
        (951_782_400, "2000-02-29T00:00:00."),
        (1_709_251_199, "2024-02-29T23:59:59."),
        (1_767_225_599, "2025-12-31T23:59:59."),
        (4_107_542_399, "2100-02-28T23:59:59."),
        (4_107_542_400, "2100-03-01T00:00:00."),
    ] {
        let mut out = Vec::new();
        push_second(&mut out, second);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let room = Room { chunks: 1, bytes: 0 };
    let lines = start("test", Target::File("/dev/null".into()), room).unwrap();
    let counts = std::sync::Arc::clone(lines.counts());
    let log = AccessLog { lines, with_query: false, secret_parameters: Box::default() };
    let mut lines = AccessLines::new(log);
    for _ in 0..2000 {
        lines.push(&entry());
    }
    assert!(lines.chunk.bytes.len() <= KEPT_BYTES_MAX + LINE_BYTES_MAX);
    let kept = lines.chunk.lines;
    assert!(kept > 0 && counts.dropped() == 2000 - kept);
    drop(lines);
    assert_eq!(counts.dropped(), 2000);
}

#[test]
fn what_is_handed_over_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let room = Room { chunks: 1000, bytes: 1 << 20 };
    let queue = start("test", Target::File(path.clone()), room).unwrap();
    let log =
        AccessLog { lines: queue.clone(), with_query: false, secret_parameters: Box::default() };
    let mut lines = AccessLines::new(log);
    for _ in 0..500 {
        lines.push(&entry());
    }
    drop(lines);
    queue.finish(Duration::from_secs(20));
    assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 500);
    assert_eq!((queue.counts().written(), queue.counts().dropped()), (500, 0));
}

thread_local! {
    /// One thread that writes, for all cases.
    static TO_NOWHERE: AccessLog = log(true);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, it is one line, it is JSON, it is not too long, and it has every field once.
    #[test]
    fn every_line_is_one_object(
        method in any::<String>(),
        path in prop_oneof![any::<String>(), "[\\x00-\\x7f]{0,9000}", "\\PC{0,3000}"],
        query in proptest::option::of(any::<String>()),
        user in any::<String>(),
        name in any::<String>(),
        status in any::<u16>(),
        numbers in any::<[u64; 7]>(),
        trace in proptest::option::of(any::<u128>()),
    ) {
        let identity = Identity::User(user.as_str().into());
        let [at, retry, duration, upstream, limiter, bytes_in, bytes_out] = numbers;
        let told = Entry {
            at: Timestamp::from_micros(at % 253_402_300_800_000_000),
            method: &method,
            path: &path,
            query: query.as_deref(),
            status,
            identity: Some(&identity),
            tier: Some(&name),
            endpoint: &name,
            decided: Decided::Deny,
            limited_by: Some(LimitName { rule: Some(&name), period: Period::Hour }),
            remaining: Some(u32::MAX),
            retry_after: Some(retry),
            duration_us: duration,
            upstream_us: Some(upstream),
            limiter_us: Some(limiter),
            bytes_in,
            bytes_out,
            peer: "[2001:db8::1]:65535".parse().unwrap(),
            trace: trace.map(TraceId),
        };
        let line = written(TO_NOWHERE.with(Clone::clone), &told);
        prop_assert!(line.len() <= LINE_BYTES_MAX);
        let body = line.strip_suffix('\n').unwrap();
        prop_assert!(!body.chars().any(char::is_control));
        let parsed: Value = serde_json::from_str(body).unwrap();
        prop_assert_eq!(parsed.as_object().unwrap().len(), 18);
        prop_assert_eq!(&parsed["duration_us"], &json!(duration));
        prop_assert_eq!(&parsed["status"], &json!(status));
        if user.len() < 100 {
            prop_assert_eq!(&parsed["identity"], &json!(format!("user:{user}")));
        }
    }
}
