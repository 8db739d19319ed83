//! One attack each on a real tollgate, with honest requests meanwhile: all of those are answered,
//! memory grows by no more than is said here, and the attackers get what docs/abuse.md says.
//!
//! `tests/long.sh abuse` runs them longer, one after the other, and prints how long honest requests
//! waited. Here no time is a test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/load.rs"]
mod load;
#[path = "support/siege.rs"]
mod siege;
mod support;
#[path = "support/tokens.rs"]
mod tokens;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::json;

use http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM, Raw,
    SETTINGS, WINDOW_UPDATE, block, frame,
};
use siege::{Attack, Outcome, PLAIN, Siege};
use support::{PATIENCE, wait_until};

macro_rules! attacks {
    ($($test:ident: $attack:expr;)*) => {
        $(#[test]
        fn $test() {
            let attack: Attack = $attack;
            let row = siege::run(&attack, false);
            println!("{row}");
            assert!(row.failures.is_empty(), "{:?}", row.failures);
            let (growth, most) = (row.growth >> 20, attack.growth_max);
            assert!(growth < most, "{}: grown by {growth} MiB, at most {most}", attack.name);
        })*

        /// Every attack, longer, and a row of the table for each; `ABUSE` names some of them.
        #[test]
        #[ignore = "minutes: tests/long.sh abuse"]
        fn table() {
            let wanted = std::env::var("ABUSE").unwrap_or_default();
            println!("| attack | sent | MiB | honest | p50 ms | p99 ms | most | attackers |");
            println!("|---|---|---|---|---|---|---|---|");
            let mut failures = Vec::new();
            for (name, attack) in [$((stringify!($test), $attack as Attack)),*] {
                if name.contains(&wanted) {
                    let row = siege::run(&attack, true);
                    println!("{row}");
                    failures.extend(row.failures);
                }
            }
            assert!(failures.is_empty(), "{failures:?}");
        }
    };
}

