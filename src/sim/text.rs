//! A replay's summary for eyes.

use std::fmt::Write as _;

use serde::Serialize;

use super::fit::Fitted;
use super::summary::{Compared, Difference, Named, Pairs, Summary, share};

/// Rows of a table.
const ROWS_MAX: usize = 12;
/// Characters of the line of bars.
const BARS_MAX: usize = 72;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What the command line knows and a summary does not.
#[derive(Clone, Debug, Serialize)]
pub struct Asked<'a> {
    /// The logs and their formats, as they are told of.
    pub logs: &'a str,
    /// The policy that is tried.
    pub policy: &'a str,
    /// The policy to compare with.
    pub against: Option<&'a str>,
}

/// The summary as text, without its last line's end.
pub fn text(summary: &Summary, asked: &Asked<'_>, fitted: Option<&Fitted>) -> String {
    let mut out = String::new();
    head(&mut out, summary, asked);
    if summary.requests > 0 {
        table(&mut out, "tier", &summary.by_tier, "requests");
        table(&mut out, "endpoint", &summary.by_endpoint, "requests");
        table(&mut out, "limit", &summary.by_limit, "checked");
        shadow(&mut out, &summary.shadow_by_limit);
        bars(&mut out, summary);
        worst(&mut out, summary);
    }
    if let (Some(against), Some(name)) = (&summary.against, asked.against) {
        difference(&mut out, against, name, summary);
    }
    if let Some(fitted) = fitted {
        let _ = write!(out, "\n{}", fitted.text());
    }
    left_out(&mut out, summary);
    for note in &summary.notes {
        let _ = writeln!(out, "note: {note}");
    }
    out.truncate(out.trim_end().len());
    out
}

fn head(out: &mut String, summary: &Summary, asked: &Asked<'_>) {
    let Summary { requests, blocked, shadow_blocked, identities, recorded, .. } = summary;
    let _ = writeln!(out, "{} of {}, by {}", count(*requests, "request"), asked.logs, asked.policy);
    if let (Some(from), Some(to)) = (&summary.from, &summary.to) {
        let _ = writeln!(out, "from {from} to {to} UTC ({})", span(summary.seconds));
    }
    let _ = writeln!(
        out,
        "\nblocked  {} ({}), of {} out of {}",
        number(*blocked),
        percent(*blocked, *requests),
        number(identities.blocked),
        count(identities.total, "caller"),
    );
    if *shadow_blocked > 0 {
        let share = percent(*shadow_blocked, *requests);
        let _ = writeln!(out, "in shadow {} more would be ({share})", number(*shadow_blocked));
    }
    if recorded.blocked > 0 && asked.against.is_none() {
        let _ = writeln!(
            out,
            "the log says {} then: {} of these pass now, {} others do not",
            number(recorded.blocked),
            number(recorded.freed),
            number(recorded.newly_blocked),
        );
    }
}

fn table(out: &mut String, title: &str, named: &Named, all: &str) {
    if named.0.is_empty() {
        return;
    }
    let shown = || named.0.iter().take(ROWS_MAX);
    let width = shown().map(|(name, _)| name.chars().count()).max().unwrap_or(0).clamp(16, 48);
    let _ = writeln!(out, "\n{title:width$}  {all:>13}  {:>13}", "blocked");
    for (name, three) in shown() {
        let _ = writeln!(
            out,
            "{name:width$}  {:>13}  {:>13}  {:>8}",
            number(three.requests),
            number(three.blocked),
            percent(three.blocked, three.requests),
        );
    }
    if named.0.len() > ROWS_MAX {
        let _ = writeln!(out, "and {} more (--format json has all)", named.0.len() - ROWS_MAX);
    }
}

fn shadow(out: &mut String, pairs: &Pairs) {
    if pairs.0.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{:34}  {:>13}", "limit in shadow", "would block");
    for (name, blocked) in pairs.0.iter().take(ROWS_MAX) {
        let _ = writeln!(out, "{name:34}  {:>13}", number(*blocked));
    }
}

/// The share that is blocked over time, in one line.
fn bars(out: &mut String, summary: &Summary) {
    let timeline = &summary.timeline;
    if summary.blocked == 0 || timeline.requests.len() < 2 {
        return;
    }
    let per_bar = timeline.requests.len().div_ceil(BARS_MAX);
    let sums = |numbers: &[u64]| -> Vec<u64> {
        numbers.chunks(per_bar).map(|slots| slots.iter().sum()).collect()
    };
    let shares: Vec<f64> = sums(&timeline.blocked)
        .into_iter()
        .zip(sums(&timeline.requests))
        .map(|(blocked, requests)| share(blocked, requests))
        .collect();
    let most = shares.iter().copied().fold(0.0, f64::max);
    let bars: String = shares.iter().map(|share| bar(*share, most)).collect();
    let seconds = timeline.slot_seconds * per_bar as u64;
    let _ = writeln!(
        out,
        "\nblocked over time, {} a bar, at most {:.1} %\n{bars}",
        span(seconds),
        most * 100.0
    );
}

