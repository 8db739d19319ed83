//! What an input has sent: bytes as they are, or requests that are put together of right pieces and
//! of wrong ones.

use super::super::Input;
use super::strict::Seen;

/// What one input sends on a connection.
pub struct Sent {
    pub bytes: Vec<u8>,
    /// How it is cut; 0: not at all.
    cut: u8,
    /// What `Connection` names in the request that has this `X-Id`.
    named: Vec<(Vec<u8>, Vec<String>)>,
    /// Over HTTP/2, the last stream.
    stream: Option<u32>,
}

/// What ends the connection, if it is read as a request.
const LAST: &[u8] = b"GET /last HTTP/1.1\r\nHost: last\r\nConnection: close\r\n\r\n";
/// Fields that no `Connection` takes away, and those that tollgate itself adds: `strict.rs` looks at
/// them.
const KEPT: [&str; 15] = [
    "connection",
    "host",
    "content-length",
    "content-type",
    "authorization",
    "cookie",
    "cache-control",
    "trailer",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "via",
    "transfer-encoding",
    "te",
    "upgrade",
];
const METHODS: [&[u8]; 16] = [
    b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE",
    b"PRI", b"get", b"G ET", b"", b"GET\t", b"\x00GET", b"QUERY",
];
const TARGETS: [&[u8]; 20] = [
    b"/",
    b"/a?b=c",
    b"*",
    b"http://a/b",
    b"http://b",
    b"a:80",
    b"//a/b",
    b"/a b",
    b"/a\tb",
    b"/%00",
    b"/a#b",
    b"/\xc3\xa9",
    b"/\xff",
    b"",
    b"a",
    b"/a HTTP/1.1\r\nX: y",
    b"http://a@b/",
    b"?x",
    b"/a\rb",
    b"https://a/",
];
const VERSIONS: [&[u8]; 10] = [
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/11",
    b"http/1.1",
    b"HTTP/1.1 ",
    b"",
    b"HTTP/1.1\r",
];
const FIELDS: &[&[u8]] = &[
    b"Host: a",
    b"Host: b",
    b"Host: ",
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: 6",
    b"Content-Length: 49",
    b"Content-Length: 5, 5",
    b"Content-Length: 5, 6",
    b"Content-Length: +5",
    b"Content-Length: -5",
    b"Content-Length: 0x5",
    b"Content-Length: 05",
    b"Content-Length : 5",
    b"Content-Length: 5 ",
    b"Content-Length:\t5",
    b"Content-Length: 5\x0b",
    b"Content-Length: ",
    b"Content-Length: 18446744073709551616",
    b"Content-Length: 18446744073709551615",
    b"Content_Length: 5",
    b"Content-Length\x00: 5",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: \"chunked\"",
    b"Transfer-Encoding: chunked;a=b",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\tchunked\t",
    b"Transfer-Encoding: ",
    b"Transfer-Encoding: ,chunked",
    b"Transfer-Encoding\r\n : chunked",
    b"Transfer-Encoding:\r\n chunked",
    b"Transfer_Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\x00\nTransfer-Encoding: chunked",
    b" Content-Length: 5",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: x-hop",
    b"Connection: X-Hop, x-other",
    b"Connection: x-hop,,\tx-other , ",
    b"Connection: x-hop, \xff",
    b"Connection: \"x-hop\", x-other",
    b"Connection: x-id",
    b"Connection: content-length",
    b"Connection: transfer-encoding",
    b"Connection: host, via, x-forwarded-for",
    b"Connection: te",
    b"Connection: upgrade",
    b"Connection: keep-alive, Upgrade",
    b"Connection: connection",
    b"connection: x-other",
    b"Connection : x-hop",
    b"X-Hop: 1",
    b"x-hop: 2",
    b"X-Other: 1",
    b"X_Hop: 1",
    b"Keep-Alive: timeout=5",
    b"Proxy-Connection: keep-alive",
    b"TE: trailers",
    b"TE: gzip;q=0.5, trailers",
    b"TE: gzip",
    b"Trailer: X-T, Content-Length",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Upgrade: websocket, h2c",
    b"HTTP2-Settings: AAMAAABkAAQAAP__",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Expect: 100-continue",
    b"Expect: x",
    b"Via: 1.1 other",
    b"X-Forwarded-For: 192.0.2.1",
    b"Forwarded: for=192.0.2.1",
    b"Content-Type: application/grpc",
    b"Max-Forwards: 0",
    b": empty",
    b"no colon",
    b"sp ace: 1",
    b"caf\xe9: 1",
    b"X: \xff",
    b"X: a\x7fb",
    b"X: a\x01b",
    b"",
    b"Cookie: a=b",
    b"Range: bytes=0-",
];
const BODIES: &[&[u8]] = &[
    b"hello",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n",
    b"5;a=\"\r\n\"\r\nhello\r\n0\r\n\r\n",
    b"5;a\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b" 5\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"000000000000000000005\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n",
    b"5\r\nhello\r\n0\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nHost: b\r\n\r\n",
    b"0\r\nX: y\r\n folded\r\n\r\n",
    b"0\r\nX_T: 1\r\nConnection: x\r\nTE: trailers\r\n\r\n",
    b"0\r\n\n",
    b"00\r\n\r\n",
    b"-0\r\n\r\n",
    b"10000000000000005\r\nhello\r\n",
    b"fffffffffffffff\r\n",
    b"ffffffffffffffff\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nX: ",
    b"\r\n",
    b"\n",
    b"\r\n\r\n",
    b"0\r\n",
    b"",
];

