//! WebSockets on streams of HTTP/2 (RFC 8441), before a backend that knows those of HTTP/1.1.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
mod support;
#[path = "support/websocket.rs"]
mod websocket;

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use support::{Backend, BackendConnection, GENEROUS, Start, Tollgate, wait_until};

use certificates::self_signed;
use http2::{Polite, Raw, SETTINGS, request, run, whole};
use websocket::half_by_half;

const OPEN: &str = r#"websocket_connections_active{endpoint="other"}"#;
const STREAMS: &str = r#"backpressure_async_tasks_pending{task_type="request"}"#;
const TUNNELS: &str = r#"backpressure_async_tasks_pending{task_type="websocket"}"#;

fn ask(path: &str) -> http::request::Builder {
    Request::builder()
        .method("CONNECT")
        .uri(format!("http://test{path}"))
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
}

/// What a server answers to this key, by another implementation than the proxy's.
fn accept(key: &str) -> String {
    tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes())
}

fn switched(connection: &mut BackendConnection) -> Option<support::Seen> {
    let seen = connection.request()?;
    let Some(key) = seen.field("sec-websocket-key") else {
        connection.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        return switched(connection);
    };
    let accept = accept(key);
    connection.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nX-Of: backend\r\n\r\n"
    ));
    Some(seen)
}

/// Switches whoever asks, and sends back what comes.
fn echo() -> Backend {
    Backend::spawn(|mut connection| {
        if switched(&mut connection).is_none() {
            return;
        }
        loop {
            let bytes = connection.read_some(65_536);
            if bytes.is_empty() || !connection.send(&bytes) {
                return;
            }
        }
    })
}

fn before(address: SocketAddr, config: &str) -> Tollgate {
    let config = format!("server:\n  workers: 1\n{config}");
    Start::default().upstream(address).config(&config).tiers(GENEROUS).run()
}

/// Connects, and waits until the server has said that it knows extended CONNECT.
async fn connect(tollgate: &Tollgate) -> Polite {
    let mut client = Polite::connect(tollgate.data).await;
    // The settings have come before an answer.
    if !client.requests.is_extended_connect_protocol_enabled() {
        client.ask(request("TRACE", "/").body(()).unwrap(), None).await.unwrap();
    }
    assert!(client.requests.is_extended_connect_protocol_enabled());
    client
}

async fn send(
    client: &mut Polite,
    request: http::request::Builder,
) -> (Response<RecvStream>, SendStream<Bytes>) {
    let request = request.body(()).unwrap();
    client.requests.clone().ready().await.unwrap();
    let (answer, sending) = client.requests.send_request(request, false).unwrap();
    (answer.await.unwrap(), sending)
}

fn tasks(tollgate: &Tollgate) -> [f64; 2] {
    [STREAMS, TUNNELS].map(|it| tollgate.metric(it))
}

/// Waits, and lets the connection go on meanwhile.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(support::PATIENCE, holds).await;
    waited.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

async fn status_and_body(client: &mut Polite, request: http::request::Builder) -> (u16, String) {
    let (answer, _sending) = send(client, request).await;
    let answer = whole(answer).await.unwrap();
    (answer.status, String::from_utf8(answer.body).unwrap())
}

/// An open WebSocket.
struct Open {
    receiving: RecvStream,
    sending: SendStream<Bytes>,
}

impl Open {
    async fn at(client: &mut Polite, path: &str) -> Self {
        let (answer, sending) = send(client, ask(path)).await;
        assert_eq!(answer.status(), 200);
        Open { receiving: answer.into_body(), sending }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.sending.send_data(Bytes::copy_from_slice(bytes), false).unwrap();
    }

    fn end(&mut self) {
        self.sending.send_data(Bytes::new(), true).unwrap();
    }

    async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < count {
            let Some(piece) = self.receiving.data().await else { break };
            let piece = piece.unwrap();
            self.receiving.flow_control().release_capacity(piece.len()).unwrap();
            read.extend_from_slice(&piece);
        }
        read
    }
}

