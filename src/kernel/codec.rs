//! The one place that names `bincode`: how values become bytes and back, for snapshots and between nodes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A length that somebody else claims takes no more memory than this.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// # Panics
/// Where serialising fails: plain data does not.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    try_encode(value).expect("it is plain data")
}

/// Of what may refuse, as private values do.
pub fn try_encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|e| e.to_string())
}

/// `None`: not such a value, or something behind it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    decode_first(bytes).filter(|(_, used)| *used == bytes.len()).map(|(value, _)| value)
}

/// The first value of several, and how many bytes it takes.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let limit = bincode::config::standard().with_limit::<MAX_BYTES>();
    bincode::serde::decode_from_slice(bytes, limit).ok()
}
