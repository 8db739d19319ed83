//! What WebSocket clients and servers do to each other (RFC 6455), by the categories of the Autobahn
//! test suite: framing, pings, reserved bits and opcodes, fragments, UTF-8, closing, sizes, extensions.
//!
//! Each case is told to an echo server directly, through tollgate, and through tollgate on a stream of
//! HTTP/2; what comes back has to be the same to the last byte: a proxy is not to be noticed.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;
#[path = "support/websocket.rs"]
mod websocket;
#[path = "support/websocket_bridge.rs"]
mod websocket_bridge;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use futures_util::{SinkExt, StreamExt};
use support::{Backend, Client, GENEROUS, PATIENCE, Start, Tollgate, wait_until};
use tokio_tungstenite::tungstenite::Message;
use websocket::{
    BINARY, CLOSE, CONTINUATION, FIN, Frame, PING, PONG, TEXT, frame, half_by_half, read_frame,
};

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes(), reason].concat())
}

/// What a client does.
#[derive(Clone, Debug)]
enum Step {
    /// Sends these bytes at once.
    Send(Vec<u8>),
    /// Sends them in pieces of this size.
    Chopped(Vec<u8>, usize),
    /// Waits for a frame.
    Await,
    /// Sends no more.
    HalfClose,
}

use Step::{Await, Chopped, HalfClose, Send};

/// A case of a category, and what the server has to say to it.
struct Case {
    name: String,
    steps: Vec<Step>,
    expect: Expect,
}

enum Expect {
    /// These frames, then a Close with this code, or without one.
    Frames(Vec<(u8, Vec<u8>)>, Option<u16>),
    /// The connection fails: no frame but a Close, with another code than 1000, or a mere end.
    Fails,
}

/// Messages are echoed; then the client says goodbye, and so does the server.
fn echoed(name: &str, mut steps: Vec<Step>, frames: Vec<(u8, Vec<u8>)>) -> Case {
    steps.push(Send(close(1000, b"")));
    Case { name: name.into(), steps, expect: Expect::Frames(frames, Some(1000)) }
}

