//! What is done with one input, by target: the fuzzer calls these functions, and so does the test
//! that replays the corpora. An input that shows a fault panics.

#[path = "models.rs"]
pub mod models;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use jsonwebtoken::{DecodingKey, EncodingKey, Validation};
use serde_json::Value;

use tollgate::config::compile::Settings;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load, load_policy, look_through_config};
use tollgate::config::report::ConfigErrors;
use tollgate::identity::algorithm::Algorithm;
use tollgate::identity::keys::KeySet;
use tollgate::identity::token::{TokenRules, judge, unverified};
use tollgate::limiter::time::Micros;
use tollgate::policy::compiled::Policy;
use tollgate::policy::facts::RequestFacts;
use tollgate::policy::forwarded::{ClientAddress, ForwardedFault, client_address};
use tollgate::policy::path::Readings;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What everything is loaded with where no file says otherwise.
static SETTINGS: LazyLock<Settings> = LazyLock::new(|| {
    let request = LoadRequest {
        config: None,
        tiers: None,
        overrides: Overrides::default(),
        upstream: UpstreamNeed::Optional,
        env: &|_| None,
    };
    load(&request).expect("the defaults are valid").settings
});

/// A policy with the rules of the models, each limited, and nothing else.
static LIMITED: LazyLock<Policy> = LazyLock::new(|| limited(&models::RULES));

/// A policy that has a rule for each depth, so that one path may meet as many as it has readings.
static BY_DEPTH: LazyLock<Policy> = LazyLock::new(|| {
    let path = |depth: usize| (0..depth).map(|it| format!("/{{s{it}}}")).collect::<String>();
    limited(&(1..=BY_DEPTH_MAX).map(path).collect::<Vec<_>>())
});
const BY_DEPTH_MAX: usize = 12;

fn limited(paths: &[impl AsRef<str>]) -> Policy {
    let mut text = String::from("endpoints:\n");
    for (index, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        let what = match path {
            path if path == models::RULES[models::EXEMPT] => "exempt: true",
            _ => "limits: {any: {per_minute: 9}}",
        };
        text += &format!("- {{name: r{index}, path: \"{path}\", {what}}}\n");
    }
    let loaded = load_policy(Path::new("tiers.yaml"), text.into_bytes(), &SETTINGS, &|_| None);
    loaded.expect("the rules are valid").policy
}

/// Readings of a path, alone and beside models of backends.
///
/// The input is a target as it may stand in a request, and once more raw material for an honest
/// link: segments that an application would encode.
pub fn path(data: &[u8]) {
    readings_are_sound(data);
    if let Ok(target) = PathAndQuery::try_from(data) {
        no_backend_serves_it_uncounted(target.path());
        every_depth_is_counted(target.path());
    }
    let mut link = Vec::new();
    for segment in data.split(|it| *it == b'/') {
        link.push(b'/');
        for byte in segment {
            let is_pchar = byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(byte);
            if is_pchar { link.push(*byte) } else { link.extend(format!("%{byte:02X}").bytes()) }
        }
    }
    let readings = Readings::of(&link);
    assert_eq!(readings.is_err(), models::is_to_be_refused(&link), "{}", link.escape_ascii());
    let link = std::str::from_utf8(&link).expect("it is ASCII");
    no_backend_serves_it_uncounted(link);
    every_depth_is_counted(link);
}

fn readings_are_sound(raw: &[u8]) {
    let end = raw.iter().position(|it| matches!(it, b'?' | b'#')).unwrap_or(raw.len());
    let (path, shown) = (&raw[..end], raw.escape_ascii());
    let Ok(readings) = Readings::of(raw) else {
        let has_reading = path.is_empty() || path == b"*" || path.starts_with(b"/");
        assert!(!has_reading || models::is_to_be_refused(path), "{shown} is refused");
        return;
    };
    if path == b"*" {
        return assert_eq!((readings.strict(), readings.agree()), (path, true));
    }
    assert!(!models::is_to_be_refused(path), "{shown} is not refused");
    // Without its dot segments, a path may climb above the root where disguised ones are left.
    if let Ok(again) = Readings::of(readings.strict()) {
        assert_eq!(again.strict(), readings.strict(), "{shown}: strict twice");
    }
    let two = [readings.strict(), readings.lenient()];
    for reading in two.into_iter().chain(readings.further().iter().map(|it| &*it.path)) {
        assert_eq!(reading.first(), Some(&b'/'), "{shown}");
        assert!(reading.len() <= 3 * raw.len() + 1, "{shown}");
    }
    for reading in two {
        let is_dots = |it: &[u8]| matches!(it, b"." | b"..");
        assert!(!reading.split(|it| *it == b'/').any(is_dots), "{shown}");
    }
    let lenient = readings.lenient();
    assert_eq!(lenient, lenient.to_ascii_lowercase(), "{shown}");
    assert!(!lenient.windows(2).any(|it| it == b"//"), "{shown}");
    assert!(lenient == b"/" || !lenient.ends_with(b"/"), "{shown}");
    assert!(readings.further().len() <= 25, "{shown}");
}