#[test]
fn the_backend_sees_the_handshake_that_it_knows() {
    let backend = Backend::spawn(|mut connection| {
        switched(&mut connection);
        while !connection.read_some(1024).is_empty() {}
    });
    let tollgate = before(backend.address, "");
    run(async {
        let mut client = connect(&tollgate).await;
        let asked = ask("/chat/%61?room=1")
            .header("sec-websocket-protocol", "chat, superchat")
            .header("sec-websocket-extensions", "permessage-deflate")
            .header("sec-websocket-key", "bXkgb3duIGtleSBvZiBtaW5l")
            .header("origin", "http://test")
            .header("cookie", "a=1")
            .header("cookie", "b=2");
        let (answer, _sending) = send(&mut client, asked).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-of"], "backend");
        for own in ["upgrade", "connection", "sec-websocket-accept", "content-length"] {
            assert!(!answer.headers().contains_key(own), "{own}: {:?}", answer.headers());
        }
        assert!(answer.headers().contains_key("x-ratelimit-remaining"));
    });
    let seen = backend.last();
    assert_eq!(seen.line, "GET /chat/%61?room=1 HTTP/1.1");
    for (name, value) in [
        ("host", "test"),
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat, superchat"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("cookie", "a=1; b=2"),
        ("x-forwarded-for", "127.0.0.1"),
        ("via", "2.0 tollgate"),
    ] {
        assert_eq!(seen.all(name), [value], "{name}");
    }
    let keys = seen.all("sec-websocket-key");
    assert_eq!(keys.len(), 1);
    assert_ne!(keys[0], "bXkgb3duIGtleSBvZiBtaW5l");
    assert_eq!(STANDARD.decode(keys[0]).unwrap().len(), 16);
    for framing in ["content-length", "transfer-encoding", "te", "proxy-connection"] {
        assert!(seen.all(framing).is_empty(), "{framing}");
    }
}

/// Several on one connection, and ordinary requests between them.
#[test]
fn many_share_a_connection_and_each_has_its_own_bytes() {
    let backend = echo();
    let tollgate = before(backend.address, "");
    run(async {
        let mut client = connect(&tollgate).await;
        let mut open = Vec::new();
        for number in 0..40 {
            open.push(Open::at(&mut client, &format!("/{number}")).await);
        }
        assert_eq!(tollgate.metric(OPEN), 40.0);
        assert_eq!(tasks(&tollgate), [40.0; 2]);
        for round in 0..3 {
            for (number, it) in open.iter_mut().enumerate() {
                it.send(format!("{number} of {round}").repeat(100).as_bytes());
            }
            for (number, it) in open.iter_mut().enumerate().rev() {
                let sent = format!("{number} of {round}").repeat(100);
                assert!(it.read(sent.len()).await == sent.as_bytes(), "{number} of {round}");
            }
            assert_eq!(client.get("/nothing-of-these").await.status, 404);
        }
        for it in &mut open {
            it.end();
            assert!(it.read(1).await.is_empty(), "the end comes back");
        }
        until("none is open", || tollgate.metric(OPEN) == 0.0).await;
        until("none is served", || tasks(&tollgate) == [0.0; 2]).await;
        assert_eq!(client.get("/nothing-of-these").await.status, 404);
    });
}

