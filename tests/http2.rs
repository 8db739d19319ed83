//! HTTP/2 from downstreams: the real binary, clients that keep the rules and clients that do not.
//! Each test names the section of RFC 9113, or the incident, that it is about.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;

use http2::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, Polite,
    RST_STREAM, Raw, SETTINGS, WINDOW_UPDATE, frame, get, request, whole,
};
use support::{Backend, GENEROUS, Start, Tollgate, nobody, wait_until};

/// RFC 9113 §3.3, §8.3: by prior knowledge, on the port that speaks HTTP/1.1 too.
#[test]
fn a_request_of_http_2_reaches_the_upstream_as_one_of_http_1_1() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        let asked = request("GET", "/a%2Fb//c?x=%20&y")
            .header("te", "trailers")
            .header("x-forwarded-for", "198.51.100.1")
            .header("x-own", "1")
            .body(())
            .unwrap();
        let answer = client.ask(asked, None).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
        assert_eq!(answer.headers["x-ratelimit-limit"], "1000000");
    });
    let seen = backend.last();
    assert_eq!(seen.line, "GET /a%2Fb//c?x=%20&y HTTP/1.1");
    assert_eq!(seen.all("host"), ["test"]);
    assert_eq!(seen.all("via"), ["2.0 tollgate"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.all("x-forwarded-host"), ["test"]);
    assert_eq!(seen.all("x-own"), ["1"]);
    assert_eq!(seen.all("te"), ["trailers"]);
    assert_eq!(seen.field("transfer-encoding"), None);
    assert_eq!(tollgate.get("/").status, 200, "and HTTP/1.1 beside it");
}

/// RFC 9113 §8.2.3: the pieces of a cookie are one field to HTTP/1.1.
#[test]
fn cookie_crumbs_are_joined() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        let mut asked = request("GET", "/");
        for crumb in ["a=1", "b=2", "c=3"] {
            asked = asked.header("cookie", crumb);
        }
        client.ask(asked.body(()).unwrap(), None).await.unwrap();
    });
    assert_eq!(backend.last().all("cookie"), ["a=1; b=2; c=3"]);
}

/// RFC 9113 §8.3.1: one authority, and it is a host and a port.
#[test]
fn one_authority_or_none_of_it() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let cases: [(&[(&str, &str)], bool); 8] = [
        (&[(":authority", "a.example")], true),
        (&[(":authority", "a.example"), ("host", "A.example")], true),
        (&[("host", "a.example:81")], true),
        (&[(":authority", "a.example"), ("host", "b.example")], false),
        (&[(":authority", "user@a.example")], false),
        (&[(":authority", "")], false),
        (&[("host", "a.example"), ("host", "a.example")], false),
        (&[], false),
    ];
    for (fields, is_fine) in cases {
        let before = backend.seen().len();
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        // Pseudo fields come first.
        let block = http2::block(&[&pseudo, fields].concat());
        let mut raw = Raw::connect(tollgate.data);
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
        // A refusal is a 400, a reset, or the end of all.
        loop {
            let answer = raw.frame();
            if answer.is_none_or(|it| matches!(it.kind, HEADERS | RST_STREAM | GOAWAY)) {
                break;
            }
        }
        assert_eq!(backend.seen().len() - before, usize::from(is_fine), "{fields:?}");
        if is_fine {
            assert_eq!(backend.last().all("host").len(), 1);
        }
    }
}

/// RFC 9110 §8.6: a length that is said twice would reach the upstream as two lines.
#[test]
fn one_length_or_none() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    for (lengths, content, is_fine) in [
        (vec!["5"], "hello", true),
        (vec!["5", "5"], "hello", false),
        (vec!["6", "5"], "hello", false),
        (vec!["0", "0"], "", false),
    ] {
        let before = backend.seen().len();
        let head = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
        let said: Vec<_> = lengths.iter().map(|it| ("content-length", *it)).collect();
        let block = http2::block(&[&head[..], &said].concat());
        let mut raw = Raw::connect(tollgate.data);
        raw.send(frame(HEADERS, END_HEADERS, 1, &block));
        raw.send(frame(DATA, END_STREAM, 1, content.as_bytes()));
        while raw.frame().is_some_and(|it| !matches!(it.kind, HEADERS | RST_STREAM | GOAWAY)) {}
        assert_eq!(backend.seen().len() - before, usize::from(is_fine), "{lengths:?}");
        if is_fine {
            assert_eq!(backend.last().all("content-length"), ["5"]);
        }
    }
}

