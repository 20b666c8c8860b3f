//! What: pills of our own tools: a mailbox sector that says which life shall end, proved by the cluster's key.
//! Owns: the authentication code of a mailbox.
//! Invariants: the code covers command, sender, boot and serial; a sector made without the key is never called verified.
//! Does not: write a device; decide whether a pill is obeyed (sbd core).
//! Called by: the daemon (to write pills), sbd (to judge its mailbox), `message`.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use deadbolt_disk_format::BootId;
use deadbolt_disk_format::sbd::{Command, Mailbox, MailboxTail, SbdError, Tail, mailbox_fields};
use deadbolt_sbd_core::{Authenticity, MailboxSeen, TailSeen};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Separates this use of the cluster's key from all others.
const LABEL: &[u8] = b"deadbolt pill 1";
/// Bytes of the code that a mailbox carries: half of the hash, as usual for HMAC.
const MAC_BYTES: usize = 16;

/// The cluster's key, for pills.
#[derive(Clone)]
pub struct PillKey(Hmac<Sha256>);

impl fmt::Debug for PillKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PillKey(..)")
    }
}

/// Why a key file is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("cluster key {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Others may read it.
    #[error("cluster key {} has mode {mode:03o}: others may read it; run `chmod 600` on it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is not a key.
    #[error("{} holds no cluster key: {found} characters, a key is 64 hexadecimal digits; copy the line that `deadbolt init` printed", path.display())]
    NotAKey {
        /// Which.
        path: PathBuf,
        /// How many characters.
        found: usize,
    },
}

impl PillKey {
    /// From the bytes of the cluster's key.
    ///
    /// # Panics
    /// Never: HMAC takes keys of any length.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(LABEL);
        Self(mac)
    }

    /// From a file; see [`read_key`].
    ///
    /// # Errors
    /// As [`read_key`].
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        read_key(path).map(|key| Self::new(&key))
    }

    fn code(&self, sector: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.0.clone();
        mac.update(Mailbox::covered(sector));
        let full = mac.finalize().into_bytes();
        let mut code = [0; MAC_BYTES];
        code.copy_from_slice(&full[..MAC_BYTES]);
        code
    }

    fn is_code_of(&self, sector: &[u8], code: &[u8; MAC_BYTES]) -> bool {
        let mut mac = self.0.clone();
        mac.update(Mailbox::covered(sector));
        mac.verify_truncated_left(code).is_ok()
    }
}

/// The cluster's key from its text, 64 hexadecimal digits; white space around it does not matter.
#[must_use]
pub fn parse_key(text: &str) -> Option<[u8; 32]> {
    let mut key = [0; 32];
    let text = text.trim();
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        let digit = |index: usize| char::from(pair[index]).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0).zip(digit(1)).map(|(high, low)| high * 16 + low)?;
    }
    Some(key)
}

/// The cluster's key from a file that only its owner may read.
///
/// # Errors
/// No file, an exposed one, or no key in it.
pub fn read_key(path: &Path) -> Result<[u8; 32], KeyFileError> {
    let file = |source| KeyFileError::File { path: path.to_path_buf(), source };
    let mode = std::fs::metadata(path).map_err(file)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_path_buf(), mode });
    }
    let text = std::fs::read_to_string(path).map_err(file)?;
    parse_key(&text).ok_or_else(|| KeyFileError::NotAKey { path: path.to_path_buf(), found: text.trim().chars().count() })
}

/// A pill to be written.
#[derive(Clone, Copy, Debug)]
pub struct Pill<'a> {
    /// What the victim shall do; only deadly commands make a pill.
    pub command: Command,
    /// Name of the sender, for people.
    pub sender: &'a str,
    /// Which life of the victim's machine.
    pub victim: BootId,
    /// Serial of the sender's request.
    pub serial: u64,
}

/// The mailbox sector of a pill, `sector_bytes` long.
#[must_use]
pub fn encode_pill(pill: &Pill<'_>, key: &PillKey, sector_bytes: u32) -> Vec<u8> {
    let tail = MailboxTail { victim_boot: pill.victim, serial: pill.serial, mac: [0; MAC_BYTES] };
    let mailbox = Mailbox { command: pill.command, sender: pill.sender.to_owned(), tail: Tail::Present(tail) };
    let mut sector = mailbox.encode(sector_bytes);
    let code = key.code(&sector);
    let field = mailbox_fields::MAC;
    sector[field.offset..field.offset + field.size].copy_from_slice(&code);
    sector
}

/// A message of a sender without the cluster's key; without a victim's boot it is that of a stock program. A serial of zero: it was not
/// written over what the boot's own watcher had left. `number` makes it unlike every earlier one, so that what a path that lags shows is
/// never taken for it; where the serial is zero it stands in the code's place, which nobody checks on such a device.
#[must_use]
pub fn unsealed_message(
    command: Command,
    sender: &str,
    victim: Option<BootId>,
    (number, is_signed): (u64, bool),
    sector_bytes: u32,
) -> Vec<u8> {
    let tail = victim.map_or(Tail::Absent, |victim_boot| {
        let mut mac = [0; MAC_BYTES];
        if !is_signed {
            mac[..8].copy_from_slice(&number.to_le_bytes());
        }
        Tail::Present(MailboxTail { victim_boot, serial: if is_signed { number } else { 0 }, mac })
    });
    Mailbox { command, sender: sender.to_owned(), tail }.encode(sector_bytes)
}

