//! `tollgate usage export`: records to standard output, a page at a time.

use std::io::{BufWriter, ErrorKind, Write};

use crate::admin::usage::Shown;
use crate::clock::Clock;
use crate::commands::Failure;
use crate::usage::page::RECORDS_MAX;
use crate::usage::record::{Period, Query, minute_of, parse_minute, written};

use super::source::Source;
use super::{ExportArgs, ExportFormat};

/// The columns, in their order. They never change; new ones would come behind them.
const COLUMNS: &str =
    "start,period,identity,tier,endpoint,requests,units,denied,bytes_in,bytes_out";

/// Prints records.
///
/// # Errors
/// Wrong usage; they cannot be read.
pub(super) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let by = args.by;
    let now = minute_of(Clock::System.now());
    let end = by.start(now).saturating_add(by.minutes());
    let query = Query {
        from: moment("--from", args.from.as_deref(), 0, by)?,
        to: moment("--to", args.to.as_deref(), end, by)?,
        identity: args.identity.as_deref().map(Into::into),
        tier: args.tier.as_deref().map(Into::into),
        by,
        after: None,
        limit: RECORDS_MAX,
    };
    let source =
        Source::open(args.source.as_deref(), args.config.as_deref(), args.token_file.as_deref())?;
    let mut output = BufWriter::new(std::io::stdout().lock());
    let print = || -> anyhow::Result<()> {
        if args.format == ExportFormat::Csv {
            writeln!(output, "{COLUMNS}")?;
        }
        source.each(query, &mut |record| {
            match args.format {
                ExportFormat::Csv => writeln!(output, "{}", csv(&record))?,
                ExportFormat::Json => writeln!(output, "{}", serde_json::to_string(&record)?)?,
            }
            Ok(())
        })?;
        Ok(output.flush()?)
    };
    match print() {
        // Whoever was to read it has seen enough.
        Err(error) if error.downcast_ref().is_some_and(is_gone) => Ok(()),
        printed => printed.map_err(Failure::Running),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// A moment at which a period begins.
fn moment(option: &str, text: Option<&str>, default: u32, by: Period) -> Result<u32, Failure> {
    let Some(text) = text else { return Ok(default) };
    let wrong = |expected: String| {
        let shown: String = text.chars().filter(|it| !it.is_control()).collect();
        super::super::say(std::io::stderr(), format!("{option}: {shown}, expected {expected}"));
        Failure::Reported
    };
    let minute = parse_minute(text).map_err(|expected| wrong(expected.to_owned()))?;
    let start = by.start(minute);
    if start != minute {
        let near = written(start);
        return Err(wrong(format!("the beginning of a {}, such as {near}", by.as_str())));
    }
    Ok(minute)
}

/// A line of CSV (RFC 4180, with a line feed at its end).
fn csv(record: &Shown) -> String {
    let Shown { start, period, identity, tier, endpoint, counts } = record;
    let names = [identity, tier, endpoint].map(|it| quoted(it)).join(",");
    let numbers = [counts.requests, counts.units, counts.denied, counts.bytes_in, counts.bytes_out];
    let numbers = numbers.map(|it| it.to_string()).join(",");
    format!("{start},{period},{names},{numbers}")
}

/// A field; what a spreadsheet would take for a formula has an apostrophe before it. An identity
/// begins with its kind and is none, whatever its caller has chosen.
fn quoted(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_what_a_reader_of_csv_makes_of_them() {
        for (text, field) in [
            ("user:42", "user:42"),
            ("user:a,b", "\"user:a,b\""),
            ("user:\"x\"", "\"user:\"\"x\"\"\""),
            ("a\nb", "\"a\nb\""),
            ("=1+1", "'=1+1"),
            ("-x,\"", "\"'-x,\"\"\""),
            ("user:=1+1", "user:=1+1"),
        ] {
            assert_eq!(quoted(text), field);
        }
    }
}
