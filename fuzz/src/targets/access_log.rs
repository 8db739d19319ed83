//! Lines of the access log, whatever a request holds, beside another reader of JSON.

use std::net::SocketAddr;
use std::sync::LazyLock;

use serde_json::Value;

use tollgate::limiter::quota::Period;
use tollgate::limiter::time::{Micros, Timestamp};
use tollgate::log::access::{AccessLines, AccessLog, Decided, Entry, LINE_BYTES_MAX, LimitName};
use tollgate::log::json::push_escaped;
use tollgate::log::writer::{Room, Target, start};
use tollgate::policy::identity::{Identity, IpPrefix, PrefixLengths};
use tollgate::sim::line::{Format, SPAN_MAX, Wanted};
use tollgate::trace::TraceId;

use super::Input;

/// Parameters of the query that hold credentials.
const SECRETS: [&str; 2] = ["token", "Access_Token"];
const FIELDS: [&str; 18] = [
    "ts",
    "method",
    "path",
    "status",
    "identity",
    "tier",
    "endpoint",
    "decision",
    "limited_by",
    "remaining",
    "retry_after",
    "duration_us",
    "upstream_us",
    "limiter_us",
    "bytes_in",
    "bytes_out",
    "peer",
    "trace_id",
];

static LOG: LazyLock<AccessLog> = LazyLock::new(|| {
    let room = Room { chunks: 1, bytes: 0 };
    let lines = start("access-log", Target::File("/dev/null".into()), room).expect("it is there");
    AccessLog { lines, with_query: true, secret_parameters: SECRETS.map(Into::into).into() }
});

/// Numbers first, then texts, each ended by a byte FF: the method, the path, the query, the identity,
/// the tier, the endpoint.
///
/// Each line is one, is JSON, has every field once with what was put in, and shows no credential.
pub fn access_log(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let numbers: [u64; 6] = std::array::from_fn(|_| input.number());
    let [at, status, retry_after, duration_us, bytes, address] = numbers;
    let raw = input.until(0xff);
    escaped_bytes(raw);
    let method = String::from_utf8_lossy(raw);
    let [path, query, id, tier, endpoint] =
        std::array::from_fn(|_| String::from_utf8_lossy(input.until(0xff)));
    let prefixes = PrefixLengths { ipv4: 32, ipv6: 64 };
    let mapped = SocketAddr::from((std::net::Ipv4Addr::from_bits(address as u32), status as u16));
    let peer = match flags & 1 {
        0 => mapped,
        _ => SocketAddr::from(((u128::from(address) << 64 | 1).to_be_bytes(), status as u16)),
    };
    let identity = match flags >> 1 & 3 {
        0 => None,
        1 => Some(Identity::Ip(IpPrefix::new(peer.ip(), prefixes))),
        2 => Some(Identity::User(id.as_ref().into())),
        _ => Some(Identity::Key(id.as_ref().into())),
    };
    let decided = [Decided::Nothing, Decided::Allow, Decided::Deny, Decided::Shed];
    let decided = decided[usize::from(flags >> 3 & 3)];
    let rule = (flags & 32 != 0).then_some(endpoint.as_ref());
    let limited_by =
        (decided == Decided::Deny).then_some(LimitName { rule, period: Period::Minute });
    let entry = Entry {
        // As far as years have four digits.
        at: Timestamp::from_micros(at % 253_402_300_800_000_000),
        method: &method,
        path: &path,
        query: (flags & 64 != 0).then_some(query.as_ref()),
        status: status as u16,
        identity: identity.as_ref(),
        tier: (flags & 128 != 0).then_some(tier.as_ref()),
        endpoint: &endpoint,
        decided,
        limited_by,
        remaining: (flags & 1 != 0).then_some(bytes as u32),
        retry_after: (flags & 2 != 0).then_some(retry_after),
        duration_us,
        upstream_us: (flags & 4 != 0).then_some(duration_us / 2),
        limiter_us: (flags & 8 != 0).then_some(duration_us / 3),
        bytes_in: bytes,
        bytes_out: !bytes,
        peer,
        trace: (flags & 16 != 0).then_some(TraceId(u128::from(bytes) << 64 | u128::from(at))),
    };
    let mut lines = AccessLines::new(LOG.clone());
    lines.push(&entry);
    lines.push(&entry);
    let both = String::from_utf8(lines.take()).expect("a line is text");
    let (first, second) = both.split_at(both.len() / 2);
    assert_eq!(first, second, "the second line is another one");
    assert!(first.len() <= LINE_BYTES_MAX, "{} bytes", first.len());
    holds(first, &entry);
    is_read_again(first, &entry);
}

