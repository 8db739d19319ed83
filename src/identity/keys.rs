//! The keys that signatures are verified with: from a secret, PEM, a JWK or a set of them.
//!
//! A key is bound to its algorithms when it is read, never by a token: a public RSA key cannot be
//! taken for an HMAC's secret, whatever a token says. Keys are parsed once.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::algorithm::{Algorithm, Check};
use super::json;

/// Most keys of one set; providers publish two to ten.
pub const KEYS_MAX: usize = 256;
/// Longest key id that is kept, and that is looked for, in bytes.
pub const KID_BYTES_MAX: usize = 256;
/// Octets of the least RSA modulus: 2048 bits (RFC 7518 §3.3).
const RSA_BYTES_MIN: usize = 256;
/// Octets that a `RSAPublicKey` of that size has at least around its modulus (RFC 8017 §A.1.1).
const RSA_DER_BYTES_MIN: usize = RSA_BYTES_MIN + 10;

/// Keys, each with the algorithms that it may be used for.
#[derive(Debug, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// Whether key ids tell the keys apart: a set that was published as one.
    has_kids: bool,
    skipped: usize,
}

struct Key {
    kid: Option<Box<str>>,
    verifiers: Vec<(Algorithm, Verifier)>,
}

enum Verifier {
    Hmac(Box<hmac::Key>),
    Public(Box<ParsedPublicKey>),
}

/// Why a signature was not verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFault {
    /// No key of that id and algorithm.
    UnknownKid,
    /// The signature does not fit.
    BadSignature,
}

/// Why a text holds no keys that can be used. Says nothing of what the text is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is neither PEM nor JSON.
    #[error("neither PEM nor a JSON Web Key, expected one of them")]
    Unreadable,
    /// The private half of a pair.
    #[error("a private key, expected the public one (openssl pkey -pubout makes it)")]
    Private,
    /// A certificate, which holds a public key among other things.
    #[error("a certificate, expected its public key (openssl x509 -pubkey -noout prints it)")]
    Certificate,
    /// Another kind of PEM.
    #[error("PEM of another kind, expected BEGIN PUBLIC KEY")]
    OtherPem,
    /// Too many of them.
    #[error("{0} keys, expected at most {KEYS_MAX}")]
    TooMany(usize),
    /// Not one of them fits the algorithms.
    #[error("no key that {0} can be verified with")]
    NoneFits(String),
    /// RSA of less than 2048 bits.
    #[error("an RSA key of less than 2048 bits, expected 2048 to 8192")]
    Short,
}

impl KeySet {
    /// One shared secret, for those of the algorithms that take one.
    pub fn of_secret(secret: &[u8], algorithms: &[Algorithm]) -> Self {
        let verifiers = hmac_verifiers(secret, algorithms);
        KeySet { keys: vec![Key { kid: None, verifiers }], has_kids: false, skipped: 0 }
    }

    /// Reads PEM (`PUBLIC KEY`, or `RSA PUBLIC KEY`), a JWK or a JWK set (RFC 7517). Keys that none
    /// of the algorithms can use are left out. A secret (`kty: oct`) counts only where the
    /// algorithms ask for one.
    ///
    /// # Errors
    /// Nothing is left, and why.
    pub fn parse(text: &[u8], algorithms: &[Algorithm]) -> Result<Self, KeyError> {
        // A mark of the byte order, which some editors leave, is no part of the text.
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let is_json = text.trim_ascii_start().first() == Some(&b'{');
        let set = if is_json { of_json(text, algorithms)? } else { of_pem(text, algorithms)? };
        if set.keys.is_empty() {
            let names: Vec<&str> = algorithms.iter().map(|it| it.as_str()).collect();
            return Err(KeyError::NoneFits(names.join(", ")));
        }
        Ok(set)
    }

    /// Keys that can be used.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys of the set that were left out.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Checks a signature with the key of that id.
    ///
    /// # Errors
    /// There is no such key, or the signature does not fit.
    pub fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyFault> {
        let verifier = self.find(algorithm, kid).ok_or(KeyFault::UnknownKid)?;
        let fits = match verifier {
            Verifier::Hmac(key) => hmac::verify(key, message, signature).is_ok(),
            Verifier::Public(key) => key.verify_sig(message, signature).is_ok(),
        };
        if fits { Ok(()) } else { Err(KeyFault::BadSignature) }
    }

