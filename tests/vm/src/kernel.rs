//! What: takes the kernel proper out of the file that boot loaders load.
//! Owns: the few fields of the boot header that say where it lies.
//! Invariants: what is written is an ELF file, or nothing is written.
//! Does not: know where kernels come from.
//! Called by: the image. An emulated processor unpacks for seconds what this one unpacks in half of one.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

// Documentation/arch/x86/boot.rst: fields of the setup header.
const SETUP_SECTORS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
/// How a payload begins, and what unpacks it. Xz would stumble over the length that stands behind the stream.
const PACKINGS: [(&[u8], &[&str]); 3] = [
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], &["xz", "--decompress", "--stdout", "--single-stream"]),
    (&[0x1f, 0x8b, 8], &["gzip", "--decompress", "--stdout"]),
    (&[0x28, 0xb5, 0x2f, 0xfd], &["zstd", "--decompress", "--stdout"]),
];
const ELF: &[u8] = b"\x7fELF";

/// Unpacks the kernel in `from` into `to`.
pub(crate) fn unpack(from: &Path, to: &Path) -> Result<()> {
    let file = fs::read(from).with_context(|| from.display().to_string())?;
    let payload = payload(&file).with_context(|| format!("{}: no payload where its header says", from.display()))?;
    let Some((_, words)) = PACKINGS.iter().find(|(magic, _)| payload.starts_with(magic)) else {
        bail!("{}: packed in an unknown way; the payload begins with {:02x?}", from.display(), payload.get(..6));
    };
    let Some((program, words)) = words.split_first() else { bail!("no program") };
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut input = child.stdin.take().context("its input")?;
    // The program may stop to read at the end of the stream: not every byte is taken then.
    let kernel = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(payload));
        child.wait_with_output()
    })?;
    if !kernel.stdout.starts_with(ELF) {
        bail!("{}: {program} did not unpack an ELF file ({})", from.display(), kernel.status);
    }
    fs::write(to, kernel.stdout).with_context(|| to.display().to_string())
}

fn payload(file: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| file.get(at..at + 4).and_then(|bytes| usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok());
    let begin = (usize::from(*file.get(SETUP_SECTORS)?) + 1) * SECTOR_BYTES + word(PAYLOAD_OFFSET)?;
    file.get(begin..begin.checked_add(word(PAYLOAD_LENGTH)?)?)
}
