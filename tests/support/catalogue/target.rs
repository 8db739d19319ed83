//! The request line and Host: what is asked for, and of whom.

use crate::catalogue::{arrives, get, refused, unfit};
use crate::harness::{Bench, Case, Line, case, check};

const GROUP: &str = "target_and_host";

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "target_host_missing_twice_or_invalid",
            group: GROUP,
            source: "RFC 9112 §3.2",
            cases: hosts(),
        },
        Line {
            name: "target_absolute_form",
            group: GROUP,
            source: "RFC 9112 §3.2.2",
            cases: vec![
                absolute("http://real.test/p?q", "/p?q"),
                absolute_with("fake.test", "http://real.test/p?q", "/p?q"),
                absolute("HTTP://real.test/p", "/p"),
                absolute("http://real.test?q", "/?q"),
                absolute("http://real.test", "/"),
                unfit("without Host", "GET http://real.test/ HTTP/1.1\r\n\r\n", &[400]),
                unfit("two Hosts", "GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &[400]),
                unfit("userinfo", "GET http://u@real.test/ HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
                unfit("no authority", "GET http:///p HTTP/1.1\r\nHost: a\r\n\r\n", &[400]),
            ],
        },
        Line {
            name: "target_connect_opens_no_tunnel",
            group: GROUP,
            source: "RFC 9110 §9.3.6",
            cases: ["CONNECT a:443", "CONNECT /", "CONNECT http://a/", "CONNECT 127.0.0.1:22"]
                .iter()
                .map(|line| {
                    let request = format!("{line} HTTP/1.1\r\nHost: a:443\r\n\r\n");
                    unfit(*line, request, &[400, 405, 501])
                })
                .collect(),
        },
        Line {
            name: "target_bytes_pass_as_they_are_or_not_at_all",
            group: GROUP,
            source: "RFC 9110 §7.7",
            cases: [
                "/a%2Fb",
                "/%2f",
                "/%00",
                "//x//y",
                "/a;b=c",
                "/a;b/../c",
                "/?",
                "/a?",
                "/a??",
                "/a?b?c",
                "/./a",
                "/a/./b",
                "/a/../b",
                "/../a",
                "/%2e%2e/a",
                "/%7Euser",
                "/~user",
                "/a%20b",
                "/a+b",
                "/a?q=%zz",
                "/%zz",
                "/%",
                "/a|b",
                "/{a}",
                "/[a]",
                "/a^b",
                "/a`b",
                "/\"a\"",
                "/<a>",
                "/a\\b",
                "/a?q=|",
                "/a?q={}",
                "/a?q=\"",
                "/a?q=<>",
                "/\u{e9}",
                "/a?q=\u{e9}",
                "/A%c3%a9",
                "/a//",
                "/a%5Cb",
                "/%25%32%46",
                "/a?x=1&x=2&y",
                "/a:b@c",
                "/*",
                "/a,b",
                "/a=b",
                "/!$&'()",
                "/a?//..//",
                "/a%0d%0ab",
                "/a%0a",
            ]
            .iter()
            .map(|target| {
                let request = get(target);
                // What was sent, a char for each byte.
                let wanted: String = target.bytes().map(char::from).collect();
                case(*target, move |bench: &Bench| {
                    let outcome = bench.exchange(&request, &["GET"]);
                    refused(&outcome, &[400, 403, 404]).or_else(|_| {
                        outcome.is(200)?;
                        check(outcome.only()?.target() == wanted, || outcome.told())
                    })
                })
            })
            .collect(),
        },
        Line {
            name: "target_honest_paths_pass",
            group: GROUP,
            source: "RFC 3986 §3.3",
            cases: [
                "/a%2Fb",
                "//x//y",
                "/a;b=c",
                "/?",
                "/a?",
                "/%7Euser",
                "/a?b?c",
                "/a:b@c,d=e!$&'()*+",
            ]
            .iter()
            .map(|target| {
                let request = get(target);
                arrives(*target, request, |outcome| {
                    check(outcome.only()?.target() == *target, || outcome.told())
                })
            })
            .collect(),
        },
        Line {
            name: "target_fragment_is_never_forwarded",
            group: GROUP,
            source: "RFC 9112 §3.2; CVE-2023-45539 (HAProxy); GHSA-fvhj-4qfh-q2hm (Traefik)",
            cases: ["/a#b", "/a?q#b", "/#", "/a#b?c", "/a##", "#a", "http://a/b#c", "/a#/../b"]
                .iter()
                .map(|target| {
                    let request = get(target);
                    case(*target, move |bench: &Bench| {
                        let outcome = bench.exchange(&request, &["GET"]);
                        refused(&outcome, &[400, 403, 404]).or_else(|_| {
                            outcome.is(200)?;
                            let target = outcome.only()?.target();
                            let is_there = target.contains('#') || target.contains("%23");
                            check(!is_there, || outcome.told())
                        })
                    })
                })
                .chain([arrives("/a%23b is none", get("/a%23b"), |outcome| {
                    check(outcome.only()?.target() == "/a%23b", || outcome.told())
                })])
                .collect(),
        },
        Line {
            name: "target_long_request_lines",
            group: GROUP,
            source: "RFC 9112 §3",
            cases: vec![arrives(
                "8000 octets",
                get(&format!("/{}", "a".repeat(8000 - "GET / HTTP/1.1".len()))),
                |outcome| check(outcome.only()?.line.len() == 8000, || outcome.told()),
            )],
        },
        Line {
            name: "target_limits_answer_with_a_body",
            group: GROUP,
            source: "RFC 9112 §3; RFC 6585 §5",
            cases: vec![
                limit("a target of 100,000", get(&format!("/{}", "a".repeat(100_000)))),
                limit(
                    "a field of 200,000",
                    crate::catalogue::get_with(&format!("X: {}\r\n", "a".repeat(200_000))),
                ),
                limit(
                    "a name of 200,000",
                    crate::catalogue::get_with(&format!("{}: a\r\n", "a".repeat(200_000))),
                ),
                limit("2000 fields", crate::catalogue::get_with(&"X: y\r\n".repeat(2000))),
                limit(
                    "a method of 100,000",
                    format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(100_000)),
                ),
            ],
        },
        Line {
            name: "target_unknown_methods_pass",
            group: GROUP,
            source: "RFC 9110 §9.1, §16.1",
            cases: ["BREW", "PROPFIND", "get", "M-SEARCH", "X!#$%&'*+.^_`|~1", "QUERY"]
                .iter()
                .map(|method| {
                    let request = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
                    arrives(*method, request, move |outcome| {
                        check(outcome.only()?.line.starts_with(&format!("{method} / ")), || {
                            outcome.told()
                        })
                    })
                })
                .collect(),
        },
        Line {
            name: "target_what_is_no_request_line",
            group: GROUP,
            source: "RFC 9112 §3, §2.3",
            cases: [
                "GET foo HTTP/1.1",
                "GET * HTTP/1.1",
                "GET ?q HTTP/1.1",
                "GET / a HTTP/1.1",
                "GET /",
                "GET",
                "GET / http/1.1",
                "GET / HTTP/1.10",
                "GET / HTTP/01.1",
                "GET / HTTP/1",
                "GET / HTTP/1.1a",
                "GET / HTTX/1.1",
                "G@T / HTTP/1.1",
                "GET a:80 HTTP/1.1",
                "PROXY TCP4 6.6.6.6 6.6.6.7 1 2",
            ]
            .iter()
            .map(|line| unfit(*line, format!("{line}\r\nHost: a\r\n\r\n"), &[400, 404, 505]))
            // What one MAY be lenient with, as long as it goes on in the right form.
            .chain(
                [
                    "GET  / HTTP/1.1",
                    "GET\t/ HTTP/1.1",
                    " GET / HTTP/1.1",
                    "GET / HTTP/1.1 ",
                    "GET / HTTP/2.0",
                    "GET / HTTP/3.0",
                ]
                .map(|line| {
                    case(line, move |bench: &Bench| {
                        let outcome =
                            bench.exchange(format!("{line}\r\nHost: a\r\n\r\n"), &["GET"]);
                        refused(&outcome, &[400, 501, 505]).or_else(|_| {
                            let line = &outcome.only()?.line;
                            let is_right =
                                matches!(line.as_str(), "GET / HTTP/1.1" | "GET / HTTP/1.0");
                            check(is_right, || outcome.told())
                        })
                    })
                }),
            )
            .collect(),
        },
    ]
}

