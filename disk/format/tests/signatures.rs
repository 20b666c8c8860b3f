//! What: every known signature is found, on devices that real tools made where they are installed.
//! Owns: nothing.
//! Invariants: an empty device has none.
//! Does not: need root: the tools write to image files.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what it skips")]
#![allow(missing_docs, reason = "a test program has no interface")]

use deadbolt_disk_format::signatures::{Window, detect_known, windows};

fn names(device: &[u8]) -> Vec<&'static str> {
    let bytes = device.len() as u64;
    let pieces: Vec<_> = windows(bytes)
        .into_iter()
        .map(|(offset, length)| {
            let start = usize::try_from(offset).unwrap();
            Window { offset, bytes: &device[start..start + length] }
        })
        .collect();
    detect_known(&pieces, bytes).into_iter().map(|signature| signature.name).collect()
}

fn with(patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut device = vec![0; 16 << 20];
    for (offset, bytes) in patches {
        device[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    device
}

#[test]
fn an_empty_device_and_one_full_of_ones_have_none() {
    assert_eq!(names(&vec![0; 16 << 20]), Vec::<&str>::new());
    assert_eq!(names(&vec![0xff; 16 << 20]), Vec::<&str>::new());
    for tiny in [0, 1, 511, 512, 4096, 65_536, 70_000] {
        assert_eq!(names(&vec![0; tiny]), Vec::<&str>::new());
    }
}

#[test]
fn those_that_common_tools_do_not_know_are_found() {
    let end = 16 << 20;
    let table: &[(&str, usize, &[u8])] = &[
        ("sanlock-lockspace", 0, &0x1221_2010_u32.to_le_bytes()),
        ("sanlock-resource", 1 << 20, &0x0615_2010_u32.to_le_bytes()),
        ("sanlock-index", 3 << 20, &0x0104_2018_u32.to_le_bytes()),
        ("sbd", 0, b"SBD_SBD_"),
        ("qdisk", 0, &0x00de_bb1e_u32.to_le_bytes()),
        ("deadbolt", 2 << 20, b"DEADBOLT"),
        ("deadbolt", (2 << 20) + (64 << 10), b"DEADBOLT"),
        ("deadbolt", end - (64 << 10), b"DEADBOLT"),
        ("md", end - (64 << 10), &0xa92b_4efc_u32.to_le_bytes()),
        ("md", end - 8192, &0xa92b_4efc_u32.to_le_bytes()),
        ("md", 4096, &0xa92b_4efc_u32.to_le_bytes()),
        ("gpt", end - 512, b"EFI PART"),
        ("gpt", end - 4096, b"EFI PART"),
        ("drbd", end - 4096 + 60, &0x8374_026d_u32.to_be_bytes()),
        ("gfs2", 0x1_0000, &[1, 0x16, 0x19, 0x70, 0, 0, 0, 1]),
        ("ocfs2", 8192, b"OCFSV2"),
        ("zfs", (256 << 10) + (130 << 10), &0x00ba_b10c_u64.to_le_bytes()),
        ("zfs", end - (256 << 10) + (255 << 10), &0x00ba_b10c_u64.to_be_bytes()),
        ("lvm2", 512 + 24, b"LVM2 001"),
        ("luks", 0, b"LUKS\xba\xbe"),
        ("swap", 4086, b"SWAPSPACE2"),
        ("swap", 65_526, b"SWAPSPACE2"),
        ("btrfs", 0x1_0040, b"_BHRfS_M"),
        ("iso9660", 0x8001, b"CD001"),
        ("bcachefs", 4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"),
    ];
    for (name, offset, magic) in table {
        assert_eq!(names(&with(&[(*offset, magic)])), [*name], "at {offset}");
        let mut damaged = magic.to_vec();
        damaged[0] ^= 1;
        assert_eq!(names(&with(&[(*offset, &damaged)])), Vec::<&str>::new(), "{name} damaged");
    }
}

#[test]
fn a_boot_sector_without_a_partition_is_no_partition_table() {
    assert_eq!(names(&with(&[(510, &[0x55, 0xaa])])), Vec::<&str>::new());
    assert_eq!(names(&with(&[(510, &[0x55, 0xaa]), (446 + 4, &[0x83])])), ["mbr"]);
    assert_eq!(names(&with(&[(510, &[0x55, 0xaa]), (0x36, b"FAT16   "), (450, &[0x83])])), ["vfat"]);
}

#[test]
fn what_real_tools_write_is_found() {
    let tools: &[(&str, &str, &[&str])] = &[
        ("/usr/sbin/mkfs.ext4", "ext4", &["-q", "-F"]),
        ("/usr/sbin/mkfs.ext3", "ext3", &["-q", "-F"]),
        ("/usr/sbin/mkfs.ext2", "ext2", &["-q", "-F"]),
        ("/usr/sbin/mkswap", "swap", &["-q"]),
        ("/usr/sbin/mkfs.vfat", "vfat", &[]),
    ];
    let mut tried = 0;
    for (tool, name, options) in tools.iter().filter(|(tool, ..)| std::path::Path::new(tool).exists()) {
        let path = std::env::temp_dir().join(format!("deadbolt-signature-{}-{name}", std::process::id()));
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        let output = std::process::Command::new(tool).args(*options).arg(&path).output().unwrap();
        let device = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(names(&device), [*name], "{tool}");
        tried += 1;
    }
    if tried == 0 {
        eprintln!("skipped: no mkfs and no mkswap on this machine");
    }
}
