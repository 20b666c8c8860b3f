//! What: persistent reservations of one device: register, reserve, preempt-and-abort, and what stands there.
//! Owns: the kernel's calls for it (linux/pr.h; SCSI PERSISTENT RESERVE IN where the kernel cannot read), and their structures.
//! Invariants: a call that returns Ok was done by the device; what came back is decoded before it is believed.
//! Does not: decide who may do what, or set deadlines: a device that hangs hangs its caller.
//! Called by: the shell of an ejection.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use deadbolt_disk_format::reservation::{
    AnswerError, Capabilities, KeysSeen, Reservation, ReservationKey, ReservationType, decode_capabilities, decode_keys, decode_reservation,
};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

/// How often a command is sent again that the device answered with news (unit attention): one for each change that others made. Chosen.
const TRIES: u32 = 8;
/// Most keys that are read: nodes by paths, many times over.
const KEYS_MAX: usize = 4095;
/// The command itself; a device that takes longer hangs. The kernel's own limit for its reservation calls is the same.
const SCSI_LIMIT_MS: libc::c_uint = 30_000;

const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const REPORT_CAPABILITIES: u8 = 2;
const PERSISTENT_RESERVE_IN: u8 = 0x5e;
const CHECK_CONDITION: u8 = 0x02;
const RESERVATION_CONFLICT: u8 = 0x18;
const ILLEGAL_REQUEST: u8 = 0x05;
const UNIT_ATTENTION: u8 = 0x06;

/// What is asked of a device, for its errors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReservationCall {
    /// Register a key.
    Register,
    /// Reserve.
    Reserve,
    /// Take a key away and abort.
    PreemptAbort,
    /// Read the keys.
    ReadKeys,
    /// Read the reservation.
    ReadReservation,
    /// What it can do.
    ReportCapabilities,
}

impl std::fmt::Display for ReservationCall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Register => "register",
            Self::Reserve => "reserve",
            Self::PreemptAbort => "preempt-and-abort",
            Self::ReadKeys => "read keys",
            Self::ReadReservation => "read reservation",
            Self::ReportCapabilities => "report capabilities",
        })
    }
}