/// What is written is read by a replay as it was meant.
fn is_read_again(line: &str, entry: &Entry<'_>) {
    let read = Format::Own.read(line.trim_end().as_bytes(), &Wanted::default());
    let read = match read {
        Ok(read) => read,
        // Nothing to replay.
        Err(_) if entry.method.is_empty() || entry.method == "-" => return,
        Err(_) if entry.path.is_empty() && entry.query.is_none() => return,
        Err(_) if entry.path == "-" && entry.query.is_none() => return,
        Err(fault) => panic!("{line:?}: {fault:?}"),
    };
    assert_eq!((read.began(), read.status), (entry.at, Some(entry.status)), "{line:?}");
    assert_eq!(read.decided, Some(entry.decided), "{line:?}");
    assert_eq!(read.is_unasked, entry.upstream_us.is_none(), "{line:?}");
    let duration = Some(entry.duration_us).filter(|it| *it < SPAN_MAX);
    assert_eq!(read.duration.map(Micros::as_micros), duration, "{line:?}");
    if let Some(identity @ Identity::Ip(_)) = entry.identity {
        assert_eq!(read.identity.as_deref(), Some(&*identity.to_string()), "{line:?}");
    }
}

fn holds(line: &str, entry: &Entry<'_>) {
    let body = line.strip_suffix('\n').expect("it ends");
    assert!(!body.contains(is_hidden), "{body:?}");
    let parsed: Value = serde_json::from_str(body).unwrap_or_else(|it| panic!("{body:?}: {it}"));
    let fields = parsed.as_object().expect("an object");
    let names: Vec<usize> = FIELDS
        .iter()
        .map(|name| {
            body.find(&format!("\"{name}\":")).unwrap_or_else(|| panic!("{name} in {body:?}"))
        })
        .collect();
    assert_eq!(fields.len(), FIELDS.len(), "{body:?}");
    assert!(fields.keys().all(|it| FIELDS.contains(&it.as_str())), "{body:?}");
    assert_eq!(names[0], 1, "{body:?}");
    let text = |name: &str| match &fields[name] {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => panic!("{name} is {other}"),
    };
    let number = |name: &str| fields[name].as_u64();
    is_cut("method", &text("method").unwrap_or_default(), entry.method, 64);
    let path = match entry.query {
        None => entry.path.to_owned(),
        Some(query) => format!("{}?{}", entry.path, without_secrets(query)),
    };
    is_cut("path", &text("path").unwrap_or_default(), &path, 4096);
    match entry.identity {
        None => assert_eq!(text("identity"), None),
        Some(identity @ Identity::Ip(_)) => {
            assert_eq!(text("identity"), Some(identity.to_string()))
        }
        Some(Identity::User(id)) => {
            let shown = text("identity").unwrap_or_default();
            is_cut("identity", shown.strip_prefix("user:").expect("its kind"), id, 1024);
        }
        Some(Identity::Key(id)) => {
            let shown = text("identity").unwrap_or_default();
            is_cut("identity", shown.strip_prefix("key:").expect("its kind"), id, 1024);
        }
    }
    assert_eq!(text("tier").is_some(), entry.tier.is_some());
    is_cut("tier", &text("tier").unwrap_or_default(), entry.tier.unwrap_or_default(), 256);
    is_cut("endpoint", &text("endpoint").unwrap_or_default(), entry.endpoint, 256);
    assert_eq!(text("decision").as_deref(), Some(entry.decided.as_str()));
    match (entry.limited_by, text("limited_by")) {
        (None, None) => {}
        (Some(LimitName { rule: None, .. }), Some(it)) => assert_eq!(it, "tier:minute"),
        (Some(LimitName { rule: Some(rule), .. }), Some(it)) => {
            let shown = it.strip_prefix("endpoint:").and_then(|it| it.strip_suffix(":minute"));
            is_cut("limited_by", shown.expect("a rule and a period"), rule, 256);
        }
        (expected, found) => panic!("limited by {found:?}, not {expected:?}"),
    }
    assert_eq!(number("status"), Some(entry.status.into()));
    assert_eq!(number("remaining"), entry.remaining.map(u64::from));
    assert_eq!(number("retry_after"), entry.retry_after);
    assert_eq!(number("duration_us"), Some(entry.duration_us));
    assert_eq!(number("upstream_us"), entry.upstream_us);
    assert_eq!(number("limiter_us"), entry.limiter_us);
    assert_eq!(number("bytes_in"), Some(entry.bytes_in));
    assert_eq!(number("bytes_out"), Some(entry.bytes_out));
    assert_eq!(text("peer"), Some(entry.peer.to_string()));
    assert_eq!(text("trace_id"), entry.trace.map(|TraceId(id)| format!("{id:032x}")));
    let seconds = entry.at.as_micros() / 1_000_000;
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    // The same second, written by somebody else: `Thu, 01 Jan 1970 00:00:00 GMT`.
    let date = httpdate::fmt_http_date(at);
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.find(&date[8..11]).expect("a month") / 3 + 1;
    let micros = entry.at.as_micros() % 1_000_000;
    let expected =
        format!("{}-{month:02}-{}T{}.{micros:06}Z", &date[12..16], &date[5..7], &date[17..25]);
    assert_eq!(text("ts"), Some(expected));
}

