//! What: what else may stand on a device: the known signatures, so that a format can name what would be lost.
//! Owns: the table of places and magic bytes, the windows that a caller has to read.
//! Invariants: judges bytes only; a window that was not read finds nothing (the caller reports reads that failed).
//! Does not: read, or decide whether to overwrite.
//! Called by: format, `deadbolt doctor`.

use crate::head;
use crate::layout::{AREA_ALIGN_BYTES, SBD_AREA_BYTES, last_superblock};
use crate::sbd::SBD_MAGIC;
use alloc::vec::Vec;

/// Something that was recognised.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signature {
    /// Its short name.
    pub name: &'static str,
    /// Where its magic stands.
    pub offset: u64,
    /// What would be lost.
    pub description: &'static str,
}

/// A piece of the device that the caller has read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Window<'a> {
    /// Where it begins on the device.
    pub offset: u64,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// Where a magic stands.
#[derive(Clone, Copy, Debug)]
enum At {
    /// At this offset.
    Start(u64),
    /// So many bytes before the end of the device, after the end was rounded down to a multiple.
    End { round: u64, back: u64 },
}
use At::{End, Start};

struct Row {
    name: &'static str,
    description: &'static str,
    places: &'static [At],
    magic: &'static [u8],
}

const fn row(name: &'static str, description: &'static str, places: &'static [At], magic: &'static [u8]) -> Row {
    Row { name, description, places, magic }
}

const MIB: u64 = 1 << 20;
/// sanlock areas begin at multiples of 1 MiB; lvmlockd's lock volume begins with one.
const SANLOCK_PLACES: &[At] = &[
    Start(0),
    Start(MIB),
    Start(2 * MIB),
    Start(3 * MIB),
    Start(4 * MIB),
    Start(5 * MIB),
    Start(6 * MIB),
    Start(7 * MIB),
    Start(8 * MIB),
    Start(16 * MIB),
    Start(64 * MIB),
    Start(65 * MIB),
    Start(66 * MIB),
];
const SWAP_PLACES: &[At] = &[Start(4086), Start(8182), Start(16374), Start(32758), Start(65526)];
const DRBD_PLACES: &[At] = &[End { round: 4096, back: 4096 - 60 }];
const MD_LATE: &[At] = &[Start(0), Start(4096), End { round: 4096, back: 8192 }, End { round: 65536, back: 65536 }];

