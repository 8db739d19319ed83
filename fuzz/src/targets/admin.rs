//! Calls of the admin API, whatever is sent, beside readers of the few forms that it takes.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;
use tokio::runtime::Runtime;

use tollgate::admin::access::{AdminToken, Caller, check};
use tollgate::admin::api::{Call, Reply, call};
use tollgate::admin::calls::CALLS;
use tollgate::admin::failures::TokenFailures;
use tollgate::admin::state::AdminState;
use tollgate::commands::logging::Recorders;
use tollgate::commands::wiring::Wired;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::limiter::time::Timestamp;
use tollgate::overrides::codec::{Codec, Entry};
use tollgate::policy::identity::Identity;
use tollgate::store::redis::names::KeyNames;

const TOKEN: &str = "correct-horse-battery-staple";
const TIERS: [&str; 4] = ["free", "premium", "enterprise", "internal"];
/// What messages may name beside parameters of a query.
const NAMED: [&str; 7] =
    ["path", "identity", "tier", "until", "reason", "body", "x-tollgate-operator"];

struct Running {
    state: Arc<AdminState>,
    runtime: Runtime,
    codecs: [Codec; 2],
}

static RUNNING: LazyLock<Running> = LazyLock::new(|| {
    let loaded = load(&LoadRequest {
        config: None,
        tiers: None,
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    });
    let loaded = loaded.expect("the defaults are valid");
    let wired = Wired::new(loaded, 1, None, Recorders::default(), None).expect("no TLS");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let names = KeyNames::new("tg");
    let secret = names.clone().with_secret(b"0123456789abcdef");
    Running {
        state: wired.admin,
        runtime: runtime.expect("a runtime"),
        codecs: [Codec::new(names), Codec::new(secret)],
    }
});

/// What a call came to.
struct Came {
    status: u16,
    body: Option<Value>,
}

