//! What: what proves a death, and what does not.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: touch a device.
//! Called by: `cargo test`.

use super::*;
use alloc::boxed::Box;
use deadbolt_disk_format::{Acknowledgement, DaemonPart, SlotIndex};

const BOOT: BootId = BootId([1; 16]);
const CONFIG: FencerConfig = FencerConfig {
    devices: 1,
    storage_delay_ms: 500,
    drift_ppm: 10_000,
    msgwait_ms: Some(10_000),
    may_be_stock: true,
    lost_ms: None,
    stand_ms: 4000,
};
/// D on the sender's clock.
const DELAY_MS: u64 = 515;

fn beat(number: u64) -> Beat {
    Beat {
        slot: SlotIndex(1),
        boot: BOOT,
        writer: Incarnation([2; 16]),
        beat: number,
        lease_ms: 4000,
        reset_ms: 1000,
        rule: Rule::Disk,
        watchdog: WatchdogKind::Device,
        is_stopped: false,
        is_idle: false,
        acknowledged: None,
        wall_ms: 0,
        boottime_ms: 0,
        outlive_ms: 0,
        daemon: DaemonPart::default(),
    }
}

fn read(device: usize, at_ms: u64, beat: Option<Beat>) -> VictimRead {
    let place = beat.map_or(OwnPlace::NeverWritten, |beat| OwnPlace::Beat(Box::new(beat)));
    VictimRead { device, issued_ms: at_ms, ended_ms: at_ms + 1, place, is_current: true, is_signed: true }
}

/// The message was written at 100 on every device, and the place was read before that.
fn fencer(config: FencerConfig, first: Option<Beat>) -> Fencer {
    let mut fencer = Fencer::new(config);
    for device in 0..config.devices {
        fencer.handle_read(&VictimRead { is_current: false, ..read(device, 10, first.clone()) }, None);
        fencer.handle_written(device, 100);
    }
    fencer
}

fn due(fencer: &Fencer) -> Option<(u64, Proof)> {
    match fencer.judge(0) {
        FenceVerdict::Wait(due) => due,
        FenceVerdict::Gone(proof) => Some((0, proof)),
    }
}

#[test]
fn a_node_that_is_not_ours_is_dead_by_the_times_of_the_area() {
    let mut fencer = fencer(CONFIG, None);
    fencer.handle_read(&read(0, 4099, None), None);
    assert_eq!(fencer.judge(10_100), FenceVerdict::Wait(Some((10_100, Proof::Msgwait))), "it may have been wiped before it was read");
    fencer.handle_read(&read(0, 4100, None), None);
    assert_eq!(fencer.judge(10_099), FenceVerdict::Wait(Some((10_100, Proof::Msgwait))));
    assert_eq!(fencer.judge(10_100), FenceVerdict::Gone(Proof::Msgwait));
    let unsafe_times = self::fencer(FencerConfig { msgwait_ms: None, ..CONFIG }, None);
    assert_eq!(unsafe_times.judge(1_000_000), FenceVerdict::Wait(None));
}

#[test]
fn a_message_on_one_of_two_devices_proves_nothing() {
    let mut fencer = Fencer::new(FencerConfig { devices: 2, ..CONFIG });
    fencer.handle_read(&read(0, 10, Some(beat(1))), None);
    fencer.handle_written(0, 100);
    for device in [0, 1] {
        fencer.handle_read(&read(device, 900_000, Some(beat(1))), None);
    }
    assert_eq!(fencer.judge(1_000_000), FenceVerdict::Wait(None));
}

#[test]
fn an_answer_counts_after_its_own_t_and_d() {
    let mut fencer = fencer(CONFIG, Some(beat(1)));
    let answer = Beat { acknowledged: Some(Acknowledgement { reset_ms: 700, command: 2 }), ..beat(2) };
    fencer.handle_read(&read(0, 199, Some(answer.clone())), None);
    assert_eq!(due(&fencer), Some((200 + 1222, Proof::Acknowledged)));
    assert_eq!(fencer.judge(1422), FenceVerdict::Gone(Proof::Acknowledged));
    let mut unguarded = self::fencer(CONFIG, Some(Beat { watchdog: WatchdogKind::None, ..beat(1) }));
    unguarded.handle_read(&read(0, 199, Some(Beat { watchdog: WatchdogKind::None, ..answer })), None);
    assert_eq!(due(&unguarded), Some((10_100, Proof::Msgwait)), "nothing but itself ends it");
}

