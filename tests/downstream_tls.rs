//! TLS with downstreams: what is spoken inside, and what becomes of handshakes that stall, break or
//! are none. What is shown in them is in `listener_tls.rs`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use http2::{Polite, request};
use support::{Backend, Client, GENEROUS, PATIENCE, Start, Tollgate, wait_until};

struct Secured {
    tollgate: Tollgate,
    directory: tempfile::TempDir,
}

/// A tollgate that listens with TLS, and these further lines below `server:`.
fn secured(backend: &Backend, server: &str) -> Secured {
    let directory = tempfile::tempdir().unwrap();
    certificates::self_signed(directory.path(), "a", "a", 90);
    let file = |name: &str| directory.path().join(name).display().to_string();
    let config = format!(
        "server:\n  listeners: [{{ address: '127.0.0.1:0', tls: {{ cert: {}, key: {} }} }}]\n{server}",
        file("a.crt"),
        file("a.key"),
    );
    let start = Start::default().upstream(backend.address).config(&config).tiers(GENEROUS);
    let tollgate = start.listeners().run();
    Secured { tollgate, directory }
}

impl Secured {
    fn config(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        certificates::client([self.directory.path().join("a.crt")], protocol)
    }

    fn connect(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(self.config(b"http/1.1"), name).unwrap();
        let stream = TcpStream::connect(self.tollgate.data).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        StreamOwned::new(client, stream)
    }

    async fn polite(&self) -> Polite {
        let stream = tokio::net::TcpStream::connect(self.tollgate.data).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = tokio_rustls::TlsConnector::from(self.config(b"h2"));
        let stream = connector.connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        Polite::over(stream).await
    }