/// What a page says to a WebSocket must not be taken for one.
#[test]
fn what_is_no_websocket_does_not_become_one() {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            let key = seen.field("sec-websocket-key").unwrap_or_default().to_owned();
            let answer = match seen.target() {
                "/page" => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage".into(),
                "/empty" => "HTTP/1.1 204 No Content\r\n\r\n".into(),
                "/away" => {
                    "HTTP/1.1 302 Found\r\nLocation: /ws\r\nContent-Length: 0\r\n\r\n".into()
                }
                "/closed" => "HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nclosed".into(),
                "/liar" => format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
                ),
                "/mute" => "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n"
                    .into(),
                _ => format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\
                     Sec-WebSocket-Accept: {}\r\n\r\n",
                    accept(&key)
                ),
            };
            connection.send(answer);
        }
    });
    let config = "self_service: { path: /.well-known/rate-limit }\n";
    let tollgate = before(backend.address, config);
    run(async {
        let mut client = connect(&tollgate).await;
        let bad = |words: &str| format!("{{\"error\":\"{words}\"}}");
        for (path, status, body) in [
            ("/page", 400, bad("Bad request")),
            ("/empty", 400, bad("Bad request")),
            ("/away", 302, String::new()),
            ("/closed", 403, "closed".into()),
            ("/liar", 502, bad("Bad gateway")),
            ("/mute", 502, bad("Bad gateway")),
            ("/other", 502, bad("Bad gateway")),
            ("/.well-known/rate-limit", 400, bad("Bad request")),
        ] {
            assert_eq!(status_and_body(&mut client, ask(path)).await, (status, body), "{path}");
        }
        assert_eq!(backend.seen().len(), 7);
        let other = Request::builder()
            .method("CONNECT")
            .uri("http://test/x")
            .extension(Protocol::from_static("connect-udp"));
        let other = status_and_body(&mut client, other).await;
        assert_eq!(other, (501, bad("Not implemented")));
        let plain = Request::builder().method("CONNECT").uri("test:80");
        let plain = status_and_body(&mut client, plain).await;
        assert_eq!(plain, (405, bad("Method not allowed")));
        assert_eq!(backend.seen().len(), 7, "neither is the backend's");
    });
    assert_eq!(tollgate.metric(OPEN), 0.0);
}

#[test]
fn limits_count_one_as_they_count_one_of_http1() {
    let backend = echo();
    let tiers = "tiers: { free: { per_minute: 3 } }\n";
    let config = "server: { workers: 1 }\n";
    let tollgate = Start::default().upstream(backend.address).config(config).tiers(tiers).run();
    run(async {
        let mut client = connect(&tollgate).await;
        for left in [2, 1] {
            let (answer, _sending) = send(&mut client, ask("/ws")).await;
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.headers()["x-ratelimit-remaining"], left.to_string().as_str());
        }
        // The last is one of HTTP/1.1.
        let mut other = tollgate.connect();
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        other.send(format!(
            "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: {key}\r\n\r\n"
        ));
        let head = other.head();
        assert_eq!((head.status, head.field("x-ratelimit-remaining")), (101, Some("0")));
        let (answer, _sending) = send(&mut client, ask("/ws")).await;
        assert!(answer.headers().contains_key("retry-after"));
        let denied = whole(answer).await.unwrap();
        assert_eq!(denied.status, 429);
        assert!(String::from_utf8(denied.body).unwrap().contains("Rate limit exceeded"));
        assert_eq!(backend.seen().len(), 3);
        let refused = r#"tollgate_websocket_events_total{event="refused_limit"}"#;
        assert_eq!(tollgate.metric(refused), 1.0);
    });
}

#[test]
fn one_half_outlives_the_other() {
    let backend = Backend::spawn(|mut connection| {
        let Some(seen) = switched(&mut connection) else { return };
        half_by_half(&mut connection, seen.target());
    });
    // Idle for longer than a connection may be, were the half-closed tunnel not counted as open.
    let tollgate = before(backend.address, "  idle_timeout: 1s\n");
    run(async {
        let mut client = connect(&tollgate).await;
        let mut first = Open::at(&mut client, "/client-first").await;
        first.send(b"first");
        first.end();
        assert_eq!(first.read(100).await, b"and last");
        let mut second = Open::at(&mut client, "/server-first").await;
        assert_eq!(second.read(100).await, b"first", "and its end");
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert!(!client.ended.is_finished(), "the connection has a stream that is half open");
        second.send(b"and last");
        second.end();
        until("both are over", || tollgate.metric(OPEN) == 0.0).await;
    });
}

