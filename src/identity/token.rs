//! One JSON Web Token (RFC 7519), signed (RFC 7515, compact form): from its text to whom it names.
//!
//! Pure: keys, rules and the time are arguments. Nothing of the claims is looked at before the
//! signature has been verified.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::limiter::time::{Micros, Timestamp};
use crate::policy::caller::Credential;
use crate::policy::identity::{Identity, is_identifier};

use super::algorithm::Algorithm;
use super::json;
use super::keys::{KID_BYTES_MAX, KeyFault, KeySet};

/// Longest subscription that a token may carry, in bytes.
const SUBSCRIPTION_BYTES_MAX: usize = 256;

/// What is asked of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRules {
    /// Algorithms that are accepted, and no others.
    pub algorithms: Box<[Algorithm]>,
    /// Claims that name the user: the first that is there. One that begins with `/` is a JSON
    /// Pointer (RFC 6901) into nested claims.
    pub user_claims: Box<[Box<str>]>,
    /// Claims that name the tier or subscription, likewise; a token may have none.
    pub tier_claims: Box<[Box<str>]>,
    /// What `iss` must be.
    pub issuer: Option<Box<str>>,
    /// What `aud` must be, or hold.
    pub audience: Option<Box<str>>,
    /// How far clocks may differ.
    pub leeway: Micros,
    /// Longest token, in bytes.
    pub bytes_max: usize,
}

/// A token that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whom it names.
    pub credential: Credential,
    /// When it begins to hold: `nbf`, leeway taken off.
    pub from: Timestamp,
    /// When it no longer holds: `exp`, leeway added; the end of time without one.
    pub until: Timestamp,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// Not the compact form of a signed token, or too long.
    Malformed,
    /// Another algorithm, issuer or audience than configured, or extensions that must be
    /// understood.
    Unacceptable,
    /// No key of that id.
    UnknownKid,
    /// The signature does not fit.
    BadSignature,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    NotYetValid,
    /// None of the claims that should names a user.
    NoUser,
}

impl Token {
    /// Whether it holds now.
    ///
    /// # Errors
    /// Not any more, or not yet.
    pub fn holds_at(&self, now: Timestamp) -> Result<(), TokenFault> {
        if now >= self.until {
            Err(TokenFault::Expired)
        } else if now < self.from {
            Err(TokenFault::NotYetValid)
        } else {
            Ok(())
        }
    }
}

/// Verifies a token.
///
/// # Errors
/// Why it is not believed.
pub fn verify(
    token: &str,
    rules: &TokenRules,
    keys: &KeySet,
    now: Timestamp,
) -> Result<Token, TokenFault> {
    let token = judge(token, rules, keys)?;
    token.holds_at(now)?;
    Ok(token)
}

/// Verifies all of a token but the time, which goes on changing: see [`Token::holds_at`].
///
/// # Errors
/// Why it is never believed.
pub fn judge(token: &str, rules: &TokenRules, keys: &KeySet) -> Result<Token, TokenFault> {
    if token.len() > rules.bytes_max {
        return Err(TokenFault::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenFault::Malformed)?;
    // Four dots make an encrypted token (RFC 7516), which is none that can be read here.
    let (header, claims) = message.split_once('.').ok_or(TokenFault::Malformed)?;
    if claims.contains('.') {
        return Err(TokenFault::Malformed);
    }
    let header = decoded(header)?;
    let algorithm = algorithm(&header, rules)?;
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid.as_str()),
        Some(_) => return Err(TokenFault::Malformed),
    };
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenFault::Malformed)?;
    keys.verify(algorithm, kid, message.as_bytes(), &signature).map_err(|fault| match fault {
        KeyFault::UnknownKid => TokenFault::UnknownKid,
        KeyFault::BadSignature => TokenFault::BadSignature,
    })?;
    read_claims(decoded(claims)?, rules)
}

