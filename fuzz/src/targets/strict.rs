//! A reader of requests of HTTP/1.1 that takes nothing but what RFC 9112 has senders write, and of
//! tollgate nothing but what it promises to its backends.

/// A request that has arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Names in lower case, and values.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl Seen {
    /// The values of a field.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(it, _)| it == name).map(|(_, value)| value.as_slice())
    }
}

/// What bytes begin with.
pub enum Next {
    /// A head that is not whole.
    Head,
    /// A body that is not whole.
    Body,
    /// A request of so many bytes.
    Whole(Seen, usize),
    /// No request that tollgate may send.
    Fault(String),
}

/// How a body is framed.
enum Framing {
    Length(usize),
    Chunked,
}

type Faulty<T> = Result<T, String>;

/// The first request in these bytes.
pub fn next(bytes: &[u8]) -> Next {
    let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else {
        return if bytes.len() > 128 << 10 { Next::Fault("a head".into()) } else { Next::Head };
    };
    let (seen, framing) = match head(&bytes[..end]) {
        Ok(head) => head,
        Err(fault) => return Next::Fault(fault),
    };
    let body = &bytes[end + 4..];
    let length = match framing {
        Framing::Length(length) => Ok(Some(length).filter(|it| body.len() >= *it)),
        Framing::Chunked => chunked(body),
    };
    match length {
        Ok(Some(length)) => Next::Whole(seen, end + 4 + length),
        Ok(None) => Next::Body,
        Err(fault) => Next::Fault(fault),
    }
}

fn head(head: &[u8]) -> Faulty<(Seen, Framing)> {
    let mut lines = Vec::new();
    for line in head.split(|it| *it == b'\n') {
        lines.push(line.strip_suffix(b"\r").unwrap_or(line));
    }
    let text_lines = head.windows(2).filter(|it| it == b"\r\n").count() + 1;
    if lines.len() != text_lines || lines.iter().any(|line| line.iter().any(|it| is_control(*it))) {
        return Err("a control character, or an end of a line that is none".into());
    }
    let mut words = lines[0].split(|it| *it == b' ');
    let words = (words.next(), words.next(), words.next(), words.next());
    let (Some(method), Some(target), Some(b"HTTP/1.1"), None) = words else {
        return Err("the first line".into());
    };
    let has_form = target.first() == Some(&b'/') || (method, target) == (b"OPTIONS", b"*");
    if !is_token(method) || !has_form || target.contains(&b'\t') {
        return Err("a method or a target".into());
    }
    let mut fields = Vec::new();
    for line in &lines[1..] {
        fields.push(field(line)?);
    }
    let seen = Seen { method: String::from_utf8_lossy(method).into_owned(), fields };
    let framing = framing(&seen)?;
    for name in ["keep-alive", "proxy-connection", "http2-settings", "expect"] {
        if seen.values(name).next().is_some() {
            return Err(format!("{name}, which is of one connection"));
        }
    }
    if seen.values("te").any(|it| it != b"trailers") {
        return Err("a TE that is not tollgate's own".into());
    }
    let upgrades = seen.values("upgrade").count();
    if seen.values("connection").count() != upgrades
        || upgrades > 1
        || seen.values("connection").any(|it| it != b"upgrade")
    {
        return Err("a Connection that is not tollgate's own".into());
    }
    if seen.values("host").count() > 1 || seen.values("via").count() == 0 {
        return Err("two hosts, or not by tollgate".into());
    }
    Ok((seen, framing))
}

fn field(line: &[u8]) -> Faulty<(String, Vec<u8>)> {
    let colon = line.iter().position(|it| *it == b':').ok_or("a line that is no field")?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !is_token(name) {
        return Err("the name of a field".into());
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value.trim_ascii().to_vec()))
}

fn framing(seen: &Seen) -> Faulty<Framing> {
    let lengths: Vec<&[u8]> = seen.values("content-length").collect();
    let codings: Vec<&[u8]> = seen.values("transfer-encoding").collect();
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([], [b"chunked"]) => Ok(Framing::Chunked),
        ([length], []) if (1..=15).contains(&length.len()) && all(length, u8::is_ascii_digit) => {
            let text = std::str::from_utf8(length).map_err(|it| it.to_string())?;
            text.parse().map(Framing::Length).map_err(|it| it.to_string())
        }
        ([length], []) if length.len() <= 20 && all(length, u8::is_ascii_digit) => {
            Ok(Framing::Length(usize::MAX))
        }
        _ => Err("two framings, or one that is none".into()),
    }
}

/// The bytes of a body in chunks, its trailer included; `None`: it is not whole.
fn chunked(body: &[u8]) -> Faulty<Option<usize>> {
    let mut at = 0;
    loop {
        let Some(line) = line(&body[at..])? else { return Ok(None) };
        let is_size = (1..=15).contains(&line.len()) && all(line, u8::is_ascii_hexdigit);
        if !is_size {
            return Err("the size of a chunk".into());
        }
        let text = std::str::from_utf8(line).map_err(|it| it.to_string())?;
        let size = usize::from_str_radix(text, 16).map_err(|it| it.to_string())?;
        at += line.len() + 2;
        if size == 0 {
            return trailer(body, at);
        }
        let Some(end) = body.get(at + size..) else { return Ok(None) };
        match end {
            [b'\r', b'\n', ..] => at += size + 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err("the end of a chunk".into()),
        }
    }
}

fn trailer(body: &[u8], mut at: usize) -> Faulty<Option<usize>> {
    loop {
        let Some(line) = line(&body[at..])? else { return Ok(None) };
        at += line.len() + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
        let (name, _) = field(line)?;
        let of_the_head = [
            "content-length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "upgrade",
            "host",
            "expect",
        ];
        if of_the_head.contains(&name.as_str()) {
            return Err(format!("{name} in a trailer"));
        }
    }
}

/// The line that these bytes begin with, without its end; `None`: it has none yet.
fn line(bytes: &[u8]) -> Faulty<Option<&[u8]>> {
    let Some(end) = bytes.iter().position(|it| *it == b'\n') else { return Ok(None) };
    let line = bytes[..end].strip_suffix(b"\r").ok_or("a line feed alone")?;
    if line.iter().any(|it| is_control(*it)) {
        return Err("a control character".into());
    }
    Ok(Some(line))
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 && byte != b'\t' || byte == 0x7f
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|it| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(it))
}

fn all(bytes: &[u8], is: impl Fn(&u8) -> bool) -> bool {
    bytes.iter().all(is)
}