/// For each resource that a model of a backend serves for this path, tollgate checks its limits, or
/// refuses the path.
pub fn no_backend_serves_it_uncounted(path: &str) {
    let headers = HeaderMap::new();
    let (method, peer) = (&Method::GET, HERE);
    let facts = RequestFacts {
        method,
        path,
        query: None,
        host: None,
        peer,
        headers: &headers,
        certificate: None,
    };
    let plan = LIMITED.plan(&facts, &LIMITED.anonymous(&facts));
    assert_eq!(plan.is_err(), models::is_to_be_refused(path.as_bytes()), "{path:?}");
    let Ok(plan) = plan else { return };
    let checked: Vec<usize> =
        plan.scopes().filter_map(|it| it.rule).map(|it| usize::from(it.0)).collect();
    for (name, model) in models::MODELS {
        for resource in model(path.as_bytes()).into_iter().filter(|it| *it != models::EXEMPT) {
            assert!(
                checked.contains(&resource),
                "{name} serves {} for {path:?}, whose limits are not asked",
                models::RULES[resource],
            );
        }
    }
}

/// However many endpoints a path may be, each is asked for its limits, and it is not refused.
pub fn every_depth_is_counted(path: &str) {
    let headers = HeaderMap::new();
    let (method, peer) = (&Method::GET, HERE);
    let facts = RequestFacts {
        method,
        path,
        query: None,
        host: None,
        peer,
        headers: &headers,
        certificate: None,
    };
    let plan = BY_DEPTH.plan(&facts, &BY_DEPTH.anonymous(&facts));
    assert_eq!(plan.is_err(), models::is_to_be_refused(path.as_bytes()), "{path:?}");
    let (Ok(plan), Ok(readings)) = (plan, Readings::of(path.as_bytes())) else { return };
    let checked: Vec<usize> =
        plan.scopes().filter_map(|it| it.rule).map(|it| usize::from(it.0) + 1).collect();
    let further = readings.further().iter().map(|it| &*it.path);
    for reading in [readings.strict(), readings.lenient()].into_iter().chain(further) {
        let segments: Vec<&[u8]> = reading.split(|it| *it == b'/').skip(1).collect();
        let depth = segments.len();
        let has_rule =
            (1..=BY_DEPTH_MAX).contains(&depth) && segments.iter().all(|it| !it.is_empty());
        assert!(!has_rule || checked.contains(&depth), "{path:?}: depth {depth} of {checked:?}");
    }
}