/// Why something about a device's reservations failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReservationError {
    /// It cannot be opened.
    #[error("{} cannot be opened for its reservations: {source}", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel knows no such call for this device.
    #[error("{}: {call} is not known for this device ({source}); reservations need a whole disk of SCSI or NVMe, or multipath over them, and reading them on NVMe a kernel with IOC_PR_READ_KEYS", path.display())]
    NotAvailable {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        call: ReservationCall,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device refuses the command, or does not know it.
    #[error("{}: the device refuses {call}; it does not offer that", path.display())]
    Refused {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        call: ReservationCall,
    },
    /// Another registration or reservation stands against it.
    #[error("{}: {call} met a reservation conflict: this node's key is not registered, or the other key is gone", path.display())]
    Conflict {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        call: ReservationCall,
    },
    /// The command did not get through.
    #[error("{}: {call} failed with status {status:#x}; check the path to the device", path.display())]
    Failed {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        call: ReservationCall,
        /// As linux/pr.h numbers it, or the SCSI status and sense key.
        status: u32,
    },
    /// The kernel failed.
    #[error("{}: {call} failed: {source}", path.display())]
    Os {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        call: ReservationCall,
        /// What the kernel said.
        source: io::Error,
    },
    /// More keys than anybody needs.
    #[error("{}: {found} keys are registered, more than {KEYS_MAX}; remove those of machines that are gone", path.display())]
    TooManyKeys {
        /// The path as given.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// The answer makes no sense.
    #[error("{}: {source}", path.display())]
    Answer {
        /// The path as given.
        path: PathBuf,
        /// What is wrong with it.
        source: AnswerError,
    },
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct PrRegistration {
    old_key: u64,
    new_key: u64,
    flags: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct PrReservation {
    key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct PrPreempt {
    old_key: u64,
    new_key: u64,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Debug)]
pub(crate) struct PrReadKeys {
    generation: u32,
    count: u32,
    keys: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct PrReadReservation {
    key: u64,
    generation: u32,
    kind: u32,
}

/// The kernel's `sg_io_hdr`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SgIo {
    interface: libc::c_int,
    direction: libc::c_int,
    command_bytes: libc::c_uchar,
    sense_bytes_max: libc::c_uchar,
    scattered: libc::c_ushort,
    data_bytes: libc::c_uint,
    data: *mut libc::c_void,
    command: *mut libc::c_uchar,
    sense: *mut libc::c_uchar,
    limit_ms: libc::c_uint,
    flags: libc::c_uint,
    pack: libc::c_int,
    user: *mut libc::c_void,
    status: libc::c_uchar,
    masked_status: libc::c_uchar,
    message_status: libc::c_uchar,
    sense_bytes: libc::c_uchar,
    host_status: libc::c_ushort,
    driver_status: libc::c_ushort,
    residue: libc::c_int,
    duration: libc::c_uint,
    info: libc::c_uint,
}
const _: () = assert!(size_of::<SgIo>() == 88 && size_of::<PrRegistration>() == 24 && size_of::<PrPreempt>() == 24);
const _: () = assert!(size_of::<PrReservation>() == 16 && size_of::<PrReadKeys>() == 16 && size_of::<PrReadReservation>() == 16);

/// PR_FL_IGNORE_KEY: whatever is registered for this path is replaced.
const IGNORE_KEY: u32 = 1;
/// SG_DXFER_FROM_DEV.
const FROM_DEVICE: libc::c_int = -3;

mod ioctls {
    use super::{PrPreempt, PrReadKeys, PrReadReservation, PrRegistration, PrReservation, SgIo};
    nix::ioctl_write_ptr!(register, b'p', 200, PrRegistration);
    nix::ioctl_write_ptr!(reserve, b'p', 201, PrReservation);
    nix::ioctl_write_ptr!(preempt_abort, b'p', 204, PrPreempt);
    nix::ioctl_readwrite!(read_keys, b'p', 206, PrReadKeys);
    nix::ioctl_read!(read_reservation, b'p', 207, PrReadReservation);
    nix::ioctl_readwrite_bad!(sg_io, 0x2285, SgIo);
}

/// A device, opened for its reservations. Everything blocks for as long as the device hangs.
#[derive(Debug)]
pub struct Reservations {
    path: PathBuf,
    file: File,
}

impl Reservations {
    /// Opens a whole disk; no sector of it is read or written.
    ///
    /// # Errors
    /// [`ReservationError::Open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ReservationError> {
        let path = path.as_ref();
        let opened = nix::fcntl::open(path, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
        let file = opened.map(File::from).map_err(|errno| ReservationError::Open { path: path.into(), source: errno.into() })?;
        Ok(Self { path: path.into(), file })
    }

    /// Registers a key for this machine's way to the device, whatever was registered for it; the device keeps it over a loss of its power.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn register(&self, key: ReservationKey) -> Result<(), ReservationError> {
        let request = PrRegistration { old_key: 0, new_key: key.0, flags: IGNORE_KEY, pad: 0 };
        // SAFETY: the descriptor is open for the call, which reads a live structure of the type that the request has.
        self.change(ReservationCall::Register, || unsafe { ioctls::register(self.file.as_raw_fd(), &raw const request) })
    }

    /// Reserves the device under a key that this machine has registered.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn reserve(&self, key: ReservationKey, kind: ReservationType) -> Result<(), ReservationError> {
        let request = PrReservation { key: key.0, kind: kind.linux(), flags: 0 };
        // SAFETY: as in register.
        self.change(ReservationCall::Reserve, || unsafe { ioctls::reserve(self.file.as_raw_fd(), &raw const request) })
    }

    /// Takes away every registration of `victim`, and its reservation, and aborts what came by those ways.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn preempt_abort(&self, own: ReservationKey, victim: ReservationKey, kind: ReservationType) -> Result<(), ReservationError> {
        let request = PrPreempt { old_key: own.0, new_key: victim.0, kind: kind.linux(), flags: 0 };
        // SAFETY: as in register.
        self.change(ReservationCall::PreemptAbort, || unsafe { ioctls::preempt_abort(self.file.as_raw_fd(), &raw const request) })
    }

    /// All keys that are registered, one for each path.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn keys(&self) -> Result<Vec<ReservationKey>, ReservationError> {
        let seen = match self.keys_by_kernel() {
            Err(ReservationError::NotAvailable { .. }) => {
                let answer = self.ask(READ_KEYS, ReservationCall::ReadKeys, 8 + 8 * KEYS_MAX)?;
                self.judge(decode_keys(&answer))?
            }
            seen => seen?,
        };
        if seen.keys.len() < seen.count {
            Err(ReservationError::TooManyKeys { path: self.path.clone(), found: seen.count })
        } else {
            Ok(seen.keys)
        }
    }

    fn keys_by_kernel(&self) -> Result<KeysSeen, ReservationError> {
        let mut keys = vec![0_u64; KEYS_MAX];
        let count = u32::try_from(keys.len()).unwrap_or(0);
        let mut request = PrReadKeys { generation: 0, count, keys: keys.as_mut_ptr() as u64 };
        // SAFETY: the descriptor is open for the call; the kernel fills the structure and at most `count` keys of the vector, which lives on.
        self.change(ReservationCall::ReadKeys, || unsafe { ioctls::read_keys(self.file.as_raw_fd(), &raw mut request) })?;
        let count = usize::try_from(request.count).unwrap_or(usize::MAX);
        keys.truncate(count);
        Ok(KeysSeen { keys: keys.into_iter().map(ReservationKey).collect(), count })
    }

    /// The device's reservation, if there is one.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn reservation(&self) -> Result<Option<Reservation>, ReservationError> {
        let mut found = PrReadReservation::default();
        // SAFETY: the descriptor is open for the call, which fills a live structure of the type that the request has.
        let read =
            self.change(ReservationCall::ReadReservation, || unsafe { ioctls::read_reservation(self.file.as_raw_fd(), &raw mut found) });
        match read {
            Err(ReservationError::NotAvailable { .. }) => {
                let answer = self.ask(READ_RESERVATION, ReservationCall::ReadReservation, 24)?;
                self.judge(decode_reservation(&answer))
            }
            Err(error) => Err(error),
            Ok(()) if found.kind == 0 => Ok(None),
            Ok(()) => {
                let number = u8::try_from(found.kind).unwrap_or(u8::MAX);
                let kind = self.judge(ReservationType::of_linux(found.kind).ok_or(AnswerError::Type { found: number }))?;
                Ok(Some(Reservation { holder: ReservationKey(found.key), kind }))
            }
        }
    }

    /// What the device says that it can do; SCSI only.
    ///
    /// # Errors
    /// [`ReservationError`].
    pub fn capabilities(&self) -> Result<Capabilities, ReservationError> {
        let answer = self.ask(REPORT_CAPABILITIES, ReservationCall::ReportCapabilities, 8)?;
        self.judge(decode_capabilities(&answer))
    }

    fn judge<T>(&self, decoded: Result<T, AnswerError>) -> Result<T, ReservationError> {
        decoded.map_err(|source| ReservationError::Answer { path: self.path.clone(), source })
    }

    /// Calls the kernel until it says something else than that there is news. It answers a number below zero, or a status of linux/pr.h:
    /// old kernels give the device's own, and do not tell a refusal from news.
    fn change(&self, call: ReservationCall, mut ask: impl FnMut() -> nix::Result<libc::c_int>) -> Result<(), ReservationError> {
        let mut answer = ask();
        for _ in 1..TRIES {
            if !answer.is_ok_and(|status| device_status(status) == Some(CHECK_CONDITION)) {
                break;
            }
            answer = ask();
        }
        let path = || self.path.clone();
        match answer {
            Ok(0) => Ok(()),
            Ok(status) if device_status(status) == Some(RESERVATION_CONFLICT) => Err(ReservationError::Conflict { path: path(), call }),
            Ok(status) if device_status(status) == Some(CHECK_CONDITION) => Err(ReservationError::Refused { path: path(), call }),
            Ok(status) => Err(ReservationError::Failed { path: path(), call, status: status.unsigned_abs() }),
            // A kernel without this call hands it to the driver, and that of SCSI answers so.
            Err(errno @ Errno::EINVAL) if matches!(call, ReservationCall::ReadKeys | ReservationCall::ReadReservation) => {
                Err(ReservationError::NotAvailable { path: path(), call, source: errno.into() })
            }
            Err(Errno::EINVAL) => Err(ReservationError::Refused { path: path(), call }),
            Err(errno @ (Errno::ENOTTY | Errno::EOPNOTSUPP | Errno::EPERM)) => {
                Err(ReservationError::NotAvailable { path: path(), call, source: errno.into() })
            }
            Err(errno) => Err(ReservationError::Os { path: path(), call, source: errno.into() }),
        }
    }

    /// A PERSISTENT RESERVE IN of up to so many bytes.
    fn ask(&self, action: u8, call: ReservationCall, bytes: usize) -> Result<Vec<u8>, ReservationError> {
        let path = || self.path.clone();
        let [high, low] = u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        let mut last = ReservationError::Refused { path: path(), call };
        for _ in 0..TRIES {
            let mut data = vec![0_u8; bytes];
            let mut command = [PERSISTENT_RESERVE_IN, action, 0, 0, 0, 0, 0, high, low, 0];
            let mut sense = [0_u8; 32];
            let request = self.send(&mut command, &mut data, &mut sense);
            let request = request.map_err(|errno| match errno {
                Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPERM => {
                    ReservationError::NotAvailable { path: path(), call, source: errno.into() }
                }
                errno => ReservationError::Os { path: path(), call, source: errno.into() },
            })?;
            if request.host_status == 0 && request.status == 0 {
                let residue = usize::try_from(request.residue).unwrap_or(0);
                data.truncate(bytes.saturating_sub(residue));
                return Ok(data);
            }
            let key = sense_key(&sense);
            last = match (request.host_status, request.status, key) {
                (0, CHECK_CONDITION, ILLEGAL_REQUEST) => return Err(ReservationError::Refused { path: path(), call }),
                (0, RESERVATION_CONFLICT, _) => return Err(ReservationError::Conflict { path: path(), call }),
                (host, status, key) => {
                    let status = u32::from(host) << 16 | u32::from(key) << 8 | u32::from(status);
                    ReservationError::Failed { path: path(), call, status }
                }
            };
            if request.host_status != 0 || key != UNIT_ATTENTION {
                break;
            }
        }
        Err(last)
    }

    fn send(&self, command: &mut [u8; 10], data: &mut [u8], sense: &mut [u8; 32]) -> nix::Result<SgIo> {
        let mut request = SgIo {
            interface: libc::c_int::from(b'S'),
            direction: FROM_DEVICE,
            command_bytes: 10,
            sense_bytes_max: 32,
            scattered: 0,
            data_bytes: libc::c_uint::try_from(data.len()).unwrap_or(0),
            data: data.as_mut_ptr().cast(),
            command: command.as_mut_ptr(),
            sense: sense.as_mut_ptr(),
            limit_ms: SCSI_LIMIT_MS,
            flags: 0,
            pack: 0,
            user: std::ptr::null_mut(),
            status: 0,
            masked_status: 0,
            message_status: 0,
            sense_bytes: 0,
            host_status: 0,
            driver_status: 0,
            residue: 0,
            duration: 0,
            info: 0,
        };
        // SAFETY: the descriptor is open for the call; command, data and sense live through it and are as long as the request says.
        unsafe { ioctls::sg_io(self.file.as_raw_fd(), &raw mut request) }?;
        Ok(request)
    }
}

