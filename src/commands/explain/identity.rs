//! Who sends a request: what each configured entry finds, and what comes of it.
//!
//! No token, no key and no secret is ever part of what is said; of what a token says, only `alg`,
//! `kid`, `iss`, `aud`, its times, its user and its plan.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use crate::config::report::shortened;
use crate::identity::identifier::{
    ApiKeyMethod, Identified, Identifier, Invalid, JwtMethod, Method, OnInvalid,
};
use crate::identity::present::{Presented, TokenPlaces, in_field};
use crate::identity::token::{self, Token, TokenFault, TokenRules};
use crate::limiter::time::Timestamp;
use crate::metrics::edge_labels::IdentityError;
use crate::policy::explain::rules::shown;
use crate::policy::explain::{Look, Step};
use crate::policy::facts::RequestFacts;
use crate::policy::identity::Identity;

type Object = serde_json::Map<String, serde_json::Value>;

/// The first second that RFC 3339 has no year for.
const YEAR_10000: u64 = 253_402_300_800;

/// Fetches, once each, the key sets that a token of this request may be verified with, and says
/// what came of it. Takes at most [`crate::identity::fetch::TIMEOUT`] each.
pub async fn fetch_keys(identifier: &Identifier, facts: &RequestFacts<'_>) -> Vec<String> {
    let mut said = Vec::new();
    for method in identifier.methods() {
        let Method::Jwt(jwt) = method else { continue };
        let Some(remote) = &jwt.remote else { continue };
        if !matches!(jwt.places.find(facts), Presented::One(_)) {
            continue;
        }
        let url = shown(remote.shown().as_bytes());
        said.push(match remote.refresh().await {
            Ok(()) => match remote.source.load().set.len() {
                1 => format!("1 key was fetched from {url}."),
                keys => format!("{keys} keys were fetched from {url}."),
            },
            Err(error) => {
                let error = shown(error.as_bytes());
                format!("The keys at {url} could not be fetched ({error}): no token is verified.")
            }
        });
    }
    said
}

/// What each entry finds. `identity` is what came of it.
pub fn step(
    identifier: &Identifier,
    facts: &RequestFacts<'_>,
    address: IpAddr,
    identity: &Identity,
    now: Timestamp,
) -> Step {
    let identified = identifier.identify(facts, address, now);
    let decider = match &identified {
        Identified::Anonymous => None,
        Identified::Known(_, index) => Some(*index),
        Identified::Invalid(invalid) => Some(invalid.method),
    };
    let mut looked_at = Vec::new();
    let mut is_over = false;
    for (index, method) in identifier.methods().iter().enumerate() {
        let (what, nothing) = match method {
            Method::Jwt(jwt) => ("jwt", format!("no token in {}", places(&jwt.places))),
            Method::ApiKey(keys) => ("api_key", format!("no {} field", keys.header)),
            Method::Certificate => ("mtls", "no certificate with a common name".to_owned()),
            Method::Address => break,
        };
        if is_over {
            looked_at.push(Look::new(what, "not asked", false));
        } else if decider == Some(index) {
            is_over = true;
            let found = found(method, &identified, facts, now);
            looked_at.push(Look::new(what, found, true));
        } else {
            looked_at.push(Look::new(what, nothing, false));
        }
    }
    let is_known = matches!(identified, Identified::Known(..));
    let is_rejected = matches!(identified, Identified::Invalid(it) if it.is_rejected);
    let by_address = match (is_known, is_over) {
        (true, _) => "not asked".to_owned(),
        (false, true) if is_rejected => "not asked: the request is refused".to_owned(),
        (false, true) => format!("{address}, which is who is asking then"),
        (false, false) => format!("{address}: everybody has one"),
    };
    let result = match &identified {
        Identified::Invalid(_) if is_rejected => "not believed".to_owned(),
        _ => identity.to_string(),
    };
    let decides = !is_over;
    looked_at.push(Look::new("ip", by_address, decides));
    Step { name: "identity", result, looked_at, notes: Vec::new() }
}

/// Why a 401.
pub fn why_rejected(invalid: &Invalid) -> String {
    format!(
        "the credential is not believed ({}), and on_invalid is reject",
        invalid.reason.as_str()
    )
}

/// What the entry that decides has found.
fn found(
    method: &Method,
    identified: &Identified,
    facts: &RequestFacts<'_>,
    now: Timestamp,
) -> String {
    let (place, on_invalid) = match method {
        Method::Jwt(jwt) => (places(&jwt.places), jwt.on_invalid),
        Method::ApiKey(keys) => (keys.header.to_string(), keys.on_invalid),
        Method::Certificate => ("the certificate".to_owned(), OnInvalid::Ip),
        Method::Address => return String::new(),
    };
    let then = match on_invalid {
        OnInvalid::Ip => "so the address counts (on_invalid: ip)",
        OnInvalid::Reject => "so the request is refused (on_invalid: reject)",
    };
    match (identified, method) {
        (Identified::Known(credential, _), Method::Jwt(jwt)) => {
            let until = verified(jwt, facts, now).map(|token| until(jwt, &token));
            format!("a token of {}, verified{}", credential.identity, until.unwrap_or_default())
        }
        (Identified::Known(credential, _), Method::Certificate) => {
            format!("a certificate of {}, verified", credential.identity)
        }
        (Identified::Known(credential, _), Method::ApiKey(_) | Method::Address) => {
            format!("a key of {}, known", credential.identity)
        }
        (Identified::Invalid(invalid), Method::Jwt(jwt)) => {
            format!(
                "a token in {place}, not believed: {}; {then}",
                token_fault(jwt, facts, now, invalid)
            )
        }
        (Identified::Invalid(invalid), Method::ApiKey(keys)) => {
            format!("a key in {place}, not believed: {}; {then}", key_fault(keys, facts, invalid))
        }
        (Identified::Invalid(invalid), Method::Certificate) => {
            let why = match invalid.reason {
                IdentityError::Expired => "it has expired",
                _ => "its common name is none of a user",
            };
            format!("{place}, not believed: {why}; so the address counts")
        }
        (Identified::Invalid(_), Method::Address) | (Identified::Anonymous, _) => String::new(),
    }
}