/// `turn` tells the requests of this input from those of others.
pub fn sent(data: &[u8], turn: u64) -> Option<Sent> {
    let (mode, rest) = data.split_first()?;
    match mode {
        b'r' => {
            let (cut, bytes) = rest.split_first()?;
            let bytes = [bytes, LAST].concat();
            Some(Sent { bytes, cut: *cut, named: Vec::new(), stream: None })
        }
        b'h' => Some(http2(&mut Input(rest), turn)),
        _ => Some(http1(&mut Input(rest), turn)),
    }
}

/// A request that has to arrive.
pub fn ordinary() -> Sent {
    Sent { bytes: LAST.to_vec(), cut: 0, named: Vec::new(), stream: None }
}

fn http1(input: &mut Input<'_>, turn: u64) -> Sent {
    let mut sent = Sent { bytes: Vec::new(), cut: input.byte(), named: Vec::new(), stream: None };
    for index in 0..4_u8 {
        if input.0.is_empty() {
            break;
        }
        let line = [pick(input, &METHODS), pick(input, &TARGETS), pick(input, &VERSIONS)];
        sent.bytes.extend(line.join(&b' '));
        sent.bytes.extend(b"\r\n");
        let id = format!("{turn}-{index}").into_bytes();
        let mut fields = vec![b"Host: a".to_vec(), [b"X-Id: ", &id[..]].concat()];
        let (mut names, mut is_raw) = (Vec::new(), false);
        let count = input.byte();
        if count & 0x40 != 0 {
            fields.remove(0);
        }
        for _ in 0..count % 8 {
            let (field, is_of_the_table) = pick_or_raw(input, FIELDS, b'\n');
            // An empty one ends the head, and what follows names nothing.
            is_raw |= !is_of_the_table || field.is_empty();
            fields.push(field.to_vec());
            names.extend(named_by(field));
        }
        let framing = input.byte();
        let mut body = Vec::new();
        for _ in 0..input.byte() % 4 {
            let (piece, _) = pick_or_raw(input, BODIES, 0xff);
            match framing % 4 {
                2 if !piece.is_empty() => {
                    body.extend(format!("{:x}\r\n", piece.len()).bytes());
                    body.extend(piece);
                    body.extend(b"\r\n");
                }
                _ => body.extend(piece),
            }
        }
        match framing % 4 {
            1 => fields.push(format!("Content-Length: {}", body.len()).into_bytes()),
            2 => {
                fields.push(b"Transfer-Encoding: chunked".to_vec());
                body.extend(b"0\r\n\r\n");
            }
            _ => {}
        }
        if framing & 0x80 != 0 {
            fields.reverse();
        }
        for field in fields {
            sent.bytes.extend(field);
            sent.bytes.extend(b"\r\n");
        }
        sent.bytes.extend(b"\r\n");
        sent.bytes.extend(body);
        if !is_raw {
            sent.named.push((id, names));
        }
    }
    sent.bytes.extend(LAST);
    sent
}

fn pick<'t>(input: &mut Input<'_>, table: &[&'t [u8]]) -> &'t [u8] {
    // The first is what is most often right.
    table.get(usize::from(input.byte())).copied().unwrap_or(table[0])
}

/// One of the table, or as many bytes of the input as there are before `end`.
fn pick_or_raw<'a>(input: &mut Input<'a>, table: &[&'static [u8]], end: u8) -> (&'a [u8], bool) {
    match input.byte() {
        250.. => (input.until(end), false),
        byte => (table[usize::from(byte) % table.len()], true),
    }
}

/// What a line of `Connection` names.
fn named_by(field: &[u8]) -> Vec<String> {
    let Some(colon) = field.iter().position(|it| *it == b':') else { return Vec::new() };
    if !field[..colon].eq_ignore_ascii_case(b"connection") {
        return Vec::new();
    }
    let options = field[colon + 1..].split(|it| *it == b',').map(<[u8]>::trim_ascii);
    options.map(|it| String::from_utf8_lossy(it).to_ascii_lowercase()).collect()
}

impl Sent {
    /// In the pieces in which it is to be sent.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let size = match self.cut {
            0..128 => self.bytes.len(),
            cut => 1 + usize::from(cut - 128) * 3,
        };
        // Many small ones would only be slow.
        self.bytes.chunks(size.max(self.bytes.len() / 16).max(1))
    }

    /// Whether nothing more is to be waited for.
    pub fn is_answered(&self, answer: &[u8]) -> bool {
        let Some(last) = self.stream else { return false };
        let mut rest = answer;
        while let [a, b, c, kind, flags, s0, s1, s2, s3, after @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let stream = u32::from_be_bytes([s0 & 0x7f, *s1, *s2, *s3]);
            let Some(next) = after.get(length..) else { return false };
            // Of DATA and HEADERS the flag END_STREAM; RST_STREAM; GOAWAY.
            let has_ended = matches!(kind, 0 | 1) && flags & 1 != 0 || *kind == 3;
            if has_ended && stream == last || *kind == 7 {
                return true;
            }
            rest = next;
        }
        false
    }

    /// Whether nothing of one connection has arrived.
    pub fn check(&self, seen: &Seen) {
        let shown = || self.bytes.escape_ascii();
        let ids: Vec<&[u8]> = seen.values("x-id").collect();
        let [id] = ids[..] else { return };
        let Some((_, names)) = self.named.iter().find(|(it, _)| it == id) else { return };
        for name in names.iter().filter(|it| !KEPT.contains(&it.as_str())) {
            let found = seen.values(name).next();
            assert!(found.is_none(), "{name}, which Connection names, has arrived: {}", shown());
        }
    }
}