fn bar(share: f64, most: f64) -> char {
    if share <= 0.0 {
        return ' ';
    }
    let step = (share / most * BARS.len() as f64).ceil() as usize;
    BARS.get(step.saturating_sub(1)).copied().unwrap_or('█')
}

fn worst(out: &mut String, summary: &Summary) {
    let shown = || summary.worst.iter().take(ROWS_MAX);
    if summary.worst.is_empty() {
        return;
    }
    let width = shown().map(|it| it.identity.chars().count()).max().unwrap_or(0).clamp(16, 48);
    let _ = writeln!(
        out,
        "\n{:width$}  {:12}  {:>11}  {:>11}  {:19}  mostly by",
        "blocked most", "tier", "requests", "blocked", "first"
    );
    for it in shown() {
        let by = it.by_limit.0.first().map_or("", |(name, _)| name);
        let first = it.first_blocked.as_deref().unwrap_or_default();
        let _ = writeln!(
            out,
            "{:width$}  {:12}  {:>11}  {:>11}  {first:19}  {by}",
            visible(&it.identity),
            it.tier,
            number(it.requests),
            number(it.blocked),
        );
    }
    if summary.identities.blocked > ROWS_MAX as u64 {
        let more = summary.identities.blocked - ROWS_MAX as u64;
        let _ = writeln!(out, "and {} more", number(more));
    }
}

fn difference(out: &mut String, against: &Compared, name: &str, summary: &Summary) {
    let _ = writeln!(
        out,
        "\nagainst {name}, which blocks {} ({})\nnewly blocked  {}\nfreed          {}",
        number(against.blocked),
        percent(against.blocked, summary.requests),
        number(against.newly_blocked),
        number(against.freed),
    );
    for (title, differences) in [
        ("tier", &against.by_tier),
        ("endpoint", &against.by_endpoint),
        ("caller", &against.by_identity),
    ] {
        if differences.is_empty() {
            continue;
        }
        let _ = writeln!(
            out,
            "\n{title:34}  {:>13}  {:>13}  {:>11}",
            "requests", "newly blocked", "freed"
        );
        for Difference { name, requests, newly_blocked, freed } in differences.iter().take(ROWS_MAX)
        {
            let _ = writeln!(
                out,
                "{:34}  {:>13}  {:>13}  {:>11}",
                visible(name),
                number(*requests),
                number(*newly_blocked),
                number(*freed)
            );
        }
        if differences.len() > ROWS_MAX {
            let _ = writeln!(out, "and {} more", differences.len() - ROWS_MAX);
        }
    }
}

fn left_out(out: &mut String, summary: &Summary) {
    let left = &summary.left_out;
    if left.total == 0 {
        return;
    }
    let kinds = [
        (left.unreadable, "not readable"),
        (left.no_request, "no request"),
        (left.nobody, "of nobody"),
        (left.own_answers, "answered before any limit"),
        (left.bad_path, "with a path that is refused"),
    ];
    let kinds: Vec<String> = kinds
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", number(count)))
        .collect();
    let _ = writeln!(
        out,
        "\nleft out: {} of {} ({})",
        number(left.total),
        count(summary.lines, "line"),
        kinds.join(", ")
    );
    for example in &left.examples {
        let _ = writeln!(out, "  {example}");
    }
}

/// What a log says, with nothing in it that a terminal obeys.
fn visible(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { '\u{fffd}' } else { it }).collect()
}

/// `1,234,567`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1.25 %`, with as many digits as say something.
pub fn percent(part: u64, whole: u64) -> String {
    let percent = share(part, whole) * 100.0;
    if part > 0 && percent < 0.01 { "< 0.01 %".to_owned() } else { format!("{percent:.2} %") }
}

fn count(many: u64, what: &str) -> String {
    format!("{} {what}{}", number(many), if many == 1 { "" } else { "s" })
}

/// `2 d 3 h`, the two largest units.
fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (unit, name) in units {
        if rest >= unit {
            parts.push(format!("{} {name}", rest / unit));
            rest %= unit;
        }
    }
    parts.truncate(2);
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_eyes() {
        for (found, expected) in [
            (number(0), "0"),
            (number(999), "999"),
            (number(1_000), "1,000"),
            (number(1_234_567), "1,234,567"),
            (percent(0, 0), "0.00 %"),
            (percent(1, 3), "33.33 %"),
            (percent(1, 1_000_000), "< 0.01 %"),
            (span(0), "0 s"),
            (span(3_661), "1 h 1 min"),
            (span(90_061), "1 d 1 h"),
            (visible("a\u{1b}[31m"), "a\u{fffd}[31m"),
        ] {
            assert_eq!(found, expected);
        }
    }
}
