//! What: what the servants - the children that ask a cluster manager - say of this node, and what follows for its health.
//! Owns: the report's bytes, the rule by which a report makes a node healthy and for how long, the bound that follows from it.
//! Invariants: health lasts from the beginning of a judgement, never from a later moment; what cannot be a report is no news; a bound
//! that would overflow is none.
//! Does not: ask anybody; decide what an unhealthy node does.
//! Called by: the package `sbd`: the servants, and `watch`, which starts them.

/// Who is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Servant {
    /// Pacemaker: its CIB, or pacemaker-remote.
    Pacemaker,
    /// corosync: membership and quorum.
    Cluster,
    /// The local deadboltd.
    Deadbolt,
}

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opinion {
    /// This node belongs to the working cluster.
    Healthy,
    /// Connected, and the answer is no.
    Unhealthy,
    /// Connected, and there is no answer now; what was said before is good for as long as it lasts.
    Unsure,
    /// Nobody to connect to: not started yet, or died.
    Away,
    /// Shut down cleanly: nothing runs on this node any more.
    ShutDown,
}

/// Bytes of a report. A report is one message, never more and never less.
pub const REPORT_BYTES: usize = 16;
const MARK: u8 = b'S';

/// One servant's word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// What was answered.
    pub opinion: Opinion,
    /// When the question was asked, on the clock of all times here.
    pub as_of_ms: u64,
    /// How long after the others have lost this node its own cluster manager may still call it a member, ms; 0: not known.
    pub notice_ms: u32,
}

impl Report {
    /// The message: mark, opinion, two zeros, `notice_ms` and `as_of_ms` little-endian.
    #[must_use]
    pub fn encode(&self) -> [u8; REPORT_BYTES] {
        let opinion = match self.opinion {
            Opinion::Healthy => 1,
            Opinion::Unhealthy => 2,
            Opinion::Unsure => 3,
            Opinion::Away => 4,
            Opinion::ShutDown => 5,
        };
        let mut bytes = [0; REPORT_BYTES];
        bytes[0] = MARK;
        bytes[1] = opinion;
        bytes[4..8].copy_from_slice(&self.notice_ms.to_le_bytes());
        bytes[8..].copy_from_slice(&self.as_of_ms.to_le_bytes());
        bytes
    }

    /// The report in a message; nothing where there is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let &[MARK, opinion, 0, 0, ref rest @ ..] = bytes else { return None };
        let (notice, as_of) = rest.split_first_chunk::<4>()?;
        let opinion = match opinion {
            1 => Opinion::Healthy,
            2 => Opinion::Unhealthy,
            3 => Opinion::Unsure,
            4 => Opinion::Away,
            5 => Opinion::ShutDown,
            _ => return None,
        };
        Some(Self { opinion, as_of_ms: u64::from_le_bytes(as_of.try_into().ok()?), notice_ms: u32::from_le_bytes(*notice) })
    }
}

/// How a node stands with one servant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It was never called healthy, or not since a clean shutdown: its cluster manager was not started yet.
    NotYet,
    /// It is healthy.
    Healthy,
    /// It was healthy and is not any more.
    Lost,
    /// Its cluster manager was shut down cleanly.
    ShutDown,
}

/// What one servant has said, and what is left of it.
#[derive(Clone, Debug)]
pub struct HealthWatch {
    servant: Servant,
    window_ms: u32,
    /// The beginning of the judgement that found the node healthy, while nothing has revoked it.
    healthy_ms: Option<u64>,
    /// When the last question was asked that was answered.
    asked_ms: u64,
    notice_ms: u32,
    /// How it stands when it is not healthy.
    otherwise: Standing,
}

impl HealthWatch {
    /// Health lasts for less than `window_ms`: stock's I/O timeout and loop timeout together.
    #[must_use]
    pub fn new(servant: Servant, window_ms: u32) -> Self {
        Self { servant, window_ms, healthy_ms: None, asked_ms: 0, notice_ms: 0, otherwise: Standing::NotYet }
    }

    /// Who is asked.
    #[must_use]
    pub fn servant(&self) -> Servant {
        self.servant
    }

