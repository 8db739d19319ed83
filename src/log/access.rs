//! The access log: one line of JSON for each request.

use std::net::SocketAddr;

use crate::limiter::quota::Period;
use crate::limiter::time::Timestamp;
use crate::policy::identity::Identity;
use crate::trace::TraceId;

use super::address::{push_prefix, push_socket};
use super::json::{hex_digit, push_escaped, push_escaped_to};
use super::query;
use super::queue::{Chunk, LineQueue};

/// Longest line, in bytes, its end included: the sum of the bounds below is less.
pub const LINE_BYTES_MAX: usize = 8 << 10;
// Bounds of what a line holds, in bytes as they are written.
const METHOD_MAX: usize = 64;
const PATH_MAX: usize = 4 << 10;
const IDENTITY_MAX: usize = 1 << 10;
const NAME_MAX: usize = 256;
/// Bytes that a worker keeps before it hands them over; sooner, with every tick of its clock.
const CHUNK_BYTES: usize = 32 << 10;
/// Bytes that a worker keeps while the queue is full.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// What was decided on a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decided {
    /// No limit and no list had a say.
    #[default]
    Nothing,
    /// It may pass.
    Allow,
    /// A limit or the deny list refuses it.
    Deny,
    /// A limit in shadow mode would have.
    ShadowDeny,
    /// It was refused for load.
    Shed,
    /// No limit holds for it.
    Exempt,
}

impl Decided {
    /// As the line says it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Decided::Nothing => "none",
            Decided::Allow => "allow",
            Decided::Deny => "deny",
            Decided::ShadowDeny => "shadow_deny",
            Decided::Shed => "shed",
            Decided::Exempt => "exempt",
        }
    }

    /// What a line means.
    pub fn of(text: &str) -> Option<Self> {
        let all = [
            Decided::Nothing,
            Decided::Allow,
            Decided::Deny,
            Decided::ShadowDeny,
            Decided::Shed,
            Decided::Exempt,
        ];
        all.into_iter().find(|decided| decided.as_str() == text)
    }
}

/// A limit by its name: `tier:minute`, `endpoint:history:minute`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitName<'a> {
    /// The endpoint rule that it is one of; `None`: the tier's own.
    pub rule: Option<&'a str>,
    /// Its period.
    pub period: Period,
}

/// What is told of one request. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// When its limits were checked, by the clock that they are kept by; of a request without limits,
    /// when its head had arrived.
    pub at: Timestamp,
    /// Its method.
    pub method: &'a str,
    /// Its path, as it came.
    pub path: &'a str,
    /// Its query string, where there is one.
    pub query: Option<&'a str>,
    /// The answer's; 499: there was none, because the downstream left.
    pub status: u16,
    /// Who sent it.
    pub identity: Option<&'a Identity>,
    /// Their tier.
    pub tier: Option<&'a str>,
    /// The endpoint rule that names it, or `other`.
    pub endpoint: &'a str,
    /// What was decided.
    pub decided: Decided,
    /// Which limit refused it, or would have.
    pub limited_by: Option<LimitName<'a>>,
    /// What the limit that the answer speaks of had left.
    pub remaining: Option<u32>,
    /// Seconds until the same request would pass.
    pub retry_after: Option<u64>,
    /// From the head's arrival to the answer's end.
    pub duration_us: u64,
    /// To the head of the upstream's answer.
    pub upstream_us: Option<u64>,
    /// To the limiter's answer.
    pub limiter_us: Option<u64>,
    /// Content of the request that was read.
    pub bytes_in: u64,
    /// Content of the answer that was handed over.
    pub bytes_out: u64,
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// The trace that the request belongs to.
    pub trace: Option<TraceId>,
}

/// What the lines of all workers have in common.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// Where they go.
    pub lines: LineQueue,
    /// Whether they show query strings.
    pub with_query: bool,
    /// Parameters of the query that hold credentials.
    pub secret_parameters: Box<[Box<str>]>,
}

/// One worker's lines.
#[derive(Debug)]
pub struct AccessLines {
    log: AccessLog,
    chunk: Chunk,
    second: u64,
    /// `"ts":"2026-01-01T00:00:00.` of that second.
    prefix: Vec<u8>,
}

impl AccessLines {
    /// None yet.
    pub fn new(log: AccessLog) -> Self {
        AccessLines { log, chunk: Chunk::default(), second: u64::MAX, prefix: Vec::new() }
    }

    /// Writes the line of a request, and hands over what there is if that is much.
    pub fn push(&mut self, entry: &Entry<'_>) {
        if self.chunk.bytes.len() >= CHUNK_BYTES {
            self.flush();
            if self.chunk.bytes.len() >= KEPT_BYTES_MAX {
                return self.log.lines.give_up(1);
            }
        }
        if self.chunk.bytes.capacity() == 0 {
            self.chunk.bytes.reserve_exact(CHUNK_BYTES.saturating_add(LINE_BYTES_MAX));
        }
        self.write(entry);
        self.chunk.lines = self.chunk.lines.saturating_add(1);
    }

    /// Hands over what there is, as far as the queue has room.
    pub fn flush(&mut self) {
        if self.chunk.lines > 0
            && let Err(chunk) = self.log.lines.offer(std::mem::take(&mut self.chunk))
        {
            self.chunk = chunk;
        }
    }

