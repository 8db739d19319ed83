//! The two readings of a request's path, and the paths that have no safe reading.
//!
//! A backend may read a path by the letter, or forgive much; which one stands behind the proxy is
//! not known here. So every path is read both ways, on copies: the bytes that are forwarded are
//! never touched. This file knows nothing of rules.
//!
//! *Strict* is the normal form of RFC 3986 §6.2.2: unreserved characters are percent-decoded, the
//! hex digits of what stays encoded are upper case, dot segments are removed (§5.2.4). A byte that
//! no URI may hold raw (`{`, `"`, anything outside of ASCII) stands for its encoding.
//!
//! *Lenient* is what the most forgiving backend would make of it, in this order: percent-decoded
//! twice, `\` read as `/`, everything from `;` on cut from each segment, runs of slashes merged,
//! dot segments removed, a trailing slash cut, ASCII letters folded to lower case. A third layer of
//! encoding stays as it is, and so does a `%` that the first decoding made and that begins no
//! escape: `100%25` is honest.

use std::borrow::Cow;

use super::route::PathError;

/// Both readings of one path. Borrowed where the path reads as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings<'a> {
    strict: Cow<'a, [u8]>,
    /// `None`: the same bytes as `strict`.
    lenient: Option<Cow<'a, [u8]>>,
}

impl<'a> Readings<'a> {
    /// Reads a path: no scheme, no authority. A query or a fragment ends it (RFC 3986 §3.3), an
    /// empty one is `/` (RFC 9110 §4.2.3), and the `*` of `OPTIONS *` stays `*` in both readings.
    ///
    /// # Errors
    /// A path that must be refused. `..` above the root counts in either reading: one that only a
    /// forgiving backend would leave the root by is an attack on such a backend, and no honest
    /// client has a use for it.
    pub fn of(raw: &'a [u8]) -> Result<Self, PathError> {
        let (same, shape) = match raw.first() {
            Some(b'/') => (raw, shape(raw)),
            _ => (raw, Shape::Odd),
        };
        match shape {
            Shape::Plain => Ok(Readings { strict: Cow::Borrowed(same), lenient: None }),
            Shape::Cased => Ok(Readings {
                strict: Cow::Borrowed(same),
                lenient: Some(Cow::Owned(same.to_ascii_lowercase())),
            }),
            Shape::Odd => Self::of_any(raw),
        }
    }

    /// The same for any path, without the shortcuts.
    fn of_any(raw: &[u8]) -> Result<Self, PathError> {
        let path = raw.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        let path = match path {
            b"" => b"/",
            b"*" => return Ok(Readings { strict: Cow::Owned(b"*".to_vec()), lenient: None }),
            [b'/', ..] => path,
            _ => return Err(PathError::NotAbsolute),
        };
        check_bytes(path)?;
        let decoded = decode_twice(path);
        check_no_nul(&decoded)?;
        let strict = strict(path)?;
        let lenient = lenient(&decoded)?;
        let lenient = (lenient != strict).then_some(Cow::Owned(lenient));
        Ok(Readings { strict: Cow::Owned(strict), lenient })
    }

    /// The reading by the letter.
    pub fn strict(&self) -> &[u8] {
        &self.strict
    }

    /// The reading of the most forgiving backend.
    pub fn lenient(&self) -> &[u8] {
        self.lenient.as_ref().unwrap_or(&self.strict)
    }

    /// Whether both readings are the same bytes: the path leaves no doubt.
    pub fn agree(&self) -> bool {
        self.lenient.is_none()
    }
}

/// Refuses bytes that no path may hold, and escapes that are none.
///
/// # Errors
/// The first fault.
pub fn check_bytes(path: &[u8]) -> Result<(), PathError> {
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        rest = match byte {
            0 => return Err(PathError::Nul),
            0x01..=0x1f | 0x7f => return Err(PathError::Control),
            b'\\' => return Err(PathError::Backslash),
            b'%' => escape(tail).ok_or(PathError::Escape)?.1,
            _ => tail,
        };
    }
    Ok(())
}

/// Refuses a NUL in what [`decode_twice`] made, the two-byte form of "modified UTF-8" included: no
/// character of UTF-8 begins with `C0`, and decoders that forgive overlong forms make a NUL of it.
///
/// # Errors
/// There is one.
pub fn check_no_nul(decoded: &[u8]) -> Result<(), PathError> {
    let nul = decoded.contains(&0) || decoded.windows(2).any(|pair| pair == [0xc0, 0x80]);
    if nul { Err(PathError::Nul) } else { Ok(()) }
}

/// Appends the normal form of one segment (RFC 3986 §6.2.2): what is unreserved is decoded, what
/// must be encoded is, with digits in upper case.
pub fn push_normal(segment: &[u8], normal: &mut Vec<u8>) {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    let digit = |value: u8| DIGITS.get(usize::from(value)).copied().unwrap_or_default();
    let mut rest = segment;
    while let [byte, tail @ ..] = rest {
        let (byte, raw, next) = match (byte, escape(tail)) {
            (b'%', Some((decoded, next))) => (decoded, is_unreserved(decoded), next),
            (b'%', None) => (b'%', false, tail),
            (byte, _) => (*byte, is_unreserved(*byte) || is_reserved_in_path(*byte), tail),
        };
        if raw {
            normal.push(byte);
        } else {
            normal.extend([b'%', digit(byte >> 4), digit(byte & 0xf)]);
        }
        rest = next;
    }
}

