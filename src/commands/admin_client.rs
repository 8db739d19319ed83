//! Asks the admin port of a tollgate that serves: for commands, one question each.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::clock::monotonic;

/// Bound of the whole: looking up the name, connecting, asking and reading.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 64 << 20;

/// A question.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its method.
    pub method: &'static str,
    /// Its path, with the query.
    pub path: String,
    /// The admin token, where one is asked for.
    pub token: Option<String>,
    /// Its body, JSON.
    pub body: Option<String>,
    /// How long it may take in all.
    pub timeout: Duration,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Question {
    /// A GET of this path, by somebody without a token.
    pub fn get(path: &str) -> Self {
        let path = path.to_owned();
        Question { method: "GET", path, token: None, body: None, timeout: TIMEOUT }
    }

    /// Asks, on a thread of its own, which ends with the process: looking up a name has no bound.
    ///
    /// # Errors
    /// `url`, which is `option`'s value, is none of plain HTTP; nobody answers there in time, or not
    /// in HTTP.
    pub fn ask(self, option: &str, url: &str) -> anyhow::Result<Answered> {
        let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        // What comes from here stands in a request's head.
        let is_authority = authority.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
        ensure!(is_authority, "{option}: {url}, expected http://ADDRESS:PORT");
        let (authority, timeout) = (authority.to_owned(), self.timeout);
        let deadline = monotonic() + timeout;
        let (sender, answer) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("ask".to_owned());
        let asking = move || {
            // Nobody listens any more after the deadline, which is nobody's loss.
            let _ = sender.send(ask(&authority, &self, deadline));
        };
        thread.spawn(asking)?;
        let answer = match answer.recv_timeout(deadline.saturating_duration_since(monotonic())) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                Err(anyhow::anyhow!("no answer within {} s", timeout.as_secs()))
            }
            Err(RecvTimeoutError::Disconnected) => bail!("the thread that asks has ended"),
        };
        answer.with_context(|| format!("cannot ask {url}"))
    }
}

impl Answered {
    /// The body, if the answer is a good one.
    ///
    /// # Errors
    /// It is not: the status, and what the answer says is wrong.
    pub fn good(self) -> anyhow::Result<String> {
        if (200..300).contains(&self.status) {
            return Ok(self.body);
        }
        let error: Option<serde_json::Value> = serde_json::from_str(&self.body).ok();
        let error = error.as_ref().and_then(|it| it.get("error")?.as_str());
        let status = self.status;
        let hint = if status == 401 { "; give the admin token's file by --token-file" } else { "" };
        bail!("it answered {status}: {}{hint}", error.unwrap_or("no reason given"))
    }
}

/// The token that stands in a file.
///
/// # Errors
/// It cannot be read, or holds none that can be sent.
pub fn read_token(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("--token-file: {} cannot be read", file.display()))?;
    let token = text.trim();
    let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(is_token, "--token-file: {}: expected one word of ASCII", file.display());
    Ok(token.to_owned())
}

fn ask(authority: &str, question: &Question, deadline: Instant) -> anyhow::Result<Answered> {
    let mut stream = connect(authority, deadline)?;
    let Question { method, path, token, body, .. } = question;
    // Of HTTP/1.0: the answer ends with its connection, and is not cut into chunks.
    let mut request =
        format!("{method} {path} HTTP/1.0\r\nHost: {authority}\r\nConnection: close\r\n");
    if let Some(token) = token {
        request.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if let Some(body) = body {
        let length = body.len();
        request.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
    } else {
        request.push_str("\r\n");
    }
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|it| it.parse().ok());
    let status = status.context("the answer is no HTTP")?;
    Ok(Answered { status, body: body.to_owned() })
}

/// Connects to the first address that lets it: `localhost` is two, and tollgate listens on one.
fn connect(authority: &str, deadline: Instant) -> anyhow::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = authority.to_socket_addrs()?.collect();
    let mut failed = None;
    for address in addresses {
        let left = deadline.saturating_duration_since(monotonic());
        // A timeout of zero would be an error.
        let left = left.max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_read_timeout(Some(left))?;
                stream.set_write_timeout(Some(left))?;
                return Ok(stream);
            }
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.map_or_else(|| anyhow::anyhow!("the name has no address"), anyhow::Error::from))
}