fn fails(name: &str, bytes: Vec<Vec<u8>>) -> Case {
    let steps = bytes.into_iter().map(Send).collect();
    Case { name: name.into(), steps, expect: Expect::Fails }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let text = |length: usize| b"*".repeat(length);
    // 1: framing, texts and binary of all three kinds of length.
    for (kind, what) in [(TEXT, "text"), (BINARY, "binary")] {
        for length in [0, 125, 126, 127, 128, 65_535, 65_536] {
            let steps = vec![Send(frame(FIN | kind, &text(length)))];
            let name = format!("1: {what} of {length}");
            cases.push(echoed(&name, steps, vec![(FIN | kind, text(length))]));
        }
        let steps = vec![Chopped(frame(FIN | kind, &text(65_536)), 997)];
        let name = format!("1: {what} of 65536 in pieces of 997");
        cases.push(echoed(&name, steps, vec![(FIN | kind, text(65_536))]));
    }
    // 2: pings and pongs.
    for payload in [&b""[..], b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", &text(125)] {
        let steps = vec![Send(frame(FIN | PING, payload)), Await];
        let name = format!("2: ping of {}", payload.len());
        cases.push(echoed(&name, steps, vec![(FIN | PONG, payload.to_vec())]));
    }
    cases.push(fails("2: ping of 126", vec![frame(FIN | PING, &text(126))]));
    let steps = vec![Chopped(frame(FIN | PING, &text(125)), 1), Await];
    cases.push(echoed("2: ping byte by byte", steps, vec![(FIN | PONG, text(125))]));
    let pong = || Send(frame(FIN | PONG, b"unsolicited"));
    cases.push(echoed("2: pong unasked", vec![pong()], vec![]));
    let steps = vec![pong(), Send(frame(FIN | PING, b"ping")), Await];
    cases.push(echoed("2: pong unasked, then ping", steps, vec![(FIN | PONG, b"ping".to_vec())]));
    let payload = |number: usize| format!("payload-{number}").into_bytes();
    let steps = (0..10).flat_map(|it| [Send(frame(FIN | PING, &payload(it))), Await]).collect();
    let pongs = (0..10).map(|it| (FIN | PONG, payload(it))).collect();
    cases.push(echoed("2: ten pings", steps, pongs));
    // 3 and 4: reserved bits and opcodes.
    for bits in 1..8_u8 {
        for kind in [TEXT, BINARY, PING, CLOSE] {
            let name = format!("3: reserved bits {bits} of {kind}");
            cases.push(fails(&name, vec![frame(FIN | bits << 4 | kind, b"small")]));
        }
    }
    for opcode in [3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        for payload in [&b""[..], b"reserved"] {
            let name = format!("4: opcode {opcode} with {}", payload.len());
            cases.push(fails(&name, vec![frame(FIN | opcode, payload)]));
        }
    }
    // 5: fragments.
    let parts = |parts: &[&str]| -> Vec<Vec<u8>> {
        let last = parts.len() - 1;
        let of = |(index, part): (usize, &&str)| {
            let opcode = if index == 0 { TEXT } else { CONTINUATION };
            frame(if index == last { FIN | opcode } else { opcode }, part.as_bytes())
        };
        parts.iter().enumerate().map(of).collect()
    };
    let whole = vec![(FIN | TEXT, b"fragment1fragment2".to_vec())];
    let two = parts(&["fragment1", "fragment2"]);
    cases.push(echoed("5: two fragments", two.iter().cloned().map(Send).collect(), whole.clone()));
    cases.push(echoed("5: two fragments at once", vec![Send(two.concat())], whole.clone()));
    cases.push(echoed(
        "5: two fragments byte by byte",
        vec![Chopped(two.concat(), 1)],
        whole.clone(),
    ));
    let steps = vec![
        Send(two[0].clone()),
        Send(frame(FIN | PING, b"between")),
        Await,
        Send(two[1].clone()),
    ];
    let both = [vec![(FIN | PONG, b"between".to_vec())], whole].concat();
    cases.push(echoed("5: a ping between fragments", steps, both));
    let empty = parts(&["", "", ""]);
    cases.push(echoed(
        "5: empty fragments",
        vec![Send(empty.concat())],
        vec![(FIN | TEXT, vec![])],
    ));
    cases.push(fails(
        "5: ping in fragments",
        vec![frame(PING, b"a"), frame(FIN | CONTINUATION, b"b")],
    ));
    cases.push(fails(
        "5: pong in fragments",
        vec![frame(PONG, b"a"), frame(FIN | CONTINUATION, b"b")],
    ));
    cases.push(fails("5: goes on with nothing", vec![frame(FIN | CONTINUATION, b"a")]));
    cases.push(fails("5: goes on with nothing, and on", vec![frame(CONTINUATION, b"a")]));
    cases.push(fails("5: a text within a text", vec![frame(TEXT, b"a"), frame(FIN | TEXT, b"b")]));
    // 6: UTF-8.
    for valid in ["Hello-µ@ßöäüàá-UTF-8!!", "\u{0}", "\u{7ff}", "\u{ffff}", "\u{10ffff}", "κόσμε"]
    {
        let bytes = valid.as_bytes();
        let name = format!("6: {valid:?}");
        let echo = vec![(FIN | TEXT, bytes.to_vec())];
        cases.push(echoed(&name, vec![Send(frame(FIN | TEXT, bytes))], echo.clone()));
        // Cut anywhere, within a character too.
        let mut steps = vec![Send(frame(TEXT, &bytes[..1]))];
        steps.extend(bytes[1..].iter().map(|byte| Send(frame(CONTINUATION, &[*byte]))));
        steps.push(Send(frame(FIN | CONTINUATION, b"")));
        cases.push(echoed(&format!("{name} in pieces"), steps, echo));
    }
    for invalid in [
        &b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited"[..],
        b"\x80",
        b"\xbf",
        b"\xc0\xaf",
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xf5\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xed\xbf\xbf",
        b"\xfe",
        b"\xff",
        b"\xc3",
    ] {
        let name = format!("6: {}", invalid.escape_ascii());
        cases.push(fails(&name, vec![frame(FIN | TEXT, invalid)]));
        let pieces = vec![frame(TEXT, b"ok"), frame(FIN | CONTINUATION, invalid)];
        cases.push(fails(&format!("{name} in pieces"), pieces));
    }
    // 7: closing.
    let said = |code| Expect::Frames(vec![], code);
    let closing = |name: String, bytes: Vec<Vec<u8>>, expect: Expect| Case {
        name,
        steps: bytes.into_iter().map(Send).collect(),
        expect,
    };
    cases.push(closing(
        "7: close without a code".into(),
        vec![frame(FIN | CLOSE, b"")],
        said(None),
    ));
    let twice = vec![close(1000, b""), close(1000, b"")];
    cases.push(closing("7: close twice".into(), twice, said(Some(1000))));
    let ping = vec![close(1000, b""), frame(FIN | PING, b"late")];
    cases.push(closing("7: ping after close".into(), ping, said(Some(1000))));
    let message = vec![close(1000, b""), frame(FIN | TEXT, b"late")];
    cases.push(closing("7: text after close".into(), message, said(Some(1000))));
    let inside = vec![frame(TEXT, b"begun"), close(1000, b"")];
    cases.push(closing("7: close within a text".into(), inside, said(Some(1000))));
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        let bytes = vec![close(code, b"why")];
        cases.push(closing(format!("7: close with {code}"), bytes, said(Some(code))));
    }
    cases.push(closing(
        "7: a reason of 123".into(),
        vec![close(1000, &text(123))],
        said(Some(1000)),
    ));
    for code in [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999] {
        cases.push(fails(&format!("7: close with {code}"), vec![close(code, b"")]));
    }
    cases.push(fails("7: close with a byte", vec![frame(FIN | CLOSE, b"a")]));
    cases.push(fails("7: a reason of 124", vec![close(1000, &text(124))]));
    cases.push(fails("7: a reason that is no UTF-8", vec![close(1000, b"\xce\xba\xed\xa0\x80")]));
    let steps = vec![Send(frame(FIN | TEXT, b"last")), Await, HalfClose];
    let expect = Expect::Frames(vec![(FIN | TEXT, b"last".to_vec())], None);
    cases.push(Case { name: "7: ends without a word".into(), steps, expect });
    // 9: sizes.
    for (kind, what) in [(TEXT, "text"), (BINARY, "binary")] {
        for mib in [1, 4] {
            let payload = text(mib << 20);
            let echo = vec![(FIN | kind, payload.clone())];
            let name = format!("9: {what} of {mib} MiB");
            let whole = vec![Send(frame(FIN | kind, &payload))];
            cases.push(echoed(&name, whole, echo.clone()));
            for size in [1 << 10, 64 << 10] {
                let mut bytes = frame(kind, b"");
                payload.chunks(size).for_each(|it| bytes.extend(frame(CONTINUATION, it)));
                bytes.extend(frame(FIN | CONTINUATION, b""));
                let name = format!("{name} in fragments of {size}");
                cases.push(echoed(&name, vec![Send(bytes)], echo.clone()));
            }
            let steps = vec![Chopped(frame(FIN | kind, &payload), 8191)];
            cases.push(echoed(&format!("{name} in pieces of 8191"), steps, echo));
        }
    }
    // 10: frames of a size that fits no buffer.
    let payload = text(65_536);
    let mut bytes = frame(TEXT, &payload[..1300]);
    payload[1300..].chunks(1300).for_each(|it| bytes.extend(frame(CONTINUATION, it)));
    bytes.extend(frame(FIN | CONTINUATION, b""));
    cases.push(echoed("10: fragments of 1300", vec![Send(bytes)], vec![(FIN | TEXT, payload)]));
    cases
}