#[test]
fn silence_counts_from_what_was_seen_first_and_needs_a_read_after_the_wait() {
    let wait_ms = expiry_ms(4000, 10_000) + DELAY_MS;
    let mut fencer = fencer(CONFIG, Some(beat(1)));
    assert_eq!(due(&fencer), Some((11 + wait_ms, Proof::Expired)));
    fencer.handle_read(&read(0, 11 + wait_ms - 1, Some(beat(1))), None);
    assert!(matches!(fencer.judge(1_000_000), FenceVerdict::Wait(_)), "issued too early");
    fencer.handle_read(&VictimRead { is_current: false, ..read(0, 20_000, Some(beat(1))) }, None);
    assert!(matches!(fencer.judge(1_000_000), FenceVerdict::Wait(_)), "a stale path");
    fencer.handle_read(&read(0, 20_000, None), None);
    assert!(matches!(fencer.judge(1_000_000), FenceVerdict::Wait(_)), "no news is no silence");
    fencer.handle_read(&read(0, 11 + wait_ms, Some(beat(1))), None);
    assert_eq!(fencer.judge(11 + wait_ms), FenceVerdict::Gone(Proof::Expired));
    fencer.handle_read(&read(0, 30_000, Some(beat(2))), None);
    assert_eq!(due(&fencer), Some((30_001 + wait_ms, Proof::Expired)), "it lives");
}

#[test]
fn what_this_machine_saw_earlier_shortens_the_wait() {
    let wait_ms = expiry_ms(4000, 10_000) + DELAY_MS;
    let known = Some((BeatVersion::of(&beat(7)), 1000));
    for (number, changed_ms) in [(7, 1000), (8, 50_001)] {
        let mut fencer = Fencer::new(CONFIG);
        fencer.handle_read(&read(0, 50_000, Some(beat(number))), known);
        fencer.handle_written(0, 50_010);
        fencer.handle_read(&read(0, 50_020, Some(beat(number))), known);
        let verdict = fencer.judge(50_030);
        assert_eq!(verdict == FenceVerdict::Gone(Proof::Expired), 50_020 >= changed_ms + wait_ms, "{number}: {verdict:?}");
    }
}

#[test]
fn of_two_devices_both_and_of_three_two_have_to_show_silence() {
    let wait_ms = expiry_ms(4000, 10_000) + DELAY_MS;
    for (devices, shown, is_gone) in [(2, 1, false), (2, 2, true), (3, 1, false), (3, 2, true)] {
        let mut fencer = fencer(FencerConfig { devices, ..CONFIG }, Some(beat(1)));
        for device in 0..shown {
            fencer.handle_read(&read(device, 20 + wait_ms, Some(beat(1))), None);
        }
        assert_eq!(fencer.judge(1_000_000) == FenceVerdict::Gone(Proof::Expired), is_gone, "{shown} of {devices}");
    }
}

#[test]
fn another_boot_counts_after_d_unless_it_is_an_older_one() {
    for (number, expected) in [(9, Some((200 + DELAY_MS, Proof::Rebooted))), (4, None)] {
        let mut fencer = fencer(FencerConfig { msgwait_ms: None, ..CONFIG }, Some(Beat { rule: Rule::Cluster, ..beat(5) }));
        fencer.handle_read(&read(0, 150, Some(Beat { rule: Rule::Cluster, ..beat(5) })), None);
        fencer.handle_read(&read(0, 199, Some(Beat { boot: BootId([9; 16]), ..beat(number) })), None);
        assert_eq!(due(&fencer), expected, "{number}");
    }
}

