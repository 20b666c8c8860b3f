//! What: the control socket: one JSON object per line in, one per line out.
//! Owns: the socket, its mode and group, who may ask what.
//! Invariants: an answer never waits for a disk; garbage closes that connection only.
//! Does not: know the node; the loop answers.
//! Called by: the daemon's loop. docs/control-protocol.md lists the requests.

use serde_json::Value;
use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};

/// Longest request line, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Connections at once.
const CONNECTIONS_MAX: usize = 64;
/// Time for a client to send its line.
const PATIENCE: Duration = Duration::from_secs(600);

/// A request with the place for its answer.
#[derive(Debug)]
pub struct ControlRequest {
    /// The object of the line.
    pub request: Value,
    /// Who asks.
    pub uid: u32,
    /// Where the answer goes; an answer that takes time may be sent later.
    pub reply: oneshot::Sender<Value>,
}

/// The listening socket; dropping it closes everything.
#[derive(Debug)]
pub struct ControlSocket {
    task: JoinHandle<()>,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlSocket {
    /// Listens at `path`, for the owner and one group.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn bind(path: &Path, group: Option<u32>, requests: mpsc::Sender<ControlRequest>) -> std::io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if let Some(group) = group {
            std::os::unix::fs::chown(path, None, Some(group))?;
        }
        Ok(Self { task: tokio::spawn(accept(listener, requests)) })
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<ControlRequest>) {
    let permits = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Ok(permit) = permits.clone().try_acquire_owned() {
                    let requests = requests.clone();
                    connections.spawn(async move {
                        let _ = serve(stream, requests).await;
                        drop(permit);
                    });
                }
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve(stream: UnixStream, requests: mpsc::Sender<ControlRequest>) -> std::io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (reading, mut writing) = stream.into_split();
    let mut reading = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut reading).take(LINE_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut line);
        let length = tokio::time::timeout(PATIENCE, read).await.unwrap_or(Ok(0))?;
        if length == 0 {
            return Ok(());
        }
        let answer = match decode_line(&line) {
            Ok(request) => ask(&requests, request, uid).await,
            Err(refusal) => refusal,
        };
        let mut text = answer.to_string();
        text.push('\n');
        writing.write_all(text.as_bytes()).await?;
    }
}

async fn ask(requests: &mpsc::Sender<ControlRequest>, request: Value, uid: u32) -> Value {
    let (reply, answer) = oneshot::channel();
    if requests.send(ControlRequest { request, uid, reply }).await.is_err() {
        return failure("the daemon stops");
    }
    answer.await.unwrap_or_else(|_| failure("the daemon stopped before it could answer"))
}

/// The object of a line.
///
/// # Errors
/// The refusal to be answered.
pub fn decode_line(line: &[u8]) -> Result<Value, Value> {
    match serde_json::from_slice::<Value>(line) {
        Ok(request) if request.is_object() => Ok(request),
        Ok(_) => Err(failure("not a JSON object on one line")),
        Err(error) => Err(failure(&format!("not a JSON object on one line: {error}"))),
    }
}

/// The object of a refusal.
#[must_use]
pub fn failure(reason: &str) -> Value {
    serde_json::json!({ "ok": false, "error": reason })
}
