//! Answers: where they end, and what of them goes to whom.

use std::time::Duration;

use crate::catalogue::{get, get_with};
use crate::harness::{
    Bench, Case, Checked, Kind, Line, OK, Profile, QUIET, Then, WAIT, case, check, find,
};

const GROUP: &str = "bodies";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "bodies_head_204_and_304_have_none",
            group: GROUP,
            source: "RFC 9112 §6.3(1); RFC 9110 §8.6, §9.3.2",
            cases: bodiless(),
        },
        Line {
            name: "bodies_bytes_behind_an_answer_go_to_nobody",
            group: GROUP,
            source: "RFC 9112 §6.3, §9.2",
            cases: [
                ("another answer", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok\
                    HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
                ("junk", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokpoison"),
                ("an answer behind chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                    2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
                ("an answer behind 204", "HTTP/1.1 204 No Content\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
                ("an answer behind 304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
            ]
            .iter()
            .map(|(name, bytes)| {
                case(*name, move |bench: &Bench| {
                    bench.origin.script(move |side| {
                        let is_next = side.request().target() == "/next";
                        side.read_body_and_answer(if is_next { OK } else { bytes })
                    });
                    next_is_intact(bench, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET")
                })
            })
            .collect(),
        },
        Line {
            name: "bodies_answers_with_faulty_framing_are_502",
            group: GROUP,
            source: "RFC 9112 §6.3(4), §6.3(5), §2.2",
            cases: faulty_answers(),
        },
        Line {
            name: "bodies_cut_short_are_seen_to_be",
            group: GROUP,
            source: "RFC 9112 §8",
            cases: [
                ("a length", "Content-Length: 10\r\n\r\nhello", Then::Close),
                ("a length, reset", "Content-Length: 10\r\n\r\nhello", Then::Reset),
                ("chunks without the last", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Then::Close),
                ("chunks without the last, reset", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Then::Reset),
                ("within a chunk", "Transfer-Encoding: chunked\r\n\r\n9\r\nhello", Then::Close),
                ("within the last", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Then::Close),
                ("a chunk that is none", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n", Then::Keep),
                ("until the end, reset", "\r\nhello", Then::Reset),
            ]
            .iter()
            .map(|(name, answer, then)| {
                case(*name, move |bench: &Bench| {
                    bench.origin.script(move |side| {
                        side.read_body();
                        side.send(format!("HTTP/1.1 200 OK\r\n{answer}"));
                        // A reset overtakes what it follows too closely.
                        std::thread::sleep(QUIET);
                        *then
                    });
                    let outcome = bench.exchange_to_end(get("/"), &["GET"]);
                    if outcome.status() == 502 || outcome.status() == 0 && outcome.has_ended {
                        return Ok(());
                    }
                    outcome.is(200)?;
                    let answer = &outcome.answers[0];
                    // Framed by the connection's end, it has no other sign than a reset.
                    let is_framed = answer.field("content-length").is_some()
                        || answer.field("transfer-encoding").is_some();
                    check(is_framed && !answer.is_complete, || outcome.told())
                })
            })
            .collect(),
        },
        Line {
            name: "bodies_for_http_1_0",
            group: GROUP,
            source: "RFC 9112 §6.1, §9.3; RFC 9110 §15.2",
            cases: http_1_0(),
        },
        Line {
            name: "bodies_expect_100_continue",
            group: GROUP,
            source: "RFC 9110 §10.1.1; CVE-2024-24791 (Go)",
            cases: expect(),
        },
        Line {
            name: "bodies_an_early_answer_is_delivered",
            group: GROUP,
            source: "RFC 9112 §9.3; RFC 9110 §10.1.1",
            cases: [413, 401, 200]
                .iter()
                .map(|status| {
                    case(format!("{status} during the upload"), move |bench: &Bench| {
                        bench.origin.script(move |side| {
                            side.read_raw(1, WAIT);
                            side.send(format!("HTTP/1.1 {status} Early\r\nContent-Length: 5\r\n\r\nearly"));
                            while !side.read_raw(1 << 16, QUIET * 5).is_empty() {}
                            Then::Close
                        });
                        let mut wire = bench.connect();
                        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
                        // Enough for a proxy that collects a little first; never all of it.
                        wire.send(vec![b'x'; 300_000]).until(&["POST"]);
                        let outcome = bench.outcome(&wire, &["POST"]);
                        outcome.is(*status)?;
                        check(outcome.answers[0].body == b"early", || outcome.told())
                    })
                    // It reads all of a request before it sends any of it on.
                    .not_for(&[Kind::Nginx])
                })
                .collect(),
        },
        Line {
            name: "bodies_interim_answers_are_not_the_answer",
            group: GROUP,
            source: "RFC 9110 §15.2",
            cases: ["103 Early Hints\r\nLink: </a>", "102 Processing", "100 Continue", "199 Odd"]
                .iter()
                .map(|interim| {
                    case(*interim, move |bench: &Bench| {
                        bench.origin.answers(format!("HTTP/1.1 {interim}\r\n\r\nHTTP/1.1 {interim}\r\n\r\n{OK}"), Then::Keep);
                        let outcome = bench.exchange(format!("{}{}", get("/"), get("/next")), &["GET", "GET"]);
                        outcome.is(200)?;
                        let bodies: Vec<_> = outcome.answers.iter().map(|it| it.body.clone()).collect();
                        check(bodies == [b"ok", b"ok"], || outcome.told())
                    })
                })
                .collect(),
        },
        Line {
            name: "bodies_stream_both_ways",
            group: GROUP,
            source: "RFC 9112 §7.1; RFC 9110 §7.6",
            cases: vec![
                case("the first chunk of an upload", |bench: &Bench| {
                    bench.origin.script(|side| {
                        let first = side.read_raw(5, WAIT);
                        side.send(if first.is_empty() { "HTTP/1.1 500 None\r\nContent-Length: 0\r\n\r\n" } else { OK });
                        side.read_raw(1 << 16, QUIET);
                        Then::Close
                    });
                    let mut wire = bench.connect();
                    wire.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
                    wire.until(&["POST"]);
                    bench.outcome(&wire, &["POST"]).is(200)
                })
                .not_for(&[Kind::Nginx]),
                case("an event as soon as it is there", |bench: &Bench| {
                    bench.origin.script(|side| {
                        side.read_body();
                        side.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
                        side.send("9\r\ndata: 1\n\n\r\n");
                        side.read_raw(1, WAIT);
                        Then::Close
                    });
                    let mut wire = bench.connect();
                    wire.send(get("/"));
                    let is_there = wire.wait(WAIT / 2, |raw| find(raw, b"data: 1").is_some());
                    check(is_there, || "the event is held back".to_owned())
                })
                .not_for(&[Kind::Nginx]),
            ],
        },
        Line {
            name: "bodies_trailers_pass",
            group: GROUP,
            source: "RFC 9110 §6.5",
            cases: vec![
                case("of a request", |bench: &Bench| {
                    let outcome = bench.exchange(
                        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\n\
                         Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n",
                        &["POST"],
                    );
                    let trailers = outcome.only()?.trailers.to_ascii_lowercase();
                    check(trailers.contains("x-sum: 42"), || format!("trailers {trailers:?}"))
                }),
                case("of an answer", |bench: &Bench| {
                    bench.origin.answers(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                         2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n",
                        Then::Keep,
                    );
                    let outcome = bench.exchange(get_with("TE: trailers\r\nConnection: TE\r\n"), &["GET"]);
                    outcome.is(200)?;
                    let trailers = outcome.answers[0].trailers.to_ascii_lowercase();
                    check(trailers.contains("x-sum: 42"), || format!("trailers {trailers:?}"))
                }),
            ],
        },
    ]
}

/// Behind an answer to this, one to `/next` on the client's same connection is the origin's own.
fn next_is_intact(bench: &Bench, request: &str, method: &'static str) -> Checked {
    let mut wire = bench.connect();
    wire.send(request).until(&[method]);
    let first = bench.outcome(&wire, &[method]);
    check(matches!(first.status(), 200..400 | 404 | 502), || first.told())?;
    // On that connection if it goes on, and on others in any case.
    if !first.has_ended {
        wire.send(get("/next")).until(&[method, "GET"]);
        let both = bench.outcome(&wire, &[method, "GET"]);
        let second = both.answers.get(1);
        check(both.has_ended || second.is_some(), || both.told())?;
        check(second.is_none_or(|it| it.status == 200 && it.body == b"ok"), || both.told())?;
        check(both.rest.is_empty(), || both.told())?;
    }
    for _ in 0..3 {
        let next = bench.exchange(get("/next"), &["GET"]);
        next.is(200)?;
        check(next.answers[0].body == b"ok", || next.told())?;
    }
    Ok(())
}

fn bodiless() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n"),
        ("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        ("POST", "HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n"),
    ]
    .iter()
    .map(|(method, answer)| {
        case(format!("{method}, {answer:?}"), move |bench: &Bench| {
            bench.origin.script(move |side| {
                let is_next = side.request().target() == "/next";
                side.read_body_and_answer(if is_next { OK } else { answer })
            });
            let length = if *method == "POST" { "Content-Length: 0\r\n" } else { "" };
            next_is_intact(bench, &format!("{method} / HTTP/1.1\r\nHost: a\r\n{length}\r\n"), method)
        })
    })
    .collect();
    for fields in ["", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n"] {
        cases.push(case(format!("204 says no length, {fields:?}"), move |bench: &Bench| {
            bench.origin.answers(format!("HTTP/1.1 204 No Content\r\n{fields}\r\n"), Then::Close);
            let outcome = bench.exchange(get("/"), &["GET"]);
            if outcome.status() == 502 {
                return Ok(());
            }
            outcome.is(204)?;
            let answer = &outcome.answers[0];
            let is_framed = answer.field("content-length").is_some()
                || answer.field("transfer-encoding").is_some();
            check(!is_framed, || outcome.told())
        }));
    }
    cases.push(case("HEAD keeps the length that GET would have", |bench: &Bench| {
        bench.origin.answers("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", Then::Keep);
        let outcome = bench.exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", &["HEAD"]);
        outcome.is(200)?;
        check(outcome.answers[0].all("content-length") == ["1234"], || outcome.told())
    }));
    cases
}

fn faulty_answers() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: 5x",
        "Content-Length:",
        "Content-Length: 1_0",
        "Content-Length: 18446744073709551621",
        "Content-Length: 5 5",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 5\r\nX: a\0b",
        "Content-Length: 5\r\nX: a\rb",
        "Content-Length: 5\r\nX\0: b",
        "Content-Length: 5\r\nX : y",
        "Content-Length : 5",
        "Content-Length: 5\r\n: y",
        "Content-Length: 5\r\nX",
        "Content-Length: 5\r\nX: a\rContent-Length: 9",
    ]
    .iter()
    .map(|fields| {
        case(format!("{fields:?}"), move |bench: &Bench| {
            bench.origin.answers(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello"), Then::Close);
            bench.exchange(get("/"), &["GET"]).is(502)
        })
    })
    .collect();
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
        "Content-Length: 5\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
    ] {
        cases.push(case(format!("one of both, {fields:?}"), move |bench: &Bench| {
            bench.origin.answers(
                format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
                Then::Close,
            );
            let outcome = bench.exchange(get("/"), &["GET"]);
            if outcome.status() == 502 {
                return Ok(());
            }
            outcome.is(200)?;
            let answer = &outcome.answers[0];
            check(answer.is_framed_once() && answer.body == b"hello", || outcome.told())
        }));
    }
    for fields in ["X: y\r\n z", "Content-Type: text/plain;\r\n\tcharset=x"] {
        cases.push(case(format!("a fold is undone or 502, {fields:?}"), move |bench: &Bench| {
            bench.origin.answers(
                format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{fields}\r\n\r\nhello"),
                Then::Close,
            );
            let outcome = bench.exchange(get("/"), &["GET"]);
            if outcome.status() == 502 {
                return Ok(());
            }
            outcome.is(200)?;
            let head = &outcome.answers[0].head;
            check(find(head, b"\n ").or(find(head, b"\n\t")).is_none(), || outcome.told())
        }));
    }
    for fields in ["Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5, 5"] {
        cases.push(case(format!("equal ones are one or 502, {fields:?}"), move |bench: &Bench| {
            bench.origin.answers(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\nhello"), Then::Close);
            let outcome = bench.exchange(get("/"), &["GET"]);
            if outcome.status() == 502 {
                return Ok(());
            }
            outcome.is(200)?;
            let answer = &outcome.answers[0];
            check(answer.is_framed_once() && answer.body == b"hello", || outcome.told())
        }));
    }
    cases
}

fn http_1_0() -> Vec<Case> {
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let mut cases = vec![
        case("no chunks, and the end is the connection's", move |bench: &Bench| {
            answer_by_version(bench, chunks);
            let outcome = bench.exchange_to_end("GET / HTTP/1.0\r\nHost: a\r\n\r\n", &["GET"]);
            outcome.is(200)?;
            let answer = &outcome.answers[0];
            check(answer.field("transfer-encoding").is_none() && outcome.has_ended, || {
                outcome.told()
            })?;
            check(answer.body == b"hello", || outcome.told())
        }),
        case("nor with keep-alive", move |bench: &Bench| {
            answer_by_version(bench, chunks);
            let request = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
            let outcome = bench.exchange_to_end(request, &["GET"]);
            outcome.is(200)?;
            let answer = &outcome.answers[0];
            check(answer.field("transfer-encoding").is_none(), || outcome.told())?;
            check(answer.body == b"hello", || outcome.told())
        }),
        case("closed where nothing else is agreed", |bench: &Bench| {
            let outcome = bench.exchange_to_end("GET / HTTP/1.0\r\nHost: a\r\n\r\n", &["GET"]);
            outcome.is(200)?;
            check(outcome.has_ended && outcome.answers[0].body == b"ok", || outcome.told())
        }),
        case("kept where it is agreed, or said to be closed", |bench: &Bench| {
            let request = "GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n";
            let mut wire = bench.connect();
            wire.send(request).until(&["GET"]);
            let first = bench.outcome(&wire, &["GET"]);
            first.is(200)?;
            let option = first.answers[0].all("connection").join(",").to_ascii_lowercase();
            if option.contains("keep-alive") {
                wire.send(request).until(&["GET", "GET"]);
                let both = bench.outcome(&wire, &["GET", "GET"]);
                return check(both.answers.len() == 2, || both.told());
            }
            wire.until_end();
            check(wire.has_ended, || first.told())
        }),
        case("what goes on is HTTP/1.1 with a Host, or HTTP/1.0", |bench: &Bench| {
            let outcome = bench.exchange("GET / HTTP/1.0\r\n\r\n", &["GET"]);
            outcome.is(200)?;
            let only = outcome.only()?;
            let is_fine = only.line.ends_with(" HTTP/1.0") || only.all("host").len() == 1;
            check(is_fine, || outcome.told())
        }),
    ];
    for interim in ["100 Continue", "103 Early Hints"] {
        cases.push(case(format!("no {interim}"), move |bench: &Bench| {
            answer_by_version(bench, &format!("HTTP/1.1 {interim}\r\n\r\n{OK}"));
            let outcome = bench.exchange_to_end("GET / HTTP/1.0\r\nHost: a\r\n\r\n", &["GET"]);
            outcome.is(200)?;
            check(outcome.interims.is_empty(), || outcome.told())
        }));
    }
    cases.push(case("no 100 for its Expect", |bench: &Bench| {
        let outcome = bench.exchange_to_end(
            "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
            &["POST"],
        );
        outcome.is(200)?;
        check(outcome.interims.is_empty(), || outcome.told())
    }));
    cases
}

/// The origin sends these bytes to HTTP/1.1 alone: whom the proxy asks in HTTP/1.0 knows better.
fn answer_by_version(bench: &Bench, bytes: &str) {
    let bytes = bytes.to_owned();
    bench.origin.script(move |side| {
        if side.request().line.ends_with(" HTTP/1.1") {
            return side.read_body_and_answer(&bytes);
        }
        side.read_body_and_answer("HTTP/1.0 200 OK\r\n\r\nhello");
        Then::Close
    });
}

fn expect() -> Vec<Case> {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    vec![
        case("the body is asked for, and arrives", move |bench: &Bench| {
            // One that never says 100, as many do.
            let mut wire = bench.connect();
            wire.send(head);
            let is_asked =
                wire.wait(WAIT, |raw| raw.starts_with(b"HTTP/1.1 100 ")) || !wire.raw.is_empty();
            check(is_asked, || "no 100 Continue".to_owned())?;
            wire.send("hello").until(&["POST"]);
            let outcome = bench.outcome(&wire, &["POST"]);
            outcome.is(200)?;
            check(outcome.only()?.body == b"hello", || outcome.told())
        })
        // It hands the expectation on, and this origin does not know it.
        .not_for(&[Kind::Haproxy]),
        case("an origin that says 100 itself", move |bench: &Bench| {
            bench.origin.script(|side| {
                if side.request().field("expect").is_some() {
                    side.send("HTTP/1.1 100 Continue\r\n\r\n");
                }
                side.read_body_and_answer(OK)
            });
            let mut wire = bench.connect();
            wire.send(head);
            wire.wait(WAIT, |raw| find(raw, b"\r\n\r\n").is_some());
            wire.send("hello").until(&["POST"]);
            let outcome = bench.outcome(&wire, &["POST"]);
            outcome.is(200)?;
            check(outcome.only()?.body == b"hello", || outcome.told())
        }),
        case("a body that comes without waiting", move |bench: &Bench| {
            let outcome = bench.exchange(format!("{head}hello{}", get("/next")), &["POST", "GET"]);
            check(outcome.answers.len() == 2, || outcome.told())?;
            let seen = &outcome.forwarded;
            check(seen.len() == 2 && seen[0].body == b"hello", || outcome.told())
        }),
        case(
            "a final status without the body leaves no half-used connection",
            move |bench: &Bench| refused_by_origin(bench, head, ""),
        )
        // By its default it waits for the whole of a request, which never comes here.
        .not_for(&[Kind::Nginx]),
        case("nor does one that crosses the body", move |bench: &Bench| {
            refused_by_origin(bench, head, "hello")
        }),
        case("another expectation passes or is 417", |bench: &Bench| {
            let outcome = bench.exchange(get_with("Expect: the-unexpected\r\n"), &["GET"]);
            check(matches!(outcome.status(), 200 | 417 | 400), || outcome.told())
        }),
        case("no 100 before a refusal", move |bench: &Bench| {
            super::framing::spend(bench, 10)?;
            let mut wire = bench.connect();
            wire.send(head).until(&["POST"]);
            let outcome = bench.outcome(&wire, &["POST"]);
            outcome.is(429)?;
            check(outcome.interims.is_empty(), || outcome.told())
        })
        .with(Profile::Ten),
        case("an origin that takes its time", move |bench: &Bench| {
            bench.origin.script(|side| {
                std::thread::sleep(Duration::from_millis(300));
                if side.request().field("expect").is_some() {
                    side.send("HTTP/1.1 100 Continue\r\n\r\n");
                }
                side.read_body_and_answer(OK)
            });
            let mut wire = bench.connect();
            wire.send(head);
            wire.wait(WAIT, |raw| find(raw, b"\r\n\r\n").is_some());
            wire.send("hello").until(&["POST"]);
            bench.outcome(&wire, &["POST"]).is(200)
        }),
    ]
}

/// The origin refuses before it has the body; the client sends this much of it all the same, and
/// others' requests are none the worse.
fn refused_by_origin(bench: &Bench, head: &str, body: &str) -> Checked {
    bench.origin.script(|side| {
        if side.request().target() == "/next" {
            return side.read_body_and_answer(OK);
        }
        side.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
        // It holds whatever comes on this connection for the body, as it was told.
        if side.request().field("expect").is_none() && !side.read_body() {
            return Then::Close;
        }
        Then::Keep
    });
    let mut wire = bench.connect();
    wire.send(head);
    wire.wait(WAIT, |raw| !raw.is_empty());
    wire.send(body).until(&["POST"]);
    bench.outcome(&wire, &["POST"]).is(401)?;
    for _ in 0..5 {
        bench.exchange(get("/next"), &["GET"]).is(200)?;
    }
    let seen = bench.origin.forwarded();
    let is_clean = |line: &str| line.starts_with("POST / ") || line.starts_with("GET /next ");
    check(seen.iter().all(|it| is_clean(&it.line)), || bench.outcome(&wire, &["POST"]).told())?;
    let first = seen.iter().find(|it| it.line.starts_with("POST / "));
    // Half a body is no reason to wait for the rest of it in another's request.
    let is_eaten = first.is_some_and(|it| find(&it.body, b"GET").is_some());
    check(!is_eaten, || bench.outcome(&wire, &["POST"]).told())
}
