//! How messages become bytes: bincode's standard configuration, always with a limit.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes that are not the expected message, or a message beyond its limit.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The bytes do not decode.
    #[error("cannot decode a {what}: {source}")]
    Decode {
        /// The type that was expected.
        what: &'static str,
        /// The decoder's finding.
        source: bincode::error::DecodeError,
    },
    /// Bytes are left over after the message.
    #[error("{extra} bytes follow a complete {what}")]
    Trailing {
        /// The type that was expected.
        what: &'static str,
        /// How many bytes follow it.
        extra: usize,
    },
    /// The message is longer than its limit.
    #[error("a {what} of {bytes} bytes is over the limit of {limit}")]
    TooLong {
        /// The type of the message.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The most that is allowed.
        limit: usize,
    },
}

/// Encodes `message`.
///
/// # Panics
/// If `T`'s `Serialize` fails, which no type of this crate does.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(message, bincode::config::standard())
        .expect("messages are plain data and always encode")
}

/// Decodes a `T` that fills `bytes` exactly and claims at most `LIMIT` bytes of memory.
pub fn decode<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = short_type_name::<T>();
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLong { what, bytes: bytes.len(), limit: LIMIT });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (message, used) = bincode::serde::decode_from_slice(bytes, config)
        .map_err(|source| CodecError::Decode { what, source })?;
    match bytes.len() - used {
        0 => Ok(message),
        extra => Err(CodecError::Trailing { what, extra }),
    }
}

fn short_type_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    name.rsplit("::").next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A length field that promises more than the limit allocates nothing and is refused.
    #[test]
    fn a_lying_length_is_refused() {
        let lie = [253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(matches!(decode::<Vec<u8>, 1024>(&lie), Err(CodecError::Decode { .. })));
    }

    /// A message must fill its bytes exactly.
    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7u32);
        assert_eq!(decode::<u32, 16>(&bytes).expect("whole"), 7);
        bytes.push(0);
        assert!(matches!(decode::<u32, 16>(&bytes), Err(CodecError::Trailing { extra: 1, .. })));
    }
}
