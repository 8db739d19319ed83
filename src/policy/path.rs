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
//!
//! *Further* readings are for what lies between the two. A backend that forgives in one respect and
//! is strict in another reads `/A/..` or `/a%2fb/..;/x` as neither of them does: one that removes no
//! dot segments runs `/a/**` for it. Where a path leaves in doubt how it is divided into segments, or
//! what a backend decodes of it, it is read in each of the ways of `DIVISIONS` as well.

use std::borrow::Cow;

use super::route::PathError;

/// Both readings of one path. Borrowed where the path reads as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings<'a> {
    strict: Cow<'a, [u8]>,
    /// `None`: the same bytes as `strict`.
    lenient: Option<Cow<'a, [u8]>>,
    further: Vec<Further>,
    is_divided: bool,
}

/// A reading of a backend that is strict in one respect and forgiving in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Further {
    /// The path. A separator that is none in this reading is a NUL in it.
    pub path: Vec<u8>,
    /// Whether letters are as they came: it is to be compared as the strict reading is, else as
    /// the lenient one.
    pub is_exact: bool,
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
        let shape = if raw.first() == Some(&b'/') { shape(raw) } else { Shape::Odd };
        match shape {
            Shape::Plain => Ok(Readings {
                strict: Cow::Borrowed(raw),
                lenient: None,
                further: Vec::new(),
                is_divided: false,
            }),
            Shape::Cased => Ok(Readings {
                strict: Cow::Borrowed(raw),
                lenient: Some(Cow::Owned(raw.to_ascii_lowercase())),
                further: Vec::new(),
                is_divided: false,
            }),
            Shape::Odd => Self::of_any(raw),
        }
    }

    /// The same for any path, without the shortcuts.
    fn of_any(raw: &[u8]) -> Result<Self, PathError> {
        let path = raw.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
        let path = match path {
            b"" => b"/",
            b"*" => {
                return Ok(Readings {
                    strict: Cow::Owned(b"*".to_vec()),
                    lenient: None,
                    further: Vec::new(),
                    is_divided: false,
                });
            }
            [b'/', ..] => path,
            _ => return Err(PathError::NotAbsolute),
        };
        check_bytes(path)?;
        let decoded = decode_twice(path);
        check_no_nul(&decoded)?;
        let strict = strict(path)?;
        let lenient = lenient(&decoded)?;
        let is_divided = is_division_in_doubt(path, &decoded);
        let mut further = divisions(path, &decoded, is_divided);
        further.retain(|it| it.path != if it.is_exact { &*strict } else { &*lenient });
        let lenient = (lenient != strict).then_some(Cow::Owned(lenient));
        Ok(Readings { strict: Cow::Owned(strict), lenient, further, is_divided })
    }

    /// The reading by the letter.
    pub fn strict(&self) -> &[u8] {
        &self.strict
    }

    /// The reading of the most forgiving backend.
    pub fn lenient(&self) -> &[u8] {
        self.lenient.as_ref().unwrap_or(&self.strict)
    }

    /// What backends between the two may read; nothing for nearly every path.
    pub fn further(&self) -> &[Further] {
        &self.further
    }

    /// Whether it is in doubt where the path's segments are: it holds dot segments, empty ones or
    /// separators in disguise. Needless escapes alone leave no such doubt, and are honest.
    pub fn is_divided(&self) -> bool {
        self.is_divided
    }

    /// Whether both readings are the same bytes.
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
pub fn decode_twice(raw: &[u8]) -> Cow<'_, [u8]> {
    match decode(raw) {
        Cow::Borrowed(raw) => Cow::Borrowed(raw),
        Cow::Owned(once) => match decode(&once) {
            Cow::Borrowed(_) => Cow::Owned(once),
            Cow::Owned(twice) => Cow::Owned(twice),
        },
    }
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
    let mut seen = 0;
    let mut previous = 0;
    // No branches in here: every request comes by.
    for byte in raw {
        let traits = TRAITS.get(usize::from(*byte)).copied().unwrap_or(ODD);
        // Runs of slashes, and dot segments; a harmless `/.well-known` takes the long way too.
        let pair = (previous & SLASH != 0) & (traits & (SLASH | DOT) != 0);
        seen |= traits | (u8::from(pair) * ODD);
        previous = traits;
    }
    let ends_in_slash = previous & SLASH != 0 && raw.len() > 1;
    if seen & ODD != 0 || ends_in_slash {
        Shape::Odd
    } else if seen & UPPER != 0 {
        Shape::Cased
    } else {
        Shape::Plain
    }
}

