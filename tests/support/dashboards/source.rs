//! `deploy/grafana/dashboards.yaml` as it is written; its head says what the fields mean.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Pages of the admin port, by the name under which texts mention them.
    pub links: BTreeMap<String, Link>,
    /// Where the admin port is until somebody says otherwise.
    pub admin: String,
    /// Names and colours of values.
    pub states: BTreeMap<String, Vec<State>>,
    /// The dashboards, in the order in which they link to each other.
    pub dashboards: Vec<Board>,
}

/// A page to go to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// What it is called.
    pub title: String,
    /// Where it is; `${admin}` is the admin port.
    pub url: String,
}

/// What a value is called.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The value.
    pub value: f64,
    /// Its name.
    pub text: String,
    /// Its colour.
    pub colour: String,
}

/// One dashboard.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// Its name in addresses, and of its file.
    pub uid: String,
    /// Its name for people.
    pub title: String,
    /// What it answers.
    pub description: String,
    /// Variables beside those that all have.
    #[serde(default)]
    pub variables: Vec<String>,
    /// Its rows, from the top.
    pub rows: Vec<Row>,
}

/// Panels under one heading.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The heading.
    pub title: String,
    /// Height of panels that do not say their own.
    #[serde(default = "eight")]
    pub height: u32,
    /// Whether only the heading is shown at first.
    #[serde(default)]
    pub collapsed: bool,
    /// From left to right, and then down.
    pub panels: Vec<Panel>,
}

/// One panel.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Panel {
    /// What it shows, in a few words.
    pub title: String,
    /// What it says, and from where on it is bad.
    pub description: String,
    /// How it is drawn.
    #[serde(default = "timeseries", rename = "type")]
    pub kind: String,
    /// Of 24.
    #[serde(default = "eight")]
    pub width: u32,
    /// Where it is not the row's.
    pub height: Option<u32>,
    /// By its name in Grafana.
    #[serde(default)]
    pub unit: String,
    /// Digits behind the point.
    pub decimals: Option<u32>,
    /// Lower end of the axis: 0, unless it is said to be none.
    #[serde(default = "zero", deserialize_with = "end")]
    pub min: Option<f64>,
    /// Upper end of the axis.
    pub max: Option<f64>,
    /// What is asked.
    #[serde(default)]
    pub queries: Vec<Query>,
    /// Three more questions of the same kind.
    pub quantiles: Option<Quantiles>,
    /// Colours from these values on.
    #[serde(default)]
    pub thresholds: Vec<(f64, String)>,
    /// The colour below the first threshold.
    #[serde(default = "green")]
    pub base: String,
    /// The list in `states` that names the values.
    pub states: Option<String>,
    /// Colours of series by their names.
    #[serde(default)]
    pub colours: BTreeMap<String, String>,
    /// Whether series are added up.
    #[serde(default)]
    pub stack: bool,
    /// Why a range is not `$__rate_interval`.
    pub fixed_window: Option<String>,
    /// The column that a table is sorted by.
    pub sort: Option<String>,
    /// What a text says.
    pub content: Option<String>,
}

/// One question.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// PromQL, without the selectors that every question has.
    pub expr: String,
    /// The name of a series, or of a table's column.
    #[serde(default)]
    pub legend: String,
    /// Of a table's column.
    pub unit: Option<String>,
    /// Of a table's column.
    #[serde(default)]
    pub thresholds: Vec<(f64, String)>,
    /// Whether a table leaves its value out, and shows its labels alone.
    #[serde(default)]
    pub hidden: bool,
}

/// P50, P95 and P99 of a histogram.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    /// The histogram.
    pub of: String,
    /// Labels that are told apart.
    #[serde(default)]
    pub by: Vec<String>,
    /// Matchers.
    #[serde(default, rename = "where")]
    pub only: String,
    /// Whether nothing is shown as 0.
    #[serde(default)]
    pub or_zero: bool,
}

fn eight() -> u32 {
    8
}

fn timeseries() -> String {
    "timeseries".to_owned()
}

fn green() -> String {
    "green".to_owned()
}

#[allow(clippy::unnecessary_wraps, reason = "the type of the field")]
fn zero() -> Option<f64> {
    Some(0.0)
}

/// `null` is an answer here: no end.
fn end<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Option::deserialize(from)
}

impl Source {
    /// Reads the file.
    pub fn read() -> Self {
        let text = std::fs::read_to_string("deploy/grafana/dashboards.yaml").unwrap();
        serde_yaml::from_str(&text).unwrap()
    }

    /// A text with its links filled in: `{top.url}`.
    pub fn fill(&self, text: &str) -> String {
        self.links.iter().fold(text.to_owned(), |text, (name, link)| {
            text.replace(&format!("{{{name}.title}}"), &link.title)
                .replace(&format!("{{{name}.url}}"), &link.url)
        })
    }
}

impl Panel {
    /// All questions, the percentiles written out.
    pub fn all_queries(&self) -> Vec<Query> {
        let mut queries = self.queries.clone();
        let Some(Quantiles { of, by, only, or_zero }) = &self.quantiles else { return queries };
        let (mut labels, mut name) = (by.join(", "), String::new());
        for label in by {
            name += &format!("{{{{{label}}}}} ");
        }
        if !labels.is_empty() {
            labels += ", ";
        }
        let only = if only.is_empty() { String::new() } else { format!("{{{only}}}") };
        // Nothing happened: not a number, which `>= 0` leaves out.
        let end = if *or_zero { " >= 0 or vector(0)" } else { "" };
        for (share, word) in [("0.5", "P50"), ("0.95", "P95"), ("0.99", "P99")] {
            queries.push(Query {
                expr: format!(
                    "histogram_quantile({share}, sum by ({labels}le) \
                     (rate({of}_bucket{only}[$__rate_interval]))){end}"
                ),
                legend: format!("{name}{word}"),
                unit: None,
                thresholds: Vec::new(),
                hidden: false,
            });
        }
        queries
    }
}
