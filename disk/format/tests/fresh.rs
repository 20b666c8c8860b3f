//! What: a format cut anywhere is never taken for a good one; a whole one always is.
//! Owns: nothing.
//! Invariants: every write is cut at every sector; what stood before may be a live cluster's device.
//! Does not: open anything.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

mod samples;

use deadbolt_disk_format::fresh::{Fresh, Step, sbd_header_of};
use deadbolt_disk_format::sbd::SbdHeader;
use deadbolt_disk_format::*;
use samples::*;

fn fresh(device: u8, slots: u16) -> Fresh {
    let layout = Layout::new(DEVICE_BYTES, 512, slots).unwrap();
    let superblock = Superblock { device: DeviceUuid([device; 16]), cluster: ClusterUuid([device; 16]), slots, layout, ..superblock() };
    let header = sbd_header_of(&superblock);
    Fresh::new(superblock, &header, Vec::new(), "workbench").unwrap()
}

fn judge(image: &[u8]) -> SuperblockChoice {
    let copies = read_superblocks(DEVICE_BYTES, |offset| {
        let start = usize::try_from(offset.0).unwrap();
        image.get(start..start + 4096).map(<[u8]>::to_vec)
    });
    choose_superblock(&copies)
}

fn apply(image: &mut [u8], offset: ByteOffset, data: &[u8]) {
    let start = usize::try_from(offset.0).unwrap();
    image[start..start + data.len()].copy_from_slice(data);
}

fn formatted(device: u8, slots: u16) -> Vec<u8> {
    let mut image = vec![0; usize::try_from(DEVICE_BYTES).unwrap()];
    for write in fresh(device, slots).writes().unwrap() {
        apply(&mut image, write.offset, &write.data);
    }
    image
}

#[test]
fn a_whole_format_is_good_and_every_unit_is_as_it_should_be() {
    let image = formatted(7, 32);
    let SuperblockChoice::Agreed { superblock, copies, newer_alone: None } = judge(&image) else { panic!() };
    assert_eq!((superblock.device, copies), (DeviceUuid([7; 16]), [true; 4]));
    for (area, offset, length) in superblock.layout.units() {
        let start = usize::try_from(offset.0).unwrap();
        let bytes = &image[start..start + length];
        let place = |slot| Place { cluster: superblock.cluster, offset, slot };
        match area {
            Area::Vote(slot, index) => assert_eq!(Ballot::decode(bytes, &place(slot)).unwrap(), Ballot::empty(slot, index)),
            Area::Record(slot, index) => assert_eq!(ViewRecord::decode(bytes, &place(slot)).unwrap(), ViewRecord::empty(slot, index)),
            Area::Superblock(_) => {}
            _ => assert!(bytes.iter().all(|byte| *byte == 0), "{area:?} is not zero"),
        }
    }
    let header = SbdHeader::decode(&image[..512], 512).unwrap();
    assert_eq!((header.watchdog_s, header.msgwait_s, header.uuid), (2, 9, [7; 16]));
}

#[test]
fn a_format_cut_anywhere_is_never_a_good_one() {
    // Over a blank device, over garbage, over an older cluster of the same and of another layout.
    let blank = vec![0; usize::try_from(DEVICE_BYTES).unwrap()];
    let garbage = vec![0x5a; usize::try_from(DEVICE_BYTES).unwrap()];
    for (name, before) in [("blank", blank), ("garbage", garbage), ("same", formatted(1, 32)), ("other", formatted(1, 8))] {
        let mut image = before;
        let plan = fresh(2, 32);
        let writes: Vec<_> = plan.writes().unwrap().collect();
        let mut cuts = 0;
        for (number, write) in writes.iter().enumerate() {
            // Torn at each sector of a unit; long pieces at each 64 KiB.
            let step = if write.data.len() > 4096 { 65_536 } else { 512 };
            let start = usize::try_from(write.offset.0).unwrap();
            let old = image[start..start + write.data.len()].to_vec();
            for cut in (0..=write.data.len()).step_by(step) {
                image[start..start + cut].copy_from_slice(&write.data[..cut]);
                let is_whole = write.step == Step::Commit && cut >= 512;
                match judge(&image) {
                    SuperblockChoice::Agreed { superblock, .. } | SuperblockChoice::Alone { superblock, .. } => {
                        let is_old = superblock.device == DeviceUuid([1; 16]);
                        // Before the mark is whole nothing else was touched: the old device is still the old device.
                        assert!(if is_old { number == 0 } else { is_whole }, "{name}: {:?} {number} cut at {cut}", write.step);
                    }
                    SuperblockChoice::Unfinished { cluster } => assert_eq!(cluster, ClusterUuid([2; 16])),
                    other => assert_eq!(number, 0, "{name}: {:?} cut at {cut} gives {other:?}", write.step),
                }
                image[start..start + write.data.len()].copy_from_slice(&old);
                cuts += 1;
            }
            apply(&mut image, write.offset, &write.data);
            if write.step == Step::Fill {
                // Even if somebody wipes the mark now: no old copy is left that would vouch for half-written areas.
                let mut without_mark = image.clone();
                without_mark[2 << 20..(2 << 20) + 4096].fill(0);
                assert!(matches!(judge(&without_mark), SuperblockChoice::Absent), "{name}: an old copy survived");
            }
        }
        assert!(cuts > 200, "only {cuts} cuts");
        assert!(matches!(judge(&image), SuperblockChoice::Agreed { copies: [true, true, true, true], .. }));
        assert_eq!(image[..usize::try_from(plan.superblock().layout.end.0).unwrap()], formatted(2, 32)[..11_272_192]);
    }
}

#[test]
fn a_head_wiped_later_by_others_leaves_a_readable_device() {
    let mut image = formatted(7, 32);
    image[..4 << 20].fill(0);
    assert!(matches!(
        judge(&image),
        SuperblockChoice::Alone { copy: 3, .. } | SuperblockChoice::Agreed { copies: [false, false, true, true], .. }
    ));
}

#[test]
fn the_message_wait_covers_watchdog_and_expiry() {
    for (watchdog_ms, expiry_ms, expected) in [(2000, 8500, (2, 9)), (1, 0, (1, 2)), (60_000, 8500, (60, 120)), (1500, 3001, (2, 4))] {
        let timings = Timings { watchdog_ms, expiry_ms, storage_delay_ms: 500, ..Timings::default() };
        let header = sbd_header_of(&Superblock { timings, ..superblock() });
        assert_eq!((header.watchdog_s, header.msgwait_s), expected);
    }
}