const SLASH: u8 = 1;
const DOT: u8 = 2;
const UPPER: u8 = 4;
/// What some reading does not leave as it is.
const ODD: u8 = 8;

/// What each byte means to [`shape`].
#[expect(clippy::indexing_slicing, reason = "the compiler evaluates it, and would not panic later")]
static TRAITS: [u8; 256] = {
    let mut traits = [0; 256];
    let mut byte = u8::MAX;
    loop {
        traits[byte as usize] = match byte {
            b'/' => SLASH,
            b'.' => DOT,
            b'A'..=b'Z' => UPPER,
            b';' => ODD,
            _ if is_unreserved(byte) || is_reserved_in_path(byte) => 0,
            _ => ODD,
        };
        if byte == 0 {
            break traits;
        }
        byte -= 1;
    }
};

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
pub fn decode(raw: &[u8]) -> Cow<'_, [u8]> {
    if !raw.contains(&b'%') {
        return Cow::Borrowed(raw);
    }
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
    Cow::Owned(decoded)
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

/// One way to divide a path into segments, and to read these.
struct Division {
    /// What is divided.
    text: Text,
    /// Whether `\` divides.
    at_backslash: bool,
    /// Whether runs of slashes count as one.
    merges: bool,
    /// Whether dot segments are removed.
    removes_dots: bool,
    /// What is done with each segment.
    letters: Letters,
}

/// The stages of decoding at which backends divide.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Text {
    Raw,
    /// Unreserved characters are decoded.
    Normal,
    Once,
    /// Decoded once, after parameters were cut.
    CutOnce,
    Twice,
}

/// How a segment is compared with a rule's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Letters {
    /// As they came.
    Exact,
    /// In lower case.
    Lower,
    /// Decoded to the end, without parameters, in lower case.
    Folded,
}

/// The ways to read a path that are known of backends beside the two readings. Decoding and folding
/// more than a backend does meets the rules that it meets, unless another rule stands in between:
/// for that there are the ways that do less.
const DIVISIONS: [Division; 25] = {
    use Letters::{Exact, Folded, Lower};
    use Text::{CutOnce, Normal, Once, Raw, Twice};
    const fn of(
        text: Text,
        [at_backslash, merges, removes_dots]: [bool; 3],
        letters: Letters,
    ) -> Division {
        Division { text, at_backslash, merges, removes_dots, letters }
    }
    [
        // Routers that match the target as it came: Express, Fastify.
        of(Raw, [false, false, false], Exact),
        of(Raw, [false, false, false], Lower),
        of(Normal, [false, false, false], Folded),
        of(Normal, [false, true, false], Folded),
        of(Normal, [false, false, true], Folded),
        of(Normal, [false, true, true], Folded),
        // Routers behind a server that decodes: Starlette, Django, Flask; nginx, Apache, Go.
        of(Once, [false, false, false], Exact),
        of(Once, [false, true, false], Exact),
        of(Once, [false, false, true], Exact),
        of(Once, [false, true, true], Exact),
        of(Once, [false, false, false], Folded),
        of(Once, [false, true, false], Folded),
        of(Once, [false, false, true], Folded),
        of(Once, [false, true, true], Folded),
        // Files on Windows.
        of(Once, [true, true, true], Lower),
        of(Once, [true, true, true], Folded),
        // Servlets: Spring's patterns, Tomcat's and Jetty's mappings.
        of(CutOnce, [false, false, false], Exact),
        of(CutOnce, [true, true, true], Exact),
        of(CutOnce, [false, true, true], Exact),
        of(CutOnce, [false, false, false], Folded),
        of(CutOnce, [true, true, false], Folded),
        of(CutOnce, [true, true, true], Folded),
        // Applications that decode what was decoded.
        of(Twice, [false, false, false], Exact),
        of(Twice, [false, false, false], Folded),
        of(Twice, [true, true, false], Folded),
    ]
};

/// Whether backends may divide the path differently. `decoded` is what [`decode_twice`] made.
fn is_division_in_doubt(path: &[u8], decoded: &[u8]) -> bool {
    let is_slash = |byte: &&u8| matches!(**byte, b'/' | b'\\');
    let slashes = |text: &[u8]| text.iter().filter(is_slash).count();
    if slashes(path) != slashes(decoded) || decoded.last() == Some(&b'\n') {
        return true;
    }
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let cut = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        let is_trailing_slash = segment.is_empty() && segments.peek().is_none();
        if matches!(cut, b"" | b"." | b"..") && !is_trailing_slash {
            return true;
        }
    }
    false
}