    /// The key of that id. Without an id, or where keys have none, there must be only one that the
    /// algorithm fits: to try them all would let a sender choose how much work a token is.
    fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Option<&Verifier> {
        let fitting = |key: &'_ Key| key.verifiers.iter().any(|(it, _)| *it == algorithm);
        let of = |key: &'_ Key| -> Option<usize> {
            key.verifiers.iter().position(|(it, _)| *it == algorithm)
        };
        let key = match kid {
            Some(kid) if self.has_kids => self
                .keys
                .iter()
                .find(|key| key.kid.as_deref() == Some(kid) && fitting(key))
                .or_else(|| self.only(|key| key.kid.is_none() && fitting(key))),
            _ => self.only(fitting),
        }?;
        key.verifiers.get(of(key)?).map(|(_, verifier)| verifier)
    }

    fn only(&self, fits: impl Fn(&Key) -> bool) -> Option<&Key> {
        let mut keys = self.keys.iter().filter(|key| fits(key));
        let first = keys.next()?;
        keys.next().is_none().then_some(first)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let algorithms: Vec<&str> = self.verifiers.iter().map(|(it, _)| it.as_str()).collect();
        f.debug_struct("Key").field("kid", &self.kid).field("for", &algorithms).finish()
    }
}

fn hmac_verifiers(secret: &[u8], algorithms: &[Algorithm]) -> Vec<(Algorithm, Verifier)> {
    let verifier = |algorithm: &Algorithm| match algorithm.check() {
        Check::Hmac(hash) => {
            Some((*algorithm, Verifier::Hmac(Box::new(hmac::Key::new(hash, secret)))))
        }
        Check::Rsa(_) | Check::Curve(..) => None,
    };
    algorithms.iter().filter_map(verifier).collect()
}

