//! What is sent ahead, what becomes of an upgrade, how a proxy goes.

use std::time::Duration;

use crate::catalogue::{BEHIND, get};
use crate::harness::{Bench, Case, Line, OK, QUIET, Then, WAIT, Wire, case, check, find};

const GROUP: &str = "connections_and_upgrades";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "connections_pipelined_requests_are_answered_in_order",
            group: GROUP,
            source: "RFC 9112 §9.3.2",
            cases: vec![
                case("GETs in one packet", |bench: &Bench| {
                    bench.origin.script(|side| {
                        let target = side.request().target().to_owned();
                        let length = target.len();
                        side.read_body_and_answer(format!(
                            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{target}"
                        ))
                    });
                    let requests: String =
                        (0..8).map(|number| get(&format!("/{number}"))).collect();
                    let outcome = bench.exchange(requests, &["GET"; 8]);
                    let bodies: Vec<_> = outcome
                        .answers
                        .iter()
                        .map(|it| String::from_utf8_lossy(&it.body).into_owned())
                        .collect();
                    let wanted: Vec<_> = (0..8).map(|number| format!("/{number}")).collect();
                    check(bodies == wanted, || outcome.told())
                }),
                case("bodies land on their requests", |bench: &Bench| {
                    bench.origin.script(|side| {
                        side.read_body();
                        let body = side.request().body;
                        let head =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                        side.send(head.as_bytes());
                        side.send(body);
                        Then::Keep
                    });
                    let requests = "POST /0 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nzeroPOST /1 HTTP/1.1\r\n\
                        Host: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n0\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\
                        POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nthree";
                    let outcome = bench.exchange(requests, &["POST", "POST", "GET", "POST"]);
                    let bodies: Vec<_> = outcome.answers.iter().map(|it| it.body.clone()).collect();
                    check(bodies == [&b"zero"[..], b"one", b"", b"three"], || outcome.told())
                }),
                case("behind a HEAD, byte by byte", |bench: &Bench| {
                    bench.origin.script(|side| {
                        let is_head = side.request().line.starts_with("HEAD");
                        side.read_body_and_answer(if is_head {
                            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
                        } else {
                            OK
                        })
                    });
                    let mut wire = bench.connect();
                    for byte in format!("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n{}", get("/")).bytes() {
                        wire.send([byte]);
                    }
                    wire.until(&["HEAD", "GET"]);
                    let outcome = bench.outcome(&wire, &["HEAD", "GET"]);
                    check(outcome.answers.len() == 2 && outcome.answers[1].body == b"ok", || {
                        outcome.told()
                    })
                }),
                case("an empty line before a request", |bench: &Bench| {
                    // RFC 9112 §2.2: a server SHOULD ignore at least one.
                    let outcome = bench.exchange(format!("\r\n{}", get("/")), &["GET"]);
                    outcome.is(200)
                }),
                case("Connection: close is the last", |bench: &Bench| {
                    let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
                    let outcome =
                        bench.exchange_to_end(format!("{request}{BEHIND}"), &["GET", "GET"]);
                    outcome.is(200)?;
                    check(outcome.has_ended && outcome.forwarded.len() == 1, || outcome.told())
                }),
            ],
        },
        Line {
            name: "connections_bytes_behind_an_upgrade_wait_for_the_101",
            group: GROUP,
            source: "RFC 9110 §7.8; CVE-2026-2833 (Pingora), CVE-2024-23326 (Envoy)",
            cases: declined(),
        },
        Line {
            name: "connections_a_tunnel_passes_every_byte",
            group: GROUP,
            source: "RFC 6455 §4; RFC 9110 §7.8",
            cases: tunnels(),
        },
        Line {
            name: "connections_an_upgrade_needs_http_1_1_and_the_option",
            group: GROUP,
            source: "RFC 9110 §7.8",
            cases: [
                "1.0\r\nConnection: upgrade",
                "1.1",
                "1.1\r\nConnection: keep-alive",
                "1.1\r\nConnection: upgraded",
            ]
            .iter()
            .map(|rest| {
                let request =
                    format!("GET /ws HTTP/{rest}\r\nHost: a\r\nUpgrade: websocket\r\n\r\n");
                case(format!("HTTP/{rest:?}"), move |bench: &Bench| {
                    // The origin agrees to whatever it is asked in due form.
                    bench.origin.script(|side| {
                        let request = side.request();
                        let option = request.all("connection").join(",").to_ascii_lowercase();
                        let is_asked = request.field("upgrade").is_some()
                            && option.split(',').any(|it| it.trim() == "upgrade");
                        side.read_body_and_answer(if is_asked { SWITCHED } else { OK })
                    });
                    let outcome = bench.exchange(&request, &["GET"]);
                    check(matches!(outcome.status(), 200 | 400), || outcome.told())
                })
            })
            .collect(),
        },
        Line {
            name: "connections_a_drain_finishes_what_is_in_flight",
            group: GROUP,
            source: "RFC 9112 §9.6",
            cases: vec![
                case("an answer under way, an idle connection, a new one", |bench: &Bench| {
                    bench.origin.script(|side| {
                        if side.request().target() == "/slow" {
                            side.read_body();
                            side.send(
                                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbe\r\n",
                            );
                            std::thread::sleep(Duration::from_secs(1));
                            side.send("4\r\ngone\r\n0\r\n\r\n");
                            return Then::Keep;
                        }
                        side.read_body_and_answer(OK)
                    });
                    let mut idle = bench.connect();
                    idle.send(get("/")).until(&["GET"]);
                    let mut busy = bench.connect();
                    busy.send(get("/slow"));
                    check(bench.origin.wait(|seen| seen.len() == 2), || "nothing came".to_owned())?;
                    std::thread::sleep(QUIET);
                    bench.subject.drain(bench.kind);
                    busy.until(&["GET"]);
                    let outcome = bench.outcome(&busy, &["GET"]);
                    outcome.is(200)?;
                    check(outcome.answers[0].body == b"begone", || outcome.told())?;
                    check(idle.wait(WAIT, |_| false) || idle.has_ended, || {
                        "the idle one stays".to_owned()
                    })?;
                    busy.until_end();
                    check(busy.has_ended, || "the busy one stays".to_owned())?;
                    check(bench.subject.has_ended(WAIT), || "it does not end".to_owned())
                }),
                case("what is answered during it says close", |bench: &Bench| {
                    bench.origin.script(|side| {
                        std::thread::sleep(Duration::from_secs(1));
                        side.read_body_and_answer(OK)
                    });
                    let mut wire = bench.connect();
                    wire.send(get("/"));
                    check(bench.origin.wait(|seen| seen.len() == 1), || "nothing came".to_owned())?;
                    bench.subject.drain(bench.kind);
                    wire.until(&["GET"]);
                    let outcome = bench.outcome(&wire, &["GET"]);
                    outcome.is(200)?;
                    let option = outcome.answers[0].all("connection").concat();
                    check(option.eq_ignore_ascii_case("close"), || outcome.told())?;
                    wire.until_end();
                    check(wire.has_ended, || outcome.told())
                }),
            ],
        },
        Line {
            name: "connections_a_client_that_half_closes_gets_its_answer",
            group: GROUP,
            source: "RFC 9112 §9.6",
            cases: ["", "Content-Length: 5\r\n"]
                .iter()
                .flat_map(|field| [0, 300].map(|delay| (*field, delay)))
                .map(|(field, delay)| {
                    case(format!("{field:?}, an answer after {delay} ms"), move |bench: &Bench| {
                        bench.origin.script(move |side| {
                            side.read_body();
                            std::thread::sleep(Duration::from_millis(delay));
                            side.send(OK);
                            Then::Keep
                        });
                        let body = if field.is_empty() { "" } else { "hello" };
                        let mut wire = bench.connect();
                        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n{body}"))
                            .finish();
                        wire.until(&["POST"]);
                        bench.outcome(&wire, &["POST"]).is(200)
                    })
                })
                .collect(),
        },
    ]
}