    /// Takes in a report that arrived at `now_ms`.
    pub fn handle_report(&mut self, now_ms: u64, report: &Report) {
        // The caller's clock may have been read a moment before the child's; an older question than the last is out of date.
        let as_of_ms = report.as_of_ms.min(now_ms);
        if as_of_ms < self.asked_ms {
            return;
        }
        self.asked_ms = as_of_ms;
        match report.opinion {
            Opinion::Healthy => {
                self.healthy_ms = Some(as_of_ms);
                self.notice_ms = report.notice_ms;
                self.otherwise = Standing::Lost;
            }
            Opinion::Unsure => {}
            // Pacemaker's daemons are started anew while the cluster goes on; a node whose corosync has died is out of the cluster.
            Opinion::Away if self.servant == Servant::Pacemaker => {}
            Opinion::Unhealthy | Opinion::Away => self.healthy_ms = None,
            Opinion::ShutDown => {
                self.healthy_ms = None;
                self.otherwise = Standing::ShutDown;
            }
        }
    }

    /// How it stands now.
    #[must_use]
    pub fn standing(&self, now_ms: u64) -> Standing {
        if self.healthy_until_ms().is_some_and(|until_ms| now_ms < until_ms) { Standing::Healthy } else { self.otherwise }
    }

    /// The last moment at which the node is known to have been healthy, unless that was revoked.
    #[must_use]
    pub fn healthy_as_of_ms(&self) -> Option<u64> {
        self.healthy_ms
    }

    /// When health ends unless another report renews it; it is over at this moment itself.
    #[must_use]
    pub fn healthy_until_ms(&self) -> Option<u64> {
        self.healthy_ms?.checked_add(u64::from(self.window_ms))
    }

