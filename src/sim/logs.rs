//! The logs of a replay, read together in the order of time; what of them is a request, and what is
//! left out.

use std::io;

use crate::log::access::Decided;

use super::callers::{CALLERS_MAX, CallerFault, Callers};
use super::line::{Fault, Format, Line, Wanted};
use super::lines::Lines;
use super::record::{Record, Was};
use super::routes::{Routes, split};
use super::templates::Templates;

/// Lines that could not be read and are shown.
const EXAMPLES_MAX: usize = 5;
/// Bytes of such a line that are shown.
const EXAMPLE_BYTES_MAX: usize = 120;

/// One log.
pub struct Log {
    /// Its file, or `-`.
    pub name: String,
    lines: Lines,
    /// `None` until its first line tells.
    format: Option<Format>,
    number: u64,
    next: Option<Record>,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A log cannot be read.
    #[error("cannot read {file} behind line {line}: {source}")]
    Read {
        /// The log.
        file: String,
        /// Lines of it that were read.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// There are too many callers to tell apart.
    #[error(
        "more than {CALLERS_MAX} callers by line {line} of {file}, expected a shorter log, or \
         --config with a shorter identity.ip prefix"
    )]
    TooManyCallers {
        /// The log.
        file: String,
        /// The line.
        line: u64,
    },
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The log.
    pub file: String,
    /// Its line, from 1.
    pub line: u64,
    /// What was expected.
    pub expected: &'static str,
    /// Its beginning.
    pub text: String,
}

/// Lines that are not replayed, by why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Not written as the format says.
    pub unreadable: u64,
    /// No request: an empty one, bytes of another protocol, CONNECT.
    pub no_request: u64,
    /// Of nobody: neither an address nor a user.
    pub nobody: u64,
    /// Answered by tollgate itself before any limit was asked.
    pub own_answers: u64,
    /// With a path that tollgate refuses with 400.
    pub bad_path: u64,
    /// Some of the first kind.
    pub examples: Vec<Example>,
}

impl LeftOut {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.unreadable + self.no_request + self.nobody + self.own_answers + self.bad_path
    }
}

/// Makes requests of lines.
pub struct Reader<'p> {
    /// Who sends them.
    pub callers: Callers<'p>,
    /// Which rules they meet.
    pub routes: Routes<'p>,
    /// What is not replayed.
    pub left_out: LeftOut,
    /// All lines so far.
    pub lines: u64,
    /// Templates of paths, for whoever asks for them.
    pub templates: Option<Templates>,
    wanted: Wanted,
}

impl Log {
    /// A log of this name; `None`: its first line tells the format.
    pub fn new(name: String, lines: Lines, format: Option<Format>) -> Self {
        Log { name, lines, format, number: 0, next: None }
    }

    /// Its format, once a line was read.
    pub fn format(&self) -> Option<Format> {
        self.format
    }

    /// Reads on to the next request.
    fn advance(&mut self, reader: &mut Reader<'_>) -> Result<(), LogError> {
        self.next = None;
        while self.next.is_none() {
            let line = match self.lines.next_line() {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(()),
                Err(source) => {
                    let (file, line) = (self.name.clone(), self.number);
                    return Err(LogError::Read { file, line, source });
                }
            };
            self.number += 1;
            if line.is_empty() {
                continue;
            }
            let format = *self.format.get_or_insert_with(|| Format::of(line));
            self.next = reader.record(format, line, &self.name, self.number)?;
        }
        Ok(())
    }
}

impl<'p> Reader<'p> {
    /// Nothing read yet.
    pub fn new(callers: Callers<'p>, routes: Routes<'p>, wanted: Wanted) -> Self {
        let left_out = LeftOut::default();
        Reader { callers, routes, left_out, lines: 0, templates: None, wanted }
    }

    fn record(
        &mut self,
        format: Format,
        line: &[u8],
        file: &str,
        number: u64,
    ) -> Result<Option<Record>, LogError> {
        self.lines += 1;
        let read = match format.read(line, &self.wanted) {
            Ok(read) => read,
            Err(Fault::NoRequest) => {
                self.left_out.no_request += 1;
                return Ok(None);
            }
            Err(Fault::Unreadable(expected)) => {
                self.left_out.unreadable += 1;
                if self.left_out.examples.len() < EXAMPLES_MAX {
                    let text = line.get(..EXAMPLE_BYTES_MAX).unwrap_or(line);
                    let text = text.escape_ascii().to_string();
                    let file = file.to_owned();
                    self.left_out.examples.push(Example { file, line: number, expected, text });
                }
                return Ok(None);
            }
        };
        if is_own_answer(&read) {
            self.left_out.own_answers += 1;
            return Ok(None);
        }
        let Ok(route) = self.routes.number(&read) else {
            self.left_out.no_request += 1;
            return Ok(None);
        };
        let matched = self.routes.get(route).and_then(|route| route.matched.first());
        if matches!(matched, Some(Some(Err(_)))) {
            self.left_out.bad_path += 1;
            return Ok(None);
        }
        let caller = match self.callers.number(&read) {
            Ok(caller) => caller,
            Err(CallerFault::Nobody) => {
                self.left_out.nobody += 1;
                return Ok(None);
            }
            Err(CallerFault::TooMany) => {
                return Err(LogError::TooManyCallers { file: file.to_owned(), line: number });
            }
        };
        let template = self.templates.as_mut().map_or(0, |it| it.number(split(&read).1));
        let (at, lasts, was) = (read.began(), read.duration, Was::of(&read));
        Ok(Some(Record { at, lasts, caller, route, template, was }))
    }
}

/// Whether tollgate answered it before its limits were asked: a page of its own, a request without
/// form, a token that is none, too much load.
fn is_own_answer(line: &Line<'_>) -> bool {
    match line.decided {
        Some(Decided::Shed) => true,
        Some(Decided::Nothing) => line.is_unasked,
        _ => false,
    }
}

/// Several logs as one.
pub struct Merged {
    logs: Vec<Log>,
    is_begun: bool,
}

impl Merged {
    /// These logs.
    pub fn new(logs: Vec<Log>) -> Self {
        Merged { logs, is_begun: false }
    }

    /// The logs.
    pub fn logs(&self) -> &[Log] {
        &self.logs
    }

    /// The next request: of those that the logs go on with, the earliest.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn next(&mut self, reader: &mut Reader<'_>) -> Result<Option<Record>, LogError> {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.logs.iter_mut().try_for_each(|log| log.advance(reader))?;
        }
        let earliest = match &mut self.logs[..] {
            [log] => Some(log),
            logs => {
                let open = logs.iter_mut().filter(|log| log.next.is_some());
                open.min_by_key(|log| log.next.map(|record| record.at))
            }
        };
        let Some(log) = earliest else { return Ok(None) };
        let record = log.next;
        log.advance(reader)?;
        Ok(record)
    }
}
