//! What: the feeding thread: it compares and feeds, and nothing else.
//! Owns: the watchdog, from arming to the end of the process.
//! Invariants: in its loop no allocation, no lock, no disk; after it has answered that it will not feed again it never does.
//! Does not: know cycles, devices or pills.
//! Called by: the shell of the lifeline.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use deadbolt_disk::now_ns;
use deadbolt_sbd_core::{FeedVerdict, feed_verdict, reset_ms_of};

use crate::protect::{Protection, use_real_time};
use crate::watchdog::{Watchdog, WatchdogError};

/// Stack of the thread. Chosen: the loop needs a page or two; locked memory counts in full.
const STACK_BYTES: usize = 128 * 1024;

const ORDER_FEED: u32 = 0;
const ORDER_RETIRE: u32 = 1;
const ORDER_DISARM: u32 = 2;
const ORDER_RETIRE_FOR_CRASH: u32 = 3;
const ORDER_SET: u32 = 4;
const ANSWER_NONE: u32 = 0;
const ANSWER_RETIRED: u32 = 1;
const ANSWER_DISARMED: u32 = 2;
const ANSWER_SET: u32 = 3;

/// The words between the disk thread and the feeding thread. One writer each, none waits.
#[derive(Debug)]
struct Words {
    lease_end_ns: AtomicU64,
    order: AtomicU32,
    answer: AtomicU32,
    reset_ms: AtomicU32,
    wanted_ms: AtomicU32,
}

/// What the feeder has answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeederAnswer {
    /// It will not feed again; T from its last feed, ms.
    Retired {
        /// T.
        reset_ms: u32,
    },
    /// The watchdog was told to stop.
    Disarmed,
    /// The watchdog has another time.
    Set {
        /// T.
        reset_ms: u32,
    },
}

/// How to feed.
#[derive(Clone, Copy, Debug)]
pub struct FeederConfig {
    /// Time to ask of the watchdog, ms.
    pub watchdog_ms: u32,
    /// How late it may fire, ms.
    pub lateness_ms: u32,
    /// Bound of its clock's rate error.
    pub drift_ppm: u32,
    /// T that the cluster's times allow, ms.
    pub reset_ms_max: u32,
    /// Interval of the thread, ms.
    pub feed_ms: u32,
    /// Real-time scheduling, where allowed.
    pub protection: Protection,
}

/// The feeding thread, seen from the disk thread.
#[derive(Debug)]
pub struct Feeder {
    words: Arc<Words>,
    thread: JoinHandle<()>,
    reset_ms: u32,
}

impl Feeder {
    /// Arms the watchdog and starts to feed it, under no lease yet.
    ///
    /// # Errors
    /// The watchdog cannot be armed or is too slow; it does not run then. Or there is no thread to feed it.
    pub fn start(mut watchdog: Box<dyn Watchdog>, config: FeederConfig) -> Result<Self, FeederError> {
        let granted_ms = watchdog.arm(config.watchdog_ms, now_ns())?;
        let full = config.granted(granted_ms);
        let reset_ms = full.reset_ms;
        if reset_ms > config.reset_ms_max {
            watchdog.disarm()?;
            return Err(WatchdogError::TooSlow { granted_ms, reset_ms, allowed_ms: config.reset_ms_max }.into());
        }
        let words = Arc::new(Words {
            lease_end_ns: AtomicU64::new(0),
            order: AtomicU32::new(ORDER_FEED),
            answer: AtomicU32::new(ANSWER_NONE),
            reset_ms: AtomicU32::new(reset_ms),
            wanted_ms: AtomicU32::new(0),
        });
        let shared = Arc::clone(&words);
        let body = move || {
            if config.protection == Protection::RealTime {
                // Was tried at start, where a refusal is reported.
                let _ = use_real_time();
            }
            feed(watchdog.as_mut(), &shared, &config, full);
            // Kept for ever: the watchdog's descriptor must stay open until the machine is reset.
            std::mem::forget(watchdog);
        };
        let thread = std::thread::Builder::new().name("deadbolt-feed".into()).stack_size(STACK_BYTES).spawn(body);
        let thread = thread.map_err(|source| FeederError::Thread { source })?;
        Ok(Self { words, thread, reset_ms })
    }

    /// T as granted and read back, ms.
    #[must_use]
    pub fn reset_ms(&self) -> u32 {
        self.reset_ms
    }

    /// The lease under which it feeds; 0: none.
    pub fn set_lease_end(&self, lease_end_ns: u64) {
        self.words.lease_end_ns.store(lease_end_ns, Ordering::SeqCst);
    }

    /// Tells it to set the shortest time, never to feed again, and to answer. Does not wait.
    pub fn retire(&self, is_crash: bool) {
        self.words.order.store(if is_crash { ORDER_RETIRE_FOR_CRASH } else { ORDER_RETIRE }, Ordering::SeqCst);
        self.thread.thread().unpark();
    }

