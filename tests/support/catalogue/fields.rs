//! What stays on one connection, and what tells of who asks.

use crate::catalogue::{arrives, get, get_with};
use crate::harness::{Bench, Case, Kind, Line, Profile, Then, case, check};

const GROUP: &str = "hop_by_hop";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "fields_hop_by_hop_stay_on_their_connection",
            group: GROUP,
            source: "RFC 9110 §7.6.1",
            cases: hop_by_hop(),
        },
        Line {
            name: "fields_connection_names_nothing_that_others_need",
            group: GROUP,
            source: "RFC 9110 §7.6.1; CVE-2024-45410 (Traefik); CVE-2025-48865 (Fabio)",
            cases: [
                ("X-Forwarded-For", "x-forwarded-for", Some("127.0.0.1")),
                ("x-forwarded-for, close", "x-forwarded-for", Some("127.0.0.1")),
                ("X-Forwarded-Proto", "x-forwarded-proto", Some("http")),
                ("X-Forwarded-Host", "x-forwarded-host", Some("a")),
                ("Host", "host", Some("a")),
                ("keep-alive, Host", "host", Some("a")),
                ("Content-Length", "content-length", None),
                ("Transfer-Encoding, Content-Length", "content-length", None),
                ("Content-Length\r\nConnection: Host", "host", Some("a")),
            ]
            .iter()
            .map(|(options, name, value)| {
                let request = format!(
                    "POST / HTTP/1.1\r\nHost: a\r\nConnection: {options}\r\nContent-Length: 5\r\n\r\nhello"
                );
                arrives(format!("{options:?}"), request, move |outcome| {
                    let only = outcome.only()?;
                    let is_there = value.map_or(!only.all(name).is_empty() || only.field("transfer-encoding").is_some(), |value| only.all(name) == [value]);
                    check(is_there && only.is_framed_once() && only.body == b"hello", || outcome.told())
                })
            })
            .collect(),
        },
        Line {
            name: "fields_h2c_never_reaches_the_origin",
            group: GROUP,
            source: "RFC 9110 §7.8; RFC 9113 §3.1",
            cases: [
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                "Connection: upgrade\r\nUpgrade: H2C\r\n",
                "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
                "Connection: upgrade\r\nUpgrade: h2c, websocket\r\n",
                "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
                "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                "Connection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ]
            .iter()
            .map(|fields| {
                arrives(format!("{fields:?}"), get_with(fields), |outcome| {
                    let only = outcome.only()?;
                    let upgrade = only.all("upgrade").concat().to_ascii_lowercase();
                    let is_there = upgrade.contains("h2c") || only.field("http2-settings").is_some();
                    check(!is_there, || outcome.told())
                })
            })
            .collect(),
        },
        Line {
            name: "fields_forwarded_come_from_the_proxy",
            group: GROUP,
            source: "RFC 7239 §8.1",
            cases: forwarding(),
        },
        Line {
            name: "fields_the_address_of_a_caller",
            group: GROUP,
            source: "RFC 7239 §5.2, §8.1",
            cases: vec![
                case("a chain is read from the right", |bench: &Bench| {
                    let mut statuses = Vec::new();
                    for number in 0..11 {
                        // Whatever the caller claims, the one that the trusted proxy saw counts.
                        let fields = format!("X-Forwarded-For: 6.6.6.{number}\r\nX-Forwarded-For: 9.9.9.9, 10.0.0.1\r\n");
                        statuses.push(bench.exchange(get_with(&fields), &["GET"]).status());
                    }
                    check(statuses.iter().filter(|it| **it == 200).count() == 10, || format!("{statuses:?}"))
                })
                .with(Profile::TenTrusting)
                .not_for(&[Kind::Haproxy]),
                case("an untrusted peer changes nothing", |bench: &Bench| {
                    let mut statuses = Vec::new();
                    for number in 0..11 {
                        let fields = format!("X-Forwarded-For: 6.6.6.{number}\r\nX-Real-IP: 6.6.6.{number}\r\n");
                        statuses.push(bench.exchange(get_with(&fields), &["GET"]).status());
                    }
                    check(statuses.iter().filter(|it| **it == 200).count() == 10, || format!("{statuses:?}"))
                })
                .with(Profile::Ten),
            ],
        },
        Line {
            name: "fields_proxy_protocol_is_not_believed",
            group: GROUP,
            source: "the PROXY protocol's own text, section 2",
            cases: [
                "PROXY TCP4 6.6.6.6 6.6.6.7 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x06\x06\x06\x06\x7f\0\0\x01\0\x01\0\x50GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            ]
            .iter()
            .map(|bytes| {
                case(format!("{bytes:?}"), move |bench: &Bench| {
                    let outcome = bench.exchange(bytes, &["GET"]);
                    crate::catalogue::refused(&outcome, &[400, 404, 505])
                })
            })
            .collect(),
        },
        Line {
            name: "fields_order_and_number_are_kept",
            group: GROUP,
            source: "RFC 9110 §5.3; RFC 6265 §3",
            cases: vec![
                case("Set-Cookie", |bench: &Bench| {
                    bench.origin.answers(
                        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT\r\n\
                         Content-Length: 2\r\nSet-Cookie: b=2\r\nset-cookie: a=3\r\n\r\nok",
                        Then::Keep,
                    );
                    let outcome = bench.exchange(get("/"), &["GET"]);
                    outcome.is(200)?;
                    let cookies = outcome.answers[0].all("set-cookie");
                    check(cookies == ["a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT", "b=2", "a=3"], || {
                        format!("{cookies:?}")
                    })
                }),
                arrives("repeated ones", get_with("X-A: 1\r\nX-B: x\r\nX-A: 3\r\nx-a: 2\r\n"), |outcome| {
                    let values = outcome.only()?.all("x-a").join(", ");
                    check(values == "1, 3, 2", || values.clone())
                }),
            ],
        },
        Line {
            name: "fields_obs_text_passes",
            group: GROUP,
            source: "RFC 9110 §5.5",
            cases: vec![
                case("in a request", |bench: &Bench| {
                    let mut request = b"GET / HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
                    request.extend((0x80..=0xff_u8).chain(*b"\r\n\r\n"));
                    let outcome = bench.exchange(request, &["GET"]);
                    outcome.is(200)?;
                    let wanted: String = (0x80..=0xff_u8).map(char::from).collect();
                    check(outcome.only()?.all("x") == [wanted.as_str()], || outcome.told())
                }),
                case("in an answer", |bench: &Bench| {
                    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ".to_vec();
                    answer.extend((0xa1..=0xff_u8).chain(*b"\r\n\r\n"));
                    bench.origin.answers(answer, Then::Keep);
                    let outcome = bench.exchange(get("/"), &["GET"]);
                    outcome.is(200)?;
                    let wanted: String = (0xa1..=0xff_u8).map(char::from).collect();
                    check(outcome.answers[0].all("x") == [wanted.as_str()], || outcome.told())
                }),
                arrives("a tab and quotes within", get_with("X: a\t\"b\\\"\" , c\r\n"), |outcome| {
                    check(outcome.only()?.all("x") == ["a\t\"b\\\"\" , c"], || outcome.told())
                }),
                arrives("an empty value", get_with("X:\r\nY: 1\r\n"), |outcome| {
                    check(outcome.only()?.all("x") == [""], || outcome.told())
                }),
            ],
        },
        Line {
            name: "fields_via_names_the_proxy",
            group: GROUP,
            source: "RFC 9110 §7.6.3",
            cases: vec![
                arrives("on a request", get("/"), |outcome| {
                    check(outcome.only()?.all("via").concat().starts_with("1.1 "), || outcome.told())
                }),
                arrives("behind others", get_with("Via: 1.0 before\r\n"), |outcome| {
                    let via = outcome.only()?.all("via").join(", ");
                    check(via.starts_with("1.0 before, 1.1 "), || outcome.told())
                }),
            ],
        },
    ]
}