/// Verifies the token once more, for what is said of it beside whose it is.
fn verified(
    jwt: &JwtMethod,
    facts: &RequestFacts<'_>,
    now: Timestamp,
) -> Result<Token, Option<TokenFault>> {
    match jwt.places.find(facts) {
        Presented::One(text) => {
            token::verify(text, &jwt.rules, &jwt.keys.load().set, now).map_err(Some)
        }
        Presented::Nothing | Presented::Unclear => Err(None),
    }
}

fn until(jwt: &JwtMethod, token: &Token) -> String {
    if token.until == Timestamp::from_micros(u64::MAX) {
        return "; it has no exp, so it never expires".to_owned();
    }
    let seconds = token.until.minus(jwt.rules.leeway).as_secs_ceil();
    if seconds >= YEAR_10000 {
        return ", valid beyond the year 9999".to_owned();
    }
    let end = UNIX_EPOCH + Duration::from_secs(seconds);
    format!(", valid until {}", humantime::format_rfc3339_seconds(end))
}

fn token_fault(
    jwt: &JwtMethod,
    facts: &RequestFacts<'_>,
    now: Timestamp,
    invalid: &Invalid,
) -> String {
    let fault = match verified(jwt, facts, now).err() {
        Some(Some(fault)) => fault,
        Some(None) => return "there are two of them, or it is no text".to_owned(),
        None => return invalid.reason.as_str().to_owned(),
    };
    let said = match jwt.places.find(facts) {
        Presented::One(text) => token::unverified(text),
        Presented::Nothing | Presented::Unclear => None,
    };
    let (header, claims) = said.unwrap_or_default();
    match fault {
        TokenFault::Malformed => "it is no signed token, or too long".to_owned(),
        TokenFault::Unacceptable => objection(&jwt.rules, &header, &claims),
        TokenFault::UnknownKid => match header.get("kid") {
            Some(kid) => format!("no key of the id that it names is known: kid {}", value(kid)),
            None => "it names no key, and not just one key is there for its alg".to_owned(),
        },
        TokenFault::BadSignature => "its signature does not fit".to_owned(),
        TokenFault::Expired => format!("it has expired{}", at_second(claims.get("exp"))),
        TokenFault::NotYetValid => format!("it is not valid yet{}", at_second(claims.get("nbf"))),
        TokenFault::NoUser => {
            format!("no claim of user_claim ({}) names a user", jwt.rules.user_claims.join(", "))
        }
    }
}

/// What in a token is another than configured. Of claims, only those that are nobody's secret.
fn objection(rules: &TokenRules, header: &Object, claims: &Object) -> String {
    let algorithm = header.get("alg").and_then(|it| it.as_str()).unwrap_or_default();
    if header.contains_key("crit") {
        return "it has crit: extensions that must be understood, and none is".to_owned();
    }
    if !rules.algorithms.iter().any(|it| it.as_str() == algorithm) {
        let accepted: Vec<&str> = rules.algorithms.iter().map(|it| it.as_str()).collect();
        let found = shown(algorithm.as_bytes());
        return format!("its alg is {found}, and algorithms has {}", accepted.join(", "));
    }
    let claim = |name: &str| claims.get(name).map_or_else(|| "not there".to_owned(), value);
    match (&rules.issuer, &rules.audience) {
        (Some(issuer), _) if claims.get("iss").and_then(|it| it.as_str()) != Some(issuer) => {
            format!("its iss is {}, and issuer is {issuer}", claim("iss"))
        }
        (_, Some(audience)) => format!("its aud is {}, and audience is {audience}", claim("aud")),
        _ => "its algorithm, issuer or audience is another than configured".to_owned(),
    }
}

/// A claim as it is repeated: printable, and not longer than a line.
fn value(value: &serde_json::Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    shortened(&shown(text.as_bytes()))
}

/// When a claim says so; nothing where it says no second that can be written.
fn at_second(claim: Option<&serde_json::Value>) -> String {
    match claim.and_then(serde_json::Value::as_f64) {
        Some(seconds) if seconds >= 0.0 && seconds < YEAR_10000 as f64 => {
            let moment = UNIX_EPOCH + Duration::from_secs(seconds as u64);
            format!(" ({})", humantime::format_rfc3339_seconds(moment))
        }
        _ => String::new(),
    }
}

fn key_fault(keys: &ApiKeyMethod, facts: &RequestFacts<'_>, invalid: &Invalid) -> &'static str {
    match (in_field(facts, &keys.header, Some), invalid.reason) {
        (Presented::Unclear, _) => "there are two of them, or it is no text",
        (_, IdentityError::UnknownKey) => "the keys_file does not have it",
        (_, IdentityError::Expired) => "it has expired",
        (_, other) => other.as_str(),
    }
}

/// Where a token may be.
fn places(places: &TokenPlaces) -> String {
    let mut text = places.header.to_string();
    if let Some(cookie) = &places.cookie {
        text.push_str(&format!(", cookie {cookie}"));
    }
    if let Some(query) = &places.query {
        text.push_str(&format!(", parameter {query}"));
    }
    text
}