/// Does what a case says, and tells all frames that come back until the server ends it.
fn play(address: SocketAddr, steps: &[Step]) -> Vec<Frame> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut writer = stream.try_clone().unwrap();
    writer
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .unwrap();
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // RFC 6455 §1.3 has this very pair.
    let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";
    assert!(head.to_ascii_lowercase().contains(accept), "{head}");
    // Read meanwhile: what is large comes back before all of it was sent.
    let (sender, frames) = std::sync::mpsc::sync_channel(1024);
    let reading = std::thread::spawn(move || {
        loop {
            match read_frame(&mut reader) {
                Ok(Some(frame)) => sender.send(frame).ok(),
                Ok(None) => return,
                // A server that has failed a connection may reset it.
                Err(error) => {
                    let is_reset = matches!(
                        error.kind(),
                        ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
                    );
                    assert!(is_reset, "{error}");
                    return;
                }
            };
        }
    });
    let mut seen = Vec::new();
    for step in steps {
        // Whoever has ended it reads no more.
        let _ = match step {
            Send(bytes) => writer.write_all(bytes),
            Chopped(bytes, size) => {
                bytes.chunks(*size).try_for_each(|piece| writer.write_all(piece))
            }
            HalfClose => writer.shutdown(Shutdown::Write),
            Await => {
                seen.extend(frames.recv_timeout(PATIENCE).ok());
                Ok(())
            }
        };
    }
    reading.join().unwrap();
    seen.extend(frames);
    seen
}