/// What is shown is the whole text, or as much of its beginning as there is room for and `…`.
fn is_cut(name: &str, shown: &str, text: &str, max: usize) {
    let width = |it: char| match it {
        '"' | '\\' | '\n' | '\r' | '\t' => 2,
        _ if is_hidden(it) => 6,
        _ => it.len_utf8(),
    };
    if text.chars().map(width).sum::<usize>() <= max {
        return assert_eq!(shown, text, "{name}");
    }
    let kept = shown.strip_suffix('…').unwrap_or_else(|| panic!("{name} is cut: {shown:?}"));
    assert!(text.starts_with(kept), "{name}: {shown:?} is no beginning of {text:?}");
    let used: usize = kept.chars().map(width).sum();
    let next = text[kept.len()..].chars().next().map_or(0, width);
    assert!(used <= max && used + next > max, "{name}: {used} of {max} bytes, then {next}");
}

/// What may move a cursor, begin a line, or turn or hide what stands beside it.
fn is_hidden(it: char) -> bool {
    let it = u32::from(it);
    let is_control = it < 0x20 || (0x7f..0xa0).contains(&it);
    let turns = [0x61c, 0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x2028, 0x2029, 0xfeff];
    is_control
        || turns.contains(&it)
        || (0x202a..=0x202e).contains(&it)
        || (0x2060..=0x2069).contains(&it)
}

/// The query with `***` for each value that a reader takes for a credential who is as forgiving as
/// any: the name decoded twice, `;` a divider.
fn without_secrets(query: &str) -> String {
    let mut shown = String::new();
    for pair in query.split_inclusive(['&', ';']) {
        let body = pair.trim_end_matches(['&', ';']);
        let name = body.split_once('=').filter(|(_, value)| !value.is_empty()).map(|it| it.0);
        match name.filter(|name| is_secret(name)) {
            Some(name) => shown += &format!("{name}=***{}", &pair[body.len()..]),
            None => shown += pair,
        }
    }
    shown
}

fn is_secret(name: &str) -> bool {
    let once = |bytes: Vec<u8>| {
        let mut decoded = Vec::new();
        let mut rest = bytes.as_slice();
        while let [byte, after @ ..] = rest {
            let pair = after.get(..2).and_then(|it| std::str::from_utf8(it).ok());
            let is_hex = |it: &&str| it.bytes().all(|it| it.is_ascii_hexdigit());
            match (byte, pair.filter(is_hex)) {
                (b'%', Some(pair)) => {
                    decoded.push(u8::from_str_radix(pair, 16).expect("two digits"));
                    rest = &after[2..];
                }
                (b'+', _) => {
                    decoded.push(b' ');
                    rest = after;
                }
                _ => {
                    decoded.push(*byte);
                    rest = after;
                }
            }
        }
        decoded
    };
    let name = once(once(name.as_bytes().to_vec()));
    SECRETS.iter().any(|it| it.as_bytes().eq_ignore_ascii_case(name.trim_ascii()))
}

/// Bytes that are no text at all.
fn escaped_bytes(bytes: &[u8]) {
    let mut out = b"\"".to_vec();
    push_escaped(&mut out, bytes, usize::MAX);
    out.push(b'"');
    let read: String = serde_json::from_slice(&out).expect("a string of JSON");
    assert_eq!(read, String::from_utf8_lossy(bytes));
}
