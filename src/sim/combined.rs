//! Lines in the common and combined formats of Apache and nginx:
//! `ADDRESS IDENT USER [TIME] "REQUEST" STATUS BYTES "REFERER" "USER-AGENT" …`.
//!
//! A virtual host may stand in front, as in Apache's `vhost_combined`. What follows the user agent
//! are fields of the operator's own: known by their number, from 1, or as `NAME=VALUE`.

use std::borrow::Cow;
use std::net::IpAddr;

use memchr::{memchr, memchr2};

use super::line::{Fault, Line, Moment, Wanted, is_nothing, seconds};
use super::moment;

/// Fields between the request and the operator's own: status, bytes, referer, user agent.
const USUAL: usize = 4;

/// Reads a line.
///
/// # Errors
/// It is no request.
pub fn read<'a>(line: &'a [u8], wanted: &Wanted) -> Result<Line<'a>, Fault> {
    const SHAPE: Fault = Fault::Unreadable("ADDRESS - USER [TIME] \"REQUEST\" STATUS BYTES");
    let opened = memchr(b'[', line).ok_or(SHAPE)?;
    let (before, behind) = line.split_at_checked(opened).ok_or(SHAPE)?;
    let closed = memchr(b']', behind).ok_or(SHAPE)?;
    let at = behind.get(1..closed).and_then(moment::of_combined);
    let at = at.ok_or(Fault::Unreadable("a moment as [10/Oct/2025:13:55:36 +0000]"))?;
    let mut read = Line { at, moment: Moment::Ended, ..Line::default() };
    set_caller(&mut read, before).ok_or(SHAPE)?;

    let rest = behind.get(closed + 1..).unwrap_or_default().trim_ascii_start();
    let rest = rest.strip_prefix(b"\"").ok_or(SHAPE)?;
    let end = end_of_quoted(rest).ok_or(SHAPE)?;
    let (request, rest) = rest.split_at_checked(end).ok_or(SHAPE)?;
    let mut fields = Fields(rest.get(1..).unwrap_or_default());
    let status = fields.next().and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
    read.status = Some(status.ok_or(SHAPE)?);
    for (index, (name, value)) in fields.enumerate().skip(USUAL - 1) {
        set_own(&mut read, index + 2 - USUAL, name, value, wanted);
    }
    read.set_request(text(request))?;
    Ok(read)
}

/// What stands before the moment.
fn set_caller<'a>(line: &mut Line<'a>, before: &'a [u8]) -> Option<()> {
    let mut words = before.trim_ascii().splitn(3, |byte| *byte == b' ');
    let (first, second, third) = (words.next()?, words.next()?, words.next()?);
    let is_address =
        |word: &[u8]| std::str::from_utf8(word).is_ok_and(|it| it.parse::<IpAddr>().is_ok());
    let mut user = third;
    line.address = Some(text(first));
    // A virtual host in front: `www.example.com:443 203.0.113.9 - frank`.
    if let Some(at) = memchr(b' ', third)
        && !is_address(first)
        && is_address(second)
    {
        line.host = Some(text(first));
        line.address = Some(text(second));
        user = third.get(at + 1..)?;
    }
    line.user = Some(text(user)).filter(|_| !is_nothing(user));
    Some(())
}

/// A field of the operator's own.
fn set_own<'a>(
    line: &mut Line<'a>,
    number: usize,
    name: &'a [u8],
    value: &'a [u8],
    wanted: &Wanted,
) {
    if is_nothing(value) {
        return;
    }
    let is = |wanted: &str| {
        wanted.as_bytes() == name || (name.is_empty() && wanted.parse() == Ok(number))
    };
    if wanted.identity_field().is_some_and(is) {
        line.named = Some(text(value));
    }
    if wanted.tier_field.as_deref().is_some_and(is) {
        line.tier = Some(text(value));
    }
    match name {
        b"rt" | b"request_time" => line.duration = seconds(value),
        b"host" => line.host = Some(text(value)),
        _ => {}
    }
}

/// Words and quoted texts between spaces, each with its name where it has one.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.0.trim_ascii_start();
        if rest.is_empty() {
            return None;
        }
        let named = memchr2(b'=', b' ', rest).filter(|at| rest.get(*at) == Some(&b'='));
        let named = named.filter(|_| rest.first() != Some(&b'"'));
        let (name, rest) = match named {
            Some(at) => (rest.get(..at)?, rest.get(at + 1..)?),
            None => (&[][..], rest),
        };
        let (value, rest) = match rest.strip_prefix(b"\"") {
            Some(quoted) => {
                let end = end_of_quoted(quoted).unwrap_or(quoted.len());
                (quoted.get(..end)?, quoted.get(end + 1..).unwrap_or_default())
            }
            None => rest.split_at_checked(memchr(b' ', rest).unwrap_or(rest.len()))?,
        };
        self.0 = rest;
        Some((name, value))
    }
}