fn hop_by_hop() -> Vec<Case> {
    const REQUESTS: [(&str, &[&str]); 11] = [
        ("Connection: X-A\r\nX-A: 1\r\n", &["x-a"]),
        ("Connection: close, x-a\r\nX-A: 1\r\n", &["x-a"]),
        ("X-A: 1\r\nConnection: keep-alive\r\nConnection: X-A\r\n", &["x-a"]),
        ("Connection: X-A ,\tX-B,,\r\nX-A: 1\r\nX-B: 2\r\nX-A: 3\r\n", &["x-a", "x-b"]),
        ("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n", &["keep-alive"]),
        ("Keep-Alive: timeout=5\r\n", &["keep-alive"]),
        ("Proxy-Connection: keep-alive\r\n", &["proxy-connection"]),
        ("TE: gzip\r\n", &["te"]),
        ("Connection: TE\r\nTE: deflate;q=0.5\r\n", &["te"]),
        ("Upgrade: x\r\n", &["upgrade"]),
        ("Connection: close\r\nUpgrade: websocket\r\n", &["upgrade"]),
    ];
    let mut cases: Vec<Case> = REQUESTS
        .iter()
        .map(|(fields, gone)| {
            arrives(format!("request, {fields:?}"), get_with(fields), move |outcome| {
                let only = outcome.only()?;
                let is_left = gone.iter().any(|name| only.field(name).is_some());
                let options = only.all("connection").join(",").to_ascii_lowercase();
                check(!is_left && !options.contains("x-"), || outcome.told())
            })
        })
        .collect();
    const ANSWERS: [(&str, &[&str]); 6] = [
        ("Connection: X-A\r\nX-A: 1\r\n", &["x-a"]),
        ("Connection: keep-alive\r\nConnection: x-a, X-B\r\nX-A: 1\r\nX-B: 2\r\n", &["x-a", "x-b"]),
        ("Keep-Alive: timeout=7\r\n", &["keep-alive"]),
        ("Proxy-Connection: keep-alive\r\n", &["proxy-connection"]),
        ("Upgrade: h2c\r\n", &["upgrade"]),
        ("TE: x\r\n", &["te"]),
    ];
    for (fields, gone) in ANSWERS {
        cases.push(case(format!("answer, {fields:?}"), move |bench: &Bench| {
            bench.origin.answers(
                format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok"),
                Then::Keep,
            );
            let outcome = bench.exchange(get("/"), &["GET"]);
            outcome.is(200)?;
            let answer = &outcome.answers[0];
            let left = |name: &&&str| answer.all(name).iter().any(|it| *it != "timeout=60");
            check(gone.iter().find(left).is_none(), || outcome.told())
        }));
    }
    cases.push(arrives(
        "TE: trailers may pass, and nothing else of it",
        get_with("Connection: TE\r\nTE: trailers, gzip\r\n"),
        |outcome| {
            let te = outcome.only()?.all("te").join(",");
            check(te.is_empty() || te == "trailers", || outcome.told())
        },
    ));
    cases
}

fn forwarding() -> Vec<Case> {
    let last = |fields: &'static str| {
        arrives(format!("the peer is last, {fields:?}"), get_with(fields), |outcome| {
            let chain = outcome.only()?.all("x-forwarded-for").join(", ");
            check(chain.rsplit(", ").next() == Some("127.0.0.1"), || outcome.told())
        })
    };
    let not_believed = |name: &'static str, value: &'static str| {
        arrives(
            format!("{name}: {value}"),
            get_with(&format!("{name}: {value}\r\n")),
            move |outcome| {
                let only = outcome.only()?;
                check(!only.all(&name.to_ascii_lowercase()).concat().contains(value), || {
                    outcome.told()
                })
            },
        )
    };
    vec![
        last(""),
        last("X-Forwarded-For: 6.6.6.6\r\n"),
        last("X-Forwarded-For: 6.6.6.6\r\nX: y\r\nx-forwarded-for: 7.7.7.7\r\n"),
        not_believed("X-Forwarded-Proto", "https"),
        not_believed("X-Forwarded-Host", "evil.test"),
        not_believed("X-Real-IP", "6.6.6.6"),
        not_believed("Forwarded", "for=6.6.6.6"),
    ]
}
