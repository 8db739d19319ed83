//! Strings of JSON (RFC 8259 §7) from bytes that anybody may have sent.

/// What a text that was cut ends in.
const CUT: &str = "…";

/// Writes the bytes as what stands between two quotation marks, at most about `max` bytes of it: a
/// longer text is cut between two characters and ends in `…`.
///
/// What is no UTF-8 becomes U+FFFD. Beside what JSON demands, everything is escaped that could
/// move a terminal's cursor, begin a line or turn the direction of what follows.
pub fn push_escaped(out: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let end = out.len().saturating_add(max);
    push_escaped_to(out, bytes, end);
}

/// The same as far as `out` is about `end` bytes long. Whether there was room for all of it: nothing
/// may follow what was cut.
pub fn push_escaped_to(out: &mut Vec<u8>, bytes: &[u8], end: usize) -> bool {
    bytes.utf8_chunks().all(|chunk| {
        push_text(out, chunk.valid(), end)
            && (chunk.invalid().is_empty() || push_piece(out, "\u{fffd}".as_bytes(), end))
    })
}

/// Whether there was room for all of it.
fn push_text(out: &mut Vec<u8>, text: &str, end: usize) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let plain = rest.bytes().position(|byte| !is_plain(byte)).unwrap_or(rest.len());
        let (run, other) = rest.split_at_checked(plain).unwrap_or((rest, ""));
        if out.len().saturating_add(run.len()) > end {
            // Plain ones are of one byte each.
            let room = end.saturating_sub(out.len());
            out.extend_from_slice(run.as_bytes().get(..room).unwrap_or_default());
            out.extend_from_slice(CUT.as_bytes());
            return false;
        }
        out.extend_from_slice(run.as_bytes());
        let mut characters = other.chars();
        if let Some(character) = characters.next()
            && !push_character(out, character, end)
        {
            return false;
        }
        rest = characters.as_str();
    }
    true
}

fn push_character(out: &mut Vec<u8>, character: char, end: usize) -> bool {
    match character {
        '"' => push_piece(out, b"\\\"", end),
        '\\' => push_piece(out, b"\\\\", end),
        '\n' => push_piece(out, b"\\n", end),
        '\r' => push_piece(out, b"\\r", end),
        '\t' => push_piece(out, b"\\t", end),
        _ if is_hidden(character) => {
            let mut piece = *b"\\u0000";
            let code = u32::from(character);
            for (place, shift) in piece.iter_mut().skip(2).zip([12_u32, 8, 4, 0]) {
                *place = hex_digit(code.checked_shr(shift).unwrap_or(0));
            }
            push_piece(out, &piece, end)
        }
        _ => push_piece(out, character.encode_utf8(&mut [0; 4]).as_bytes(), end),
    }
}

fn push_piece(out: &mut Vec<u8>, piece: &[u8], end: usize) -> bool {
    let fits = out.len().saturating_add(piece.len()) <= end;
    out.extend_from_slice(if fits { piece } else { CUT.as_bytes() });
    fits
}

/// Printable ASCII that stands for itself.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..0x7f) && byte != b'"' && byte != b'\\'
}

/// Control characters, line and paragraph separators, and what overrides the direction of text; all
/// below U+10000.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}' | '\u{feff}'
        )
}

/// The digit for the four lowest bits.
pub fn hex_digit(value: u32) -> u8 {
    match u8::try_from(value & 0xf).unwrap_or(0) {
        low @ 0..=9 => b'0'.saturating_add(low),
        high => b'a'.saturating_add(high.saturating_sub(10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(bytes: &[u8], max: usize) -> String {
        let mut out = Vec::new();
        push_escaped(&mut out, bytes, max);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_that_is_sent_ends_the_string_or_the_line() {
        assert_eq!(escaped(b"/a%20b?c=d&e", 100), "/a%20b?c=d&e");
        assert_eq!(escaped(b"\"}\n{\"\\", 100), r#"\"}\n{\"\\"#);
        assert_eq!(escaped(b"\x1b[2J\x00\x7f\x80", 100), "\\u001b[2J\\u0000\\u007f\u{fffd}");
        assert_eq!(escaped("é\u{9b}\u{2028}\u{202e}ü".as_bytes(), 100), "é\\u009b\\u2028\\u202eü");
    }

    #[test]
    fn what_is_too_long_is_cut_between_two_characters() {
        assert_eq!(escaped(b"abcdef", 6), "abcdef");
        assert_eq!(escaped(b"abcdef", 4), "abcd…");
        assert_eq!(escaped("abcé".as_bytes(), 4), "abc…");
        assert_eq!(escaped(b"abc\n", 4), "abc…");
        assert_eq!(escaped(b"abc\x01d", 5), "abc…");
        assert_eq!(escaped(b"", 0), "");
    }
}
