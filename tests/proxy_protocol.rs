//! The PROXY protocol, by the bytes that proxies send, and the bound on connections of one address.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use support::{Backend, Client, GENEROUS, Start, Tollgate, wait_until};
use tollgate::proxy::announced::named;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A tollgate that trusts 127.0.0.1, and nobody else of this machine.
fn tollgate(backend: &Backend, server: &str) -> Tollgate {
    let config = format!("server: {{ trusted_proxies: [127.0.0.1], {server} }}\n");
    Start::default().upstream(backend.address).config(&config).tiers(GENEROUS).run()
}

/// Version 2: command and version, family and protocol, what follows.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

fn v2_of(source: &str) -> Vec<u8> {
    let source: SocketAddr = source.parse().unwrap();
    let (mut rest, family) = match source.ip() {
        std::net::IpAddr::V4(it) => ([it.octets(), [192, 0, 2, 1]].concat(), 0x11),
        std::net::IpAddr::V6(it) => ([it.octets(), [1; 16]].concat(), 0x21),
    };
    rest.extend(source.port().to_be_bytes());
    rest.extend(443_u16.to_be_bytes());
    v2(1, family, &rest)
}

/// Whom the backend was told that a request came from.
fn forwarded_for(tollgate: &Tollgate, backend: &Backend, source: &str, parts: &[&[u8]]) -> String {
    let mut client = Client::connect_from(source, tollgate.data);
    for part in parts {
        client.send(part);
    }
    assert_eq!(client.answer().status, 200);
    backend.last().field("x-forwarded-for").unwrap().to_owned()
}

/// Whether the connection is closed without an answer.
fn is_closed(tollgate: &Tollgate, source: &str, bytes: &[u8]) -> bool {
    Client::connect_from(source, tollgate.data).send(bytes).read_to_end().is_empty()
}