#[test]
fn an_end_on_one_side_is_told_to_the_other() {
    let (told, heard) = std::sync::mpsc::sync_channel(8);
    let backend = Backend::spawn(move |mut connection| {
        let Some(seen) = switched(&mut connection) else { return };
        connection.send("hello");
        if seen.target() == "/breaks" {
            return connection.reset();
        }
        while !connection.read_some(1024).is_empty() {}
        told.send(seen.target().to_owned()).unwrap();
    });
    let tollgate = before(backend.address, "");
    run(async {
        let mut client = connect(&tollgate).await;
        let mut broken = Open::at(&mut client, "/breaks").await;
        assert!(broken.read(100).await.len() <= 5);
        // A browser that closes its page resets the stream.
        let mut given_up = Open::at(&mut client, "/given-up").await;
        assert_eq!(given_up.read(5).await, b"hello");
        given_up.sending.send_reset(Reason::CANCEL);
        until("the backend hears of it", || heard.try_recv().is_ok()).await;
        let mut left = Open::at(&mut client, "/left").await;
        assert_eq!(left.read(5).await, b"hello");
        drop((client, left, given_up, broken));
    });
    wait_until("the backend hears of a connection that is gone", || heard.try_recv().is_ok());
    wait_until("none is open", || tollgate.metric(OPEN) == 0.0);
    wait_until("none is served", || tasks(&tollgate) == [0.0; 2]);
}

#[test]
fn a_reader_that_takes_nothing_is_given_up_and_holds_little() {
    let backend = Backend::spawn(|mut connection| {
        switched(&mut connection);
        while connection.send([b'x'; 65_536]) {}
    });
    let config = "  idle_timeout: 1s\nupstream: { tunnel_idle_timeout: 1s }\n";
    let tollgate = before(backend.address, config);
    let resident = tollgate.resident();
    run(async {
        let mut client = connect(&tollgate).await;
        let mut open = Vec::new();
        for _ in 0..30 {
            open.push(Open::at(&mut client, "/").await);
        }
        // Nothing is read. Each is over once its window is full and its time is up.
        until("none is open", || tollgate.metric(OPEN) == 0.0).await;
        until("none is served", || tasks(&tollgate) == [0.0; 2]).await;
        for mut it in open {
            // What was on its way is there, then a reset: an end would say that this was all.
            let end = loop {
                match it.receiving.data().await {
                    Some(Ok(_)) => {}
                    other => break other,
                }
            };
            assert!(matches!(end, Some(Err(_))), "{end:?}");
        }
    });
    let growth = tollgate.peak().saturating_sub(resident) / 1024 / 1024;
    println!("30 that take nothing: {growth} MiB");
    assert!(growth < 32, "{growth} MiB");
}

#[test]
fn a_drain_closes_each_with_1001() {
    let (told, heard) = std::sync::mpsc::sync_channel(64);
    let backend = Backend::spawn(move |mut connection| {
        if switched(&mut connection).is_none() {
            return;
        }
        let mut all = Vec::new();
        loop {
            let bytes = connection.read_some(1024);
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
        }
        told.send(all).unwrap();
    });
    let mut tollgate = before(backend.address, "");
    run(async {
        let mut client = connect(&tollgate).await;
        let mut open = Vec::new();
        for _ in 0..20 {
            open.push(Open::at(&mut client, "/").await);
        }
        tollgate.signal("TERM");
        for it in &mut open {
            assert_eq!(it.read(100).await, [0x88, 2, 0x03, 0xe9], "1001, and the end");
        }
        let ended = (&mut client.ended).await.unwrap();
        assert!(ended.is_ok(), "{ended:?}");
    });
    assert!(tollgate.wait().success());
    for _ in 0..20 {
        let all = heard.recv_timeout(support::PATIENCE).unwrap();
        let [0x88, 0x82, a, b, c, d, high, low] = all[..] else { panic!("{all:?}") };
        let _ = (c, d);
        assert_eq!([high ^ a, low ^ b], [0x03, 0xe9]);
    }
}