attacks! {
    slow_heads: Attack {
        name: "slow heads", server: "  header_timeout: 2s\n", growth_max: 64, run: drip_heads, ..PLAIN
    };
    silence: Attack {
        name: "silence", server: "  header_timeout: 2s\n", growth_max: 32, run: say_nothing, ..PLAIN
    };
    slow_bodies: Attack {
        name: "slow bodies", server: "  body_timeout: 2s\n", growth_max: 48, run: drip_bodies, ..PLAIN
    };
    slow_readers: Attack {
        name: "slow readers", server: "  idle_timeout: 2s\n", growth_max: 96, run: read_nothing, ..PLAIN
    };
    pipelines: Attack {
        name: "pipelines that read nothing", server: "  idle_timeout: 2s\n", growth_max: 48,
        run: pipeline, ..PLAIN
    };
    idle_connections: Attack {
        name: "idle connections", growth_max: 64, run: idle, ..PLAIN
    };
    header_floods: Attack { name: "header floods", growth_max: 32, run: flood_headers, ..PLAIN };
    chunk_extensions: Attack {
        name: "chunk extensions", growth_max: 32, run: flood_extensions, ..PLAIN
    };
    churn: Attack { name: "churn and resets", growth_max: 64, run: come_and_go, ..PLAIN };
    tls_stalls: Attack {
        name: "TLS handshakes that stall", server: "  header_timeout: 3s\n", is_tls: true,
        growth_max: 64, run: stall_handshakes, ..PLAIN
    };
    connections_in_total: Attack {
        name: "connections in total", server: "  max_connections: 100\n", is_open: false,
        growth_max: 32, run: take_all_places, ..PLAIN
    };
    connections_of_an_address: Attack {
        name: "connections of an address", server: "  max_connections_per_ip: 20\n",
        growth_max: 32, run: take_places, ..PLAIN
    };
    bad_tokens: Attack {
        name: "bad tokens", config: IDENTITY, fields: good_token, growth_max: 32,
        run: flood_tokens, ..PLAIN
    };
    rapid_reset: Attack {
        name: "rapid reset", growth_max: 48,
        run: |it| flood_streams(it, |stream| {
            frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
        }), ..PLAIN
    };
    rapid_reset_with_limits: Attack {
        name: "the same, with limits in force", tiers: LIMITS, growth_max: 48,
        run: |it| flood_streams(it, |stream| {
            frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
        }), ..PLAIN
    };
    made_you_reset: Attack {
        name: "MadeYouReset", growth_max: 48,
        run: |it| flood_streams(it, |stream| {
            // More than a window may be: an error of the stream.
                frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())
        }), ..PLAIN
    };
    refused_streams: Attack {
        name: "streams above the bound", growth_max: 48, run: open_more, ..PLAIN
    };
    continuations: Attack {
        name: "CONTINUATION flood", growth_max: 32,
        run: |it| flood(it, &half(), &frame(CONTINUATION, 0, 1, &block(&[("a", "b")]))), ..PLAIN
    };
    large_continuations: Attack {
        name: "CONTINUATION flood, large", growth_max: 32,
        run: |it| {
            let field = block(&[("a", "b".repeat(16_000))]);
            flood(it, &half(), &frame(CONTINUATION, 0, 1, &field))
        }, ..PLAIN
    };
    hpack_bomb: Attack { name: "HPACK bomb", growth_max: 32, run: bomb, ..PLAIN };
    hpack_small_bombs: Attack {
        name: "HPACK bombs below the limit", growth_max: 64, run: small_bombs, ..PLAIN
    };
    settings: Attack {
        name: "SETTINGS flood", growth_max: 32,
        run: |it| flood(it, b"", &frame(SETTINGS, 0, 0, b"")), ..PLAIN
    };
    pings: Attack {
        name: "PING flood", growth_max: 32,
        run: |it| flood(it, b"", &frame(PING, 0, 0, &[0; 8])), ..PLAIN
    };
    priorities: Attack {
        name: "PRIORITY flood", growth_max: 32,
        run: |it| flood(it, b"", &frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])), ..PLAIN
    };
    empty_data: Attack {
        name: "empty DATA", growth_max: 32,
        run: |it| flood(it, &open(1, "/upload"), &frame(DATA, 0, 1, b"")), ..PLAIN
    };
    padded_data: Attack {
        name: "DATA of padding alone", growth_max: 32,
        // The flag says that the first byte is the length of the padding.
        run: |it| flood(it, &open(1, "/upload"), &frame(DATA, 0x8, 1, &[0])), ..PLAIN
    };
    small_data: Attack {
        name: "DATA of one byte", growth_max: 64, run: dribble, ..PLAIN
    };
    zero_windows: Attack {
        name: "zero windows", server: "  idle_timeout: 2s\n", growth_max: 96, run: shut_windows, ..PLAIN
    };
}

/// The usual limits for attackers; who is honest comes from another network.
const LIMITS: &str = "
default_tier: free
tiers:
  free: { per_second: 5, burst: 10, per_minute: 100, per_hour: 1000 }
  internal: { per_second: 1000, burst: 2000 }
networks: { 127.0.0.1/32: internal }
";

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn outcome(sent: impl Into<String>, fate: impl Into<String>) -> Outcome {
    Outcome { sent: sent.into(), fate: fate.into() }
}

fn bears(told: &[u8], status: &str) -> bool {
    told.starts_with(format!("HTTP/1.1 {status} ").as_bytes())
}

/// Reads until the other side closes or resets; `None` if it does neither.
fn read_to_end(connection: &mut TcpStream) -> Option<usize> {
    connection.set_nonblocking(false).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut buffer, mut total) = (vec![0; 65536], 0);
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return Some(total),
            Ok(count) => total += count,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Some(total),
            Err(_) => return None,
        }
    }
}

/// Reads the beginning of an answer; less at the end of the connection.
fn read_some(connection: &mut TcpStream) -> Vec<u8> {
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 1024];
    let count = connection.read(&mut buffer).unwrap_or(0);
    buffer.truncate(count);
    buffer
}

// ---------------------------------------------------------------------------------------- HTTP/1.1

fn drip_heads(siege: &Siege) -> Outcome {
    let (waves, count) = (siege.scale(1, 2), siege.scale(200, 2000));
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(60_000));
    for _ in 0..waves {
        let mut connections = siege.crowd(count);
        for connection in &mut connections {
            connection.write_all(head.as_bytes()).ok();
        }
        let told = siege.hold(connections, b"x");
        assert!(told.iter().all(|it| bears(it, "408")));
    }
    outcome(format!("{waves} × {count} heads of 60 KB that drip"), "408 each, and closed")
}

