//! Names of keys: what stands for an identity, constant in length, and nothing personal in it.

use std::fmt::{self, Write};

use aws_lc_rs::hmac;
use fred::bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::policy::identity::Identity;

/// Bytes of an identity's hash: 128 bits, so that ten million identities collide with p < 10^-24.
pub const HASH_BYTES: usize = 16;

/// How the keys of one namespace are named. Changing any of it forgets every counter.
#[derive(Clone, Debug)]
pub struct KeyNames {
    prefix: Box<str>,
    secret: Option<Secret>,
}

/// The key of an HMAC. `Debug` does not show it.
#[derive(Clone)]
struct Secret(hmac::Key);

impl KeyNames {
    /// Names that begin with `prefix`, which is part of the hash in them, too. Identities are
    /// hashed without a secret: whoever can read Redis finds out which addresses and users have
    /// been there by hashing all that there could be.
    pub fn new(prefix: &str) -> Self {
        KeyNames { prefix: prefix.into(), secret: None }
    }

    /// The same, with identities hashed by HMAC-SHA-256 under `secret`, in place of plain SHA-256:
    /// without it, nobody can tell whether a name is a given identity's.
    pub fn with_secret(self, secret: &[u8]) -> Self {
        let secret = Some(Secret(hmac::Key::new(hmac::HMAC_SHA256, secret)));
        KeyNames { secret, ..self }
    }

    /// What stands for an identity: 32 hex digits of the hash of prefix, NUL and identity.
    pub fn identity_hash(&self, identity: &Identity) -> String {
        hex(&self.identity_bytes(identity))
    }

    /// The same hash as it is, for where many are kept.
    pub fn identity_bytes(&self, identity: &Identity) -> [u8; HASH_BYTES] {
        let prefix = &*self.prefix;
        match &self.secret {
            None => {
                let mut hash = Plain(Sha256::new());
                // A hash takes everything.
                let _ = write!(hash, "{prefix}\0{identity}");
                first(&hash.0.finalize())
            }
            Some(secret) => {
                let mut hash = Keyed(hmac::Context::with_key(&secret.0));
                let _ = write!(hash, "{prefix}\0{identity}");
                first(hash.0.sign().as_ref())
            }
        }
    }

    /// The key of one scope of an identity, by its hash. The braces keep all of an identity in one
    /// cluster slot.
    pub fn scope(&self, identity_hash: &str, scope: &str) -> Bytes {
        [&self.prefix, ":{", identity_hash, "}:", scope].concat().into()
    }

    /// The key of one kind of a scope's further limits. No scope's own name begins as these do.
    pub fn further(&self, identity_hash: &str, kind: &str, scope: &str) -> Bytes {
        [&self.prefix, ":{", identity_hash, "}:", kind, ":", scope].concat().into()
    }

    /// The same by the hash as it is.
    pub fn scope_of(&self, identity: &[u8; HASH_BYTES], scope: &str) -> Bytes {
        self.scope(&hex(identity), scope)
    }

    /// The key of a kind of further limits, by the hash as it is.
    pub fn further_of(&self, identity: &[u8; HASH_BYTES], kind: &str, scope: &str) -> Bytes {
        self.further(&hex(identity), kind, scope)
    }

    /// The two keys of who is there: replicas by when they were heard of, and a name that Redis was
    /// given when it knew of none.
    pub fn replicas(&self) -> [Bytes; 2] {
        ["", ":generation"].map(|name| [&self.prefix, ":{replicas}", name].concat().into())
    }

    /// The two keys of what all replicas are told: a table and a log.
    pub fn board(&self) -> [Bytes; 2] {
        ["table", "log"].map(|name| [&self.prefix, ":{overrides}:", name].concat().into())
    }