#[test]
fn a_boot_that_was_there_before_the_message_is_none_that_came_after_it() {
    let old = Beat { boot: OLD, acknowledged: Some(Acknowledgement { reset_ms: 700, command: 2 }), ..beat(5) };
    // The first look went through a path that showed what stood there once.
    let mut fencer = fencer(FencerConfig { msgwait_ms: None, ..CONFIG }, Some(old.clone()));
    assert_eq!(due(&fencer).map(|(_, proof)| proof), Some(Proof::Expired), "its answer counts when it stands beside the message");
    let mut answered = fencer.clone();
    answered.handle_read(&read(0, 150, Some(old)), None);
    assert_eq!(due(&answered).map(|(_, proof)| proof), Some(Proof::Acknowledged));
    fencer.handle_read(&read(0, 199, Some(beat(90))), None);
    assert_eq!(due(&fencer), Some((200 + expiry_ms(4000, 10_000) + DELAY_MS, Proof::Expired)), "the one that lives is judged");
    fencer.handle_read(&read(0, 249, Some(beat(91))), None);
    assert_eq!(due(&fencer), Some((250 + expiry_ms(4000, 10_000) + DELAY_MS, Proof::Expired)));
}

#[test]
fn a_device_that_lags_does_not_bring_a_life_back_that_has_stopped() {
    let stopped = Some(Beat { is_stopped: true, ..beat(9) });
    for looks in [[stopped.clone(), Some(beat(8))], [Some(beat(8)), stopped.clone()]] {
        let mut fencer = looked(CONFIG, &looks);
        for (device, look) in looks.iter().enumerate() {
            fencer.handle_read(&read(device, 9000, look.clone()), None);
        }
        assert_eq!(fencer.judge(10_099), FenceVerdict::Wait(Some((10_100, Proof::Msgwait))), "the stock program may live there since");
    }
}

#[test]
fn silence_of_a_node_that_its_cluster_keeps_alive_proves_nothing() {
    let alive = Beat { rule: Rule::Cluster, outlive_ms: 7000, ..beat(1) };
    let fencer = fencer(CONFIG, Some(alive.clone()));
    assert_eq!(due(&fencer), None);
    let lost = self::fencer(FencerConfig { lost_ms: Some(50), ..CONFIG }, Some(alive.clone()));
    assert_eq!(due(&lost), Some((10_100, Proof::ClusterLost)), "never shorter than stock");
    let mut late = self::fencer(FencerConfig { lost_ms: Some(9000), ..CONFIG }, Some(alive.clone()));
    assert_eq!(late.judge(20_000), FenceVerdict::Wait(Some((9000 + 7585, Proof::ClusterLost))), "another life may stand there");
    late.handle_read(&read(0, 200, Some(alive.clone())), None);
    assert_eq!(late.judge(9000 + 7585), FenceVerdict::Gone(Proof::ClusterLost));
    let long = self::fencer(FencerConfig { lost_ms: Some(50), ..CONFIG }, Some(Beat { lease_ms: 16_000, ..alive.clone() }));
    assert_eq!(due(&long), Some((100 + expiry_ms(16_000, 10_000) + DELAY_MS, Proof::ClusterLost)), "its disk may have kept it alive");
    let unpublished = self::fencer(FencerConfig { lost_ms: Some(50), ..CONFIG }, Some(Beat { outlive_ms: 0, ..alive }));
    assert_eq!(due(&unpublished), None);
}

#[test]
fn a_node_that_stopped_is_gone_at_once_only_where_no_stock_program_can_live() {
    let stopped = Beat { is_stopped: true, ..beat(1) };
    assert_eq!(due(&fencer(CONFIG, Some(stopped.clone()))), Some((10_100, Proof::Msgwait)));
    let mut ours = fencer(FencerConfig { may_be_stock: false, ..CONFIG }, Some(stopped.clone()));
    assert_eq!(ours.judge(100), FenceVerdict::Wait(Some((100, Proof::Left))), "it may have been started again before the message");
    ours.handle_read(&read(0, 100, Some(stopped.clone())), None);
    assert_eq!(ours.judge(101), FenceVerdict::Gone(Proof::Left));
    ours.handle_read(&read(0, 200, Some(Beat { writer: Incarnation([3; 16]), ..beat(2) })), None);
    assert_eq!(due(&ours), Some((201 + expiry_ms(4000, 10_000) + DELAY_MS, Proof::Expired)));
}

const OLD: BootId = BootId([9; 16]);

