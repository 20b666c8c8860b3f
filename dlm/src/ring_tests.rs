//! What: the rings under garbage, full lanes and two threads that sleep and wake each other.
//! Owns: nothing.
//! Invariants: bounded in time.
//! Does not: use sockets.
//! Called by: `cargo test`.

use super::*;
use crate::memory::{futex_wait, futex_wake};
use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

fn pair() -> (Ring, Ring) {
    let (daemon, memory) = Ring::create().unwrap();
    let client = Ring::open(memory.as_fd()).unwrap();
    (daemon, client)
}

#[test]
fn frames_come_out_as_they_went_in_over_many_rounds() {
    let (daemon, client) = pair();
    let ((mut requests, _), (_, mut taken)) = (client.client_ends(), daemon.daemon_ends());
    let mut frame = Vec::new();
    for round in 0..5000_usize {
        let sent: Vec<u8> = (0..round % (FRAME_BYTES_MAX + 1)).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        assert!(requests.push(&sent).unwrap());
        assert!(taken.take(&mut frame).unwrap());
        assert_eq!(frame, sent);
        assert!(!taken.take(&mut frame).unwrap());
        taken.release();
    }
}

#[test]
fn a_full_lane_says_so_and_loses_nothing() {
    let (daemon, client) = pair();
    let ((mut requests, _), (_, mut taken)) = (client.client_ends(), daemon.daemon_ends());
    let mut sent = 0_u32;
    while requests.push(&sent.to_le_bytes()).unwrap() {
        sent += 1;
    }
    assert_eq!(sent, LANE_WORDS / 2);
    let mut frame = Vec::new();
    assert!(taken.take(&mut frame).unwrap());
    assert!(!requests.push(&[]).unwrap(), "taken, but not released");
    taken.release();
    assert!(requests.push(&sent.to_le_bytes()).unwrap());
    for number in 1..=sent {
        assert!(taken.take(&mut frame).unwrap());
        assert_eq!(frame, number.to_le_bytes());
    }
    assert!(!taken.take(&mut frame).unwrap());
}

/// Every word of the memory, with every kind of garbage, under a daemon that has frames both ways: an error or some frames, never a panic
/// and never more frames than a lane can hold.
#[test]
fn garbage_in_any_word_is_refused_or_harmless() {
    let (daemon, memory) = Ring::create().unwrap();
    let client = Ring::open(memory.as_fd()).unwrap();
    let file = std::fs::File::from(memory.try_clone().unwrap());
    let garbage = [0, 1, 7, 4096, 4097, 0xffff, 0x7fff_ffff, 0x8000_0000, u64::from(u32::MAX), 1 << 63, u64::MAX];
    let mut refused = 0;
    // The words in use stand in the first lines of the page; then the first and last of each lane.
    let lane = u64::from(LANE_WORDS);
    let words = (0..72).chain([512, 513, 514, 512 + lane - 1, 512 + lane, 513 + lane, 512 + 2 * lane - 1]);
    for word in words {
        for value in garbage {
            let zero = vec![0; size_of::<RingRaw>()];
            std::os::unix::fs::FileExt::write_all_at(&file, &zero, 0).unwrap();
            let ((mut requests, mut replies_taken), (mut replies, mut taken)) = (client.client_ends(), daemon.daemon_ends());
            for _ in 0..3 {
                assert!(requests.push(b"a request").unwrap());
            }
            std::os::unix::fs::FileExt::write_all_at(&file, &value.to_le_bytes(), word * 8).unwrap();
            let mut frame = Vec::new();
            let mut count = 0;
            loop {
                match taken.take(&mut frame) {
                    Ok(true) => count += 1,
                    Ok(false) => break,
                    Err(_) => {
                        refused += 1;
                        break;
                    }
                }
                assert!(count <= LANE_WORDS, "a lane holds no more");
                assert!(frame.len() <= FRAME_BYTES_MAX);
            }
            taken.release();
            while matches!(replies.push(&[7; 4096]), Ok(true)) {}
            while matches!(replies_taken.take(&mut frame), Ok(true)) {}
            let _ = (daemon.rouse(Sleeper::Reader, WANTS_FRAMES), daemon.rouse(Sleeper::Bell, WANTS_FRAMES), daemon.is_client_elsewhere());
        }
    }
    assert!(refused > 10, "{refused} were refused");
}