    /// The longest time for which the node is still called healthy after the others have lost it, ms. None: nothing bounds it.
    ///
    /// After `notice_ms` its own cluster manager knows; from then on no judgement is begun that ends with *healthy*, and the last
    /// one before lasts for the window.
    #[must_use]
    pub fn outlive_ms(&self) -> Option<u32> {
        let notice_ms = Some(self.notice_ms).filter(|notice_ms| *notice_ms > 0)?;
        notice_ms.checked_add(self.window_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Opinion::{Away, Healthy, ShutDown, Unhealthy, Unsure};
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    fn report(opinion: Opinion, as_of_ms: u64) -> Report {
        Report { opinion, as_of_ms, notice_ms: 700 }
    }

    /// Reports as (arrival, opinion, as of), then looks as (moment, standing).
    type Case = (&'static str, Servant, &'static [(u64, Opinion, u64)], &'static [(u64, Standing)]);

    #[test]
    fn standing_table() {
        use Servant::{Cluster, Deadbolt, Pacemaker};
        let table: &[Case] = &[
            ("nothing said", Pacemaker, &[], &[(0, Standing::NotYet), (9999, Standing::NotYet)]),
            ("not started", Cluster, &[(0, Away, 0), (1000, Away, 1000)], &[(1000, Standing::NotYet)]),
            ("no before the first yes", Pacemaker, &[(0, Unhealthy, 0)], &[(0, Standing::NotYet)]),
            ("younger than the window", Pacemaker, &[(100, Healthy, 100)], &[(4099, Standing::Healthy), (4100, Standing::Lost)]),
            ("from the question on", Pacemaker, &[(1100, Healthy, 100)], &[(4099, Standing::Healthy), (4100, Standing::Lost)]),
            ("stale when it arrives", Pacemaker, &[(4100, Healthy, 100)], &[(4100, Standing::Lost)]),
            ("an older question takes nothing back", Cluster, &[(500, Healthy, 500), (600, Healthy, 100)], &[(4499, Standing::Healthy)]),
            ("nor gives it back", Cluster, &[(500, Unhealthy, 500), (600, Healthy, 499)], &[(600, Standing::NotYet)]),
            ("dated ahead", Cluster, &[(100, Healthy, 9999)], &[(4099, Standing::Healthy), (4100, Standing::Lost)]),
            ("no, dated ahead", Cluster, &[(100, Healthy, 100), (100, Unhealthy, 101)], &[(100, Standing::Lost)]),
            ("no is at once", Cluster, &[(100, Healthy, 100), (200, Unhealthy, 150)], &[(200, Standing::Lost)]),
            ("and yes again", Cluster, &[(100, Healthy, 100), (200, Unhealthy, 150), (300, Healthy, 250)], &[(300, Standing::Healthy)]),
            (
                "unsure lets it age",
                Cluster,
                &[(100, Healthy, 100), (4000, Unsure, 4000)],
                &[(4099, Standing::Healthy), (4100, Standing::Lost)],
            ),
            (
                "so does Pacemaker away",
                Pacemaker,
                &[(100, Healthy, 100), (200, Away, 200)],
                &[(4099, Standing::Healthy), (4100, Standing::Lost)],
            ),
            ("but not corosync", Cluster, &[(100, Healthy, 100), (200, Away, 200)], &[(200, Standing::Lost)]),
            ("nor deadboltd", Deadbolt, &[(100, Healthy, 100), (200, Away, 200)], &[(200, Standing::Lost)]),
            (
                "shut down",
                Pacemaker,
                &[(100, Healthy, 100), (200, ShutDown, 200), (300, Away, 300)],
                &[(200, Standing::ShutDown), (9999, Standing::ShutDown)],
            ),
            (
                "and joining again",
                Pacemaker,
                &[(100, Healthy, 100), (200, ShutDown, 200), (300, Unhealthy, 300)],
                &[(300, Standing::ShutDown)],
            ),
            (
                "and up again",
                Pacemaker,
                &[(100, Healthy, 100), (200, ShutDown, 200), (300, Healthy, 300), (400, Unhealthy, 400)],
                &[(400, Standing::Lost)],
            ),
        ];
        for (name, servant, reports, looks) in table {
            let mut watch = HealthWatch::new(*servant, 4000);
            for (now_ms, opinion, as_of_ms) in *reports {
                watch.handle_report(*now_ms, &report(*opinion, *as_of_ms));
            }
            for (now_ms, standing) in *looks {
                assert_eq!(watch.standing(*now_ms), *standing, "{name}, at {now_ms}");
            }
        }
    }

    #[test]
    fn the_bound_is_what_the_cluster_needs_and_the_window() {
        for (notice_ms, window_ms, expected) in [(0, 4000, None), (6600, 4000, Some(10_600)), (1, u32::MAX, None)] {
            let mut watch = HealthWatch::new(Servant::Cluster, window_ms);
            assert_eq!(watch.outlive_ms(), None, "nothing was said");
            watch.handle_report(5, &Report { opinion: Healthy, as_of_ms: 5, notice_ms });
            assert_eq!(watch.outlive_ms(), expected);
        }
    }

    #[test]
    fn what_is_no_report_is_no_news() {
        let good = report(Healthy, 77).encode();
        assert_eq!(Report::decode(&good), Some(report(Healthy, 77)));
        let changed = |index: usize, byte: u8| -> Vec<u8> {
            let mut bytes = good;
            bytes[index] = byte;
            bytes.to_vec()
        };
        for bad in [
            vec![],
            good[..15].to_vec(),
            [&good[..], &[0]].concat(),
            changed(0, 0),
            changed(1, 0),
            changed(1, 6),
            changed(2, 1),
            changed(3, 1),
        ] {
            assert_eq!(Report::decode(&bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn reports_come_back(which in 0usize..5, as_of_ms in any::<u64>(), notice_ms in any::<u32>()) {
            let report = Report { opinion: [Healthy, Unhealthy, Unsure, Away, ShutDown][which], as_of_ms, notice_ms };
            prop_assert_eq!(Report::decode(&report.encode()), Some(report));
        }

        #[test]
        fn nobody_is_healthy_beyond_the_window(reports in proptest::collection::vec((0u64..5000, 0usize..5, 0u64..5000), 0..20), window_ms in 1u32..2000) {
            let mut watch = HealthWatch::new(Servant::Pacemaker, window_ms);
            let mut newest_ms = None;
            for (now_ms, which, as_of_ms) in reports {
                let opinion = [Healthy, Unhealthy, Unsure, Away, ShutDown][which];
                watch.handle_report(now_ms, &report(opinion, as_of_ms));
                if opinion == Healthy {
                    newest_ms = newest_ms.max(Some(as_of_ms.min(now_ms)));
                }
            }
            let until_ms = newest_ms.map_or(0, |as_of_ms| as_of_ms + u64::from(window_ms));
            prop_assert_ne!(watch.standing(until_ms), Standing::Healthy);
        }
    }
}
