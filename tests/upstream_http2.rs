//! HTTP/2 towards the upstream: the real binary before a backend that speaks it without TLS.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/http2.rs"]
mod http2;
#[path = "support/http2_backend.rs"]
mod http2_backend;
mod support;

use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Response};
use support::{Backend, GENEROUS, Start, Tollgate, wait_until};

use http2::{GOAWAY, Polite, SETTINGS, frame, request, run, whole};
use http2_backend::{How, Http2Backend};

fn in_front_of(backend: &Http2Backend) -> Tollgate {
    with(&backend.h2c(), "")
}

/// One worker, so that what one does is what all do.
fn with(url: &str, upstream: &str) -> Tollgate {
    let config = format!("server: {{ workers: 1 }}\nupstream: {{ url: '{url}'{upstream} }}\n");
    Start::default().config(&config).tiers(GENEROUS).run()
}

#[test]
fn one_connection_carries_many_requests_at_once() {
    let together = Arc::new(tokio::sync::Barrier::new(20));
    let backend = Http2Backend::spawn(move |mut exchange| {
        let together = Arc::clone(&together);
        async move {
            // None is answered before all of them are there.
            together.wait().await;
            exchange.ok("ok");
        }
    });
    let tollgate = in_front_of(&backend);
    let mut clients: Vec<_> = (0..20).map(|_| tollgate.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{}", answer.head);
        assert!(answer.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", answer.head);
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_request_is_written_as_http2_wants_it() {
    let backend = Http2Backend::ok();
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send(
        "POST /a%2Fb?c=d HTTP/1.1\r\nHost: Example.test:81\r\nConnection: keep-alive, x-gone\r\n\
         X-Gone: 1\r\nKeep-Alive: 1\r\nTE: trailers, deflate\r\nExpect: 100-continue\r\n\
         Cookie: a=1; b=2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);
    let head = backend.last();
    assert_eq!(head.version, http::Version::HTTP_2);
    assert_eq!(head.uri.to_string(), "http://Example.test:81/a%2Fb?c=d");
    for gone in ["host", "connection", "x-gone", "keep-alive", "transfer-encoding", "expect"] {
        assert!(!head.headers.contains_key(gone), "{gone}: {:?}", head.headers);
    }
    assert_eq!(head.headers["te"], "trailers");
    assert_eq!(head.headers["cookie"], "a=1; b=2");
    assert_eq!(head.headers["via"], "1.1 tollgate");
    assert_eq!(head.headers["x-forwarded-host"], "Example.test:81");

    // HTTP/1.0 has no Host to tell; the upstream is asked by its own name.
    let answer = tollgate.connect().send("OPTIONS * HTTP/1.0\r\n\r\n").answer();
    assert_eq!(answer.status, 200);
    let head = backend.last();
    assert_eq!(head.uri.authority().unwrap().as_str(), backend.address.to_string());
    assert_eq!(head.uri.path(), "*");
}

#[test]
fn bodies_and_trailers_go_both_ways() {
    let got = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&got);
    let backend = Http2Backend::spawn(move |mut exchange| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().unwrap() = Some(exchange.read().await.unwrap());
            let response = Response::builder().header("trailer", "grpc-status").body(()).unwrap();
            let mut stream = exchange.respond.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(b"message"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        }
    });
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send(
        "POST /svc/Call HTTP/1.1\r\nHost: test\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
         Transfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "message"));
    assert_eq!(answer.trailers, [("grpc-status".to_owned(), "0".to_owned())]);
    let (body, trailers) = got.lock().unwrap().take().unwrap();
    assert_eq!(body, b"hello");
    assert_eq!(trailers.unwrap()["x-sum"], "7");
}

#[test]
fn an_answer_without_a_body_and_one_to_head_leave_the_connection_as_it_was() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let status = if exchange.head.uri.path() == "/304" { 304 } else { 200 };
        let response = Response::builder().status(status).header("content-length", "7");
        exchange.respond.send_response(response.body(()).unwrap(), true).unwrap();
    });
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    for _ in 0..3 {
        client.send("HEAD /x HTTP/1.1\r\nHost: test\r\n\r\n");
        let answer = client.answer_to("HEAD");
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("7")));
        assert_eq!(client.get("/304").status, 304);
    }
    assert_eq!((backend.connections(), backend.requests()), (1, 6));
}

