//! A browser, where there is one.

use std::path::PathBuf;

/// Where Chromium is, if it is there.
pub fn chromium() -> PathBuf {
    std::env::var_os("CHROMIUM").map_or_else(|| "/usr/bin/chromium".into(), PathBuf::from)
}

/// Whether all that a test in a browser needs is there, each with its name; with
/// `TOLLGATE_REQUIRE_BROWSER=1` its lack is a failure.
pub fn has_all(needed: &[(&str, bool)]) -> bool {
    let missing: Vec<&str> = needed.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var_os("TOLLGATE_REQUIRE_BROWSER").is_none_or(|it| it != "1"),
        "TOLLGATE_REQUIRE_BROWSER=1, but there is no {}",
        missing.join(", no ")
    );
    println!("skipped: there is no {}", missing.join(", no "));
    false
}