/// The first looks at each device, then the message everywhere at 100.
fn looked(config: FencerConfig, looks: &[Option<Beat>]) -> Fencer {
    let config = FencerConfig { devices: looks.len(), ..config };
    let mut fencer = Fencer::new(config);
    for (device, look) in looks.iter().enumerate() {
        fencer.handle_read(&VictimRead { is_current: false, ..read(device, 10, look.clone()) }, None);
    }
    (0..looks.len()).for_each(|device| fencer.handle_written(device, 100));
    fencer
}

#[test]
fn a_device_that_was_lost_and_shows_an_old_life_proves_nothing() {
    let answer = Some(Acknowledgement { reset_ms: 700, command: 2 });
    for acknowledged in [None, answer] {
        let old = Some(Beat { boot: OLD, acknowledged, ..beat(5) });
        for looks in [[old.clone(), Some(beat(90)), Some(beat(90))], [Some(beat(90)), old.clone(), Some(beat(90))]] {
            let mut fencer = looked(CONFIG, &looks);
            assert_eq!(fencer.victim().map(|beat| beat.boot), Some(BOOT));
            for (device, look) in looks.iter().enumerate() {
                assert_eq!(fencer.boot_on(device), look.as_ref().map(|beat| beat.boot), "who reads there is named");
                fencer.handle_read(&read(device, 2000, look.clone()), None);
            }
            assert_eq!(due(&fencer), Some((11 + expiry_ms(4000, 10_000) + DELAY_MS, Proof::Expired)), "it lives, and neither is gone");
            let lives = looks.iter().position(|look| look.as_ref().is_some_and(|beat| beat.boot == BOOT)).unwrap();
            fencer.handle_read(&read(lives, 3000, Some(Beat { acknowledged: answer, ..beat(91) })), None);
            assert_eq!(fencer.judge(3001 + 1222), FenceVerdict::Gone(Proof::Acknowledged), "its own answer counts");
        }
    }
}

#[test]
fn a_life_that_stopped_hides_no_later_one_of_the_same_boot() {
    let stopped = Some(Beat { is_stopped: true, ..beat(9) });
    let later = Some(Beat { writer: Incarnation([3; 16]), rule: Rule::Cluster, ..beat(7) });
    for looks in [[stopped.clone(), later.clone()], [later.clone(), stopped.clone()]] {
        for may_be_stock in [false, true] {
            let mut fencer = looked(FencerConfig { may_be_stock, ..CONFIG }, &looks);
            for (device, look) in looks.iter().enumerate() {
                fencer.handle_read(&read(device, 90_000, look.clone()), None);
            }
            assert_eq!(fencer.judge(100_000), FenceVerdict::Wait(None));
        }
    }
}

#[test]
fn a_device_on_which_nobody_ever_lived_is_silent() {
    let wait_ms = expiry_ms(4000, 10_000) + DELAY_MS;
    for (is_current, expected) in
        [(true, FenceVerdict::Gone(Proof::Expired)), (false, FenceVerdict::Wait(Some((11 + wait_ms, Proof::Expired))))]
    {
        let mut fencer = looked(CONFIG, &[Some(beat(1)), None]);
        fencer.handle_read(&read(0, 11 + wait_ms, Some(beat(1))), None);
        fencer.handle_read(&VictimRead { is_current, ..read(1, 11 + wait_ms, None) }, None);
        assert_eq!(fencer.judge(20_000), expected);
    }
}

#[test]
fn a_record_that_cannot_be_read_is_not_one_that_is_missing() {
    let mut fencer = looked(CONFIG, &[None]);
    fencer.handle_read(&VictimRead { place: OwnPlace::Unreadable, ..read(0, 9000, None) }, None);
    assert_eq!(fencer.judge(1_000_000), FenceVerdict::Wait(None));
    fencer.handle_read(&read(0, 9100, None), None);
    assert_eq!(fencer.judge(1_000_000), FenceVerdict::Gone(Proof::Msgwait));
}

#[test]
fn one_without_a_watchdog_that_goes_on_beating_lives() {
    let wait_ms = expiry_ms(4000, 10_000) + DELAY_MS;
    let alone = |number| Some(Beat { watchdog: WatchdogKind::None, lease_ms: 4000, ..beat(number) });
    let mut fencer = looked(CONFIG, &[alone(1)]);
    fencer.handle_read(&read(0, 5000, alone(1)), None);
    assert_eq!(fencer.judge(10_100), FenceVerdict::Gone(Proof::Msgwait));
    fencer.handle_read(&read(0, 9000, alone(2)), None);
    assert_eq!(due(&fencer), Some((9001 + wait_ms, Proof::Msgwait)));
}

