//! Backends, as far as their reading of a path goes: which limited resource would each serve?
//!
//! Written from the documentation of the servers, in plain terms, and without a line of tollgate's
//! own reading: they are its second opinion. A model may be more forgiving than the server, never
//! less.

use std::collections::BTreeSet;

/// The resources: an exact path, a subtree, a path with a name in it, and one in each of these two
/// that has a rule of its own.
pub const RULES: [&str; 5] = [
    "/api/limited",
    "/fo/history/**",
    "/reports/{id}/export",
    "/reports/all/export",
    "/fo/history/public",
];
/// This one has no limits at all.
pub const EXEMPT: usize = 4;

/// A backend: the indices in [`RULES`] of what it serves for a path.
pub type Model = fn(&[u8]) -> BTreeSet<usize>;

/// Every model, by name.
pub const MODELS: [(&str, Model); 5] = [
    ("nginx", nginx),
    ("express", express),
    ("express.static", express_static),
    ("starlette", starlette),
    ("tomcat", tomcat),
];

/// nginx, `location`: "The matching is performed against a normalized URI, after decoding the text
/// encoded in the `%XX` form, resolving references to relative path components `.` and `..`, and
/// possible compression of two or more adjacent slashes into a single slash." With `merge_slashes`
/// on and off; 400 for a NUL, a bad escape, and `..` above the root.
fn nginx(path: &[u8]) -> BTreeSet<usize> {
    let mut served = BTreeSet::new();
    let Some(decoded) = decode_or_refuse(path).filter(|it| !it.contains(&0)) else { return served };
    for merges in [true, false] {
        if let Some(normal) = resolve(split(&decoded, false), merges) {
            served.extend(exactly(&normal));
        }
    }
    served
}

/// Express, whose routes are matched by path-to-regexp against the target as it came: without case,
/// a trailing slash optional, nothing decoded but the parameters, nothing resolved.
fn express(path: &[u8]) -> BTreeSet<usize> {
    let folded = path.to_ascii_lowercase();
    let mut segments = split(&folded, false);
    let mut served: BTreeSet<usize> = exactly(&segments).into_iter().collect();
    if segments.len() > 1 && segments.last().is_some_and(Vec::is_empty) {
        segments.pop();
        served.extend(exactly(&segments));
    }
    // A parameter that cannot be decoded is answered with 400.
    if served.contains(&2) && path.split(|it| *it == b'/').any(|it| decode_or_refuse(it).is_none())
    {
        served.remove(&2);
    }
    served
}

/// `express.static`: decoded once, then `path.normalize`, then the file system: with case and
/// slashes on Unix, without case and with backslashes on Windows. 403 above the root.
fn express_static(path: &[u8]) -> BTreeSet<usize> {
    let mut served = BTreeSet::new();
    let Some(decoded) = decode_or_refuse(path).filter(|it| !it.contains(&0)) else { return served };
    for on_windows in [false, true] {
        let decoded = if on_windows { decoded.to_ascii_lowercase() } else { decoded.clone() };
        if let Some(normal) = resolve(split(&decoded, on_windows), true) {
            served.extend(exactly(&normal));
        }
    }
    served
}

/// Starlette: the server decodes once, as UTF-8 with a mark for what is none; routes are regular
/// expressions, whose `$` also matches before a last line feed, and nothing is resolved.
/// `redirect_slashes` only redirects.
fn starlette(path: &[u8]) -> BTreeSet<usize> {
    let decoded = String::from_utf8_lossy(&decode(path)).into_owned().into_bytes();
    let ends = [decoded.as_slice(), decoded.strip_suffix(b"\n").unwrap_or(&decoded)];
    ends.into_iter().flat_map(|path| exactly(&split(path, false))).collect()
}

/// Tomcat and Spring: parameters are cut from the target as it came, the rest is decoded once (an
/// encoded slash where it is allowed), `\` is a slash where it is allowed, slashes are merged, dot
/// segments removed. Spring's own patterns cut and decode each segment and resolve nothing; a
/// trailing slash was optional up to 5.3. Last, an application that decodes once more.
fn tomcat(path: &[u8]) -> BTreeSet<usize> {
    let mut served = BTreeSet::new();
    let cut: Vec<Vec<u8>> = split(path, false).iter().map(|it| without_parameters(it)).collect();
    let Some(parts) = cut.iter().map(|it| decode_or_refuse(it)).collect::<Option<Vec<_>>>() else {
        return served;
    };
    let joined: Vec<u8> = parts.iter().flat_map(|it| [b"/", it.as_slice()].concat()).collect();
    if joined.contains(&0) {
        return served;
    }
    for at_backslash in [false, true] {
        if let Some(normal) = resolve(split(&joined, at_backslash), true) {
            served.extend(without_slash(&normal).iter().flat_map(|it| exactly(it)));
        }
    }
    served.extend(without_slash(&parts).iter().flat_map(|it| exactly(it)));
    let twice = decode(&decode(path));
    let cut = split(&twice, true).iter().map(|it| without_parameters(it)).collect();
    if let Some(normal) = resolve(cut, true) {
        let folded: Vec<Vec<u8>> = normal.iter().map(|it| it.to_ascii_lowercase()).collect();
        served.extend(without_slash(&folded).iter().flat_map(|it| exactly(it)));
    }
    served
}