/// Decodes every escape, and then every escape of the result.
pub fn decode_twice(raw: &[u8]) -> Vec<u8> {
    decode(&decode(raw))
}

/// The segments of a decoded path as a forgiving backend cuts them: at either slash, without
/// parameters, empty ones left out. Dot segments are still there.
pub fn forgiving_segments(decoded: &[u8]) -> impl Iterator<Item = &[u8]> {
    decoded
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .filter_map(|segment| segment.split(|byte| *byte == b';').next())
        .filter(|segment| !segment.is_empty())
}

/// What one look at the bytes tells.
enum Shape {
    /// Both readings are the path itself.
    Plain,
    /// The readings differ in the case of letters only.
    Cased,
    /// Anything else. May still turn out to be plain.
    Odd,
}

/// Sorts out the paths that need no work: nearly all of them. `raw` begins with a slash.
fn shape(raw: &[u8]) -> Shape {
    let mut cased = false;
    let mut after_slash = false;
    for byte in raw {
        let is_slash = match class(*byte) {
            Class::Slash => true,
            Class::Same => false,
            Class::Upper => {
                cased = true;
                false
            }
            Class::Odd => return Shape::Odd,
        };
        // Merged slashes and dot segments; a harmless `/.well-known` takes the long way too.
        if after_slash && (is_slash || *byte == b'.') {
            return Shape::Odd;
        }
        after_slash = is_slash;
    }
    match (after_slash && raw.len() > 1, cased) {
        (true, _) => Shape::Odd,
        (false, true) => Shape::Cased,
        (false, false) => Shape::Plain,
    }
}

/// What a byte means to [`shape`].
#[derive(Clone, Copy)]
enum Class {
    Same,
    Slash,
    Upper,
    Odd,
}

const fn class(byte: u8) -> Class {
    match byte {
        b'/' => Class::Slash,
        b'A'..=b'Z' => Class::Upper,
        b';' => Class::Odd,
        _ if is_unreserved(byte) || is_reserved_in_path(byte) => Class::Same,
        _ => Class::Odd,
    }
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What else a segment may hold raw: RFC 3986 §3.3, `pchar`.
const fn is_reserved_in_path(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
    )
}

/// The byte of an escape whose `%` is gone already, and what follows it.
fn escape(after_percent: &[u8]) -> Option<(u8, &[u8])> {
    let [high, low, rest @ ..] = after_percent else { return None };
    let value = |digit: &u8| char::from(*digit).to_digit(16).and_then(|it| u8::try_from(it).ok());
    Some((value(high)? << 4 | value(low)?, rest))
}

/// Decodes every escape; a `%` that begins none stays.
fn decode(raw: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [byte, tail @ ..] = rest {
        let (byte, next) = match (byte, escape(tail)) {
            (b'%', Some(escaped)) => escaped,
            (byte, _) => (*byte, tail),
        };
        decoded.push(byte);
        rest = next;
    }
    decoded
}

/// The strict reading. Linear in the path: what `..` removes is looked at once.
fn strict(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut reading = Vec::with_capacity(path.len() + 1);
    let mut ends_in_dots = false;
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        let start = reading.len();
        reading.push(b'/');
        push_normal(segment, &mut reading);
        let written = reading.get(start..).unwrap_or_default();
        ends_in_dots = matches!(written, b"/." | b"/..");
        if ends_in_dots {
            let is_parent = written == b"/..";
            reading.truncate(start);
            if is_parent {
                leave(&mut reading)?;
            }
        }
    }
    // RFC 3986 §5.2.4: `/a/.` and `/a/b/..` are `/a/`.
    if ends_in_dots {
        reading.push(b'/');
    }
    Ok(reading)
}

/// The lenient reading of what [`decode_twice`] made.
fn lenient(decoded: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut reading = Vec::with_capacity(decoded.len());
    for segment in forgiving_segments(decoded) {
        match segment {
            b"." => {}
            b".." => leave(&mut reading)?,
            _ => {
                reading.push(b'/');
                reading.extend(segment.iter().map(u8::to_ascii_lowercase));
            }
        }
    }
    if reading.is_empty() {
        reading.push(b'/');
    }
    Ok(reading)
}

/// Removes the last segment and the slash before it.
fn leave(reading: &mut Vec<u8>) -> Result<(), PathError> {
    let slash = reading.iter().rposition(|byte| *byte == b'/').ok_or(PathError::AboveRoot)?;
    reading.truncate(slash);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads `raw` and compares; one argument for both readings where they are the same.
    fn check(raw: &str, strict: &str, lenient: &str) {
        let readings =
            Readings::of(raw.as_bytes()).unwrap_or_else(|error| panic!("{raw}: {error}"));
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
        for path in ["/..;a=b/", "/%252e%252e/a", "/a%2f..%2f..", "//../a", "/..%5ca", "/a/..;/..;"]
        {
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
}
