//! Files that are made from others, and committed: each test finds that they are what is made now,
//! or with `TOLLGATE_UPDATE=1` writes them anew.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;

/// Whether files are to be written instead of compared.
pub fn is_to_be_written() -> bool {
    std::env::var_os("TOLLGATE_UPDATE").is_some()
}

/// A whole file.
pub fn expect_file(path: impl AsRef<Path>, made: &str) {
    let path = path.as_ref();
    if is_to_be_written() {
        // Others read it meanwhile.
        let new = path.with_extension("new");
        fs::write(&new, made).unwrap();
        fs::rename(new, path).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == made, "{} is old: TOLLGATE_UPDATE=1 makes it anew", path.display());
}

/// What stands in a file between two marks.
pub fn expect_part(path: impl AsRef<Path>, (begin, end): (&str, &str), made: &str) {
    let path = path.as_ref();
    let text = fs::read_to_string(path).unwrap_or_else(|_| panic!("no {}", path.display()));
    let missing = || panic!("{}: no part that is made", path.display());
    let (before, rest) = text.split_once(begin).unwrap_or_else(missing);
    let (_, after) = rest.split_once(end).unwrap_or_else(missing);
    expect_file(path, &format!("{before}{begin}{made}{end}{after}"));
}
