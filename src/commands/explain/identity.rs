//! Who sends a request: what each configured entry finds, and what comes of it.
//!
//! No token, no key and no secret is ever part of what is said.

use std::net::IpAddr;
use std::time::{Duration, UNIX_EPOCH};

use crate::identity::identifier::{
    ApiKeyMethod, Identified, Identifier, Invalid, JwtMethod, Method, OnInvalid,
};
use crate::identity::present::{Presented, TokenPlaces, in_field};
use crate::identity::token::{self, Token, TokenFault};
use crate::limiter::time::Timestamp;
use crate::metrics::labels::IdentityError;
use crate::policy::explain::rules::shown;
use crate::policy::explain::{Look, Step};
use crate::policy::facts::RequestFacts;
use crate::policy::identity::Identity;

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
    let by_address = match (is_known, is_over) {
        (true, _) => "not asked".to_owned(),
        (false, true) => format!("{address}, which is who is asking then"),
        (false, false) => format!("{address}: everybody has one"),
    };
    let result = match &identified {
        Identified::Invalid(invalid) if invalid.is_rejected => "not believed".to_owned(),
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
        return ", without an end".to_owned();
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
) -> &'static str {
    match verified(jwt, facts, now).err() {
        Some(Some(TokenFault::Malformed)) => "it is no signed token, or too long",
        Some(Some(TokenFault::Unacceptable)) => {
            "its algorithm, issuer or audience is another than configured"
        }
        Some(Some(TokenFault::UnknownKid)) => "no key of the id that it names is known",
        Some(Some(TokenFault::BadSignature)) => "its signature does not fit",
        Some(Some(TokenFault::Expired)) => "it has expired",
        Some(Some(TokenFault::NotYetValid)) => "it is not valid yet",
        Some(Some(TokenFault::NoUser)) => "no claim of user_claim names a user",
        Some(None) => "there are two of them, or it is no text",
        None => invalid.reason.as_str(),
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
