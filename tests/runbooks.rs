//! Every alert has a runbook that says what the rule says, and every runbook has an alert. The head of
//! each page and the table of the index are made from `deploy/prometheus`, by
//! `TOLLGATE_UPDATE=1 cargo test --test runbooks`, so that they never differ.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/made.rs"]
mod made;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

const RUNBOOKS: &str = "docs/runbooks";
const BEGIN: &str = "<!-- Made from deploy/prometheus by tests/runbooks.rs -->\n";
const END: &str = "<!-- to here -->\n";
/// The parts that each page has, in this order.
const PARTS: [&str; 7] = [
    "\n**Meaning.** ",
    "\n**Callers feel**",
    "\n## Look\n",
    "\n## Which of them\n",
    "\n## Do\n",
    "\n## Over\n",
    "\n**Related:** ",
];

struct Alert {
    file: String,
    rule: Value,
}

impl Alert {
    fn name(&self) -> &str {
        self.rule["alert"].as_str().unwrap()
    }

    fn of(&self, key: &str, name: &str) -> &str {
        self.rule[key][name].as_str().unwrap_or_else(|| panic!("{}: no {name}", self.name()))
    }

    fn page(&self) -> PathBuf {
        Path::new(RUNBOOKS).join(format!("{}.md", self.name()))
    }

    fn lasts(&self) -> String {
        self.rule["for"].as_str().map_or("at once".to_owned(), |it| format!("for {it}"))
    }

    /// What a page says of the rule itself.
    fn head(&self) -> String {
        let (severity, category) = (self.of("labels", "severity"), self.of("labels", "category"));
        let dashboard = self.of("annotations", "dashboard");
        let board = format!("deploy/grafana/dashboards/{dashboard}.json");
        assert!(Path::new(&board).exists(), "{}: no {board}", self.name());
        format!(
            "{severity} · {category} · {} · [{file}](../../deploy/prometheus/{file}) · dashboard \
             [{dashboard}](../../{board})\n\n```promql\n{}\n```\n",
            self.lasts(),
            self.rule["expr"].as_str().unwrap().trim_end(),
            file = self.file,
        )
    }
}

/// All alerts, in the order of their files.
fn alerts() -> Vec<Alert> {
    let directory = Path::new("deploy/prometheus");
    let read = |name: &str| -> Value {
        serde_yaml::from_str(&fs::read_to_string(directory.join(name)).unwrap()).unwrap()
    };
    let mut alerts = Vec::new();
    for file in read("prometheus.yml")["rule_files"].as_array().unwrap() {
        let file = file.as_str().unwrap();
        for group in read(file)["groups"].as_array().unwrap() {
            let rules = group["rules"].as_array().unwrap().iter();
            let rules = rules.filter(|it| it["alert"].is_string()).cloned();
            alerts.extend(rules.map(|rule| Alert { file: file.to_owned(), rule }));
        }
    }
    alerts
}

fn expect(page: &Path, made: &str) {
    made::expect_part(page, (BEGIN, END), &format!("\n{made}\n"));
}

#[test]
fn every_page_says_what_its_rule_says() {
    let alerts = alerts();
    assert!(alerts.len() >= 46, "{}", alerts.len());
    for alert in alerts {
        expect(&alert.page(), &alert.head());
        let link = format!("{}/{}.md", RUNBOOKS, alert.name());
        assert!(alert.of("annotations", "runbook_url").ends_with(&link), "{link}");
    }
}

#[test]
fn the_index_has_every_alert() {
    let mut table = "| alert | severity | what is wrong |\n|---|---|---|\n".to_owned();
    let mut file = String::new();
    for alert in alerts() {
        if alert.file != file {
            file = alert.file.clone();
            writeln!(table, "| **`{file}`** | | |").unwrap();
        }
        let (name, severity) = (alert.name(), alert.of("labels", "severity"));
        // The first sentence of what the page says that it means.
        let page = fs::read_to_string(alert.page()).unwrap();
        let (_, means) = page.split_once(PARTS[0]).unwrap_or_else(|| panic!("{name}"));
        let means = means.split("\n\n").next().unwrap().replace('\n', " ");
        let sentence = means.split_once(". ").map_or(means.trim_end_matches('.'), |it| it.0);
        writeln!(table, "| [{name}]({name}.md) | {severity} | {sentence} |").unwrap();
    }
    expect(&Path::new(RUNBOOKS).join("README.md"), &table);
}

#[test]
fn every_page_has_an_alert_and_all_its_parts() {
    let alerts = alerts();
    for entry in fs::read_dir(RUNBOOKS).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "README" || path.extension().is_some_and(|it| it == "new") {
            continue;
        }
        assert!(alerts.iter().any(|it| it.name() == name), "{name}: there is no such alert");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("# {name}\n")), "{name}: its title");
        let mut from = 0;
        for part in PARTS {
            let at = text[from..].find(part).unwrap_or_else(|| panic!("{name}: no {part:?}"));
            from += at;
        }
        // One or two screens, of which the commands and their output are the most.
        let lines = text.lines().count();
        assert!((30..=120).contains(&lines), "{name}: {lines} lines");
        assert!(text.matches("\n$ ").count() >= 3, "{name}: three commands to begin with");
        let (_, related) = text.rsplit_once(PARTS[6]).unwrap();
        for link in related.split("](").skip(1).filter_map(|it| it.split_once(')')) {
            let target = Path::new(RUNBOOKS).join(link.0);
            assert!(target.exists(), "{name}: {}", link.0);
        }
    }
}
