//! Forwarding, byte by byte: the real binary between a client and a backend that are sockets.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

mod support;

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use support::{
    Backend, Client, GENEROUS, PATIENCE, Start, Tollgate, allow_descriptors, nobody, wait_until,
};

#[test]
fn a_request_arrives_as_it_was_sent_but_for_its_hop_by_hop_fields() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let request = "GET /a%2Fb//c;d=e/%7Euser?x=1&y=%20? HTTP/1.1\r\nHost: shop.test:8080\r\n\
        Accept: */*\r\nX-Twice: one\r\nX-Twice: two\r\nConnection: keep-alive, X-Secret\r\n\
        Connection: X-Other\r\nX-Secret: 1\r\nX-Other: 2\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nUpgrade: h2c\r\n\
        HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
    // One option that is no text does not hide those beside it.
    let odd = b"\r\nConnection: X-Third, \xff\r\nX-Third: 3\r\n\r\n";
    let request = [request.trim_end().as_bytes(), odd].concat();
    assert_eq!(tollgate.connect().send(request).answer().status, 200);
    let seen = backend.last();
    assert_eq!(seen.line, "GET /a%2Fb//c;d=e/%7Euser?x=1&y=%20? HTTP/1.1");
    assert_eq!(seen.all("host"), ["shop.test:8080"]);
    assert_eq!(seen.all("x-twice"), ["one", "two"]);
    assert_eq!(seen.all("te"), ["trailers"]);
    for gone in ["x-secret", "x-other", "x-third", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert_eq!(seen.field("http2-settings"), None);
    assert_eq!(seen.all("via"), ["1.1 tollgate"]);
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.all("x-forwarded-host"), ["shop.test:8080"]);
}

#[test]
fn an_untrusted_peer_s_forwarding_fields_are_replaced_and_a_trusted_one_s_extended() {
    let backend = Backend::ok();
    let spoof = "GET / HTTP/1.1\r\nHost: t\r\nX-Forwarded-For: 203.0.113.9\r\n\
        X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\n\
        Forwarded: for=203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nX_Forwarded_For: 1.1.1.1\r\n\
        Connection: X-Forwarded-For, Via, Host\r\nVia: 1.0 before\r\n\r\n";
    let tollgate = Tollgate::generous(&backend);
    assert_eq!(tollgate.connect().send(spoof).answer().status, 200);
    let seen = backend.last();
    assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["http"]);
    assert_eq!(seen.all("x-forwarded-host"), ["t"]);
    for gone in ["forwarded", "x-real-ip", "x_forwarded_for"] {
        assert_eq!(seen.field(gone), None, "{gone}");
    }
    assert_eq!(seen.all("via"), ["1.1 tollgate"]);
    assert_eq!(seen.all("host"), ["t"]);

    let trusting = Start::default()
        .upstream(backend.address)
        .config("server: { trusted_proxies: [127.0.0.0/8, 10.0.0.0/8] }")
        .run();
    let chain = spoof.replace("Connection: X-Forwarded-For, Via, Host\r\n", "");
    assert_eq!(trusting.connect().send(chain).answer().status, 200);
    let seen = backend.last();
    assert_eq!(seen.all("x-forwarded-for"), ["203.0.113.9, 10.1.2.3, 127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.all("via"), ["1.0 before", "1.1 tollgate"]);
}

#[test]
fn what_is_no_request_is_refused_and_never_forwarded() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let refused = [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400),
        ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n", 400),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
             Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ];
    for (request, status) in refused {
        let answer = tollgate.connect().send(request).answer();
        assert_eq!(answer.status, status, "{request:?}");
        if !answer.body.is_empty() {
            let reason = if status == 400 { "Bad request" } else { "Method not allowed" };
            assert_eq!(answer.text(), format!("{{\"error\":\"{reason}\"}}"), "{request:?}");
            let status = answer.field("proxy-status").unwrap();
            assert_eq!(status, "tollgate; error=http_request_error");
        }
    }
    assert_eq!(backend.seen().len(), 0);
}

#[test]
fn an_absolute_target_s_authority_replaces_host() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let request = "GET http://real.test/p?q HTTP/1.1\r\nHost: fake.test\r\n\r\n";
    assert_eq!(tollgate.connect().send(request).answer().status, 200);
    let seen = backend.last();
    assert_eq!((seen.target(), seen.all("host")), ("/p?q", vec!["real.test"]));
}