fn say_nothing(siege: &Siege) -> Outcome {
    let count = siege.scale(500, 5000);
    let told = siege.hold(siege.crowd(count), b"");
    assert!(told.iter().all(Vec::is_empty));
    outcome(format!("{count} connections without a byte"), "closed")
}

fn drip_bodies(siege: &Siege) -> Outcome {
    let (count, seconds) = (siege.scale(200, 1000), siege.scale(3, 15));
    let mut connections = siege.crowd(count);
    for connection in &mut connections {
        let head = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n";
        connection.write_all(head).unwrap();
    }
    for _ in 0..seconds * 2 {
        for connection in &mut connections {
            connection.write_all(b"x").ok();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    let told = siege.hold(connections, b"");
    assert!(told.iter().all(|it| bears(it, "408")));
    outcome(format!("{count} uploads of two bytes a second"), "held; 408 once they stall")
}

fn read_nothing(siege: &Siege) -> Outcome {
    let count = siege.scale(100, 500);
    let mut connections: Vec<TcpStream> = (0..count).map(|it| siege.connect_narrow(it)).collect();
    for connection in &mut connections {
        connection.write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    siege.wait_until_over();
    let read = connections.iter_mut().map(read_to_end);
    assert!(read.into_iter().all(|it| it.is_some_and(|read| read < 100_000_000)));
    outcome(format!("{count} answers of 1 GB that nobody reads"), "closed")
}

fn pipeline(siege: &Siege) -> Outcome {
    let (count, each) = (siege.scale(20, 200), 2000);
    let mut connections = siege.crowd(count);
    let many = b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n".repeat(each);
    for connection in &mut connections {
        connection.set_nonblocking(true).unwrap();
        connection.write_all(&many).ok();
    }
    siege.wait_until_over();
    assert!(connections.iter_mut().all(|it| read_to_end(it).is_some()));
    outcome(format!("{count} × {each} requests, no answer read"), "closed")
}

fn idle(siege: &Siege) -> Outcome {
    let (count, seconds) = (siege.scale(1000, 10_000), siege.scale(2, 20));
    let ask = |connections: &mut [TcpStream]| {
        connections.iter_mut().for_each(|it| it.write_all(REQUEST).unwrap());
        connections.iter_mut().all(|it| bears(&read_some(it), "200"))
    };
    let mut connections = siege.crowd(count);
    assert!(connections.chunks_mut(100).all(ask));
    std::thread::sleep(Duration::from_secs(seconds as u64));
    assert!(connections.chunks_mut(100).all(ask));
    outcome(format!("{count} connections, idle for {seconds} s"), "kept, and served again")
}

fn flood_headers(siege: &Siege) -> Outcome {
    let count = siege.scale(200, 5000);
    let refused = siege.each(count, |number| {
        let mut connection = siege.connect(number);
        connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ").unwrap();
        let many = if number % 2 == 0 { "x\r\nX: ".repeat(1000) } else { "x".repeat(5000) };
        for _ in 0..40 {
            if connection.write_all(many.as_bytes()).is_err() {
                break;
            }
        }
        connection.write_all(b"\r\n\r\n").ok();
        bears(&read_some(&mut connection), "431")
    });
    assert_eq!(refused, count);
    outcome(format!("{count} heads of 200 KB, or of 40,000 fields"), "431 each, and closed")
}

fn flood_extensions(siege: &Siege) -> Outcome {
    let count = siege.scale(200, 2000);
    let refused = siege.each(count, |number| {
        let mut connection = siege.connect(number);
        let head = b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.write_all(head).unwrap();
        let many = if number % 2 == 0 {
            connection.write_all(b"1;a=").unwrap();
            "x".repeat(4000)
        } else {
            format!("1;a={}\r\nx\r\n", "x".repeat(91)).repeat(40)
        };
        for _ in 0..50 {
            if connection.write_all(many.as_bytes()).is_err() {
                break;
            }
        }
        bears(&read_some(&mut connection), "400")
    });
    assert_eq!(refused, count);
    outcome(format!("{count} bodies with 200 KB of extensions"), "400 each, and closed")
}

fn come_and_go(siege: &Siege) -> Outcome {
    let count = siege.scale(2000, 50_000);
    siege.each(count, |number| {
        let mut connection = siege.connect(number);
        // Few ask anything, and not at once: it is tollgate that is tried, and not the backend, which
        // no limit protects here.
        std::thread::sleep(Duration::from_micros(300));
        let bytes = match number % 50 {
            0 => &b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            1..=5 => REQUEST,
            it if it % 2 == 0 => b"",
            _ => b"GET / HTTP/1.1\r\nHo",
        };
        connection.write_all(bytes).ok();
        let linger = (number % 4 < 2).then_some(Duration::ZERO);
        socket2::SockRef::from(&connection).set_linger(linger).is_ok()
    });
    siege.wait_until_over();
    wait_until("their sockets are closed", || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", siege.tollgate.pid())).unwrap();
        // Of the backend's, some are kept for reuse: 256 for each worker.
        open.count() < 600
    });
    outcome(format!("{count} connections, left at once, half of them by a reset"), "gone")
}

fn stall_handshakes(siege: &Siege) -> Outcome {
    let count = siege.scale(1500, 5000);
    let ended = |result: &str| {
        siege.tollgate.metric(&format!(r#"tollgate_tls_handshakes_total{{result="{result}"}}"#))
    };
    let closed = || refused(siege, "max_connections");
    let before = [ended("evicted"), ended("timeout"), closed()];
    let mut connections = siege.crowd(count);
    for (number, connection) in connections.iter_mut().enumerate() {
        let bytes = [&b""[..], &[22], &[22, 3, 1, 2, 0, 1, 0]][number % 3];
        connection.write_all(bytes).ok();
    }
    siege.hold(connections, b"");
    wait_until("all are counted", || {
        let all = ended("evicted") + ended("timeout") + closed();
        all - before.iter().sum::<f64>() == count as f64
    });
    let [evicted, late] = [ended("evicted") - before[0], ended("timeout") - before[1]];
    // More at once than wait for a worker are closed unread.
    let fate = format!("{evicted} evicted, {late} timed out, {} closed", closed() - before[2]);
    outcome(format!("{count} handshakes that stall"), fate)
}

fn refused(siege: &Siege, reason: &str) -> f64 {
    let series = format!(r#"tollgate_connections_refused_total{{reason="{reason}"}}"#);
    siege.tollgate.metric(&series)
}

/// Has each connection ask; how many are answered.
fn served(connections: &mut [TcpStream]) -> usize {
    connections.iter_mut().for_each(|it| it.write_all(REQUEST).unwrap_or(()));
    connections.iter_mut().filter_map(|it| bears(&read_some(it), "200").then_some(())).count()
}

fn take_all_places(siege: &Siege) -> Outcome {
    let (waves, count) = (siege.scale(3, 20), siege.scale(300, 1000));
    for _ in 0..waves {
        let mut connections = siege.crowd(count);
        // One place is the honest one's.
        assert_eq!(served(&mut connections), 99);
        assert_eq!(served(&mut connections), 99);
        drop(connections);
        wait_until("they are gone", || {
            let mut all = siege.crowd(99);
            served(&mut all) == 99
        });
    }
    assert!(refused(siege, "max_connections") >= (waves * (count - 99)) as f64);
    outcome(
        format!("{waves} × {count} connections, where 100 may be"),
        "99 held, the others closed",
    )
}

fn take_places(siege: &Siege) -> Outcome {
    let count = siege.scale(300, 3000);
    let before = refused(siege, "max_connections_per_ip");
    let mut connections: Vec<TcpStream> = (0..count).map(|it| siege.connect(it % 3)).collect();
    assert_eq!(served(&mut connections), 60);
    assert_eq!(refused(siege, "max_connections_per_ip") - before, (count - 60) as f64);
    drop(connections);
    wait_until("their places are free", || {
        let mut again: Vec<TcpStream> = (0..60).map(|it| siege.connect(it % 3)).collect();
        served(&mut again) == 60
    });
    outcome(
        format!("{count} connections of 3 addresses with 20 each"),
        "60 held, the others closed",
    )
}

const IDENTITY: &str = "identity: [{ jwt: { secret: 'correct horse battery staple, and then some \
                        more of it for sixty-four', on_invalid: reject } }]\n";

fn good_token() -> String {
    let token = tokens::hs256(&json!({"sub": "honest", "exp": tokens::in_seconds(600)}));
    format!("Authorization: Bearer {token}\r\n")
}

fn flood_tokens(siege: &Siege) -> Outcome {
    let (connections, each) = (siege.scale(8, 40), siege.scale(300, 2000));
    let good = tokens::hs256(&json!({"sub": "honest", "exp": tokens::in_seconds(600)}));
    let signature = good.rsplit('.').next().unwrap();
    let over = tokens::hs256(&json!({"sub": "honest", "exp": tokens::in_seconds(-600)}));
    let refused = siege.each(connections, |number| {
        let mut client = support::Client::connect(siege.tollgate.data);
        (0..each).all(|index| {
            let sub = format!("{number}-{index}");
            let token = match index % 4 {
                // Somebody else's signature.
                0 => {
                    let other = tokens::hs256(&json!({"sub": sub, "exp": 4_000_000_000_u64}));
                    format!("{}.{signature}", other.rsplit_once('.').unwrap().0)
                }
                1 => format!("eyJhbGciOiJub25lIn0.{sub}."),
                2 => format!("{}{sub}", "x".repeat(8000)),
                _ => over.clone(),
            };
            let request =
                format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
            client.send(request).answer().status == 401
        })
    });
    assert_eq!(refused, connections);
    outcome(format!("{} tokens that are none", connections * each), "401 each")
}

// ------------------------------------------------------------------------------------------ HTTP/2

/// A request whose head is whole and whose body is not.
fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &http2::get(path, &[]))
}

/// A request without a body.
fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &http2::get(path, &[]))
}

/// Half a head.
fn half() -> Vec<u8> {
    frame(HEADERS, 0, 1, &http2::get("/", &[]))
}

/// A connection that is greeted, and read from by somebody, so that nobody can say that it is not.
fn greet(siege: &Siege, number: usize) -> TcpStream {
    let mut connection = siege.connect(number);
    let mut reader = connection.try_clone().unwrap();
    std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()).ok());
    connection.write_all(PREFACE).unwrap();
    connection.write_all(&frame(SETTINGS, 0, 0, b"")).unwrap();
    connection
}