/// A call as it may be sent: its method and target, a line for each field, an empty line, its body.
///
/// An error says what is wrong in which field; what is set is what was asked for, is shown so
/// wherever it is shown, is read back from what is written to Redis, and can be taken back.
pub fn admin(data: &[u8]) {
    let mut lines = data.splitn(2, |it| *it == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut rest = lines.next().unwrap_or_default();
    let mut words = first.splitn(2, |it| *it == b' ');
    let method = Method::from_bytes(words.next().unwrap_or_default());
    let uri = Uri::try_from(words.next().unwrap_or_default());
    let (Ok(method), Ok(uri)) = (method, uri) else { return };
    let mut fields = HeaderMap::new();
    while let Some(end) = rest.iter().position(|it| *it == b'\n') {
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        if line.is_empty() {
            break;
        }
        let mut parts = line.splitn(2, |it| *it == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            fields.append(name, value);
        }
    }
    token(&uri, &fields);
    let is_json = fields.contains_key(CONTENT_TYPE);
    fields.remove(AUTHORIZATION);
    fields.insert(HOST, HeaderValue::from_static("localhost"));
    if !is_json {
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let Some(came) = made(&method, &uri, &fields, rest) else { return };
    let names = |it: &&Call| is_of(it, &method, uri.path());
    let known = CALLS.iter().find(names);
    match came.status {
        200 | 204 => {
            let known = known.unwrap_or_else(|| panic!("{method} {uri} is a call"));
            let parameters = query(uri.query().unwrap_or_default());
            for (index, (name, _)) in parameters.iter().enumerate() {
                assert!(known.parameters.contains(&name.as_str()), "{name} of {uri}");
                assert!(parameters[..index].iter().all(|(it, _)| it != name), "{name} of {uri}");
            }
            if method == Method::PUT {
                was_set(&uri, &fields, rest, came.body.as_ref().expect("what was set"));
            }
        }
        400 => tells_the_field(&uri, &came),
        401 | 403 | 404 | 405 | 409 | 413 | 415 | 503 => {}
        status => panic!("{status} for {method} {uri}"),
    }
    if let Some(id) = known.and_then(|it| id_of(it.path, uri.path())) {
        is_one(id);
    }
}

/// Whoever bears the token may call, and nobody else.
fn token(uri: &Uri, fields: &HeaderMap) {
    let lines: Vec<&[u8]> = fields.get_all(AUTHORIZATION).iter().map(|it| it.as_bytes()).collect();
    let is_it = match lines[..] {
        [line] => {
            let scheme = line.get(..7).is_some_and(|it| it.eq_ignore_ascii_case(b"bearer "));
            scheme && line[7..].trim_ascii() == TOKEN.as_bytes()
        }
        _ => false,
    };
    for is_local in [true, false] {
        let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let caller = Caller { is_local, peer, is_reading: false, uri, fields };
        let failures = TokenFailures::default();
        let token = AdminToken::new(TOKEN);
        let now = Timestamp::from_micros(1_767_225_600_000_000);
        let checked = check(Some(&token), &failures, caller, now);
        assert_eq!(checked.is_ok(), is_it, "{lines:?}: {checked:?}");
        let is_own = check(None, &failures, caller, now).is_ok();
        assert!(is_local || !is_own, "{uri} {fields:?} from elsewhere");
    }
}

fn made(method: &Method, uri: &Uri, fields: &HeaderMap, body: &[u8]) -> Option<Came> {
    let Running { state, runtime, .. } = &*RUNNING;
    let caller = Caller {
        is_local: true,
        peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
        is_reading: *method == Method::GET || *method == Method::HEAD,
        uri,
        fields,
    };
    let answer = match call(state, method, caller) {
        Ok(admitted) => {
            let body = fred::bytes::Bytes::copy_from_slice(body);
            match runtime.block_on(admitted.answer(Arc::clone(state), &body)) {
                Reply::Answer(answer) => answer,
                Reply::Events(_) => return None,
            }
        }
        Err(answer) => answer,
    };
    let body = serde_json::from_slice(&answer.body).ok();
    assert!(body.is_some() || answer.body.is_empty() && answer.status == 204, "{method} {uri}");
    Some(Came { status: answer.status.as_u16(), body })
}

fn tells_the_field(uri: &Uri, came: &Came) {
    let error = came.body.as_ref().and_then(|it| it["error"].as_str()).expect("an error");
    let (field, what) = error.split_once(": ").unwrap_or_else(|| panic!("{error:?} names none"));
    // So much of a name is repeated, or that it is empty.
    let is_of_query = query(uri.query().unwrap_or_default())
        .iter()
        .flat_map(|(name, raw)| [name.clone(), raw.clone()])
        .chain(uri.query().unwrap_or_default().split(['&', '=']).map(str::to_owned))
        .any(|it| it == field || field == "empty" || is_cut(field, &it));
    let is_of_query = is_of_query || error.contains("unknown parameter") || error.contains("UTF-8");
    assert!(NAMED.contains(&field) || is_of_query, "{error:?} names no field of {uri}");
    assert!(!what.is_empty() && error.chars().count() < 400, "{error:?}");
}

fn is_cut(shown: &str, text: &str) -> bool {
    shown.strip_suffix('…').is_some_and(|shown| text.starts_with(shown))
}

/// Something was set for an identity.
fn was_set(uri: &Uri, fields: &HeaderMap, body: &[u8], answer: &Value) {
    let path = uri.path();
    let is_denial = path.starts_with("/api/v1/deny/");
    let raw = path.split('/').nth(4).expect("an identity");
    let raw = if is_denial { path.split('/').nth(4).expect("an identity") } else { raw };
    let id = decoded(raw.as_bytes(), false).expect("UTF-8");
    let shown = answer["identity"].as_str().expect("an identity");
    match id.split_once(':') {
        Some(("user" | "key", rest)) => {
            assert_eq!(shown, id);
            assert!((1..=256).contains(&rest.len()) && !rest.chars().any(char::is_control));
        }
        Some(("ip", rest)) => {
            let address = rest.split_once('/').map_or(rest, |it| it.0);
            let address: IpAddr = address.parse().expect("an address");
            let expected = match address.to_canonical() {
                IpAddr::V4(v4) => format!("ip:{v4}"),
                IpAddr::V6(v6) => {
                    let kept = std::net::Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64);
                    format!("ip:{kept}/64")
                }
            };
            assert_eq!(shown, expected);
        }
        _ => panic!("{id:?} is an identity"),
    }
    let given: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let tier = answer["tier"].as_str();
    if is_denial {
        assert_eq!((answer["kind"].as_str(), tier), (Some("deny"), None));
    } else {
        let tier = tier.expect("a tier");
        let asked = given["tier"].as_str().expect("a tier");
        assert!(TIERS.contains(&tier) && tier.eq_ignore_ascii_case(asked), "{asked:?} is {tier}");
    }
    match given["until"].as_str() {
        None => assert_eq!(answer["until"], Value::Null),
        Some(until) => {
            let shown = answer["until"].as_str().expect("a time");
            let expected = seconds(until).unwrap_or_else(|| panic!("{until:?} is a time"));
            assert_eq!(seconds(shown), Some(expected), "{until:?} is shown as {shown:?}");
            assert!(shown.ends_with('Z'), "{shown:?}");
        }
    }
    let reason = given["reason"].as_str().filter(|it| !it.is_empty());
    assert_eq!(answer["reason"].as_str(), reason);
    assert!(reason.is_none_or(|it| it.chars().count() <= 200 && !it.chars().any(char::is_control)));
    let by = fields.get("x-tollgate-operator").map(|it| String::from_utf8_lossy(it.as_bytes()));
    assert_eq!(answer["set_by"].as_str(), by.as_deref().map(str::trim));

    // It stands in the list and with the identity, in the same words.
    let list = if is_denial { "/api/v1/deny" } else { "/api/v1/overrides" };
    let listed = || {
        let came = told(list);
        let items = came["items"].as_array().expect("a list").clone();
        items.into_iter().filter(|it| it["identity"] == answer["identity"]).collect::<Vec<_>>()
    };
    assert_eq!(listed(), std::slice::from_ref(answer));
    let encoded: String = shown.bytes().map(|it| format!("%{it:02X}")).collect();
    let whole = told(&format!("/api/v1/identities/{encoded}"));
    let member = if is_denial { "denied" } else { "override" };
    assert_eq!(&whole[member], answer);
    is_read_back(shown);
    // And is taken back.
    let path = match is_denial {
        true => format!("/api/v1/deny/{encoded}"),
        false => format!("/api/v1/identities/{encoded}/override"),
    };
    let uri = Uri::try_from(path).expect("a path");
    let came = made(&Method::DELETE, &uri, &own_fields(), b"").expect("an answer");
    assert_eq!((came.status, listed().len()), (204, 0));
}

/// What is written to Redis says the same, to whoever has the secret.
fn is_read_back(identity: &str) {
    let identity = Identity::parse_written(identity).expect("an identity");
    let overrides = RUNNING.state.overrides.current();
    let set = [overrides.tier_of(&identity), overrides.denial_of(&identity)];
    for it in set.into_iter().flatten() {
        let entry = Entry::Override((**it).clone());
        for codec in &RUNNING.codecs {
            let (field, value) = codec.write(&entry);
            assert_eq!(codec.read(&field, &value).as_ref(), Some(&entry), "{entry:?}");
        }
    }
    if let Some(change) = RUNNING.state.overrides.changes().first() {
        for codec in &RUNNING.codecs {
            assert_eq!(codec.read_line(&codec.write_line(change)).as_ref(), Some(change));
        }
    }
}

/// An identity is the same however it is encoded.
fn is_one(raw: &str) {
    let Some(id) = decoded(raw.as_bytes(), false) else { return };
    let encoded: String = id.bytes().map(|it| format!("%{it:02x}")).collect();
    let [one, other] = [raw, &encoded].map(|it| {
        let uri = Uri::try_from(format!("/api/v1/identities/{it}")).ok()?;
        let came = made(&Method::GET, &uri, &own_fields(), b"").expect("an answer");
        Some((came.status, came.body.map(|it| it["identity"].clone())))
    });
    if let (Some(one), Some(other)) = (one, other) {
        assert_eq!(one, other, "{raw}");
    }
}

fn told(path: &str) -> Value {
    let uri = Uri::try_from(path).expect("a path");
    let came = made(&Method::GET, &uri, &own_fields(), b"").expect("an answer");
    assert_eq!(came.status, 200, "{path}");
    came.body.expect("JSON")
}

fn own_fields() -> HeaderMap {
    HeaderMap::from_iter([(HOST, HeaderValue::from_static("localhost"))])
}

fn is_of(call: &Call, method: &Method, path: &str) -> bool {
    let method = if *method == Method::HEAD { Method::GET } else { method.clone() };
    let (form, path): (Vec<&str>, Vec<&str>) =
        (call.path.split('/').collect(), path.split('/').collect());
    let fits = |(form, part): (&&str, &&str)| form == part || *form == "{id}" && !part.is_empty();
    call.method == method && form.len() == path.len() && form.iter().zip(&path).all(fits)
}

fn id_of<'a>(form: &str, path: &'a str) -> Option<&'a str> {
    let at = form.split('/').position(|it| it == "{id}")?;
    path.split('/').nth(at)
}

