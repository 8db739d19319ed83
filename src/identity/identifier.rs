//! The configured ways of knowing a caller, tried in order.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{HeaderMap, HeaderName};

use crate::limiter::time::Timestamp;
use crate::metrics::edge_labels::IdentityError;
use crate::metrics::registry::Metrics;
use crate::policy::caller::Credential;
use crate::policy::facts::{CommonName, RequestFacts};
use crate::policy::identity::{IdentifierType, Identity, is_identifier};

use super::api_key::{ApiKeyFault, KeyTable};
use super::cache::{self, TokenCache};
use super::jwks::{KeySource, RemoteKeys};
use super::present::{Presented, TokenPlaces, in_field, is_unclear};
use super::throttle::FailureThrottle;
use super::token::{self, TokenFault, TokenRules};

/// What an invalid credential means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnInvalid {
    /// The caller is known by address.
    Ip,
    /// 401.
    Reject,
}

/// One way of knowing a caller.
#[derive(Debug)]
pub enum Method {
    /// By a token.
    Jwt(Box<JwtMethod>),
    /// By an API key.
    ApiKey(ApiKeyMethod),
    /// By the common name of the certificate that the connection's client showed.
    Certificate,
    /// By the address, which everybody has: nothing behind it is tried.
    Address,
}

/// Tokens.
#[derive(Debug)]
pub struct JwtMethod {
    /// Where they are looked for.
    pub places: TokenPlaces,
    /// What is asked of them.
    pub rules: TokenRules,
    /// What they are verified with.
    pub keys: Arc<KeySource>,
    /// Where those come from, if they are fetched.
    pub remote: Option<Arc<RemoteKeys>>,
    /// What an invalid one means.
    pub on_invalid: OnInvalid,
    /// What is known already.
    pub cache: TokenCache,
}

/// API keys.
#[derive(Debug)]
pub struct ApiKeyMethod {
    /// The field that bears them.
    pub header: HeaderName,
    /// All of them.
    pub keys: Arc<ArcSwap<KeyTable>>,
    /// Whether the field is taken out of what the upstream sees.
    pub strip: bool,
    /// What an unknown one means.
    pub on_invalid: OnInvalid,
}

/// Who sent a request, as far as it presents a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identified {
    /// It presents none: the address is all there is.
    Anonymous,
    /// A verified one, found by the method of this index.
    Known(Credential, usize),
    /// One that is not believed.
    Invalid(Invalid),
}

/// A credential that is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Why.
    pub reason: IdentityError,
    /// The method that found it, by index.
    pub method: usize,
    /// Whether the request is refused for it.
    pub is_rejected: bool,
}

/// Knows callers by what they present.
#[derive(Debug)]
pub struct Identifier {
    methods: Box<[Method]>,
    throttle: FailureThrottle,
    metrics: Arc<Metrics>,
}

impl Identifier {
    /// Tries these methods, in this order.
    pub fn new(methods: Vec<Method>, metrics: Arc<Metrics>) -> Self {
        Identifier { methods: methods.into(), throttle: FailureThrottle::default(), metrics }
    }

    /// The kinds of identities that there can be.
    pub fn kinds(&self) -> Vec<IdentifierType> {
        let of = |method: &Method| match method {
            Method::Jwt(_) => IdentifierType::User,
            Method::Certificate => IdentifierType::User,
            Method::ApiKey(_) => IdentifierType::Key,
            Method::Address => IdentifierType::Ip,
        };
        // Whoever presents nothing is known by the address, whatever the methods.
        self.methods.iter().map(of).chain([IdentifierType::Ip]).collect()
    }

    /// The methods, in order.
    pub fn methods(&self) -> &[Method] {
        &self.methods
    }

