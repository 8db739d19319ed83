//! TLS and sockets of this machine towards the upstream: the real binary, real certificates.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2_backend.rs"]
mod http2_backend;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use support::{Backend, GENEROUS, Start, Tollgate, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use certificates::Authority;
use http2_backend::{How, Http2Backend};

const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";

/// A backend that speaks HTTP/1.1 over TLS, and what it knows of its connections.
struct TlsBackend {
    address: SocketAddr,
    handshakes: Arc<AtomicUsize>,
    names: Arc<Mutex<Vec<Option<String>>>>,
    client_certificates: Arc<AtomicUsize>,
    protocols: Arc<Mutex<Vec<Option<Vec<u8>>>>>,
}

impl TlsBackend {
    fn spawn(acceptor: TlsAcceptor) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let backend = TlsBackend {
            address: listener.local_addr().unwrap(),
            handshakes: Arc::default(),
            names: Arc::default(),
            client_certificates: Arc::default(),
            protocols: Arc::default(),
        };
        let (handshakes, names) = (Arc::clone(&backend.handshakes), Arc::clone(&backend.names));
        let (certificates, protocols) =
            (Arc::clone(&backend.client_certificates), Arc::clone(&backend.protocols));
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                while let Ok((stream, _)) = listener.accept().await {
                    let acceptor = acceptor.clone();
                    let (handshakes, names) = (Arc::clone(&handshakes), Arc::clone(&names));
                    let (certificates, protocols) =
                        (Arc::clone(&certificates), Arc::clone(&protocols));
                    tokio::spawn(async move {
                        let Ok(mut stream) = acceptor.accept(stream).await else { return };
                        handshakes.fetch_add(1, Ordering::SeqCst);
                        let tls = stream.get_ref().1;
                        names.lock().unwrap().push(tls.server_name().map(str::to_owned));
                        protocols.lock().unwrap().push(tls.alpn_protocol().map(<[u8]>::to_vec));
                        if tls.peer_certificates().is_some_and(|it| !it.is_empty()) {
                            certificates.fetch_add(1, Ordering::SeqCst);
                        }
                        answer(&mut stream).await;
                    });
                }
            });
        });
        backend
    }
}

/// Answers GETs with `ok`, and takes part in an upgrade by saying everything again.
async fn answer(stream: &mut tokio_rustls::server::TlsStream<tokio::net::TcpStream>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while stream.read_exact(&mut byte).await.is_ok() {
        head.extend(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let text = String::from_utf8(std::mem::take(&mut head)).unwrap().to_ascii_lowercase();
        if text.contains("upgrade: websocket") {
            let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                          Upgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count]).await.ok();
            }
            return;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    }
}

fn start(authority: &Authority, address: SocketAddr, host: &str, tls: &str) -> Tollgate {
    let ca = authority.file("ca.crt");
    let url = format!("https://{host}:{}", address.port());
    let config = format!(
        "server: {{ workers: 1 }}\nupstream:\n  url: '{url}'\n  connect_timeout: 1s\n  \
         tls: {{ {} }}\n",
        if tls.contains("ca:") { tls.to_owned() } else { format!("ca: '{ca}', {tls}") }
    );
    Start::default().config(&config).tiers(GENEROUS).run()
}

#[test]
fn http1_over_tls_is_kept_alive_and_the_address_is_checked() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[HTTP1], false));
    let tollgate = start(&authority, backend.address, "127.0.0.1", "");
    for _ in 0..3 {
        let answer = tollgate.get("/x");
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"), "{}", tollgate.log());
    }
    assert_eq!(backend.handshakes.load(Ordering::SeqCst), 1);
    // An address is no name to send along (RFC 6066 §3).
    assert_eq!(*backend.names.lock().unwrap(), [None]);
    assert_eq!(*backend.protocols.lock().unwrap(), [Some(HTTP1.to_vec())]);
}

#[test]
fn an_upstream_that_knows_no_alpn_is_spoken_to_in_http1() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[], false));
    let tollgate = start(&authority, backend.address, "127.0.0.1", "");
    assert_eq!(tollgate.get("/x").status, 200, "{}", tollgate.log());
}

#[test]
fn http2_over_tls_shares_one_connection() {
    let authority = Authority::new();
    let how = How { tls: Some(authority.server(&[HTTP2, HTTP1], false)), ..How::default() };
    let backend = Http2Backend::spawn_with(how, |mut exchange| async move { exchange.ok("ok") });
    let tollgate = start(&authority, backend.address, "127.0.0.1", "");
    let mut clients: Vec<_> = (0..20).map(|_| tollgate.connect()).collect();
    for client in &mut clients {
        client.send("GET /x HTTP/1.1\r\nHost: test\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(backend.connections(), 1);
    assert_eq!(backend.last().uri.to_string(), "https://test/x");
}

#[test]
fn the_name_is_sent_along_and_checked() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[HTTP1], false));
    let tollgate = start(&authority, backend.address, "127.0.0.1", "server_name: backend.test");
    assert_eq!(tollgate.get("/x").status, 200, "{}", tollgate.log());
    assert_eq!(*backend.names.lock().unwrap(), [Some("backend.test".to_owned())]);
}

