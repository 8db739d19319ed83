//! Where a request ends: what smuggling is made of.

use crate::catalogue::{BEHIND, arrives, faulty, refused, refused_for_good};
use crate::harness::{Bench, Case, Checked, Line, Message, Outcome, Profile, case, check, find};

const GROUP: &str = "framing";

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "framing_content_length_digits_only",
            group: GROUP,
            source: "RFC 9110 §8.6; CVE-2023-40225 (HAProxy, empty)",
            cases: [
                "+5",
                "-1",
                "-0",
                "0x5",
                "1_0",
                "5x",
                "",
                " ",
                "18446744073709551616",
                "18446744073709551621",
                "340282366920938463463374607431768211461",
                "1 0",
                "5 5",
                "5.0",
                "5e0",
                "5;a=b",
                "\"5\"",
                "\x0b5",
                "5\x0b",
                "\u{665}",
                "five",
                ",5",
                "5,",
                "0, +5",
                "NaN",
                "5\t5",
            ]
            .iter()
            .map(|value| {
                faulty(format!("{value:?}"), post(&format!("Content-Length: {value}\r\n"), "hello"))
            })
            .collect(),
        },
        Line {
            name: "framing_differing_content_lengths",
            group: GROUP,
            source: "RFC 9112 §6.3(5)",
            cases: [
                "Content-Length: 5\r\nContent-Length: 6\r\n",
                "Content-Length: 6\r\nContent-Length: 5\r\n",
                "Content-Length: 0\r\nContent-Length: 5\r\n",
                "Content-Length: 5\r\nX: y\r\ncontent-length: 0\r\n",
                "Content-Length: 5, 6\r\n",
                "Content-Length: 5,5,6\r\n",
                "Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
                "Content-Length: 5\r\nContent-Length: 5, 6\r\n",
                "Content-Length: 5\r\nContent-Length:\r\n",
                "Content-Length:\r\nContent-Length: 5\r\n",
                "Content-Length: 5\r\nContent-Length: +5\r\n",
            ]
            .iter()
            .map(|fields| faulty(format!("{fields:?}"), post(fields, "hello")))
            .chain(
                [
                    "Content-Length: 5\r\nContent-Length: 5\r\n",
                    "Content-Length: 5, 5\r\n",
                    "Content-Length: 5\r\nContent-Length: 05\r\n",
                ]
                .iter()
                .map(|fields| {
                    one_or_refused(format!("equal ones, {fields:?}"), post(fields, "hello"))
                }),
            )
            .collect(),
        },
        Line {
            name: "framing_content_length_beside_transfer_encoding",
            group: GROUP,
            source: "RFC 9112 §6.1, §6.3(3)",
            cases: [
                "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
                "Content-Length: 4096\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: CHUNKED\r\nX: y\r\nContent-Length: 15\r\n",
                "Content-Length: 15\r\nContent-Length: 15\r\nTransfer-Encoding: chunked\r\n",
            ]
            .iter()
            .map(|fields| both(format!("{fields:?}"), post(fields, "5\r\nhello\r\n0\r\n\r\n")))
            .collect(),
        },
        Line {
            name: "framing_transfer_encoding_other_than_chunked",
            group: GROUP,
            source: "RFC 9112 §6.3(4)",
            cases: [
                "identity",
                "xchunked",
                "\"chunked\"",
                "chunked;x",
                "chunked;q=1",
                "gzip",
                "chunked, gzip",
                "chunked, identity",
                "chunked,",
                ",chunked",
                "",
                "\x0bchunked",
                "chunked\x0b",
                "chun ked",
                "cow",
                "cow, chunked",
                "chunke",
                "'chunked'",
                "chunked x",
                "[chunked]",
                "x: chunked",
                "chunked\u{a0}",
                "\u{ff}chunked",
                "trailers",
            ]
            .iter()
            .map(|value| {
                let fields = format!("Transfer-Encoding: {value}\r\n");
                faulty(format!("{value:?}"), post(&fields, "5\r\nhello\r\n0\r\n\r\n"))
            })
            .chain(["Chunked", "CHUNKED", "chunked \t"].iter().map(|value| {
                let request =
                    post(&format!("Transfer-Encoding: {value}\r\n"), "5\r\nhello\r\n0\r\n\r\n");
                arrives(format!("{value:?} is chunked"), request, |outcome| {
                    framed(outcome, "hello")
                })
            }))
            .chain([
                faulty(
                    "beside a length, last not chunked",
                    post("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", "hello"),
                ),
                faulty(
                    "beside a length, unknown",
                    post("Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", "hello"),
                ),
            ])
            .collect(),
        },
        Line {
            name: "framing_transfer_encoding_in_http_1_0",
            group: GROUP,
            source: "RFC 9112 §6.1; CVE-2026-2835 (Pingora)",
            cases: ["", "Connection: keep-alive\r\n", "Content-Length: 5\r\n"]
                .iter()
                .map(|fields| {
                    let request = format!(
                        "POST / HTTP/1.0\r\nHost: a\r\n{fields}Transfer-Encoding: chunked\r\n\r\n\
                         5\r\nhello\r\n0\r\n\r\n"
                    );
                    faulty(format!("{fields:?}"), request)
                })
                .collect(),
        },
        Line {
            name: "framing_transfer_encodings_never_as_they_came",
            group: GROUP,
            source: "RFC 9112 §6.1, §7",
            cases: [
                "Transfer-Encoding: gzip, chunked\r\n",
                "Transfer-Encoding: identity, chunked\r\n",
                "Transfer-Encoding: chunked, chunked\r\n",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
                "Transfer-Encoding: chunked\r\ntransfer-encoding: x\r\n",
                "Transfer-Encoding: x\r\ntransfer-encoding: chunked\r\n",
            ]
            .iter()
            .map(|fields| faulty(format!("{fields:?}"), post(fields, "5\r\nhello\r\n0\r\n\r\n")))
            .collect(),
        },
        Line {
            name: "framing_whitespace_before_colon_and_folded_lines",
            group: GROUP,
            source: "RFC 9112 §2.2, §5.1, §5.2",
            cases: whitespace(),
        },
        Line {
            name: "framing_bare_cr_and_nul_in_the_head",
            group: GROUP,
            source: "RFC 9112 §2.2; RFC 9110 §5.5",
            cases: controls(),
        },
        Line {
            name: "framing_bare_lf_ends_no_chunk",
            group: GROUP,
            source: "RFC 9112 §7.1; CVE-2025-22871 (Go)",
            cases: [
                "5\nhello\r\n0\r\n\r\n",
                "5\r\nhello\n0\r\n\r\n",
                "5\r\nhello\r\n0\n\r\n",
                "5;a\nhello\r\n0\r\n\r\n",
                "5\r\nhello\r\n0\n\n",
                "5\r\nhello\r\n0\r\n\n",
                "5\rhello\r\n0\r\n\r\n",
                "5\r\nhello\r0\r\n\r\n",
                "2;\nxx\r\n4c\r\nhello\r\n0\r\n\r\n",
            ]
            .iter()
            .map(|body| broken(format!("{body:?}"), body))
            .collect(),
        },
        Line {
            name: "framing_chunk_size_lines",
            group: GROUP,
            source: "RFC 9112 §7.1",
            cases: [
                "+5\r\nhello\r\n",
                "-5\r\nhello\r\n",
                "0x5\r\nhello\r\n",
                "5_\r\nhello\r\n",
                "0_5\r\nhello\r\n",
                " 5\r\nhello\r\n",
                "\t5\r\nhello\r\n",
                "\r\nhello\r\n",
                "g\r\nhello\r\n",
                "5g\r\nhello\r\n",
                "5 5\r\nhello\r\n",
                "5,\r\nhello\r\n",
                "5.\r\nhello\r\n",
                "10000000000000005\r\nhello\r\n",
                "FFFFFFFFFFFFFFFFF\r\nhello\r\n",
                "100000000000000000000000000000005\r\nhello\r\n",
                "5\x0b\r\nhello\r\n",
                "5\r\nhelloX\r\n",
                "5\r\nhello world\r\n",
                "5\r\nhello",
                "4\r\nhello\r\n",
                "\"5\"\r\nhello\r\n",
                "\u{b5}\r\nhello\r\n",
                ";a=b\r\nhello\r\n",
                "5\0\r\nhello\r\n",
                "5\r\r\nhello\r\n",
            ]
            .iter()
            .map(|chunk| broken(format!("{chunk:?}"), &format!("{chunk}0\r\n\r\n")))
            .chain(
                ["A\r\nhelloworld\r\n", "0000000000000005\r\nhello\r\n", "a\r\nhelloworld\r\n"]
                    .map(|chunk| {
                        let request = chunked(&format!("{chunk}0\r\n\r\n"));
                        arrives(format!("{chunk:?} is one"), request, |outcome| {
                            let only = outcome.only()?;
                            check(only.body.starts_with(b"hello"), || outcome.told())
                        })
                    }),
            )
            .collect(),
        },
        Line {
            name: "framing_chunk_extensions",
            group: GROUP,
            source: "RFC 9112 §7.1.1; CVE-2023-39326 (Go); CVE-2026-2332 (Jetty)",
            cases: extensions(),
        },
        Line {
            name: "framing_trailers_are_not_merged",
            group: GROUP,
            source: "RFC 9110 §6.5.1",
            cases: vec![
                case("of a request", |bench: &Bench| {
                    let outcome = bench.exchange(
                        chunked(&format!("5\r\nhello\r\n0\r\n{TRAILERS}\r\n")).replace(
                            "Host: a\r\n",
                            "Host: a\r\nTE: trailers\r\nTrailer: X-Sum, Host, X-Forwarded-For\r\n",
                        ),
                        &["POST"],
                    );
                    if refused(&outcome, &[400]).is_ok() {
                        return Ok(());
                    }
                    outcome.is(200)?;
                    let only = outcome.only()?;
                    let head = String::from_utf8_lossy(&only.head).to_ascii_lowercase();
                    check(!head.contains("smuggled") && only.all("host") == ["a"], || {
                        outcome.told()
                    })?;
                    let trailers = &only.trailers;
                    check(!trailers.contains("smuggled"), || format!("trailers {trailers:?}"))
                }),
                case("of an answer", |bench: &Bench| {
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                         5\r\nhello\r\n0\r\n{TRAILERS}\r\n"
                    );
                    bench.origin.answers(answer, crate::harness::Then::Keep);
                    let outcome = bench
                        .exchange("GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n", &["GET"]);
                    if outcome.status() == 502 {
                        return Ok(());
                    }
                    outcome.is(200)?;
                    let answer = &outcome.answers[0];
                    let head = String::from_utf8_lossy(&answer.head).into_owned();
                    check(!head.contains("smuggled"), || head)?;
                    check(!answer.trailers.contains("smuggled"), || answer.trailers.clone())?;
                    check(answer.body == b"hello", || outcome.told())
                }),
            ],
        },
        Line {
            name: "framing_bodies_are_framed_anew",
            group: GROUP,
            source: "RFC 9112 §6, §7.1",
            cases: vec![
                arrives(
                    "chunks with zeros and extensions",
                    chunked("005;a=b\r\nhello\r\n0005\r\nworld\r\n000;c\r\n\r\n"),
                    |outcome| {
                        let only = outcome.only()?;
                        let is_as_it_came = find(&only.raw_body, b"0005\r\n").is_some()
                            || find(&only.raw_body, b";").is_some();
                        check(!is_as_it_came, || format!("{:?}", only.raw_body))?;
                        framed(outcome, "helloworld")
                    },
                ),
                arrives("a length", post("Content-Length: 5\r\n", "hello"), |outcome| {
                    framed(outcome, "hello")
                }),
                arrives(
                    "a length with zeros",
                    post("Content-Length: 005\r\n", "hello"),
                    |outcome| framed(outcome, "hello"),
                ),
                arrives("no content", post("Content-Length: 0\r\n", ""), |outcome| {
                    framed(outcome, "")
                }),
                arrives("no content in chunks", chunked("0\r\n\r\n"), |outcome| {
                    framed(outcome, "")
                }),
                arrives(
                    "a GET with content",
                    "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                    |outcome| framed(outcome, "hello"),
                ),
            ],
        },
        Line {
            name: "framing_error_after_the_head_aborts_the_upstream",
            group: GROUP,
            source: "RFC 9112 §6.3, §8",
            cases: ["x\r\nhello\r\n0\r\n\r\n", "5\r\nhelloX\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n"]
                .iter()
                .map(|rest| {
                    case(format!("{rest:?}"), move |bench: &Bench| {
                        let mut wire = bench.connect();
                        wire.send(chunked("5\r\nfirst\r\n"));
                        // Whether the head goes on before the rest is the proxy's to decide.
                        let deadline = std::time::Instant::now() + crate::harness::QUIET;
                        while bench.origin.forwarded().is_empty()
                            && std::time::Instant::now() < deadline
                        {
                            std::thread::sleep(std::time::Duration::from_millis(5));
                        }
                        wire.send(rest).send(BEHIND).until_end();
                        let next =
                            bench.exchange("GET /next HTTP/1.1\r\nHost: a\r\n\r\n", &["GET"]);
                        next.is(200)?;
                        let seen = bench.origin.forwarded();
                        let whole: Vec<_> = seen.iter().filter(|it| it.is_complete).collect();
                        check(whole.len() == 1 && whole[0].target() == "/next", || next.told())?;
                        let others: Vec<_> =
                            seen.iter().filter(|it| it.target() != "/next").collect();
                        check(others.iter().all(|it| it.connection != whole[0].connection), || {
                            "the connection was used again".to_owned()
                        })
                    })
                })
                .collect(),
        },
        Line {
            name: "framing_a_refused_body_is_no_next_request",
            group: GROUP,
            source: "RFC 9112 §9.3; CVE-2025-4366 (Pingora)",
            cases: ["", "Expect: 100-continue\r\n"]
                .iter()
                .flat_map(|extra| {
                    let length = BEHIND.len();
                    [
                        post(&format!("{extra}Content-Length: {length}\r\n"), BEHIND),
                        post(
                            &format!("{extra}Transfer-Encoding: chunked\r\n"),
                            &format!("{length:x}\r\n{BEHIND}\r\n0\r\n\r\n"),
                        ),
                        post(
                            &format!("{extra}Content-Length: {}\r\n", 6000 * length),
                            &BEHIND.repeat(6000),
                        ),
                    ]
                })
                .enumerate()
                .map(|(number, request)| {
                    let name = format!("{number}: {:?}", &request[..request.len().min(90)]);
                    case(name, move |bench: &Bench| {
                        spend(bench, 10)?;
                        let mut wire = bench.connect();
                        wire.send(&request).until(&["POST"]);
                        let outcome = bench.outcome(&wire, &["POST"]);
                        outcome.is(429)?;
                        wire.send(BEHIND);
                        wire.wait(crate::harness::QUIET, |_| false);
                        // At most one more answer, and that is to the one behind.
                        let (answers, _, rest) = wire.answers(&["POST", "GET"]);
                        check(answers.len() <= 2 && rest.is_empty(), || {
                            format!("answers to the body: {:?}", String::from_utf8_lossy(&rest))
                        })?;
                        let statuses: Vec<u16> = answers.iter().map(|it| it.status).collect();
                        check(statuses.iter().all(|it| *it == 429), || format!("{statuses:?}"))?;
                        let seen = bench.origin.forwarded();
                        let mut targets = seen.iter().map(Message::target);
                        check(targets.all(|it| it == "/spent"), || outcome.told())
                    })
                    .with(Profile::Ten)
                })
                .collect(),
        },
        Line {
            name: "framing_underscores_shadow_nothing",
            group: GROUP,
            source: "CVE-2025-64484; Envoy's headers_with_underscores_action",
            cases: [
                "Content_Length: 6",
                "Transfer_Encoding: chunked",
                "X_Forwarded_For: 6.6.6.6",
                "X-Forwarded_For: 6.6.6.6",
                "X_Real_IP: 6.6.6.6",
                "X_Forwarded_Proto: https",
                "Hos_t: b",
            ]
            .iter()
            .take(6)
            .map(|field| {
                let request = post(&format!("Content-Length: 5\r\n{field}\r\n"), "hello");
                case(*field, move |bench: &Bench| {
                    let outcome = bench.exchange(&request, &["POST"]);
                    if refused(&outcome, &[400]).is_ok() {
                        return Ok(());
                    }
                    outcome.is(200)?;
                    let only = outcome.only()?;
                    let is_there = only.fields.iter().any(|(name, _)| name.contains('_'));
                    check(!is_there, || outcome.told())
                })
            })
            .collect(),
        },
    ]
}

