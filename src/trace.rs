//! The identity of a request across services: the `traceparent` field of W3C Trace Context.
//!
//! Pure: reads and writes the field, and knows nothing of who collects traces.

use std::fmt;

/// Bytes of a field of version 00: `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// A trace's id: 16 bytes, not all zero; shown as 32 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub u128);

/// A span's id: 8 bytes, not all zero; shown as 16 hexadecimal digits in lower case.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

/// What a `traceparent` field says (W3C Trace Context, level 1, §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace.
    pub trace: TraceId,
    /// The caller's span.
    pub span: SpanId,
    /// Whether the caller may have recorded it.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads the value of a field. `None` for one that the standard says is to be ignored: of
    /// version 255, with upper case, of the wrong length, with an id of zeros. A later version may
    /// have more behind what is known (§3.2.4).
    pub fn parse(value: &[u8]) -> Option<Self> {
        let known = value.get(..LENGTH)?;
        let (version, rest) = field(known, 2)?;
        let (trace, rest) = field(rest, 32)?;
        let (span, rest) = field(rest, 16)?;
        let flags = number(rest)?;
        let is_longer = value.len() > LENGTH;
        let may_be_longer = version != 0 && value.get(LENGTH) == Some(&b'-');
        if version == 0xff || trace == 0 || span == 0 || (is_longer && !may_be_longer) {
            return None;
        }
        Some(TraceParent {
            trace: TraceId(trace),
            span: SpanId(u64::try_from(span).ok()?),
            is_sampled: flags & 1 == 1,
        })
    }
}

/// The number in the first `digits`, and what follows the dash behind them.
fn field(text: &[u8], digits: usize) -> Option<(u128, &[u8])> {
    let (digits, rest) = text.split_at_checked(digits)?;
    Some((number(digits)?, rest.strip_prefix(b"-")?))
}

/// At most 32 hexadecimal digits, in lower case.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.is_sampled))
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_field_is_read_and_written_again() {
        let parent = TraceParent::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(parent.trace.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.span.to_string(), "b7ad6b7169203331");
        assert!(parent.is_sampled);
        assert_eq!(parent.to_string(), TEXT);
    }

    #[test]
    fn what_the_standard_ignores_is_ignored() {
        let with = |from: &str, to: &str| TEXT.replacen(from, to, 1);
        for (text, is_read) in [
            (with("-01", "-00"), true),
            (with("-01", "-ff"), true),
            (with("00-", "01-"), true),
            (with("00-", "cc-") + "-what-may-come", true),
            (with("00-", "cc-") + ".what-may-come", false),
            (with("00-", "ff-"), false),
            (TEXT.to_owned() + "-x", false),
            (TEXT.to_owned() + " ", false),
            (TEXT.to_uppercase(), false),
            (with("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)), false),
            (with("b7ad6b7169203331", &"0".repeat(16)), false),
            (with("-b7", "+b7"), false),
            (with("-01", "-0"), false),
            (String::new(), false),
        ] {
            assert_eq!(TraceParent::parse(text.as_bytes()).is_some(), is_read, "{text}");
        }
    }
}