#[test]
fn an_upstream_that_cannot_prove_who_it_is_gets_no_request() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[HTTP1], false));
    let other = format!("ca: '{}'", authority.file("other.crt"));
    for (host, tls, reason) in [
        ("127.0.0.1", other.as_str(), "UnknownIssuer"),
        ("127.0.0.1", "server_name: other.test", "not valid for name"),
        ("localhost", "", "not valid for name"),
    ] {
        let tollgate = start(&authority, backend.address, host, tls);
        for _ in 0..5 {
            let answer = tollgate.get("/x");
            assert_eq!(answer.status, 502);
            let cause = "tollgate; error=connection_terminated";
            assert_eq!(answer.field("proxy-status"), Some(cause));
            assert_eq!(answer.text(), r#"{"error":"Bad gateway"}"#);
        }
        wait_until("the log says why", || tollgate.log().contains(reason));
        assert_eq!(tollgate.log().matches("the upstream is refused").count(), 1);
    }
    assert_eq!(backend.handshakes.load(Ordering::SeqCst), 0);
}

#[test]
fn the_system_s_authorities_are_believed_where_no_others_are_named() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[HTTP1], false));
    let config = format!("upstream: {{ url: 'https://{}' }}\n", backend.address);
    let run = |file: &str| {
        let start = Start::default().config(&config).tiers(GENEROUS);
        start.variable("SSL_CERT_FILE", &authority.file(file)).run().get("/x").status
    };
    assert_eq!(run("ca.crt"), 200);
    assert_eq!(run("other.crt"), 502);
}

#[test]
fn tollgate_shows_a_certificate_where_it_has_one() {
    let authority = Authority::new();
    let backend = TlsBackend::spawn(authority.server(&[HTTP1], true));
    let (cert, key) = (authority.file("client.crt"), authority.file("client.key"));
    let tls = format!("client_cert: '{cert}', client_key: '{key}'");
    let tollgate = start(&authority, backend.address, "127.0.0.1", &tls);
    assert_eq!(tollgate.get("/x").status, 200, "{}", tollgate.log());
    assert_eq!(backend.client_certificates.load(Ordering::SeqCst), 1);
    // Without it the upstream ends the connection, in TLS 1.3 after the handshake.
    let tollgate = start(&authority, backend.address, "127.0.0.1", "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));
}

#[test]
fn a_handshake_that_stalls_is_a_504_and_one_with_somebody_else_a_502() {
    let authority = Authority::new();
    let silent =
        Backend::spawn(|mut connection| while !connection.read_some(1 << 16).is_empty() {});
    let tollgate = start(&authority, silent.address, "127.0.0.1", "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_timeout"));

    let plain = Backend::spawn(|mut connection| {
        connection.read_some(1 << 16);
        connection.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let tollgate = start(&authority, plain.address, "127.0.0.1", "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_terminated"));

    let tollgate = start(&authority, support::nobody(), "127.0.0.1", "");
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_refused"));
}

#[test]
fn a_websocket_goes_over_a_connection_that_offers_http1_alone() {
    let authority = Authority::new();
    // It would choose HTTP/2 if it were offered, which it cannot speak.
    let backend = TlsBackend::spawn(authority.server(&[HTTP2, HTTP1], false));
    let tollgate = start(&authority, backend.address, "127.0.0.1", "");
    let mut client = tollgate.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    let answer = client.head();
    assert_eq!(answer.status, 101, "{}", tollgate.log());
    client.send("\x01\x02through");
    assert_eq!(client.read_exactly(9), b"\x01\x02through");
    assert_eq!(*backend.protocols.lock().unwrap(), [Some(HTTP1.to_vec())]);
}

#[test]
fn a_socket_of_this_machine_is_spoken_to_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let connections = Arc::new(AtomicUsize::new(0));
    let (seen, count) = (Arc::clone(&heads), Arc::clone(&connections));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::SeqCst);
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut writer = stream;
                let mut head = String::new();
                while reader.read_line(&mut head).is_ok_and(|count| count > 0) {
                    if head.ends_with("\r\n\r\n") {
                        seen.lock().unwrap().push(std::mem::take(&mut head));
                        writer
                            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                            .unwrap();
                    }
                }
            });
        }
    });
    for (url, keeps_host) in
        [(format!("unix:{}", path.display()), true), (format!("unix://{}", path.display()), false)]
    {
        let config = format!(
            "server: {{ workers: 1 }}\nupstream: {{ url: '{url}', preserve_host: {keeps_host} }}\n"
        );
        let tollgate = Start::default().config(&config).tiers(GENEROUS).run();
        for _ in 0..3 {
            assert_eq!(tollgate.get("/x").text(), "ok");
        }
        let head = heads.lock().unwrap().last().unwrap().to_ascii_lowercase();
        let host = if keeps_host { "host: test\r\n" } else { "host: localhost\r\n" };
        assert!(head.contains(host), "{head}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 2, "one for each tollgate");
}

#[test]
fn a_socket_that_nobody_listens_on_is_a_502() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("unix:{}", directory.path().join("nobody.sock").display());
    // One, since each worker says it for itself.
    let start = Start::default().config("server: { workers: 1 }\n");
    let tollgate = start.arguments(&["--upstream", &url]).run();
    let answer = tollgate.get("/x");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.field("proxy-status"), Some("tollgate; error=connection_refused"));
    assert!(!answer.text().contains("sock"));
    for _ in 0..5 {
        tollgate.get("/x");
    }
    wait_until("the log says why", || tollgate.log().contains("No such file or directory"));
    assert_eq!(tollgate.log().matches("the upstream is not reached").count(), 1);
}

