//! What: the servants of a watcher, and what they say together.
//! Owns: their starts, the spacing of new starts, one judgement per servant.
//! Invariants: all say well, or it is not well; a servant that ended says nothing.
//! Does not: judge one servant's word; sbd core's `HealthWatch` does.
//! Called by: the watcher.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use deadbolt_sbd_core::{ClusterSeen, HealthWatch, Servant, Standing};

use super::WatchError;
use crate::life::ClusterWord;
use crate::options::StockOptions;
use crate::servant::{Received, ServantHandle, ServantSetup, THIS_PROGRAM};

/// How often a servant asks.
const INTERVAL_MS: u32 = 1000;
/// A servant that ended is started again this long after its last start (compatibility: stock's interval).
const AGAIN_MS: u64 = 5000;

struct Asked {
    handle: ServantHandle,
    health: HealthWatch,
    started_ms: u64,
    has_ended: bool,
}

/// All that are asked.
pub(crate) struct Servants {
    asked: Vec<Asked>,
}

impl Servants {
    /// Starts those that the options ask for.
    pub(crate) fn start(options: &StockOptions, node: &str, (window_ms, watchdog_ms): (u32, u32), now_ms: u64) -> Result<Self, WatchError> {
        let start = |servant: Servant| {
            let setup = ServantSetup {
                servant,
                program: THIS_PROGRAM.into(),
                node: node.to_owned(),
                interval_ms: INTERVAL_MS,
                watchdog_ms,
                has_devices: !options.devices.is_empty(),
                sync_startup: options.syncs_startup,
                directory: options.deadbolt.as_ref().map(PathBuf::from),
            };
            let handle = ServantHandle::start(setup).map_err(|source| WatchError::System { call: "start of a servant", source })?;
            Ok(Asked { handle, health: HealthWatch::new(servant, window_ms), started_ms: now_ms, has_ended: false })
        };
        let asked: Result<Vec<Asked>, WatchError> = options.servants().into_iter().map(start).collect();
        Ok(Self { asked: asked? })
    }
}

impl Asked {
    fn hear(&mut self, now_ms: u64) {
        loop {
            match self.handle.read() {
                Received::Report(report) => self.health.handle_report(now_ms, &report),
                Received::Nothing => return,
                Received::Ended => break,
            }
        }
        self.has_ended = true;
        if now_ms >= self.started_ms + AGAIN_MS && self.handle.start_again().is_ok_and(|is_new| is_new) {
            (self.started_ms, self.has_ended) = (now_ms, false);
        }
    }
}

impl ClusterWord for Servants {
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.asked.iter().filter(|asked| !asked.has_ended).map(|asked| asked.handle.as_fd()).collect()
    }

    fn poll_word(&mut self, now_ms: u64) -> ClusterSeen {
        self.asked.iter_mut().for_each(|asked| asked.hear(now_ms));
        let well: Vec<u64> = self
            .asked
            .iter()
            .filter(|asked| asked.health.standing(now_ms) == Standing::Healthy)
            .filter_map(|asked| asked.health.healthy_as_of_ms())
            .collect();
        ClusterSeen {
            all_ms: (well.len() == self.asked.len()).then(|| well.iter().min().copied()).flatten(),
            any_ms: well.iter().max().copied(),
            is_shut_down: self.asked.iter().any(|asked| asked.health.standing(now_ms) == Standing::ShutDown),
            // All have to call it well: the first one that does not any more ends it.
            outlive_ms: self.asked.iter().filter_map(|asked| asked.health.outlive_ms()).min(),
        }
    }
}