fn refused(tollgate: &Tollgate, reason: &str) -> f64 {
    tollgate.metric(&format!("tollgate_connections_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn a_trusted_proxy_says_whom_a_connection_is_for() {
    let backend = Backend::ok();
    let tollgate = tollgate(&backend, "proxy_protocol: any");
    let from = |parts: &[&[u8]]| forwarded_for(&tollgate, &backend, "127.0.0.1", parts);
    let request = REQUEST.as_bytes();
    let text = b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n";
    assert_eq!(from(&[text, request]), "198.51.100.22");
    assert_eq!(from(&[&[&text[..], request].concat()]), "198.51.100.22");
    // Byte by byte, as a network may deliver it.
    let bytes: Vec<&[u8]> = text.chunks(1).chain([request]).collect();
    assert_eq!(from(&bytes), "198.51.100.22");
    assert_eq!(from(&[b"PROXY TCP6 2001:db8::22 2001:db8::7 1 2\r\n", request]), "2001:db8::22");
    // The longest there is.
    let longest = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(longest.len(), 107);
    assert_eq!(from(&[longest, request]), "127.0.0.1");
    // Whatever a proxy may tell that does not know.
    for line in
        [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN a b c d e f\r\n", b"PROXY UNKNOWN \r \r\n"]
    {
        assert_eq!(from(&[line, request]), "127.0.0.1", "{}", line.escape_ascii());
    }

    let binary = v2_of("198.51.100.23:4000");
    assert_eq!(from(&[&binary, request]), "198.51.100.23");
    let bytes: Vec<&[u8]> = binary.chunks(1).chain([request]).collect();
    assert_eq!(from(&bytes), "198.51.100.23");
    assert_eq!(from(&[&v2_of("[2001:db8::23]:4000"), request]), "2001:db8::23");
    assert_eq!(from(&[&v2_of("[::ffff:198.51.100.9]:4000"), request]), "198.51.100.9");
    // What else it tells is passed over; a check of its own and a socket have no address.
    let mut more = v2_of("198.51.100.24:4000");
    let tlv = [0x02, 0x00, 0x03, b'a', b'.', b'b'];
    more.extend(tlv);
    more[15] += u8::try_from(tlv.len()).unwrap();
    assert_eq!(from(&[&more, request]), "198.51.100.24");
    assert_eq!(from(&[&v2(0, 0x00, &[]), request]), "127.0.0.1");
    assert_eq!(from(&[&v2(0, 0x11, &[]), request]), "127.0.0.1");
    assert_eq!(from(&[&v2(0, 0xff, b"abc"), request]), "127.0.0.1");
    assert_eq!(from(&[&v2(1, 0x00, &[]), request]), "127.0.0.1");
    assert_eq!(from(&[&v2(1, 0x31, &[0; 216]), request]), "127.0.0.1");
    assert_eq!(refused(&tollgate, "proxy_protocol"), 0.0);
}

#[test]
fn what_is_no_good_header_is_no_connection_and_of_others_it_is_no_request() {
    let backend = Backend::ok();
    let tollgate = tollgate(&backend, "proxy_protocol: any");
    let mut too_long = v2(1, 0x11, &[0; 12]);
    too_long[14] = 0xff;
    let bad: Vec<Vec<u8>> = [
        REQUEST.as_bytes().to_vec(),
        b"PROXY TCP4 198.51.100.22 203.0.113.7 35646\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\n".to_vec(),
        b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80 \n".to_vec(),
        b"PROXY UNKNOWN a b \n".to_vec(),
        b"PROXY TCP4 2001:db8::1 203.0.113.7 35646 80\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.22 203.0.113.7 65536 80\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.22 203.0.113.7 +356 80\r\n".to_vec(),
        b"PROXY UNKNOWNS\r\n".to_vec(),
        b"PROXY TCP4 198.51.100.022 203.0.113.7 1 80\r\n".to_vec(),
        b"PROXY  TCP4 198.51.100.22 203.0.113.7 1 80\r\n".to_vec(),
        b"PROXY UDP4 198.51.100.22 203.0.113.7 1 80\r\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'a'; 200], b"\r\n"].concat(),
        "PROXY UNKNOWN \u{e9}\r\n".as_bytes().to_vec(),
        v2(2, 0x11, &[0; 12]),
        v2(1, 0x41, &[0; 12]),
        v2(1, 0x12, &[0; 12]),
        v2(1, 0x10, &[0; 12]),
        v2(1, 0x01, &[0; 12]),
        v2(1, 0x11, &[0; 11]),
        v2(1, 0x21, &[0; 12]),
        too_long,
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[0x11, 0x11, 0, 12], &[0; 12]].concat(),
    ]
    .into();
    for header in &bad {
        let said = [header, REQUEST.as_bytes()].concat();
        assert!(is_closed(&tollgate, "127.0.0.1", &said), "{}", header.escape_ascii());
    }
    assert_eq!(refused(&tollgate, "proxy_protocol"), bad.len() as f64);
    assert!(tollgate.log().contains("server.proxy_protocol has it say whom"));
    assert_eq!(backend.seen().len(), 0);

    // Who is not trusted has no say, and what they would say is no request.
    let request = REQUEST.as_bytes();
    assert_eq!(forwarded_for(&tollgate, &backend, "127.0.0.2", &[request]), "127.0.0.2");
    for header in [&b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n"[..], &v2_of("1.2.3.4:5")] {
        let mut client = Client::connect_from("127.0.0.2", tollgate.data);
        assert_eq!(client.send([header, request].concat()).answer().status, 400);
    }
    assert_eq!(backend.seen().len(), 1);
}

#[test]
fn one_version_alone_is_the_only_one() {
    let backend = Backend::ok();
    let text = [b"PROXY TCP4 198.51.100.22 203.0.113.7 35646 80\r\n", REQUEST.as_bytes()].concat();
    let binary = [&v2_of("198.51.100.23:4000"), REQUEST.as_bytes()].concat();
    let only = tollgate(&backend, "proxy_protocol: v1");
    assert_eq!(forwarded_for(&only, &backend, "127.0.0.1", &[&text]), "198.51.100.22");
    assert!(is_closed(&only, "127.0.0.1", &binary));
    let only = tollgate(&backend, "proxy_protocol: v2");
    assert_eq!(forwarded_for(&only, &backend, "127.0.0.1", &[&binary]), "198.51.100.23");
    assert!(is_closed(&only, "127.0.0.1", &text));
    // Off, it is nothing at all.
    let off = tollgate(&backend, "");
    let mut client = Client::connect(off.data);
    assert_eq!(client.send(&text).answer().status, 400);
}

#[test]
fn it_comes_before_tls() {
    let directory = tempfile::tempdir().unwrap();
    certificates::self_signed(directory.path(), "a", "a", 90);
    let at = directory.path().display();
    let backend = Backend::ok();
    let config = format!(
        "server: {{ trusted_proxies: [127.0.0.1], proxy_protocol: any, listeners: [{{ address: \
         '127.0.0.1:0', tls: {{ cert: {at}/a.crt, key: {at}/a.key }} }}] }}\n"
    );
    let start = Start::default().upstream(backend.address).config(&config).tiers(GENEROUS);
    let tollgate = start.listeners().run();
    for (options, version) in [(&["--http1.1"][..], "HTTP/1.1"), (&["--http2"], "HTTP/2")] {
        let output = Command::new("curl")
            .args(["-s", "--cacert", "a.crt", "--haproxy-protocol", "-o", "/dev/null", "-w"])
            .args(["%{http_code}", "--max-time", "20"])
            .args(options)
            .arg(format!("https://localhost:{}/", tollgate.data.port()))
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "200", "{version}");
    }
    // Without it, there is no handshake.
    let script = format!(
        "! curl -s --cacert a.crt --max-time 20 https://localhost:{}/",
        tollgate.data.port()
    );
    certificates::shell(directory.path(), &script);
}

#[test]
fn limits_are_kept_for_whom_it_names() {
    let backend = Backend::ok();
    let config = "server: { trusted_proxies: [127.0.0.1], proxy_protocol: v2 }\n";
    let tiers = "default_tier: free\ntiers: { free: { per_hour: 1 } }\n";
    let start = Start::default().upstream(backend.address).config(config).tiers(tiers);
    let tollgate = start.run();
    let ask = |source: &str, field: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n");
        let bytes = [&v2_of(source), request.as_bytes()].concat();
        Client::connect(tollgate.data).send(bytes).answer().status
    };
    assert_eq!(ask("198.51.100.1:1", ""), 200);
    assert_eq!(ask("198.51.100.1:2", ""), 429);
    assert_eq!(ask("198.51.100.2:1", ""), 200);
    // Whom it names is no trusted proxy: what they say of themselves is not believed.
    assert_eq!(ask("198.51.100.2:2", "X-Forwarded-For: 198.51.100.3\r\n"), 429);
    // A proxy further out, which is trusted, speaks for its own callers.
    assert_eq!(ask("127.0.0.1:1", "X-Forwarded-For: 198.51.100.3\r\n"), 200);
    assert_eq!(ask("127.0.0.1:1", "X-Forwarded-For: 198.51.100.3\r\n"), 429);
}