fn declined() -> Vec<Case> {
    let ahead = "\x01\x02TUNNEL";
    vec![
        case("nothing is relayed before the origin agrees", move |bench: &Bench| {
            let (told, early) = std::sync::mpsc::channel();
            let told = std::sync::Mutex::new(told);
            bench.origin.script(move |side| {
                let bytes = side.read_raw(1, QUIET * 2);
                told.lock().unwrap().send(bytes).ok();
                side.send(SWITCHED);
                let bytes = side.read_raw(8, WAIT);
                side.send(bytes);
                Then::Close
            });
            let mut wire = bench.connect();
            wire.send(format!("{UPGRADE}{ahead}"));
            let bytes = early.recv_timeout(WAIT).map_err(|it| it.to_string())?;
            check(bytes.is_empty(), || format!("{bytes:?} came early"))?;
            let has_come = wire.wait(WAIT, |raw| raw.ends_with(ahead.as_bytes()));
            check(has_come, || format!("{:?}", String::from_utf8_lossy(&wire.raw)))
        }),
        case("declined, what is behind is a request like any", |bench: &Bench| {
            bench.origin.answers(OK, Then::Keep);
            let outcome = bench.exchange(format!("{UPGRADE}{BEHIND}"), &["GET", "GET"]);
            outcome.is(200)?;
            // If it is forwarded, the proxy has read it: it says whom it comes from.
            let behind = outcome.forwarded.iter().find(|it| it.target() == "/behind");
            check(behind.is_none_or(|it| it.field("x-forwarded-for").is_some()), || outcome.told())
        }),
        case("declined, what is behind and is no request goes nowhere", |bench: &Bench| {
            bench.origin.script(|side| {
                side.read_body();
                side.send(OK);
                let rest = side.read_raw(1, QUIET * 2);
                if !rest.is_empty() {
                    side.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
                }
                Then::Keep
            });
            let mut wire = bench.connect();
            wire.send(format!("{UPGRADE}\x01\x02TUNNEL\r\n\r\n"));
            wire.wait(QUIET * 4, |raw| find(raw, b"poison").is_some());
            check(find(&wire.raw, b"poison").is_none(), || {
                String::from_utf8_lossy(&wire.raw).into_owned()
            })
        }),
        case("a 101 to a request that asked for nothing is 502", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(SWITCHED);
                side.read_raw(1, QUIET * 2);
                Then::Close
            });
            let mut wire = bench.connect();
            wire.send(format!("{}{BEHIND}", get("/"))).until(&["GET"]);
            bench.outcome(&wire, &["GET"]).is(502)
        }),
        case("a body behind an upgrade is a body", |bench: &Bench| {
            let request = UPGRADE
                .replace("GET /ws", "POST /ws")
                .replace("Host: a\r\n", "Host: a\r\nContent-Length: 5\r\n");
            let outcome = bench.exchange(format!("{request}hello{BEHIND}"), &["POST", "GET"]);
            outcome.is(200)?;
            check(outcome.forwarded[0].body == b"hello", || outcome.told())
        }),
    ]
}