/// The device's own word in what the kernel answers; none where the path failed. Old kernels leave more than that in the lower half.
fn device_status(status: libc::c_int) -> Option<u8> {
    let [_, path, _, device] = status.to_be_bytes();
    (path == 0).then_some(device)
}

/// Sense data have two forms.
fn sense_key(sense: &[u8; 32]) -> u8 {
    match sense[0] & 0x7f {
        0x70 | 0x71 => sense[2] & 0x0f,
        0x72 | 0x73 => sense[1] & 0x0f,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> (tempfile::NamedTempFile, Reservations) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reservations = Reservations::open(file.path()).unwrap();
        (file, reservations)
    }

    #[test]
    fn what_has_no_reservations_says_so() {
        let (_file, reservations) = opened();
        let key = ReservationKey(1);
        let kind = ReservationType::WriteExclusiveRegistrantsOnly;
        let errors = [
            reservations.register(key).unwrap_err(),
            reservations.reserve(key, kind).unwrap_err(),
            reservations.preempt_abort(key, ReservationKey(2), kind).unwrap_err(),
            reservations.keys().unwrap_err(),
            reservations.reservation().unwrap_err(),
            reservations.capabilities().unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, ReservationError::NotAvailable { .. }), "{error}");
        }
        assert!(matches!(Reservations::open("/nonexistent"), Err(ReservationError::Open { .. })));
    }

    #[test]
    fn what_the_kernel_answers_means_one_thing() {
        let (_file, reservations) = opened();
        let mut asked = 0;
        let mut judged = |answers: &[nix::Result<libc::c_int>]| {
            asked = 0;
            let result = reservations.change(ReservationCall::Reserve, || {
                asked += 1;
                answers[(asked - 1).min(answers.len() - 1)]
            });
            let word = match result {
                Ok(()) => "done",
                Err(ReservationError::Conflict { .. }) => "conflict",
                Err(ReservationError::Refused { .. }) => "refused",
                Err(ReservationError::NotAvailable { .. }) => "not available",
                Err(ReservationError::Failed { .. }) => "failed",
                Err(ReservationError::Os { .. }) => "os",
                Err(other) => panic!("{other}"),
            };
            (word, asked)
        };
        assert_eq!(judged(&[Ok(0)]), ("done", 1));
        assert_eq!(judged(&[Ok(2), Ok(2), Ok(0)]), ("done", 3));
        assert_eq!(judged(&[Ok(2), Ok(0x18)]), ("conflict", 2));
        assert_eq!(judged(&[Ok(2)]), ("refused", 8));
        assert_eq!(judged(&[Ok(0x402), Ok(0x402), Ok(0x418)]), ("conflict", 3));
        assert_eq!(judged(&[Ok(0x1_0000)]), ("failed", 1));
        assert_eq!(judged(&[Ok(0x7_0002)]), ("failed", 1));
        assert_eq!(judged(&[Err(Errno::EINVAL)]), ("refused", 1));
        assert_eq!(judged(&[Err(Errno::EPERM)]), ("not available", 1));
        assert_eq!(judged(&[Err(Errno::EIO)]), ("os", 1));
    }

    #[test]
    fn sense_keys_are_found_in_both_forms() {
        let sense = |first: &[u8]| {
            let mut sense = [0; 32];
            sense[..first.len()].copy_from_slice(first);
            sense_key(&sense)
        };
        assert_eq!((sense(&[0x70, 0, 0x26]), sense(&[0xf1, 0, 0x05]), sense(&[0x72, 0x06, 9]), sense(&[0, 6, 6])), (6, 5, 6, 0));
    }
}
