//! The algorithms of signatures that tokens may bear (RFC 7518 §3, RFC 8037).

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, RsaParameters, VerificationAlgorithm};

/// An algorithm that tokens may be signed with. `none` is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// HMAC with SHA-384.
    Hs384,
    /// HMAC with SHA-512.
    Hs512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
    /// ECDSA over P-256 with SHA-256.
    Es256,
    /// ECDSA over P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

/// How a signature is checked, by the kind of key that it takes.
pub enum Check {
    /// With a shared secret.
    Hmac(hmac::Algorithm),
    /// With an RSA key.
    Rsa(&'static RsaParameters),
    /// With a point on a curve: its name in a JWK (`crv`).
    Curve(&'static dyn VerificationAlgorithm, &'static str),
}

impl Algorithm {
    /// Every algorithm, in the order in which messages list them.
    pub const ALL: [Algorithm; 12] = [
        Algorithm::Hs256,
        Algorithm::Hs384,
        Algorithm::Hs512,
        Algorithm::Rs256,
        Algorithm::Rs384,
        Algorithm::Rs512,
        Algorithm::Ps256,
        Algorithm::Ps384,
        Algorithm::Ps512,
        Algorithm::Es256,
        Algorithm::Es384,
        Algorithm::EdDsa,
    ];

    /// As tokens and files write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Hs384 => "HS384",
            Algorithm::Hs512 => "HS512",
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs384 => "RS384",
            Algorithm::Rs512 => "RS512",
            Algorithm::Ps256 => "PS256",
            Algorithm::Ps384 => "PS384",
            Algorithm::Ps512 => "PS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The algorithm of that name; letters count, as RFC 7515 §4.1.1 has it. `Ed25519` is RFC
    /// 9864's name for what everybody calls `EdDSA`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "Ed25519" => Some(Algorithm::EdDsa),
            _ => Algorithm::ALL.into_iter().find(|it| it.as_str() == name),
        }
    }

    /// Whether the key is a secret that both sides share.
    pub fn is_symmetric(self) -> bool {
        matches!(self, Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512)
    }

    /// Octets of the hash, and so of the least secret that RFC 7518 §3.2 asks for.
    pub const fn hash_bytes(self) -> usize {
        match self {
            Algorithm::Hs256
            | Algorithm::Rs256
            | Algorithm::Ps256
            | Algorithm::Es256
            | Algorithm::EdDsa => 32,
            Algorithm::Hs384 | Algorithm::Rs384 | Algorithm::Ps384 | Algorithm::Es384 => 48,
            Algorithm::Hs512 | Algorithm::Rs512 | Algorithm::Ps512 => 64,
        }
    }

    /// How its signatures are checked.
    pub fn check(self) -> Check {
        match self {
            Algorithm::Hs256 => Check::Hmac(hmac::HMAC_SHA256),
            Algorithm::Hs384 => Check::Hmac(hmac::HMAC_SHA384),
            Algorithm::Hs512 => Check::Hmac(hmac::HMAC_SHA512),
            Algorithm::Rs256 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::Rs384 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::Rs512 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::Ps256 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Algorithm::Ps384 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Algorithm::Ps512 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Algorithm::Es256 => Check::Curve(&signature::ECDSA_P256_SHA256_FIXED, "P-256"),
            Algorithm::Es384 => Check::Curve(&signature::ECDSA_P384_SHA384_FIXED, "P-384"),
            Algorithm::EdDsa => Check::Curve(&signature::ED25519, "Ed25519"),
        }
    }
}