/// RFC 9110 §6.5, RFC 9113 §8.1: trailers pass both ways, and what may not be one is dropped.
#[test]
fn trailers_pass_both_ways() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n\
                 2\r\nhi\r\n0\r\ngrpc-status: 0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
            );
        }
    });
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        let asked = request("POST", "/").header("te", "trailers").header("trailer", "x-checksum");
        let asked = asked.body(()).unwrap();
        let (answer, mut sending) = client.requests.send_request(asked, false).unwrap();
        sending.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "7".parse().unwrap());
        trailers.insert("content-length", "9".parse().unwrap());
        sending.send_trailers(trailers).unwrap();
        let answer = whole(answer.await.unwrap()).await.unwrap();
        assert_eq!(answer.body, b"hi");
        let trailers = answer.trailers.unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers.len(), 1);
    });
    let seen = backend.last();
    assert_eq!(seen.body, b"hello");
    assert_eq!(seen.trailers, [("x-checksum".to_owned(), "7".to_owned())]);
    assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
}

/// RFC 9113 §8.1.1: a body without a length is framed for HTTP/1.1, one with a length keeps it, and
/// none stays none, whatever the method.
#[test]
fn bodies_are_framed_for_the_upstream() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        for (method, length, body, framing) in [
            ("POST", None, Some("abc"), "chunked"),
            ("GET", None, Some("abc"), "chunked"),
            ("PUT", Some("3"), Some("abc"), "3"),
            ("POST", Some("0"), None, "0"),
            ("GET", None, None, ""),
        ] {
            let mut asked = request(method, "/");
            if let Some(length) = length {
                asked = asked.header("content-length", length);
            }
            let asked = asked.body(()).unwrap();
            let answer = client.ask(asked, body.map(str::as_bytes)).await.unwrap();
            assert_eq!(answer.status, 200);
            let seen = backend.last();
            let fields = [seen.all("content-length"), seen.all("transfer-encoding")].concat();
            assert_eq!(fields.join(","), framing, "{method}");
            assert_eq!(seen.body, body.unwrap_or_default().as_bytes(), "{method}");
        }
    });
}

/// A refusal over HTTP/2 is what it is over HTTP/1.1: to HEAD without a body, and never with fields
/// of a connection (RFC 9113 §8.2.2). The bucket is the same.
#[test]
fn refusals_and_buckets_are_those_of_http_1_1() {
    let backend = Backend::ok();
    let tiers = "default_tier: a\ntiers: { a: { per_minute: 3 } }\n";
    let tollgate = Start::default().upstream(backend.address).tiers(tiers).run();
    assert_eq!(tollgate.get("/").field("x-ratelimit-remaining"), Some("2"));
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        assert_eq!(client.get("/").await.headers["x-ratelimit-remaining"], "1");
        assert_eq!(client.get("/").await.headers["x-ratelimit-remaining"], "0");
        let denied = client.get("/").await;
        assert_eq!(denied.status, 429);
        let body = String::from_utf8(denied.body).unwrap();
        assert!(body.starts_with(r#"{"error":"Rate limit exceeded","retry_after":"#), "{body}");
        assert_eq!(denied.headers["proxy-status"], "tollgate; error=http_request_denied");
        assert!(!denied.headers.contains_key("connection"));

        let asked = request("HEAD", "/").body(()).unwrap();
        let denied = client.ask(asked, None).await.unwrap();
        assert_eq!((denied.status, denied.body.len()), (429, 0));
        assert_ne!(denied.headers["content-length"], "0");

        let asked = request("POST", "/").body(()).unwrap();
        let denied = client.ask(asked, Some(&[0; 10_000])).await.unwrap();
        assert_eq!(denied.status, 429, "a body that nobody wants is no trouble");
        let connect = http::Request::builder().method("CONNECT").uri("test:80").body(()).unwrap();
        assert_eq!(client.ask(connect, None).await.unwrap().status, 405);
    });
    assert_eq!(backend.seen().len(), 3);
    assert_eq!(tollgate.get("/").status, 429);
}