#[test]
fn a_cluster_that_finds_its_node_again_takes_its_word_back() {
    let alive = Beat { rule: Rule::Cluster, outlive_ms: 7000, ..beat(1) };
    let mut fencer = fencer(CONFIG, Some(alive));
    for word in [None, Some(9000), Some(9000), Some(10_000), None, Some(12_000)] {
        fencer.handle_lost(word);
        let due = due(&fencer).map(|(due_ms, _)| due_ms);
        assert_eq!(due, word.map(|lost_ms: u64| lost_ms + 7585), "{word:?}");
    }
}

/// One device, a record there from before; what stands beside it was written by somebody else.
fn unsigned(config: FencerConfig, first: &Beat, until_ms: &[u64]) -> Fencer {
    let mut fencer = Fencer::new(config);
    let look = |at_ms| VictimRead { is_signed: false, ..read(0, at_ms, Some(first.clone())) };
    let known = Some((BeatVersion::of(first), 0));
    fencer.handle_read(&VictimRead { is_current: false, ..look(1_000_000) }, known);
    fencer.handle_written(0, 1_000_100);
    until_ms.iter().for_each(|at_ms| fencer.handle_read(&look(*at_ms), None));
    fencer
}

#[test]
fn an_old_record_beside_a_mailbox_of_somebody_else_is_no_word_about_who_lives_there() {
    let due = (1_010_100, Proof::Msgwait);
    let answered = Beat { acknowledged: Some(Acknowledgement { reset_ms: 700, command: 2 }), ..beat(1) };
    for record in [beat(1), answered.clone(), Beat { rule: Rule::Cluster, outlive_ms: 7000, ..answered.clone() }] {
        let early = unsigned(CONFIG, &record, &[1_000_200, 1_005_000]);
        assert_eq!(early.judge(1_010_100), FenceVerdict::Wait(Some(due)), "silent until then: {record:?}");
        let late = unsigned(CONFIG, &record, &[1_000_200, 1_005_000, 1_010_100]);
        assert_eq!((late.judge(1_010_099), late.judge(1_010_100)), (FenceVerdict::Wait(Some(due)), FenceVerdict::Gone(Proof::Msgwait)));
        let unsafe_times = unsigned(FencerConfig { msgwait_ms: None, ..CONFIG }, &record, &[1_000_200, 1_020_000]);
        assert_eq!(unsafe_times.judge(1_020_000), FenceVerdict::Wait(None), "{record:?}");
        let ours = unsigned(FencerConfig { may_be_stock: false, ..CONFIG }, &record, &[1_000_200, 1_002_000]);
        assert!(matches!(ours.judge(1_020_000), FenceVerdict::Gone(_)), "{record:?}");
    }
    // A sign of life under our eyes shows whose the record is.
    let mut alive = unsigned(CONFIG, &beat(1), &[1_000_200]);
    alive.handle_read(&VictimRead { is_signed: false, ..read(0, 1_000_300, Some(Beat { beat: 2, ..answered })) }, None);
    assert_eq!(self::due(&alive).map(|(_, proof)| proof), Some(Proof::Acknowledged));
    // One that its cluster may keep alive has not answered: nothing bounds it.
    let kept = unsigned(CONFIG, &Beat { rule: Rule::Cluster, ..beat(1) }, &[1_000_200, 1_030_000]);
    assert_eq!(kept.judge(1_040_000), FenceVerdict::Wait(None));
}

#[test]
fn who_writes_into_the_mailbox_during_a_fence_may_be_stock_at_its_start() {
    let mut fencer = fencer(CONFIG, Some(beat(1)));
    assert_eq!(due(&fencer).map(|(_, proof)| proof), Some(Proof::Expired));
    fencer.handle_read(&VictimRead { is_signed: false, is_current: false, ..read(0, 150, Some(beat(1))) }, None);
    fencer.handle_read(&read(0, 200, Some(beat(1))), None);
    assert_eq!(due(&fencer), Some((10_100, Proof::Msgwait)));
}