/// `X-Forwarded-For` and `Forwarded` beside a simple oracle.
///
/// The input is lines: one that begins with `f` is a line of `Forwarded`, any other one of
/// `X-Forwarded-For`, without that first byte. The peer is trusted.
pub fn forwarded(data: &[u8]) {
    let trusted: Vec<IpNet> =
        ["10.0.0.0/8", "2001:db8:f::/48"].map(|it| it.parse().expect("a network")).into();
    let peer = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let is_ours = |it: IpAddr| trusted.iter().any(|net| net.contains(&it));
    let (mut lists, mut elements) = (Vec::new(), Vec::new());
    let mut headers = HeaderMap::new();
    for line in data.split(|it| *it == b'\n') {
        let Some((kind, text)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(text) else { continue };
        let (name, lines) = match kind {
            b'f' => ("forwarded", &mut elements),
            _ => ("x-forwarded-for", &mut lists),
        };
        headers.append(name, value);
        lines.push(text.to_vec());
    }
    let found = client_address(peer, &headers, &trusted);
    assert!(found.fault != Some(ForwardedFault::Untrusted));

    let stranger = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let untrusted = client_address(stranger, &headers, &trusted);
    let fault = (!headers.is_empty()).then_some(ForwardedFault::Untrusted);
    assert_eq!(untrusted, ClientAddress { address: stranger, fault }, "{headers:?}");

    // `None`: nobody; `Some(None)`: it cannot be read.
    let walk = |chain: Vec<Option<Option<IpAddr>>>| {
        let mut known = None;
        for (count, node) in chain.into_iter().rev().enumerate() {
            if count == 64 {
                return Some(None);
            }
            let Some(node) = node else { continue };
            known = Some(node);
            if node.is_none_or(|it| !is_ours(it)) {
                break;
            }
        }
        known
    };
    let split = |line: &Vec<u8>| -> Vec<Option<Option<IpAddr>>> {
        let text: Vec<&[u8]> = line.split(|it| *it == b',').map(<[u8]>::trim_ascii).collect();
        text.into_iter().map(|it| (!it.is_empty()).then(|| node(it))).collect()
    };
    let by_list = walk(lists.iter().flat_map(split).collect());
    let read: Option<Vec<_>> = elements.iter().map(|line| well_formed(line)).collect();
    if let Some(read) = read {
        let by_elements = walk(read.into_iter().flatten().collect());
        let expected = match (by_list, by_elements) {
            (None, None) => (peer, None),
            (None, Some(Some(it))) => (it, None),
            (Some(None), _) | (None, Some(None)) => (peer, Some(ForwardedFault::Malformed)),
            (Some(Some(it)), None) => (it, None),
            (Some(Some(it)), Some(other)) => {
                (it, (other != Some(it)).then_some(ForwardedFault::Conflict))
            }
        };
        assert_eq!((found.address, found.fault), expected, "{headers:?}");
    }
    // What a proxy of ours appends counts, whatever stands before it.
    let caller: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(0x2001_0db8 << 96 | 1));
    for (name, last) in [("x-forwarded-for", "2001:db8::1"), ("forwarded", "for=\"[2001:db8::1]\"")]
    {
        let mut headers = headers.clone();
        let other = if name == "forwarded" { "x-forwarded-for" } else { "forwarded" };
        headers.remove(other);
        let lines: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
        let before = lines.last().map_or(&b""[..], HeaderValue::as_bytes);
        let line = HeaderValue::from_bytes(&[before, b", ", last.as_bytes()].concat());
        headers.remove(name);
        let name = HeaderName::from_static(name);
        for line in lines.iter().rev().skip(1).rev() {
            headers.append(name.clone(), line.clone());
        }
        headers.append(name, line.expect("a line with text behind it"));
        let found = client_address(peer, &headers, &trusted);
        assert_eq!((found.address, found.fault), (caller, None), "{headers:?}");
    }
}

/// An address as a chain may hold it.
fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text.trim_ascii()).ok().filter(|it| it.len() <= 128)?;
    let with_port = |port: &str| match port.strip_prefix('_') {
        Some(name) => {
            !name.is_empty()
                && name.chars().all(|it| it.is_ascii_alphanumeric() || "._-".contains(it))
        }
        None => port.bytes().all(|it| it.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    };
    let bare = text.parse::<IpAddr>().ok();
    let bracketed = || {
        let (address, rest) = text.strip_prefix('[')?.split_once(']')?;
        let is_fine = rest.is_empty() || rest.strip_prefix(':').is_some_and(with_port);
        address.parse::<Ipv6Addr>().ok().filter(|_| is_fine).map(IpAddr::V6)
    };
    let v4_with_port = || {
        let (address, port) = text.split_once(':')?;
        address.parse::<Ipv4Addr>().ok().filter(|_| with_port(port)).map(IpAddr::V4)
    };
    bare.or_else(bracketed).or_else(v4_with_port).map(|it| it.to_canonical())
}