/// Echoes messages, and holds whoever speaks to it to RFC 6455.
fn echo_server() -> SocketAddr {
    support::listen(|listener| async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    let sent = match message {
                        Message::Text(_) | Message::Binary(_) => socket.send(message).await,
                        _ => socket.flush().await,
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

fn tollgate_before(upstream: SocketAddr) -> Tollgate {
    Start::default().upstream(upstream).tiers(GENEROUS).run()
}

#[test]
fn every_case_ends_through_tollgate_as_it_does_without() {
    let server = echo_server();
    let tollgate = tollgate_before(server);
    let over_http2 = websocket_bridge::spawn(tollgate.data);
    let cases = cases();
    for Case { name, steps, expect } in &cases {
        let direct = play(server, steps);
        let mut said = direct.clone();
        let goodbye = said.pop_if(|last| last.first == FIN | CLOSE);
        let code = goodbye.as_ref().and_then(|it| it.payload.first_chunk::<2>().copied());
        let code = code.map(u16::from_be_bytes);
        match expect {
            Expect::Frames(frames, expected) => {
                let said: Vec<_> = said.into_iter().map(|it| (it.first, it.payload)).collect();
                assert!(said == *frames, "{name}: not echoed, {} frames", said.len());
                assert_eq!(code, *expected, "{name}");
            }
            Expect::Fails => {
                assert!(said.is_empty(), "{name}: {} frames", said.len());
                assert_ne!(code, Some(1000), "{name}");
            }
        }
        for (route, way) in [(tollgate.data, "HTTP/1.1"), (over_http2, "HTTP/2")] {
            let through = play(route, steps);
            let counts = (through.len(), direct.len());
            assert!(through == direct, "{name}, {way}: {} frames, {} without", counts.0, counts.1);
        }
    }
    println!("{} cases", cases.len());
    assert!(cases.len() >= 168, "{}", cases.len());
    wait_until("all are closed", || {
        tollgate.metric(r#"websocket_connections_active{endpoint="other"}"#) == 0.0
    });
}

/// 12 and 13: compression is for the two ends to agree on, and for them to undo.
#[test]
fn extensions_and_subprotocols_are_the_ends_own() {
    let mut squeezed = frame(FIN | 0x40 | TEXT, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    squeezed.extend(frame(0x40 | BINARY, &[0x55; 300]));
    squeezed.extend(frame(FIN | CONTINUATION, &[0xaa; 70_000]));
    let length = squeezed.len();
    let backend = Backend::spawn(move |mut connection| {
        let Some(seen) = connection.request() else { return };
        for (name, value) in [
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
            ("sec-websocket-protocol", "wamp.2.json, chat"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
        ] {
            assert_eq!(seen.field(name), Some(value));
        }
        connection.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\
             Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: x\r\n\r\n",
        );
        let bytes = connection.read_exactly(length);
        connection.send(bytes);
    });
    let tollgate = tollgate_before(backend.address);
    let mut client = Client::connect(tollgate.data);
    client.send(
        "GET /ws HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
         Sec-WebSocket-Protocol: wamp.2.json, chat\r\n\r\n",
    );
    let head = client.head();
    assert_eq!(head.status, 101);
    let agreed = Some("permessage-deflate; server_no_context_takeover");
    assert_eq!(head.field("sec-websocket-extensions"), agreed);
    assert_eq!(head.field("sec-websocket-protocol"), Some("chat"));
    client.send(&squeezed);
    assert!(client.read_exactly(length) == squeezed, "what came back is not what was sent");
}

/// Whichever side ends its half first, the other half goes on.
#[test]
fn one_half_outlives_the_other() {
    let backend = Backend::spawn(|mut connection| {
        let Some(seen) = connection.request() else { return };
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        connection.send(head);
        half_by_half(&mut connection, seen.target());
    });
    let tollgate = tollgate_before(backend.address);
    let open = |path: &str| {
        let mut client = Client::connect(tollgate.data);
        client.send(format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ));
        assert_eq!(client.head().status, 101);
        client
    };
    let mut client = open("/client-first");
    client.send("first").end_writing();
    assert_eq!(client.read_to_end(), b"and last");
    let mut client = open("/server-first");
    assert_eq!(client.read_exactly(5), b"first");
    assert!(client.read_to_end().is_empty(), "the server's end comes through");
    client.send("and last");
    drop(client);
    wait_until("both are over", || {
        tollgate.metric(r#"websocket_connections_active{endpoint="other"}"#) == 0.0
    });
}