/// gRPC reads a status in `grpc-status` alone: 200, and trailers only.
#[test]
fn calls_of_grpc_are_refused_in_its_own_terms() {
    let tiers = "
default_tier: a
tiers: { a: { per_minute: 1 }, b: { per_minute: 100 } }
networks: { 127.0.0.2/32: b }
identities: { 'ip:127.0.0.3': deny }
";
    let tollgate = Start::default().upstream(nobody()).tiers(tiers).run();
    let call = |from: &'static str, path: &'static str| {
        let address = tollgate.data;
        http2::run(async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
            let mut client = Polite::over(socket.connect(address).await.unwrap()).await;
            let asked = request("POST", path).header("content-type", "application/grpc+proto");
            client.ask(asked.body(()).unwrap(), Some(b"\0\0\0\0\0")).await.unwrap()
        })
    };
    let code = |from, path| {
        let answer = call(from, path);
        assert_eq!((answer.status, answer.body.len()), (200, 0));
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert!(answer.headers.contains_key("grpc-message"));
        assert!(answer.headers.contains_key("proxy-status"));
        answer.headers["grpc-status"].to_str().unwrap().to_owned()
    };
    assert_eq!(code("127.0.0.2", "/a.B/C"), "14", "the upstream is not there");
    assert_eq!(code("127.0.0.3", "/a.B/C"), "7", "denied");
    assert_eq!(code("127.0.0.2", "/a%00"), "13", "malformed");
    // What the upstream never saw was given back: spend it where something listens.
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).tiers(tiers).run();
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        assert_eq!(client.get("/").await.status, 200);
        let asked = request("POST", "/a.B/C").header("content-type", "application/grpc");
        let denied = client.ask(asked.body(()).unwrap(), Some(b"")).await.unwrap();
        assert_eq!((denied.status, &denied.headers["grpc-status"]), (200, &"8".parse().unwrap()));
        let wait: u64 = denied.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait >= 1);
    });
}

/// RFC 9113 §8.1: an upstream that breaks off within a body is told as a reset, never as an end.
#[test]
fn a_body_that_breaks_off_ends_in_a_reset() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    });
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        for _ in 0..3 {
            let asked = request("GET", "/").body(()).unwrap();
            let error = client.ask(asked, None).await.unwrap_err();
            assert!(error.is_reset() && error.is_remote(), "{error}");
        }
    });
}

/// An answer that breaks off right behind its head has one all the same: no answer at all says that
/// the request may be sent again.
#[test]
fn a_head_goes_out_before_the_break_behind_it() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    });
    let tollgate = Tollgate::generous(&backend);
    for _ in 0..5 {
        let answer = tollgate.get("/");
        assert_eq!((answer.status, answer.is_complete), (200, false));
        let mut raw = Raw::connect(tollgate.data);
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/", &[])));
        let kinds =
            std::iter::from_fn(|| raw.frame()).filter(|it| it.stream == 1).map(|it| it.kind);
        assert_eq!(kinds.take(2).collect::<Vec<u8>>(), [HEADERS, RST_STREAM]);
    }
}

/// RFC 9110 §8.6: a 204 says no length, whatever the upstream says and whoever asks: clients of
/// HTTP/2 take one for a broken stream.
#[test]
fn a_204_says_no_length() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
        }
    });
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        for method in ["GET", "HEAD", "DELETE"] {
            let asked = request(method, "/").body(()).unwrap();
            let answer = client.ask(asked, None).await.unwrap();
            assert_eq!((answer.status, answer.headers.get("content-length")), (204, None));
        }
    });
    let asked = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = tollgate.connect().send(asked).answer_to("HEAD");
    assert_eq!((answer.status, answer.field("content-length")), (204, None));
}