/// The elements of a line of `Forwarded` that keeps to the grammar of RFC 7239 §4, read from the
/// left: nothing for an empty one, `Some(None)` for one that names no address. `None`: it does not
/// keep to the grammar.
fn well_formed(line: &[u8]) -> Option<Vec<Option<Option<IpAddr>>>> {
    let is_token = |it: u8| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&it);
    let mut elements = Vec::new();
    let mut at = 0;
    let skip = |mut at: usize| {
        while line.get(at).is_some_and(|it| matches!(it, b' ' | b'\t')) {
            at += 1;
        }
        at
    };
    loop {
        at = skip(at);
        let (mut pairs, mut named) = (0, Vec::new());
        while at < line.len() && line[at] != b',' {
            let start = at;
            while at < line.len() && is_token(line[at]) {
                at += 1;
            }
            let name = &line[start..at];
            if name.is_empty() || line.get(at) != Some(&b'=') {
                return None;
            }
            at += 1;
            let mut value = Vec::new();
            if line.get(at) == Some(&b'"') {
                at += 1;
                while *line.get(at)? != b'"' {
                    at += usize::from(line[at] == b'\\');
                    value.push(*line.get(at)?);
                    at += 1;
                }
                at += 1;
            } else {
                while at < line.len() && is_token(line[at]) {
                    value.push(line[at]);
                    at += 1;
                }
                if value.is_empty() {
                    return None;
                }
            }
            pairs += 1;
            if name.eq_ignore_ascii_case(b"for") {
                named.push(node(&value));
            }
            at = skip(at);
            match line.get(at) {
                Some(b';') => at = skip(at + 1),
                Some(b',') | None => {}
                Some(_) => return None,
            }
        }
        elements.push((pairs > 0).then_some(match named.as_slice() {
            [only] => *only,
            _ => None,
        }));
        if at >= line.len() {
            return Some(elements);
        }
        at += 1;
    }
}

/// `tiers.yaml` through the loader, and what loads through a request.
pub fn tiers(data: &[u8]) {
    let env = |name: &str| (name == "SET").then(|| "7".to_owned());
    let name = "dir/tiers.yaml";
    match load_policy(Path::new(name), data.to_vec(), &SETTINGS, &env) {
        Ok(loaded) => {
            assert_eq!(loaded.policy_hash.len(), 64);
            assert!(!loaded.policy.tiers().is_empty());
            let headers = HeaderMap::new();
            for path in ["/", "/fo/history/2025", "/reports/7/export", "/a%2f..%2fb/../c"] {
                let facts = RequestFacts {
                    method: &Method::GET,
                    path,
                    query: None,
                    host: Some("a.example"),
                    peer: HERE,
                    headers: &headers,
                    certificate: None,
                };
                let plan = loaded.policy.plan(&facts, &loaded.policy.anonymous(&facts));
                if let Ok(plan) = plan {
                    assert!(loaded.policy.tier(plan.tier).is_some());
                    assert!(plan.cost > 0);
                }
            }
        }
        Err(errors) => tell_the_place(&errors, name, data),
    }
}

/// `tollgate.yaml` likewise, without looking at the files that it names in `/dev` and the like.
pub fn config(data: &[u8]) {
    if data.windows(4).any(|it| matches!(it, b"/dev" | b"/pro" | b"/sys")) {
        return;
    }
    let env = |name: &str| (name == "SET").then(|| "7".to_owned());
    let name = "dir/tollgate.yaml";
    let looked = look_through_config(Path::new(name), data.to_vec(), &Overrides::default(), &env);
    if let Err(errors) = looked {
        tell_the_place(&errors, name, data);
    }
}

fn tell_the_place(ConfigErrors(errors): &ConfigErrors, name: &str, data: &[u8]) {
    assert!(!errors.is_empty());
    // A carriage return alone may end a line, too.
    let lines = 1 + data.iter().filter(|it| matches!(**it, b'\n' | b'\r')).count();
    for error in errors {
        assert_eq!(error.file.as_deref(), Some(name), "{error}");
        assert!(!error.message.is_empty(), "{error}");
        if let Some(line) = error.line {
            assert!((1..=lines + 1).contains(&line), "{error} of {lines} lines");
            assert!(error.column.is_some_and(|it| it > 0), "{error}");
        }
        let _ = error.to_string();
    }
}