    /// Takes the lines that have not been handed over, for somebody else than the log.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.chunk).bytes
    }

    fn write(&mut self, entry: &Entry<'_>) {
        let micros = entry.at.as_micros();
        let (second, micros) = (micros / 1_000_000, micros % 1_000_000);
        if second != self.second {
            self.second = second;
            self.prefix.clear();
            push_second(&mut self.prefix, second);
        }
        let out = &mut self.chunk.bytes;
        out.extend_from_slice(b"{\"ts\":\"");
        out.extend_from_slice(&self.prefix);
        push_padded(out, micros, 100_000);
        out.extend_from_slice(b"Z\",\"method\":\"");
        push_escaped(out, entry.method.as_bytes(), METHOD_MAX);
        out.extend_from_slice(b"\",\"path\":\"");
        push_target(out, entry, &self.log);
        out.extend_from_slice(b"\",\"status\":");
        push_number(out, entry.status.into());
        out.extend_from_slice(b",\"identity\":");
        match entry.identity {
            None => out.extend_from_slice(NULL),
            Some(identity) => push_identity(out, identity),
        }
        out.extend_from_slice(b",\"tier\":");
        match entry.tier {
            None => out.extend_from_slice(NULL),
            Some(tier) => push_string(out, tier, NAME_MAX),
        }
        out.extend_from_slice(b",\"endpoint\":");
        push_string(out, entry.endpoint, NAME_MAX);
        out.extend_from_slice(b",\"decision\":\"");
        out.extend_from_slice(entry.decided.as_str().as_bytes());
        out.extend_from_slice(b"\",\"limited_by\":");
        push_limit(out, entry.limited_by);
        out.extend_from_slice(b",\"remaining\":");
        push_optional(out, entry.remaining.map(u64::from));
        out.extend_from_slice(b",\"retry_after\":");
        push_optional(out, entry.retry_after);
        out.extend_from_slice(b",\"duration_us\":");
        push_number(out, entry.duration_us);
        out.extend_from_slice(b",\"upstream_us\":");
        push_optional(out, entry.upstream_us);
        out.extend_from_slice(b",\"limiter_us\":");
        push_optional(out, entry.limiter_us);
        out.extend_from_slice(b",\"bytes_in\":");
        push_number(out, entry.bytes_in);
        out.extend_from_slice(b",\"bytes_out\":");
        push_number(out, entry.bytes_out);
        out.extend_from_slice(b",\"peer\":\"");
        push_socket(out, entry.peer);
        out.extend_from_slice(b"\",\"trace_id\":");
        push_trace(out, entry.trace);
        out.extend_from_slice(b"}\n");
    }
}

impl Drop for AccessLines {
    fn drop(&mut self) {
        self.flush();
        self.log.lines.give_up(self.chunk.lines);
    }
}

const NULL: &[u8] = b"null";

fn push_target(out: &mut Vec<u8>, entry: &Entry<'_>, log: &AccessLog) {
    let end = out.len().saturating_add(PATH_MAX);
    let mut is_whole = push_escaped_to(out, entry.path.as_bytes(), end);
    let Some(query) = entry.query.filter(|_| log.with_query) else { return };
    let mut push = |piece: &[u8]| is_whole = is_whole && push_escaped_to(out, piece, end);
    push(b"?");
    query::pieces(query, &log.secret_parameters, push);
}

fn push_identity(out: &mut Vec<u8>, identity: &Identity) {
    out.push(b'"');
    out.extend_from_slice(identity.identifier_type().as_str().as_bytes());
    out.push(b':');
    match identity {
        Identity::Ip(prefix) => push_prefix(out, prefix),
        Identity::User(id) | Identity::Key(id) => push_escaped(out, id.as_bytes(), IDENTITY_MAX),
    }
    out.push(b'"');
}

fn push_string(out: &mut Vec<u8>, text: &str, max: usize) {
    out.push(b'"');
    push_escaped(out, text.as_bytes(), max);
    out.push(b'"');
}

fn push_limit(out: &mut Vec<u8>, limit: Option<LimitName<'_>>) {
    let Some(LimitName { rule, period }) = limit else { return out.extend_from_slice(NULL) };
    match rule {
        None => out.extend_from_slice(b"\"tier:"),
        Some(rule) => {
            out.extend_from_slice(b"\"endpoint:");
            push_escaped(out, rule.as_bytes(), NAME_MAX);
            out.push(b':');
        }
    }
    out.extend_from_slice(period.as_str().as_bytes());
    out.push(b'"');
}

fn push_trace(out: &mut Vec<u8>, trace: Option<TraceId>) {
    let Some(TraceId(id)) = trace else { return out.extend_from_slice(NULL) };
    out.push(b'"');
    for byte in id.to_be_bytes() {
        out.push(hex_digit(u32::from(byte >> 4)));
        out.push(hex_digit(u32::from(byte)));
    }
    out.push(b'"');
}

fn push_optional(out: &mut Vec<u8>, number: Option<u64>) {
    match number {
        None => out.extend_from_slice(NULL),
        Some(number) => push_number(out, number),
    }
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// With leading zeros: `unit` is what the first digit counts.
fn push_padded(out: &mut Vec<u8>, number: u64, mut unit: u64) {
    while unit > 0 {
        let digit = u8::try_from(number / unit % 10).unwrap_or(0);
        out.push(b'0'.saturating_add(digit));
        unit /= 10;
    }
}

/// `2026-01-01T00:00:00.` (RFC 3339) from Unix seconds.
fn push_second(out: &mut Vec<u8>, second: u64) {
    let (days, of_day) = (second / 86_400, second % 86_400);
    // Howard Hinnant, chrono-compatible low-level date algorithms: `civil_from_days`.
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    push_padded(out, year, 1_000);
    for (divider, number) in [
        (b'-', month),
        (b'-', day),
        (b'T', of_day / 3_600),
        (b':', of_day / 60 % 60),
        (b':', of_day % 60),
    ] {
        out.push(divider);
        push_padded(out, number, 10);
    }
    out.push(b'.');
}

#[cfg(test)]
mod tests;