/// Names and raw values of a query.
fn query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|it| !it.is_empty());
    let pair = |it: &str| {
        let (name, value) = it.split_once('=').unwrap_or((it, ""));
        (decoded(name.as_bytes(), true).unwrap_or_default(), value.to_owned())
    };
    pairs.map(pair).collect()
}

/// Percent-decoded once; `None`: that is no text.
fn decoded(bytes: &[u8], is_form: bool) -> Option<String> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'%' => {
                let pair = std::str::from_utf8(bytes.get(at..at + 2)?).ok()?;
                let is_hex = pair.bytes().all(|it| it.is_ascii_hexdigit());
                decoded.push(u8::from_str_radix(pair, 16).ok().filter(|_| is_hex)?);
                at += 2;
            }
            b'+' if is_form => decoded.push(b' '),
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).ok()
}

/// Seconds since 1970 of a time (RFC 3339 §5.6), fractions left out.
fn seconds(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        let is_number = digits.bytes().all(|it| it.is_ascii_digit());
        digits.parse::<i64>().ok().filter(|_| is_number)
    };
    let marks = [(4, '-'), (7, '-'), (13, ':'), (16, ':')];
    let is_mark = |(at, mark): (usize, char)| text.get(at..)?.chars().next().map(|it| it == mark);
    let has_t = text.get(10..11)?.eq_ignore_ascii_case("t");
    if !has_t || !marks.into_iter().all(|it| is_mark(it) == Some(true)) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let mut rest = text.get(19..)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        let end = fraction.find(|it: char| !it.is_ascii_digit()).unwrap_or(fraction.len());
        rest = fraction.get(end..).filter(|_| end > 0)?;
    }
    let ahead = match rest {
        "Z" | "z" => 0,
        _ => {
            let at = text.len() - rest.len();
            let sign = match rest.get(..1)? {
                "+" => 1,
                "-" => -1,
                _ => return None,
            };
            let is_whole = rest.len() == 6 && rest.get(3..4) == Some(":");
            let (hours, minutes) = (number(at + 1, at + 3)?, number(at + 4, at + 6)?);
            (is_whole && hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))?
        }
    };
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let february = if is_leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *months.get(usize::try_from(month - 1).ok()?)?;
    // A leap second is the one before it.
    let second = second.min(if second == 60 { 59 } else { second });
    if !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years: i64 = (1970..year).map(|it| if is_leap(it) { 366 } else { 365 }).sum();
    let before: i64 = months[..usize::try_from(month - 1).ok()?].iter().sum();
    let days = years + before + day - 1;
    Some(days * 86_400 + hour * 3_600 + (minute - ahead) * 60 + second)
}