/// Only who can keep it promises it (RFC 8441 §3).
#[test]
fn it_is_offered_where_a_backend_can_be_upgraded() {
    const ENABLE_CONNECT_PROTOCOL: [u8; 6] = [0, 8, 0, 0, 0, 1];
    let backend = echo();
    let url = format!("http://{}", backend.address);
    let other = format!("h2c://{}", support::nobody());
    for (upstream, offers) in [
        (format!("urls: ['{url}']"), true),
        (format!("urls: ['{url}', '{other}']"), true),
        (format!("urls: ['{other}']"), false),
    ] {
        let config = format!("server: {{ workers: 1 }}\nupstream: {{ {upstream} }}\n");
        let tollgate = Start::default().config(&config).tiers(GENEROUS).run();
        let mut raw = Raw::connect(tollgate.data);
        let settings = raw.frame_of(SETTINGS).unwrap().payload;
        let is_offered = settings.chunks(6).any(|it| it == ENABLE_CONNECT_PROTOCOL);
        assert_eq!(is_offered, offers, "{upstream}: {settings:?}");
    }
}

const PAGE: &str = "<!doctype html><script>
const socket = new WebSocket(`wss://${location.host}/ws`, 'chat');
const text = '\u{fc}ber'.repeat(1000);
let said = '';
socket.onopen = () => socket.send(text);
socket.onmessage = (event) => { said = event.data; socket.close(4001, 'enough'); };
socket.onclose = (event) => fetch(`/told/${event.code}/${event.reason}/${socket.protocol}/${said === text}`);
</script>";

/// A browser opens a WebSocket on the connection that it has, where the server allows that.
#[test]
fn chromium_opens_one_on_the_connection_of_its_page() {
    let chromium = browser::chromium();
    if !browser::has_all(&[("chromium", chromium.exists())]) {
        return;
    }
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target().starts_with("/told/") {
                told.send(seen.target().to_owned()).unwrap();
            }
            if let Some(key) = seen.field("sec-websocket-key") {
                connection.send(format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\n\
                     Sec-WebSocket-Accept: {}\r\n\r\n",
                    accept(key)
                ));
                websocket::echo(connection.upgraded()).ok();
                return;
            }
            let (kind, body) = ("text/html", if seen.target() == "/" { PAGE } else { "" });
            let length = body.len();
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
        }
    });
    let directory = tempfile::tempdir().unwrap();
    self_signed(directory.path(), "a", "localhost", 90);
    let at = directory.path().display();
    let config = format!(
        "server: {{ listeners: [{{ address: '127.0.0.1:0', \
         tls: {{ cert: '{at}/a.crt', key: '{at}/a.key' }} }}] }}\n"
    );
    let start = Start::default().upstream(backend.address).listeners().config(&config);
    let tollgate = start.tiers(GENEROUS).run();
    let profile = tempfile::tempdir().unwrap();
    let mut browser = std::process::Command::new(chromium)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
        ])
        .args(["--ignore-certificate-errors", "--no-first-run"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("https://{}/", tollgate.data))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // A browser takes its time on a machine that has much to do. Whatever comes of it, it ends.
    let heard = heard.recv_timeout(support::PATIENCE * 3);
    browser.kill().unwrap();
    browser.wait().unwrap();
    assert_eq!(heard.as_deref(), Ok("/told/4001/enough/chat/true"));
    let seen = backend.seen();
    let socket = seen.iter().find(|it| it.target() == "/ws").unwrap();
    assert_eq!(socket.field("via"), Some("2.0 tollgate"), "on the connection of the page");
    assert_eq!(socket.field("x-forwarded-proto"), Some("https"));
    assert_eq!(socket.all("sec-websocket-version"), ["13"]);
}
