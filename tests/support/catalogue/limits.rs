//! Limits: one caller has one bucket, and a refusal is an answer like any.

use crate::catalogue::framing::spend;
use crate::catalogue::get;
use crate::harness::{Bench, Case, Line, PEERS, Profile, Wire, case, check};

const GROUP: &str = "limits";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "limits_one_caller_has_one_bucket",
            group: GROUP,
            source: "RFC 6585 §4",
            cases: vec![
                case("however it asks", |bench: &Bench| {
                    let requests = [
                        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                        "GET / HTTP/1.1\r\nHost: b.test:99\r\n\r\n",
                        "GET http://c/ HTTP/1.1\r\nHost: c\r\n\r\n",
                        "GET / HTTP/1.0\r\n\r\n",
                        "BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
                        "OPTIONS / HTTP/1.1\r\nHost: a\r\n\r\n",
                        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
                        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n",
                        "GET / HTTP/1.1\r\nHost: a\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\r\n",
                        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                    ];
                    for request in requests {
                        let outcome = bench.exchange(request, &["GET"]);
                        check(outcome.status() == 200, || format!("{request:?}: {}", outcome.told()))?;
                    }
                    for request in requests {
                        let outcome = bench.exchange(request, &["GET"]);
                        check(outcome.status() == 429, || format!("{request:?}: {}", outcome.told()))?;
                    }
                    check(bench.origin.forwarded().len() == 10, || "more came".to_owned())
                })
                .with(Profile::Ten),
            ],
        },
        Line {
            name: "limits_hold_for_every_spelling_of_a_path",
            group: GROUP,
            source: "RFC 3986 §6.2.2; GHSA-xcx5-93pw-jw2w, CVE-2021-29492 (Envoy); GHSA-gm3x-23wp-hc2c (Traefik)",
            cases: [
                // What RFC 3986 holds equal.
                "/heavy/x", "/%68eavy/x", "/hea%76y/%78", "/./heavy/x", "/y/../heavy/x", "/heavy/./x",
                "/heavy/y/../x", "/%2e/heavy/x", "/y/%2e%2e/heavy/x", "/heavy/x?", "/heavy/x?a=b",
                "/heavy/x#y", "http://other/heavy/x",
                // What many an origin folds.
                "//heavy/x", "/heavy//x", "/heavy/x/", "/heavy;a=b/x", "/y/..;a=b/heavy/x", "/HEAVY/x",
                "/heavy%2fx", "/heavy%252fx", "/heavy%5cx", "/heavy\\x", "/heavy/x;a=b", 
            ]
            .iter()
            .map(|spelling| {
                case(*spelling, move |bench: &Bench| {
                    let first = bench.exchange(get(spelling), &["GET"]);
                    if matches!(first.status(), 400 | 403 | 404) && first.forwarded.is_empty() {
                        return Ok(());
                    }
                    first.is(200)?;
                    let second = bench.exchange(get(spelling), &["GET"]);
                    second.is(429)?;
                    bench.exchange(get("/heavy/x"), &["GET"]).is(429)?;
                    // The limit is the path's, and nobody else's.
                    bench.exchange(get("/light"), &["GET"]).is(200)
                })
                .with(Profile::HeavyPath)
            })
            .collect(),
        },
        Line {
            name: "limits_fields_that_rewrite_change_nothing",
            group: GROUP,
            source: "the checklist; Symfony's and IIS's X-Original-URL, X-Rewrite-URL",
            cases: ["X-Original-URL: /light", "X-Rewrite-URL: /light", "X-HTTP-Method-Override: PUT", "X-Forwarded-Prefix: /light"]
                .iter()
                .map(|field| {
                    case(*field, move |bench: &Bench| {
                        let request = format!("GET /heavy/x HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
                        bench.exchange(&request, &["GET"]).is(200)?;
                        bench.exchange(&request, &["GET"]).is(429)
                    })
                    .with(Profile::HeavyPath)
                })
                .collect(),
        },
        Line {
            name: "limits_check_and_count_is_one_step",
            group: GROUP,
            source: "RFC 6585 §4",
            cases: vec![
                case("60 at once against 10", |bench: &Bench| {
                    let statuses = at_once(bench, 60);
                    let passed = statuses.iter().filter(|it| **it == 200).count();
                    check(passed == 10, || format!("{passed} passed"))?;
                    check(bench.origin.forwarded().len() == 10, || "the origin got others".to_owned())
                })
                .with(Profile::Ten),
            ],
        },
        Line {
            name: "limits_a_refusal_is_429",
            group: GROUP,
            source: "RFC 6585 §4; RFC 9110 §10.2.3",
            cases: refusals(),
        },
    ]
}

fn at_once(bench: &Bench, count: usize) -> Vec<u16> {
    let mut wires: Vec<Wire> = (0..count).map(|_| bench.connect()).collect();
    for wire in &mut wires {
        wire.send(get("/"));
    }
    let answered = wires.iter_mut().map(|wire| {
        wire.until(&["GET"]);
        wire.answers(&["GET"]).0.first().map_or(0, |it| it.status)
    });
    answered.collect()
}

fn refusals() -> Vec<Case> {
    let mut cases: Vec<Case> = ["GET", "HEAD", "POST", "OPTIONS"]
        .iter()
        .map(|method| {
            case(
                format!("{method}: the connection goes on, the origin hears nothing"),
                move |bench: &Bench| {
                    spend(bench, 10)?;
                    let mut wire = bench.connect();
                    let request =
                        format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
                    wire.send(&request).until(&[method]);
                    bench.outcome(&wire, &[method]).is(429)?;
                    if !wire.has_ended {
                        wire.send(&request).until(&[method, method]);
                        let both = bench.outcome(&wire, &[method, method]);
                        let is_fine =
                            both.answers.iter().all(|it| it.status == 429) && both.rest.is_empty();
                        check(is_fine && both.answers.len() == 2, || both.told())?;
                    }
                    check(bench.origin.forwarded().len() == 10, || "the origin heard".to_owned())
                },
            )
            .with(Profile::Ten)
        })
        .collect();
    cases.push(
        case("it says when to come back, in JSON", |bench: &Bench| {
            spend(bench, 10)?;
            let outcome = bench.exchange(get("/"), &["GET"]);
            outcome.is(429)?;
            let answer = &outcome.answers[0];
            let wait = answer.field("retry-after").and_then(|it| it.parse::<u32>().ok());
            // The window slides by sixtieths: it may take one more.
            check(wait.is_some_and(|it| (1..=61).contains(&it)), || outcome.told())?;
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            check(answer.field("content-type") == Some("application/json"), || outcome.told())?;
            check(body.starts_with(r#"{"error":"Rate limit exceeded","retry_after":"#), || {
                body.clone()
            })?;
            check(answer.field("x-ratelimit-remaining") == Some("0"), || outcome.told())
        })
        .with(Profile::Ten)
        .not_for(&PEERS),
    );
    cases.push(
        case("no 100 Continue before it", |bench: &Bench| {
            spend(bench, 10)?;
            let mut wire = bench.connect();
            wire.send(
                "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
            );
            wire.until(&["PUT"]);
            let outcome = bench.outcome(&wire, &["PUT"]);
            outcome.is(429)?;
            check(outcome.interims.is_empty(), || outcome.told())
        })
        .with(Profile::Ten),
    );
    cases
}
