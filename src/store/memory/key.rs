//! Keyed hashes in place of identities: constant size, and not to be steered by who picks a name.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use crate::policy::identity::Identity;

/// Bit of `check` that is not part of the hash but a mark of the record's owner.
const MARK: u32 = 1 << 31;
/// Hashed behind an identity for its second half.
const SECOND_HALF: u64 = 0xdd;

/// Makes keys; seeded afresh in each process.
#[derive(Debug, Default)]
pub struct Keys {
    seed: RandomState,
}

/// An identity's hash: every scope's key comes from it, and the shard.
#[derive(Clone, Copy, Debug)]
pub struct IdentityHash {
    first: u64,
    second: u64,
}

/// 95 bits of hash over an identity and a scope. Among ten million, two agree with a chance of
/// 10^-15.
#[derive(Clone, Copy, Debug, Default)]
// Aligned to 4, so that the expiry beside the key costs a record nothing.
#[repr(C, packed(4))]
pub struct Key {
    hash: u64,
    check: u32,
}

impl Keys {
    /// The hash of an identity.
    pub fn hash(&self, identity: &Identity) -> IdentityHash {
        let mut hasher = self.seed.build_hasher();
        identity.hash(&mut hasher);
        let first = hasher.finish();
        // The same state with one more word: another value of the same keyed function, for a few
        // rounds instead of a second pass.
        hasher.write_u64(SECOND_HALF);
        IdentityHash { first, second: hasher.finish() }
    }
}

impl IdentityHash {
    /// The key of one of the identity's scopes.
    pub fn key(self, scope_hash: u64) -> Key {
        // The first half is as good as random, so a sum spreads the scopes; no two scopes of one
        // identity meet unless their own hashes do.
        Key { hash: self.first.wrapping_add(scope_hash), check: self.second as u32 & !MARK }
    }

    /// One of `shards`, a power of two. All scopes of an identity share it, and so its lock.
    pub fn shard(self, shards: usize) -> usize {
        (self.second >> 32) as usize & shards.wrapping_sub(1)
    }
}

impl Key {
    /// Whether both name the same scope of the same identity.
    pub fn matches(self, other: Key) -> bool {
        self.hash == other.hash && (self.check ^ other.check) & !MARK == 0
    }

    /// What the index keeps of it.
    pub fn index_hash(self) -> u32 {
        (self.hash >> 32) as u32
    }

    /// The same key with the mark set or cleared.
    pub fn marked(self, mark: bool) -> Key {
        let check = if mark { self.check | MARK } else { self.check & !MARK };
        Key { check, ..self }
    }

    /// Whether the mark is set.
    pub fn is_marked(self) -> bool {
        self.check & MARK != 0
    }

    /// No key at all, but the place of another record.
    pub fn link(place: u32) -> Key {
        Key { hash: u64::from(place), check: 0 }
    }

    /// The place that [`Key::link`] was made of.
    pub fn as_link(self) -> u32 {
        self.hash as u32
    }
}