/// The client sleeps on the word, the daemon (another thread) as well: a lost wake-up shows as a sleep of a second.
#[test]
fn no_wake_up_is_lost() {
    const LONG: Duration = Duration::from_secs(1);
    let (daemon, client) = pair();
    let end = Instant::now() + Duration::from_millis(1500);
    let sleep = |ring: &Ring, sleeper: Sleeper, is_empty: &dyn Fn() -> bool, pause: u32| {
        let began = Instant::now();
        while is_empty() {
            (0..pause).for_each(|_| std::hint::spin_loop());
            ring.arm(sleeper, WANTS_FRAMES);
            if is_empty() {
                futex_wait(ring.word(sleeper), WANTS_FRAMES, Some(LONG));
            }
            ring.disarm(sleeper);
        }
        assert!(began.elapsed() < LONG, "a wake-up was lost");
    };
    let wake = |ring: &Ring, sleeper: Sleeper| {
        if ring.rouse(sleeper, WANTS_FRAMES) {
            futex_wake(ring.word(sleeper));
        }
    };
    let rounds = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut replies, mut taken) = daemon.daemon_ends();
            let mut frame = Vec::new();
            for round in 0_u32.. {
                sleep(&daemon, Sleeper::Daemon, &|| taken.is_empty(), round % 61);
                while taken.take(&mut frame).unwrap() {
                    (0..round % 37).for_each(|_| std::hint::spin_loop());
                    assert!(replies.push(&frame).unwrap());
                    wake(&daemon, Sleeper::Reader);
                    if frame.is_empty() {
                        return;
                    }
                }
                taken.release();
            }
        });
        let (mut requests, mut taken) = client.client_ends();
        let mut frame = Vec::new();
        let mut round = 0_u32;
        loop {
            let is_over = Instant::now() > end;
            let sent = if is_over { Vec::new() } else { round.to_le_bytes().to_vec() };
            assert!(requests.push(&sent).unwrap());
            wake(&client, Sleeper::Daemon);
            sleep(&client, Sleeper::Reader, &|| client.has_no_replies(), round % 53);
            assert!(taken.take(&mut frame).unwrap());
            taken.release();
            assert_eq!(frame, sent);
            if is_over {
                return round;
            }
            round += 1;
        }
    });
    assert!(rounds > 100, "{rounds} rounds");
}

/// One side says that it sleeps and looks, the other adds and looks who sleeps, at the same moment on many rings: one of them sees the other.
#[test]
fn who_sleeps_and_who_adds_never_miss_each_other() {
    const RINGS: usize = 400;
    let rings: Vec<(Ring, Ring)> = (0..RINGS).map(|_| pair()).collect();
    let mut adding: Vec<Producer> = rings.iter().map(|(_, client)| client.client_ends().0).collect();
    let mut taking: Vec<Consumer> = rings.iter().map(|(daemon, _)| daemon.daemon_ends().1).collect();
    let end = Instant::now() + Duration::from_millis(1000);
    let mut frame = Vec::new();
    while Instant::now() < end {
        let start = std::sync::Barrier::new(2);
        let is_running = AtomicU32::new(0);
        // Both spin until both are there: then each goes through all rings at its own pace.
        let meet = || {
            start.wait();
            is_running.fetch_add(1, Ordering::SeqCst);
            while is_running.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
        };
        let (adder, sleeper) = std::thread::scope(|scope| {
            let adder = scope.spawn(|| {
                meet();
                let add = |(producer, (_, client)): (&mut Producer, &(Ring, Ring))| {
                    producer.push(&[]).unwrap();
                    client.rouse(Sleeper::Daemon, WANTS_FRAMES)
                };
                adding.iter_mut().zip(&rings).map(add).collect::<Vec<bool>>()
            });
            let sleeper = scope.spawn(|| {
                meet();
                let sleep = |(consumer, (daemon, _)): (&Consumer, &(Ring, Ring))| {
                    daemon.arm(Sleeper::Daemon, WANTS_FRAMES);
                    !consumer.is_empty()
                };
                taking.iter().zip(&rings).map(sleep).collect::<Vec<bool>>()
            });
            (adder.join().unwrap(), sleeper.join().unwrap())
        });
        for ((consumer, (daemon, _)), (was_seen, has_seen)) in taking.iter_mut().zip(&rings).zip(adder.into_iter().zip(sleeper)) {
            assert!(was_seen || has_seen, "both looked away");
            daemon.disarm(Sleeper::Daemon);
            assert!(consumer.take(&mut frame).unwrap());
            consumer.release();
        }
    }
}