    fn handshakes(&self, result: &str) -> f64 {
        let series = format!(r#"tollgate_tls_handshakes_total{{result="{result}"}}"#);
        self.tollgate.metric(&series)
    }
}

fn head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// RFC 7301: both versions of HTTP, and the backend is told that it was https.
#[test]
fn both_versions_are_spoken_inside() {
    let backend = Backend::ok();
    let secured = secured(&backend, "");
    let mut stream = secured.connect();
    for expected in ["999999", "999998"] {
        stream.write_all(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
        let head = head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("x-ratelimit-remaining: {expected}\r\n")), "{head}");
        stream.read_exact(&mut [0; 2]).unwrap();
    }
    assert_eq!(backend.last().all("x-forwarded-proto"), ["https"]);
    http2::run(async {
        let mut client = secured.polite().await;
        let answer = client.get("/b").await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
        assert_eq!(answer.headers["x-ratelimit-remaining"], "999997", "one bucket");
        let large = vec![7; 3_000_000];
        let asked = request("POST", "/c").body(()).unwrap();
        client.requests.clone().ready().await.unwrap();
        let (answer, mut sending) = client.requests.send_request(asked, false).unwrap();
        sending.send_data(large.into(), true).unwrap();
        assert_eq!(http2::whole(answer.await.unwrap()).await.unwrap().status, 200);
    });
    let seen = backend.last();
    assert_eq!(seen.all("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.body.len(), 3_000_000);
    assert_eq!(secured.handshakes("ok"), 2.0);
    assert_eq!(secured.handshakes("failed"), 0.0);
}

/// A connection that ends as it should says so; one that breaks off does not (RFC 8446 §6.1).
#[test]
fn an_end_is_told_from_a_break() {
    let backend = Backend::spawn(|mut connection| {
        while let Some(seen) = connection.request() {
            if seen.target() == "/whole" {
                connection.ok("ok");
            } else {
                connection.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
                return;
            }
        }
    });
    let secured = secured(&backend, "");
    let ask = |path: &str| {
        let mut stream = secured.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).map_err(|error| error.kind());
        (end, String::from_utf8(answer).unwrap())
    };
    let (end, answer) = ask("/whole");
    assert!(end.is_ok() && answer.ends_with("ok"), "{end:?} {answer}");
    let (end, answer) = ask("/broken");
    assert!(answer.ends_with("abc"), "{answer}");
    let broken = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
    assert!(end.is_err_and(|kind| broken.contains(&kind)));
}

/// RFC 6455 over TLS: a tunnel like any other.
#[test]
fn an_upgrade_becomes_a_tunnel_inside() {
    let backend = Backend::spawn(|mut connection| {
        connection.head();
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi",
        );
        loop {
            let bytes = connection.read_some(100);
            if bytes.is_empty() || !connection.send(&bytes) {
                return;
            }
        }
    });
    let secured = secured(&backend, "");
    let mut stream = secured.connect();
    stream
        .write_all(
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nearly",
        )
        .unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 101 "));
    let mut bytes = [0; 7];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hiearly");
    stream.write_all(b"later").unwrap();
    stream.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"later");
    assert_eq!(secured.tollgate.metric(r#"websocket_connections_active{endpoint="other"}"#), 1.0);
}

/// Who speaks HTTP without TLS is told so in words that they can read; who speaks nonsense is not.
#[test]
fn http_without_tls_is_400_and_nonsense_is_nothing() {
    let backend = Backend::ok();
    let secured = secured(&backend, "");
    let answer = Client::connect(secured.tollgate.data).get("/");
    assert_eq!((answer.status, &*answer.text()), (400, r#"{"error":"Bad request"}"#));
    assert_eq!(answer.field("connection"), Some("close"));
    let mut nonsense = Client::connect(secured.tollgate.data);
    nonsense.send([22, 3, 1, 0, 4, 9, 9, 9, 9]);
    // An alert, and the end.
    assert!(nonsense.read_to_end().len() < 20);
    wait_until("both are counted", || secured.handshakes("failed") == 2.0);
    assert!(backend.seen().is_empty());
}

/// A handshake has the time of a head, however it drips, and the head has it anew.
#[test]
fn a_handshake_that_stalls_is_cut() {
    let backend = Backend::ok();
    let secured = secured(&backend, "  header_timeout: 400ms\n");
    for first in [&b""[..], &[22], &[22, 3, 1, 2, 0, 1, 0]] {
        let mut stalled = Client::connect(secured.tollgate.data);
        stalled.send(first);
        assert_eq!(stalled.read_to_end(), b"");
    }
    wait_until("all are counted", || secured.handshakes("timeout") == 3.0);
    let mut late = secured.connect();
    late.write_all(b"GET / HT").unwrap();
    assert!(head(&mut late).starts_with("HTTP/1.1 408 "));
    assert_eq!(secured.tollgate.metric("tollgate_tls_handshakes_in_progress"), 0.0);
}

/// Of too many handshakes the oldest end, so that a crowd that stalls keeps nobody out.
#[test]
fn of_too_many_handshakes_the_oldest_end() {
    let backend = Backend::ok();
    let secured = secured(&backend, "  workers: 1\n");
    let stall = |address: SocketAddr| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&[22]).unwrap();
        stream
    };
    let stalled: Vec<TcpStream> = (0..600).map(|_| stall(secured.tollgate.data)).collect();
    wait_until("the first are cut", || secured.handshakes("evicted") == 88.0);
    assert_eq!(secured.tollgate.metric("tollgate_tls_handshakes_in_progress"), 512.0);
    let mut honest = secured.connect();
    honest.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert!(head(&mut honest).starts_with("HTTP/1.1 200 "));
    assert_eq!(secured.handshakes("ok"), 1.0);
    drop(stalled);
}

/// A drain ends connections of both versions as it does without TLS.
#[test]
fn a_drain_says_goodbye_inside() {
    let backend = Backend::ok();
    let mut secured = secured(&backend, "");
    let mut idle = secured.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert!(head(&mut idle).starts_with("HTTP/1.1 200 "));
    http2::run(async {
        let mut client = secured.polite().await;
        assert_eq!(client.get("/").await.status, 200);
        secured.tollgate.signal("TERM");
        client.ended.await.unwrap().unwrap();
    });
    let mut rest = Vec::new();
    // The body, and an end that is told.
    idle.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"ok");
    assert!(secured.tollgate.wait().success());
}