#[test]
fn no_more_streams_than_the_upstream_allows_and_no_more_connections_than_may_be() {
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let permits = Arc::clone(&release);
    let how = How { streams_max: Some(2), ..How::default() };
    let backend = Http2Backend::spawn_with(how, move |mut exchange| {
        let permits = Arc::clone(&permits);
        async move {
            tokio::select! {
                permit = permits.acquire() => {
                    permit.unwrap().forget();
                    exchange.ok("ok");
                }
                _ = exchange.reset() => {}
            }
        }
    });
    let tollgate = with(&backend.h2c(), ", max_idle_connections: 2, connect_timeout: 500ms");
    let ask = || {
        let mut client = tollgate.connect();
        client.send("GET /x HTTP/1.1\r\nHost: test\r\n\r\n");
        client
    };
    let mut clients: Vec<_> = (0..4).map(|_| ask()).collect();
    wait_until("all four are there", || backend.requests() == 4);
    assert_eq!(backend.connections(), 2);
    // A fifth waits, and no longer than for a connection.
    let answer = ask().answer();
    assert_eq!(answer.status, 504);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_timeout"));
    // Whoever leaves makes room: the stream is reset, and then another may begin.
    drop(clients.pop());
    wait_until("the stream is reset", || !backend.seen.resets.lock().unwrap().is_empty());
    assert_eq!(backend.seen.resets.lock().unwrap()[0], Reason::CANCEL);
    clients.push(ask());
    wait_until("the next one is there", || backend.requests() == 5);
    // One that waits is served when another ends, in its time.
    let mut waiting = ask();
    release.add_permits(1);
    wait_until("the one that waited is there", || backend.requests() == 6);
    release.add_permits(10);
    for client in clients.iter_mut().chain([&mut waiting]) {
        assert_eq!(client.answer().status, 200);
    }
    assert!(backend.seen.most_open.load(Ordering::SeqCst) <= 2);
    assert_eq!(backend.connections(), 2);
}

#[test]
fn an_answer_that_is_complete_ends_an_upload_that_is_not() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        // Reads nothing of the body, so that its window is soon full.
        let response = Response::builder().status(413).body(()).unwrap();
        exchange.respond.send_response(response, true).unwrap();
        exchange.reset().await;
    });
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send("POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 100000000\r\n\r\n");
    let mut stream = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let chunk = vec![b'x'; 1 << 16];
        while stream.write_all(&chunk).is_ok() {}
    });
    assert_eq!(client.answer().status, 413);
    wait_until("the stream is reset", || !backend.seen.resets.lock().unwrap().is_empty());
    drop(client);
    sending.join().unwrap();
    // The connection is as good as before.
    assert_eq!(tollgate.get("/x").status, 413);
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_upload_that_breaks_off_resets_the_stream() {
    let outcome = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&outcome);
    let backend = Http2Backend::spawn(move |mut exchange| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().unwrap() = Some(exchange.read().await.map(|(body, _)| body.len()));
        }
    });
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send("POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhello");
    wait_until("it is under way", || backend.requests() == 1);
    drop(client);
    wait_until("the upload has ended", || outcome.lock().unwrap().is_some());
    let outcome = outcome.lock().unwrap().take().unwrap();
    assert!(outcome.as_ref().is_err_and(|it| it.is_reset()), "{outcome:?}");
}

#[test]
fn an_answer_that_is_reset_is_passed_on_as_broken_off() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(b"some"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        stream.send_reset(Reason::INTERNAL_ERROR);
    });
    let tollgate = in_front_of(&backend);
    let answer = tollgate.get("/x");
    assert_eq!((answer.status, answer.text().as_str()), (200, "some"));
    assert!(!answer.is_complete);
}

#[test]
fn a_request_that_the_upstream_gave_up_is_not_sent_again() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        exchange.respond.send_reset(Reason::INTERNAL_ERROR);
    });
    let tollgate = in_front_of(&backend);
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));
    assert_eq!(backend.requests(), 1);
}

#[test]
fn what_the_upstream_refused_goes_out_again_whatever_the_method() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let count = exchange.seen.heads.lock().unwrap().len();
        match count {
            ..=2 => exchange.respond.send_reset(Reason::REFUSED_STREAM),
            _ => exchange.ok("ok"),
        }
    });
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send("POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(backend.requests(), 3);
}

#[test]
fn what_is_refused_for_ever_ends_in_a_502() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        exchange.respond.send_reset(Reason::REFUSED_STREAM);
    });
    let tollgate = in_front_of(&backend);
    assert_eq!(tollgate.get("/x").status, 502);
    assert_eq!(backend.requests(), 4);
}

