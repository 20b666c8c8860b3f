//! What: a bounded reader and a writer of little-endian fields, shared by both protocols.
//! Owns: the rule that a decoder checks before it reads and that nothing may be left over.
//! Invariants: never panics; never allocates more than the input is long.
//! Does not: know any message.
//! Called by: `client`, `wire`.

use alloc::vec::Vec;

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("message ends inside a field: {wanted} more bytes wanted, {left} left; it was cut or its sender speaks another version")]
    Short {
        /// Bytes that the field needs.
        wanted: usize,
        /// Bytes that are left.
        left: usize,
    },
    /// Bytes follow the last field.
    #[error("{left} bytes follow the last field of message kind {kind}; its sender speaks another version")]
    Trailing {
        /// The message's kind.
        kind: u8,
        /// Bytes left over.
        left: usize,
    },
    /// A kind that this version does not know.
    #[error("unknown message kind {kind}; its sender speaks another version")]
    UnknownKind {
        /// The kind found.
        kind: u8,
    },
    /// A field has a value outside its range.
    #[error("field {field} has the value {value}, which is out of range; the message is refused")]
    BadField {
        /// The field's name.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// Longer than a message may be.
    #[error("message of {found} bytes, at most {limit} are taken")]
    TooLong {
        /// Length found.
        found: usize,
        /// The limit.
        limit: usize,
    },
}

/// Reads fields from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((head, rest)) = self.0.split_at_checked(count) else {
            return Err(DecodeError::Short { wanted: count, left: self.0.len() });
        };
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::BadField { field, value: value.into() }),
        }
    }

    /// A byte string with its length in one byte, of `1..=limit` bytes.
    pub(crate) fn name(&mut self, field: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.u8()?;
        if length == 0 || usize::from(length) > limit {
            return Err(DecodeError::BadField { field, value: length.into() });
        }
        self.take(length.into())
    }

    pub(crate) fn end(self, kind: u8) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { kind, left: self.0.len() }) }
    }
}

/// Appends fields to a vector.
#[derive(Debug, Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(value);
        self
    }

    /// A byte string with its length in one byte; cut at 255 bytes (callers keep names far below).
    pub(crate) fn name(&mut self, value: &[u8]) -> &mut Self {
        let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
        self.u8(length).bytes(value.get(..usize::from(length)).unwrap_or(value))
    }
}
