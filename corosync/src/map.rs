//! What: corosync's map of its configuration and run-time values.
//! Owns: the handle of one connection to it.
//! Invariants: a key that is not there is no error; a value of another type than asked for is one.
//! Does not: write.
//! Called by: the group's connection, the quorum device's program.

use std::ffi::{CStr, CString};
use std::ptr;

use super::{CallFailed, Corosync, Handle, done, found};

/// Connected to the map.
#[derive(Debug)]
pub struct Map {
    calls: Corosync,
    handle: Handle,
}

impl Map {
    /// Connects.
    ///
    /// # Errors
    /// corosync does not answer.
    pub fn open(calls: Corosync) -> Result<Self, CallFailed> {
        let mut number = 0;
        // SAFETY: here as below arguments are as the public headers ask for, and pointers are to places that outlive the call.
        done("cmap_initialize", unsafe { (calls.cmap_initialize)(&raw mut number) })?;
        Ok(Self { calls, handle: Handle { number, finalize: calls.cmap_finalize } })
    }

    /// A value of the configuration; none: not there.
    ///
    /// # Errors
    /// The call failed.
    pub fn number(&self, key: &CStr) -> Result<Option<u32>, CallFailed> {
        let mut value = 0;
        // SAFETY: the key ends with a zero.
        found("cmap_get_uint32", unsafe { (self.calls.cmap_get_uint32)(self.handle.number, key.as_ptr(), &raw mut value) }, value)
    }

    /// A flag of the configuration; false when not there.
    ///
    /// # Errors
    /// The call failed.
    pub fn flag(&self, key: &CStr) -> Result<bool, CallFailed> {
        let mut value = 0;
        // SAFETY: the key ends with a zero.
        let code = unsafe { (self.calls.cmap_get_uint8)(self.handle.number, key.as_ptr(), &raw mut value) };
        Ok(found("cmap_get_uint8", code, value)?.is_some_and(|value| value != 0))
    }

    /// A text; none: not there.
    ///
    /// # Errors
    /// The call failed.
    pub fn text(&self, key: &CStr) -> Result<Option<CString>, CallFailed> {
        let mut text = ptr::null_mut();
        // SAFETY: the key ends with a zero.
        let code = unsafe { (self.calls.cmap_get_string)(self.handle.number, key.as_ptr(), &raw mut text) };
        let text = found("cmap_get_string", code, text)?.filter(|text| !text.is_null());
        Ok(text.map(|text| {
            // SAFETY: a text that was found ends with a zero, came from malloc, and is ours to free, once.
            unsafe {
                let copy = CStr::from_ptr(text).to_owned();
                libc::free(text.cast());
                copy
            }
        }))
    }

    /// Is there a text of this key, and not an empty one?
    ///
    /// # Errors
    /// The call failed.
    pub fn has_text(&self, key: &CStr) -> Result<bool, CallFailed> {
        Ok(self.text(key)?.is_some_and(|text| !text.is_empty()))
    }
}
