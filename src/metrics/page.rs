//! The page of all metrics, in Markdown: `docs/metrics.md` is what this makes of the registry.

use std::fmt::Write;

use metrics::Unit;

use super::labels::Values;
use super::names::{ALL, CORE, Desc, Kind};

const INTRODUCTION: &str = "\
# Metrics

<!-- Made from src/metrics/names.rs by `tollgate schema metrics > docs/metrics.md`. -->

`GET /metrics` on the admin port answers in Prometheus's text format. This page is made from the
registry that the program itself uses: `tollgate schema metrics` prints it for the version at hand.

- Names marked as **core** never change. Others change only with a note in the changelog.
- A reading changes nothing: any number of scrapers see the same values, and the same peaks.
- Scrape every 15 seconds, and take rates over at least two minutes.
- No label holds an address, a user or a path that a caller sent. Labels are closed sets, which are
  listed here, or names from the configuration. `endpoint` is the name of the rule that matched, and
  `other` where none did; beyond 200 rules the rest share `other`, too, which is counted.
- A series that can exist is there from the start, at 0, so that a rate sees its first increment.
  What depends on a feature (TLS, Redis, a database, key sets) is there once that is configured, and
  kinds of identities once something makes them: `user` with tokens, `key` with API keys.
- Two families have more combinations than are worth their memory. Of `tollgate_requests_total` each
  endpoint has nine for GET and for POST from the start: `allowed` with 2xx, 3xx and 4xx, `limited`
  with 4xx, `upstream_error`, `proxy_error` and `shed` with 5xx, `client_abort` with 2xx and none.
  With the first request of another method its nine are there; what is rarer comes as it happens.
  Of `tollgate_request_duration_seconds` there are `allowed` and `limited`, the others as they happen.
- Counters live as long as the process, reloads of the policy included. The series of a rule or tier
  that a reload took away are shown for an hour more, from the first scrape without it: it may come
  back. If its place is needed for a new rule, they go at once.
- How many series there are: with 4 tiers and two kinds of identities about 80 for each endpoint, 4
  more for each window of its own limits, and some 500 beside them: 3,000 for 30 endpoints.
";

/// Labels that configuration or the build gives their values, and where from.
const OPEN: &[(&str, &str)] = &[
    ("commit", "what was built"),
    ("endpoint", "rules of the policy, and `other`"),
    ("hash", "hexadecimal digits"),
    ("listener", "addresses of `server.listeners`"),
    ("metric", "names of this page"),
    ("pool", "`upstream`, `database`"),
    ("rule", "rules of the policy; `tier` for the tier's own limits"),
    ("rustc", "what it was built with"),
    ("tier", "tiers of the policy"),
    ("upstream", "hosts and ports or paths of `upstream.urls`; `default` for the only one"),
    ("version", "what was built"),
    ("worker", "workers by number, from 0; `control` for the thread of the admin port"),
];

/// Where the values of a label come from that is no closed set.
pub fn origin(label: &str) -> Option<&'static str> {
    OPEN.iter().find(|(name, _)| *name == label).map(|(_, origin)| *origin)
}

/// The whole page.
pub fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut group = "";
    for desc in ALL {
        if group != desc.group {
            group = desc.group;
            // Writing to a string cannot fail, here and below.
            let _ = write!(text, "\n## {group}\n");
        }
        entry(&mut text, desc);
    }
    text
}

fn entry(text: &mut String, desc: &Desc) {
    let kind = match desc.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let unit = match desc.unit {
        Unit::Seconds => ", seconds",
        Unit::Bytes => ", bytes",
        _ => "",
    };
    let core = if CORE.contains(&desc.name) { ", **core**" } else { "" };
    let _ = write!(text, "\n### `{}`\n\n{kind}{unit}{core}", desc.name);
    let labels = || desc.labels.iter().zip(desc.values);
    for (index, (label, values)) in labels().enumerate() {
        let before = if index == 0 { "; labels" } else { "," };
        let origin = origin(label).filter(|_| values.is_empty());
        let origin = origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
        let _ = write!(text, "{before} `{label}`{origin}");
    }
    let _ = write!(text, "\n\n{}\n", desc.help);
    if !desc.meaning.is_empty() {
        let _ = write!(text, "\n{}\n", desc.meaning);
    }
    for (label, values) in labels().filter(|(_, values)| !values.is_empty()) {
        closed_set(text, label, values);
    }
}

fn closed_set(text: &mut String, label: &str, values: Values) {
    let _ = write!(text, "\n| `{label}` | |\n|---|---|\n");
    for (value, says) in values {
        let _ = writeln!(text, "| `{value}` | {} |", says.trim());
    }
}