#[test]
fn one_framing_of_a_body_reaches_the_upstream() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    // Transfer-Encoding wins over Content-Length, and the connection ends after the answer.
    let mut client = tollgate.connect();
    client.send(
        "POST /both HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n\
         5;ext=1\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let answer = client.answer();
    if answer.status == 200 {
        let seen = backend.last();
        assert_eq!(seen.body, b"hello");
        assert_eq!(seen.all("content-length"), Vec::<&str>::new());
        assert_eq!(seen.all("transfer-encoding"), ["chunked"]);
    } else {
        assert_eq!(answer.status, 400);
    }
    client.read_to_end();
    assert!(backend.seen().iter().all(|seen| seen.target() != "/smuggled"));

    let sized = "POST /sized HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(tollgate.connect().send(sized).answer().status, 200);
    let seen = backend.last();
    assert_eq!((seen.all("content-length"), seen.body.as_slice()), (vec!["5"], &b"hello"[..]));
    assert_eq!(seen.field("transfer-encoding"), None);

    let empty = "POST /empty HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(tollgate.connect().send(empty).answer().status, 200);
    assert_eq!(backend.last().all("content-length"), ["0"]);

    let chunked_get =
        "GET /g HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    assert_eq!(tollgate.connect().send(chunked_get).answer().status, 200);
    assert_eq!(backend.last().body, b"hi");
}

#[test]
fn bodies_stream_both_ways_and_chunks_pass_at_once() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (arrived, first_arrived) = mpsc::channel();
    let backend = Backend::spawn(move |mut connection| {
        connection.head().unwrap();
        let mut first = Vec::new();
        while !first.ends_with(b"one\r\n") {
            first.extend(connection.read_some(64));
        }
        arrived.send(()).unwrap();
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npong\r\n");
        released.lock().unwrap().recv().unwrap();
        connection.send("3\r\nend\r\n0\r\n\r\n");
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    // The first chunk is there while the client still holds the rest back.
    first_arrived.recv_timeout(PATIENCE).unwrap();
    assert_eq!(client.head().status, 200);
    assert_eq!(client.read_exactly(9), b"4\r\npong\r\n");
    client.send("0\r\n\r\n");
    release.send(()).unwrap();
    assert_eq!(client.read_exactly(13), b"3\r\nend\r\n0\r\n\r\n");
}

#[test]
fn a_reader_that_takes_nothing_holds_the_upstream_back() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let backend = Backend::spawn(move |mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
        while connection.send(&chunk) {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // The count stops rising: what is in flight fits the sockets' buffers.
    let mut last = usize::MAX;
    wait_until("the upstream is held back", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = sent.load(Ordering::Acquire);
        std::mem::replace(&mut last, now) == now && now > 0
    });
    assert!(last < 1024, "{last} chunks of 64 KiB went somewhere");
    let resident = tollgate.resident();
    assert!(resident < 64 << 20, "{resident} bytes resident");
}

#[test]
fn head_and_bodiless_answers_keep_the_connection_in_step() {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            let answer = match seen.target() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n",
                _ => {
                    "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n\r\n"
                }
            };
            connection.send(answer);
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    let head = client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer_to("HEAD");
    assert_eq!((head.status, head.all("content-length")), (200, vec!["1234"]));
    assert_eq!(head.all("set-cookie"), ["a", "b"]);
    let none = client.get("/204");
    assert_eq!((none.status, none.field("content-length")), (204, None));
    assert_eq!(none.field("transfer-encoding"), None);
    assert_eq!(client.get("/304").status, 304);
    let again = client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").answer_to("HEAD");
    assert_eq!(again.status, 200);
    assert_eq!(backend.connections(), 1, "one connection served all four");
}

#[test]
fn the_connection_is_kept_on_both_sides() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .tiers(GENEROUS)
        .config("server: { workers: 1 }")
        .run();
    let mut client = tollgate.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "ok");
    }
    // Others that come one after another share it too.
    for _ in 0..10 {
        assert_eq!(tollgate.get("/").status, 200);
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            connection.ok(seen.target());
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    let requests: String =
        (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    client.send(requests);
    for n in 0..5 {
        assert_eq!(client.answer().text(), format!("/{n}"));
    }
}

#[test]
fn http_1_0_gets_no_chunks_and_is_closed() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection
                .send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n");
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hi"));
    assert_eq!(answer.field("transfer-encoding"), None);
    assert!(client.read_to_end().is_empty());
}