const SECRET: &[u8] = b"correct horse battery staple, and then some more of it for sixty-four";
/// The public keys of RFC 7515 appendix A.2 and A.3, and of RFC 8037 appendix A.
const JWKS: &str = r#"{"keys":[
{"kid":"es","kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
{"kid":"ed","kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

static TOKEN_RULES: LazyLock<TokenRules> = LazyLock::new(|| TokenRules {
    algorithms: [Algorithm::Hs256, Algorithm::Es256, Algorithm::EdDsa].into(),
    user_claims: ["user_id".into(), "sub".into(), "iss".into()].into(),
    tier_claims: ["tier".into(), "/app/plan".into()].into(),
    issuer: None,
    audience: None,
    leeway: Micros::from_micros(0),
    bytes_max: 8192,
});
static HS: LazyLock<KeySet> = LazyLock::new(|| KeySet::of_secret(SECRET, &[Algorithm::Hs256]));
static SET: LazyLock<KeySet> = LazyLock::new(|| {
    KeySet::parse(JWKS.as_bytes(), &[Algorithm::Es256, Algorithm::EdDsa]).expect("a set of keys")
});

/// Tokens and keys beside another implementation.
///
/// The input is a token; or, behind an `s`, the header and the claims of one, parted by a line feed,
/// which is signed here; or, behind a `k`, a set of keys.
pub fn jwt(data: &[u8]) {
    match data.split_first() {
        Some((b's', parts)) => {
            let parts: Vec<&[u8]> = parts.splitn(2, |it| *it == b'\n').collect();
            let [header, claims] = parts[..] else { return };
            let [header, claims] = [header, claims].map(|it| URL_SAFE_NO_PAD.encode(it));
            let message = format!("{header}.{claims}");
            let key = EncodingKey::from_secret(SECRET);
            let signed = jsonwebtoken::crypto::sign(
                message.as_bytes(),
                &key,
                jsonwebtoken::Algorithm::HS256,
            );
            believed_by_both(&format!("{message}.{}", signed.expect("a signature")));
        }
        Some((b'k', keys)) => {
            let _ = KeySet::parse(keys, &Algorithm::ALL);
        }
        _ => {
            if let Ok(token) = std::str::from_utf8(data) {
                believed_by_both(token);
            }
        }
    }
}

/// Whatever tollgate believes, the other implementation believes, of the same user.
fn believed_by_both(token: &str) {
    let _ = unverified(token);
    let secret = DecodingKey::from_secret(SECRET);
    let keys: Value = serde_json::from_str(JWKS).expect("JSON");
    let public = |index: usize| {
        let jwk = serde_json::from_value(keys["keys"][index].clone()).expect("a JWK");
        DecodingKey::from_jwk(&jwk).expect("a key")
    };
    let theirs = [
        (&*HS, jsonwebtoken::Algorithm::HS256, secret),
        (&*SET, jsonwebtoken::Algorithm::ES256, public(0)),
        (&*SET, jsonwebtoken::Algorithm::EdDSA, public(1)),
    ];
    for keys in [&*HS, &*SET] {
        let Ok(ours) = judge(token, &TOKEN_RULES, keys) else { continue };
        let (message, signature) = token.rsplit_once('.').expect("a signature");
        let fits =
            theirs.iter().filter(|(set, ..)| std::ptr::eq(*set, keys)).any(|(_, alg, key)| {
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, *alg)
                    .is_ok_and(|it| it)
            });
        assert!(fits, "{token} is believed, and its signature does not fit");
        assert!(ours.from <= ours.until || ours.until.as_micros() < ours.from.as_micros());
        // The other implementation has types for fields of the header that nobody here looks at.
        let Ok(header) = jsonwebtoken::decode_header(token) else { continue };
        let mut validation = Validation::new(header.alg);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let (_, _, key) = theirs
            .iter()
            .find(|(_, alg, _)| *alg == header.alg)
            .expect("one of the algorithms that are accepted");
        let data = jsonwebtoken::decode::<Value>(token, key, &validation);
        let claims = data.unwrap_or_else(|error| panic!("{token} is believed: {error}")).claims;
        let user = ["user_id", "sub", "iss"].iter().map(|it| &claims[it]).find(|it| !it.is_null());
        let user = match user {
            Some(Value::String(text)) => text.clone(),
            Some(number) => number.to_string(),
            None => panic!("{token} is believed, and names nobody"),
        };
        assert_eq!(ours.credential.identity.to_string(), format!("user:{user}"), "{token}");
    }
}
