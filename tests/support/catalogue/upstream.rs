//! An origin that fails, and what the client is told.

use std::time::{Duration, Instant};

use crate::catalogue::get;
use crate::harness::{Bench, Case, Line, OK, Profile, QUIET, Then, WAIT, case, check};

const GROUP: &str = "upstream";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "upstream_failures_have_their_status",
            group: GROUP,
            source: "RFC 9110 §15.6.3, §15.6.5",
            cases: failures(),
        },
        Line {
            name: "upstream_timeouts_are_of_silence",
            group: GROUP,
            source: "RFC 9110 §15.6.5",
            cases: vec![
                case("a slow answer that keeps coming is not cut", |bench: &Bench| {
                    bench.origin.script(|side| {
                        side.read_body();
                        side.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                        for _ in 0..4 {
                            std::thread::sleep(Duration::from_millis(500));
                            side.send("2\r\nhi\r\n");
                        }
                        side.send("0\r\n\r\n");
                        Then::Keep
                    });
                    let outcome = bench.exchange(get("/"), &["GET"]);
                    outcome.is(200)?;
                    check(outcome.answers[0].body == b"hihihihi", || outcome.told())
                })
                .with(Profile::Impatient),
                case("one that falls silent is cut", |bench: &Bench| {
                    bench.origin.script(|side| {
                        side.read_body();
                        side.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
                        side.read_raw(1, WAIT * 2);
                        Then::Close
                    });
                    let outcome = bench.exchange_to_end(get("/"), &["GET"]);
                    check(
                        outcome.has_ended && !outcome.answers.iter().any(|it| it.is_complete),
                        || outcome.told(),
                    )
                })
                .with(Profile::Impatient),
            ],
        },
        Line {
            name: "upstream_an_idle_close_is_invisible",
            group: GROUP,
            source: "RFC 9112 §9.3.1",
            cases: [Then::Close, Then::Reset]
                .iter()
                .flat_map(|then| ["GET", "POST", "PUT"].map(|method| (*then, method)))
                .map(|(then, method)| {
                    case(format!("{then:?}, {method}"), move |bench: &Bench| {
                        bench.origin.script(move |side| {
                            side.read_body_and_answer(OK);
                            std::thread::sleep(Duration::from_millis(20));
                            then
                        });
                        let mut wire = bench.connect();
                        let body = "Content-Length: 5\r\n\r\nhello";
                        for number in 1..=5 {
                            let methods = vec![method; number];
                            wire.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{body}"))
                                .until(&methods);
                            let outcome = bench.outcome(&wire, &methods);
                            let status = outcome.answers.last().map_or(0, |it| it.status);
                            check(outcome.answers.len() == number && status == 200, || {
                                outcome.told()
                            })?;
                            // The close is there before the next is sent.
                            let has_closed = bench.origin.wait_closed(number);
                            check(has_closed, || "the origin stays".to_owned())?;
                            std::thread::sleep(QUIET / 2);
                        }
                        check(bench.origin.forwarded().len() == 5, || {
                            "more than was sent".to_owned()
                        })
                    })
                })
                .collect(),
        },
        Line {
            name: "upstream_a_post_never_arrives_twice",
            group: GROUP,
            source: "RFC 9110 §9.2.2",
            cases: [Then::Close, Then::Reset]
                .iter()
                .flat_map(|then| {
                    ["", "HTTP/1.1 2", "HTTP/1.1 100 Continue\r\n\r\n"].map(|bytes| (*then, bytes))
                })
                .map(|(then, bytes)| {
                    case(format!("{then:?} after {bytes:?}"), move |bench: &Bench| {
                        // One answer first, so that the connection is a kept one.
                        bench.origin.script(move |side| {
                            if side.request().target() == "/warm" {
                                return side.read_body_and_answer(OK);
                            }
                            side.read_body();
                            side.send(bytes);
                            then
                        });
                        bench.exchange(get("/warm"), &["GET"]).is(200)?;
                        let outcome = bench.exchange(
                            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
                            &["POST"],
                        );
                        check(!matches!(outcome.status(), 200..400), || outcome.told())?;
                        let seen = bench.origin.forwarded();
                        let posts = seen.iter().filter(|it| it.target() == "/").count();
                        check(posts == 1, || format!("{posts} arrived"))
                    })
                })
                .collect(),
        },
        Line {
            name: "upstream_a_client_that_leaves_cancels",
            group: GROUP,
            source: "RFC 9110 §7.6",
            cases: ["GET", "POST"]
                .iter()
                .map(|method| {
                    case(*method, move |bench: &Bench| {
                        let (told, ended) = std::sync::mpsc::channel();
                        let told = std::sync::Mutex::new(told);
                        bench.origin.script(move |side| {
                            side.read_body();
                            let began = Instant::now();
                            while !side.has_ended && began.elapsed() < WAIT {
                                side.read_raw(1, QUIET);
                            }
                            told.lock().unwrap().send(began.elapsed()).ok();
                            Then::Close
                        });
                        let mut wire = bench.connect();
                        wire.send(format!(
                            "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
                        ));
                        check(bench.origin.wait(|seen| !seen.is_empty()), || {
                            "nothing came".to_owned()
                        })?;
                        std::thread::sleep(QUIET / 2);
                        drop(wire);
                        let took = ended.recv_timeout(WAIT * 2).map_err(|it| it.to_string())?;
                        check(took < Duration::from_secs(3), || format!("took {took:?}"))
                    })
                })
                .collect(),
        },
        Line {
            name: "upstream_memory_is_bounded",
            group: GROUP,
            source: "RFC 9112 §9; the checklist's 64 MiB",
            cases: vec![
                case("a client that reads nothing", |bench: &Bench| {
                    bench.origin.script(|side| {
                        side.read_body();
                        side.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
                        side.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                        let chunk = vec![b'x'; 1 << 20];
                        for _ in 0..256 {
                            if !side.send(&chunk) {
                                break;
                            }
                        }
                        Then::Close
                    });
                    let before = bench.subject.resident();
                    let mut wires: Vec<_> = (0..4).map(|_| bench.connect()).collect();
                    for wire in &mut wires {
                        wire.send(get("/"));
                    }
                    std::thread::sleep(Duration::from_millis(1500));
                    let grown = bench.subject.resident().saturating_sub(before);
                    check(grown < 64 << 20, || format!("grown by {grown} bytes"))
                }),
                case("an origin that reads nothing", |bench: &Bench| {
                    bench.origin.script(|_| {
                        std::thread::sleep(Duration::from_secs(2));
                        Then::Reset
                    });
                    let before = bench.subject.resident();
                    let mut wire = bench.connect();
                    wire.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000000\r\n\r\n");
                    let chunk = vec![b'x'; 1 << 20];
                    for _ in 0..200 {
                        if std::io::Write::write_all(&mut wire.stream, &chunk).is_err() {
                            break;
                        }
                    }
                    let grown = bench.subject.resident().saturating_sub(before);
                    check(grown < 64 << 20, || format!("grown by {grown} bytes"))
                }),
            ],
        },
    ]
}