#[test]
fn localhost_is_found_wherever_the_backend_listens() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = std::net::TcpListener::bind(at) else { continue };
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut bytes = [0; 4096];
                    while stream.read(&mut bytes).is_ok_and(|count| count > 0) {
                        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        stream.write_all(ok).ok();
                    }
                });
            }
        });
        let url = format!("http://localhost:{port}");
        let tollgate = Start::default().arguments(&["--upstream", &url]).run();
        for _ in 0..4 {
            assert_eq!(tollgate.connect().get("/x").status, 200, "{at}: {}", tollgate.log());
        }
    }
}

#[test]
fn what_is_wrong_with_the_files_is_said_with_its_place() {
    let authority = Authority::new();
    std::fs::write(authority.path("empty.pem"), "hello\n").unwrap();
    let check = |tls: &str| {
        let path = authority.path("tollgate.yaml");
        let config = format!("upstream:\n  url: https://backend.test\n  tls: {{ {tls} }}\n");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.arg("check").arg("--config").arg(&path).output().unwrap();
        let (out, err) = (&output.stdout, &output.stderr);
        let said = format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err));
        (output.status.code().unwrap(), said.replace(&authority.file(""), ""))
    };
    let file = |name| authority.file(name);
    let (ca, empty, missing) = (file("ca.crt"), file("empty.pem"), file("missing.pem"));
    let (cert, key, other) = (file("client.crt"), file("client.key"), file("other.key"));
    for (tls, expected) in [
        (
            format!("ca: '{missing}'"),
            "tollgate.yaml:3:14: upstream.tls.ca: missing.pem: cannot be read",
        ),
        (
            format!("ca: '{empty}'"),
            "tollgate.yaml:3:14: upstream.tls.ca: empty.pem: no certificate in it, expected certificates of authorities, in PEM",
        ),
        (
            "server_name: 'a b'".into(),
            "tollgate.yaml:3:23: upstream.tls.server_name: \"a b\", expected a name or an address",
        ),
        (
            format!("client_cert: '{cert}'"),
            "upstream.tls.client_cert: given without client_key, expected both or neither",
        ),
        (
            format!("client_key: '{key}'"),
            "upstream.tls.client_key: given without client_cert, expected both or neither",
        ),
        (
            format!("client_cert: '{empty}', client_key: '{key}'"),
            "upstream.tls.client_cert: empty.pem: no certificate in it, expected a certificate, in PEM",
        ),
        (
            format!("client_cert: '{cert}', client_key: '{ca}'"),
            "upstream.tls.client_key: ca.crt: no private key in it, expected the private key of upstream.tls.client_cert, in PEM",
        ),
        (
            format!("client_cert: '{cert}', client_key: '{other}'"),
            "upstream.tls.client_key: other.key: not the certificate's key, expected the private key",
        ),
    ] {
        let (code, said) = check(&tls);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(expected), "{said}\n  lacks {expected}");
        assert!(!said.contains("PRIVATE"), "{said}");
    }
    let (code, said) = check(&format!("ca: '{ca}', client_cert: '{cert}', client_key: '{key}'"));
    assert_eq!(code, 0, "{said}");
}
