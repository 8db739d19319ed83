//! How overrides, denials and resets are written into the table that all replicas read.
//!
//! JSON, one value for each. Where identities are hashed under a secret, values are encrypted under a
//! key that comes from it: they name who is meant, and Redis is not to know.

use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::policy::overrides::{Order, Override};
use crate::store::redis::names::KeyNames;

use super::change::{Action, Change};

/// What the key is for that values are encrypted under.
const PURPOSE: &str = "tollgate overrides";

/// A value of the table.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    /// Another tier, or a denial.
    Override(Override),
    /// The counters of an identity were reset.
    Reset(Reset),
}

/// That counters were reset; each replica heeds it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// Whose.
    pub identity: Identity,
    /// When. No two of one identity have the same.
    pub at: Timestamp,
}

/// Writes and reads values.
#[derive(Debug)]
pub struct Codec {
    names: KeyNames,
    key: Option<RandomizedNonceKey>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Written {
    Override {
        #[serde(flatten)]
        set: Set,
        tier: String,
    },
    Deny {
        #[serde(flatten)]
        set: Set,
    },
    Reset {
        identity: String,
        at: u64,
    },
}

/// Times are microseconds since the epoch.
#[derive(Serialize, Deserialize)]
struct Set {
    identity: String,
    until: Option<u64>,
    reason: Option<String>,
    at: u64,
    by: Option<String>,
    from: IpAddr,
    on: String,
}

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Line {
    action: String,
    identity: Option<String>,
    detail: Option<String>,
    at: u64,
    by: Option<String>,
    from: IpAddr,
    on: String,
}

impl Codec {
    /// For tables under these names.
    pub fn new(names: KeyNames) -> Self {
        let key = names.derived_key(PURPOSE);
        // A key of 256 bits is one that the cipher takes.
        let key = key.and_then(|key| RandomizedNonceKey::new(&AES_256_GCM, &key).ok());
        Codec { names, key }
    }

    /// The field of an identity's override (`o:`), denial (`d:`) or reset (`r:`).
    pub fn field(&self, kind: char, identity: &Identity) -> String {
        format!("{kind}:{}", self.names.identity_hash(identity))
    }

    /// Which field an entry stands in, and its value.
    pub fn write(&self, entry: &Entry) -> (String, Bytes) {
        let (kind, identity, written) = match entry {
            Entry::Override(it) => match &it.order {
                Order::Tier(tier) => (
                    'o',
                    &it.identity,
                    Written::Override { set: Set::of(it), tier: (**tier).into() },
                ),
                Order::Deny => ('d', &it.identity, Written::Deny { set: Set::of(it) }),
            },
            Entry::Reset(it) => {
                let identity = it.identity.to_string();
                ('r', &it.identity, Written::Reset { identity, at: it.at.as_micros() })
            }
        };
        let field = self.field(kind, identity);
        let value = self.seal(&field, &written);
        (field, value)
    }

    /// The entry of a field; `None`: it cannot be read with the secret that there is.
    pub fn read(&self, field: &str, value: &[u8]) -> Option<Entry> {
        match serde_json::from_slice(&self.open(field, value)?).ok()? {
            Written::Override { set, tier } => {
                Some(Entry::Override(set.read(Order::Tier(tier.into()))?))
            }
            Written::Deny { set } => Some(Entry::Override(set.read(Order::Deny)?)),
            Written::Reset { identity, at } => {
                let identity = Identity::parse_written(&identity)?;
                Some(Entry::Reset(Reset { identity, at: Timestamp::from_micros(at) }))
            }
        }
    }

    /// A line of the log.
    pub fn write_line(&self, change: &Change) -> Bytes {
        let line = Line {
            action: change.action.as_str().to_owned(),
            identity: change.identity.as_ref().map(ToString::to_string),
            detail: change.detail.as_deref().map(Into::into),
            at: change.at.as_micros(),
            by: change.by.as_deref().map(Into::into),
            from: change.from,
            on: (*change.on).into(),
        };
        self.seal("", &line)
    }

    /// What a line of the log says.
    pub fn read_line(&self, line: &[u8]) -> Option<Change> {
        let line: Line = serde_json::from_slice(&self.open("", line)?).ok()?;
        Some(Change {
            action: Action::named(&line.action)?,
            identity: match line.identity {
                None => None,
                Some(identity) => Some(Identity::parse_written(&identity)?),
            },
            detail: line.detail.map(Into::into),
            at: Timestamp::from_micros(line.at),
            by: line.by.map(Into::into),
            from: line.from,
            on: line.on.into(),
        })
    }