    /// Tells it to give the watchdog another time, once the lease has room for that. Does not wait.
    pub fn set_time(&self, watchdog_ms: u32) {
        self.words.wanted_ms.store(watchdog_ms, Ordering::SeqCst);
        // An order to retire or to disarm is never taken back.
        let _ = self.words.order.compare_exchange(ORDER_FEED, ORDER_SET, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Tells it to disarm. Does not wait.
    pub fn disarm(&self) {
        self.words.order.store(ORDER_DISARM, Ordering::SeqCst);
        self.thread.thread().unpark();
    }

    /// Its answer, once.
    #[must_use]
    pub fn poll_answer(&self) -> Option<FeederAnswer> {
        match self.words.answer.swap(ANSWER_NONE, Ordering::SeqCst) {
            ANSWER_RETIRED => Some(FeederAnswer::Retired { reset_ms: self.words.reset_ms.load(Ordering::SeqCst) }),
            ANSWER_DISARMED => Some(FeederAnswer::Disarmed),
            ANSWER_SET => Some(FeederAnswer::Set { reset_ms: self.words.reset_ms.load(Ordering::SeqCst) }),
            _ => None,
        }
    }
}

/// Why there is no feeder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeederError {
    /// The watchdog.
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    /// No thread. The watchdog runs and nobody feeds it.
    #[error("no thread to feed the watchdog: {source}; it runs and will reset this machine")]
    Thread {
        /// What the kernel said.
        source: io::Error,
    },
}

/// The time that the watchdog runs with, and the T that follows.
#[derive(Clone, Copy)]
struct Granted {
    granted_ms: u32,
    reset_ms: u32,
}

impl FeederConfig {
    fn granted(&self, granted_ms: u32) -> Granted {
        Granted { granted_ms, reset_ms: reset_ms_of(granted_ms, self.lateness_ms, self.drift_ppm) }
    }
}

/// The loop. It ends only when told, and then this thread never touches the watchdog again.
fn feed(watchdog: &mut dyn Watchdog, words: &Words, config: &FeederConfig, mut full: Granted) {
    let interval = Duration::from_millis(u64::from(config.feed_ms));
    loop {
        let order = words.order.load(Ordering::SeqCst);
        // The clock first: a stop of this thread after it only makes the verdict older, never the feed allowed.
        let now = now_ns();
        // To set a time is a feed too, so retiring goes by the same verdict, under the lease that there was.
        let is_leased = feed_verdict(now, words.lease_end_ns.load(Ordering::SeqCst), full.reset_ms) == FeedVerdict::Feed;
        match order {
            ORDER_RETIRE | ORDER_RETIRE_FOR_CRASH => {
                if is_leased && let Some(granted_ms) = watchdog.shorten(now, order == ORDER_RETIRE_FOR_CRASH) {
                    words.reset_ms.store(config.granted(granted_ms).reset_ms, Ordering::SeqCst);
                }
                words.answer.store(ANSWER_RETIRED, Ordering::SeqCst);
                return;
            }
            ORDER_DISARM => {
                if watchdog.disarm().is_ok() {
                    words.answer.store(ANSWER_DISARMED, Ordering::SeqCst);
                }
                return;
            }
            ORDER_SET if is_leased => full = set_time(watchdog, words, config, (now, full)),
            _ if is_leased => watchdog.feed(now),
            _ => {}
        }
        std::thread::park_timeout(interval);
    }
}

/// Gives the watchdog the wanted time, which is a feed that lasts for that long: so the lease must have room for it; else it is fed as
/// before, and asked again in the next turn. Answers what it has then.
fn set_time(watchdog: &mut dyn Watchdog, words: &Words, config: &FeederConfig, (now, full): (u64, Granted)) -> Granted {
    let lease_end_ns = words.lease_end_ns.load(Ordering::SeqCst);
    let has_room = |time: Granted| feed_verdict(now, lease_end_ns, time.reset_ms.max(full.reset_ms)) == FeedVerdict::Feed;
    let wanted_ms = words.wanted_ms.load(Ordering::SeqCst);
    if !has_room(config.granted(wanted_ms)) {
        watchdog.feed(now);
        return full;
    }
    let mut set = |wanted_ms| watchdog.set_time(wanted_ms).map(|granted_ms| config.granted(granted_ms));
    let time = match set(wanted_ms) {
        // A driver may grant more than it was asked for, and more than the lease has room for: back to what there was.
        Some(time) if !has_room(time) => set(full.granted_ms).unwrap_or(time),
        time => time.unwrap_or(full),
    };
    words.reset_ms.store(time.reset_ms, Ordering::SeqCst);
    words.answer.store(ANSWER_SET, Ordering::SeqCst);
    let _ = words.order.compare_exchange(ORDER_SET, ORDER_FEED, Ordering::SeqCst, Ordering::SeqCst);
    time
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Act {
        Armed,
        Fed,
        Shortened,
        Disarmed,
        Set(u32),
    }

    struct Imagined(Arc<Mutex<Vec<Act>>>, u32);

    impl Watchdog for Imagined {
        fn arm(&mut self, _wanted_ms: u32, _now_ns: u64) -> Result<u32, WatchdogError> {
            self.0.lock().unwrap().push(Act::Armed);
            Ok(self.1)
        }
        fn feed(&mut self, _now_ns: u64) {
            self.0.lock().unwrap().push(Act::Fed);
        }
        fn shorten(&mut self, _now_ns: u64, _is_crash: bool) -> Option<u32> {
            self.0.lock().unwrap().push(Act::Shortened);
            Some(10)
        }
        fn set_time(&mut self, wanted_ms: u32) -> Option<u32> {
            self.0.lock().unwrap().push(Act::Set(wanted_ms));
            // Above a minute it counts in hours.
            Some(if wanted_ms > 60_000 { wanted_ms.next_multiple_of(3_600_000) } else { wanted_ms })
        }
        fn disarm(&mut self) -> Result<(), WatchdogError> {
            self.0.lock().unwrap().push(Act::Disarmed);
            Ok(())
        }
    }

    const CONFIG: FeederConfig =
        FeederConfig { watchdog_ms: 50, lateness_ms: 0, drift_ppm: 0, reset_ms_max: 50, feed_ms: 1, protection: Protection::None };

    fn started(granted_ms: u32) -> (Result<Feeder, FeederError>, Arc<Mutex<Vec<Act>>>) {
        let acts = Arc::new(Mutex::new(Vec::new()));
        (Feeder::start(Box::new(Imagined(Arc::clone(&acts), granted_ms)), CONFIG), acts)
    }

    fn wait_for(mut is_so: impl FnMut() -> bool) {
        let end = now_ns() + 5_000_000_000;
        while !is_so() {
            assert!(now_ns() < end, "did not come about");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn feeds_under_a_lease_only_and_never_after_it_has_retired() {
        let (feeder, acts) = started(50);
        let feeder = feeder.unwrap();
        let count = |act: Act| acts.lock().unwrap().iter().filter(|found| **found == act).count();
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(count(Act::Fed), 0, "no lease, no feed");
        feeder.set_lease_end(now_ns() + 60_000_000_000);
        wait_for(|| count(Act::Fed) > 2);
        feeder.retire(false);
        let mut answer = None;
        wait_for(|| {
            answer = feeder.poll_answer();
            answer.is_some()
        });
        assert_eq!(answer, Some(FeederAnswer::Retired { reset_ms: 10 }));
        let fed = count(Act::Fed);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!((count(Act::Fed), count(Act::Shortened), count(Act::Disarmed)), (fed, 1, 0));
    }

    #[test]
    fn retiring_without_a_lease_leaves_the_time() {
        let (feeder, acts) = started(50);
        let feeder = feeder.unwrap();
        feeder.retire(false);
        wait_for(|| feeder.poll_answer() == Some(FeederAnswer::Retired { reset_ms: 50 }));
        assert_eq!(*acts.lock().unwrap(), [Act::Armed]);
    }

    #[test]
    fn a_slow_watchdog_is_disarmed_and_refused() {
        let (feeder, acts) = started(51);
        let refused = feeder.err().unwrap();
        assert!(matches!(refused, FeederError::Watchdog(WatchdogError::TooSlow { granted_ms: 51, reset_ms: 51, allowed_ms: 50 })));
        assert_eq!(*acts.lock().unwrap(), [Act::Armed, Act::Disarmed]);
    }

    #[test]
    fn another_time_is_set_only_where_the_lease_has_room_for_it() {
        let (feeder, acts) = started(50);
        let feeder = feeder.unwrap();
        feeder.set_lease_end(now_ns() + 3_000_000_000);
        feeder.set_time(7_200_000);
        let count = |act: Act| acts.lock().unwrap().iter().filter(|found| **found == act).count();
        wait_for(|| count(Act::Fed) > 2);
        assert_eq!((count(Act::Set(7_200_000)), feeder.poll_answer()), (0, None), "it is fed as before");
        feeder.set_lease_end(now_ns() + 60_000_000_000_000);
        wait_for(|| feeder.poll_answer() == Some(FeederAnswer::Set { reset_ms: 7_200_000 }));
        let fed = count(Act::Fed);
        wait_for(|| count(Act::Fed) > fed);
        feeder.set_lease_end(now_ns() + 3_000_000_000);
        std::thread::sleep(Duration::from_millis(5));
        let fed = count(Act::Fed);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(count(Act::Fed), fed, "the new time is the margin now");
    }

    #[test]
    fn a_driver_that_grants_more_than_the_lease_has_room_for_goes_back() {
        let (feeder, acts) = started(50);
        let feeder = feeder.unwrap();
        feeder.set_lease_end(now_ns() + 600_000_000_000);
        feeder.set_time(61_000);
        wait_for(|| feeder.poll_answer() == Some(FeederAnswer::Set { reset_ms: 50 }));
        let set: Vec<Act> = acts.lock().unwrap().iter().copied().filter(|act| matches!(act, Act::Set(_))).collect();
        assert_eq!(set, [Act::Set(61_000), Act::Set(50)]);
    }

    #[test]
    fn disarms_on_request() {
        let (feeder, acts) = started(50);
        let feeder = feeder.unwrap();
        feeder.disarm();
        wait_for(|| feeder.poll_answer() == Some(FeederAnswer::Disarmed));
        assert_eq!(acts.lock().unwrap().last(), Some(&Act::Disarmed));
    }
}