/// Connections that were cut for a flood.
fn floods(siege: &Siege) -> f64 {
    siege.tollgate.metric(r#"tollgate_http2_connections_cut_total{reason="flood"}"#)
}

/// Sends the same frame until each connection is cut.
fn flood(siege: &Siege, first: &[u8], piece: &[u8]) -> Outcome {
    // More than the kernel's buffers hold.
    let (count, most) = (siege.scale(10, 200), 8_000_000 / piece.len());
    let (sent, many) = (AtomicUsize::new(0), piece.repeat(100));
    let before = floods(siege);
    let cut = siege.each(count, |number| {
        let mut connection = greet(siege, number);
        connection.write_all(first).ok();
        for _ in 0..most / 100 + 1 {
            if connection.write_all(&many).is_err() {
                return true;
            }
            sent.fetch_add(100, Relaxed);
        }
        false
    });
    assert_eq!(cut, count);
    wait_until("all are counted", || floods(siege) - before == count as f64);
    siege.wait_until_over();
    outcome(format!("{} frames on {count} connections", sent.into_inner()), "cut")
}

/// Opens streams, with something behind each, until each connection is cut.
fn flood_streams(siege: &Siege, second: fn(u32) -> Vec<u8>) -> Outcome {
    let (count, sent) = (siege.scale(10, 200), AtomicUsize::new(0));
    let before = floods(siege);
    let cut = siege.each(count, |number| {
        let mut connection = greet(siege, number);
        for stream in (1_u32..200_000).step_by(2) {
            let pair = [get(stream, "/silent"), second(stream)].concat();
            if connection.write_all(&pair).is_err() {
                return true;
            }
            sent.fetch_add(1, Relaxed);
        }
        false
    });
    assert_eq!(cut, count);
    wait_until("all are counted", || floods(siege) - before == count as f64);
    siege.wait_until_over();
    outcome(format!("{} streams on {count} connections", sent.into_inner()), "cut")
}

/// Takes all streams that a connection may have, and goes on opening some.
fn open_more(siege: &Siege) -> Outcome {
    let (count, sent) = (siege.scale(4, 40), AtomicUsize::new(0));
    let before = floods(siege);
    siege.each(count, |number| {
        let mut connection = greet(siege, number);
        for stream in (1_u32..40_000).step_by(2) {
            if connection.write_all(&get(stream, "/silent")).is_err() {
                return true;
            }
            sent.fetch_add(1, Relaxed);
        }
        false
    });
    wait_until("all are counted", || floods(siege) - before == count as f64);
    siege.wait_until_over();
    outcome(format!("{} streams on {count} connections", sent.into_inner()), "cut")
}

/// A field of 4 KB that is sent once and meant thousands of times (RFC 7541 §7.3).
fn bomb(siege: &Siege) -> Outcome {
    let (count, sent) = (siege.scale(10, 200), AtomicUsize::new(0));
    let cut = siege.each(count, |number| {
        let mut connection = greet(siege, number);
        for stream in (1_u32..20_000).step_by(2) {
            let mut head = http2::get("/silent", &[]);
            if stream == 1 {
                // Literal, to be indexed.
                head.push(0x40);
                http2::push_string(&mut head, b"a");
                http2::push_string(&mut head, &[b'b'; 4000]);
            }
            // The newest entry of the table.
            head.resize(16_000, 0x80 | 62);
            if connection
                .write_all(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &head))
                .is_err()
            {
                return true;
            }
            sent.fetch_add(1, Relaxed);
        }
        false
    });
    assert_eq!(cut, count);
    siege.wait_until_over();
    let sent = sent.into_inner();
    outcome(format!("{sent} heads that mean 60 MB each, on {count} connections"), "cut")
}

