//! What: commands in a guest, each over a port of its virtual serial device.
//! Owns: the ports and the lines that go over them.
//! Invariants: an answer is taken only for the request that it names; a port serves one command at a time.
//! Does not: know what the commands do. The other end is guest/agent.
//! Called by: a machine.

use anyhow::{Context, Result, bail};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Commands that may run at the same time in one guest.
pub(crate) const PORTS: usize = 3;
/// What the guest may take beyond the command's own limit, to end it and to answer.
const MARGIN: Duration = Duration::from_secs(15);
/// How often a free port is looked for when all are in use.
const PORT_AGAIN: Duration = Duration::from_millis(20);

/// What a command in a guest came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Said {
    /// Its exit code; 124 when its time was over.
    pub code: i32,
    /// What it wrote to both streams.
    pub text: String,
}

impl Said {
    /// Its words, if it succeeded.
    ///
    /// # Errors
    /// It did not.
    pub fn good(self) -> Result<String> {
        if self.code != 0 {
            bail!("a command in a guest ended with {}:\n{}", self.code, self.text);
        }
        Ok(self.text)
    }
}

/// The ports of one guest.
#[derive(Debug)]
pub(crate) struct Ports {
    ports: Vec<Mutex<UnixStream>>,
    next: AtomicU64,
}

impl Ports {
    pub(crate) fn new(sockets: Vec<UnixStream>) -> Self {
        Self { ports: sockets.into_iter().map(Mutex::new).collect(), next: AtomicU64::new(1) }
    }

    /// Runs a script; errors when the machine ends meanwhile, or does not answer.
    pub(crate) fn run(&self, script: &str, limit: Duration) -> Result<Said> {
        let end = Instant::now() + limit + MARGIN;
        let mut port = self.free(end)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let request = format!("{number} {} {}\n", limit.as_secs().max(1), encode(script.as_bytes()));
        port.set_write_timeout(Some(limit + MARGIN))?;
        port.write_all(request.as_bytes()).context("the machine has ended, or does not take a command")?;
        let mut kept = Vec::new();
        loop {
            let line = read_line(&mut port, &mut kept, end)?;
            // An answer to an earlier command, whose caller has given up, comes first.
            if let [answered, code, text] = line.split(' ').collect::<Vec<_>>()[..]
                && answered == number
            {
                return Ok(Said { code: code.parse()?, text: String::from_utf8_lossy(&decode(text)?).into_owned() });
            }
        }
    }

    fn free(&self, end: Instant) -> Result<MutexGuard<'_, UnixStream>> {
        loop {
            for port in &self.ports {
                match port.try_lock() {
                    Ok(port) => return Ok(port),
                    Err(TryLockError::Poisoned(poisoned)) => return Ok(PoisonError::into_inner(poisoned)),
                    Err(TryLockError::WouldBlock) => {}
                }
            }
            if Instant::now() > end {
                bail!("every port of the guest is in use");
            }
            std::thread::sleep(PORT_AGAIN);
        }
    }
}

fn read_line(port: &mut UnixStream, kept: &mut Vec<u8>, end: Instant) -> Result<String> {
    loop {
        if let Some(at) = kept.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = kept.drain(..=at).collect();
            return Ok(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("the guest does not answer");
        }
        port.set_read_timeout(Some(left))?;
        let mut buffer = [0; 65536];
        match port.read(&mut buffer) {
            Ok(0) => bail!("the machine ended while a command ran in it"),
            Ok(bytes) => kept.extend(buffer.iter().take(bytes)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("the machine ended while a command ran in it"),
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64: one line, whatever the bytes are.
pub(crate) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for piece in bytes.chunks(3) {
        let byte = |at: usize| u32::from(piece.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = (word >> (18 - 6 * digit)) & 63;
            let letter = DIGITS.get(usize::try_from(value).unwrap_or(0)).copied().unwrap_or(b'=');
            text.push(if digit <= piece.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|digit| *digit == letter);
        let Some(value) = value.and_then(|value| u32::try_from(value).ok()) else { bail!("byte {letter:#04x} is no digit of base64") };
        word = (word << 6 | value) & 0xffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.extend(u8::try_from((word >> bits) & 0xff));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_others_write_it() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE=")] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)).unwrap(), all);
        assert!(decode("a b").is_err());
    }

    #[test]
    fn an_answer_is_taken_only_by_its_number_and_an_end_is_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ports = Ports::new(vec![ours]);
        let guest = std::thread::spawn(move || {
            let mut theirs = theirs;
            let mut request = [0; 64];
            let bytes = theirs.read(&mut request).unwrap();
            theirs.write_all(b"0 0 Zm9v\nnonsense\n1 3 Zm").unwrap();
            theirs.write_all(b"9v\n").unwrap();
            String::from_utf8(request[..bytes].to_vec()).unwrap()
        });
        assert_eq!(ports.run("exit 3", Duration::from_secs(5)).unwrap(), Said { code: 3, text: "foo".into() });
        assert_eq!(guest.join().unwrap(), format!("1 5 {}\n", encode(b"exit 3")));
        assert!(ports.run("true", Duration::from_secs(5)).unwrap_err().to_string().contains("ended"));
    }
}
