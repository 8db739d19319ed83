//! HTTP/2 before an origin of HTTP/1.1: what one allows in a string must not become the other's lines.

use std::time::Duration;

use crate::h2frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, PING, RST_STREAM, SETTINGS, block,
    frame, head, preface, push_string, wait_for,
};
use crate::harness::{Bench, Case, Checked, Line, Profile, case, check};

const GROUP: &str = "http2";
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

pub fn lines() -> Vec<Line> {
    vec![
        Line {
            name: "http2_names_and_values_make_no_lines",
            group: GROUP,
            source: "RFC 9113 §8.2.1",
            cases: names_and_values(),
        },
        Line {
            name: "http2_pseudo_fields_make_no_lines",
            group: GROUP,
            source: "RFC 9113 §8.1.1, §8.3",
            cases: pseudo(),
        },
        Line {
            name: "http2_fields_of_a_connection_are_malformed",
            group: GROUP,
            source: "RFC 9113 §8.2.2",
            cases: [
                ("connection", "close"),
                ("connection", "x-a"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "identity"),
                ("upgrade", "h2c"),
                ("upgrade", "websocket"),
                ("te", "gzip"),
                ("te", "trailers, gzip"),
            ]
            .iter()
            .map(|(name, value)| malformed(format!("{name}: {value}"), with(&[(name, value)])))
            .chain([arrives("te: trailers is fine", with(&[("te", "trailers")]), None, |seen| {
                check(seen.field("connection").is_none_or(|it| !it.contains("x-")), String::new)
            })])
            .collect(),
        },
        Line {
            name: "http2_content_length_agrees_with_the_content",
            group: GROUP,
            source: "RFC 9113 §8.1.1",
            cases: lengths(),
        },
        Line {
            name: "http2_cookies_are_joined",
            group: GROUP,
            source: "RFC 9113 §8.2.3",
            cases: vec![
                arrives(
                    "three",
                    with(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]),
                    None,
                    |seen| {
                        check(seen.all("cookie") == ["a=1; b=2; c=3"], || {
                            format!("{:?}", seen.fields)
                        })
                    },
                ),
                arrives("one", with(&[("cookie", "a=1; b=2")]), None, |seen| {
                    check(seen.all("cookie") == ["a=1; b=2"], || format!("{:?}", seen.fields))
                }),
            ],
        },
        Line {
            name: "http2_one_host_from_the_authority",
            group: GROUP,
            source: "RFC 9113 §8.3.1",
            cases: hosts(),
        },
        Line {
            name: "http2_bodies_are_framed_for_the_origin",
            group: GROUP,
            source: "RFC 9112 §6",
            cases: vec![
                arrives("without content", with(&[]), None, |seen| {
                    check(seen.is_framed_once() && seen.body.is_empty(), || format!("{seen:?}"))
                }),
                arrives("of unknown length", post(&[]), Some("hello"), |seen| {
                    check(seen.is_framed_once() && seen.body == b"hello", || format!("{seen:?}"))
                }),
                arrives(
                    "of a known length",
                    post(&[("content-length", "5")]),
                    Some("hello"),
                    |seen| {
                        check(seen.is_framed_once() && seen.body == b"hello", || {
                            format!("{seen:?}")
                        })
                    },
                ),
                arrives(
                    "what looks like a request",
                    post(&[]),
                    Some("0\r\n\r\nGET /in HTTP/1.1\r\n\r\n"),
                    |seen| {
                        let is_whole = seen.body == b"0\r\n\r\nGET /in HTTP/1.1\r\n\r\n";
                        check(seen.is_framed_once() && is_whole, || format!("{seen:?}"))
                    },
                ),
                arrives("an empty one", post(&[("content-length", "0")]), Some(""), |seen| {
                    check(seen.is_framed_once() && seen.body.is_empty(), || format!("{seen:?}"))
                }),
            ],
        },
        Line {
            name: "http2_floods_hurt_nobody_else",
            group: GROUP,
            source: "RFC 9113 §10.5; CVE-2023-44487, CVE-2019-9511 to 9518, RUSTSEC-2024-0332",
            cases: floods(),
        },
    ]
}