#[test]
fn an_address_has_so_many_connections_and_no_more() {
    let backend = Backend::ok();
    let tollgate = tollgate(&backend, "max_connections_per_ip: 3");
    let connect = |source: &str| Client::connect_from(source, tollgate.data);
    let mut kept: Vec<Client> = (0..3).map(|_| connect("127.0.0.2")).collect();
    for client in &mut kept {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(is_closed(&tollgate, "127.0.0.2", b""));
    assert_eq!(refused(&tollgate, "max_connections_per_ip"), 1.0);
    // Others have theirs, and a proxy has as many as it needs.
    let mut others: Vec<Client> =
        ["127.0.0.3", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"].map(connect).into();
    for client in &mut others {
        assert_eq!(client.get("/").status, 200);
    }
    // A place is free once a connection has ended, of whatever kind.
    drop(kept.pop());
    wait_until("there is room again", || {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        connect("127.0.0.2").send(request).read_to_end().starts_with(b"HTTP/1.1 200")
    });
    assert_eq!(kept[0].get("/").status, 200);
}

#[test]
fn whom_the_proxy_names_has_so_many_connections() {
    let backend = Backend::ok();
    let tollgate = tollgate(&backend, "max_connections_per_ip: 2, proxy_protocol: v2");
    let connect = |source: &str| {
        let mut client = Client::connect(tollgate.data);
        client.send([&v2_of(source), REQUEST.as_bytes()].concat());
        client
    };
    let mut kept = [connect("198.51.100.1:1"), connect("198.51.100.1:2")];
    assert!(kept.iter_mut().all(|client| client.answer().status == 200));
    assert!(connect("198.51.100.1:3").read_to_end().is_empty());
    assert_eq!(connect("198.51.100.2:1").answer().status, 200);
    assert_eq!(refused(&tollgate, "max_connections_per_ip"), 1.0);
    assert_eq!(kept[1].get("/").status, 200);
}

#[test]
fn a_proxy_that_says_nothing_is_waited_for_a_while() {
    let backend = Backend::ok();
    let tollgate = tollgate(&backend, "proxy_protocol: any");
    let stream = TcpStream::connect(tollgate.data).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut silent = Client::connect(tollgate.data);
    assert!(silent.send("PROXY ").read_to_end().is_empty());
    wait_until("both are counted", || refused(&tollgate, "proxy_protocol") == 2.0);
    drop(stream);
}

/// No bytes make it panic, and what it names was written there.
#[test]
fn whatever_is_read_names_what_is_written_in_it() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..20_000_u64 {
        let address = std::net::Ipv4Addr::from_bits(random() as u32);
        let port = random() as u16;
        let good = if round % 2 == 0 {
            format!("PROXY TCP4 {address} 192.0.2.1 {port} 80\r\n").into_bytes()
        } else {
            v2_of(&format!("{address}:{port}"))
        };
        assert_eq!(named(&good).unwrap(), Some(SocketAddr::from((address, port))));
        let mut spoilt = good.clone();
        for _ in 0..=random() % 3 {
            let place = random() as usize % spoilt.len();
            match random() % 3 {
                0 => spoilt[place] = random() as u8,
                1 => spoilt.truncate(place.max(1)),
                _ => spoilt.insert(place, random() as u8),
            }
        }
        let _ = named(&spoilt);
    }
}
