//! An explanation as text for eyes, and as JSON for programs.
//!
//! Pure: whether there are colours is the caller's to say.

use serde_json::{Value, json};

use crate::limiter::decision::Verdict;
use crate::limiter::quota::Period;

use super::super::compiled::FailureMode;
use super::super::describe::mode;
use super::{Explanation, Limit, Look, Outcome, Step};

/// Longest line of text, in characters.
const WIDTH: usize = 100;
/// Where what belongs to a step begins.
const INDENT: usize = 13;

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";

impl Limit {
    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "scope": self.scope,
            "period": self.period.as_str(),
            "limit": self.limit,
            "used": self.used,
            "remaining": self.remaining,
            "reset": self.reset,
            "quota": self.quota,
            "mode": mode(self.mode),
        })
    }
}

impl Explanation {
    /// For programs.
    pub fn to_json(&self) -> Value {
        let look = |look: &Look| {
            let Look { what, found, decides } = look;
            json!({ "what": what, "found": found, "decides": decides })
        };
        let step = |step: &Step| {
            json!({
                "step": step.name,
                "result": step.result,
                "looked_at": step.looked_at.iter().map(look).collect::<Vec<_>>(),
                "notes": step.notes,
            })
        };
        let (limited_by, retry_after) = match &self.outcome {
            Outcome::Checked { limited_by, retry_after, .. } => {
                (limited_by.as_deref(), *retry_after)
            }
            _ => (None, None),
        };
        let fields = self.fields.iter().map(|(name, value)| (name.clone(), json!(value)));
        json!({
            "request": {
                "method": self.method,
                "path": self.path,
                "host": self.host,
                "peer": self.peer,
            },
            "identity": self.identity.to_string(),
            "identifier_type": self.identity.identifier_type().as_str(),
            "tier": self.tier,
            "tier_source": self.tier_source.as_str(),
            "endpoint": self.endpoint,
            "cost": self.cost,
            "mode": mode(self.mode),
            "decision": self.outcome.decision(),
            "status": self.outcome.status(),
            "reason": self.sentence(),
            "limited_by": limited_by,
            "retry_after": retry_after,
            "limits": self.limits.iter().map(Limit::to_json).collect::<Vec<_>>(),
            "fields": fields.collect::<serde_json::Map<_, _>>(),
            "on_failure": self.on_failure.map(FailureMode::as_str),
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }

    /// For eyes; ends without a line end.
    pub fn to_text(&self, is_coloured: bool) -> String {
        let mut page = Page { lines: Vec::new(), is_coloured };
        let request = format!("{} {}", self.method, self.path);
        page.wrapped(&request, 0, 2, BOLD);
        let state = match self.is_live {
            true => "as things stand now",
            false => "by somebody who has sent nothing yet",
        };
        let place = format!("to {}, from {}, {state}", self.host, self.peer);
        page.wrapped(&place, 0, 2, DIM);
        for warning in &self.warnings {
            page.wrapped(&format!("warning: {warning}"), 0, 9, YELLOW);
        }
        for (index, step) in self.steps.iter().enumerate() {
            page.step(index + 1, step);
        }
        page.limits(self.steps.len() + 1, self);
        page.verdict(self.steps.len() + 2, self);
        page.lines.join("\n")
    }

    /// What comes of the request, in a sentence.
    pub fn sentence(&self) -> String {
        match &self.outcome {
            Outcome::Refused { status, why } => format!("refused with {status}: {why}"),
            Outcome::DenyListed => "refused with 403: the caller is on the deny list".to_owned(),
            Outcome::OwnPage => {
                "answered by tollgate itself: server.expose names this page".to_owned()
            }
            Outcome::Exempt => "forwarded: the endpoint is exempt from all limits".to_owned(),
            Outcome::Unlimited => {
                format!("forwarded: neither {} nor a rule limits it", self.tier)
            }
            Outcome::Checked { verdict: Verdict::Deny, limited_by, retry_after, .. } => {
                let by = limited_by.as_deref().unwrap_or("a limit");
                match retry_after {
                    Some(seconds) => {
                        format!("refused with 429 by {by}; it would pass in {seconds} s")
                    }
                    None => {
                        format!("refused with 429 by {by}, always: it costs more than that holds")
                    }
                }
            }
            Outcome::Checked { shadow_denied: true, limited_by, .. } => {
                let by = limited_by.as_deref().unwrap_or("a limit");
                format!("forwarded, though {by}, which is in shadow, would refuse it")
            }
            Outcome::Checked { .. } => "forwarded: every limit has room".to_owned(),
        }
    }

    fn without_redis(&self) -> String {
        match self.on_failure {
            None => "Limits are kept in memory: nothing else decides.".to_owned(),
            Some(FailureMode::Local) => {
                "While Redis does not answer, the same limits hold in this process's memory."
                    .to_owned()
            }
            Some(FailureMode::Open) => {
                "While Redis does not answer, the request passes unchecked.".to_owned()
            }
            Some(FailureMode::Closed) => {
                "While Redis does not answer, the request is refused with 503.".to_owned()
            }
        }
    }
}

/// The lines of a text that is being written.
struct Page {
    lines: Vec<String>,
    is_coloured: bool,
}

impl Page {
    fn step(&mut self, number: usize, step: &Step) {
        self.title(number, step.name, &step.result, BOLD);
        let widest = step.looked_at.iter().map(|look| look.what.chars().count()).max();
        let widest = widest.unwrap_or(0);
        for look in &step.looked_at {
            let mark = if look.decides { "→" } else { " " };
            let padded = pad(&look.what, widest);
            let line = format!("{:INDENT$}{mark} {padded}  {}", "", look.found);
            let style = if look.decides { "" } else { DIM };
            self.wrapped(&line, 0, INDENT + 4 + widest, style);
        }
        for note in &step.notes {
            self.wrapped(&format!("{:INDENT$}{note}", ""), 0, INDENT, "");
        }
    }

    fn limits(&mut self, number: usize, explanation: &Explanation) {
        let cost = explanation.cost;
        let limits = &explanation.limits;
        let result = if limits.is_empty() {
            "none is asked".to_owned()
        } else {
            format!("cost {cost} of each")
        };
        self.title(number, "limits", &result, BOLD);
        if limits.is_empty() {
            return;
        }
        let header = ["", "limit", "used", "left", "whole again", "mode"].map(str::to_owned);
        let rows: Vec<[String; 6]> = limits.iter().map(row).collect();
        let mut widths = header.clone().map(|cell| cell.chars().count());
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (index, row) in std::iter::once(&header).chain(&rows).enumerate() {
            let mut line = format!("{:INDENT$}", "");
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let is_number = (1..=3).contains(&column);
                let cell = if is_number { format!("{cell:>width$}") } else { pad(cell, width) };
                line.push_str(&cell);
                line.push_str("  ");
            }
            self.wrapped(line.trim_end(), 0, INDENT, if index == 0 { DIM } else { "" });
        }
    }

    fn verdict(&mut self, number: usize, explanation: &Explanation) {
        let word = match explanation.outcome {
            // The access log's word, "none", says that no limit was asked: no verdict for eyes.
            Outcome::Refused { .. } => "refused",
            _ => explanation.outcome.decision(),
        };
        let style = match word {
            "allow" | "exempt" => GREEN,
            "shadow_deny" => YELLOW,
            _ if explanation.outcome.status().is_none() => GREEN,
            _ => RED,
        };
        self.title(number, "verdict", word, style);
        let mut sentence = explanation.sentence();
        if let Some(first) = sentence.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        self.wrapped(&format!("{:INDENT$}{sentence}.", ""), 0, INDENT, "");
        for (name, value) in &explanation.fields {
            self.wrapped(&format!("{:INDENT$}  {name}: {value}", ""), 0, INDENT + 4, "");
        }
        if matches!(explanation.outcome, Outcome::Checked { .. }) {
            self.wrapped(&format!("{:INDENT$}{}", "", explanation.without_redis()), 0, INDENT, "");
        }
    }

    fn title(&mut self, number: usize, name: &str, result: &str, style: &str) {
        let mut title = name.to_owned();
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        self.lines.push(String::new());
        let width = INDENT - 3;
        let line = format!("{number}  {}{result}", pad(&title, width));
        self.wrapped(&line, INDENT, INDENT, style);
    }

    /// Adds a text, broken into lines of at most [`WIDTH`] characters; those behind the first begin
    /// at `hang`. The style holds from character `from` on.
    fn wrapped(&mut self, text: &str, from: usize, hang: usize, style: &str) {
        for (index, line) in wrap(text, hang).into_iter().enumerate() {
            let start = if index == 0 { from } else { 0 };
            let split = line.char_indices().nth(start).map_or(line.len(), |(at, _)| at);
            let (plain, styled) = line.split_at_checked(split).unwrap_or((&line, ""));
            let is_plain = style.is_empty() || styled.is_empty() || !self.is_coloured;
            let line = match is_plain {
                true => line,
                false => format!("{plain}\u{1b}[{style}m{styled}\u{1b}[0m"),
            };
            self.lines.push(line);
        }
    }
}

fn row(limit: &Limit) -> [String; 6] {
    let rate = match limit.period {
        Period::Second => format!(", {} a second", limit.quota),
        _ => String::new(),
    };
    [
        limit.name.clone(),
        limit.limit.to_string(),
        limit.used.to_string(),
        limit.remaining.to_string(),
        format!("in {} s", limit.whole_in),
        format!("{}{rate}", mode(limit.mode)),
    ]
}

fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count());
    format!("{text}{:missing$}", "")
}

/// Breaks a text at its blanks; a word that is longer than a line is cut.
fn wrap(text: &str, hang: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest: Vec<char> = text.chars().collect();
    while rest.len() > WIDTH {
        let head = rest.get(..WIDTH + 1).unwrap_or_default();
        // What stands before the text of a line is no place to break it at.
        let begins = head.iter().take_while(|it| **it == ' ').count().max(hang) + 1;
        let blank = head.iter().rposition(|it| *it == ' ').filter(|at| *at > begins);
        let at = blank.unwrap_or(WIDTH);
        let tail = rest.split_off(at);
        lines.push(rest.iter().collect::<String>().trim_end().to_owned());
        let hanging = std::iter::repeat_n(' ', hang);
        rest = hanging.chain(tail.into_iter().skip_while(|it| *it == ' ')).collect();
    }
    lines.push(rest.into_iter().collect());
    lines
}