/// RFC 9113 §5.4.2: a client that takes its request back takes it back from the upstream too.
#[test]
fn a_reset_cancels_the_upstream_request() {
    let (sender, left) = mpsc::channel();
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::spawn(move |mut connection| {
        if connection.request().is_some() {
            // Until the connection ends.
            connection.read_some(1);
            sender.lock().unwrap().send(()).ok();
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut raw = Raw::connect(tollgate.data);
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/", &[])));
    wait_until("the request is there", || backend.seen().len() == 1);
    raw.send(frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
    left.recv_timeout(support::PATIENCE).expect("the upstream request goes on");
    // And the connection is good for another.
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &get("/%00", &[])));
    assert_eq!(raw.frame_of(HEADERS).unwrap().stream, 3);
}

/// What has arrived is passed on at once, both ways and on many streams at a time.
#[test]
fn streams_flow_beside_each_other_and_at_once() {
    let backend = Backend::spawn(|mut connection| {
        let Some(seen) = connection.head() else { return };
        if seen.target() != "/echo" {
            connection
                .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
            // Held open until the other side leaves.
            connection.read_some(1);
            return;
        }
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // A chunk for a chunk: head, content and end of each are small enough to come as one.
        loop {
            let chunk = connection.read_some(64);
            if chunk.is_empty() || !connection.send(&chunk) || chunk.starts_with(b"0") {
                return;
            }
        }
    });
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        // Fifty that stay open.
        let mut events = Vec::new();
        for _ in 0..50 {
            client.requests.clone().ready().await.unwrap();
            let asked = request("GET", "/events").body(()).unwrap();
            let (answer, _) = client.requests.send_request(asked, true).unwrap();
            let mut body = answer.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "data: 1\n\n");
            events.push(body);
        }
        // And a conversation beside them.
        let asked = request("POST", "/echo").body(()).unwrap();
        let (answer, mut sending) = client.requests.send_request(asked, false).unwrap();
        let mut body = answer.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            sending.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(body.data().await.unwrap().unwrap(), word);
        }
        sending.send_data(Bytes::new(), true).unwrap();
        let rest = body.data().await.transpose().unwrap();
        assert!(rest.is_none_or(|rest| rest.is_empty()) && body.is_end_stream());
    });
}

/// RFC 9112 §9.3, RFC 9113 §8.1: an answer that comes before the request has ended is delivered.
#[test]
fn an_early_answer_reaches_the_client_during_its_upload() {
    let backend = Backend::spawn(|mut connection| {
        connection.head();
        connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
        connection.read_some(1 << 20);
    });
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        let asked = request("POST", "/").body(()).unwrap();
        let (answer, mut sending) = client.requests.send_request(asked, false).unwrap();
        sending.send_data(Bytes::from_static(b"begin"), false).unwrap();
        let answer = whole(answer.await.unwrap()).await.unwrap();
        assert_eq!((answer.status, &answer.body[..]), (413, &b"big"[..]));
        // What is left of the upload is of no use to anybody, and is told so.
        let reset = std::future::poll_fn(|cx| sending.poll_reset(cx)).await;
        assert!(reset.is_ok(), "{reset:?}");
    });
}

/// `max_body_bytes` and `body_timeout` hold for each stream.
#[test]
fn a_body_above_the_limit_is_413_and_one_that_stalls_408() {
    let backend = Backend::ok();
    let config = "server: { max_body_bytes: 1KiB, body_timeout: 300ms }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(GENEROUS).run();
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        let asked = request("POST", "/").header("content-length", "2000").body(()).unwrap();
        assert_eq!(client.ask(asked, Some(&[0; 2000])).await.unwrap().status, 413);
        let asked = request("POST", "/").body(()).unwrap();
        assert_eq!(client.ask(asked, Some(&[0; 2000])).await.unwrap().status, 413);
        let asked = request("POST", "/").body(()).unwrap();
        let (answer, mut sending) = client.requests.send_request(asked, false).unwrap();
        sending.send_data(Bytes::from_static(b"begin"), false).unwrap();
        assert_eq!(answer.await.unwrap().status(), 408);
        assert_eq!(client.get("/").await.status, 200);
    });
}

/// RFC 9113 §6.8: two GOAWAYs, so that a request that is on its way is not lost; what runs ends as
/// it should, and then the connection does.
#[test]
fn a_drain_says_goodbye_twice_and_cuts_nothing() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/slow" {
                released.lock().unwrap().recv().ok();
            }
            connection.ok("ok");
        }
    });
    let mut tollgate = Tollgate::generous(&backend);
    let mut raw = Raw::connect(tollgate.data);
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/slow", &[])));
    wait_until("the request is there", || backend.seen().len() == 1);
    tollgate.signal("TERM");
    let first = raw.frame_of(GOAWAY).unwrap();
    assert_eq!(&first.payload[..4], &0x7fff_ffff_u32.to_be_bytes(), "all of them are still taken");
    // One that was on its way when the first one left.
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &get("/late", &[])));
    let answer = raw.frame_of(HEADERS).unwrap();
    assert_eq!(answer.stream, 3);
    // The PING behind the first one was answered: from here on the last is known.
    raw.send(frame(PING, ACK, 0, &[0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54]));
    let second = raw.frame_of(GOAWAY).unwrap();
    assert_eq!(&second.payload[..4], &3_u32.to_be_bytes());
    release.send(()).unwrap();
    let answer = raw.frame_of(HEADERS).unwrap();
    assert_eq!(answer.stream, 1);
    while raw.frame().is_some() {}
    assert!(tollgate.wait().success());
    assert_eq!(backend.seen().len(), 2);
}

