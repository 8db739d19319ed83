//! `tollgate health`: what a container's health check runs.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};

use super::{HealthArgs, print};

/// Bound of connecting, and of each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const ANSWER_MAX: u64 = 1 << 20;

/// Prints `/health` of a running tollgate.
///
/// # Errors
/// It cannot be reached, or says that it does not serve.
pub fn health(args: &HealthArgs) -> anyhow::Result<()> {
    let authority = args.admin.strip_prefix("http://").unwrap_or(&args.admin);
    if authority.contains("://") {
        bail!("--admin: {}, expected http://ADDRESS:PORT", args.admin);
    }
    let authority = authority.trim_end_matches('/');
    let (head, body) = ask(authority).with_context(|| format!("cannot ask {}", args.admin))?;
    print(body.trim_end());
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        bail!("it does not serve (status {status})");
    }
    Ok(())
}

fn ask(authority: &str) -> anyhow::Result<(String, String)> {
    let address = authority.to_socket_addrs()?.next().context("the name has no address")?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /health HTTP/1.0\r\nHost: {authority}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    Ok((head.to_owned(), body.to_owned()))
}
