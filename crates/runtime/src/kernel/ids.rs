//! Prefixed ids (`bkg_01J…`), and the stable hash that places entities.

use std::cell::Cell;

use sha2::{Digest, Sha256};

use crate::kernel::clock::Timestamp;

/// The number of slots of the key space. Persisted in every row that names a slot: never changed.
pub const SLOTS: u16 = 4096;

/// A digest that nobody can find another text for: SHA-256, its first 16 bytes in hexadecimal.
pub fn digest(text: &str) -> String {
    Sha256::digest(text)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A stable hash: FNV-1a with 64 bits, finished as in SplitMix64. It is persisted through slots and fingerprints, so it is
/// spelled out here and never changed.
pub fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in *part {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // A separator, so that ("ab","c") and ("a","bc") differ.
        hash = (hash ^ 0xff).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // With FNV alone the last bytes change only a few bits: consecutive keys would share slots.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// The slot of an entity, which alone decides where the entity lives.
pub fn slot_of(kind: &str, key: &str) -> u16 {
    (stable_hash(&[kind.as_bytes(), key.as_bytes()]) % u64::from(SLOTS)) as u16
}

/// A source of prefixed ULIDs, made from a time and a random seed that the caller provides, so that `decide` stays pure:
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

/// Whether a text from outside may be an id: bounded, and safe in logs, paths and topics.
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
        assert_eq!(slot_of("booking", "bkg_01ARZ3NDEKTSV4RRFFQ69G5FAV"), 1_308);
        assert_eq!(slot_of("user", "alice"), 133);
    }

    #[test]
    fn keys_that_count_up_are_spread_over_the_slots() {
        let mut counts = vec![0_u32; usize::from(SLOTS)];
        for n in 0..40_960 {
            counts[usize::from(slot_of("counter", &format!("key-{n}")))] += 1;
        }
        // Ten a slot on average, as if they had been thrown: hardly one has none, and none has 30.
        assert!(counts.iter().filter(|n| **n == 0).count() < 4);
        assert!(counts.iter().all(|n| *n < 30), "{:?}", counts.iter().max());
        let thirds = [0..1_365, 1_365..2_730].map(|part| counts[part].iter().sum::<u32>());
        assert!(thirds.iter().all(|n| n.abs_diff(13_650) < 500), "{thirds:?}");
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