/// A connection without a request is let go, one whose client reads nothing is too, and neither
/// before its time: the answer's own pauses are not the client's.
#[test]
fn idle_connections_and_readers_that_take_nothing_are_let_go() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
        std::thread::sleep(Duration::from_millis(1500));
        connection.send(vec![b'x'; 1_000_000]);
    });
    let config = "server: { idle_timeout: 600ms }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(GENEROUS).run();
    let mut idle = Raw::connect(tollgate.data);
    assert!(idle.frame_of(GOAWAY).is_some());
    assert!(idle.frame_of(GOAWAY).is_none(), "and then it ends");

    // The window is 65,535 bytes: the answer stops there.
    let mut stuck = Raw::connect(tollgate.data);
    stuck.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/", &[])));
    let mut received = 0;
    let reset = loop {
        let frame = stuck.frame().expect("the stream is reset, not the connection");
        match frame.kind {
            DATA => received += frame.payload.len(),
            RST_STREAM => break frame,
            _ => {}
        }
    };
    assert_eq!((reset.stream, received), (1, 65_535));
}

/// The time of a head is one from its first frame to its last, however it drips (RFC 9110 §15.5.9).
#[test]
fn a_head_that_drips_is_cut() {
    let backend = Backend::ok();
    let config = "server: { header_timeout: 500ms }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(GENEROUS).run();
    let mut raw = Raw::connect(tollgate.data);
    // A whole request first: its time is over with it.
    raw.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/", &[])));
    assert_eq!(raw.frame_of(HEADERS).unwrap().stream, 1);
    std::thread::sleep(Duration::from_millis(800));
    raw.send(frame(HEADERS, END_STREAM, 3, &get("/", &[])));
    let mut writer = raw.stream.try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        use std::io::Write;
        // Byte by byte: of many frames the library has a bound of its own.
        let more = frame(CONTINUATION, 0, 3, &http2::block(&[("a", &"b".repeat(1000))]));
        let mut bytes = more.iter();
        while bytes.next().is_some_and(|byte| writer.write_all(&[*byte]).is_ok()) {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    while raw.frame().is_some() {}
    dripping.join().unwrap();
    assert_eq!(backend.seen().len(), 1);
    let cut = tollgate.metric(r#"tollgate_http2_connections_cut_total{reason="head_timeout"}"#);
    assert_eq!(cut, 1.0);

    let mut silent = Raw { stream: std::net::TcpStream::connect(tollgate.data).unwrap() };
    silent.stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    silent.send(&http2::PREFACE[..5]);
    assert_eq!(silent.frame(), None, "half a preface");
}

/// CVE-2019-9512, -9514, -9515, -9518, CVE-2023-44487, CVE-2025-8671, RUSTSEC-2024-0332: who floods
/// is cut, and everybody else is served.
#[test]
fn floods_are_cut_and_others_served() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let settings = frame(SETTINGS, 0, 0, b"");
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]);
    let unknown = frame(0xee, 0, 0, b"?");
    let empty = frame(DATA, 0, 1, b"");
    let endless = frame(CONTINUATION, 0, 1, &http2::block(&[("a", "b")]));
    let open = frame(HEADERS, END_HEADERS, 1, &get("/", &[]));
    let half = frame(HEADERS, 0, 1, &get("/", &[]));
    let bomb = frame(CONTINUATION, 0, 1, &http2::block(&[("a", &"b".repeat(4000))]));
    for (name, first, flood) in [
        ("pings", &b""[..], &ping),
        ("settings", b"", &settings),
        ("priorities", b"", &priority),
        ("unknown frames", b"", &unknown),
        ("empty frames", &open, &empty),
        ("a head without end", &half, &endless),
        ("a head that is too large", &half, &bomb),
    ] {
        let mut raw = Raw::connect(tollgate.data);
        raw.send(first);
        let mut reader = raw.stream.try_clone().unwrap();
        // What it answers is read, so that it is not the lack of a reader that ends it.
        let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let many = flood.repeat(100);
        let mut sent = 0;
        // More than the kernel's buffers hold.
        while sent < 3_000_000 && std::io::Write::write_all(&mut raw.stream, &many).is_ok() {
            sent += 100;
        }
        assert!(sent < 3_000_000, "{name}: not cut");
        drop(raw);
        reading.join().unwrap().ok();
        assert_eq!(tollgate.get("/").status, 200, "{name}");
    }
    let cut = tollgate.metric(r#"tollgate_http2_connections_cut_total{reason="flood"}"#);
    // Some are cut by the library first.
    assert!(cut >= 3.0, "{cut}");

    // Requests that are taken back at once, and streams that ask to be reset.
    for (name, second) in [
        ("rapid reset", frame(RST_STREAM, 0, 0, &8_u32.to_be_bytes())),
        ("made to reset", frame(WINDOW_UPDATE, 0, 0, &0_u32.to_be_bytes())),
    ] {
        let mut raw = Raw::connect(tollgate.data);
        let mut reader = raw.stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let mut sent = 0;
        for stream in (1_u32..400_000).step_by(2) {
            let mut pair = frame(HEADERS, END_STREAM | END_HEADERS, stream, &get("/", &[]));
            let mut second = second.clone();
            second[5..9].copy_from_slice(&stream.to_be_bytes());
            pair.extend(second);
            if std::io::Write::write_all(&mut raw.stream, &pair).is_err() {
                break;
            }
            sent += 1;
        }
        assert!(sent < 100_000, "{name}: not cut");
        reading.join().unwrap().ok();
        assert_eq!(tollgate.get("/").status, 200, "{name}");
    }
}