fn fields(list: &[(&str, &str)]) -> Fields {
    list.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

fn asked(method: &str, further: &[(&str, &str)]) -> Fields {
    let mut all =
        fields(&[(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "a")]);
    all.extend(fields(further));
    all
}

fn with(further: &[(&str, &str)]) -> Fields {
    asked("GET", further)
}

fn post(further: &[(&str, &str)]) -> Fields {
    asked("POST", further)
}

fn replaced(name: &str, value: &str) -> Fields {
    let mut all = with(&[]);
    for (it, old) in &mut all {
        if it == name.as_bytes() {
            *old = value.as_bytes().to_vec();
        }
    }
    all
}

fn without(name: &str) -> Fields {
    with(&[]).into_iter().filter(|(it, _)| it != name.as_bytes()).collect()
}

/// Nothing of it reaches the origin, and its stream ends badly.
fn malformed(name: impl Into<String>, fields: Fields) -> Case {
    let bytes = head(1, END_STREAM, &fields);
    refused_frames(name, bytes)
}

fn refused_frames(name: impl Into<String>, bytes: Vec<u8>) -> Case {
    case(name, move |bench: &Bench| {
        let mut wire = bench.connect();
        wire.send(preface()).send(&bytes);
        let end = wait_for(&mut wire, 1);
        let seen = bench.origin.forwarded();
        check(seen.iter().all(|it| !it.is_complete), || format!("the origin got {seen:?}"))?;
        check(!matches!(end, End::Silence | End::Answer(200 | 204 | 206 | 304, _)), || {
            format!("{end:?}")
        })?;
        still_serves(bench)
    })
    .with(Profile::Http2)
}

fn arrives(
    name: impl Into<String>,
    fields: Fields,
    content: Option<&'static str>,
    looks: impl Fn(&crate::harness::Message) -> Checked + Send + Sync + 'static,
) -> Case {
    case(name, move |bench: &Bench| {
        let mut wire = bench.connect();
        wire.send(preface());
        match content {
            None => wire.send(head(1, END_STREAM, &fields)),
            Some(content) => {
                wire.send(head(1, 0, &fields));
                wire.send(frame(DATA, END_STREAM, 1, content.as_bytes()))
            }
        };
        let end = wait_for(&mut wire, 1);
        check(end == End::Answer(200, b"ok".to_vec()), || format!("{end:?}"))?;
        match bench.origin.forwarded().as_slice() {
            [only] => looks(only),
            all => Err(format!("the origin got {} requests", all.len())),
        }
    })
    .with(Profile::Http2)
}

/// Another client's request is answered.
fn still_serves(bench: &Bench) -> Checked {
    let mut wire = bench.connect();
    wire.send(preface()).send(head(1, END_STREAM, &with(&[])));
    let end = wait_for(&mut wire, 1);
    check(end == End::Answer(200, b"ok".to_vec()), || format!("another client got {end:?}"))
}

fn names_and_values() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        "X-Upper",
        "x-uppeR",
        "x y",
        "x:y",
        "x\ny",
        "x\r\ny: z\r\n",
        "x\r",
        "x\0",
        "",
        " x",
        "x ",
        "x\t",
        "x\x7f",
        "x\u{e9}",
        "host: b\r\nx",
        "x(y)",
        "x,y",
        "x\"y",
        "content-length: 5\r\nx",
    ]
    .iter()
    .map(|name| malformed(format!("the name {name:?}"), with(&[(name, "z")])))
    .collect();
    for value in [
        "a\r\nb",
        "a\nb",
        "a\rb",
        "a\0b",
        "\r",
        "\n",
        "\0",
        "a\r\nTransfer-Encoding: chunked",
        "a\r\n\r\nGET /in HTTP/1.1",
        " a",
        "a ",
        "\ta",
        "a\t",
    ] {
        cases.push(malformed(format!("the value {value:?}"), with(&[("x", value)])));
    }
    for value in ["a\tb", "\u{e9}", "", "a:b"] {
        let wanted: String = value.bytes().map(char::from).collect();
        cases.push(arrives(
            format!("the value {value:?} is fine"),
            with(&[("x", value)]),
            None,
            move |seen| check(seen.all("x") == [wanted.as_str()], || format!("{:?}", seen.fields)),
        ));
    }
    cases
}