const TRAILERS: &str = "X-Sum: 42\r\nContent-Length: 6; smuggled\r\nHost: smuggled\r\n\
    Transfer-Encoding: smuggled\r\nAuthorization: smuggled\r\nX-Forwarded-For: smuggled\r\n\
    X-Real-IP: smuggled\r\nCookie: smuggled\r\nConnection: smuggled\r\nX_Forwarded_For: smuggled\r\n";

/// The one request has one framing and this content.
fn framed(outcome: &Outcome, body: &str) -> Checked {
    let only = outcome.only()?;
    check(only.is_framed_once() && only.body == body.as_bytes(), || outcome.told())
}

/// Spends so many requests of the caller's.
pub fn spend(bench: &Bench, count: usize) -> Checked {
    let mut wire = bench.connect();
    for number in 0..count {
        let methods = vec!["GET"; number + 1];
        wire.send("GET /spent HTTP/1.1\r\nHost: a\r\n\r\n").until(&methods);
        let (answers, _, _) = wire.answers(&methods);
        let status = answers.last().map_or(0, |it| it.status);
        check(answers.len() == number + 1 && status == 200, || {
            format!("request {number} of {count} was answered with {status}")
        })?;
    }
    Ok(())
}

/// Refused, or forwarded with one framing.
fn one_or_refused(name: String, request: String) -> Case {
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange(&request, &["POST"]);
        refused(&outcome, &[400, 422, 501]).or_else(|_| {
            outcome.is(200)?;
            framed(&outcome, "hello")
        })
    })
}