/// A field can cost a byte to send and a hundred to keep: as many as HTTP/1.1 may have, and no more.
#[test]
fn too_many_fields_are_431() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    http2::run(async {
        let mut client = Polite::connect(tollgate.data).await;
        for (fields, crumbs, status) in [(100, 0, 200), (99, 300, 200), (101, 0, 431)] {
            let mut asked = request("GET", "/");
            for index in 0..fields {
                // Some by the same name.
                asked = asked.header(format!("x-{}", index % 60), "a");
            }
            for _ in 0..crumbs {
                asked = asked.header("cookie", "a=b");
            }
            let answer = client.ask(asked.body(()).unwrap(), None).await.unwrap();
            assert_eq!(answer.status, status, "{fields} fields, {crumbs} crumbs");
            let whole = b"{\"error\":\"Request header fields too large\"}";
            assert!(status == 200 || answer.body == whole);
        }
    });
    assert_eq!(backend.seen().len(), 2);
}

/// RFC 9113 §5.1.2: more streams than are allowed are refused, so that they can be sent again.
#[test]
fn streams_above_the_bound_are_refused() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.read_some(1);
    });
    let tollgate = Tollgate::generous(&backend);
    let mut raw = Raw::connect(tollgate.data);
    for stream in (1_u32..).step_by(2).take(130) {
        raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get("/", &[])));
    }
    for stream in [257, 259_u32] {
        let refused = raw.frame_of(RST_STREAM).unwrap();
        assert_eq!((refused.stream, &refused.payload[..]), (stream, &7_u32.to_be_bytes()[..]));
    }
    wait_until("the others are there", || backend.seen().len() == 128);
}

/// A client that leaves takes all of its requests along.
#[test]
fn nothing_is_left_of_a_connection_that_ends() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.read_some(1);
    });
    let tollgate = Tollgate::generous(&backend);
    for _ in 0..5 {
        let before = backend.seen().len();
        let mut raw = Raw::connect(tollgate.data);
        for stream in (1_u32..).step_by(2).take(20) {
            raw.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get("/", &[])));
        }
        wait_until("they are there", || backend.seen().len() == before + 20);
    }
    wait_until("they are gone", || {
        tollgate.metric("tollgate_requests_in_flight") == 0.0
            && tollgate.metric(r#"tollgate_pool_connections{pool="upstream",state="active"}"#)
                == 0.0
    });
}