    /// A key of 256 bits for one purpose, where there is a secret: what is encrypted under it can be
    /// read by those alone who have the secret and these names.
    pub fn derived_key(&self, purpose: &str) -> Option<[u8; 32]> {
        let Secret(secret) = self.secret.as_ref()?;
        let mut context = hmac::Context::with_key(secret);
        context.update(purpose.as_bytes());
        context.update(&[0, 0]);
        context.update(self.prefix.as_bytes());
        context.sign().as_ref().try_into().ok()
    }

    /// The key that shows whether Redis can be written.
    pub fn probe(&self) -> Bytes {
        [&self.prefix, ":{probe}"].concat().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

struct Plain(Sha256);

impl Write for Plain {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

struct Keyed(hmac::Context);

impl Write for Keyed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

/// The first half of a hash.
fn first(hash: &[u8]) -> [u8; HASH_BYTES] {
    hash.first_chunk().copied().unwrap_or_default()
}

fn hex(hash: &[u8; HASH_BYTES]) -> String {
    let nibbles = hash.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    nibbles.map(|nibble| char::from_digit(nibble.into(), 16).unwrap_or('0')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::identity::{IpPrefix, PrefixLengths};

    fn address(text: &str) -> Identity {
        Identity::Ip(IpPrefix::new(text.parse().unwrap(), PrefixLengths::default()))
    }

    #[test]
    fn names_hide_the_identity_and_keep_its_scopes_together() {
        let names = KeyNames::new("tg");
        let user = Identity::User("42".into());
        let hash = names.identity_hash(&user);
        assert_eq!(hash.len(), 32);
        assert_eq!(names.scope(&hash, "e:reports"), format!("tg:{{{hash}}}:e:reports"));
        assert_eq!(names.probe(), "tg:{probe}");
        assert_ne!(hash, KeyNames::new("other").identity_hash(&user));
        assert_ne!(hash, names.identity_hash(&Identity::Key("42".into())));
        assert_ne!(hash, names.clone().with_secret(b"a").identity_hash(&user));
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        // A change would forget every counter. First 128 bits of SHA-256("tg" NUL "user:42"):
        let names = KeyNames::new("tg");
        let hash = names.identity_hash(&Identity::User("42".into()));
        assert_eq!(hash, "e37b93d74a874e9f827b654c7e4b60aa");
        // And of the HMAC, as Python's hmac and `openssl dgst -sha256 -hmac` give it.
        let names = names.with_secret(b"0123456789abcdef0123456789abcdef");
        let vectors = [
            (Identity::User("42".into()), "640d3061890b716c73ccabfe5950d367"),
            (Identity::Key("acme".into()), "6d34e893efdd5cc938b615a04266541d"),
            (address("127.0.0.1"), "e926fcd349d0e5811bf26d4118fcdd42"),
            (address("2001:db8:1:2:3::4"), "bcefff10153c91ac01384bebd3fc41ab"),
        ];
        for (identity, expected) in vectors {
            assert_eq!(names.identity_hash(&identity), expected, "{identity}");
        }
    }

    #[test]
    fn the_secret_is_never_written_out() {
        let names = format!("{:?}", KeyNames::new("tg").with_secret(b"hunter2"));
        assert!(names.contains("***") && !names.contains("hunter2"), "{names}");
    }

    /// `cargo test --release --lib hash_costs -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn hash_costs() {
        let plain = KeyNames::new("tg");
        let keyed = plain.clone().with_secret(&[7; 32]);
        let user = Identity::User("00000000-0000-4000-8000-000000000042".into());
        for (what, names) in [("SHA-256", &plain), ("HMAC-SHA-256", &keyed)] {
            for identity in [&address("203.0.113.7"), &user] {
                let rounds = 1_000_000;
                let started = crate::clock::monotonic();
                for _ in 0..rounds {
                    std::hint::black_box(names.identity_hash(std::hint::black_box(identity)));
                }
                let took = crate::clock::monotonic().duration_since(started).as_nanos();
                println!("{what}, {identity}: {} ns", took / rounds);
            }
        }
    }
}