/// Plain magic bytes at fixed places; what needs more than a comparison stands in [`detect_known`].
const TABLE: &[Row] = &[
    row("sbd", "the slots and mailboxes of an SBD fencing device", &[Start(0)], &SBD_MAGIC),
    row("qdisk", "an old cluster quorum disk (qdiskd)", &[Start(0)], &[0x1e, 0xbb, 0xde, 0x00]),
    row("sanlock-lockspace", "the host leases of a sanlock lockspace", SANLOCK_PLACES, &[0x10, 0x20, 0x21, 0x12]),
    row("sanlock-resource", "a sanlock resource lease", SANLOCK_PLACES, &[0x10, 0x20, 0x15, 0x06]),
    row("sanlock-resource", "a cleared sanlock resource lease", SANLOCK_PLACES, &[0x16, 0x20, 0x28, 0x11]),
    row("sanlock-index", "an index of sanlock resources", SANLOCK_PLACES, &[0x18, 0x20, 0x04, 0x01]),
    row("xfs", "an XFS file system", &[Start(0)], b"XFSB"),
    row("btrfs", "a Btrfs file system", &[Start(0x1_0040), Start(0x400_0040)], b"_BHRfS_M"),
    row("gfs2", "a GFS or GFS2 cluster file system", &[Start(0x1_0000)], &[0x01, 0x16, 0x19, 0x70, 0, 0, 0, 1]),
    row("ocfs2", "an OCFS2 cluster file system", &[Start(1024), Start(2048), Start(4096), Start(8192)], b"OCFSV2"),
    row("ocfs", "an OCFS cluster file system", &[Start(8)], b"OracleCFS"),
    row("vfat", "a FAT file system", &[Start(0x36)], b"FAT1"),
    row("vfat", "a FAT32 file system", &[Start(0x52)], b"FAT32   "),
    row("exfat", "an exFAT file system", &[Start(3)], b"EXFAT   "),
    row("ntfs", "an NTFS file system", &[Start(3)], b"NTFS    "),
    row("bitlocker", "a BitLocker volume", &[Start(3)], b"-FVE-FS-"),
    row("iso9660", "an ISO 9660 image", &[Start(0x8001)], b"CD001"),
    row("udf", "a UDF file system", &[Start(0x8001)], b"BEA01"),
    row("swap", "swap space", SWAP_PLACES, b"SWAPSPACE2"),
    row("swap", "swap space (old)", SWAP_PLACES, b"SWAP-SPACE"),
    row("hibernation", "the memory image of a hibernated machine", SWAP_PLACES, b"S1SUSPEND"),
    row("luks", "a LUKS encrypted volume", &[Start(0)], b"LUKS\xba\xbe"),
    row("luks", "the second header of a LUKS2 encrypted volume", &[Start(0x4000), Start(0x8000), Start(0x1_0000)], b"SKUL\xba\xbe"),
    row("lvm2", "an LVM physical volume", &[Start(24), Start(536), Start(1048), Start(1560)], b"LVM2 001"),
    row("lvm1", "an LVM1 physical volume", &[Start(0)], b"HM\x01\0"),
    row("stratis", "a Stratis pool member", &[Start(516), Start(4612)], b"!Stra0tis\x86\xff\x02^\x41rh"),
    row("md", "a member of a Linux RAID array", MD_LATE, &[0xfc, 0x4e, 0x2b, 0xa9]),
    row("md", "a member of a Linux RAID array (big-endian)", &[End { round: 65536, back: 65536 }], &[0xa9, 0x2b, 0x4e, 0xfc]),
    row("isw", "a member of an Intel firmware RAID", &[End { round: 512, back: 1024 }], b"Intel Raid ISM Cfg Sig. "),
    row("ddf", "a member of a DDF firmware RAID", &[End { round: 512, back: 512 }], &[0xde, 0x11, 0xde, 0x11]),
    row("gpt", "a GPT partition table", &[Start(512), Start(4096)], b"EFI PART"),
    row("gpt", "the second copy of a GPT partition table", &[End { round: 512, back: 512 }, End { round: 4096, back: 4096 }], b"EFI PART"),
    row("bcache", "a bcache device", &[Start(4120)], b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"),
    row("bcachefs", "a bcachefs file system", &[Start(4120)], b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    row("drbd", "DRBD metadata", DRBD_PLACES, &[0x83, 0x74, 0x02, 0x67]),
    row("drbd", "DRBD metadata", DRBD_PLACES, &[0x83, 0x74, 0x02, 0x6b]),
    row("drbd", "DRBD metadata, not cleanly closed", DRBD_PLACES, &[0x83, 0x74, 0x02, 0x6c]),
    row("drbd", "DRBD 9 metadata", DRBD_PLACES, &[0x83, 0x74, 0x02, 0x6d]),
    row("squashfs", "a SquashFS image", &[Start(0)], b"hsqs"),
    row("erofs", "an EROFS image", &[Start(1024)], &[0xe2, 0xe1, 0xf5, 0xe0]),
    row("f2fs", "an F2FS file system", &[Start(1024)], &[0x10, 0x20, 0xf5, 0xf2]),
    row("nilfs2", "a NILFS2 file system", &[Start(1030)], &[0x34, 0x34]),
    row("jfs", "a JFS file system", &[Start(0x8000)], b"JFS1"),
    row("reiserfs", "a ReiserFS file system", &[Start(0x1_0034), Start(0x2034)], b"ReIsEr"),
    row("hfsplus", "an HFS+ file system", &[Start(1024)], &[0x48, 0x2b, 0, 4]),
    row("apfs", "an APFS container", &[Start(32)], b"NXSB"),
    row("vmfs", "a VMware VMFS volume", &[Start(MIB)], &[0x0d, 0xd0, 0x01, 0xc0]),
    row("vmfs", "a VMware VMFS file system", &[Start(2 * MIB)], &[0x5e, 0xf1, 0xab, 0x2f]),
    row("oracleasm", "an Oracle ASM disk", &[Start(32)], b"ORCLDISK"),
    row("bluestore", "a Ceph BlueStore device", &[Start(0)], b"bluestore block device"),
    row("vdo", "a VDO volume", &[Start(0)], b"dmvdo001"),
    row("integrity", "a dm-integrity volume", &[Start(0)], b"integrt\0"),
    row("snapshot", "a device-mapper snapshot store", &[Start(0)], b"SnAp"),
];

fn place_of(at: At, device_bytes: u64) -> Option<u64> {
    match at {
        Start(offset) => Some(offset),
        End { round, back } => (device_bytes - device_bytes % round).checked_sub(back),
    }
}

/// What a caller has to read: offset and length of each piece, multiples of 4096 inside the device (the last may be shorter on a
/// device that is not a multiple). A few hundred KiB in all.
#[must_use]
pub fn windows(device_bytes: u64) -> Vec<(u64, usize)> {
    // ZFS keeps 128 KiB of uberblocks behind the first 128 KiB of each of its labels.
    let mut spans: Vec<(u64, usize)> = alloc::vec![(0, 512 * 1024)];
    for place in TABLE.iter().flat_map(|row| row.places) {
        if let Some(offset) = place_of(*place, device_bytes) {
            spans.push((offset - offset % 4096, 8192));
        }
    }
    for offset in [SBD_AREA_BYTES, SBD_AREA_BYTES + AREA_ALIGN_BYTES, last_superblock(device_bytes).0] {
        spans.push((offset, 4096));
    }
    let aligned_end = device_bytes - device_bytes % (256 * 1024);
    spans.push((aligned_end.saturating_sub(512 * 1024), 512 * 1024));
    spans.sort_unstable();
    let mut merged: Vec<(u64, usize)> = Vec::new();
    for (offset, bytes) in spans {
        if offset >= device_bytes {
            continue;
        }
        let end = offset.saturating_add(bytes as u64).min(device_bytes);
        match merged.last_mut() {
            Some((start, length)) if *start + *length as u64 >= offset => {
                let new_end = end.max(*start + *length as u64);
                *length = usize::try_from(new_end - *start).unwrap_or(*length);
            }
            _ => merged.push((offset, usize::try_from(end - offset).unwrap_or(0))),
        }
    }
    merged
}

fn slice_at<'a>(windows: &[Window<'a>], offset: u64, bytes: usize) -> Option<&'a [u8]> {
    windows.iter().find_map(|window| {
        let start = usize::try_from(offset.checked_sub(window.offset)?).ok()?;
        window.bytes.get(start..start.checked_add(bytes)?)
    })
}
fn le_u16(windows: &[Window<'_>], offset: u64) -> Option<u16> {
    slice_at(windows, offset, 2).map(|bytes| u16::from_le_bytes(head::bytes_of(bytes, WHOLE)))
}
fn le_u32(windows: &[Window<'_>], offset: u64) -> Option<u32> {
    slice_at(windows, offset, 4).map(|bytes| u32::from_le_bytes(head::bytes_of(bytes, WHOLE)))
}
const WHOLE: head::Field = head::Field { name: "WHOLE", offset: 0, size: 8 };

/// Everything that is recognised in the windows, by offset.
#[must_use]
pub fn detect_known(windows: &[Window<'_>], device_bytes: u64) -> Vec<Signature> {
    let mut found = Vec::new();
    for row in TABLE {
        for place in row.places {
            let Some(offset) = place_of(*place, device_bytes) else { continue };
            if slice_at(windows, offset, row.magic.len()) == Some(row.magic) {
                found.push(Signature { name: row.name, offset, description: row.description });
            }
        }
    }
    // Two letters at an unaligned place prove little: a NILFS2 superblock also names its revision.
    found.retain(|signature| signature.name != "nilfs2" || le_u32(windows, 1024) == Some(2));
    found.extend(detect_ext(windows));
    found.extend(detect_zfs(windows, device_bytes));
    found.extend(detect_mbr(windows, found.iter().any(|signature| matches!(signature.name, "vfat" | "ntfs" | "exfat" | "bitlocker"))));
    for offset in [SBD_AREA_BYTES, SBD_AREA_BYTES + AREA_ALIGN_BYTES, last_superblock(device_bytes).0] {
        if slice_at(windows, offset, 8) == Some(&head::MAGIC) {
            found.push(Signature { name: "deadbolt", offset, description: "a Deadbolt cluster: members, votes, views, journals" });
        }
    }
    found.sort_by_key(|signature| (signature.offset, signature.name));
    found.dedup();
    found
}

fn detect_ext(windows: &[Window<'_>]) -> Option<Signature> {
    if le_u16(windows, 0x438)? != 0xef53 {
        return None;
    }
    let has_journal = le_u32(windows, 0x45c).is_some_and(|features| features & 0x4 != 0);
    let has_later_features = le_u32(windows, 0x460).is_some_and(|features| features & !0x16 != 0);
    let (name, description) = match (has_journal, has_later_features) {
        (_, true) => ("ext4", "an ext4 file system"),
        (true, false) => ("ext3", "an ext3 file system"),
        (false, false) => ("ext2", "an ext2 file system"),
    };
    Some(Signature { name, offset: 0x438, description })
}

fn detect_zfs(windows: &[Window<'_>], device_bytes: u64) -> Option<Signature> {
    const LABEL: u64 = 256 * 1024;
    let end = device_bytes - device_bytes % LABEL;
    let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    let little = 0x00ba_b10c_u64.to_le_bytes();
    let big = 0x00ba_b10c_u64.to_be_bytes();
    let mut places = labels.into_iter().flatten().flat_map(|label| (128..256).map(move |kib| label + kib * 1024));
    let offset = places.find(|offset| slice_at(windows, *offset, 8).is_some_and(|bytes| bytes == little || bytes == big))?;
    Some(Signature { name: "zfs", offset, description: "a member of a ZFS pool" })
}

/// A boot sector's last two bytes are shared with file systems; a partition table also has a plausible, non-empty entry.
fn detect_mbr(windows: &[Window<'_>], is_file_system: bool) -> Option<Signature> {
    let sector = slice_at(windows, 0, 512)?;
    if is_file_system || sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let entries = || sector.get(446..510).unwrap_or_default().chunks_exact(16);
    let is_plausible = entries().all(|entry| matches!(entry.first(), Some(0 | 0x80)));
    let is_used = entries().any(|entry| entry.get(4).is_some_and(|kind| *kind != 0));
    let description = "an MBR partition table";
    (is_plausible && is_used).then_some(Signature { name: "mbr", offset: 510, description })
}