/// Where a quoted text ends, whose opening quote is passed.
fn end_of_quoted(text: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + memchr2(b'"', b'\\', text.get(from..)?)?;
        if text.get(at) == Some(&b'"') {
            return Some(at);
        }
        from = at + 2;
    }
}

/// A text with its escapes resolved: `\xHH` as nginx and Apache have it, `\"`, `\\`.
pub fn text(written: &[u8]) -> Cow<'_, str> {
    if memchr(b'\\', written).is_none() {
        // Nearly always, and several times as fast as to look for what is no text.
        return match std::str::from_utf8(written) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => String::from_utf8_lossy(written),
        };
    }
    let mut bytes = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let Some((escaped, behind)) = rest.split_first() else { break };
        rest = behind;
        match escaped {
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = rest.get(2..).unwrap_or_default();
                    }
                    None => bytes.extend_from_slice(b"\\x"),
                }
            }
            b'n' => bytes.push(b'\n'),
            b'r' => bytes.push(b'\r'),
            b't' => bytes.push(b'\t'),
            other => bytes.push(*other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::line::IdentityFrom;
    use super::*;

    fn of(line: &str) -> Result<Line<'_>, Fault> {
        read(line.as_bytes(), &Wanted::default())
    }

    #[test]
    fn the_usual_lines() {
        let line = of("127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] \
             \"GET /apache_pb.gif?a=1 HTTP/1.0\" 200 2326 \"http://example.com/\" \"Mozilla\"")
        .unwrap();
        assert_eq!(line.at.as_micros(), 971_211_336_000_000);
        assert_eq!((&*line.method, &*line.target), ("GET", "/apache_pb.gif?a=1"));
        assert_eq!(line.address.as_deref(), Some("127.0.0.1"));
        assert_eq!(line.user.as_deref(), Some("frank"));
        assert_eq!(line.status, Some(200));

        let common = of("::1 - - [10/Oct/2000:13:55:36 +0000] \"POST / HTTP/1.1\" 499 -").unwrap();
        assert_eq!((common.user, common.status), (None, Some(499)));

        let host = of("www.example.com:443 203.0.113.9 - frank [10/Oct/2000:13:55:36 +0000] \
             \"GET / HTTP/2.0\" 200 1 \"-\" \"-\"")
        .unwrap();
        assert_eq!(host.host.as_deref(), Some("www.example.com:443"));
        assert_eq!(host.address.as_deref(), Some("203.0.113.9"));
        assert_eq!(host.user.as_deref(), Some("frank"));
    }

    #[test]
    fn fields_of_the_operators_own() {
        let line = "10.0.0.1 - - [10/Oct/2000:13:55:36 +0000] \"GET /a HTTP/1.1\" 200 1 \"-\" \
             \"it says \\\"hi\\\"\" \"u-42\" premium rt=0.250 uct=\"0.1\" host=\"a.example\"";
        let wanted = |identity: &str, tier: &str| Wanted {
            identity: IdentityFrom::Field(identity.into()),
            tier_field: Some(tier.into()),
        };
        let read_as = |wanted: &Wanted| {
            let line = read(line.as_bytes(), wanted).unwrap();
            (line.named.map(Cow::into_owned), line.tier.map(Cow::into_owned), line.duration)
        };
        let span = seconds(b"0.25");
        assert_eq!(
            read_as(&wanted("1", "2")),
            (Some("u-42".to_owned()), Some("premium".to_owned()), span)
        );
        assert_eq!(read_as(&wanted("uct", "9")), (Some("0.1".to_owned()), None, span));
        assert_eq!(of(line).unwrap().host.as_deref(), Some("a.example"));
    }

    #[test]
    fn escapes_are_resolved() {
        for (line, target) in [
            (
                r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /\x22a\"b\\ HTTP/1.1" 200 1"#,
                "/\"a\"b\\",
            ),
            (r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /\xC3\xA9 HTTP/1.1" 200 1"#, "/é"),
            (r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /\xZZ HTTP/1.1" 200 1"#, "/\\xZZ"),
            (r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /a b HTTP/1.1" 200 1"#, "/a b"),
            (r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "GET /old" 200 1"#, "/old"),
        ] {
            assert_eq!(of(line).unwrap().target, target, "{line}");
        }
    }

    #[test]
    fn what_is_no_request() {
        for line in [
            "",
            "-",
            "1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] GET / 200 1",
            "1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] \"GET / HTTP/1.1\"",
            "1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] \"GET / HTTP/1.1",
            "1.1.1.1 - - [99/Oct/2000:13:55:36 +0000] \"GET / HTTP/1.1\" 200 1",
            "[10/Oct/2000:13:55:36 +0000] \"GET / HTTP/1.1\" 200 1",
        ] {
            assert!(matches!(of(line), Err(Fault::Unreadable(_))), "{line}");
        }
        for line in [
            r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "-" 400 0"#,
            r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "" 408 0"#,
            r#"1.1.1.1 - - [10/Oct/2000:13:55:36 +0000] "\x16\x03\x01" 400 0"#,
        ] {
            assert_eq!(of(line), Err(Fault::NoRequest), "{line}");
        }
    }
}
