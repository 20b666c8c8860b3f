//! What: protected devices: this node registers its key on them, and ejects another node from all of them.
//! Owns: the threads, one for each device; where this boot has registered, which stands under the run directory.
//! Invariants: a device that hangs holds up nobody beyond the limit; Ok means that it is so on every device.
//! Does not: judge an answer (see the machines in the core), or decide whom to eject.
//! Called by: the fence agent, deadboltd.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc::channel};
use std::time::{Duration, Instant};

use deadbolt_disk::{ReservationError, Reservations};
use deadbolt_disk_format::ClusterUuid;
use deadbolt_disk_format::reservation::{KeyOwner, ReservationKey};
pub use deadbolt_sbd_core::Ejected;
use deadbolt_sbd_core::{Answer, Dialogue, Ejection, FENCING, Objection, Registration, Step};

use crate::fence::run_folder;
use crate::watch::boot::kernel_boot;

/// How long a device may take for all of it. Chosen: each of the six questions takes milliseconds where the path is well; an initiator
/// that loses its path may take longer to find out, and then this device proves nothing.
pub const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// Why it is not so on one device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// A call failed.
    #[error("{0}")]
    Call(#[from] ReservationError),
    /// What was found there.
    #[error("{}: {objection}", path.display())]
    Objection {
        /// The device.
        path: PathBuf,
        /// Why.
        objection: Objection,
    },
    /// No answer.
    #[error("{}: no answer about reservations within {} s: the path to the device hangs", path.display(), limit.as_secs())]
    NoAnswer {
        /// The device.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// That this boot registers there could not be noted.
    #[error("{}: {source}; without this note a node that was ejected could not be kept from coming back", note.display())]
    Note {
        /// The note.
        note: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What was found wrong, on one device or more.
#[derive(Debug, thiserror::Error)]
#[error("{}", list(.0))]
pub struct DeviceErrors(pub Vec<DeviceError>);

fn list(errors: &[DeviceError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Who a node is to the devices, by its name. The devices of a stock cluster have no identity in common, so that the name stands alone.
#[must_use]
pub fn owner(node: &str) -> KeyOwner {
    KeyOwner::new(ClusterUuid([0; 16]), node)
}

/// The key of a node in the present boot of this machine.
///
/// # Errors
/// The kernel does not say which boot it is.
pub fn key_here(node: KeyOwner) -> io::Result<ReservationKey> {
    // What the devices see of a machine is its kernel's, whatever namespaces there are.
    Ok(node.key(kernel_boot()?))
}

/// Takes the victim's keys away on every device, with what it has under way. `held` is kept for as long as a device hangs: until then
/// another attempt would only hang, too.
///
/// # Errors
/// Something proves nothing, on one device or more; on others it may have been done.
pub fn eject(devices: &[PathBuf], victim: Ejected, own: ReservationKey, limit: Duration, held: &Arc<()>) -> Result<(), DeviceErrors> {
    let (end, held) = (Instant::now() + limit, held.clone());
    on_each(devices, limit, move |path| {
        let _held = &held;
        let device = Reservations::open(path)?;
        drive(&mut Ejection::new(own, victim), path, |step| answer_before(end, path, limit, || answer(&device, own, step)))
    })
}

/// Nothing is asked any more once nobody waits: a path that returns late must not end a life that has come back meanwhile.
fn answer_before(
    end: Instant,
    path: &Path,
    limit: Duration,
    ask: impl FnOnce() -> Result<Answer, DeviceError>,
) -> Result<Answer, DeviceError> {
    if Instant::now() >= end {
        return Err(DeviceError::NoAnswer { path: path.to_owned(), limit });
    }
    ask()
}

/// Registers this boot's key on every device, and reserves it.
///
/// # Errors
/// It is not so on one device or more; on others it may be.
pub fn register(devices: &[PathBuf], own: ReservationKey, limit: Duration) -> Result<(), DeviceErrors> {
    on_each(devices, limit, move |path| {
        let device = Reservations::open(path)?;
        let note = Note::new(own, path);
        let mut machine = Registration::new(own, note.is_there());
        drive(&mut machine, path, |step| {
            if step != Step::Register {
                return answer(&device, own, step);
            }
            note.write()?;
            let done = answer(&device, own, step);
            if matches!(done, Ok(Answer::Refused | Answer::Conflict)) {
                note.remove();
            }
            done
        })
    })
}

/// Can nodes be ejected from all of these devices, as far as reading shows?
///
/// # Errors
/// One device or more cannot be used.
pub fn inspect(devices: &[PathBuf], limit: Duration) -> Result<(), DeviceErrors> {
    on_each(devices, limit, |path| {
        let device = Reservations::open(path)?;
        device.keys()?;
        device.reservation()?;
        match device.capabilities() {
            Ok(can) if can.knows_type == Some(false) || !can.keeps_over_power_loss => {
                Err(DeviceError::Objection { path: path.to_owned(), objection: Objection::Refused })
            }
            // Only SCSI answers it.
            Ok(_) | Err(ReservationError::NotAvailable { .. } | ReservationError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// Asks the device until the machine has come to its end.
fn drive(machine: &mut impl Dialogue, path: &Path, mut ask: impl FnMut(Step) -> Result<Answer, DeviceError>) -> Result<(), DeviceError> {
    loop {
        match machine.step() {
            Step::Over(end) => return end.map_err(|objection| DeviceError::Objection { path: path.to_owned(), objection }),
            step => machine.handle(ask(step)?),
        }
    }
}

fn answer(device: &Reservations, own: ReservationKey, step: Step) -> Result<Answer, DeviceError> {
    let done = match step {
        Step::ReadKeys => return Ok(Answer::Keys(device.keys()?)),
        Step::ReadReservation => return Ok(Answer::Reservation(device.reservation()?)),
        Step::Register => device.register(own),
        Step::Reserve => device.reserve(own, FENCING),
        Step::PreemptAbort(key) => device.preempt_abort(own, key, FENCING),
        Step::Over(_) => Ok(()),
    };
    match done {
        Ok(()) => Ok(Answer::Done),
        Err(ReservationError::Conflict { .. }) => Ok(Answer::Conflict),
        Err(ReservationError::Refused { .. }) => Ok(Answer::Refused),
        Err(error) => Err(error.into()),
    }
}

/// All devices side by side, each by a thread of its own; one that hangs keeps its thread.
fn on_each(
    devices: &[PathBuf],
    limit: Duration,
    work: impl Fn(&Path) -> Result<(), DeviceError> + Clone + Send + 'static,
) -> Result<(), DeviceErrors> {
    let (done, all_done) = channel();
    for (index, path) in devices.iter().enumerate() {
        let (path, work, done) = (path.clone(), work.clone(), done.clone());
        // Without a thread the device counts as silent.
        let _ = std::thread::Builder::new().name("reservations".into()).spawn(move || done.send((index, work(&path))));
    }
    drop(done);
    let end = Instant::now() + limit;
    let silent = |path: &PathBuf| Err(DeviceError::NoAnswer { path: path.clone(), limit });
    let mut results: Vec<Result<(), DeviceError>> = devices.iter().map(silent).collect();
    while let Ok((index, result)) = all_done.recv_timeout(end.saturating_duration_since(Instant::now())) {
        results[index] = result;
    }
    let errors: Vec<DeviceError> = results.into_iter().filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(DeviceErrors(errors)) }
}

/// A file that says: this boot has registered its key on this device. It is gone with the boot, as the key's meaning is.
struct Note(PathBuf);

impl Note {
    fn new(own: ReservationKey, device: &Path) -> Self {
        let name = device.to_string_lossy().replace('%', "%25").replace('/', "%2f");
        Self(run_folder().join(format!("registered-{own}")).join(name))
    }

    fn is_there(&self) -> bool {
        // What cannot be looked at may be there.
        self.0.try_exists().unwrap_or(true)
    }

    fn write(&self) -> Result<(), DeviceError> {
        let made = self.0.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&self.0, ""));
        made.map_err(|source| DeviceError::Note { note: self.0.clone(), source })
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_hangs_or_fails_leaves_it_unproved_and_delays_nobody() {
        let devices: Vec<PathBuf> = ["/dev/good", "/dev/hung", "/dev/bad"].map(PathBuf::from).to_vec();
        let began = Instant::now();
        let errors = on_each(&devices, Duration::from_millis(200), |path| match path.to_str() {
            Some("/dev/good") => Ok(()),
            Some("/dev/hung") => {
                std::thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            _ => Err(DeviceError::Objection { path: path.to_owned(), objection: Objection::AbortRefused }),
        });
        assert!(began.elapsed() < Duration::from_secs(10));
        let text = errors.unwrap_err().to_string();
        assert!(text.starts_with("/dev/hung: no answer") && text.contains("; /dev/bad: not available") && !text.contains("good"), "{text}");
        assert!(on_each(&devices, Duration::from_secs(60), |_| Ok(())).is_ok());
    }

    #[test]
    fn a_file_is_no_device_for_reservations() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let devices = [file.path().to_owned()];
        let own = key_here(owner("a")).unwrap();
        assert!(owner("A").owns(own));
        for result in [
            eject(&devices, Ejected::Node(owner("b")), own, DEVICE_LIMIT, &Arc::default()),
            register(&devices, own, DEVICE_LIMIT),
            inspect(&devices, DEVICE_LIMIT),
        ] {
            assert!(matches!(result.unwrap_err().0[..], [DeviceError::Call(ReservationError::NotAvailable { .. })]));
        }
    }

    #[test]
    fn a_path_that_returns_late_is_asked_nothing_more() {
        let (path, limit) = (Path::new("/dev/late"), Duration::from_secs(10));
        let asked = |end| answer_before(end, path, limit, || Ok(Answer::Done));
        assert!(matches!(asked(Instant::now() + limit), Ok(Answer::Done)));
        assert!(matches!(asked(Instant::now()), Err(DeviceError::NoAnswer { .. })));
    }

    #[test]
    fn notes_are_for_one_key_and_one_device() {
        let name = |key, device: &str| Note::new(ReservationKey(key), Path::new(device)).0;
        assert!(name(1, "/dev/a").ends_with("registered-0x0000000000000001/%2fdev%2fa"));
        assert_ne!(name(1, "/dev/a%2fb"), name(1, "/dev/a/b"));
        assert_ne!(name(1, "/dev/a"), name(2, "/dev/a"));
    }
}