fn tunnels() -> Vec<Case> {
    vec![
        case("both ways", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(SWITCHED);
                while !side.has_ended {
                    let bytes = side.read_raw(1, WAIT);
                    side.send(bytes);
                }
                Then::Close
            });
            let mut wire = switched(bench)?;
            let sent: Vec<u8> = (0..=255_u8).cycle().take(100_000).collect();
            let begin = wire.raw.len();
            wire.send(&sent);
            let has_come = wire.wait(WAIT, |raw| raw.len() >= begin + sent.len());
            check(has_come && wire.raw[begin..] == sent[..], || {
                format!("{} bytes came back", wire.raw.len() - begin)
            })
        }),
        case("what comes with the 101", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(format!("{SWITCHED}\x01hello\0\r\n"));
                side.read_raw(1, WAIT);
                Then::Close
            });
            let mut wire = switched(bench)?;
            let has_come = wire.wait(WAIT, |raw| raw.ends_with(b"\x01hello\0\r\n"));
            check(has_come, || String::from_utf8_lossy(&wire.raw).into_owned())
        }),
        case("what comes with the request", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(SWITCHED);
                let bytes = side.read_raw(7, WAIT);
                side.send(bytes);
                side.read_raw(1, WAIT);
                Then::Close
            });
            let mut wire = bench.connect();
            wire.send(format!("{UPGRADE}\x01ahead\0"));
            let has_come = wire.wait(WAIT, |raw| raw.ends_with(b"\x01ahead\0"));
            check(has_come, || String::from_utf8_lossy(&wire.raw).into_owned())
        }),
        case("the origin's close reaches the client", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(format!("{SWITCHED}bye"));
                Then::Close
            });
            let mut wire = switched(bench)?;
            wire.until_end();
            check(wire.has_ended && wire.raw.ends_with(b"bye"), || {
                String::from_utf8_lossy(&wire.raw).into_owned()
            })
        }),
        case("the client's close reaches the origin", |bench: &Bench| {
            let (told, ended) = std::sync::mpsc::channel();
            let told = std::sync::Mutex::new(told);
            bench.origin.script(move |side| {
                side.send(SWITCHED);
                while !side.has_ended && !side.read_raw(1, WAIT).is_empty() {}
                told.lock().unwrap().send(side.has_ended).ok();
                Then::Close
            });
            drop(switched(bench)?);
            check(ended.recv_timeout(WAIT * 2) == Ok(true), || "it stays open".to_owned())
        }),
        case("the handshake's fields go through", |bench: &Bench| {
            bench.origin.script(|side| {
                side.send(SWITCHED);
                side.read_raw(1, WAIT);
                Then::Close
            });
            let wire = switched(bench)?;
            let (answers, _, _) = wire.answers(&["GET"]);
            check(
                answers[0].all("sec-websocket-accept") == ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
                || String::from_utf8_lossy(&wire.raw).into_owned(),
            )?;
            let seen = bench.origin.forwarded();
            check(seen[0].all("sec-websocket-key") == ["dGhlIHNhbXBsZSBub25jZQ=="], || {
                format!("{seen:?}")
            })?;
            let upgrade = seen[0].all("upgrade").join(",");
            let option = seen[0].all("connection").join(",").to_ascii_lowercase();
            check(upgrade == "websocket" && option.contains("upgrade"), || format!("{seen:?}"))
        }),
    ]
}

fn switched(bench: &Bench) -> Result<Wire, String> {
    let mut wire = bench.connect();
    wire.send(UPGRADE);
    let has_switched = wire.wait(WAIT, |raw| find(raw, b"\r\n\r\n").is_some());
    let is_101 = has_switched && wire.raw.starts_with(b"HTTP/1.1 101 ");
    check(is_101, || format!("no 101 but {:?}", String::from_utf8_lossy(&wire.raw)))?;
    Ok(wire)
}
