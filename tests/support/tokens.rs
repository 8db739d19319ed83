//! Keys and tokens for tests: made afresh, signed by another implementation than the one that
//! verifies them.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// A secret that is long enough for every HMAC.
pub const SECRET: &str = "correct horse battery staple, and then some more of it for sixty-four";

/// A key that signs, and its public half.
pub struct Signer {
    /// What it signs with.
    pub algorithm: Algorithm,
    encoding: EncodingKey,
    /// The public key as a JWK, without `kid`; for HMAC the secret itself.
    pub jwk: Value,
    /// The public key in DER (SubjectPublicKeyInfo); empty for HMAC.
    pub der: Vec<u8>,
}

impl Signer {
    /// A new key for this algorithm.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                Signer::of_secret(algorithm, SECRET.as_bytes())
            }
            Algorithm::ES256 => Signer::of_curve(algorithm, "P-256"),
            Algorithm::ES384 => Signer::of_curve(algorithm, "P-384"),
            Algorithm::EdDSA => {
                let pair = Ed25519KeyPair::generate().unwrap();
                let private = pair.to_pkcs8v1().unwrap();
                let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
                let der = AsDer::as_der(pair.public_key()).unwrap();
                Signer {
                    algorithm,
                    encoding: EncodingKey::from_ed_der(private.as_ref()),
                    jwk: json!({"kty": "OKP", "crv": "Ed25519", "x": x}),
                    der: der.as_ref().to_vec(),
                }
            }
            _ => Signer::of_rsa(algorithm, KeySize::Rsa2048),
        }
    }

    /// HMAC with this secret.
    pub fn of_secret(algorithm: Algorithm, secret: &[u8]) -> Self {
        Signer {
            algorithm,
            encoding: EncodingKey::from_secret(secret),
            jwk: json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret)}),
            der: Vec::new(),
        }
    }

    fn of_rsa(algorithm: Algorithm, size: KeySize) -> Self {
        let pair = RsaKeyPair::generate(size).unwrap();
        let pkcs8 = pair.as_der().unwrap();
        // jsonwebtoken wants the inner `RSAPrivateKey`, which stands behind a head of 26 bytes.
        let private = &pkcs8.as_ref()[26..];
        let components = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
        let [n, e] = [&components.n, &components.e].map(|it| URL_SAFE_NO_PAD.encode(it));
        let der = AsDer::as_der(pair.public_key()).unwrap();
        Signer {
            algorithm,
            encoding: EncodingKey::from_rsa_der(private),
            jwk: json!({"kty": "RSA", "n": n, "e": e}),
            der: der.as_ref().to_vec(),
        }
    }

    fn of_curve(algorithm: Algorithm, curve: &str) -> Self {
        let signing = match algorithm {
            Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED_SIGNING,
            _ => &ECDSA_P384_SHA384_FIXED_SIGNING,
        };
        let pair = EcdsaKeyPair::generate(signing).unwrap();
        let private = pair.to_pkcs8v1().unwrap();
        let point = pair.public_key().as_ref()[1..].to_vec();
        let [x, y] = [0, 1]
            .map(|half| URL_SAFE_NO_PAD.encode(point.chunks(point.len() / 2).nth(half).unwrap()));
        let der = AsDer::as_der(pair.public_key()).unwrap();
        Signer {
            algorithm,
            encoding: EncodingKey::from_ec_der(private.as_ref()),
            jwk: json!({"kty": "EC", "crv": curve, "x": x, "y": y}),
            der: der.as_ref().to_vec(),
        }
    }

    /// The public key in PEM.
    pub fn pem(&self) -> String {
        pem("PUBLIC KEY", &self.der)
    }

    /// The public key as a JWK with this id.
    pub fn jwk(&self, kid: &str) -> Value {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = kid.into();
        jwk
    }

    /// A token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.token_with_kid(None, claims)
    }

    /// A token with these claims that names its key.
    pub fn token_with_kid(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.encoding).unwrap()
    }

    /// A token made of these very texts: head and claims need not be what they should.
    pub fn token_of(&self, header: &str, claims: &str) -> String {
        let [header, claims] = [header, claims].map(|it| URL_SAFE_NO_PAD.encode(it));
        let message = format!("{header}.{claims}");
        let signature = self.sign(&message);
        format!("{message}.{signature}")
    }

    /// The signature of a message, encoded.
    pub fn sign(&self, message: &str) -> String {
        jsonwebtoken::crypto::sign(message.as_bytes(), &self.encoding, self.algorithm).unwrap()
    }
}

/// PEM of these bytes.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// An HS256 token of [`SECRET`].
pub fn hs256(claims: &Value) -> String {
    Signer::new(Algorithm::HS256).token(claims)
}

/// Seconds since the epoch, by the machine's clock.
pub fn now_s() -> u64 {
    tollgate::clock::Clock::System.now().as_micros() / 1_000_000
}

/// A moment, so many seconds from now.
pub fn in_seconds(seconds: i64) -> i64 {
    i64::try_from(now_s()).unwrap() + seconds
}
