//! What paths are read as, and which are refused.

use proptest::prelude::*;

use super::*;

/// Reads `raw` and compares; one argument for both readings where they are the same.
fn check(raw: &str, strict: &str, lenient: &str) {
    let readings = Readings::of(raw.as_bytes()).unwrap_or_else(|error| panic!("{raw}: {error}"));
    let found = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\'", "'");
    assert_eq!(found(readings.strict()), strict, "strict reading of {raw}");
    assert_eq!(found(readings.lenient()), lenient, "lenient reading of {raw}");
    assert_eq!(readings.agree(), strict == lenient, "{raw}");
}

fn check_refused(raw: &[u8], error: PathError) {
    assert_eq!(Readings::of(raw), Err(error), "{}", raw.escape_ascii());
}

#[test]
fn plain_paths_read_as_they_are() {
    for path in ["/", "/a", "/fo/history/2025", "/a-b_c~d.e/f", "/a!$&'()*+,=:@b/c", "/a..b"] {
        check(path, path, path);
        let readings = Readings::of(path.as_bytes()).unwrap();
        assert!(matches!(readings.strict, Cow::Borrowed(_)), "{path} takes the short way");
    }
    check("/.well-known/x", "/.well-known/x", "/.well-known/x");
    check("/...", "/...", "/...");
}

#[test]
fn what_is_no_path_of_its_own_still_has_a_reading() {
    check("", "/", "/"); // RFC 9110 §4.2.3
    check("*", "*", "*"); // RFC 9112 §3.2.4
    check("/a?b=/../..", "/a", "/a"); // RFC 3986 §3.3
    check("/a#/../..", "/a", "/a"); // CVE-2023-45539: `#` never belongs to a path
    check_refused(b"a/b", PathError::NotAbsolute);
    check_refused(b"*/a", PathError::NotAbsolute);
    check_refused(b"http://host/a", PathError::NotAbsolute);
}

#[test]
fn unreserved_characters_are_decoded_in_both() {
    // RFC 3986 §6.2.2.2, §2.3
    check("/%61%7E%2d%5f%2E%30", "/a~-_.0", "/a~-_.0");
    check("/he%61lthz", "/healthz", "/healthz");
    check("/%41", "/A", "/a");
}

#[test]
fn reserved_characters_are_decoded_in_the_lenient_reading_alone() {
    // RFC 3986 §2.2; the digits' case: §6.2.2.1
    check("/a%2fb", "/a%2Fb", "/a/b");
    check("/a%3ab", "/a%3Ab", "/a:b");
    check("/a%3Fb", "/a%3Fb", "/a?b");
    check("/a%20b", "/a%20b", "/a b");
}

#[test]
fn bytes_that_are_no_uri_stand_for_their_encoding() {
    check("/caf\u{e9}", "/caf%C3%A9", "/caf\\xc3\\xa9");
    check("/caf%c3%a9", "/caf%C3%A9", "/caf\\xc3\\xa9");
    check("/{\"a\"}", "/%7B%22a%22%7D", "/{\\\"a\\\"}");
    check("/%ff%fe", "/%FF%FE", "/\\xff\\xfe"); // no UTF-8
}

#[test]
fn dot_segments_are_removed() {
    // RFC 3986 §5.2.4, and its two examples
    check("/a/b/c/./../../g", "/a/g", "/a/g");
    check("/mid/content=5/../6", "/mid/6", "/mid/6");
    check("/a/./b", "/a/b", "/a/b");
    check("/a/.", "/a/", "/a");
    check("/a/b/..", "/a/", "/a");
    check("/a/..", "/", "/");
    check("/.", "/", "/");
    check("/a/%2e%2E/b", "/b", "/b");
    check("/a/%2e/b", "/a/b", "/a/b");
    check("/a/.%2e/b", "/b", "/b");
}

#[test]
fn the_lenient_reading_decodes_twice_and_no_more() {
    check("/%2561", "/%2561", "/a");
    check("/a/%252e%252e/b", "/a/%252e%252e/b", "/b"); // CVE-2021-41773 and its kin
    check("/a%25252fb", "/a%25252fb", "/a%2fb");
    check("/100%25", "/100%25", "/100%");
    check("/100%25zz", "/100%25zz", "/100%zz");
    check("/%2541", "/%2541", "/a");
}

#[test]
fn the_lenient_reading_folds_what_backends_fold() {
    check("/a%5cb", "/a%5Cb", "/a/b");
    check("/a%255Cb", "/a%255Cb", "/a/b");
    check("//a///b", "//a///b", "/a/b"); // GHSA-x732-6j76-qmhm
    check("/a/", "/a/", "/a");
    check("//", "//", "/");
    check("/A/b", "/A/b", "/a/b");
    check("/a;v=1/b;x", "/a;v=1/b;x", "/a/b");
    check("/a%3bv=1/b", "/a%3Bv=1/b", "/a/b");
    check("/;a=b/x", "/;a=b/x", "/x");
    check("/x/..;a=b/y", "/x/..;a=b/y", "/y"); // CVE-2026-73551
    check("/x/.;a=b/y", "/x/.;a=b/y", "/x/y");
    check("/x/%2e%2e;/y", "/x/..;/y", "/y");
    check("/x%2f..%2fy", "/x%2F..%2Fy", "/y"); // GHSA-gm3x-23wp-hc2c
}