fn pseudo() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, values) in [
        (
            ":path",
            &[
                "/ HTTP/1.1\r\nX: y",
                "/a\r\nb",
                "/a\nb",
                "/a\0b",
                "/a b",
                "",
                "a",
                "*",
                "?q",
                "a/b",
                "http://b/",
                "/a\tb",
            ][..],
        ),
        (
            ":method",
            &["GET / HTTP/1.1\r\nX: y\r\n", "G T", "GET\r\n", "GET\n", "", "GET\0", "GE:T", "G@T"],
        ),
        (":scheme", &["http\r\nx: y", "ht tp", "http://b/?", "", "http\0", "h\ttp"]),
        (
            ":authority",
            &[
                "a\r\nX: y",
                "a\nb",
                "a b",
                "a/b",
                "u@a",
                "u:p@a",
                "a:b",
                "a#b",
                "a?b",
                "a\0",
                "[::1",
                "a\\b",
            ],
        ),
    ] {
        for value in values {
            cases.push(malformed(format!("{name} {value:?}"), replaced(name, value)));
        }
    }
    for name in [":method", ":scheme", ":path"] {
        cases.push(malformed(format!("no {name}"), without(name)));
    }
    for name in [":method", ":scheme", ":path", ":authority"] {
        let mut twice = with(&[]);
        let again = twice.iter().find(|(it, _)| it == name.as_bytes()).cloned();
        twice.insert(4, again.unwrap_or_default());
        cases.push(malformed(format!("two {name}"), twice));
        let mut late = without(name);
        late.extend(fields(&[("x", "y"), (name, "/late")]));
        cases.push(malformed(format!("{name} behind a field"), late));
    }
    for (name, value) in
        [(":x", "y"), (":status", "200"), (":protocol", "websocket"), (":", "y"), (":Path", "/")]
    {
        let mut odd = with(&[]);
        odd.insert(2, (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
        cases.push(malformed(format!("{name}: {value}"), odd));
    }
    let connect = fields(&[(":method", "CONNECT"), (":authority", "127.0.0.1:22")]);
    cases.push(malformed("CONNECT", connect));
    cases.push(malformed("CONNECT with a path", replaced(":method", "CONNECT")));
    let trailers = [
        head(1, 0, &post(&[])),
        frame(DATA, 0, 1, b"hello"),
        head(1, END_STREAM, &[(":path", "/late"), ("x", "y")]),
    ];
    cases.push(
        refused_frames("a pseudo field in trailers", trailers.concat())
            .known("h2 leaves it out of the trailers and goes on, so that nothing of it arrives"),
    );
    for path in ["/a#b", "/a?q#b"] {
        let bytes = head(1, END_STREAM, &replaced(":path", path));
        cases.push(
            case(format!("a fragment is cut or refused, {path}"), move |bench: &Bench| {
                let mut wire = bench.connect();
                wire.send(preface()).send(&bytes);
                wait_for(&mut wire, 1);
                let seen = bench.origin.forwarded();
                let is_there = |it: &str| it.contains('#') || it.contains("%23");
                check(!seen.iter().any(|it| is_there(it.target())), || format!("{seen:?}"))
            })
            .with(Profile::Http2),
        );
    }
    cases
}

fn lengths() -> Vec<Case> {
    let said = |length: &str, content: &str| {
        let bytes = [
            head(1, 0, &post(&[("content-length", length)])),
            frame(DATA, END_STREAM, 1, content.as_bytes()),
        ];
        refused_frames(format!("{length:?} for {}", content.len()), bytes.concat())
    };
    vec![
        said("5", "abc"),
        said("5", "abcdefgh"),
        said("0", "abc"),
        said("5", ""),
        said("+5", "hello"),
        said("0x5", "hello"),
        said("5, 6", "hello"),
        said("", "hello"),
        said("18446744073709551621", "hello"),
        refused_frames("5 and no content", head(1, END_STREAM, &post(&[("content-length", "5")]))),
        refused_frames(
            "two that differ",
            [
                head(1, 0, &post(&[("content-length", "5"), ("content-length", "6")])),
                frame(DATA, END_STREAM, 1, b"hello"),
            ]
            .concat(),
        ),
    ]
}

fn hosts() -> Vec<Case> {
    let is_a = |seen: &crate::harness::Message| {
        check(seen.all("host") == ["a"], || format!("{:?}", seen.fields))
    };
    let lenient = |name: &str, fields: Fields, wanted: &'static str| {
        let bytes = head(1, END_STREAM, &fields);
        case(name, move |bench: &Bench| {
            let mut wire = bench.connect();
            wire.send(preface()).send(&bytes);
            wait_for(&mut wire, 1);
            let seen = bench.origin.forwarded();
            check(seen.iter().all(|it| it.all("host") == [wanted]), || format!("{seen:?}"))
        })
        .with(Profile::Http2)
    };
    let mut alone = without(":authority");
    alone.extend(fields(&[("host", "a")]));
    vec![
        arrives("the authority alone", with(&[]), None, is_a),
        arrives("a host that says the same", with(&[("host", "a")]), None, is_a),
        lenient("a host that differs", with(&[("host", "b")]), "a"),
        lenient("two hosts", with(&[("host", "b"), ("host", "a")]), "a"),
        lenient("a host alone", alone, "a"),
        malformed("neither", without(":authority")),
    ]
}