fn hosts() -> Vec<Case> {
    let mut cases = vec![
        unfit("none", "GET / HTTP/1.1\r\n\r\n", &[400]),
        unfit("none but others", "GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", &[400]),
        unfit("twice the same", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", &[400]),
        unfit("two", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", &[400]),
        unfit("two apart", "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nhost: b\r\n\r\n", &[400]),
        unfit("two, one of them empty", "GET / HTTP/1.1\r\nHost:\r\nHost: b\r\n\r\n", &[400]),
    ];
    for host in [
        "a b",
        "a\tb",
        "user@a",
        "u:p@a",
        "a:99999",
        "a:b",
        "a:-1",
        "a:+80",
        "a:80:80",
        "a/b",
        "a, b",
        "a?b",
        "a#b",
        "[::1",
        "::1]",
        "[::1]x",
        "a\\b",
        "<a>",
        "\"a\"",
        "a{b}",
        "a|b",
        "a^b",
        "a`b",
        "http://a",
        ":80",
        "@",
        "a%zz",
        "[zz]",
        "\u{e9}.test",
    ] {
        cases.push(unfit(
            format!("{host:?}"),
            format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            &[400],
        ));
    }
    for host in ["a.test", "a.test:80", "127.0.0.1:8080", "[::1]", "A_b.test", "a-b"] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        cases.push(arrives(format!("{host:?} is one"), request, |outcome| {
            check(outcome.only()?.all("host").len() == 1, || outcome.told())
        }));
    }
    cases
}

fn absolute(target: &'static str, wanted: &'static str) -> Case {
    absolute_with("real.test", target, wanted)
}

fn absolute_with(host: &str, target: &'static str, wanted: &'static str) -> Case {
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    arrives(format!("{target} with {host}"), request, move |outcome| {
        let only = outcome.only()?;
        check(only.target() == wanted && only.all("host") == ["real.test"], || outcome.told())
    })
}

fn limit(name: &'static str, request: String) -> Case {
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange(&request, &["GET"]);
        check(outcome.forwarded.is_empty(), || "forwarded".to_owned())?;
        let status = outcome.status();
        check(matches!(status, 400 | 414 | 431 | 501), || outcome.told())?;
        check(!outcome.answers[0].body.is_empty(), || outcome.told())
    })
}