/// Refused, or read as Transfer-Encoding says with nothing else behind it.
fn both(name: String, request: String) -> Case {
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange_to_end(format!("{request}{BEHIND}"), &["POST", "GET"]);
        refused_for_good(&outcome, &[400, 422, 501]).or_else(|_| {
            outcome.is(200)?;
            framed(&outcome, "hello")?;
            check(outcome.has_ended, || format!("the connection goes on; {}", outcome.told()))
        })
    })
}

/// Faulty within its content: the origin never gets a whole request, and the connection ends.
fn broken(name: String, body: &str) -> Case {
    let request = chunked(body);
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange_to_end(format!("{request}{BEHIND}"), &["POST", "GET"]);
        check(matches!(outcome.status(), 0 | 400 | 501), || outcome.told())?;
        check(outcome.has_ended, || format!("the connection goes on; {}", outcome.told()))?;
        let is_whole = outcome.forwarded.iter().any(|it| it.is_complete);
        check(!is_whole, || format!("a whole request arrived; {}", outcome.told()))
    })
}

fn whitespace() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "Host : b",
        "X : y",
        "X\t: y",
        "Content-Length : 5",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding\x0b: chunked",
        "Connection : close",
        "X y: z",
        ": y",
        "Content-Length 5",
    ]
    .iter()
    .map(|line| faulty(format!("{line:?}"), post(&format!("{line}\r\n"), "")))
    .collect();
    for line in [" X: y\r\n", "\tContent-Length: 5\r\n", " Host: b\r\n"] {
        cases.push(faulty(
            format!("first line {line:?}"),
            format!("POST / HTTP/1.1\r\n{line}Host: a\r\n\r\n"),
        ));
    }
    for (fields, body) in [
        ("X: y\r\n z\r\n", ""),
        (" X: y\r\n", ""),
        ("X: y\r\n\tContent-Length: 5\r\n", ""),
        ("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: x\r\n ,chunked\r\n", "0\r\n\r\n"),
        ("Content-Length:\r\n 5\r\n", "hello"),
        ("X: y\r\n \r\n", ""),
    ] {
        let request = post(fields, body);
        cases.push(case(format!("folded {fields:?}"), move |bench: &Bench| {
            let outcome = bench.exchange_to_end(&request, &["POST"]);
            let is_folded = |head: &[u8]| find(head, b"\n ").or(find(head, b"\n\t")).is_some();
            refused_for_good(&outcome, &[400, 422, 501]).or_else(|_| {
                outcome.is(200)?;
                let only = outcome.only()?;
                check(!is_folded(&only.head) && only.is_framed_once(), || outcome.told())
            })
        }));
    }
    cases
}