#[test]
fn a_connection_that_said_goodbye_takes_no_new_request_and_none_fails() {
    let how = How { goodbye_after: Some(3), ..How::default() };
    let backend = Http2Backend::spawn_with(how, |mut exchange| async move { exchange.ok("ok") });
    let tollgate = in_front_of(&backend);
    let mut clients: Vec<_> = (0..8).map(|_| tollgate.connect()).collect();
    for _ in 0..10 {
        for client in &mut clients {
            client.send("POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.answer().status, 200);
        }
    }
    assert!(backend.connections() >= 10, "{}", backend.connections());
}

#[test]
fn an_upstream_that_says_goodbye_at_once_is_a_502() {
    let backend = Backend::spawn(|mut connection| {
        connection.send(frame(SETTINGS, 0, 0, &[]));
        connection.send(frame(GOAWAY, 0, 0, &[0; 8]));
        while !connection.read_some(1 << 16).is_empty() {}
    });
    let tollgate = with(&format!("h2c://{}", backend.address), "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));
    assert!(backend.connections() <= 5, "{}", backend.connections());
}

#[test]
fn an_upstream_that_speaks_no_http2_is_a_502_and_the_log_says_so() {
    let backend = Backend::spawn(|mut connection| {
        connection.read_some(1 << 16);
        connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        while !connection.read_some(1 << 16).is_empty() {}
    });
    let tollgate = with(&format!("h2c://{}", backend.address), "");
    for _ in 0..5 {
        let answer = tollgate.get("/x");
        assert_eq!(answer.status, 502);
        assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));
        assert!(!answer.head.contains("127.0.0.1") && !answer.text().contains("127.0.0.1"));
    }
    wait_until("the log says so", || tollgate.log().contains("the upstream is refused"));
    assert_eq!(tollgate.log().matches("the upstream is refused").count(), 1, "{}", tollgate.log());
}

#[test]
fn an_upstream_that_never_says_its_settings_is_a_504() {
    let backend =
        Backend::spawn(|mut connection| while !connection.read_some(1 << 16).is_empty() {});
    let tollgate = with(&format!("h2c://{}", backend.address), ", connect_timeout: 300ms");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_timeout"));
}

#[test]
fn an_upstream_that_is_not_there_or_is_silent_is_told_truthfully() {
    let tollgate = with(&format!("h2c://{}", support::nobody()), "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_refused"));

    let backend = Http2Backend::spawn(|mut exchange| async move {
        exchange.reset().await;
    });
    let tollgate = with(&backend.h2c(), ", response_timeout: 300ms");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=http_response_timeout"));
    wait_until("the stream is reset", || !backend.seen.resets.lock().unwrap().is_empty());
}

#[test]
fn an_upgrade_over_h2c_is_an_ordinary_request() {
    let backend = Http2Backend::ok();
    let tollgate = in_front_of(&backend);
    let mut client = tollgate.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);
    assert!(!backend.last().headers.contains_key("upgrade"));
}

#[test]
fn idle_connections_are_closed() {
    let backend = Http2Backend::ok();
    let tollgate = with(&backend.h2c(), ", idle_timeout: 300ms");
    assert_eq!(tollgate.get("/x").status, 200);
    wait_until("it is closed", || backend.seen.ended.load(Ordering::SeqCst) == 1);
    assert_eq!(tollgate.get("/x").status, 200);
    assert_eq!(backend.connections(), 2);
}

#[test]
fn a_connection_that_was_closed_while_idle_is_no_reason_to_fail() {
    let stop = Arc::new(Mutex::new(Vec::<std::net::TcpStream>::new()));
    let kept = Arc::clone(&stop);
    let inner = Http2Backend::ok();
    let to = inner.address;
    // Stands between, and cuts without a word.
    let relay = Backend::spawn(move |mut connection| {
        let mut upstream = std::net::TcpStream::connect(to).unwrap();
        kept.lock().unwrap().push(connection.stream.try_clone().unwrap());
        let (mut back, mut down) =
            (upstream.try_clone().unwrap(), connection.stream.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut back, &mut down).ok());
        loop {
            let bytes = connection.read_some(1 << 16);
            if bytes.is_empty() || upstream.write_all(&bytes).is_err() {
                break;
            }
        }
        upstream.shutdown(std::net::Shutdown::Both).ok();
    });
    let tollgate = with(&format!("h2c://{}", relay.address), "");
    let mut client = tollgate.connect();
    for _ in 0..20 {
        client.send("POST /x HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.answer().status, 200);
        for stream in stop.lock().unwrap().drain(..) {
            stream.shutdown(std::net::Shutdown::Both).ok();
        }
    }
    assert_eq!(inner.requests(), 20);
}

