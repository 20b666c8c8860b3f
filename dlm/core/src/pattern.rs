//! What: names of resources and lockspaces as people write and read them.
//! Owns: patterns with `*` and `?`, and the text for bytes that are no text.
//! Invariants: a name's text, with its `*` and `?` escaped, is a pattern that fits this name only; matching takes no more than pattern times name.
//! Does not: know what a name stands for.
//! Called by: `service`'s listing, the daemon, the front door.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;

/// Longest pattern, in bytes (chosen: every byte of the longest name escaped, and some stars).
pub const PATTERN_BYTES_MAX: usize = 512;

/// Why a text is no pattern.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// Nothing has this name.
    #[error("the pattern is empty; names have 1 to 64 bytes, * stands for any of them")]
    Empty,
    /// No name is that long.
    #[error("the pattern has {length} bytes, at most {PATTERN_BYTES_MAX} are allowed; names have 1 to 64 bytes, * stands for any of them")]
    Long {
        /// Its bytes.
        length: usize,
    },
    /// A backslash before something else.
    #[error(
        "{text:?}: a backslash stands before *, ?, another backslash, or xNN for a byte in hexadecimal; a plain backslash is two of them"
    )]
    Escape {
        /// The pattern.
        text: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Piece {
    Byte(u8),
    /// One byte, whichever.
    One,
    /// Any number of bytes.
    Many,
}

/// What a name must look like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(Vec<Piece>);

impl Pattern {
    /// Reads a pattern: `*` stands for any bytes, `?` for one, `\xNN` for the byte NN; `\*`, `\?` and `\\` for themselves.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > PATTERN_BYTES_MAX {
            return Err(if text.is_empty() { PatternError::Empty } else { PatternError::Long { length: text.len() } });
        }
        let mut pieces = Vec::new();
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            pieces.push(match byte {
                b'*' => Piece::Many,
                b'?' => Piece::One,
                b'\\' => Piece::Byte(escaped(&mut bytes).ok_or_else(|| PatternError::Escape { text: text.into() })?),
                byte => Piece::Byte(byte),
            });
        }
        Ok(Self(pieces))
    }

    /// Does this name look like it?
    #[must_use]
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut piece, mut byte) = (0, 0);
        // Behind the last star, and the byte up to which it reaches.
        let mut star: Option<(usize, usize)> = None;
        while byte < name.len() {
            match self.0.get(piece) {
                Some(Piece::Many) => {
                    piece += 1;
                    star = Some((piece, byte));
                    continue;
                }
                Some(Piece::One) => (piece, byte) = (piece + 1, byte + 1),
                Some(Piece::Byte(wanted)) if name.get(byte) == Some(wanted) => (piece, byte) = (piece + 1, byte + 1),
                _ => {
                    // The last star takes one byte more; an earlier one need not.
                    let Some((behind, reach)) = star else { return false };
                    star = Some((behind, reach + 1));
                    (piece, byte) = (behind, reach + 1);
                }
            }
        }
        self.0.iter().skip(piece).all(|piece| *piece == Piece::Many)
    }
}

fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    match bytes.next()? {
        byte @ (b'*' | b'?' | b'\\') => Some(byte),
        b'x' => {
            let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            Some(digit()? * 16 + digit()?)
        }
        _ => None,
    }
}

/// A name as text: what is not printable is written `\xNN`, a backslash twice.
#[must_use]
pub fn readable(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        for letter in chunk.valid().chars() {
            if letter == '\\' {
                text.push_str("\\\\");
            } else if letter.is_control() {
                push_bytes(&mut text, letter.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(letter);
            }
        }
        push_bytes(&mut text, chunk.invalid());
    }
    text
}

fn push_bytes(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &str, name: &[u8]) -> bool {
        Pattern::new(pattern).unwrap().matches(name)
    }

    #[test]
    fn stars_and_question_marks() {
        for (pattern, yes, no) in [
            ("r", &["r"][..], &["", "rr", "R"][..]),
            ("r*", &["r", "rr", "r*"], &["", "xr"]),
            ("*r", &["r", "xr", "rxr"], &["rx"]),
            ("a*b*c", &["abc", "axbxc", "abcbc"], &["acb", "abcd"]),
            ("?", &["a"], &["", "ab"]),
            ("a?c*", &["abc", "axcd"], &["ac", "abd"]),
            ("**", &["", "x"], &[]),
            ("\\*", &["*"], &["x"]),
            ("\\x2a?", &["*x"], &["xx"]),
            ("a\\\\b", &["a\\b"], &["ab"]),
        ] {
            assert!(yes.iter().all(|name| fits(pattern, name.as_bytes())), "{pattern} {yes:?}");
            assert!(!no.iter().any(|name| fits(pattern, name.as_bytes())), "{pattern} {no:?}");
        }
        // One that a matcher with a choice per star would never end.
        assert!(!fits(&"*a".repeat(30), &[b'b'; 64]));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        assert_eq!(Pattern::new(""), Err(PatternError::Empty));
        assert_eq!(Pattern::new(&"x".repeat(513)), Err(PatternError::Long { length: 513 }));
        for text in ["\\", "a\\n", "\\x", "\\x4", "\\xg0", "\\x+1"] {
            assert_eq!(Pattern::new(text), Err(PatternError::Escape { text: text.into() }));
        }
    }

    #[test]
    fn names_are_shown_without_harm() {
        assert_eq!(readable(b"inode 7"), "inode 7");
        assert_eq!(readable("\u{fc}ber".as_bytes()), "\u{fc}ber");
        assert_eq!(readable(b"a\x1b[31m\xff\\"), "a\\x1b[31m\\xff\\\\");
    }

    proptest! {
        /// The text of a name finds this name and tells it from any other.
        #[test]
        fn a_shown_name_is_a_pattern_for_it(name in prop::collection::vec(any::<u8>(), 1..65), other in prop::collection::vec(any::<u8>(), 1..65)) {
            let text = readable(&name).replace('*', "\\*").replace('?', "\\?");
            prop_assert!(fits(&text, &name));
            prop_assert_eq!(fits(&text, &other), name == other);
        }

        /// As the definition says: a star takes each number of bytes in turn.
        #[test]
        fn it_matches_as_defined(pattern in "[ab*?]{1,8}", name in "[ab]{0,8}") {
            fn defined(pieces: &[Piece], name: &[u8]) -> bool {
                match (pieces, name) {
                    ([], name) => name.is_empty(),
                    ([Piece::Many, rest @ ..], name) => (0..=name.len()).any(|taken| defined(rest, &name[taken..])),
                    ([Piece::One, rest @ ..], [_, others @ ..]) => defined(rest, others),
                    ([Piece::Byte(wanted), rest @ ..], [byte, others @ ..]) => wanted == byte && defined(rest, others),
                    (_, []) => false,
                }
            }
            let pattern = Pattern::new(&pattern).unwrap();
            prop_assert_eq!(pattern.matches(name.as_bytes()), defined(&pattern.0, name.as_bytes()));
        }
    }
}
