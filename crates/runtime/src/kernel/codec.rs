//! Binary encoding of values, for snapshots and between nodes: the one place that names `bincode`.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The most memory that a length read from input may allocate.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The bytes of a value.
///
/// # Panics
/// Panics where serialising fails, which plain data does not.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    try_encode(value).expect("it is plain data")
}

/// The bytes of a value that may refuse to be serialised, as private values do.
pub fn try_encode<T: Serialize>(value: &T) -> Result<Vec<u8>, String> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).map_err(|e| e.to_string())
}

/// The value, or `None` if the bytes are not one, or more than one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    decode_first(bytes).filter(|(_, used)| *used == bytes.len()).map(|(value, _)| value)
}

/// The first value of several, and how many bytes it takes.
pub fn decode_first<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let limit = bincode::config::standard().with_limit::<MAX_BYTES>();
    bincode::serde::decode_from_slice(bytes, limit).ok()
}