#[test]
fn trailers_pass_both_ways() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 2\r\nhi\r\n0\r\nX-Sum: 42\r\n\r\n",
            );
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Up\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nyo\r\n0\r\nX-Up: 7\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "42".to_owned())]);
    assert_eq!(backend.last().trailers, [("x-up".to_owned(), "7".to_owned())]);
}

#[test]
fn expect_100_continue_is_answered_when_the_body_is_wanted() {
    let backend = Backend::ok();
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send("data");
    assert_eq!(client.answer().status, 200);
    let seen = backend.last();
    assert_eq!((seen.body.as_slice(), seen.field("expect")), (&b"data"[..], None));
}

#[test]
fn a_refused_request_gets_no_100_continue_and_its_body_is_no_next_request() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .tiers("default_tier: t\ntiers: { t: { per_minute: 1 } }")
        .run();
    assert_eq!(tollgate.get("/").status, 200);
    let mut client = tollgate.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 40\r\nExpect: 100-continue\r\n\r\n");
    let head = client.head();
    assert_eq!(head.status, 429);
    client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n.....");
    client.read_to_end();
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn an_early_answer_reaches_the_client_during_its_upload() {
    let backend = Backend::spawn(|mut connection| {
        connection.head().unwrap();
        connection.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig");
        // Kept open for a while, so that what is unread does not reset the answer away.
        connection.read_some(1 << 20);
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nfirst");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (413, "big"));
}

#[test]
fn an_upstream_that_is_not_there_is_502() {
    let tollgate = Tollgate::in_front_of(nobody());
    let answer = tollgate.get("/");
    assert_eq!((answer.status, answer.text().as_str()), (502, r#"{"error":"Bad gateway"}"#));
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_refused"));
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert!(!answer.head.contains("127.0.0.1"));
    // It was checked and charged: it carries the limit's fields.
    assert_eq!(answer.field("x-ratelimit-limit"), Some("100"));
}

#[test]
fn garbage_half_heads_and_unasked_upgrades_are_502() {
    let answers: [&[u8]; 5] = [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    ];
    for bytes in answers {
        let backend = Backend::spawn(move |mut connection| {
            connection.request();
            connection.send(bytes);
        });
        let tollgate = Tollgate::generous(&backend);
        let answer = tollgate.get("/");
        assert_eq!(answer.status, 502, "{:?}", String::from_utf8_lossy(bytes));
        assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));
    }
}

#[test]
fn a_silent_upstream_is_504_after_the_response_timeout() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.read_some(1);
    });
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("upstream: { response_timeout: 200ms }")
        .run();
    let answer = tollgate.get("/");
    assert_eq!((answer.status, answer.text().as_str()), (504, r#"{"error":"Gateway timeout"}"#));
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=http_response_timeout"));
}

#[test]
fn a_body_that_breaks_off_is_passed_on_as_broken_off() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let backend = Backend::spawn(move |mut connection| {
            connection.request();
            connection.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n4\r\nhalf\r\n"));
        });
        let tollgate = Tollgate::generous(&backend);
        let answer = tollgate.get("/");
        assert_eq!(answer.status, 200);
        assert!(!answer.is_complete, "{framing}");
    }
}

#[test]
fn an_upstream_that_falls_silent_within_its_body_is_broken_off() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        connection.read_some(1);
    });
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("upstream: { idle_timeout: 200ms }")
        .run();
    let answer = tollgate.get("/");
    assert_eq!((answer.status, answer.is_complete, answer.text().as_str()), (200, false, "half"));
}

#[test]
fn a_stale_connection_is_never_the_client_s_problem() {
    // The upstream closes after each answer without saying so. Only a close that came before the
    // next request can be told from one that the request met.
    for method in ["GET", "POST"] {
        let closed = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&closed);
        let backend = Backend::spawn(move |mut connection| {
            connection.request();
            connection.ok("ok");
            drop(connection);
            counter.fetch_add(1, Ordering::AcqRel);
        });
        let tollgate = Start::default()
            .upstream(backend.address)
            .tiers(GENEROUS)
            .config("server: { workers: 1 }")
            .run();
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        for round in 1..=200 {
            assert_eq!(tollgate.connect().send(&request).answer().status, 200, "{method}");
            // A GET may meet the farewell while it is on its way: it is sent again. A POST may
            // not, and is promised a good connection only where the farewell has arrived.
            if method == "POST" {
                wait_until("the upstream has closed", || closed.load(Ordering::Acquire) == round);
            }
        }
    }
}

