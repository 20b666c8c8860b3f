//! What: fields that the client protocol and the messages between lock services have in common.
//! Owns: their bytes.
//! Invariants: as `bytes`; one value has one encoding.
//! Does not: know any message.
//! Called by: `client`, `wire`.

use crate::bytes::{DecodeError, Reader, Writer};
use crate::client::Lvb;
use crate::mode::{Mode, Token};

/// What is known of a resource's value block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LvbCopy {
    /// Number of the last write known; 0: never written.
    pub sequence: u64,
    /// It may not be the last one written.
    pub is_invalid: bool,
    /// The content of that write, where it is known or was asked for.
    pub value: Option<Lvb>,
}

pub(crate) fn write_mode(w: &mut Writer, mode: Option<Mode>) {
    w.u8(mode.map_or(255, Mode::number));
}

pub(crate) fn read_mode(r: &mut Reader<'_>) -> Result<Option<Mode>, DecodeError> {
    match r.u8()? {
        255 => Ok(None),
        number => Mode::from_number(number).map(Some),
    }
}

pub(crate) fn some_mode(r: &mut Reader<'_>) -> Result<Mode, DecodeError> {
    Mode::from_number(r.u8()?)
}

pub(crate) fn write_lvb(w: &mut Writer, lvb: Option<&Lvb>) {
    match lvb {
        None => w.u8(0),
        Some(lvb) => w.u8(1).bytes(lvb),
    };
}

pub(crate) fn read_lvb(r: &mut Reader<'_>) -> Result<Option<Lvb>, DecodeError> {
    Ok(if r.bool("has_lvb")? { Some(r.array()?) } else { None })
}

pub(crate) fn write_copy(w: &mut Writer, copy: &LvbCopy) {
    w.u64(copy.sequence).u8(copy.is_invalid.into());
    write_lvb(w, copy.value.as_ref());
}

pub(crate) fn read_copy(r: &mut Reader<'_>) -> Result<LvbCopy, DecodeError> {
    Ok(LvbCopy { sequence: r.u64()?, is_invalid: r.bool("lvb is_invalid")?, value: read_lvb(r)? })
}

pub(crate) fn write_token(w: &mut Writer, token: Token) {
    w.u64(token.view).u64(token.counter);
}

pub(crate) fn read_token(r: &mut Reader<'_>) -> Result<Token, DecodeError> {
    Ok(Token { view: r.u64()?, counter: r.u64()? })
}