/// Which rules these segments fit to the letter.
fn exactly(segments: &[Vec<u8>]) -> Vec<usize> {
    let segments: Vec<&[u8]> = segments.iter().map(Vec::as_slice).collect();
    match segments.as_slice() {
        [b"api", b"limited"] => vec![0],
        [b"fo", b"history", b"public"] => vec![4],
        [b"fo", b"history", ..] => vec![1],
        [b"reports", b"all", b"export"] => vec![3],
        [b"reports", id, b"export"] if !id.is_empty() => vec![2],
        _ => Vec::new(),
    }
}

/// As they are, and without a trailing slash.
fn without_slash(segments: &[Vec<u8>]) -> [Vec<Vec<u8>>; 2] {
    let mut cut = segments.to_vec();
    if cut.last().is_some_and(Vec::is_empty) {
        cut.pop();
    }
    [segments.to_vec(), cut]
}

/// The segments of a path that begins with a slash.
fn split(path: &[u8], at_backslash: bool) -> Vec<Vec<u8>> {
    let is_separator = |it: &u8| *it == b'/' || at_backslash && *it == b'\\';
    path.split(is_separator).skip(1).map(<[u8]>::to_vec).collect()
}

fn without_parameters(segment: &[u8]) -> Vec<u8> {
    segment.iter().copied().take_while(|it| *it != b';').collect()
}

/// Dot segments removed, and empty ones if `merges`. `None`: above the root. What ends in a dot
/// segment ends in a slash.
fn resolve(segments: Vec<Vec<u8>>, merges: bool) -> Option<Vec<Vec<u8>>> {
    let mut resolved: Vec<Vec<u8>> = Vec::new();
    let count = segments.len();
    for (index, segment) in segments.into_iter().enumerate() {
        let is_last = index + 1 == count;
        let is_dots = segment == b"." || segment == b"..";
        if segment == b".." {
            resolved.pop()?;
        } else if !is_dots && (is_last || !merges || !segment.is_empty()) {
            resolved.push(segment);
        }
        if is_dots && is_last {
            resolved.push(Vec::new());
        }
    }
    Some(resolved)
}

/// Decodes escapes once; what is none stays.
fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).filter(|it| it.iter().all(u8::is_ascii_hexdigit));
        match digits.and_then(|it| u8::from_str_radix(std::str::from_utf8(it).ok()?, 16).ok()) {
            Some(byte) if path[at] == b'%' => {
                decoded.push(byte);
                at += 3;
            }
            _ => {
                decoded.push(path[at]);
                at += 1;
            }
        }
    }
    decoded
}

/// Decodes escapes once; `None` where one is none.
fn decode_or_refuse(path: &[u8]) -> Option<Vec<u8>> {
    let is_fine = |(at, byte): (usize, &u8)| {
        let digits = path.get(at + 1..at + 3);
        *byte != b'%' || digits.is_some_and(|it| it.iter().all(u8::is_ascii_hexdigit))
    };
    path.iter().enumerate().all(is_fine).then(|| decode(path))
}

/// Whether the contract about paths refuses one, written from its text: NUL in any encoding,
/// malformed percent-encoding, raw control characters, raw `\`, `..` above the root in either
/// reading.
pub fn is_to_be_refused(path: &[u8]) -> bool {
    let twice = decode(&decode(path));
    // The two-byte form of Java's "modified UTF-8" is an encoding of NUL as well.
    let has_nul = twice.contains(&0) || twice.windows(2).any(|it| it == [0xc0, 0x80]);
    let is_bad = |byte: &u8| *byte < 0x20 || *byte == 0x7f || *byte == b'\\';
    if has_nul || path.iter().any(is_bad) || decode_or_refuse(path).is_none() {
        return true;
    }
    let dots = |it: &[u8]| {
        let lower = it.to_ascii_lowercase();
        String::from_utf8_lossy(&lower).replace("%2e", ".").into_bytes()
    };
    let by_letter = split(path, false).iter().map(|it| dots(it)).collect();
    let forgiving = split(&twice, true)
        .iter()
        .map(|it| without_parameters(it))
        .filter(|it| !it.is_empty())
        .collect();
    resolve(by_letter, false).is_none() || resolve(forgiving, true).is_none()
}