#[test]
fn a_request_that_may_have_had_an_effect_is_not_sent_twice() {
    let backend = Backend::spawn(|mut connection| {
        let first = connection.request();
        if first.is_some_and(|seen| seen.target() == "/warm") {
            connection.ok("ok");
            // The next one is read whole, and then the connection breaks.
            connection.request();
        }
    });
    for (request, sent) in [
        ("POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi", 1),
        ("PATCH /p HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 1),
        ("GET /p HTTP/1.1\r\nHost: a\r\n\r\n", 2),
    ] {
        let tollgate =
            Start::default().upstream(backend.address).config("server: { workers: 1 }").run();
        let before = backend.seen().len();
        assert_eq!(tollgate.get("/warm").status, 200);
        assert_eq!(tollgate.connect().send(request).answer().status, 502, "{request}");
        assert_eq!(backend.seen().len() - before, 1 + sent, "{request}");
    }
}

#[test]
fn bytes_after_an_answer_go_to_nobody() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\
                 Content-Length: 6\r\n\r\npoison",
            );
        }
    });
    let tollgate = Tollgate::generous(&backend);
    for _ in 0..20 {
        assert_eq!(tollgate.get("/").text(), "ok");
    }
}

#[test]
fn a_client_that_leaves_cancels_the_upstream_request() {
    let (gone, is_gone) = mpsc::channel();
    let backend = Backend::spawn(move |mut connection| {
        connection.request();
        // Ends only when tollgate closes.
        let rest = connection.read_some(1);
        gone.send(rest.is_empty()).unwrap();
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the backend has the request", || !backend.seen().is_empty());
    drop(client);
    assert!(is_gone.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn an_upgrade_becomes_a_tunnel() {
    let backend = Backend::spawn(|mut connection| {
        let seen = connection.request().unwrap();
        assert_eq!(seen.field("upgrade"), Some("websocket"));
        assert_eq!(seen.field("connection"), Some("upgrade"));
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: x\r\n\r\n\x01early",
        );
        loop {
            let bytes = connection.read_some(4096);
            if bytes.is_empty() || !connection.send(&bytes) {
                return;
            }
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    let head = client.head();
    assert_eq!((head.status, head.field("upgrade")), (101, Some("websocket")));
    assert_eq!(head.field("sec-websocket-accept"), Some("x"));
    assert_eq!(head.field("x-ratelimit-limit"), Some("1000000"));
    assert_eq!(client.read_exactly(6), b"\x01early");
    let payload: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    client.send(&payload);
    assert_eq!(client.read_exactly(payload.len()), payload);
    // The end of one side reaches the other.
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(client.read_to_end().is_empty());
}

#[test]
fn a_declined_upgrade_is_an_ordinary_answer() {
    let backend = Backend::spawn(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno");
        }
    });
    let tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.answer().text(), "no");
    assert_eq!(client.get("/").status, 426);
}

#[test]
fn a_head_that_drips_is_cut_and_an_idle_connection_closed() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { header_timeout: 200ms, idle_timeout: 300ms }")
        .run();
    let mut dripping = tollgate.connect();
    dripping.send("GET / HTTP/1.1\r\nHost: a\r\nX-Drip: ");
    let answer = dripping.answer();
    assert_eq!((answer.status, answer.text().as_str()), (408, r#"{"error":"Request timeout"}"#));
    assert!(dripping.read_to_end().is_empty());

    let mut silent = tollgate.connect();
    assert!(silent.read_to_end().is_empty());

    let mut idle = tollgate.connect();
    assert_eq!(idle.get("/").status, 200);
    assert!(idle.read_to_end().is_empty());
}

#[test]
fn a_body_that_stalls_is_408_and_one_above_the_limit_413() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { body_timeout: 200ms, max_body_bytes: 10 }")
        .run();
    let stalled = tollgate
        .connect()
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhal")
        .answer();
    assert_eq!((stalled.status, stalled.text().as_str()), (408, r#"{"error":"Request timeout"}"#));
    let announced = tollgate
        .connect()
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n")
        .answer();
    assert_eq!(announced.text(), r#"{"error":"Content too large"}"#);
    let chunked = tollgate
        .connect()
        .send(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n",
        )
        .answer();
    assert_eq!(chunked.status, 413);
    assert_eq!(backend.seen().len(), 0, "none of them arrived whole");
}

#[test]
fn heads_and_targets_above_the_limit_are_refused() {
    let backend = Backend::ok();
    let tollgate = Start::default()
        .upstream(backend.address)
        .config("server: { max_header_bytes: 8KiB }")
        .run();
    let long = "x".repeat(9000);
    let field = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n");
    assert_eq!(tollgate.connect().send(field).answer().status, 431);
    for length in [8192, 9000, 70_000, 1_000_000] {
        let target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length));
        for before in [false, true] {
            let mut client = tollgate.connect();
            assert!(!before || client.get("/").status == 200);
            let answer = client.send(&target).answer();
            assert_eq!((answer.status, &*answer.text()), (414, r#"{"error":"URI too long"}"#));
        }
    }
    let ok = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(7000));
    assert_eq!(tollgate.connect().send(ok).answer().status, 200);
}

#[test]
fn a_drain_cuts_nothing() {
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/slow" {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
                released.lock().unwrap().recv().unwrap();
                connection.send("half");
            } else {
                connection.ok("ok");
            }
        }
    });
    let mut tollgate = Tollgate::generous(&backend);
    let mut idle = tollgate.connect();
    assert_eq!(idle.get("/").status, 200);
    let mut slow = tollgate.connect();
    slow.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(slow.head().status, 200);
    tollgate.signal("TERM");
    wait_until("it says that it is not ready", || tollgate.admin("/readyz").status == 503);
    // Who was about to ask is answered, and told that it was the last time.
    let last = idle.get("/");
    assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    release.send(()).unwrap();
    assert_eq!(slow.read_exactly(8), b"halfhalf");
    assert!(tollgate.wait().success());
}

#[test]
fn a_web_socket_is_told_that_tollgate_goes_away() {
    let (frame, frames) = mpsc::channel();
    let backend = Backend::spawn(move |mut connection| {
        connection.request();
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        connection.send([0x81, 2, b'h', b'i']);
        let mut rest = Vec::new();
        connection.stream.read_to_end(&mut rest).ok();
        frame.send(rest).unwrap();
    });
    let mut tollgate = Tollgate::generous(&backend);
    let mut client = tollgate.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.head().status, 101);
    assert_eq!(client.read_exactly(4), [0x81, 2, b'h', b'i']);
    tollgate.signal("TERM");
    assert_eq!(client.read_to_end(), [0x88, 2, 0x03, 0xe9]);
    let masked = frames.recv_timeout(PATIENCE).unwrap();
    assert_eq!(masked[..2], [0x88, 0x82]);
    assert_eq!(u16::from_be_bytes([masked[6] ^ masked[2], masked[7] ^ masked[3]]), 1001);
    drop(client);
    assert!(tollgate.wait().success());
}

