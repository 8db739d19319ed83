//! Every metric, as the page of metrics documents it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::process::Command;

use tollgate::metrics::names;
use tollgate::metrics::page;

#[test]
fn the_page_of_metrics_is_made_from_the_registry() {
    let printed = Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .args(["schema", "metrics"])
        .output()
        .expect("tollgate runs");
    assert!(printed.status.success());
    let printed = String::from_utf8(printed.stdout).unwrap();
    let shipped = std::fs::read_to_string("docs/metrics.md").unwrap();
    assert!(
        printed == shipped,
        "docs/metrics.md is not what the registry says; run: \
         cargo run -q -- schema metrics > docs/metrics.md"
    );
}

#[test]
fn every_metric_says_what_it_means_and_every_label_what_it_holds() {
    for desc in names::ALL {
        let name = desc.name;
        assert!(desc.meaning.len() > 20, "{name} has no meaning: its second text in names.rs");
        assert!(desc.meaning.ends_with('.'), "{name}: {}", desc.meaning);
        assert_ne!(desc.meaning, desc.help, "{name}");
        for (label, values) in desc.labels.iter().zip(desc.values) {
            let is_open = page::origin(label).is_some();
            assert!(
                values.is_empty() == is_open,
                "{name}: label {label} needs its closed set, `\"{label}\": TheEnum` in names.rs \
                 (an enum of metrics::labels), or else its origin in OPEN of metrics/page.rs"
            );
        }
    }
}
