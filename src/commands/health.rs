//! `tollgate health`: what a container's health check runs.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::clock::monotonic;

use super::{Format, HealthArgs, print};

/// Bound of the whole: looking up the name, connecting, asking and reading.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 16 << 20;

/// Prints `/health` of a running tollgate.
///
/// # Errors
/// It cannot be reached, does not answer in time, or says that it does not serve.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    let authority = args.admin.strip_prefix("http://").unwrap_or(&args.admin);
    if authority.contains("://") {
        bail!("--admin: {}, expected http://ADDRESS:PORT", args.admin);
    }
    let authority = authority.trim_end_matches('/').to_owned();
    let path = match args.format {
        Format::Human => "/health?verbose=1",
        Format::Json => "/health",
    };
    let asked = ask_in_time(authority, path.to_owned(), None);
    let (head, body) = asked.with_context(|| format!("cannot ask {}", args.admin))?;
    let summary: Option<Value> = serde_json::from_str(&body).ok();
    match (&summary, args.format) {
        (Some(summary), Format::Human) => print(in_short(summary)),
        _ => print(body.trim_end()),
    }
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "it does not serve (status {status})");
    // Whatever else listens there may be well, and is not asked about.
    let is_ours = summary.is_some_and(|it| it.get("status").is_some_and(Value::is_string));
    ensure!(is_ours, "{} is no admin port: no status in its answer", args.admin);
    Ok(())
}

/// Asks on a thread of its own, which ends with the process: looking up a name has no bound.
/// Gives the answer's head and its body. `token`: what the admin port asks for.
///
/// # Errors
/// It cannot be reached, or does not answer in time.
pub(super) fn ask_in_time(
    authority: String,
    path: String,
    token: Option<String>,
) -> anyhow::Result<(String, String)> {
    let deadline = monotonic() + TIMEOUT;
    let (sender, answer) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("ask".to_owned());
    // Nobody listens any more after the deadline, which is nobody's loss.
    thread.spawn(move || sender.send(ask(&authority, &path, token.as_deref(), deadline)).ok())?;
    match answer.recv_timeout(deadline.saturating_duration_since(monotonic())) {
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => bail!("no answer within {} s", TIMEOUT.as_secs()),
        Err(RecvTimeoutError::Disconnected) => bail!("the thread that asks has ended"),
    }
}

fn ask(
    authority: &str,
    path: &str,
    token: Option<&str>,
    deadline: Instant,
) -> anyhow::Result<(String, String)> {
    let mut stream = connect(authority, deadline)?;
    let token = token.map_or_else(String::new, |it| format!("Authorization: Bearer {it}\r\n"));
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\n{token}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    Ok((head.to_owned(), body.to_owned()))
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

/// A few lines for eyes.
fn in_short(summary: &Value) -> String {
    let at = |pointer: &str| summary.pointer(pointer).map_or_else(|| "?".to_owned(), word);
    let mut text = at("/status");
    let reasons = summary.get("reasons").and_then(Value::as_array);
    let reasons: Vec<String> = reasons.into_iter().flatten().map(word).collect();
    if !reasons.is_empty() {
        let _ = write!(text, ": {}", reasons.join(", "));
    }
    let up = summary.get("uptime_seconds").and_then(Value::as_u64);
    let _ = write!(
        text,
        "\ntollgate {} on {}, up {}; limits {} since {}",
        at("/version"),
        at("/instance"),
        humantime::format_duration(Duration::from_secs(up.unwrap_or(0))),
        at("/rate_limiter/mode"),
        at("/rate_limiter/since"),
    );
    let dependencies = summary.get("dependencies").and_then(Value::as_object);
    for (name, status) in
        dependencies.into_iter().flatten().filter(|(_, it)| *it != "not_configured")
    {
        let _ = write!(text, "\n  {name}: {}", word(status));
        if let Some(breaker) = summary.get("circuit_breakers").and_then(|it| it.get(name)) {
            let _ = write!(text, ", circuit {}", word(breaker));
        }
    }
    text
}

/// A value in words; what a terminal would obey is left out.
fn word(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().filter(|it| !it.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_summary_in_short() {
        let summary = json!({
            "status": "degraded", "version": "0.1.0", "instance": "a\u{1b}[2J", "uptime_seconds": 3723,
            "dependencies": { "redis": "unhealthy", "upstream": "healthy" },
            "circuit_breakers": { "redis": "open" },
            "rate_limiter": { "mode": "local", "since": "2026-01-01T00:00:00Z" },
            "reasons": ["redis unhealthy", "redis circuit open"],
        });
        assert_eq!(
            in_short(&summary),
            "degraded: redis unhealthy, redis circuit open\n\
             tollgate 0.1.0 on a[2J, up 1h 2m 3s; limits local since 2026-01-01T00:00:00Z\n  \
             redis: unhealthy, circuit open\n  \
             upstream: healthy"
        );
        assert!(in_short(&json!([1])).starts_with("?\n"));
    }
}