/// Streams of HTTP/2, whose fields are those of the table, too.
fn http2(input: &mut Input<'_>, turn: u64) -> Sent {
    let mut sent = Sent { bytes: Vec::new(), cut: input.byte(), named: Vec::new(), stream: None };
    sent.bytes.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    push_frame(&mut sent.bytes, 4, 0, 0, b"");
    let mut stream = 1;
    for index in 0..4_u8 {
        if input.0.is_empty() {
            break;
        }
        let id = format!("{turn}-{index}").into_bytes();
        let (method, path) = (pick(input, &METHODS), pick(input, &TARGETS));
        let count = input.byte();
        let mut block = Vec::new();
        for (name, value, bit) in [
            (&b":method"[..], method, 0),
            (b":scheme", b"http", 0x08),
            (b":authority", b"a", 0x10),
            (b":path", path, 0x20),
            (b":path", b"/twice", 0),
        ] {
            let is_twice = value == b"/twice" && count & 0x40 == 0;
            if count & bit == 0 && !is_twice {
                push_field(&mut block, name, value);
            }
        }
        push_field(&mut block, b"x-id", &id);
        let mut names = Vec::new();
        for _ in 0..count % 8 {
            let (field, _) = pick_or_raw(input, FIELDS, b'\n');
            names.extend(named_by(field));
            push_line(&mut block, field, count & 0x80 != 0);
        }
        sent.named.push((id, names));
        let how = input.byte();
        let has_body = how & 1 != 0;
        let flags = 4 | u8::from(!has_body);
        push_frame(&mut sent.bytes, 1, flags, stream, &block);
        if has_body {
            for _ in 0..how >> 1 & 3 {
                let (piece, _) = pick_or_raw(input, BODIES, 0xff);
                push_frame(&mut sent.bytes, 0, 0, stream, piece);
            }
            if how & 8 != 0 {
                // A trailer.
                let mut block = Vec::new();
                push_line(&mut block, pick_or_raw(input, FIELDS, b'\n').0, false);
                push_frame(&mut sent.bytes, 1, 5, stream, &block);
            } else if how & 16 == 0 {
                push_frame(&mut sent.bytes, 0, 1, stream, b"");
            }
        }
        if how & 32 != 0 {
            // Whatever it may be.
            let (kind, flags) = (input.byte() % 10, input.byte());
            let payload = input.until(0xff);
            push_frame(&mut sent.bytes, kind, flags, stream * u32::from(how >> 6 & 1), payload);
        }
        stream += 2;
    }
    let mut block = Vec::new();
    let last = [(&b":method"[..], &b"GET"[..]), (b":scheme", b"http"), (b":path", b"/last")];
    for (name, value) in last.into_iter().chain([(&b":authority"[..], &b"last"[..])]) {
        push_field(&mut block, name, value);
    }
    push_frame(&mut sent.bytes, 1, 5, stream, &block);
    sent.stream = Some(stream);
    sent
}

fn push_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// A line of HTTP/1.1 as a field of HTTP/2: in lower case, if it is to be right.
fn push_line(block: &mut Vec<u8>, line: &[u8], as_it_is: bool) {
    let colon = line.iter().skip(1).position(|it| *it == b':').map_or(line.len(), |it| it + 1);
    let (name, value) = line.split_at(colon);
    let value = value.strip_prefix(b":").unwrap_or(value);
    match as_it_is {
        true => push_field(block, name, value),
        false => push_field(block, &name.to_ascii_lowercase(), value.trim_ascii()),
    }
}

/// Literal, never indexed, no Huffman (RFC 7541 §6.2.3).
fn push_field(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    block.push(0x10);
    for text in [name, value] {
        let text = &text[..text.len().min(126)];
        block.push(text.len() as u8);
        block.extend(text);
    }
}
