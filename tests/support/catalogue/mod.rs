//! The catalogue: for each line of what a proxy must do, what is sent and what must come of it.
//! Where an RFC leaves a choice, every outcome that it allows passes.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

use crate::harness::{Bench, Case, Checked, Line, Outcome, case, check};

mod bodies;
mod connections;
mod fields;
mod framing;
mod http2;
mod limits;
mod target;
mod upstream;

/// All of it.
pub fn lines() -> Vec<Line> {
    [
        framing::lines(),
        target::lines(),
        fields::lines(),
        bodies::lines(),
        upstream::lines(),
        connections::lines(),
        http2::lines(),
        limits::lines(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What stands behind a request that must be the last of its connection.
pub const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: a\r\n\r\n";

/// A plain request.
pub fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// A GET with these further lines.
pub fn get_with(fields: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// Not forwarded, answered with one of these or with a close.
pub fn refused(outcome: &Outcome, statuses: &[u16]) -> Checked {
    let status = outcome.status();
    check(outcome.forwarded.is_empty(), || format!("forwarded; {}", outcome.told()))?;
    check(statuses.contains(&status) || status == 0 && outcome.has_ended, || {
        format!("not refused; {}", outcome.told())
    })
}

/// Refused, and the connection ends with it.
pub fn refused_for_good(outcome: &Outcome, statuses: &[u16]) -> Checked {
    refused(outcome, statuses)?;
    check(outcome.has_ended, || format!("the connection goes on; {}", outcome.told()))?;
    check(outcome.answers.len() <= 1, || format!("what is behind is read; {}", outcome.told()))
}

/// A request whose framing is faulty: refused, and nothing behind it is read.
pub fn faulty(name: impl Into<String>, request: impl AsRef<[u8]>) -> Case {
    let mut bytes = request.as_ref().to_vec();
    bytes.extend_from_slice(BEHIND.as_bytes());
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange_to_end(&bytes, &["POST", "GET"]);
        refused_for_good(&outcome, &[400, 422, 501])
    })
}

/// A request that is refused; its connection may go on.
pub fn unfit(name: impl Into<String>, request: impl AsRef<[u8]>, statuses: &'static [u16]) -> Case {
    let bytes = request.as_ref().to_vec();
    case(name, move |bench: &Bench| refused(&bench.exchange(&bytes, &["GET"]), statuses))
}

/// A request that arrives, and looks there as it has to.
pub fn arrives(
    name: impl Into<String>,
    request: impl AsRef<[u8]>,
    looks: impl Fn(&Outcome) -> Checked + Send + Sync + 'static,
) -> Case {
    let bytes = request.as_ref().to_vec();
    case(name, move |bench: &Bench| {
        let outcome = bench.exchange(&bytes, &["GET"]);
        outcome.is(200)?;
        looks(&outcome)
    })
}
