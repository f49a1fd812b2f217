//! Prefixed ids (`bkg_01J…`), and the stable hash that places entities.

use std::cell::Cell;

use crate::kernel::clock::Timestamp;

/// How many slots the key space is cut into. Persisted in every row that names a slot: never changed.
pub const SLOTS: u16 = 4096;

/// FNV-1a, 64 bits. Persisted through slots and fingerprints, so it is spelled out here and never changed.
pub fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in *part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // A separator, so that ("ab","c") and ("a","bc") differ.
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// The slot of an entity: where it lives is decided by this number and nothing else.
pub fn slot_of(kind: &str, key: &str) -> u16 {
    // The high bits of FNV are the better mixed ones.
    ((stable_hash(&[kind.as_bytes(), key.as_bytes()]) >> 32) % u64::from(SLOTS)) as u16
}

/// Mints prefixed ULIDs from a time and a random seed that the caller provides, so that `decide` stays pure:
/// the same seed mints the same ids in the same order.
#[derive(Debug)]
pub struct IdSource {
    at_ms: u64,
    seed: u128,
    minted: Cell<u32>,
}

impl IdSource {
    pub fn new(now: Timestamp, seed: u128) -> Self {
        Self { at_ms: now.as_millisecond().max(0) as u64, seed, minted: Cell::new(0) }
    }

    pub fn mint(&self, prefix: &str) -> String {
        let n = self.minted.get();
        self.minted.set(n + 1);
        // Consecutive ids of one source are consecutive ULIDs, so they sort in the order they were minted.
        let random = self.seed.wrapping_add(u128::from(n));
        format!("{prefix}_{}", ulid::Ulid::from_parts(self.at_ms, random))
    }
}

/// What outsiders may use as an id: opaque, bounded, safe in logs, paths and topics.
pub fn is_valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_never_change() {
        // Rows in every database name these numbers.
        assert_eq!(slot_of("booking", "bkg_01ARZ3NDEKTSV4RRFFQ69G5FAV"), 3_915);
        assert_eq!(slot_of("user", "alice"), 1_437);
    }

    #[test]
    fn minted_ids_sort_and_repeat_for_a_seed() {
        let mint = || {
            let source = IdSource::new(Timestamp::UNIX_EPOCH, 7);
            (source.mint("a"), source.mint("a"))
        };
        assert_eq!(mint(), mint());
        assert!(mint().0 < mint().1);
    }

    #[test]
    fn ids_are_checked() {
        assert!(is_valid_id("alice-1_B"));
        for bad in ["", "a b", "ü", "a/b", "a:b", &"x".repeat(65)] {
            assert!(!is_valid_id(bad), "{bad}");
        }
    }
}