    /// Who sent this request. `address` answers for the failures of those who present what is not
    /// believed. The first method that finds a credential decides, whatever it makes of it.
    pub fn identify(
        &self,
        facts: &RequestFacts<'_>,
        address: IpAddr,
        now: Timestamp,
    ) -> Identified {
        for (index, method) in self.methods.iter().enumerate() {
            let (found, on_invalid) = match method {
                Method::Jwt(jwt) => (self.by_token(jwt, facts, address, now), jwt.on_invalid),
                Method::ApiKey(keys) => (keys.find(facts, now), keys.on_invalid),
                Method::Certificate => (by_certificate(facts, now), OnInvalid::Ip),
                Method::Address => return Identified::Anonymous,
            };
            match found {
                None => {}
                Some(Ok(credential)) => return Identified::Known(credential, index),
                Some(Err(reason)) => {
                    let is_rejected = on_invalid == OnInvalid::Reject;
                    return Identified::Invalid(Invalid { reason, method: index, is_rejected });
                }
            }
        }
        Identified::Anonymous
    }

    /// Where a token names a key that may have been published a moment ago: the end of the fetch
    /// that will tell, which takes [`super::jwks::UNKNOWN_KID_PATIENCE`] at most.
    pub fn worth_waiting(
        &self,
        identified: &Identified,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let Identified::Invalid(Invalid { reason: IdentityError::UnknownKid, method, .. }) =
            identified
        else {
            return None;
        };
        match self.methods.get(*method)? {
            Method::Jwt(jwt) => jwt.remote.as_ref()?.worth_waiting(),
            Method::ApiKey(_) | Method::Certificate | Method::Address => None,
        }
    }

    /// The fields that bear credentials.
    pub fn fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.methods.iter().filter_map(|method| Some(method.field()?.0))
    }

    /// Takes out of a request what no upstream gets to see: fields that are to be stripped, and
    /// those of whose two lines it could believe one, where we believe neither. `has_underscores`
    /// says whether there are names that many backends read as another's (`X_API_Key`).
    pub fn withhold(&self, headers: &mut HeaderMap, has_underscores: bool) {
        for (field, strip) in self.methods.iter().filter_map(Method::field) {
            if strip || is_unclear(headers, field) {
                headers.remove(field);
            }
            if has_underscores {
                drop_doubles(headers, field);
            }
        }
    }

    /// What a 401 asks for (RFC 9110 §11.6.1): a token (RFC 6750 §3), or a key.
    pub fn challenge(&self, method: usize) -> String {
        match self.methods.get(method) {
            Some(Method::ApiKey(keys)) => format!("ApiKey realm=\"{}\"", keys.header),
            _ => "Bearer realm=\"tollgate\", error=\"invalid_token\"".to_owned(),
        }
    }

    /// The tier or subscription that a key carries, or the last to end of a user's tokens that are
    /// remembered. Looks through all of them: for an operator's question, not for requests.
    pub fn subscription_of(&self, identity: &Identity, now: Timestamp) -> Option<Arc<str>> {
        self.methods.iter().find_map(|method| match (method, identity) {
            (Method::Jwt(jwt), Identity::User(_)) => jwt
                .cache
                .last_of(identity, jwt.keys.load().generation, now)?
                .credential
                .subscription
                .clone(),
            (Method::ApiKey(keys), Identity::Key(id)) => keys.keys.load().subscription_of(id, now),
            _ => None,
        })
    }

    /// The key sets that have to be kept fresh.
    pub fn remotes(&self) -> impl Iterator<Item = &Arc<RemoteKeys>> {
        self.methods.iter().filter_map(|method| match method {
            Method::Jwt(jwt) => jwt.remote.as_ref(),
            Method::ApiKey(_) | Method::Certificate | Method::Address => None,
        })
    }

    /// Tokens that are remembered.
    pub fn tokens_remembered(&self) -> usize {
        let of = |method: &Method| match method {
            Method::Jwt(jwt) => jwt.cache.len(),
            Method::ApiKey(_) | Method::Certificate | Method::Address => 0,
        };
        self.methods.iter().map(of).sum()
    }

    /// Keys of the key sets that were fetched.
    pub fn keys_fetched(&self) -> usize {
        self.remotes().map(|remote| remote.source.load().set.len()).sum()
    }

    fn by_token(
        &self,
        jwt: &JwtMethod,
        facts: &RequestFacts<'_>,
        address: IpAddr,
        now: Timestamp,
    ) -> Option<Result<Credential, IdentityError>> {
        let text = match jwt.places.find(facts) {
            Presented::Nothing => return None,
            Presented::Unclear => return Some(Err(IdentityError::Malformed)),
            Presented::One(text) => text,
        };
        // Not worth a hash.
        if text.len() > jwt.rules.bytes_max {
            return Some(Err(IdentityError::Malformed));
        }
        let keys = jwt.keys.load();
        let hash = cache::hash(text);
        let known = jwt.cache.get(&hash, keys.generation, now);
        self.metrics.token_looked_up(known.is_some());
        let verdict = known.map(|it| it.map_err(Some)).unwrap_or_else(|| {
            if !self.throttle.admits(address, now) {
                return Err(None);
            }
            let verdict = token::judge(text, &jwt.rules, &keys.set).map(Arc::new);
            jwt.cache.put(hash, keys.generation, verdict.as_ref().map_err(|fault| *fault));
            let verdict = verdict.and_then(|token| token.holds_at(now).map(|()| token));
            if verdict.is_err() {
                self.throttle.failed(address, now);
            }
            verdict.map_err(Some)
        });
        Some(verdict.map(|token| token.credential.clone()).map_err(reason))
    }
}