/// Whether the path encodes what need not be: then one backend finds a word in it, another does not.
fn is_decoding_in_doubt(path: &[u8]) -> bool {
    let mut rest = path;
    while let [byte, tail @ ..] = rest {
        rest = match (byte, escape(tail)) {
            (b'%', Some((b'%', _))) => return true,
            (b'%', Some((byte, _))) if is_unreserved(byte) || is_reserved_in_path(byte) => {
                return true;
            }
            _ => tail,
        };
    }
    false
}

/// The path in each of [`DIVISIONS`] that its doubts ask for, each reading once. Linear in the path,
/// like every reading.
fn divisions(path: &[u8], twice: &[u8], divided: bool) -> Vec<Further> {
    if !divided && !is_decoding_in_doubt(path) {
        return Vec::new();
    }
    let (mut normal, mut cut) = (Vec::new(), Vec::new());
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        normal.push(b'/');
        push_normal(segment, &mut normal);
        cut.push(b'/');
        cut.extend(segment.split(|byte| *byte == b';').next().unwrap_or_default());
    }
    let (once, cut_once) = (decode(path), decode(&cut));
    let mut readings: Vec<Further> = Vec::new();
    for division in &DIVISIONS {
        let is_plain = !division.at_backslash && !division.merges && !division.removes_dots;
        if !divided && !is_plain {
            continue;
        }
        let text = match division.text {
            Text::Raw => path,
            Text::Normal => &normal,
            Text::Once => &once,
            Text::CutOnce => &cut_once,
            Text::Twice => twice,
        };
        let is_exact = division.letters == Letters::Exact;
        let further = Further { path: divide(text, division), is_exact };
        if !readings.contains(&further) {
            readings.push(further);
        }
    }
    readings
}

/// One of the divisions. `..` at the root stays there.
fn divide(text: &[u8], division: &Division) -> Vec<u8> {
    let mut reading = Vec::with_capacity(text.len());
    // To `$` in many a regular expression, Python's among them, a last line feed is the end.
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let is_separator = |byte: &u8| *byte == b'/' || division.at_backslash && *byte == b'\\';
    for segment in text.split(is_separator).skip(1) {
        match segment {
            b"" if division.merges => {}
            b"." if division.removes_dots => {}
            b".." if division.removes_dots => drop(leave(&mut reading)),
            _ => {
                reading.push(b'/');
                match division.letters {
                    Letters::Exact => push_exact(segment, division.text, &mut reading),
                    Letters::Lower => reading.extend(segment.iter().map(u8::to_ascii_lowercase)),
                    Letters::Folded => push_folded(segment, &mut reading),
                }
            }
        }
    }
    // Merged away, a trailing slash still tells `/a/` from `/a`.
    let is_exact = division.letters == Letters::Exact;
    if is_exact && division.merges && text.ends_with(b"/") && !reading.ends_with(b"/") {
        reading.push(b'/');
    }
    if !is_exact && reading.len() > 1 && reading.ends_with(b"/") {
        reading.pop();
    }
    if reading.is_empty() {
        reading.push(b'/');
    }
    reading
}

/// Appends a segment in the form in which strict patterns are kept: what must be encoded is. Of a
/// decoded text a `%` is a letter; of the raw one it stays, and so what it encodes is none.
fn push_exact(segment: &[u8], text: Text, reading: &mut Vec<u8>) {
    for byte in segment {
        match byte {
            b'%' if text == Text::Raw => reading.push(b'%'),
            b'%' => reading.extend(b"%25"),
            byte => push_normal(&[*byte], reading),
        }
    }
}

/// Appends a segment as the lenient reading folds one, but leaves it one segment: a separator in it
/// becomes a NUL, which no path may hold, and parameters alone are no empty segment.
fn push_folded(segment: &[u8], reading: &mut Vec<u8>) {
    let decoded = decode_twice(segment);
    let name = decoded.split(|byte| *byte == b';').next().unwrap_or_default();
    let name = if name.is_empty() { &*decoded } else { name };
    reading.extend(name.iter().map(|byte| match byte {
        b'/' | b'\\' => 0,
        other => other.to_ascii_lowercase(),
    }));
}

/// Removes the last segment and the slash before it.
fn leave(reading: &mut Vec<u8>) -> Result<(), PathError> {
    let slash = reading.iter().rposition(|byte| *byte == b'/').ok_or(PathError::AboveRoot)?;
    reading.truncate(slash);
    Ok(())
}

#[cfg(test)]
mod tests;
