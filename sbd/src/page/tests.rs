//! What: words, bells and descriptors of the page, between two mappings of it.
//! Owns: nothing.
//! Invariants: none of its own.
//! Does not: start sbd.
//! Called by: `cargo test`.

use super::*;
use deadbolt_disk_format::{BootId, Incarnation};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::BorrowedFd;

fn is_ringing(bell: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(bell, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn words_cross_between_two_mappings() {
    let (page, descriptors) = Page::create().unwrap();
    let other = Page::map(&descriptors).unwrap();
    let (sbd, daemon, supervisor) = (page.sbd(), other.daemon(), other.supervisor());
    assert_eq!((daemon.sbd_state(), daemon.lease_end_ns(), daemon.published_number()), (SbdState::None, 0, 0));
    sbd.start(BootId([7; 16]), Incarnation([9; 16]), 2500);
    sbd.publish_cycle((77, 66), 5, 3, 1200);
    assert_eq!((daemon.boot(), daemon.writer(), daemon.reset_ms()), (BootId([7; 16]), Incarnation([9; 16]), 2500));
    assert_eq!((daemon.lease_end_ns(), daemon.own_end_ns()), (77, 66));
    assert_eq!((daemon.published_number(), daemon.beat(), daemon.cycle_us()), (5, 3, 1200));
    assert_eq!(supervisor.sbd_process_number(), std::process::id());
    sbd.set_state(SbdState::Condemned);
    sbd.end_lease();
    assert_eq!((supervisor.sbd_state(), supervisor.lease_end_ns()), (SbdState::Condemned, 0));
    assert_eq!(supervisor.acknowledged_reset_ms(), None);
    sbd.set_acknowledged(1200);
    assert_eq!(supervisor.acknowledged_reset_ms(), Some(1200));
}

#[test]
fn daemon_words_reach_sbd() {
    let (page, _descriptors) = Page::create().unwrap();
    let (sbd, daemon, supervisor) = (page.sbd(), page.daemon(), page.supervisor());
    assert_eq!(sbd.daemon_words(), DaemonWords::default());
    assert_eq!(supervisor.daemon_starts(), 1);
    daemon.set_holds(true);
    daemon.advance_turn();
    daemon.poll_fast_until(900);
    daemon.poll_fast_until(800);
    daemon.extend(40, 90);
    daemon.request_stop();
    supervisor.advance_alive(55);
    supervisor.daemon_ended(1);
    let expected = DaemonWords {
        turn: 1,
        holds: true,
        fast_poll_until_ns: 900,
        is_stop_requested: true,
        generation: 1,
        ended: 1,
        supervisor_alive_ns: 55,
        vouched_until_ns: 40,
        frozen_until_ns: 90,
    };
    assert_eq!(sbd.daemon_words(), expected);
    assert!(supervisor.holds());
    sbd.set_idle_generation(1);
    assert_eq!((supervisor.idle_generation(), supervisor.daemon_starts()), (1, 2));
}

#[test]
fn feeding_words_reach_the_supervisor_and_the_first_reset_stands() {
    let (page, _descriptors) = Page::create().unwrap();
    let (feed, supervisor) = (page.feed(), page.supervisor());
    assert_eq!((supervisor.fed_until_ns(), supervisor.reset_request()), (None, None));
    feed.set_watchdog_ms(2000);
    feed.feed_until(5);
    assert_eq!((supervisor.fed_until_ns(), supervisor.watchdog_ms()), (Some(5), 2000));
    feed.disarm();
    assert_eq!(supervisor.fed_until_ns(), None);
    feed.request_reset(ResetRequest::Off);
    feed.request_reset(ResetRequest::OwnReason);
    assert_eq!(supervisor.reset_request(), Some(ResetRequest::Off));
}

#[test]
fn the_supervisor_hears_at_once_of_what_is_sooner_than_it_knew() {
    let (page, _descriptors) = Page::create().unwrap();
    let (feed, supervisor) = (page.feed(), page.supervisor());
    feed.feed_until(9);
    assert!(!is_ringing(supervisor.ended_event()), "a feed is no news");
    for act in [|feed: &FeedSide| feed.set_until(5), |feed: &FeedSide| feed.request_reset(ResetRequest::Reset)] {
        act(&feed);
        assert!(is_ringing(supervisor.ended_event()));
        supervisor.clear_ended();
        assert!(!is_ringing(supervisor.ended_event()));
    }
}

#[test]
fn bells_ring_and_are_hushed() {
    let (page, _descriptors) = Page::create().unwrap();
    let (sbd, daemon) = (page.sbd(), page.daemon());
    assert!(!is_ringing(sbd.wake_event()) && !is_ringing(daemon.published_event()));
    daemon.wake();
    daemon.wake();
    sbd.publish_cycle((1, 1), 1, 1, 1);
    assert!(is_ringing(sbd.wake_event()) && is_ringing(daemon.published_event()));
    sbd.clear_wake();
    daemon.clear_published();
    assert!(!is_ringing(sbd.wake_event()) && !is_ringing(daemon.published_event()));
}

#[test]
fn a_part_is_never_torn_and_a_stopped_writer_blocks_nobody() {
    let (page, _descriptors) = Page::create().unwrap();
    let sbd = page.sbd();
    let mut part = [0; DAEMON_PART_BYTES];
    assert_eq!(sbd.copy_part(&mut part), None);
    let mut daemon = page.daemon();
    daemon.publish_bytes(1, &[1; DAEMON_PART_BYTES]);
    // A writer that stops in the middle of number 2 has only touched the other buffer.
    page.raw().daemon.buffers[0].words[3].store(u64::MAX, Ordering::Relaxed);
    assert_eq!((sbd.copy_part(&mut part), part), (Some(1), [1; DAEMON_PART_BYTES]));
    let writer = std::thread::spawn(move || {
        for number in 2..=60_000u64 {
            daemon.publish_bytes(number, &[u8::try_from(number % 251).unwrap(); DAEMON_PART_BYTES]);
        }
    });
    let mut newest = 1;
    while newest < 60_000 {
        if let Some(number) = sbd.copy_part(&mut part) {
            assert!(number >= newest);
            assert_eq!(part, [u8::try_from(number % 251).unwrap(); DAEMON_PART_BYTES], "number {number}");
            newest = number;
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_child_inherits_the_page_only_when_told() {
    let (page, descriptors) = Page::create().unwrap();
    let numbers = descriptors.to_text().replace(',', " ");
    let script = format!(
        "for n in {numbers}; do [ -e /proc/self/fd/$n ] || exit 3; done; [ \"${PAGE_VARIABLE}\" = '{}' ] || exit 4",
        descriptors.to_text()
    );
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(&script);
    assert_eq!(command.status().unwrap().code(), Some(3));
    descriptors.pass_to(&mut command);
    assert_eq!(command.status().unwrap().code(), Some(0));
    drop(page);
}

#[test]
fn what_is_not_a_page_is_refused() {
    for text in ["", "3", "3,4,5", "a,b,c,d", "0,1,2,3", "4,5,6,4", "-1,4,5,6", "100000,100001,100002,100003"] {
        assert!(PageDescriptors::inherited(text).is_err(), "{text:?}");
    }
    let (page, mut descriptors) = Page::create().unwrap();
    page.raw().magic.store(1, Ordering::Relaxed);
    assert!(matches!(Page::map(&descriptors), Err(PageError::OtherVersion { found: 1, .. })));
    descriptors.memory = descriptors.wake.try_clone().unwrap();
    assert!(matches!(Page::map(&descriptors), Err(PageError::NotAPage { .. })));
}