impl Method {
    /// The field that bears its credentials, and whether it is taken out.
    fn field(&self) -> Option<(&HeaderName, bool)> {
        match self {
            Method::Jwt(jwt) => Some((&jwt.places.header, false)),
            Method::ApiKey(keys) => Some((&keys.header, keys.strip)),
            Method::Certificate | Method::Address => None,
        }
    }
}

impl ApiKeyMethod {
    fn find(
        &self,
        facts: &RequestFacts<'_>,
        now: Timestamp,
    ) -> Option<Result<Credential, IdentityError>> {
        match in_field(facts, &self.header, Some) {
            Presented::Nothing => None,
            Presented::Unclear => Some(Err(IdentityError::Malformed)),
            Presented::One(key) => Some(self.keys.load().find(key, now).map_err(|it| match it {
                ApiKeyFault::Unknown => IdentityError::UnknownKey,
                ApiKeyFault::Expired => IdentityError::Expired,
            })),
        }
    }
}

/// The user whose name a verified certificate bears. That it was valid when the connection began
/// says nothing of now.
fn by_certificate(
    facts: &RequestFacts<'_>,
    now: Timestamp,
) -> Option<Result<Credential, IdentityError>> {
    let certificate = facts.certificate?;
    match &certificate.common_name {
        CommonName::Absent => None,
        _ if now > certificate.not_after => Some(Err(IdentityError::Expired)),
        CommonName::Is(name) if is_identifier(name) => {
            let identity = Identity::User(Arc::clone(name));
            Some(Ok(Credential { identity, subscription: None }))
        }
        CommonName::Is(_) | CommonName::Unclear => Some(Err(IdentityError::Malformed)),
    }
}

/// Drops fields whose names differ from that of `field` in `_` for `-` only.
fn drop_doubles(headers: &mut HeaderMap, field: &HeaderName) {
    let alike = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let is_double = |name: &&HeaderName| {
        let (name, field) = (name.as_str(), field.as_str());
        name != field && name.bytes().map(alike).eq(field.bytes().map(alike))
    };
    let doubles: Vec<HeaderName> = headers.keys().filter(is_double).cloned().collect();
    for name in doubles {
        headers.remove(name);
    }
}

/// The label of a fault; `None`: it was not looked at.
fn reason(fault: Option<TokenFault>) -> IdentityError {
    match fault {
        None => IdentityError::Throttled,
        Some(TokenFault::Malformed) => IdentityError::Malformed,
        Some(TokenFault::Unacceptable) => IdentityError::Unacceptable,
        Some(TokenFault::UnknownKid) => IdentityError::UnknownKid,
        Some(TokenFault::BadSignature) => IdentityError::BadSignature,
        Some(TokenFault::Expired | TokenFault::NotYetValid) => IdentityError::Expired,
        Some(TokenFault::NoUser) => IdentityError::NoUser,
    }
}