#[test]
fn where_a_path_is_in_doubt_there_are_further_readings() {
    let has = |path: &str, reading: &str, is_exact: bool| {
        let readings = Readings::of(path.as_bytes()).unwrap();
        let wanted = Further { path: reading.into(), is_exact };
        assert!(readings.further().contains(&wanted), "{path}: {:?}", readings.further());
    };
    has("/fo/history/../../x", "/fo/history/../../x", false); // no dot segments removed
    has("/A/B/./..", "/a/b/./..", false);
    has("/fo%2fhistory/..;/x", "/fo/history/..;/x", true); // `..;` is a name
    has("/A/b%2fc/D", "/a/b\0c/d", false); // a slash that is part of a name
    has("/A/;x/d", "/a/;x/d", false);
    has("/a%0a", "/a", false); // what `$` matches
    has("/a;x%2fy/..%2fb", "/b", false); // parameters cut before decoding
    has("/A/%62", "/a/%62", false); // nothing decoded
    has("/A%2Cb", "/A,b", true);
    has("/A%2Fb%2f", "/A/b/", true);
    // Spellings on which all agree have none.
    for path in ["/", "/a/b", "/A/b/", "/caf%C3%A9", "/a%20b", "/a;v=1/b", "/.well-known"] {
        assert!(Readings::of(path.as_bytes()).unwrap().further().is_empty(), "{path}");
    }
}

#[test]
fn an_empty_segment_is_one_to_the_strict_reading() {
    // RFC 3986 §5.2.4: `..` takes the empty segment, where merging first takes `a`.
    check("/a//../b", "/a/b", "/b");
    check("/a//.", "/a//", "/a");
}

#[test]
fn nul_is_refused_in_any_encoding() {
    for path in ["/a\0", "/a%00", "/a%2500", "/a%25%30%30", "/%c0%80", "/%25c0%2580"] {
        check_refused(path.as_bytes(), PathError::Nul);
    }
    check("/a%252500", "/a%252500", "/a%00"); // a third layer that nobody takes off
}

#[test]
fn malformed_escapes_are_refused() {
    for path in ["/%", "/a%2", "/a%zz", "/%%41", "/%u0041", "/%+1", "/%1/2", "/%\u{e9}"] {
        check_refused(path.as_bytes(), PathError::Escape);
    }
}

#[test]
fn raw_control_characters_and_backslashes_are_refused() {
    for byte in (1..0x20).chain([0x7f]) {
        check_refused(&[b'/', byte], PathError::Control);
    }
    check_refused(b"/a\\b", PathError::Backslash);
    check("/a%0ab", "/a%0Ab", "/a\\nb"); // encoded ones are the backend's business
}

#[test]
fn the_root_is_never_left() {
    for path in ["/..", "/../a", "/a/../..", "/%2e%2e/a", "/./..", "/a/b/../../../c"] {
        check_refused(path.as_bytes(), PathError::AboveRoot);
    }
    // Only a forgiving backend leaves it.
    for path in ["/..;a=b/", "/%252e%252e/a", "/a%2f..%2f..", "//../a", "/..%5ca", "/a/..;/..;"] {
        check_refused(path.as_bytes(), PathError::AboveRoot);
    }
}

#[test]
fn long_paths_are_read_in_one_go() {
    let deep = "/a".repeat(30_000) + &"/..".repeat(30_000);
    check(&deep, "/", "/");
    let dots = "/a/..".repeat(12_000);
    check(&dots, "/", "/");
    check_refused((dots + "/..").as_bytes(), PathError::AboveRoot);
}

proptest! {
    #[test]
    fn the_short_way_leads_where_the_long_one_does(path in "/([a-cA-C.;%/=~-]|%2[ef5]){0,12}") {
        prop_assert_eq!(Readings::of(path.as_bytes()), Readings::of_any(path.as_bytes()));
    }

    #[test]
    fn plain_looking_paths_take_either_way(path in "(/[a-c]{0,2}[A.]?){0,5}/?") {
        prop_assert_eq!(Readings::of(path.as_bytes()), Readings::of_any(path.as_bytes()));
    }

    #[test]
    fn no_bytes_make_it_panic(path in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Readings::of(&path);
        let rooted: Vec<u8> = std::iter::once(b'/').chain(path).collect();
        let _ = Readings::of(&rooted);
    }

    #[test]
    fn readings_are_normal_and_without_dot_segments(path in "/([a-cA-C.;/=]|%2[ef5]|%25){0,16}") {
        let Ok(readings) = Readings::of(path.as_bytes()) else { return Ok(()) };
        let again = Readings::of(readings.strict()).unwrap();
        prop_assert_eq!(again.strict(), readings.strict());
        for reading in [readings.strict(), readings.lenient()] {
            prop_assert_eq!(reading.first(), Some(&b'/'));
            let mut segments = reading.split(|byte| *byte == b'/');
            prop_assert!(!segments.any(|segment| matches!(segment, b"." | b"..")));
        }
    }
}