fn controls() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GE\0T / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\rContent-Length: 5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        "GET /\r HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\rX\r\nHost: a\r\n\r\n",
        "GET\r/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX(y): z\r\n\r\n",
    ]
    .iter()
    .map(|request| faulty(format!("{request:?}"), request))
    .collect();
    for request in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\nX: y\r\n\n",
    ] {
        let sent = request.to_owned();
        cases.push(case(
            format!("a bare LF is CRLF or nothing, {request:?}"),
            move |bench: &Bench| {
                let outcome = bench.exchange(&sent, &["GET"]);
                refused(&outcome, &[400]).or_else(|_| {
                    outcome.is(200)?;
                    let only = outcome.only()?;
                    let lines = only.head.iter().filter(|it| **it == b'\n').count();
                    let whole = only.head.windows(2).filter(|it| it == b"\r\n").count();
                    check(lines == whole, || outcome.told())
                })
            },
        ));
    }
    cases
}

fn extensions() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "5;a=b\r\nhello\r\n0\r\n\r\n",
        "5;a=\"q;x\"\r\nhello\r\n0\r\n\r\n",
        "5;a=b;c=d\r\nhello\r\n0;e=f\r\n\r\n",
        "5;a\r\nhello\r\n0;x\r\n\r\n",
        "5 ;a=b\r\nhello\r\n0\r\n\r\n",
    ]
    .iter()
    .map(|body| {
        let request = chunked(body);
        case(format!("ignored, {body:?}"), move |bench: &Bench| {
            let outcome = bench.exchange(&request, &["POST"]);
            refused(&outcome, &[400]).or_else(|_| {
                outcome.is(200)?;
                let only = outcome.only()?;
                check(find(&only.raw_body, b";").is_none(), || format!("{:?}", only.raw_body))?;
                framed(&outcome, "hello")
            })
        })
    })
    .collect();
    for body in [
        // Whoever lets a quoted string span the line reads another chunk.
        "1;a=\"\r\nX\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: a\r\n\r\n\"\r\n",
        "1;a=\"b\r\nX\r\n0\r\n\r\nGET /inner HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let request = chunked(body);
        cases.push(case(
            format!("a quoted string ends with its line, {body:?}"),
            move |bench: &Bench| {
                let outcome = bench.exchange_to_end(&request, &["POST", "GET"]);
                // The first request's content is `X`, or it is refused.
                let first = outcome.forwarded.first();
                let is_read_right = first.is_none_or(|it| !it.is_complete || it.body == b"X");
                check(is_read_right, || outcome.told())
            },
        ));
    }
    cases.push(case("a megabyte of extensions is too much", |bench: &Bench| {
        let chunk = format!("1;{}\r\nx\r\n", "a".repeat(4000));
        let request = chunked(&format!("{}0\r\n\r\n", chunk.repeat(250)));
        let outcome = bench.exchange(&request, &["POST"]);
        let is_whole = outcome.forwarded.iter().any(|it| it.is_complete);
        check(!is_whole && outcome.status() != 200, || outcome.told())
    }));
    cases.push(case("one of a megabyte is too much", |bench: &Bench| {
        let request = chunked(&format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(1_000_000)));
        let outcome = bench.exchange(&request, &["POST"]);
        let is_whole = outcome.forwarded.iter().any(|it| it.is_complete);
        check(!is_whole && outcome.status() != 200, || outcome.told())
    }));
    cases
}