#[test]
fn readers_that_take_nothing_cost_little() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
        let chunk = Bytes::from(vec![b'x'; 1 << 16]);
        for _ in 0..1024 {
            stream.reserve_capacity(chunk.len());
            while stream.capacity() < chunk.len() {
                if std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.is_none() {
                    return;
                }
            }
            if stream.send_data(chunk.clone(), false).is_err() {
                return;
            }
        }
    });
    let tollgate = in_front_of(&backend);
    assert_eq!(tollgate.admin("/livez").status, 200);
    let before = tollgate.resident();
    let mut clients: Vec<_> = (0..20).map(|_| tollgate.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: test\r\n\r\n");
        client.stream.read_exact(&mut [0; 1]).unwrap();
    }
    wait_until("all is under way", || backend.requests() == 20);
    // Nothing moves any more once every buffer between is full.
    let mut last = 0;
    wait_until("it has come to rest", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, tollgate.resident()) == tollgate.resident()
    });
    let grown = tollgate.resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
    eprintln!("20 readers that take nothing: {} KiB", grown >> 10);
}

fn grpc_status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(code))])
}

#[test]
fn grpc_goes_through_with_its_trailers_both_ways() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let (body, trailers) = exchange.read().await.unwrap();
        assert_eq!(exchange.head.headers["te"], "trailers");
        assert_eq!(
            (body.as_slice(), trailers.unwrap()["x-sum"].as_bytes()),
            (&b"ask"[..], &b"7"[..])
        );
        let response = Response::builder().header("content-type", "application/grpc");
        let response = response.body(()).unwrap();
        let mut stream = exchange.respond.send_response(response, false).unwrap();
        stream.send_data(Bytes::from_static(b"tell"), false).unwrap();
        stream.send_trailers(grpc_status("0")).unwrap();
    });
    let tollgate = in_front_of(&backend);
    run(async {
        let mut polite = Polite::connect(tollgate.data).await;
        let head = request("POST", "/svc/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let (answer, mut sending) =
            polite.requests.send_request(head.body(()).unwrap(), false).unwrap();
        sending.send_data(Bytes::from_static(b"ask"), false).unwrap();
        let sum = [("x-sum".parse().unwrap(), HeaderValue::from_static("7"))];
        sending.send_trailers(HeaderMap::from_iter(sum)).unwrap();
        let answer = whole(answer.await.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"tell"[..]));
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    });
    assert_eq!(backend.last().uri.to_string(), "http://test/svc/Call");
}

#[test]
fn an_answer_of_trailers_alone_stays_one() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let mut response = Response::new(());
        *response.headers_mut() = grpc_status("5");
        exchange.respond.send_response(response, true).unwrap();
    });
    let tollgate = in_front_of(&backend);
    run(async {
        let mut polite = Polite::connect(tollgate.data).await;
        let head = request("POST", "/svc/Call").body(()).unwrap();
        let (answer, _sending) = polite.requests.send_request(head, false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "5");
        assert!(answer.body().is_end_stream());
    });
}

#[test]
fn both_sides_may_speak_in_turns() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
        // Says again whatever it hears, before the other side has ended.
        while let Some(piece) = exchange.body.data().await {
            let piece = piece.unwrap();
            exchange.body.flow_control().release_capacity(piece.len()).unwrap();
            stream.send_data(piece, false).unwrap();
        }
        stream.send_trailers(grpc_status("0")).unwrap();
    });
    let tollgate = in_front_of(&backend);
    run(async {
        let mut polite = Polite::connect(tollgate.data).await;
        let head = request("POST", "/svc/Chat").body(()).unwrap();
        let (answer, mut sending) = polite.requests.send_request(head, false).unwrap();
        let mut content = answer.await.unwrap().into_body();
        for word in ["one", "two", "three"] {
            sending.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
            assert_eq!(content.data().await.unwrap().unwrap(), word);
        }
        sending.send_data(Bytes::new(), true).unwrap();
        assert!(content.data().await.is_none());
        assert_eq!(content.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn a_reset_goes_through_in_both_directions() {
    let backend = Http2Backend::spawn(|mut exchange| async move {
        let mut stream = exchange.respond.send_response(Response::new(()), false).unwrap();
        stream.send_data(Bytes::from_static(b"some"), false).unwrap();
        if exchange.head.uri.path() == "/breaks" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send_reset(Reason::INTERNAL_ERROR);
        } else {
            let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
            exchange.seen.resets.lock().unwrap().push(reason);
        }
    });
    let tollgate = in_front_of(&backend);
    run(async {
        let mut polite = Polite::connect(tollgate.data).await;
        let broken =
            polite.ask(request("GET", "/breaks").body(()).unwrap(), None).await.unwrap_err();
        assert!(broken.is_reset() && broken.is_remote(), "{broken}");
        let head = request("GET", "/holds").body(()).unwrap();
        let (answer, mut sending) = polite.requests.send_request(head, true).unwrap();
        let mut content = answer.await.unwrap().into_body();
        assert_eq!(content.data().await.unwrap().unwrap(), "some");
        sending.send_reset(Reason::CANCEL);
        drop(content);
        while backend.seen.resets.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(*backend.seen.resets.lock().unwrap(), [Reason::CANCEL]);
    });
}