fn of_pem(text: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, KeyError> {
    let text = std::str::from_utf8(text).map_err(|_| KeyError::Unreadable)?;
    let (_, text) = text.split_once("-----BEGIN ").ok_or(KeyError::Unreadable)?;
    let (label, text) = text.split_once("-----").ok_or(KeyError::Unreadable)?;
    let (body, _) = text.split_once("-----END ").ok_or(KeyError::Unreadable)?;
    if label.ends_with("PRIVATE KEY") {
        return Err(KeyError::Private);
    }
    if label.ends_with("CERTIFICATE") {
        return Err(KeyError::Certificate);
    }
    if !matches!(label, "PUBLIC KEY" | "RSA PUBLIC KEY") {
        return Err(KeyError::OtherPem);
    }
    let body: String = body.split_ascii_whitespace().collect();
    let der = STANDARD.decode(body).map_err(|_| KeyError::Unreadable)?;
    if RsaPublicKey::from_der(&der).is_ok_and(|key| key.as_ref().len() < RSA_DER_BYTES_MIN) {
        return Err(KeyError::Short);
    }
    let verifier = |algorithm: &Algorithm| {
        let key = match algorithm.check() {
            Check::Hmac(_) => None,
            Check::Rsa(parameters) => ParsedPublicKey::new(parameters, &der).ok(),
            // A raw point, which these take as well, is never in PEM: it is shorter.
            Check::Curve(parameters, _) => ParsedPublicKey::new(parameters, &der).ok(),
        };
        key.map(|key| (*algorithm, Verifier::Public(Box::new(key))))
    };
    let verifiers: Vec<_> = algorithms.iter().filter_map(verifier).collect();
    let keys = if verifiers.is_empty() { Vec::new() } else { vec![Key { kid: None, verifiers }] };
    Ok(KeySet { keys, has_kids: false, skipped: 0 })
}

fn of_json(text: &[u8], algorithms: &[Algorithm]) -> Result<KeySet, KeyError> {
    let object = json::object(text).ok_or(KeyError::Unreadable)?;
    let Some(keys) = object.get("keys") else {
        let key = of_jwk(&object, algorithms);
        let skipped = usize::from(key.is_none());
        return Ok(KeySet { keys: key.into_iter().collect(), has_kids: false, skipped });
    };
    let keys = keys.as_array().ok_or(KeyError::Unreadable)?;
    if keys.len() > KEYS_MAX {
        return Err(KeyError::TooMany(keys.len()));
    }
    let mut set = KeySet { has_kids: true, ..KeySet::default() };
    for key in keys {
        // RFC 7517 §5: what is not understood is passed over.
        match key.as_object().and_then(|key| of_jwk(key, algorithms)) {
            Some(key) => set.keys.push(key),
            None => set.skipped += 1,
        }
    }
    Ok(set)
}

/// One JWK, for those of the algorithms that it fits; `None` where it fits none.
fn of_jwk(jwk: &Map<String, Value>, algorithms: &[Algorithm]) -> Option<Key> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    let bytes = |name: &str| text(name).and_then(|it| URL_SAFE_NO_PAD.decode(it).ok());
    // RFC 7517 §4.2, §4.3: a key for encryption is none for signatures.
    if text("use").is_some_and(|it| it != "sig") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops")
        && !operations.as_array()?.iter().any(|it| it == "verify")
    {
        return None;
    }
    let kid = match jwk.get("kid") {
        None => None,
        Some(Value::String(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid.as_str().into()),
        Some(_) => return None,
    };
    let stated = jwk.get("alg").map(|it| it.as_str().and_then(Algorithm::parse));
    let wanted: Vec<Algorithm> = algorithms
        .iter()
        .copied()
        .filter(|it| stated.is_none_or(|stated| stated == Some(*it)))
        .collect();
    let verifiers: Vec<(Algorithm, Verifier)> = match text("kty")? {
        "oct" => {
            let secret = bytes("k")?;
            let long_enough = |it: &Algorithm| secret.len() >= it.hash_bytes();
            let wanted: Vec<Algorithm> = wanted.into_iter().filter(long_enough).collect();
            hmac_verifiers(&secret, &wanted)
        }
        "RSA" => rsa_verifiers(&bytes("n")?, &bytes("e")?, &wanted),
        "EC" => {
            let point = [&[4][..], &bytes("x")?, &bytes("y")?].concat();
            curve_verifiers(&point, text("crv")?, &wanted)
        }
        "OKP" => curve_verifiers(&bytes("x")?, text("crv")?, &wanted),
        _ => return None,
    };
    (!verifiers.is_empty()).then_some(Key { kid, verifiers })
}

fn rsa_verifiers(
    modulus: &[u8],
    exponent: &[u8],
    algorithms: &[Algorithm],
) -> Vec<(Algorithm, Verifier)> {
    // Some providers write a leading zero, which RFC 7518 §6.3.1.1 does not have.
    let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
    if modulus.len() < RSA_BYTES_MIN {
        return Vec::new();
    }
    let components = RsaPublicKeyComponents { n: modulus, e: exponent };
    let verifier = |algorithm: &Algorithm| match algorithm.check() {
        Check::Rsa(parameters) => {
            let key = components.to_parsed_public_key(parameters).ok()?;
            Some((*algorithm, Verifier::Public(Box::new(key))))
        }
        Check::Hmac(_) | Check::Curve(..) => None,
    };
    algorithms.iter().filter_map(verifier).collect()
}

fn curve_verifiers(
    point: &[u8],
    curve: &str,
    algorithms: &[Algorithm],
) -> Vec<(Algorithm, Verifier)> {
    let verifier = |algorithm: &Algorithm| match algorithm.check() {
        Check::Curve(parameters, its_curve) if its_curve == curve => {
            let key = ParsedPublicKey::new(parameters, point).ok()?;
            Some((*algorithm, Verifier::Public(Box::new(key))))
        }
        Check::Hmac(_) | Check::Rsa(_) | Check::Curve(..) => None,
    };
    algorithms.iter().filter_map(verifier).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_of_another_kind_is_told_by_its_kind() {
        let error = |label: &str| {
            let text = format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n");
            KeySet::parse(text.as_bytes(), &[Algorithm::Rs256]).unwrap_err()
        };
        assert_eq!(error("CERTIFICATE"), KeyError::Certificate);
        assert_eq!(error("RSA PRIVATE KEY"), KeyError::Private);
        assert_eq!(error("X509 CRL"), KeyError::OtherPem);
    }
}
