//! Tokens whose verdict is known: a signature costs more than a whole request, and callers send the
//! same token again and again.
//!
//! Keyed by SHA-256 of the token, so that no token is kept and none can be made to look like
//! another. Those that were believed and those that were not are kept apart: a flood of bad ones
//! pushes no good one out. What is known holds for the keys that it was found out with.

use std::sync::Arc;

use aws_lc_rs::digest;
use quick_cache::sync::Cache;

use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;

use super::token::{Token, TokenFault};

/// Tokens that were believed; about 300 bytes each, 900 where user and plan are as long as may be.
pub const VALID_MAX: usize = 100_000;
/// Tokens that were not; about 60 bytes each.
pub const INVALID_MAX: usize = 20_000;

/// SHA-256 of a token.
pub type TokenHash = [u8; digest::SHA256_OUTPUT_LEN];

/// The tokens that one set of rules and keys has judged.
#[derive(Debug)]
pub struct TokenCache {
    valid: Cache<TokenHash, Known>,
    invalid: Cache<TokenHash, (u64, TokenFault)>,
}

#[derive(Clone, Debug)]
struct Known {
    generation: u64,
    token: Arc<Token>,
}

impl Default for TokenCache {
    fn default() -> Self {
        TokenCache { valid: Cache::new(VALID_MAX), invalid: Cache::new(INVALID_MAX) }
    }
}

/// The hash that a token is known by.
pub fn hash(token: &str) -> TokenHash {
    let mut hash = TokenHash::default();
    let digest = digest::digest(&digest::SHA256, token.as_bytes());
    hash.copy_from_slice(digest.as_ref());
    hash
}

impl TokenCache {
    /// What is known of a token under the keys of this generation.
    pub fn get(
        &self,
        hash: &TokenHash,
        generation: u64,
        now: Timestamp,
    ) -> Option<Result<Arc<Token>, TokenFault>> {
        if let Some(known) = self.valid.get(hash).filter(|it| it.generation == generation) {
            return Some(known.token.holds_at(now).map(|()| known.token));
        }
        let (_, fault) = self.invalid.get(hash).filter(|(it, _)| *it == generation)?;
        Some(Err(fault))
    }

    /// Remembers a verdict that was found with the keys of this generation.
    pub fn put(&self, hash: TokenHash, generation: u64, verdict: Result<&Arc<Token>, TokenFault>) {
        match verdict {
            Ok(token) => {
                let token = Arc::clone(token);
                self.valid.insert(hash, Known { generation, token });
            }
            // What the time says of it, the next moment may say otherwise, and a clock be set
            // right.
            Err(TokenFault::NotYetValid | TokenFault::Expired) => {}
            Err(fault) => self.invalid.insert(hash, (generation, fault)),
        }
    }

    /// Of an identity's tokens that hold now, the one that holds longest. Looks at every token.
    pub fn last_of(
        &self,
        identity: &Identity,
        generation: u64,
        now: Timestamp,
    ) -> Option<Arc<Token>> {
        self.valid
            .iter()
            .map(|(_, known)| known)
            .filter(|known| known.generation == generation)
            .map(|known| known.token)
            .filter(|token| token.credential.identity == *identity && token.holds_at(now).is_ok())
            .max_by_key(|token| token.until)
    }

    /// Tokens that are remembered, good and bad.
    pub fn len(&self) -> usize {
        self.valid.len().saturating_add(self.invalid.len())
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