fn floods() -> Vec<Case> {
    let flood = |name: &str, bytes: Vec<u8>| {
        case(name, move |bench: &Bench| {
            still_serves(bench)?;
            let before = bench.subject.resident();
            let mut wire = bench.connect();
            wire.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
            wire.send(preface()).send(&bytes);
            wire.wait(crate::harness::QUIET * 2, |_| false);
            still_serves(bench)?;
            let grown = bench.subject.resident().saturating_sub(before);
            check(grown < 64 << 20, || format!("grown by {grown} bytes"))
        })
        .with(Profile::Http2)
    };
    let streams = |count: u32| (0..count).map(|number| number * 2 + 1);
    let resets: Vec<u8> = streams(10_000)
        .flat_map(|stream| {
            [head(stream, END_STREAM, &with(&[])), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
                .concat()
        })
        .collect();
    // CVE-2025-8671: the server is made to reset, by frames that are wrong.
    let made: Vec<u8> = streams(10_000)
        .flat_map(|stream| {
            let wrong = frame(crate::h2frames::WINDOW_UPDATE, 0, stream, &[0, 0, 0, 0]);
            [head(stream, END_STREAM, &with(&[])), wrong].concat()
        })
        .collect();
    let mut continued = frame(HEADERS, 0, 1, &block(&with(&[])));
    for _ in 0..20_000 {
        continued.extend(frame(CONTINUATION, 0, 1, &block(&[("x", "y".repeat(1000))])));
    }
    let empty: Vec<u8> = frame(CONTINUATION, 0, 1, b"").repeat(100_000);
    let mut bomb = block(&with(&[]));
    bomb.push(0x40);
    push_string(&mut bomb, b"x");
    push_string(&mut bomb, &[b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let bombs: Vec<u8> = streams(50)
        .flat_map(|stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb))
        .collect();
    vec![
        flood("rapid resets", resets),
        flood("resets that the server is made to send", made),
        flood("CONTINUATION without end", continued),
        flood("empty CONTINUATION", [frame(HEADERS, 0, 1, &block(&with(&[]))), empty].concat()),
        flood("a bomb of HPACK", bombs),
        flood("PING", frame(PING, 0, 0, &[0; 8]).repeat(200_000)),
        flood("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(100_000)),
        flood(
            "empty DATA",
            [head(1, 0, &post(&[])), frame(DATA, 0, 1, b"").repeat(300_000)].concat(),
        ),
        flood(
            "a thousand streams at once",
            streams(1000).flat_map(|it| head(it, END_STREAM, &with(&[]))).collect(),
        ),
    ]
}