    /// Bound to its field, so that nobody who can write to Redis makes one identity's another's.
    fn seal(&self, field: &str, value: &impl Serialize) -> Bytes {
        // Structs of strings and numbers always serialise.
        let mut text = serde_json::to_vec(value).unwrap_or_default();
        let Some(key) = &self.key else { return text.into() };
        match key.seal_in_place_append_tag(Aad::from(field), &mut text) {
            Ok(nonce) => [&nonce.as_ref()[..], &text].concat().into(),
            // Only what is longer than 64 GiB cannot be encrypted.
            Err(_) => Bytes::new(),
        }
    }

    fn open(&self, field: &str, value: &[u8]) -> Option<Vec<u8>> {
        let Some(key) = &self.key else { return Some(value.to_vec()) };
        let (nonce, sealed) = value.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let length = key.open_in_place(nonce, Aad::from(field), &mut sealed).ok()?.len();
        sealed.truncate(length);
        Some(sealed)
    }
}

impl Set {
    fn of(it: &Override) -> Self {
        Set {
            identity: it.identity.to_string(),
            until: it.until.map(Timestamp::as_micros),
            reason: it.reason.as_deref().map(Into::into),
            at: it.set_at.as_micros(),
            by: it.set_by.as_deref().map(Into::into),
            from: it.set_from,
            on: (*it.set_on).into(),
        }
    }

    fn read(self, order: Order) -> Option<Override> {
        Some(Override {
            identity: Identity::parse_written(&self.identity)?,
            order,
            until: self.until.map(Timestamp::from_micros),
            reason: self.reason.map(Arc::from),
            set_at: Timestamp::from_micros(self.at),
            set_by: self.by.map(Arc::from),
            set_from: self.from,
            set_on: self.on.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn entries() -> Vec<Entry> {
        let set = |order| Override {
            identity: Identity::User("42".into()),
            order,
            until: Some(Timestamp::from_micros(7)),
            reason: Some("\"why\"".into()),
            set_at: Timestamp::from_micros(5),
            set_by: None,
            set_from: Ipv4Addr::LOCALHOST.into(),
            set_on: "a-1".into(),
        };
        let identity = Identity::parse_written("ip:2001:db8::/64").unwrap();
        vec![
            Entry::Override(set(Order::Tier("premium".into()))),
            Entry::Override(set(Order::Deny)),
            Entry::Reset(Reset { identity, at: Timestamp::from_micros(9) }),
        ]
    }

    #[test]
    fn what_is_written_is_read_by_who_has_the_secret() {
        let names = KeyNames::new("tg");
        let plain = Codec::new(names.clone());
        let secret = Codec::new(names.clone().with_secret(b"0123456789abcdef"));
        let other = Codec::new(names.clone().with_secret(b"another secret.."));
        for entry in entries() {
            let (field, value) = plain.write(&entry);
            assert_eq!(plain.read(&field, &value), Some(entry.clone()));
            assert_eq!(secret.read(&field, &value), None);
            let (field, value) = secret.write(&entry);
            assert_eq!(secret.read(&field, &value), Some(entry));
            assert_eq!(other.read(&field, &value), None);
            assert_eq!(plain.read(&field, &value), None);
            assert_eq!(secret.read("o:another", &value), None, "bound to its field");
            assert!(!value.windows(4).any(|it| it == b"user" || it == b"2001"));
        }
        for wrong in [&b""[..], b"{}", b"null", b"{\"kind\":\"deny\"}"] {
            assert_eq!((plain.read("o:", wrong), secret.read("o:", wrong)), (None, None));
        }
    }

    #[test]
    fn lines_of_the_log_too() {
        let codec = Codec::new(KeyNames::new("tg").with_secret(b"0123456789abcdef"));
        let change = Change {
            action: Action::OverrideSet,
            identity: Some(Identity::Key("acme".into())),
            detail: Some("premium".into()),
            at: Timestamp::from_micros(5),
            by: Some("Zoë".into()),
            from: Ipv4Addr::LOCALHOST.into(),
            on: "a-1".into(),
        };
        assert_eq!(codec.read_line(&codec.write_line(&change)), Some(change));
        assert_eq!(codec.read_line(b"{}"), None);
    }
}
