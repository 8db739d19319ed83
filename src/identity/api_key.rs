//! API keys: known by their SHA-256 alone, each with the id of its owner, a tier, an end.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use hashbrown::HashTable;

use crate::limiter::time::Timestamp;
use crate::policy::caller::Credential;
use crate::policy::identity::Identity;

use super::cache::{self, TokenHash};

/// Most keys of one file.
pub const KEYS_MAX: usize = 100_000;
/// Longest key that is looked at, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;

/// One key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// SHA-256 of the key.
    pub sha256: TokenHash,
    /// Who it belongs to; several keys may have one owner.
    pub id: Arc<str>,
    /// Tier or subscription.
    pub tier: Option<Arc<str>>,
    /// When it ends.
    pub expires: Option<Timestamp>,
}

/// Why a key is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiKeyFault {
    /// Nobody has it.
    Unknown,
    /// Its time is over.
    Expired,
}

/// Every key of a file.
#[derive(Debug)]
pub struct KeyTable {
    seed: RandomState,
    table: HashTable<ApiKey>,
}

impl KeyTable {
    /// A table of these keys; of two that are equal, the first.
    pub fn new(keys: impl IntoIterator<Item = ApiKey>) -> Self {
        let seed = RandomState::new();
        let mut table = HashTable::new();
        for key in keys {
            let hash = seed.hash_one(key.sha256);
            if table.find(hash, |it: &ApiKey| it.sha256 == key.sha256).is_none() {
                table.insert_unique(hash, key, |it| seed.hash_one(it.sha256));
            }
        }
        KeyTable { seed, table }
    }

    /// Whose key it is. How long that takes tells nothing of any key: what is compared are hashes,
    /// found by a keyed hash of them, in constant time.
    ///
    /// # Errors
    /// Nobody's, or nobody's any more.
    pub fn find(&self, key: &str, now: Timestamp) -> Result<Credential, ApiKeyFault> {
        if key.len() > KEY_BYTES_MAX {
            return Err(ApiKeyFault::Unknown);
        }
        let sha256 = cache::hash(key);
        let is_it = |it: &ApiKey| verify_slices_are_equal(&it.sha256, &sha256).is_ok();
        let found = self.table.find(self.seed.hash_one(sha256), is_it);
        let key = found.ok_or(ApiKeyFault::Unknown)?;
        if key.expires.is_some_and(|end| now >= end) {
            return Err(ApiKeyFault::Expired);
        }
        let identity = Identity::Key(Arc::clone(&key.id));
        Ok(Credential { identity, subscription: key.tier.clone() })
    }

    /// The tier or subscription of an owner's key that holds. Looks at every key.
    pub fn subscription_of(&self, id: &str, now: Timestamp) -> Option<Arc<str>> {
        let holds = |key: &&ApiKey| &*key.id == id && key.expires.is_none_or(|end| now < end);
        self.table.iter().filter(holds).find_map(|key| key.tier.clone())
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_by_their_hash_until_they_end() {
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let key = |key: &str, id: &str, expires| ApiKey {
            sha256: cache::hash(key),
            id: id.into(),
            tier: Some("premium".into()),
            expires,
        };
        let mut keys: Vec<ApiKey> =
            (0..1_000).map(|n| key(&format!("key {n}"), &format!("id{n}"), None)).collect();
        keys.push(key("short", "acme", Some(at(100))));
        let table = KeyTable::new(keys);
        let id = |key: &str, now| table.find(key, now).map(|it| it.identity.to_string());
        for n in 0..1_000 {
            assert_eq!(id(&format!("key {n}"), at(0)), Ok(format!("key:id{n}")));
        }
        assert_eq!(id("short", at(99)), Ok("key:acme".to_owned()));
        assert_eq!(id("short", at(100)), Err(ApiKeyFault::Expired));
        for unknown in ["", "key 1000", "KEY 1", &"k".repeat(5_000)] {
            assert_eq!(id(unknown, at(0)), Err(ApiKeyFault::Unknown));
        }
        assert!(!format!("{table:?}").contains(&format!("{:?}", cache::hash("short"))));
    }
}