/// The empty mailbox that a watcher leaves in the area of a stock device: it names its boot. A program of stock that starts there empties
/// it wholly, and does not touch the record beside it: the name is what shows whose the record still is.
#[must_use]
pub fn signed_mailbox(boot: BootId, sector_bytes: u32) -> Vec<u8> {
    let tail = MailboxTail { victim_boot: boot, serial: 1, mac: [0; MAC_BYTES] };
    Mailbox { tail: Tail::Present(tail), ..Mailbox::default() }.encode(sector_bytes)
}

/// Does a mailbox name this boot, and nobody but its watcher and those who saw its name there have written since?
#[must_use]
pub fn is_signed(sector: &[u8], boot: BootId) -> bool {
    read_mailbox(sector, None).is_ok_and(|seen| seen.is_signed(boot))
}

/// Reads and judges a mailbox sector. A tail that is neither absent nor ours counts as forged.
///
/// # Errors
/// Fewer bytes than a sector has.
pub fn read_mailbox(sector: &[u8], key: Option<&PillKey>) -> Result<MailboxSeen, SbdError> {
    let mailbox = Mailbox::decode(sector)?;
    let tail = match mailbox.tail {
        Tail::Absent => None,
        Tail::Malformed => Some(TailSeen { boot: BootId::NONE, serial: 0, authenticity: Authenticity::Forged }),
        Tail::Present(tail) => {
            let authenticity = match key {
                None => Authenticity::Unchecked,
                Some(key) if key.is_code_of(sector, &tail.mac) => Authenticity::Verified,
                Some(_) => Authenticity::Forged,
            };
            Some(TailSeen { boot: tail.victim_boot, serial: tail.serial, authenticity })
        }
    };
    Ok(MailboxSeen { command: mailbox.command.byte(), sender: mailbox.sender, tail })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PILL: Pill<'_> = Pill { command: Command::Reset, sender: "a", victim: BootId([7; 16]), serial: 9 };

    #[test]
    fn no_message_is_like_an_earlier_one_of_the_same_sender() {
        let message = |number, is_signed| unsealed_message(Command::Reset, "a", Some(BootId([7; 16])), (number, is_signed), 512);
        for is_signed in [false, true] {
            assert_ne!(message(5, is_signed), message(6, is_signed));
            assert_eq!(crate::pill::is_signed(&message(5, is_signed), BootId([7; 16])), is_signed);
        }
    }

    #[test]
    fn a_pill_is_verified_by_its_key_alone() {
        let key = PillKey::new(&[1; 32]);
        for sector_bytes in [512, 4096] {
            let sector = encode_pill(&PILL, &key, sector_bytes);
            assert_eq!(sector.len(), usize::try_from(sector_bytes).unwrap());
            let seen = |sector: &[u8], key: Option<&PillKey>| read_mailbox(sector, key).unwrap();
            let good = seen(&sector, Some(&key));
            assert_eq!((good.command, good.sender.as_str()), (2, "a"));
            assert_eq!(good.tail, Some(TailSeen { boot: BootId([7; 16]), serial: 9, authenticity: Authenticity::Verified }));
            assert_eq!(seen(&sector, None).tail.unwrap().authenticity, Authenticity::Unchecked);
            assert_eq!(seen(&sector, Some(&PillKey::new(&[2; 32]))).tail.unwrap().authenticity, Authenticity::Forged);
        }
    }

    #[test]
    fn no_changed_byte_stays_verified() {
        let key = PillKey::new(&[1; 32]);
        let sector = encode_pill(&PILL, &key, 512);
        for index in 0..512 {
            for bit in [1, 0x80] {
                let mut changed = sector.clone();
                changed[index] ^= bit;
                let tail = read_mailbox(&changed, Some(&key)).unwrap().tail;
                assert_ne!(tail.map(|tail| tail.authenticity), Some(Authenticity::Verified), "byte {index}");
            }
        }
    }

    #[test]
    fn a_stock_message_has_no_tail() {
        let sector = Mailbox { command: Command::Off, sender: "b".into(), tail: Tail::Absent }.encode(512);
        assert_eq!(read_mailbox(&sector, None).unwrap(), MailboxSeen { command: 3, sender: "b".into(), tail: None });
        assert!(read_mailbox(&sector[..100], None).is_err());
    }

    #[test]
    fn key_files_are_judged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cluster.key");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(matches!(PillKey::read(&path), Err(KeyFileError::File { .. })));
        write(&format!("{}\n", "01".repeat(32)), 0o600);
        let sector = encode_pill(&PILL, &PillKey::read(&path).unwrap(), 512);
        assert_eq!(sector, encode_pill(&PILL, &PillKey::new(&[1; 32]), 512));
        write(&"01".repeat(32), 0o640);
        assert!(matches!(PillKey::read(&path), Err(KeyFileError::Exposed { mode: 0o640, .. })));
        for text in ["", "01", &"0g".repeat(32), &"\u{e9}".repeat(32)] {
            write(text, 0o600);
            assert!(matches!(PillKey::read(&path), Err(KeyFileError::NotAKey { .. })), "{text:?}");
        }
    }
}