/// What a token says of itself, header and claims, with nothing verified: for telling an operator
/// why it is not believed, and for nothing else. `None`: it cannot be read.
pub fn unverified(token: &str) -> Option<(Map<String, Value>, Map<String, Value>)> {
    let (message, _) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    Some((decoded(header).ok()?, decoded(claims).ok()?))
}

/// The algorithm that the token names, if it is one of those that are accepted. `crit` names
/// extensions that must be understood (RFC 7515 §4.1.11); none is.
fn algorithm(header: &Map<String, Value>, rules: &TokenRules) -> Result<Algorithm, TokenFault> {
    if header.contains_key("crit") {
        return Err(TokenFault::Unacceptable);
    }
    let name = header.get("alg").and_then(Value::as_str).ok_or(TokenFault::Malformed)?;
    Algorithm::parse(name)
        .filter(|algorithm| rules.algorithms.contains(algorithm))
        .ok_or(TokenFault::Unacceptable)
}

/// The claims of a token whose signature fits.
fn read_claims(claims: Map<String, Value>, rules: &TokenRules) -> Result<Token, TokenFault> {
    let claims = Value::Object(claims);
    if let Some(issuer) = &rules.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(TokenFault::Unacceptable);
    }
    if let Some(audience) = &rules.audience
        && !names_audience(claims.get("aud"), audience)
    {
        return Err(TokenFault::Unacceptable);
    }
    let from = date(claims.get("nbf"))?.map_or(Timestamp::EPOCH, |it| it.minus(rules.leeway));
    let until = date(claims.get("exp"))?
        .map_or(Timestamp::from_micros(u64::MAX), |it| it.plus(rules.leeway));
    let user = first(&claims, &rules.user_claims).ok_or(TokenFault::NoUser)?;
    let user = identifier(user).ok_or(TokenFault::NoUser)?;
    let subscription = first(&claims, &rules.tier_claims)
        .and_then(scalar)
        .filter(|it| !it.is_empty() && it.len() <= SUBSCRIPTION_BYTES_MAX);
    let credential = Credential {
        identity: Identity::User(user.into()),
        subscription: subscription.map(Into::into),
    };
    Ok(Token { credential, from, until })
}

fn decoded(part: &str) -> Result<Map<String, Value>, TokenFault> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)?;
    json::object(&bytes).ok_or(TokenFault::Malformed)
}

/// The first of the claims that is there and not null.
fn first<'c>(claims: &'c Value, names: &[Box<str>]) -> Option<&'c Value> {
    let find = |name: &str| match name.starts_with('/') {
        true => claims.pointer(name),
        false => claims.get(name),
    };
    names.iter().filter_map(|name| find(name)).find(|value| !value.is_null())
}

/// Text, or a whole number as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        // Beyond 64 bits a number has been rounded, and two users could be one.
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
        _ => None,
    }
}

/// A user as identities write them.
fn identifier(value: &Value) -> Option<String> {
    scalar(value).filter(|it| is_identifier(it))
}

fn names_audience(claim: Option<&Value>, audience: &str) -> bool {
    match claim {
        Some(Value::String(only)) => only == audience,
        Some(Value::Array(several)) => several.iter().any(|it| it == audience),
        _ => false,
    }
}

/// A `NumericDate` (RFC 7519 §2): seconds since the epoch, perhaps with a fraction.
fn date(claim: Option<&Value>) -> Result<Option<Timestamp>, TokenFault> {
    let Some(claim) = claim.filter(|it| !it.is_null()) else { return Ok(None) };
    let micros = match (claim.as_u64(), claim.as_f64()) {
        (Some(seconds), _) => seconds.saturating_mul(Micros::SECOND.as_micros()),
        // Saturates at both ends.
        (None, Some(seconds)) => (seconds * 1e6) as u64,
        (None, None) => return Err(TokenFault::Malformed),
    };
    Ok(Some(Timestamp::from_micros(micros)))
}