/// Requests that were answered with a status of 400 and more, below 500.
fn refusals(siege: &Siege) -> f64 {
    let page = siege.tollgate.admin("/metrics").text();
    let lines = page.lines().filter(|it| {
        it.starts_with("tollgate_requests_total{") && it.contains(r#"code_class="4xx""#)
    });
    lines.filter_map(|it| it.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// As many fields as a head may have, of a byte each, in as many requests as there may be.
fn small_bombs(siege: &Siege) -> Outcome {
    let (count, before) = (siege.scale(3, 20), refusals(siege));
    let mut connections = Vec::new();
    for number in 0..count {
        let mut connection = greet(siege, number);
        for stream in (1_u32..256).step_by(2) {
            let mut head = http2::get("/upload", &[]);
            // `accept-encoding: gzip, deflate`: 60 bytes as they are counted.
            let length = head.len() + 1000;
            head.resize(length, 0x80 | 16);
            connection.write_all(&frame(HEADERS, END_HEADERS, stream, &head)).ok();
        }
        connections.push(connection);
    }
    // None goes to the backend, which would keep it as long as its body does not end.
    wait_until("all are refused", || refusals(siege) - before == (count * 128) as f64);
    connections.iter().for_each(|it| it.shutdown(std::net::Shutdown::Both).unwrap_or(()));
    siege.wait_until_over();
    outcome(format!("{count} × 128 heads with 1,000 fields of a byte"), "431 each")
}

/// Uploads of one byte a frame, as many as the windows allow.
fn dribble(siege: &Siege) -> Outcome {
    let (count, each) = (siege.scale(2, 10), siege.scale(10_000, 60_000));
    let cut = siege.each(count, |number| {
        let mut connection = greet(siege, number);
        let mut is_cut = false;
        for stream in (1_u32..16).step_by(2) {
            is_cut |= connection.write_all(&open(stream, "/upload")).is_err();
            let many = frame(DATA, 0, stream, b"x").repeat(100);
            for _ in 0..each / 100 {
                is_cut |= connection.write_all(&many).is_err();
            }
        }
        connection.shutdown(std::net::Shutdown::Both).ok();
        is_cut
    });
    siege.wait_until_over();
    let sent = count * each * 8;
    outcome(format!("{sent} frames on {count} connections"), format!("{cut} cut"))
}

/// Answers for which there is no window, then none that is read.
fn shut_windows(siege: &Siege) -> Outcome {
    let count = siege.scale(3, 15);
    let reset = siege.each(count, |number| {
        let mut raw = Raw { stream: siege.connect(number) };
        raw.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        raw.send(PREFACE).send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
        for stream in (1_u32..200).step_by(2) {
            raw.send(get(stream, "/begun"));
        }
        (0..100).all(|_| raw.frame_of(RST_STREAM).is_some())
    });
    assert_eq!(reset, count);
    siege.wait_until_over();
    outcome(format!("{count} × 100 answers without a window"), "reset, each")
}