fn failures() -> Vec<Case> {
    let mut cases = vec![
        case("nobody listens", |bench: &Bench| {
            let outcome = bench.exchange(get("/"), &["GET"]);
            check(matches!(outcome.status(), 502 | 503), || outcome.told())
        })
        .with(Profile::Down),
        case("it is silent", |bench: &Bench| {
            bench.origin.script(|side| {
                side.read_body();
                side.read_raw(1, WAIT * 2);
                Then::Close
            });
            bench.exchange(get("/"), &["GET"]).is(504)
        })
        .with(Profile::Impatient),
        case("it is silent within its head", |bench: &Bench| {
            bench.origin.script(|side| {
                side.read_body();
                side.send("HTTP/1.1 200 OK\r\nX: ");
                side.read_raw(1, WAIT * 2);
                Then::Close
            });
            bench.exchange(get("/"), &["GET"]).is(504)
        })
        .with(Profile::Impatient),
    ];
    for (name, bytes) in [
        ("it closes", String::new()),
        ("garbage", "SSH-2.0-OpenSSH_9.2\r\n\r\n".to_owned()),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-".to_owned()),
        ("no status", "HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("a status of four digits", "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("a status of two digits", "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("an unknown version", "HTTP/9.9 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("HTTP/2", "HTTP/2 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned()),
        ("an interim answer and no other", "HTTP/1.1 103 Early Hints\r\n\r\n".to_owned()),
        (
            "a 101 that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
                .to_owned(),
        ),
        (
            "a huge head",
            format!(
                "HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 2\r\n\r\nok",
                "a".repeat(1_000_000)
            ),
        ),
        ("fields without end", format!("HTTP/1.1 200 OK\r\n{}\r\nok", "X: y\r\n".repeat(100_000))),
    ] {
        for then in [Then::Close, Then::Reset] {
            if then == Then::Reset && !bytes.is_empty() {
                continue;
            }
            let bytes = bytes.clone();
            cases.push(case(format!("{name}, {then:?}"), move |bench: &Bench| {
                bench.origin.answers(&bytes, then);
                bench.exchange(get("/"), &["GET"]).is(502)
            }));
        }
    }
    cases
}