#[test]
fn a_second_signal_ends_it_now() {
    let backend = Backend::spawn(|mut connection| {
        connection.request();
        connection.read_some(1);
    });
    let mut tollgate = Tollgate::generous(&backend);
    let mut waiting = tollgate.connect();
    waiting.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the request is under way", || !backend.seen().is_empty());
    tollgate.signal("TERM");
    wait_until("it drains", || tollgate.admin("/readyz").status == 503);
    tollgate.signal("TERM");
    assert_eq!(tollgate.wait().code(), Some(1));
}

/// More at once than wait for a worker: the rest wait in the kernel, and nobody is turned away.
#[test]
fn a_crowd_that_comes_at_once_is_served_to_the_last() {
    const CROWD: usize = 1800;
    allow_descriptors();
    let backlog = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap_or_default();
    if backlog.trim().parse::<usize>().unwrap_or(0) < CROWD {
        println!("skipped: net.core.somaxconn is {backlog}");
        return;
    }
    let backend = Backend::ok();
    let config = "server: { workers: 1 }\n";
    let start = Start::default().upstream(backend.address).config(config).tiers(GENEROUS);
    let tollgate = start.run();
    // All of them are there, and have asked, before it sees the first.
    tollgate.signal("STOP");
    let mut crowd: Vec<Client> = (0..CROWD).map(|_| tollgate.connect()).collect();
    for client in &mut crowd {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    }
    tollgate.signal("CONT");
    for client in &mut crowd {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(tollgate.sum("tollgate_connections_refused_total"), 0.0);
}
